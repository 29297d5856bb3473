// Convolutions between few channels: small groups, first layers, and their input gradients. Packing panels
// for a matrix product would cost as much as the product. Here a block of the source is copied once, with its
// padding, and every row of results is a weighted sum of rows of that copy.
//
// Rows of results are as far apart as rows of the copy, so that narrow ones are summed as one long row, in
// which the elements between two rows of results mean nothing; these sums stay in cache until what is wanted
// of them is stored. So do those of an input gradient's stride phases, which take turns in a row of results:
// all phases share a copy, and their sums are interleaved.
#include "activation.h"
#include "kernels.h"
#include "padded_window.h"
#include "parallel.h"

namespace fastconv {
namespace {

constexpr Index kFewChannels = 64;
constexpr Index kMostPlans = 64;
constexpr Index kMostProducts = 4096;       // per result: their offsets stay in the first-level cache
constexpr Index kLongestSum = 256;          // of products, lest rounding adds up
constexpr Index kDepthwiseBytes = 96 << 10; // of a window; one source channel serves few results
constexpr Index kDenseBytes = 384 << 10;
constexpr Index kStagedBytes = 24 << 10; // of sums
constexpr Index kStagedProducts = 4;     // take as long as storing a sum twice
constexpr Index kWorkPerTask = 1 << 15;  // multiply-adds
constexpr Index kTasksPerThread = 4;

template <class T>
class GatherWindow {
public:
    GatherWindow(const GatherProblem<T>& p, int threads)
        : p_(p), tile_(tiles<T>()), stride_(p.plans.front().axes[2].out_step),
          per_block_(ceil_div(p.results, ceil_div(p.results, tile_.rows))),
          layout_(p.plans, p.sources, tile_.lanes, sizeof(T),
                  p.sources == 1 ? kDepthwiseBytes : kDenseBytes) {
        Index weights = 0, longest = 0;
        phases_.reserve(p.plans.size());
        for (const GatherPlan& plan : p.plans) {
            const Index products = p.sources * plan.taps();
            phases_.push_back(
                {&plan, products, weights, plan.kernel_positions(p.kernel), layout_.offsets(plan)});
            weights += p.groups * p.results * products;
            longest = std::max(longest, products);
            across_ += plan.axes[0].out_start == p.plans.front().axes[0].out_start &&
                       plan.axes[1].out_start == p.plans.front().axes[1].out_start;
        }
        const Index apart = layout_.rows * ceil_div(layout_.columns, tile_.lanes);
        const Index joined = ceil_div(joined_length(layout_.rows, layout_.columns), tile_.lanes);
        staged_ = stride_ > 1 || joined * (longest + kStagedProducts) < apart * longest;
        const Index row_bytes = across_ * per_block_ * layout_.row_stride * static_cast<Index>(sizeof(T));
        const Index rows = std::clamp<Index>(kStagedBytes / row_bytes, 1, layout_.rows);
        rows_ = ceil_div(layout_.rows, ceil_div(layout_.rows, rows)); // passes alike
        sums_stride_ = rows_ * layout_.row_stride + tile_.lanes;      // vectors reach beyond the last row
        weights_ = workspace<T>(Slot::weights, weights);
        const Index blocks = ceil_div(p.results, per_block_);
        Parallel::run(p.groups * blocks, worthwhile_threads(kMemoryBound * weights, threads),
                      [&](Index task) { pack_weights(task / blocks, task % blocks * per_block_); });
    }

    Index blocks() const { return layout_.blocks(); }

    // The results of one block of one group of one image.
    void run(Index image, Index group, Index block) const {
        const WindowLayout::Block b = layout_.block(block);
        T* window = workspace<T>(Slot::window, layout_.elements);
        layout_.copy(p_.source + (image * p_.groups + group) * p_.sources * volume(p_.source_size), b,
                     window);
        for (Index row = 0; row < b.rows; row += rows_)
            for (Index first = 0; first < p_.results; first += per_block_)
                for (std::size_t i = 0; i < phases_.size(); i += static_cast<std::size_t>(across_))
                    run_rows(image, group, first, &phases_[i],
                             {b.d, b.h + row, b.w, std::min(rows_, b.rows - row), b.columns},
                             window + row * layout_.row_stride);
    }

private:
    struct Phase {
        const GatherPlan* plan;
        Index products, first_weight;
        std::vector<Index> taps, offsets; // in the kernel, and of their products in the window

