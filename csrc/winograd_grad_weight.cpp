// The weight gradient by Winograd's F(4x4, 3x3), the adjoint of winograd.cpp by the weights: 36 matrix
// products
//     s[e][source][result] = sum over tiles of v[e][tile][source] * w[e][tile][result]
// of transformed patches v and transformed gradients w, which are transformed back into filters.
//
// A block of tiles is transformed by all threads and then shared. The products are divided into panels, some
// sources by a block of results, and where these are few, also by tiles into parts that are added in order:
// both by the shape only. If one block holds all tiles a panel's products never leave its task.
#include <algorithm>
#include <atomic>

#include "kernels.h"
#include "parallel.h"
#include "phases.h"
#include "winograd.h"

namespace fastconv {
namespace {

template <class T>
class WinogradGradWeight {
public:
    WinogradGradWeight(const GatherProblem<T>& forward, T* grad_weight, int threads)
        : p_(forward), plan_(forward.plans.front()), grad_weight_(grad_weight), tile_(tiles<T>()),
          winograd_(winograd_tiles<T>()), grid_(p_.batch, plan_), vectors_(outer_vectors<T>(p_.results)),
          width_(vectors_ * tile_.lanes), blocks_(ceil_div(p_.results, width_)),
          windows_(small_windows(plan_)), channels_(round_up(p_.sources, tile_.lanes)),
          tile_stride_(odd_lines<T>(windows_ * channels_)), runs_per_block_(grid_.runs_of(kTilesPerBlock)),
          rows_(std::clamp(round_up(windows_ * p_.sources * blocks_ / kPanelsWanted, kFewestRows),
                           kFewestRows, kMostRows)),
          panels_per_window_(ceil_div(p_.sources, rows_)), panels_(windows_ * panels_per_window_ * blocks_),
          panel_stride_(odd_lines<T>(rows_ * width_)), parts_(ceil_div(kPanelsWanted, panels_)),
          threads_(winograd_threads(p_, threads)) {}

    bool run() {
        const bool at_once = grid_.runs <= runs_per_block_ && parts_ == 1;
        const Index piece = kWinogradProducts * panel_stride_; // one part of a panel
        T* sums = at_once ? nullptr : workspace<T>(Slot::partial, panels_ * parts_ * piece);
        for (Index group = 0; group < p_.groups; ++group) {
            for (Index first = 0; first < grid_.runs; first += runs_per_block_) {
                transform_block(group, {first, std::min(grid_.runs, first + runs_per_block_)});
                Parallel::run(panels_ * parts_, threads_, [&](Index task) {
                    const Index panel = task / parts_, part = task % parts_;
                    T* to = at_once ? workspace<T>(Slot::weights, piece) : sums + task * piece;
                    const Range tiles{block_.tiles * part / parts_, block_.tiles * (part + 1) / parts_};
                    multiply(panel, tiles, to, first == 0);
                    if (at_once)
                        finish(group, panel, to);
                });
            }
            if (!at_once)
                Parallel::run(panels_, threads_, [&](Index panel) {
                    T* total = sums + panel * parts_ * piece;
                    for (Index part = 1; part < parts_; ++part)
                        for (Index i = 0; i < piece; ++i)
                            total[i] += total[part * piece + i];
                    finish(group, panel, total);
                });
        }
        return finite_;
    }

private:
    // Some tiles, transformed: patches[e][tile][source] and gradients[e][block of results][tile][width].
    struct Block {
        Index tiles;
        T *patches, *gradients;
        Index patch_stride, gradient_stride; // from one e to the next
    };

    // The sources and results of a panel, and its small window.
    struct Panel {
        Index window, block;
        Range sources;
    };

    Panel panel_of(Index i) const {
        const Index first = i / blocks_ % panels_per_window_ * rows_;
        return {i / blocks_ / panels_per_window_, i % blocks_, {first, std::min(p_.sources, first + rows_)}};
    }

    void transform_block(Index group, const Range& runs) {
        const Index tiles = grid_.tiles(runs);
        block_.tiles = tiles;
        block_.patch_stride = odd_lines<T>(tiles * tile_stride_);
        block_.gradient_stride = odd_lines<T>(blocks_ * tiles * width_);
        block_.patches = workspace<T>(Slot::window, kWinogradProducts * block_.patch_stride);
        block_.gradients = workspace<T>(Slot::panels, kWinogradProducts * block_.gradient_stride);
        Parallel::run(runs.size(), threads_, [&](Index task) {
            const Range run{runs.begin + task, runs.begin + task + 1};
            const Index tile = grid_.tiles({runs.begin, run.begin});
            T* staging = workspace<T>(Slot::staging, winograd_staging<T>());
            for (Index window = 0; window < windows_; ++window)
                transform_patches(p_, grid_, run, group, small_window(plan_, p_.kernel, window),
                                  {0, p_.sources}, block_.patches + tile * tile_stride_ + window * channels_,
                                  block_.patch_stride, tile_stride_, staging);
            transform_gradients(group, grid_.run(run.begin), tile, staging);
        });
    }

