#include "cost_model.h"

#include "parallel.h"
#include "phases.h"
#include "winograd.h"

namespace fastconv {
namespace {

double real(Index value) {
    return static_cast<double>(value);
}

template <class T>
double bytes(double elements) {
    return elements * static_cast<double>(sizeof(T));
}

// Products of a weight and an element for one source and one result channel of one image.
template <class T>
double pair_products(const GatherProblem<T>& p) {
    double sum = 0;
    for (const GatherPlan& plan : p.plans)
        sum += real(plan.outputs()) * real(plan.taps());
    return sum;
}

template <class T>
double all_products(const GatherProblem<T>& p) {
    return pair_products(p) * real(p.batch) * real(p.groups) * real(p.sources) * real(p.results);
}

// Elements that neighbouring results of an axis read together.
double extent(const GatherAxis& axis, Index outputs) {
    const auto [first, last] =
        std::minmax_element(axis.taps.begin(), axis.taps.end(),
                            [](const GatherTap& a, const GatherTap& b) { return a.offset < b.offset; });
    return real(outputs - 1) * real(axis.step) + real(last->offset - first->offset + 1);
}

// Of one source, that the windows of all results hold together.
double window_elements(const GatherPlan& plan) {
    const auto& [d, h, w] = plan.axes;
    return real(d.outputs) * real(static_cast<Index>(d.taps.size())) * extent(h, h.outputs) *
           extent(w, w.outputs);
}

// Of the padded window that gather_window.cpp or window_grad_weight.cpp copies of so many sources, which is
// at most about `most` bytes, but at least one row of results.
template <class T>
double window_bytes(const GatherPlan& plan, Index sources, double most) {
    const auto& [d, h, w] = plan.axes;
    const double slices = real(sources) * real(static_cast<Index>(d.taps.size()));
    const Index narrow = std::min<Index>(w.outputs, 4 * static_cast<Index>(tiles<T>().lanes));
    const double all = slices * extent(h, h.outputs) * (extent(w, w.outputs) + real(w.step));
    const double least = slices * extent(h, 1) * (extent(w, narrow) + real(w.step));
    return std::min(bytes<T>(all), std::max(most, bytes<T>(least))) + bytes<T>(real(tiles<T>().lanes));
}

// The share of a tile's products that are weights', in time: some lanes hold none, and the rows left over
// from whole blocks take at least the latency of an addition, and the time of fetching what they are
// multiplied by.
template <class T>
double outer_products_efficiency(Index inputs, Index outputs) {
    constexpr Index kLatency = 12, kFetched = 4; // products, and products for each vector
    const Index vectors = outer_vectors<T>(outputs);
    const Index rows = std::min<Index>(12, 6 * tiles<T>().outer_vectors / vectors), left = inputs % rows;
    const Index least = left > 0 ? std::max(kLatency, kFetched * vectors) : 0;
    const Index taken = (inputs - left) * vectors + std::max(left * vectors, least);
    const double used = real(outputs) / real(round_up(outputs, vectors * tiles<T>().lanes));
    return used * real(inputs * vectors) / real(taken);
}

// Of transformed patches, weights and sums.
template <class T>
struct WinogradSizes {
    explicit WinogradSizes(const GatherProblem<T>& p)
        : grid(p.batch, p.plans.front()), tiles(grid.tiles({0, grid.runs})),
          width(outer_vectors<T>(p.results) * fastconv::tiles<T>().lanes), blocks(ceil_div(p.results, width)),
          windows(small_windows(p.plans.front())),
          tile(odd_lines<T>(windows * round_up(p.sources, fastconv::tiles<T>().lanes))) {}

    double products(const GatherProblem<T>& p) const {
        return real(kWinogradProducts) * real(tiles) * real(p.groups) * real(windows) * real(p.sources) *
               real(p.results);
    }