        // How many of the columns of a block are its own.
        Index columns(const WindowLayout::Block& b) const {
            return std::clamp<Index>(plan->axes[2].outputs - b.w, 0, b.columns);
        }
    };

    // [phase][group][block of results][source, tap][result of the block], the last block being as wide as
    // need be
    T* weights_of(const Phase& phase, Index group, Index first) const {
        return weights_ + phase.first_weight + (group * p_.results + first) * phase.products;
    }

    void pack_weights(Index group, Index first) const {
        const Index width = std::min(per_block_, p_.results - first);
        if (phases_.size() == 1) {
            pack_weight_block(p_, phases_[0].taps, group, first, width, {0, p_.sources},
                              weights_of(phases_[0], group, first));
            return;
        }
        // The phases divide the taps: each weight is read once.
        const Index all_taps = volume(p_.kernel);
        T* turned = workspace<T>(Slot::staging, all_taps * width);
        for (Index c = 0; c < p_.sources; ++c) {
            tile_.transpose(p_.weight + group * p_.group_stride + first * p_.result_stride +
                                c * p_.source_stride,
                            p_.result_stride, width, all_taps, turned, width, width);
            for (const Phase& phase : phases_) {
                T* out = weights_of(phase, group, first) + c * static_cast<Index>(phase.taps.size()) * width;
                for (const Index tap : phase.taps)
                    out = std::copy_n(turned + tap * width, width, out);
            }
        }
    }

    // Rows of a block for results [first, first + per_block_) of a group, by the phases that share these
    // rows.
    void run_rows(Index image, Index group, Index first, const Phase* phases, const WindowLayout::Block& b,
                  const T* window) const {
        const auto& [d, h, w] = phases->plan->axes;
        const Index rows = std::min(b.rows, h.outputs - b.h);
        if (b.d >= d.outputs || rows <= 0)
            return;
        const Index plane = volume(p_.result_size), channel = group * p_.results + first;
        const Index row_step = h.out_step * p_.result_size[2];
        const Index results = std::min(per_block_, p_.results - first);
        T* sums = staged_ ? workspace<T>(Slot::staging, across_ * per_block_ * sums_stride_) : nullptr;
        T* y = p_.result + (image * p_.groups * p_.results + channel) * plane +
               ((d.out_start + b.d * d.out_step) * p_.result_size[1] + h.out_start + b.h * h.out_step) *
                   p_.result_size[2] +
               b.w * stride_;
        WeightedRows<T> call{};
        call.src = window;
        call.src_stride = layout_.row_stride;
        call.results = static_cast<int>(results);
        call.bias = p_.bias == nullptr ? nullptr : p_.bias + channel;
        call.activation = p_.activation;
        for (Index i = 0; i < across_; ++i) {
            const Phase& phase = phases[i];
            const Index columns = phase.columns(b);
            if (columns == 0)
                continue;
            call.rows = staged_ ? 1 : rows;
            call.columns = staged_ ? joined_length(rows, columns) : columns;
            call.dst = staged_ ? sums + i * per_block_ * sums_stride_ : y;
            call.dst_stride = row_step;
            call.result_stride = staged_ ? sums_stride_ : plane;
            const T* weights = weights_of(phase, group, first);
            for (Index product = 0; product < phase.products; product += kLongestSum) {
                call.offsets = phase.offsets.data() + product;
                call.weights = weights + product * results;
                call.products = std::min(kLongestSum, phase.products - product);
                call.first = product == 0;
                call.last = product + call.products == phase.products;
                tile_.weighted_rows(call);
            }
        }
        for (Index i = 0; i < results; ++i, y += plane) {
            if (staged_)
                store_rows(sums + i * sums_stride_, phases, b, rows, y, row_step);
            if (!in_tile(p_.activation))
                for (Index j = 0; j < across_; ++j)
                    activate_rows(y + phases[j].plan->axes[2].out_start, rows, row_step,
                                  phases[j].columns(b));
        }
    }

