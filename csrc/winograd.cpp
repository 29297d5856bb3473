// Convolution by Winograd's F(4x4, 3x3): transformed patches v and transformed weights u meet in 36 matrix
// products
//     m[e][tile][result] = sum over sources of v[e][tile][source] * u[e][source][result],
// which are transformed back into the result. Larger windows are sums of such small ones (winograd.h),
// dilated ones are dense in the phases of the images (phases.h).
//
// Where the weights are small beside the images, u is computed once and shared, and a task takes some tiles
// from patches to results in its own memory. Where the transformed weights are larger than a cache and the
// tiles are few, v is shared instead, and a task takes some results: it transforms the weights it needs piece
// by piece, and they never leave its cache. Which way depends on the shape only, and so does the order of
// sums.
#include "winograd.h"

#include <atomic>

#include "activation.h"
#include "kernels.h"
#include "parallel.h"
#include "phases.h"

namespace fastconv {
namespace {

constexpr Index kFewestChannels = 16;

template <class T>
class Winograd {
public:
    Winograd(const GatherProblem<T>& problem, int threads)
        : p_(problem), plan_(problem.plans.front()), tile_(tiles<T>()), winograd_(winograd_tiles<T>()),
          grid_(p_.batch, plan_), vectors_(outer_vectors<T>(p_.results)), width_(vectors_ * tile_.lanes),
          blocks_(ceil_div(p_.results, width_)), windows_(small_windows(plan_)),
          channels_(round_up(p_.sources, tile_.lanes)), tile_stride_(odd_lines<T>(windows_ * channels_)),
          threads_(winograd_threads(p_, threads)) {}

    bool run() {
        const Index tiles = grid_.tiles({0, grid_.runs});
        const Index weights = kWinogradProducts * windows_ * p_.sources * blocks_ * width_;
        if (weights * static_cast<Index>(sizeof(T)) > kLargeWeights && tiles <= kFewTiles)
            share_patches();
        else
            share_weights();
        return finite_;
    }

private:
    // 36 matrices, `stride` apart: v[tile][small window, source], u[small window, source][width], where there
    // may be some sources of one small window only, or m[tile][width].
    struct Matrices {
        T* first;
        Index stride;
    };

    void share_weights() {
        const Index sums = windows_ * p_.sources, stride = filter_stride();
        T* all = weights_memory(p_, p_.groups * blocks_ * kWinogradProducts * stride);
        const Index parts = ceil_div(p_.sources, kSourcesPerPacking);
        const Index transforms = p_.weights_are_kept() ? 0 : p_.groups * blocks_ * windows_ * parts;
        Parallel::run(transforms, threads_, [&](Index task) {
            const Index part = task % parts, window = task / parts % windows_,
                        owner = task / parts / windows_;
            const Range sources{part * kSourcesPerPacking,
                                std::min(p_.sources, (part + 1) * kSourcesPerPacking)};
            const Index group = owner / blocks_, block = owner % blocks_;
            transform_weights(group, block, window, sources,
                              filters_in(all, group, block, window, sources.begin));
        });

        // As many tiles as make full use of a pass over u, but every thread should have work.
        const Index affordable = kPatchBytes / (kWinogradProducts * sums * static_cast<Index>(sizeof(T)));
        const Index wanted =
            sums <= 128 ? kTilesPerPass : std::clamp(affordable, kTilesPerPass / 2, 2 * kTilesPerPass);
        const Index tiles = grid_.tiles({0, grid_.runs});
        const Index share = ceil_div(tiles * p_.groups, 2 * threads_);
        const Index per_task = grid_.runs_of(std::min(wanted, share));
        const Index units = ceil_div(grid_.runs, per_task);
        Parallel::run(p_.groups * units, threads_, [&](Index task) {
            const Index group = task / units;
            const Range runs{task % units * per_task, std::min(grid_.runs, (task % units + 1) * per_task)};
            const Index v_stride = odd_lines<T>(grid_.tiles(runs) * tile_stride_);
            const Matrices patches{workspace<T>(Slot::window, kWinogradProducts * v_stride), v_stride};
            transform_all_patches(group, runs, {0, p_.sources}, patches);
            for (Index block = 0; block < blocks_; ++block) {
                for_each_pass(runs, [&](const Range& pass, Index first) {
                    const Matrices sums = products_of(pass);
                    for (Index window = 0; window < windows_; ++window)
                        multiply(patches, first, grid_.tiles(pass), window, {0, p_.sources},
                                 filters_in(all, group, block, window, 0), sums);
                    transform_results(group, block, pass, sums);
                });
            }
        });
    }

