// The weight gradient between few channels: each weight's gradient is a sum of products of rows of grad_y
// with rows of a padded window of x, in which vectors hold neighbouring pixels and nothing is turned. The
// sums of a few results and weights stay in registers while a block of rows passes by, so a step multiplies
// each vector of either operand several times. Blocks are split into parts that depend on the shape only, and
// the parts are added in order; blocks' sums are added to those of a few others, and these to totals of
// float64, so that no running sum is long.
#include "kernels.h"
#include "padded_window.h"
#include "parallel.h"

namespace fastconv {
namespace {

constexpr Index kWindowBytes = 128 << 10;
constexpr Index kMostTotalBytes = 1 << 20; // of a task: they are revisited for some blocks
constexpr Index kTasksWanted = 16;
constexpr Index kLongestSum =
    96; // of a lane, in a block; so many rows of grad_y stay in the first-level cache
constexpr Index kMostSummed = 16; // blocks that go into one running sum

} // namespace

template <class T>
bool window_grad_weight_applies(const GatherProblem<T>& p) {
    const GatherPlan& plan = p.plans.front();
    const Index totals = p.sources * p.results * plan.taps() * static_cast<Index>(sizeof(Total<T>));
    return WindowLayout::suits(p.plans) && totals <= kMostTotalBytes;
}

template <class T>
void window_grad_weight(const GatherProblem<T>& p, T* grad_weight, int threads) {
    const GatherPlan& plan = p.plans.front();
    const Tiles<T>& tile = tiles<T>();
    const WindowLayout layout(p.plans, p.sources, tile.lanes, sizeof(T), kWindowBytes);
    const std::vector<Index> offsets = layout.offsets(plan);
    const Index places = p.sources * plan.taps(), weights = p.results * places;
    const Index source_plane = volume(p.source_size), result_plane = volume(p.result_size);
    const Index work = p.batch * p.groups * plan.outputs() * weights;
    const int workers = worthwhile_threads(kMemoryBound * work, threads);
    const Index units = p.batch * layout.blocks();
    const Index parts = std::min(units, ceil_div(kTasksWanted, p.groups));

    Total<T>* all_totals = workspace<Total<T>>(Slot::partial, p.groups * parts * weights);
    Parallel::run(p.groups * parts, workers, [&](Index task) {
        const Index group = task / parts, part = task % parts;
        T* window = workspace<T>(Slot::window, layout.elements);
        T* sums = workspace<T>(Slot::results, weights);
        Total<T>* totals = all_totals + task * weights;
        std::fill_n(totals, weights, Total<T>{});
        Index summed = 0;
        const auto add_sums = [&] {
            for (Index i = 0; i < weights; ++i)
                totals[i] += sums[i];
            summed = 0;
        };
        const Index end = units * (part + 1) / parts;
        for (Index unit = units * part / parts; unit < end; ++unit) {
            const Index image = unit / layout.blocks() * p.groups + group;
            const WindowLayout::Block b = layout.block(unit % layout.blocks());
            layout.copy(p.source + image * p.sources * source_plane, b, window);
            const Index rows = std::max<Index>(1, kLongestSum / ceil_div(b.columns, tile.lanes));
            for (Index row = 0; row < b.rows; row += rows) {
                RowProducts<T> call{};
                call.g = p.result + image * p.results * result_plane +
                         (b.d * p.result_size[1] + b.h + row) * p.result_size[2] + b.w;
                call.g_stride = p.result_size[2];
                call.result_stride = result_plane;
                call.src = window + row * layout.row_stride;
                call.src_stride = layout.row_stride;
                call.offsets = offsets.data();
                call.places = places;
                call.results = static_cast<int>(p.results);
                call.rows = std::min(rows, b.rows - row);
                call.columns = b.columns;
                call.sums = sums;
                call.first = summed == 0;
                tile.row_products(call);
                if (++summed == kMostSummed)
                    add_sums();
            }
        }
        if (summed > 0)
            add_sums();
    });
    // In memory the weights of a group are [results][sources][taps], as the sums are.
    for (Index group = 0; group < p.groups; ++group)
        for (Index i = 0; i < weights; ++i) {
            Total<T> total{};
            for (Index part = 0; part < parts; ++part)
                total += all_totals[(group * parts + part) * weights + i];
            grad_weight[group * weights + i] = static_cast<T>(total);
        }
}

#define INSTANTIATE(T)                                                 \
    template bool window_grad_weight_applies(const GatherProblem<T>&); \
    template void window_grad_weight(const GatherProblem<T>&, T*, int);
FASTCONV_CONV_TYPES(INSTANTIATE)

} // namespace fastconv