    // From the start of the first row to the end of the last.
    Index joined_length(Index rows, Index columns) const { return (rows - 1) * layout_.row_stride + columns; }

    // Rows of one result from the sums of their phases.
    void store_rows(const T* sums, const Phase* phases, const WindowLayout::Block& b, Index rows, T* y,
                    Index row_step) const {
        const Index distance = per_block_ * sums_stride_, stride = layout_.row_stride;
        if (stride_ == 2 && across_ == 2) {
            const bool swapped = phases[0].plan->axes[2].out_start == 1;
            const T *even = sums + swapped * distance, *odd = sums + !swapped * distance;
            tile_.interleave(even, odd, stride, y, row_step, rows,
                             phases[0].columns(b) + phases[1].columns(b));
            return;
        }
        for (Index i = 0; i < across_; ++i, sums += distance) {
            const Index columns = phases[i].columns(b);
            T* to = y + phases[i].plan->axes[2].out_start;
            if (stride_ == 1)
                for (Index j = 0; j < columns; j += tile_.lanes) {
                    const int count = static_cast<int>(std::min<Index>(tile_.lanes, columns - j));
                    tile_.pack_run(sums + j, stride, 1, to + j, row_step, rows, 0, count, count, 0);
                }
            else
                for (Index row = 0; row < rows; ++row)
                    for (Index j = 0; j < columns; ++j)
                        to[row * row_step + j * stride_] = sums[row * stride + j];
        }
    }

    void activate_rows(T* y, Index rows, Index row_step, Index columns) const {
        for (Index row = 0; row < rows; ++row)
            for (Index j = 0; j < columns; ++j) {
                T& value = y[row * row_step + j * stride_];
                value = activated(value, p_.activation);
            }
    }

    const GatherProblem<T>& p_;
    const Tiles<T>& tile_;
    const Index stride_; // between the results of a phase
    const Index per_block_;
    const WindowLayout layout_;
    std::vector<Phase> phases_;
    Index across_ = 0;         // phases that share rows
    bool staged_;              // whether rows are summed as one
    Index rows_, sums_stride_; // of a pass
    T* weights_;
};

} // namespace

template <class T>
bool window_applies(const GatherProblem<T>& p) {
    if (p.sources > kFewChannels && p.results > kFewChannels)
        return false;
    return static_cast<Index>(p.plans.size()) <= kMostPlans && WindowLayout::suits(p.plans) &&
           std::all_of(p.plans.begin(), p.plans.end(),
                       [&](const GatherPlan& plan) { return p.sources * plan.taps() <= kMostProducts; });
}

template <class T>
void gather_window(const GatherProblem<T>& p, int threads) {
    if (p.plans.empty())
        return;
    Index work = 0;
    for (const GatherPlan& plan : p.plans)
        work += plan.outputs() * plan.taps();
    work *= p.sources * p.results;
    const Index planes = p.batch * p.groups;
    const int workers = worthwhile_threads(kMemoryBound * work * planes, threads);
    const GatherWindow<T> window(p, workers);
    const Index blocks = window.blocks();
    // Where there are planes enough a task does all blocks of some, so that a plane is read into cache once.
    if (planes >= kTasksPerThread * workers) {
        const Index per_task = std::clamp<Index>(kWorkPerTask / std::max<Index>(work, 1), 1, 64);
        Parallel::run(ceil_div(planes, per_task), workers, [&](Index task) {
            for (Index plane = task * per_task; plane < std::min(planes, (task + 1) * per_task); ++plane)
                for (Index block = 0; block < blocks; ++block)
                    window.run(plane / p.groups, plane % p.groups, block);
        });
        return;
    }
    Parallel::run(planes * blocks, workers, [&](Index task) {
        const Index plane = task / blocks;
        window.run(plane / p.groups, plane % p.groups, task % blocks);
    });
}

#define INSTANTIATE(T)                                     \
    template bool window_applies(const GatherProblem<T>&); \
    template void gather_window(const GatherProblem<T>&, int);
FASTCONV_CONV_TYPES(INSTANTIATE)

} // namespace fastconv
