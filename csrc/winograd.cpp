// Convolution by Winograd's F(4x4, 3x3), fused: a task transforms the patches of some panels of tiles, runs
// the 36 matrix products
//     m[e][result][tile] = sum over sources of u[e][result][source] * v[e][source][tile]
// on them, and transforms the products back into the result, all in its own memory. The transformed weights u
// are computed once and shared. tiles/winograd_tiles.h has the algorithm.
#include <atomic>

#include "activation.h"
#include "gather.h"
#include "kernels.h"
#include "parallel.h"

namespace fastconv {
namespace {

constexpr Index kSourcesPerPacking = 32;
constexpr Index kFewestChannels = 16;
constexpr double kTransformedTile = 700, kTransformedWeight = 2000; // multiply-adds that take as long
constexpr double kMostFilterBytes = 256 << 20;
constexpr Index kSharedChannels = 320; // sources and results from which two panels share a pass over u

template <class T>
const WinogradTiles<T>& winograd_tiles();
template <>
const WinogradTiles<float>& winograd_tiles() {
    return tile_set().winograd_f32;
}
template <>
const WinogradTiles<double>& winograd_tiles() {
    return tile_set().winograd_f64;
}

// Tiles that follow one another in a row of an image.
struct TileRun {
    Index image, slice, row, column; // of the first tile; row and column count tiles
    int first, count;                // in the panel
};

template <class T>
class Winograd {
public:
    Winograd(const GatherProblem<T>& problem, int threads)
        : p_(problem), plan_(problem.plans.front()), tile_(tiles<T>()), winograd_(winograd_tiles<T>()),
          blocks_(ceil_div(p_.results, tile_.rows)),
          across_(ceil_div(plan_.axes[2].outputs, kWinogradResults)),
          down_(ceil_div(plan_.axes[1].outputs, kWinogradResults)),
          panels_(ceil_div(p_.batch * plan_.axes[0].outputs * down_ * across_, tile_.columns)),
          filter_stride_(padded(p_.sources * tile_.rows)),
          threads_(worthwhile_threads(
              p_.groups * panels_ * tile_.columns * kWinogradProducts * p_.sources * p_.results, threads)) {
        const Index wanted = p_.sources + p_.results >= kSharedChannels ? 2 : 1;
        per_task_ = std::clamp<Index>(panels_ * p_.groups / (2 * threads_), 1, wanted);
        units_ = ceil_div(panels_, per_task_);
        splits_ = units_ * p_.groups >= 3 * threads_ ? 1 : std::min<Index>(blocks_, threads_);
        source_stride_ = padded(p_.sources * tile_.columns);
        rows_per_split_ = ceil_div(blocks_, splits_) * tile_.rows;
        product_stride_ = padded(rows_per_split_ * tile_.columns);
        filters_ = workspace<T>(Slot::weights, p_.groups * blocks_ * kWinogradProducts * filter_stride_);
    }

    bool run() {
        const Index parts = ceil_div(p_.sources, kSourcesPerPacking);
        Parallel::run(p_.groups * blocks_ * parts, threads_, [&](Index task) {
            transform_weights(task / parts / blocks_, task / parts % blocks_,
                              task % parts * kSourcesPerPacking);
        });
        Parallel::run(p_.groups * units_ * splits_, threads_, [&](Index task) {
            multiply_panels(task / splits_ / units_, task / splits_ % units_, task % splits_);
        });
        return finite_;
    }

private:
    // An odd number of cache lines: the 36 parts of an array must not compete for the same ones.
    static Index padded(Index elements) {
        constexpr Index kLine = 64 / static_cast<Index>(sizeof(T));
        return (ceil_div(elements, kLine) | 1) * kLine;
    }

    T* filters(Index group, Index block) const {
        return filters_ + (group * blocks_ + block) * kWinogradProducts * filter_stride_;
    }

    void transform_weights(Index group, Index block, Index first) const {
        const Range sources{first, std::min(p_.sources, first + kSourcesPerPacking)};
        T* packed = workspace<T>(Slot::panels, sources.size() * 9 * tile_.rows);
        pack_weight_block(p_, taps_, group, block, sources, packed);
        winograd_.transform_filters(packed, sources.size(), filters(group, block) + first * tile_.rows,
                                    filter_stride_);
    }

