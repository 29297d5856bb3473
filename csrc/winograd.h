// What both directions of Winograd's algorithm share: where its tiles lie, and how their patches are
// transformed. tiles/winograd_tiles.h has the algorithm.
#pragma once

#include "gather.h"

namespace fastconv {

constexpr Index kCacheLine = 64; // bytes

// How work is cut into pieces, which the cost model knows, too. Of the forward problem and the input
// gradient:
constexpr Index kSourcesPerPacking = 32; // of weights that are transformed beforehand
constexpr Index kSourcesPerPiece = 256;  // of weights that are transformed piece by piece: where they take
constexpr Index kLargeWeights = 4 << 20; // more bytes than this, and the tiles are at most
constexpr Index kFewTiles = 160;
constexpr Index kTilesPerPass = 48;    // share a pass over the weights, and their products stay in cache
constexpr Index kPatchBytes = 8 << 20; // of a task, if that does not leave too few tiles
// Of the weight gradient:
constexpr Index kTilesPerBlock = 224;
constexpr Index kPanelsWanted = 16;
constexpr Index kFewestRows = 12, kMostRows = 60; // sources of a panel: whole blocks of the tile

template <class T>
const WinogradTiles<T>& winograd_tiles();
template <>
inline const WinogradTiles<float>& winograd_tiles() {
    return tile_set().winograd_f32;
}
template <>
inline const WinogradTiles<double>& winograd_tiles() {
    return tile_set().winograd_f64;
}

// An odd number of cache lines: what lies so far apart does not compete for the same ones.
template <class T>
Index odd_lines(Index elements) {
    constexpr Index kElements = kCacheLine / static_cast<Index>(sizeof(T));
    return (ceil_div(elements, kElements) | 1) * kElements;
}

// Neighbouring tiles of one row of results; row and column count tiles.
struct TileRun {
    Index image, slice, row, column;
    int tiles;
};

// The results' rows, cut into runs of almost equal length.
class TileGrid {
public:
    // 7 tiles read 30 columns: two vectors of 16, four of 8.
    static constexpr Index kLongestRun = 7;

    TileGrid(Index batch, const GatherPlan& plan)
        : down(ceil_div(plan.axes[1].outputs, kWinogradResults)),
          across(ceil_div(plan.axes[2].outputs, kWinogradResults)), slices(plan.axes[0].outputs),
          per_run(ceil_div(across, ceil_div(across, kLongestRun))), runs_across(ceil_div(across, per_run)),
          runs(batch * slices * down * runs_across) {}

    TileRun run(Index i) const {
        const Index column = i % runs_across * per_run, row = i / runs_across;
        return {row / down / slices, row / down % slices, row % down, column,
                static_cast<int>(std::min(per_run, across - column))};
    }

    Index tiles(const Range& some) const {
        const Index last = across - (runs_across - 1) * per_run; // in the last run of a row
        const Index ends = some.end / runs_across - some.begin / runs_across;
        return some.size() * per_run - ends * (per_run - last);
    }

    // How many runs make about this many tiles.
    Index runs_of(Index some_tiles) const { return std::max<Index>(1, some_tiles / per_run); }

    // visit(run, number of its first tile)
    template <class Visit>
    void for_each(const Range& some, const Visit& visit) const {
        Index tile = 0;
        for (Index i = some.begin; i < some.end; ++i) {
            const TileRun found = run(i);
            visit(found, tile);
            tile += found.tiles;
        }
    }

