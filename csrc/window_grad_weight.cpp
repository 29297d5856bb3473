// The weight gradient between few channels: each weight's gradient is a product of rows of grad_y with rows
// of a padded window of x. Images are split into parts that depend on the shape only, and the parts are added
// in order. Sums stay apart by vector lane for some rows or images and are then added to totals of float64,
// so that no running sum is long.
#include "kernels.h"
#include "padded_window.h"
#include "parallel.h"

namespace fastconv {
namespace {

constexpr Index kWindowBytes = 64 << 10;
constexpr Index kMostSumBytes = 192 << 10; // of a group: they are revisited for every block of rows
constexpr Index kTasksWanted = 16;
constexpr Index kLongestSum = 256; // of a lane

// Adds the lanes of `count` vectors to one total each, and clears them.
template <class T>
void add_lanes(T* sums, Index count, int lanes, Total<T>* totals) {
    for (Index i = 0; i < count; ++i, sums += lanes) {
        for (int half = lanes / 2; half > 0; half /= 2)
            for (int lane = 0; lane < half; ++lane)
                sums[lane] += sums[half + lane];
        totals[i] += sums[0];
        std::fill_n(sums, lanes, T{});
    }
}

} // namespace

template <class T>
bool window_grad_weight_applies(const GatherProblem<T>& p) {
    const GatherPlan& plan = p.plans.front();
    const Index sums = p.sources * p.results * plan.taps() * tiles<T>().lanes * static_cast<Index>(sizeof(T));
    return WindowLayout::suits(plan) && sums <= kMostSumBytes;
}

template <class T>
void window_grad_weight(const GatherProblem<T>& p, T* grad_weight, int threads) {
    const GatherPlan& plan = p.plans.front();
    const Tiles<T>& tile = tiles<T>();
    const WindowLayout layout(plan, 1, tile.lanes, sizeof(T), kWindowBytes);
    const Index taps = plan.taps(), source_plane = volume(p.source_size),
                result_plane = volume(p.result_size);
    const Index pairs = p.results * p.sources;
    const Index work = p.batch * p.groups * plan.outputs() * taps * pairs;
    const int workers = worthwhile_threads(kMemoryBound * work, threads);
    const Index parts = std::min(p.batch, ceil_div(kTasksWanted, p.groups));

    // What a lane sums: some images, or some rows of one.
    const auto& [d, h, w] = plan.axes;
    const Index row_steps = ceil_div(w.outputs, tile.lanes), image_steps = d.outputs * h.outputs * row_steps;
    const Index images = std::max<Index>(1, kLongestSum / image_steps);
    const Index rows = std::max<Index>(1, kLongestSum / row_steps);

    Total<T>* all_totals = workspace<Total<T>>(Slot::partial, p.groups * parts * pairs * taps);
    Parallel::run(p.groups * parts, workers, [&](Index task) {
        const Index group = task / parts, part = task % parts;
        T* window = workspace<T>(Slot::window, layout.elements);
        T* sums = workspace<T>(Slot::results, pairs * taps * tile.lanes);
        Total<T>* totals = all_totals + task * pairs * taps;
        std::fill_n(sums, pairs * taps * tile.lanes, T{});
        std::fill_n(totals, pairs * taps, Total<T>{});
        const Range share{p.batch * part / parts, p.batch * (part + 1) / parts};
        for (Index n = share.begin; n < share.end; ++n) {
            for (Index c = 0; c < p.sources; ++c) {
                const T* x = p.source + ((n * p.groups + group) * p.sources + c) * source_plane;
                for (Index i = 0; i < layout.blocks(); ++i) {
                    const WindowLayout::Block b = layout.block(i);
                    layout.copy(x, b, window);
                    for (Index k = 0; k < p.results; ++k) {
                        const T* g = p.result + ((n * p.groups + group) * p.results + k) * result_plane +
                                     (b.d * p.result_size[1] + b.h) * p.result_size[2] + b.w;
                        const Index pair = (k * p.sources + c) * taps;
                        for (Index row = 0; row < b.rows; row += rows) {
                            tile.row_products(g + row * p.result_size[2], p.result_size[2],
                                              window + row * layout.row_stride, layout.row_stride,
                                              layout.offsets.data(), taps, std::min(rows, b.rows - row),
                                              b.columns, sums + pair * tile.lanes);
                            if (image_steps > kLongestSum)
                                add_lanes(sums + pair * tile.lanes, taps, tile.lanes, totals + pair);
                        }
                    }
                }
            }
            if ((n + 1 - share.begin) % images == 0 || n + 1 == share.end)
                add_lanes(sums, pairs * taps, tile.lanes, totals);
        }
    });
    for (Index group = 0; group < p.groups; ++group)
        for (Index i = 0; i < pairs * taps; ++i) {
            Total<T> total{};
            for (Index part = 0; part < parts; ++part)
                total += all_totals[(group * parts + part) * pairs * taps + i];
            grad_weight[group * pairs * taps + i] = static_cast<T>(total);
        }
}

#define INSTANTIATE(T)                                                 \
    template bool window_grad_weight_applies(const GatherProblem<T>&); \
    template void window_grad_weight(const GatherProblem<T>&, T*, int);
FASTCONV_CONV_TYPES(INSTANTIATE)

} // namespace fastconv