    // Kernel positions by the offset of what they read.
    std::vector<Index> taps_in_order() const {
        const auto& [d, h, w] = plan_.axes;
        std::vector<Index> taps;
        for (Index i = 0; i < 3; ++i)
            for (Index j = 0; j < 3; ++j)
                taps.push_back(tap_at(h, i).kernel_position * p_.kernel[2] + tap_at(w, j).kernel_position);
        return taps;
    }

    static const GatherTap& tap_at(const GatherAxis& axis, Index i) {
        const bool ascending = axis.taps[0].offset < axis.taps[2].offset;
        return axis.taps[static_cast<std::size_t>(ascending ? i : 2 - i)];
    }

    std::vector<TileRun> runs_of(Index panel) const {
        const Index slices = plan_.axes[0].outputs, all = p_.batch * slices * down_ * across_;
        std::vector<TileRun> runs;
        Index tile = panel * tile_.columns;
        for (Index first = 0; first < tile_.columns && tile < all;) {
            const Index column = tile % across_, row = tile / across_;
            const Index count = std::min<Index>({tile_.lanes, tile_.columns - first, across_ - column});
            runs.push_back({row / down_ / slices, row / down_ % slices, row % down_, column,
                            static_cast<int>(first), static_cast<int>(count)});
            tile += count;
            first += count;
        }
        return runs;
    }

    void multiply_panels(Index group, Index unit, Index split) {
        const Index first_panel = unit * per_task_, panels = std::min(per_task_, panels_ - first_panel);
        const Index per_split = rows_per_split_ / tile_.rows;
        const Range blocks{split * per_split, std::min(blocks_, (split + 1) * per_split)};
        const Index patch_size = kWinogradProducts * source_stride_;
        const Index product_size = kWinogradProducts * product_stride_;
        T* patches = workspace<T>(Slot::window, panels * patch_size);
        T* products = workspace<T>(Slot::results, panels * product_size);
        std::vector<std::vector<TileRun>> runs;
        for (Index i = 0; i < panels; ++i) {
            runs.push_back(runs_of(first_panel + i));
            transform_patches(group, runs.back(), patches + i * patch_size);
        }
        for (Index e = 0; e < kWinogradProducts; ++e)
            for (Index c = 0; c < p_.sources; c += kDepthOfChunk)
                for (Index block = blocks.begin; block < blocks.end; ++block)
                    for (Index i = 0; i < panels; ++i) {
                        T* m = products + i * product_size + e * product_stride_ +
                               (block - blocks.begin) * tile_.rows * tile_.columns;
                        const T* u = filters(group, block) + e * filter_stride_ + c * tile_.rows;
                        const T* v = patches + i * patch_size + e * source_stride_ + c * tile_.columns;
                        tile_.multiply(u, v, std::min(kDepthOfChunk, p_.sources - c), whole_.at(m, c == 0));
                    }
        const Range results{blocks.begin * tile_.rows, std::min(p_.results, blocks.end * tile_.rows)};
        for (Index i = 0; i < panels; ++i)
            for (const TileRun& run : runs[static_cast<std::size_t>(i)])
                transform_results(group, results, run, products + i * product_size);
    }

    void transform_patches(Index group, const std::vector<TileRun>& runs, T* patches) const {
        const auto& [d, h, w] = plan_.axes;
        const Index plane = volume(p_.source_size), slice = h.source_size * w.source_size;
        const TileRun& end = runs.back();
        if (end.first + end.count < tile_.columns) // tiles that no run fills
            std::fill_n(patches, kWinogradProducts * source_stride_, T{});
        for (const TileRun& run : runs) {
            WinogradPatches<T> call{};
            const Index depth = run.slice * d.step + d.taps.front().offset;
            const bool inside = depth >= 0 && depth < d.source_size;
            call.planes = p_.source + (run.image * p_.groups + group) * p_.sources * plane +
                          (inside ? depth : 0) * slice;
            call.plane = plane;
            call.height = inside ? h.source_size : 0;
            call.width = w.source_size;
            call.row = run.row * kWinogradResults + tap_at(h, 0).offset;
            call.column = run.column * kWinogradResults + tap_at(w, 0).offset;
            call.count = run.count;
            call.channels = p_.sources;
            call.to = patches + run.first;
            call.product_stride = source_stride_;
            call.channel_stride = tile_.columns;
            winograd_.transform_patches(call);
        }
    }