    void share_patches() {
        const Range every{0, grid_.runs};
        const Index v_stride = odd_lines<T>(grid_.tiles(every) * tile_stride_);
        const Matrices patches{workspace<T>(Slot::panels, kWinogradProducts * v_stride), v_stride};
        const Index parts = ceil_div(p_.sources, tile_.lanes);
        T* all = p_.kept == nullptr
                     ? nullptr
                     : weights_memory(p_, p_.groups * blocks_ * kWinogradProducts * filter_stride());
        for (Index group = 0; group < p_.groups; ++group) {
            Parallel::run(grid_.runs * parts, threads_, [&](Index task) {
                const Index run = task / parts, c = task % parts * tile_.lanes;
                const Range runs{run, run + 1};
                transform_all_patches(group, runs, {c, std::min(p_.sources, c + tile_.lanes)},
                                      {patches.first + grid_.tiles({0, run}) * tile_stride_, v_stride});
            });
            Parallel::run(blocks_, threads_, [&](Index block) {
                const Index u_stride = odd_lines<T>(kSourcesPerPiece * width_);
                const Matrices own{all != nullptr ? nullptr
                                                  : workspace<T>(Slot::weights, kWinogradProducts * u_stride),
                                   u_stride};
                const Matrices sums = products_of(every);
                for (Index window = 0; window < windows_; ++window)
                    for (Index c = 0; c < p_.sources; c += kSourcesPerPiece) {
                        const Range sources{c, std::min(p_.sources, c + kSourcesPerPiece)};
                        const Matrices filters =
                            all == nullptr ? own : filters_in(all, group, block, window, c);
                        if (!p_.weights_are_kept())
                            transform_weights(group, block, window, sources, filters);
                        multiply(patches, 0, grid_.tiles(every), window, sources, filters, sums);
                    }
                transform_results(group, block, every, sums);
            });
        }
    }

    // Of the filters of one block of results.
    Index filter_stride() const { return odd_lines<T>(windows_ * p_.sources * width_); }

    // Where all filters are: those of one block and one small window, from one source on.
    Matrices filters_in(T* all, Index group, Index block, Index window, Index source) const {
        return {all + (group * blocks_ + block) * kWinogradProducts * filter_stride() +
                    (window * p_.sources + source) * width_,
                filter_stride()};
    }

    // visit(runs, number of their first tile)
    template <class Visit>
    void for_each_pass(const Range& runs, const Visit& visit) const {
        const Index per_pass = grid_.runs_of(kTilesPerPass);
        for (Index run = runs.begin; run < runs.end; run += per_pass)
            visit(Range{run, std::min(runs.end, run + per_pass)}, grid_.tiles({runs.begin, run}));
    }

    Matrices products_of(const Range& runs) const {
        const Index stride = odd_lines<T>(grid_.tiles(runs) * width_);
        return {workspace<T>(Slot::results, kWinogradProducts * stride), stride};
    }

    void transform_weights(Index group, Index block, Index window, const Range& sources,
                           const Matrices& filters) const {
        const SmallWindow small = small_window(plan_, p_.kernel, window);
        T* packed = workspace<T>(Slot::partial, sources.size() * 9 * width_);
        pack_weight_block(p_, {small.taps.begin(), small.taps.end()}, group, block * width_, width_, sources,
                          packed);
        winograd_.transform_filters(packed, sources.size(), width_, filters.first, filters.stride);
    }

    void transform_all_patches(Index group, const Range& runs, const Range& sources,
                               const Matrices& patches) const {
        T* staging = workspace<T>(Slot::staging, winograd_staging<T>());
        for (Index window = 0; window < windows_; ++window)
            transform_patches(p_, grid_, runs, group, small_window(plan_, p_.kernel, window), sources,
                              patches.first + window * channels_, patches.stride, tile_stride_, staging);
    }

    // Adds to the sums, or begins them, the products with some sources of one small window; `filters` are
    // theirs.
    void multiply(const Matrices& patches, Index first_tile, Index tiles, Index window, const Range& sources,
                  const Matrices& filters, const Matrices& sums) const {
        OuterProducts<T> call{};
        call.x_stride = tile_stride_;
        call.x_step = 1;
        call.d_stride = width_;
        call.rows = static_cast<int>(tiles);
        call.vectors = vectors_;
        for (Index e = 0; e < kWinogradProducts; ++e) {
            const T* v = patches.first + e * patches.stride + first_tile * tile_stride_ + window * channels_ +
                         sources.begin;
            const T* u = filters.first + e * filters.stride;
            call.d = sums.first + e * sums.stride;
            for (Index c = 0; c < sources.size(); c += kDepthOfChunk) {
                const Segment segment{0, 0, std::min(kDepthOfChunk, sources.size() - c)};
                call.x = v + c;
                call.g = u + c * width_;
                call.segments = &segment;
                call.segment_count = 1;
                call.first = window == 0 && sources.begin + c == 0;
                if (e + 1 < kWinogradProducts) {
                    constexpr Index kBytes = sizeof(T);
                    call.ahead[0] = {call.g + filters.stride, segment.count * width_ * kBytes / tiles,
                                     kCacheLine};
                    call.ahead[1] = {call.x + patches.stride, tile_stride_ * kBytes, kCacheLine};
                }
                tile_.outer(call);
            }
        }
    }

