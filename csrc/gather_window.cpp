// Convolutions between few channels: depthwise, small groups, first layers, and the input gradient of first
// layers. Packing panels for a matrix product would cost as much as the product. Here a block of the source
// is copied once, with its padding, and every row of results is a weighted sum of rows of that copy.
#include "activation.h"
#include "kernels.h"
#include "padded_window.h"
#include "parallel.h"

namespace fastconv {
namespace {

constexpr Index kFewChannels = 4;           // the tile's results
constexpr Index kMostProducts = 4096;       // per result: their offsets stay in the first-level cache
constexpr Index kLongestSum = 256;          // of products, lest rounding adds up
constexpr Index kDepthwiseBytes = 96 << 10; // of a window; one source channel serves few results
constexpr Index kDenseBytes = 384 << 10;
constexpr Index kWorkPerTask = 1 << 15; // multiply-adds
constexpr Index kTasksPerThread = 4;

template <class T>
class GatherWindow {
public:
    GatherWindow(const GatherProblem<T>& p, const GatherPlan& plan)
        : p_(p), plan_(plan), tile_(tiles<T>()), per_block_(std::min(p.results, kFewChannels)),
          products_(p.sources * plan.taps()),
          layout_(plan, p.sources, tile_.lanes, sizeof(T), p.sources == 1 ? kDepthwiseBytes : kDenseBytes) {
        // [group][block of results][source, tap][result of the block], the last block being as wide as need
        // be
        weights_.reserve(static_cast<std::size_t>(p.groups * p.results * products_));
        const std::vector<Index> taps = plan.kernel_positions(p.kernel);
        for (Index group = 0; group < p.groups; ++group)
            for (Index first = 0; first < p.results; first += per_block_)
                for (Index c = 0; c < p.sources; ++c)
                    for (const Index tap : taps)
                        for (Index i = first; i < std::min(p.results, first + per_block_); ++i)
                            weights_.push_back(p.weight[group * p.group_stride + i * p.result_stride +
                                                        c * p.source_stride + tap]);
    }

    Index blocks() const { return layout_.blocks(); }

    // The results of one block of one group of one image.
    void run(Index image, Index group, Index block) const {
        const auto& [d, h, w] = plan_.axes;
        const WindowLayout::Block b = layout_.block(block);
        const Index source_plane = volume(p_.source_size), result_plane = volume(p_.result_size);
        T* window = workspace<T>(Slot::window, layout_.elements);
        layout_.copy(p_.source + (image * p_.groups + group) * p_.sources * source_plane, b, window);
        const bool scattered = w.out_step > 1;
        T* staged = scattered ? workspace<T>(Slot::staging, per_block_ * b.rows * b.columns) : nullptr;
        for (Index first = 0; first < p_.results; first += per_block_) {
            const Index channel = group * p_.results + first;
            const Index results = std::min(per_block_, p_.results - first);
            T* y = p_.result + (image * p_.groups * p_.results + channel) * result_plane +
                   ((d.out_start + b.d * d.out_step) * p_.result_size[1] + h.out_start + b.h * h.out_step) *
                       p_.result_size[2] +
                   w.out_start + b.w * w.out_step;
            const Index row = h.out_step * p_.result_size[2], step = w.out_step;
            WeightedRows<T> call{};
            call.src = window;
            call.src_stride = layout_.row_stride;
            call.results = static_cast<int>(results);
            call.dst = scattered ? staged : y;
            call.dst_stride = scattered ? b.columns : row;
            call.result_stride = scattered ? b.rows * b.columns : result_plane;
            call.rows = b.rows;
            call.columns = b.columns;
            call.bias = p_.bias == nullptr ? nullptr : p_.bias + channel;
            call.activation = p_.activation;
            const T* weights = weights_.data() + (group * p_.results + first) * products_;
            for (Index product = 0; product < products_; product += kLongestSum) {
                call.offsets = layout_.offsets.data() + product;
                call.weights = weights + product * results;
                call.products = std::min(kLongestSum, products_ - product);
                call.first = product == 0;
                call.last = product + call.products == products_;
                tile_.weighted_rows(call);
            }
            if (!in_tile(p_.activation))
                for_each_row(call, [&](Index, Index, T* values) {
                    for (Index j = 0; j < b.columns; ++j)
                        values[j] = activated(values[j], p_.activation);
                });
            if (scattered)
                for_each_row(call, [&](Index i, Index r, const T* values) {
                    T* to = y + i * result_plane + r * row;
                    for (Index j = 0; j < b.columns; ++j)
                        to[j * step] = values[j];
                });
        }
    }

private:
    // visit(result, row, its elements)
    template <class Visit>
    static void for_each_row(const WeightedRows<T>& call, const Visit& visit) {
        for (Index i = 0; i < call.results; ++i)
            for (Index r = 0; r < call.rows; ++r)
                visit(i, r, call.dst + i * call.result_stride + r * call.dst_stride);
    }

    const GatherProblem<T>& p_;
    const GatherPlan& plan_;
    const Tiles<T>& tile_;
    const Index per_block_, products_;
    const WindowLayout layout_;
    std::vector<T> weights_;
};

} // namespace

template <class T>
bool window_applies(const GatherProblem<T>& p) {
    if (p.sources > kFewChannels && p.results > kFewChannels)
        return false;
    return p.plans.size() <= 64 && std::all_of(p.plans.begin(), p.plans.end(), [&](const GatherPlan& plan) {
               return p.sources * plan.taps() <= kMostProducts && WindowLayout::suits(plan);
           });
}

template <class T>
void gather_window(const GatherProblem<T>& p, int threads) {
    std::vector<GatherWindow<T>> plans;
    plans.reserve(p.plans.size());
    Index work = 0, blocks = 0;
    for (const GatherPlan& plan : p.plans) {
        plans.emplace_back(p, plan);
        work += plan.outputs() * plan.taps();
        blocks += plans.back().blocks();
    }
    const Index planes = p.batch * p.groups;
    work *= p.sources * p.results;
    const int workers = worthwhile_threads(kMemoryBound * work * planes, threads);
    // Where there are planes enough a task does all blocks of some, so that a plane is read into cache once.
    if (planes >= kTasksPerThread * workers) {
        const Index per_task = std::clamp<Index>(kWorkPerTask / std::max<Index>(work, 1), 1, 64);
        Parallel::run(ceil_div(planes, per_task), workers, [&](Index task) {
            for (Index plane = task * per_task; plane < std::min(planes, (task + 1) * per_task); ++plane)
                for (const GatherWindow<T>& window : plans)
                    for (Index block = 0; block < window.blocks(); ++block)
                        window.run(plane / p.groups, plane % p.groups, block);
        });
        return;
    }
    Parallel::run(planes * blocks, workers, [&](Index task) {
        const Index plane = task / blocks;
        Index block = task % blocks;
        auto window = plans.begin();
        for (; block >= window->blocks(); ++window)
            block -= window->blocks();
        window->run(plane / p.groups, plane % p.groups, block);
    });
}

#define INSTANTIATE(T)                                     \
    template bool window_applies(const GatherProblem<T>&); \
    template void gather_window(const GatherProblem<T>&, int);
FASTCONV_CONV_TYPES(INSTANTIATE)

} // namespace fastconv