    void transform_results(Index group, const Range& results, const TileRun& run, const T* products) {
        const Index plane = volume(p_.result_size), channel = group * p_.results + results.begin;
        const Index row = run.row * kWinogradResults, column = run.column * kWinogradResults;
        WinogradResults<T> call{};
        call.products = products + run.first;
        call.product_stride = product_stride_;
        call.channel_stride = tile_.columns;
        call.count = run.count;
        call.channels = results.size();
        call.to = p_.result + (run.image * p_.groups * p_.results + channel) * plane +
                  (run.slice * p_.result_size[1] + row) * p_.result_size[2] + column;
        call.plane = plane;
        call.row_stride = p_.result_size[2];
        call.rows = static_cast<int>(std::min<Index>(kWinogradResults, plan_.axes[1].outputs - row));
        call.columns =
            static_cast<int>(std::min<Index>(kWinogradResults * run.count, plan_.axes[2].outputs - column));
        call.bias = p_.bias == nullptr ? nullptr : p_.bias + channel;
        call.activation = p_.activation;
        if (!winograd_.transform_results(call))
            finite_ = false;
        if (!in_tile(p_.activation))
            for (Index c = 0; c < call.channels; ++c)
                for (int i = 0; i < call.rows; ++i) {
                    T* y = call.to + c * plane + i * call.row_stride;
                    for (int j = 0; j < call.columns; ++j)
                        y[j] = activated(y[j], p_.activation);
                }
    }

    const GatherProblem<T>& p_;
    const GatherPlan& plan_;
    const Tiles<T>& tile_;
    const WinogradTiles<T>& winograd_;
    const Index blocks_, across_, down_, panels_;
    const Index filter_stride_; // from one of the 36 parts to the next; likewise
    const int threads_;
    const std::vector<Index> taps_ = taps_in_order();
    const WholeTiles<T> whole_;
    Index per_task_, units_, splits_, rows_per_split_;
    Index source_stride_, product_stride_;
    T* filters_;
    std::atomic<bool> finite_{true};
};

bool three_neighbours(const GatherAxis& axis) {
    if (axis.taps.size() != 3 || axis.step != 1 || axis.out_step != 1 || axis.out_start != 0)
        return false;
    const Index step = axis.taps[1].offset - axis.taps[0].offset;
    return (step == 1 || step == -1) && axis.taps[2].offset - axis.taps[1].offset == step;
}

} // namespace

template <class T>
bool winograd_applies(const GatherProblem<T>& p) {
    if (!std::is_floating_point_v<T> || p.plans.size() != 1 || p.sources < kFewestChannels ||
        p.results < kFewestChannels)
        return false;
    const auto& [d, h, w] = p.plans.front().axes;
    return d.taps.size() == 1 && d.out_step == 1 && d.out_start == 0 && three_neighbours(h) &&
           three_neighbours(w);
}

// Multiply-adds of matrix products, and what takes as long: tiles that overhang are computed as a whole,
// panels are filled up, and transforms cost what some products do.
template <class T>
bool winograd_pays(const GatherProblem<T>& p) {
    const auto& [d, h, w] = p.plans.front().axes;
    const auto real = [](Index value) { return static_cast<double>(value); };
    const Index tiles =
        p.batch * d.outputs * ceil_div(h.outputs, kWinogradResults) * ceil_div(w.outputs, kWinogradResults);
    const double pairs = real(p.sources) * real(p.results),
                 columns = real(round_up(tiles, fastconv::tiles<T>().columns));
    if (kWinogradProducts * pairs * real(p.groups) * sizeof(T) > kMostFilterBytes)
        return false;
    const double direct = 9 * real(p.batch * d.outputs * h.outputs * w.outputs) * pairs;
    const double products = kWinogradProducts * columns * pairs;
    return products + kTransformedTile * columns * real(p.sources + p.results) + kTransformedWeight * pairs <
           direct;
}

template <class T>
bool winograd(const GatherProblem<T>& problem, int threads) {
    if constexpr (std::is_floating_point_v<T>)
        return Winograd<T>(problem, threads).run();
    else
        return false;
}

#define INSTANTIATE(T)                                       \
    template bool winograd_applies(const GatherProblem<T>&); \
    template bool winograd_pays(const GatherProblem<T>&);    \
    template bool winograd(const GatherProblem<T>&, int);
FASTCONV_CONV_TYPES(INSTANTIATE)

} // namespace fastconv
