// The weight gradient between few channels: each weight's gradient is a product of rows of grad_y with rows
// of a padded window of x. Sums stay apart by vector lane until the end; images are split into parts that
// depend on the shape only, and the parts are added in order.
#include "kernels.h"
#include "padded_window.h"
#include "parallel.h"

namespace fastconv {
namespace {

constexpr Index kWindowBytes = 64 << 10;
constexpr Index kMostSumBytes = 192 << 10; // of a group: they are revisited for every block of rows
constexpr Index kTasksWanted = 16;

} // namespace

// Whether row products keep more of the vector busy than the product tile of conv_grad_weight.cpp would,
// which holds output channels in its columns and input channels in its rows.
template <class T>
bool window_grad_weight_applies(const GatherProblem<T>& p, double tile_efficiency) {
    const GatherPlan& plan = p.plans.front();
    const Tiles<T>& tile = tiles<T>();
    const Index sums = p.sources * p.results * plan.taps() * tile.lanes * static_cast<Index>(sizeof(T));
    if (!WindowLayout::suits(plan) || sums > kMostSumBytes)
        return false;
    const Index columns = plan.axes[2].outputs;
    const double efficiency =
        0.7 * static_cast<double>(columns) / static_cast<double>(round_up(columns, tile.lanes));
    return (p.sources == 1 && p.results == 1) || efficiency > tile_efficiency;
}

template <class T>
void window_grad_weight(const GatherProblem<T>& p, T* grad_weight, int threads) {
    const GatherPlan& plan = p.plans.front();
    const Tiles<T>& tile = tiles<T>();
    const WindowLayout layout(plan, 1, tile.lanes, sizeof(T), kWindowBytes);
    const Index taps = plan.taps(), source_plane = volume(p.source_size),
                result_plane = volume(p.result_size);
    const Index pairs = p.results * p.sources, sums_size = pairs * taps * tile.lanes;
    const Index work = p.batch * p.groups * plan.outputs() * taps * pairs;
    const int workers = worthwhile_threads(kMemoryBound * work, threads);
    const Index parts = std::min(p.batch, ceil_div(kTasksWanted, p.groups));

    T* all_sums = workspace<T>(Slot::partial, p.groups * parts * sums_size);
    Parallel::run(p.groups * parts, workers, [&](Index task, int) {
        const Index group = task / parts, part = task % parts;
        T* window = workspace<T>(Slot::window, layout.elements);
        T* sums = all_sums + task * sums_size;
        std::fill_n(sums, sums_size, T{});
        for (Index n = p.batch * part / parts; n < p.batch * (part + 1) / parts; ++n)
            for (Index c = 0; c < p.sources; ++c) {
                const T* x = p.source + ((n * p.groups + group) * p.sources + c) * source_plane;
                for (Index i = 0; i < layout.blocks(); ++i) {
                    const WindowLayout::Block b = layout.block(i);
                    layout.copy(x, b, window);
                    for (Index k = 0; k < p.results; ++k) {
                        const T* g = p.result + ((n * p.groups + group) * p.results + k) * result_plane +
                                     (b.d * p.result_size[1] + b.h) * p.result_size[2] + b.w;
                        tile.row_products(g, p.result_size[2], window, layout.row_stride,
                                          layout.offsets.data(), taps, b.rows, b.columns,
                                          sums + (k * p.sources + c) * taps * tile.lanes);
                    }
                }
            }
    });
    for (Index group = 0; group < p.groups; ++group)
        for (Index i = 0; i < pairs * taps; ++i) {
            T total{};
            for (Index part = 0; part < parts; ++part)
                for (int lane = 0; lane < tile.lanes; ++lane)
                    total += all_sums[(group * parts + part) * sums_size + i * tile.lanes + lane];
            grad_weight[group * pairs * taps + i] = total;
        }
}

#define INSTANTIATE(T)                                                         \
    template bool window_grad_weight_applies(const GatherProblem<T>&, double); \
    template void window_grad_weight(const GatherProblem<T>&, T*, int);
FASTCONV_CONV_TYPES(INSTANTIATE)

} // namespace fastconv