    const TileGrid grid;
    const Index tiles, width, blocks, windows;
    const Index tile; // elements of one tile's patches, for one of the products
};

// Of a dilated convolution by the dense ones of its phases, whose images and results are copied.
template <class T>
Estimate phases_estimate(const GatherProblem<T>& p, int threads,
                         Estimate (*dense_estimate)(const GatherProblem<T>&, int)) {
    const GatherProblem<T> dense = problem_of_phases(p);
    Estimate estimate = dense_estimate(dense, threads);
    estimate.workspace += bytes<T>(real(dense.batch) * real(dense.groups) *
                                   (real(dense.sources) * real(volume(dense.source_size)) +
                                    real(dense.results) * real(volume(dense.result_size))));
    return estimate;
}

} // namespace

template <class T>
Estimate gemm_estimate(const GatherProblem<T>& p, int threads) {
    constexpr double kPackedPixel = 12, kStored = 12, kStoredOfFew = 25, kStart = 3e5; // multiply-adds
    const double packed_weight = p.kept == nullptr ? 45 : 0;
    // Where there are fewer, they take as long to pack as so many, and parts of vectors as whole ones.
    constexpr Index kFewChannels = 10;
    constexpr Index kMostPanels = 4;
    const Tiles<T>& tile = tiles<T>();
    const double tile_rows = real(tile.rows), results = std::max(real(p.results), tile_rows);
    double time = 0, weights = 0, panels = 0;
    Index most_panels = kMostPanels;
    for (const GatherPlan& plan : p.plans) {
        const double rows = real(p.sources) * real(plan.taps());
        // A last panel of one vector is multiplied as one.
        const Index pixels = p.batch * plan.outputs();
        const bool one_vector = pixels % tile.columns > 0 && pixels % tile.columns <= tile.lanes;
        const double columns = real(round_up(pixels, one_vector ? tile.lanes : tile.columns));
        double packed = rows, stored = kStored;
        if (std::min(p.sources, p.results) < kFewChannels) {
            const Index wide = plan.axes[2].outputs;
            const double whole = real(round_up(wide, tile.lanes)) / real(wide);
            packed = std::max(rows, real(kFewChannels) * whole * real(plan.taps()));
            stored = kStoredOfFew;
        }
        time +=
            rows * results * (columns + packed_weight) + (kPackedPixel * packed + stored * results) * columns;
        weights += rows;
        const Index depth = std::max(kDepthOfChunk, plan.taps());
        panels = std::max(panels, std::min(rows, real(depth)));
        const Index shared = shared_panels<T>(std::min(p.sources * plan.taps(), depth), p.results, threads);
        most_panels =
            std::max(most_panels, std::min(shared, ceil_div(p.batch * plan.outputs(), tile.columns)));
    }
    const double blocks = real(ceil_div(p.results, tile.rows));
    const double packed_weights = real(p.groups) * blocks * tile_rows * weights;
    const double columns = real(most_panels * tile.columns);
    // Of a thread: its panels, sums that are not stored until they are complete, and weights being turned.
    const double own = columns * (panels + blocks * tile_rows) +
                       real(std::max(kElementsTurned, volume(p.kernel))) * tile_rows;
    const double products = all_products(p);
    const int workers = threads_for(products, threads);
    return {real(p.groups) * (time + kStart), products, bytes<T>(packed_weights + real(workers) * own),
            workers};
}

template <class T>
Estimate window_estimate(const GatherProblem<T>& p, int threads) {
    // Multiply-adds: of a product, an element copied and one stored, a source's slice, a tile's call, a
    // weight.
    constexpr double kProduct = 0.95, kCopied = 16, kStored = 10, kScattered = 48, kSlice = 1200,
                     kCall = 2000, kWeight = 50;
    constexpr double kMostBytes = 512 << 10; // of a window of many sources, and of sums that are kept
    const double blocks = real(ceil_div(p.results, tiles<T>().rows));
    double plane = 0, copied = 0, slices = 0, own = 0;
    for (const GatherPlan& plan : p.plans) {
        const auto& [d, h, w] = plan.axes;
        // Rows are summed one by one, or as one with what lies between them.
        const double rows = real(d.outputs) * real(h.outputs), lanes = real(tiles<T>().lanes);
        const double joined = rows * extent(w, w.outputs) / real(w.step) + lanes / 2;
        const double columns = std::min(rows * real(round_up(w.outputs, tiles<T>().lanes)), joined);
        plane += kProduct * real(p.sources) * real(p.results) * real(plan.taps()) * columns +
                 (w.out_step > 2 ? kScattered : kStored) * real(p.results) * real(plan.outputs()) +
                 kCall * blocks * real(d.outputs);
        copied = std::max(copied, window_elements(plan)); // all plans read the same
        slices = std::max(slices, real(d.outputs) * real(static_cast<Index>(d.taps.size())));
        own = std::max(own, window_bytes<T>(plan, p.sources, kMostBytes));
    }
    plane += real(p.sources) * (kCopied * copied + kSlice * slices);
    const double weights = real(p.groups) * real(p.sources) * real(p.results) * real(volume(p.kernel));
    const double products = all_products(p);
    const int workers = threads_for(static_cast<double>(kMemoryBound) * products, threads);
    return {real(p.batch) * real(p.groups) * plane + kWeight * weights, products,
            bytes<T>(weights) + real(workers) * own, workers};
}

template <class T>
Estimate depthwise_estimate(const GatherProblem<T>& p, int threads) {
    constexpr double kElement = 18, kProduct = 0.6; // multiply-adds: memory is what takes the time
    constexpr double kBlockBytes = 64 << 10;
    const double elements =
        real(p.batch) * real(p.groups) *
        (real(p.sources) * real(volume(p.source_size)) + real(p.results) * real(volume(p.result_size)));
    const double products = all_products(p);
    const int workers = threads_for(static_cast<double>(kMemoryBound) * products, threads);
    return {kElement * elements + kProduct * products, products, real(workers) * kBlockBytes, workers};
}

template <class T>
Estimate winograd_estimate(const GatherProblem<T>& p, int threads) {
    if (is_dilated(p))
        return phases_estimate(p, threads, winograd_estimate<T>);
    // Multiply-adds. Kept weights are read, at least: from a cache or from beyond.
    constexpr double kReadElement = 4, kFarElement = 18;
    constexpr double kCacheBytes = 16 << 20;
    constexpr Index kPacked = 9;
    const WinogradSizes<T> sizes(p);
    const double filters = winograd_filter_elements(p);
    const double far_element = bytes<T>(filters) > kCacheBytes ? kFarElement : kReadElement;
    const double time = winograd_work(p) + (p.kept == nullptr ? kTransformedElement : far_element) * filters;
    const double products = sizes.products(p);
    const int workers = winograd_threads(p, threads);
    const double depth = real(sizes.windows) * real(p.sources), width = real(sizes.width);
    const double weights = depth * real(sizes.blocks) * width;
    // Whole runs of tiles may be one run more than wanted.
    const Index task = std::min(sizes.tiles, 2 * kTilesPerPass), pass = std::min(sizes.tiles, kTilesPerPass);
    double shared, own;
    if (bytes<T>(kWinogradProducts * weights) > real(kLargeWeights) && sizes.tiles <= kFewTiles) {
        const Index piece = std::min(p.sources, kSourcesPerPiece);
        shared = kWinogradProducts * real(odd_lines<T>(sizes.tiles * sizes.tile));
        own = kWinogradProducts * (real(odd_lines<T>(kSourcesPerPiece * sizes.width)) +
                                   real(odd_lines<T>(sizes.tiles * sizes.width))) +
              kPacked * real(piece) * width;
    } else {
        shared = real(p.groups) * real(sizes.blocks) * kWinogradProducts *
                 real(odd_lines<T>(sizes.windows * p.sources * sizes.width));
        own = kWinogradProducts *
                  (real(odd_lines<T>(task * sizes.tile)) + real(odd_lines<T>(pass * sizes.width))) +
              kPacked * real(std::min(p.sources, kSourcesPerPacking)) * width;
    }
    own += real(winograd_staging<T>());
    return {real(p.groups) * time, products, bytes<T>(shared + real(workers) * own), workers};
}

template <class T>
Estimate outer_products_estimate(const GatherProblem<T>& forward, double workspace, int threads) {
    constexpr double kProduct = 1.15, kTurned = 20, kWeight = 50; // multiply-adds
    const double products = all_products(forward);
    const double efficiency = outer_products_efficiency<T>(forward.sources, forward.results);
    const double turned = real(forward.batch) * real(forward.groups) * real(forward.results) *
                          real(forward.plans.front().outputs());
    const double weights = real(forward.groups) * real(forward.sources) * real(forward.results) *
                           real(forward.plans.front().taps());
    return {kProduct * products / efficiency + kTurned * turned + kWeight * weights, products, workspace,
            threads_for(products, threads)};
}

template <class T>
Estimate window_grad_weight_estimate(const GatherProblem<T>& forward, int threads) {
    constexpr double kProduct = 1.3, kCopied = 20, kAddedLanes = 8,
                     kLine = 0.1; // multiply-adds; steps of a tile of row products; of its time
    constexpr double kMostBytes = 128 << 10;
    constexpr Index kTasksWanted = 16, kPlacesTogether = 3, kMostSteps = 96;
    const GatherPlan& plan = forward.plans.front();
    const auto& [d, h, w] = plan.axes;
    const Index row_steps = ceil_div(w.outputs, tiles<T>().lanes);
    const double steps = real(std::min(h.outputs * row_steps, kMostSteps));
    const Index places = forward.sources * plan.taps();
    const double products = all_products(forward);
    // A single result's sums are too few to hide the latency of an addition.
    const double tile =
        real(round_up(places, kPlacesTogether)) / real(places) * (forward.results > 1 ? 1 : 2);
    const double lanes = real(row_steps * tiles<T>().lanes) / real(w.outputs);
    // Neighbouring taps read different lines of a window that is split by the step.
    const double lines = 1 + kLine * real(w.step - 1);
    const double time = kProduct * products * tile * lanes * lines * (1 + kAddedLanes / steps);
    const int workers = threads_for(static_cast<double>(kMemoryBound) * products, threads);
    const double weights = real(forward.results) * real(places);
    const double parts = real(forward.groups) * real(ceil_div(kTasksWanted, forward.groups));
    const double copied =
        real(forward.batch) * real(forward.groups) * real(forward.sources) * window_elements(plan);
    const double own = window_bytes<T>(plan, forward.sources, kMostBytes) + bytes<T>(weights);
    return {time + kCopied * copied, products, bytes<Total<T>>(parts * weights) + real(workers) * own,
            workers};
}

template <class T>
Estimate winograd_grad_weight_estimate(const GatherProblem<T>& forward, int threads) {
    if (is_dilated(forward))
        return phases_estimate(forward, threads, winograd_grad_weight_estimate<T>);
    constexpr double kTransforms = 1.6, kTransformed = 20, kStart = 2e6; // times a result's; multiply-adds
    constexpr Index kPacked = 9;
    const WinogradSizes<T> sizes(forward);
    const double products = sizes.products(forward);
    const int workers = winograd_threads(forward, threads);
    const double time =
        winograd_work(forward, kTransforms) + kTransformed * winograd_filter_elements(forward) + kStart;
    const Index tiles = std::min(sizes.tiles, kTilesPerBlock);
    const double transformed =
        real(odd_lines<T>(tiles * sizes.tile)) + real(odd_lines<T>(sizes.blocks * tiles * sizes.width));
    const Index rows =
        std::clamp(round_up(sizes.windows * forward.sources * sizes.blocks / kPanelsWanted, kFewestRows),
                   kFewestRows, kMostRows);
    const Index panels = sizes.windows * ceil_div(forward.sources, rows) * sizes.blocks;
    const Index parts = ceil_div(kPanelsWanted, panels);
    const double panel = real(odd_lines<T>(rows * sizes.width));
    const bool at_once = parts == 1 && sizes.grid.runs <= sizes.grid.runs_of(kTilesPerBlock);
    const double sums = at_once ? real(workers) * panel : real(panels) * real(parts) * panel;
    const double own = real(winograd_staging<T>()) + kPacked * real(rows) * real(sizes.width);
    return {real(forward.groups) * time, products,
            bytes<T>(kWinogradProducts * (transformed + sums) + real(workers) * own), workers};
}

#define INSTANTIATE(T)                                                               \
    template Estimate gemm_estimate(const GatherProblem<T>&, int);                   \
    template Estimate window_estimate(const GatherProblem<T>&, int);                 \
    template Estimate depthwise_estimate(const GatherProblem<T>&, int);              \
    template Estimate winograd_estimate(const GatherProblem<T>&, int);               \
    template Estimate outer_products_estimate(const GatherProblem<T>&, double, int); \
    template Estimate window_grad_weight_estimate(const GatherProblem<T>&, int);     \
    template Estimate winograd_grad_weight_estimate(const GatherProblem<T>&, int);
FASTCONV_CONV_TYPES(INSTANTIATE)

} // namespace fastconv