    const Index down, across, slices, per_run, runs_across, runs;
};

// Elements that transforming a run of tiles needs beside its input and output.
template <class T>
Index winograd_staging() {
    const Index lanes = tiles<T>().lanes;
    const Index columns = kWinogradResults * (TileGrid::kLongestRun - 1) + kWinogradPatch;
    return 2 * kWinogradPatch * round_up(columns, lanes) * lanes;
}

// The tap of a window's axis that reads the i-th of neighbouring elements.
inline const GatherTap& tap_in_order(const GatherAxis& axis, Index i) {
    const bool ascending = axis.taps.front().offset <= axis.taps.back().offset;
    const Index last = static_cast<Index>(axis.taps.size()) - 1;
    return axis.taps[static_cast<std::size_t>(ascending ? i : last - i)];
}

// A window of 3x3, or what is left for the last ones, of one slice of a larger window: where its first tap
// reads, and its taps' kernel positions, -1 where the larger window has none. The larger window's convolution
// is the sum of theirs.
struct SmallWindow {
    Index depth, row, column; // offsets
    std::array<Index, 9> taps;
};

inline Index small_windows(const GatherPlan& plan) {
    const auto& [d, h, w] = plan.axes;
    return static_cast<Index>(d.taps.size()) * ceil_div(static_cast<Index>(h.taps.size()), 3) *
           ceil_div(static_cast<Index>(w.taps.size()), 3);
}

inline SmallWindow small_window(const GatherPlan& plan, const Size3& kernel, Index i) {
    const auto& [d, h, w] = plan.axes;
    const Index height = static_cast<Index>(h.taps.size()), width = static_cast<Index>(w.taps.size());
    const Index across = ceil_div(width, 3), down = ceil_div(height, 3);
    const Index row = i / across % down * 3, column = i % across * 3;
    const GatherTap& depth = d.taps[static_cast<std::size_t>(i / across / down)];
    SmallWindow small{depth.offset, tap_in_order(h, row).offset, tap_in_order(w, column).offset, {}};
    for (Index j = 0; j < 9; ++j) {
        const Index y = row + j / 3, x = column + j % 3;
        small.taps[static_cast<std::size_t>(j)] =
            y < height && x < width
                ? (depth.kernel_position * kernel[1] + tap_in_order(h, y).kernel_position) * kernel[2] +
                      tap_in_order(w, x).kernel_position
                : -1;
    }
    return small;
}

constexpr double kTransformedElement = 16; // multiply-adds that take as long as transforming a weight

// Multiply-adds of a group's products, and what takes as long as transforming its patches and results. Tiles
// that overhang and lanes that no channel fills are computed as well. Wide vectors speed products up by more
// than transforms, which move memory; those of a weight gradient take `transforms` times as long.
template <class T>
double winograd_work(const GatherProblem<T>& p, double transforms = 1) {
    // Of one channel; measured, as the others.
    const double transformed_tile =
        transforms * (300 + 8 * tiles<T>().lanes * static_cast<double>(sizeof(T)));
    const GatherPlan& plan = p.plans.front();
    const TileGrid grid(p.batch, plan);
    const Index lanes = tiles<T>().lanes, width = outer_vectors<T>(p.results) * lanes;
    const double tiles = static_cast<double>(grid.tiles({0, grid.runs}));
    const double windows = static_cast<double>(small_windows(plan));
    const double results = static_cast<double>(round_up(p.results, width));
    const double patches = windows * static_cast<double>(round_up(p.sources, lanes));
    return tiles * (kWinogradProducts * windows * static_cast<double>(p.sources) * results +
                    transformed_tile * (patches + results));
}

// Elements of a group's transformed weights.
template <class T>
double winograd_filter_elements(const GatherProblem<T>& p) {
    return static_cast<double>(kWinogradProducts * small_windows(p.plans.front()) * p.sources * p.results);
}

// Threads for the convolution or for the weight gradient: transforms count, products may be the least.
template <class T>
int winograd_threads(const GatherProblem<T>& p, int threads) {
    const double work = winograd_work(p) + kTransformedElement * winograd_filter_elements(p);
    return threads_for(static_cast<double>(p.groups) * work, threads);
}

// The patches that some runs of tiles read of `channels` sources of a group through one small window, to
// to[e*product_stride + t*tile_stride + channel].
template <class T>
void transform_patches(const GatherProblem<T>& p, const TileGrid& grid, const Range& runs, Index group,
                       const SmallWindow& window, const Range& channels, T* to, Index product_stride,
                       Index tile_stride, T* staging) {
    const GatherAxis &d = p.plans.front().axes[0], &h = p.plans.front().axes[1], &w = p.plans.front().axes[2];
    const Index plane = volume(p.source_size), lanes = tiles<T>().lanes;
    WinogradPatches<T> call{};
    call.plane = plane;
    call.width = w.source_size;
    call.product_stride = product_stride;
    call.tile_stride = tile_stride;
    call.staging = staging;
    // Where the run's first patch begins in the first channel; a slice beyond the source has no rows.
    const auto slice_of = [&](const TileRun& run) { return run.slice * d.step + window.depth; };
    const auto inside = [&](const TileRun& run) {
        return slice_of(run) >= 0 && slice_of(run) < d.source_size;
    };
    const auto row_of = [&](const TileRun& run) { return run.row * kWinogradResults + window.row; };
    const auto column_of = [&](const TileRun& run) { return run.column * kWinogradResults + window.column; };
    const auto plane_of = [&](const TileRun& run) {
        return ((run.image * p.groups + group) * p.sources + channels.begin) * plane +
               (inside(run) ? slice_of(run) : 0) * h.source_size * w.source_size;
    };
    Index tile = 0;
    for (Index i = runs.begin; i < runs.end; ++i) {
        const TileRun run = grid.run(i), next = grid.run(std::min(i + 1, runs.end - 1));
        call.height = inside(run) ? h.source_size : 0;
        call.row = row_of(run);
        call.column = column_of(run);
        call.tiles = run.tiles;
        const Index corner = plane_of(run) + call.row * w.source_size + call.column;
        const Index next_corner = plane_of(next) + row_of(next) * w.source_size + column_of(next);
        for (Index c = 0; c < channels.size(); c += lanes) {
            call.planes = p.source + plane_of(run) + c * plane;
            call.channels = static_cast<int>(std::min(lanes, channels.size() - c));
            call.to = to + tile * tile_stride + channels.begin + c;
            call.ahead = c + lanes < channels.size() ? lanes * plane : next_corner - corner - c * plane;
            winograd_tiles<T>().transform_patches(call);
        }
        tile += run.tiles;
    }
}

} // namespace fastconv
