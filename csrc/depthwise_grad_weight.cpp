// The weight gradient of depthwise convolutions. A task owns a few neighbouring channels, or these in a part
// of the images; what it owns depends on the shape only, and parts are added in order. The products of some
// rows or images stay apart by vector lane and are then added to totals of float64, so that no running sum is
// long.
#include "depthwise.h"
#include "kernels.h"
#include "parallel.h"

namespace fastconv {
namespace {

constexpr Index kTasksWanted = 16;
constexpr Index kLongestSum = 256;    // of a lane
constexpr Index kSumBytes = 16 << 10; // of a task: they stay in the first-level cache

template <class T>
class DepthwiseGradWeight {
public:
    explicit DepthwiseGradWeight(const GatherProblem<T>& p)
        : p_(p), tile_(depthwise_tiles<T>()), lanes_(tiles<T>().lanes), layer_(p), taps_(volume(p.kernel)),
          row_steps_(ceil_div(p.result_size[2], tile_.results[static_cast<int>(layer_.kind())])) {
        const Index affordable = kSumBytes / (taps_ * lanes_ * static_cast<Index>(sizeof(T)));
        // Of larger planes a few rows at a time, so that memory is read in order.
        const bool small = volume(p.result_size) / p.result_size[2] * row_steps_ <= kLongestSum;
        together_ = small ? std::clamp<Index>(p.groups / kTasksWanted, 1, std::max<Index>(1, affordable)) : 1;
        if (layer_.pairs())
            together_ = round_up(together_, 2);
        blocks_ = ceil_div(p.groups, together_);
        parts_ = std::min(p.batch, ceil_div(kTasksWanted, blocks_));
    }

    void run(T* grad_weight, int threads) const {
        const Index work = p_.batch * p_.groups * volume(p_.result_size) * taps_;
        const int workers = worthwhile_threads(kMemoryBound * work, threads);
        // [part][channel][tap]
        double* totals = workspace<double>(Slot::partial, parts_ * p_.groups * taps_);
        Parallel::run(blocks_ * parts_, workers, [&](Index task) {
            const Index channel = task / parts_ * together_, part = task % parts_;
            sum_part(channel, part, totals + (part * p_.groups + channel) * taps_);
        });
        for (Index i = 0; i < p_.groups * taps_; ++i) {
            double total = 0;
            for (Index part = 0; part < parts_; ++part)
                total += totals[part * p_.groups * taps_ + i];
            grad_weight[i] = static_cast<T>(total);
        }
    }

private:
    void sum_part(Index channel, Index part, double* totals) const {
        const Index source_plane = volume(p_.source_size), result_plane = volume(p_.result_size);
        const Index columns = p_.result_size[2], channels = std::min(together_, p_.groups - channel);
        const Index vectors = (layer_.pairs() ? ceil_div(channels, 2) : channels) * taps_;
        T* sums = workspace<T>(Slot::results, vectors * lanes_);
        std::fill_n(sums, vectors * lanes_, T{});
        std::fill_n(totals, channels * taps_, 0.0);
        DepthwiseProducts<T> call{};
        call.kind = layer_.kind();
        call.array = p_.source;
        call.array_end = p_.source + p_.batch * p_.groups * source_plane;
        call.source_channel = source_plane;
        call.gradient_channel = result_plane;
        call.sums_channel = taps_ * lanes_;
        call.channels = channels;
        call.columns = columns;
        call.sums = sums;
        const Index most_rows =
            std::max<Index>(1, kLongestSum / row_steps_ / kDepthwiseRows * kDepthwiseRows);
        Index summed = 0; // products that a lane holds
        for (Index n = p_.batch * part / parts_; n < p_.batch * (part + 1) / parts_; ++n) {
            call.source = p_.source + (n * p_.groups + channel) * source_plane;
            const T* slice = p_.result + (n * p_.groups + channel) * result_plane;
            for (const std::vector<DepthwiseLayer::Rows>& phases : layer_.slices()) {
                for (const DepthwiseLayer::Rows& phase : phases)
                    for (Index first = 0; first < phase.count; first += call.rows) {
                        call.rows = std::min(most_rows, phase.count - first);
                        if (summed + call.rows * row_steps_ > kLongestSum) {
                            add(sums, channels, totals);
                            summed = 0;
                        }
                        summed += call.rows * row_steps_;
                        call.windows = phase.windows.data();
                        call.first_row = first;
                        call.gradient = slice + (phase.first + first * phase.step) * columns;
                        call.gradient_row = phase.step * columns;
                        tile_.products(call);
                    }
                slice += p_.result_size[1] * columns;
            }
        }
        add(sums, channels, totals);
    }

    void add(T* sums, Index channels, double* totals) const {
        if (!layer_.pairs())
            return tile_.add_lanes(sums, channels * taps_, totals);
        for (Index c = 0; c < channels; c += 2, sums += taps_ * lanes_, totals += 2 * taps_)
            tile_.add_halves(sums, taps_, totals, c + 1 < channels ? totals + taps_ : nullptr);
    }

    const GatherProblem<T>& p_;
    const DepthwiseTiles<T>& tile_;
    const Index lanes_;
    const DepthwiseLayer layer_;
    const Index taps_;
    const Index row_steps_;           // products that a row adds to a lane
    Index together_, blocks_, parts_; // channels of a task, how many of these there are, parts of the images
};

} // namespace

template <class T>
bool depthwise_grad_weight_applies(const GatherProblem<T>& p) {
    return p.sources == 1 && p.results == 1 && DepthwiseLayer::suits(p);
}

template <class T>
void depthwise_grad_weight(const GatherProblem<T>& p, T* grad_weight, int threads) {
    DepthwiseGradWeight<T>(p).run(grad_weight, threads);
}

#define INSTANTIATE(T)                                                    \
    template bool depthwise_grad_weight_applies(const GatherProblem<T>&); \
    template void depthwise_grad_weight(const GatherProblem<T>&, T*, int);
FASTCONV_MEAN_TYPES(INSTANTIATE)

} // namespace fastconv