    void transform_gradients(Index group, const TileRun& run, Index tile, T* staging) const {
        const Index plane = volume(p_.result_size), lanes = tile_.lanes;
        WinogradPatches<T> call{};
        call.plane = plane;
        call.height = p_.result_size[1];
        call.width = p_.result_size[2];
        call.row = run.row * kWinogradResults;
        call.column = run.column * kWinogradResults;
        call.tiles = run.tiles;
        call.product_stride = block_.gradient_stride;
        call.tile_stride = width_;
        call.staging = staging;
        call.ahead = lanes * plane;
        for (Index k = 0; k < blocks_ * width_; k += lanes) {
            call.planes = p_.result + ((run.image * p_.groups + group) * p_.results + k) * plane +
                          run.slice * p_.result_size[1] * p_.result_size[2];
            call.channels = static_cast<int>(std::clamp<Index>(p_.results - k, 0, lanes));
            call.to = block_.gradients + (k / width_ * block_.tiles + tile) * width_ + k % width_;
            winograd_.transform_gradients(call);
        }
    }

    void multiply(Index i, const Range& tiles, T* sums, bool first) const {
        constexpr Index kBytes = sizeof(T);
        const Panel panel = panel_of(i);
        const Segment segment{0, 0, tiles.size()};
        OuterProducts<T> call{};
        call.x_stride = 1;
        call.x_step = tile_stride_;
        call.segments = &segment;
        call.segment_count = 1;
        call.d_stride = width_;
        call.rows = static_cast<int>(panel.sources.size());
        call.vectors = vectors_;
        call.first = first;
        for (Index e = 0; e < kWinogradProducts; ++e) {
            call.x = block_.patches + e * block_.patch_stride + tiles.begin * tile_stride_ +
                     panel.window * channels_ + panel.sources.begin;
            call.g = block_.gradients + e * block_.gradient_stride +
                     (panel.block * block_.tiles + tiles.begin) * width_;
            call.d = sums + e * panel_stride_;
            if (e + 1 < kWinogradProducts) {
                call.ahead[0] = {call.x + block_.patch_stride, kBytes, tile_stride_ * kBytes};
                call.ahead[1] = {call.g + block_.gradient_stride, tiles.size() * width_ * kBytes / call.rows,
                                 kCacheLine};
            }
            tile_.outer(call);
        }
    }

    // From sums to filters, and these to where they belong.
    void finish(Index group, Index i, const T* sums) {
        const Panel panel = panel_of(i);
        const Index count = panel.sources.size(), first = panel.block * width_;
        const Index results = std::min(width_, p_.results - first);
        T* packed = workspace<T>(Slot::results, count * 9 * width_);
        if (!winograd_.transform_sums(sums, panel_stride_, count, width_, packed))
            finite_ = false;
        const Index taps = volume(p_.kernel);
        T* to = grad_weight_ + (group * p_.results + first) * p_.sources * taps + panel.sources.begin * taps;
        if (taps == 9 && windows_ == 1) {
            tile_.transpose(packed, width_, count * 9, results, to, p_.sources * 9, count * 9);
            return;
        }
        const SmallWindow window = small_window(plan_, p_.kernel, panel.window);
        for (Index c = 0; c < count; ++c)
            for (Index row = 0; row < 3; ++row) {
                const Index* positions = window.taps.data() + row * 3;
                const Index columns = 3 - std::count(positions, positions + 3, -1);
                if (columns > 0)
                    tile_.transpose(packed + (c * 9 + row * 3) * width_, width_, columns, results,
                                    to + c * taps + positions[0], p_.sources * taps, columns);
            }
    }

    const GatherProblem<T>& p_;
    const GatherPlan& plan_;
    T* grad_weight_;
    const Tiles<T>& tile_;
    const WinogradTiles<T>& winograd_;
    const TileGrid grid_;
    const int vectors_;
    const Index width_, blocks_; // of results
    const Index windows_;
    const Index channels_;    // sources in whole vectors
    const Index tile_stride_; // between the patches of neighbouring tiles
    const Index runs_per_block_;
    const Index rows_, panels_per_window_, panels_, panel_stride_, parts_;
    const int threads_;
    Block block_{};
    std::atomic<bool> finite_{true};
};

} // namespace

template <class T>
bool winograd_grad_weight(const GatherProblem<T>& forward, T* grad_weight, int threads) {
    if constexpr (std::is_floating_point_v<T>) {
        if (!is_dilated(forward))
            return WinogradGradWeight<T>(forward, grad_weight, threads).run();
        return WinogradGradWeight<T>(problem_in_phases(forward, true, threads), grad_weight, threads).run();
    } else {
        return false;
    }
}

#define INSTANTIATE(T) template bool winograd_grad_weight(const GatherProblem<T>&, T*, int);
FASTCONV_CONV_TYPES(INSTANTIATE)

} // namespace fastconv