    void transform_results(Index group, Index block, const Range& runs, const Matrices& sums) {
        const Index plane = volume(p_.result_size), lanes = tile_.lanes;
        const Index first = block * width_, end = std::min(p_.results, first + width_);
        WinogradResults<T> call{};
        call.product_stride = sums.stride;
        call.tile_stride = width_;
        call.plane = plane;
        call.row_stride = p_.result_size[2];
        call.activation = p_.activation;
        call.staging = workspace<T>(Slot::staging, winograd_staging<T>());
        grid_.for_each(runs, [&](const TileRun& run, Index tile) {
            const Index row = run.row * kWinogradResults, column = run.column * kWinogradResults;
            call.tiles = run.tiles;
            call.rows = static_cast<int>(std::min<Index>(kWinogradResults, plan_.axes[1].outputs - row));
            call.columns = static_cast<int>(
                std::min<Index>(kWinogradResults * run.tiles, plan_.axes[2].outputs - column));
            for (Index k = first; k < end; k += lanes) {
                const Index channel = group * p_.results + k;
                call.products = sums.first + tile * width_ + (k - first);
                call.channels = static_cast<int>(std::min(lanes, end - k));
                call.to = p_.result + (run.image * p_.groups * p_.results + channel) * plane +
                          (run.slice * p_.result_size[1] + row) * p_.result_size[2] + column;
                call.bias = p_.bias == nullptr ? nullptr : p_.bias + channel;
                if (!winograd_.transform_results(call))
                    finite_ = false;
                if (!in_tile(p_.activation))
                    activate(call);
            }
        });
    }

    static void activate(const WinogradResults<T>& call) {
        for (int c = 0; c < call.channels; ++c)
            for (int i = 0; i < call.rows; ++i) {
                T* y = call.to + c * call.plane + i * call.row_stride;
                for (int j = 0; j < call.columns; ++j)
                    y[j] = activated(y[j], call.activation);
            }
    }

    const GatherProblem<T>& p_;
    const GatherPlan& plan_;
    const Tiles<T>& tile_;
    const WinogradTiles<T>& winograd_;
    const TileGrid grid_;
    const int vectors_;
    const Index width_, blocks_; // of results
    const Index windows_;
    const Index channels_;    // sources in whole vectors
    const Index tile_stride_; // between the patches of neighbouring tiles
    const int threads_;
    std::atomic<bool> finite_{true};
};

// Whether the taps read equidistant elements, and the results are dense.
bool equidistant(const GatherAxis& axis) {
    const Index first = axis.taps.front().offset;
    if (axis.taps.size() < 2 || axis.step != 1 || axis.out_step != 1 || axis.out_start != 0 ||
        first % tap_distance(axis) != 0)
        return false;
    const Index distance = axis.taps[1].offset - first;
    for (std::size_t i = 0; i < axis.taps.size(); ++i)
        if (axis.taps[i].offset != first + static_cast<Index>(i) * distance)
            return false;
    return true;
}

} // namespace

template <class T>
bool winograd_applies(const GatherProblem<T>& p) {
    if (!std::is_floating_point_v<T> || p.plans.size() != 1 || p.sources < kFewestChannels ||
        p.results < kFewestChannels)
        return false;
    const auto& [d, h, w] = p.plans.front().axes;
    const bool flat = d.source_size == 1 && d.outputs == 1 && d.taps.size() == 1;
    return d.out_step == 1 && d.out_start == 0 && equidistant(h) && equidistant(w) &&
           (flat || !is_dilated(p));
}

template <class T>
bool winograd(const GatherProblem<T>& problem, int threads) {
    if constexpr (std::is_floating_point_v<T>) {
        if (!is_dilated(problem))
            return Winograd<T>(problem, threads).run();
        const GatherProblem<T> dense = problem_in_phases(problem, false, threads);
        if (!Winograd<T>(dense, threads).run())
            return false;
        join_phases<T>(dense.result, problem.batch, problem.groups * problem.results, problem.result_size,
                       problem.plans.front(), problem.result, threads);
        return true;
    } else {
        return false;
    }
}

#define INSTANTIATE(T)                                       \
    template bool winograd_applies(const GatherProblem<T>&); \
    template bool winograd(const GatherProblem<T>&, int);
FASTCONV_CONV_TYPES(INSTANTIATE)

} // namespace fastconv
