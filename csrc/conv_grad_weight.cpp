// The weight gradient: grad_weight[k, (c, t)] = sum over pixels of grad_y[k, pixel] * x[c, pixel shifted by
// t].
//
// A task owns one block of output channels, a few vectors wide. It turns a chunk of grad_y so that these
// channels lie side by side, and then, for a few input channels and one tap at a time, keeps their sums in
// registers while it walks along the rows of x: x is read as it lies in memory, one element broadcast per
// step, so any stride costs the same and nothing is packed. Where there are few blocks, the pixels are split
// as well, in parts that depend on the shape only, and the parts' sums are added in order. However many
// pixels there are, no running sum is long: a chunk's is added to those of a few others, and these to totals
// of float64.
#include "algorithms.h"
#include "gather.h"
#include "kernels.h"
#include "parallel.h"
#include "phases.h"

namespace fastconv {

namespace {

constexpr Index kTasksWanted = 16;        // enough for any number of threads that this serves well
constexpr Index kPartialBytes = 64 << 20; // for the partial sums of all parts
constexpr Index kMostExchanged = 256;     // inputs whose sums stay in cache, though they are many
constexpr Index kRowsPerPass = 12;        // input channels of which the tiles make whole blocks
constexpr Index kLongestChunk = 128;      // pixels
constexpr Index kMostSummed = 16;         // chunks that go into one running sum

template <class T>
class GradWeight {
public:
    // `exchanged` says that x and grad_y are each in the other's place.
    GradWeight(const ConvGeometry& g, const GatherProblem<T>& forward, const T* x, const T* grad_y,
               bool exchanged)
        : exchanged_(exchanged), g_(g), plan_(forward.plans.front()), source_size_(forward.source_size),
          x_(x), grad_y_(grad_y), tile_(tiles<T>()), vectors_(outer_vectors<T>(g.group_outputs())),
          width_(vectors_ * tile_.lanes), inputs_(g.group_inputs()), outputs_(g.group_outputs()),
          taps_(volume(g.kernel)), pixels_(plan_.outputs()), blocks_(ceil_div(outputs_, width_)),
          partial_(inputs_ * taps_ * width_), step_(std::min(plan_.axes[2].step, source_size_[2])) {
        chunk_ = std::clamp<Index>(65536 / (inputs_ * step_), 64, kLongestChunk);
        chunks_ = ceil_div(pixels_, chunk_);
        const Index owners = g.groups * blocks_;
        const Index affordable =
            std::max<Index>(1, kPartialBytes / static_cast<Index>(sizeof(Total<T>)) / (partial_ * owners));
        parts_ = std::min({ceil_div(kTasksWanted, owners), affordable, g.batch * chunks_});
    }

    // Bytes of temporary memory of all threads.
    double workspace_bytes(int threads) const {
        const auto totals = static_cast<double>(g_.groups * blocks_ * parts_ * partial_);
        const auto own = static_cast<double>(chunk_ * width_ + partial_);
        return totals * sizeof(Total<T>) + threads * own * sizeof(T);
    }

    void run(T* grad_weight, int threads) const {
        const Index owners = g_.groups * blocks_;
        const Index work = g_.batch * g_.groups * pixels_ * inputs_ * outputs_ * taps_;
        const int workers = worthwhile_threads(work, threads);
        Total<T>* totals = workspace<Total<T>>(Slot::partial, owners * parts_ * partial_);
        Parallel::run(owners * parts_, workers,
                      [&](Index task) { sum_part(task / parts_, task % parts_, totals + task * partial_); });
        Parallel::run(owners, workers, [&](Index owner) {
            Total<T>* total = totals + owner * parts_ * partial_;
            for (Index part = 1; part < parts_; ++part)
                for (Index i = 0; i < partial_; ++i)
                    total[i] += total[part * partial_ + i];
            T* sum = workspace<T>(Slot::results, partial_);
            std::transform(total, total + partial_, sum,
                           [](Total<T> value) { return static_cast<T>(value); });
            const Index group = owner / blocks_, first = owner % blocks_ * width_;
            const Index rows = inputs_ * taps_, columns = std::min(width_, outputs_ - first);
            if (exchanged_) {
                for (Index row = 0; row < rows; ++row)
                    std::copy_n(sum + row * width_, columns,
                                grad_weight + (group * rows + row) * outputs_ + first);
                return;
            }
            tile_.transpose(sum, width_, rows, columns, grad_weight + (group * outputs_ + first) * rows, rows,
                            rows);
        });
    }

private:
    // totals[c][t][width] over the part's share of all chunks of all images.
    void sum_part(Index owner, Index part, Total<T>* totals) const {
        const Index group = owner / blocks_, first = owner % blocks_ * width_;
        const Index plane = volume(source_size_);
        const Index units = g_.batch * chunks_;
        T* turned = workspace<T>(Slot::panels, chunk_ * width_);
        T* sums = workspace<T>(Slot::results, partial_);
        std::vector<Segment> segments;
        std::fill_n(totals, partial_, Total<T>{});
        Index summed = 0; // chunks since `sums` were added to `totals`
        const Index end = units * (part + 1) / parts_;
        for (Index unit = units * part / parts_; unit < end; ++unit) {
            const Index image = unit / chunks_;
            const Range chunk{unit % chunks_ * chunk_, std::min(pixels_, (unit % chunks_ + 1) * chunk_)};
            tile_.transpose(gradients(group, first, unit), pixels_, std::min(width_, outputs_ - first),
                            chunk.size(), turned, width_, width_);
            const T* x = x_ + (image * g_.in_channels + group * inputs_) * plane;
            const T* next_g = unit + 1 == end ? nullptr : gradients(group, first, unit + 1);
            const Index rows = std::min(width_, outputs_ - first),
                        calls = taps_ * ceil_div(inputs_, kRowsPerPass);
            Index t = 0, calls_done = 0;
            plan_.for_each_tap([&](const GatherTap& d, const GatherTap& h, const GatherTap& w) {
                find_segments(chunk, d.offset, h.offset, w.offset, segments);
                OuterProducts<T> call{};
                call.x_stride = plane;
                call.x_step = step_;
                call.g = turned;
                call.segments = segments.data();
                call.segment_count = static_cast<Index>(segments.size());
                call.d_stride = taps_ * width_;
                call.vectors = vectors_;
                call.first = summed == 0;
                for (Index c = 0; c < inputs_ && !(segments.empty() && summed > 0); c += kRowsPerPass) {
                    call.x = x + c * plane;
                    call.d = sums + (c * taps_ + t) * width_;
                    call.rows = static_cast<int>(std::min(kRowsPerPass, inputs_ - c));
                    // The next rows of x, which the first tap reads first, and a share of the next chunk.
                    if (t == 0 && !segments.empty()) {
                        const Index begin = segments.front().x_offset;
                        const Index length = segments.back().x_offset + segments.back().count * step_ - begin;
                        fetch(x + c * plane + begin, plane,
                              {kRowsPerPass, std::min(2 * kRowsPerPass, inputs_ - c)}, length);
                    }
                    if (next_g != nullptr)
                        fetch(next_g, pixels_, {calls_done * rows / calls, (calls_done + 1) * rows / calls},
                              chunk_);
                    ++calls_done;
                    tile_.outer(call);
                }
                ++t;
            });
            if (++summed == kMostSummed || unit + 1 == end) {
                for (Index i = 0; i < partial_; ++i)
                    totals[i] += sums[i];
                summed = 0;
            }
        }
    }

    // grad_y of the first of a block's channels, where a chunk of pixels begins.
    const T* gradients(Index group, Index first, Index unit) const {
        return grad_y_ + (unit / chunks_ * g_.out_channels + group * outputs_ + first) * pixels_ +
               unit % chunks_ * chunk_;
    }

    // Elements [0, length) of some rows into the second-level cache.
    static void fetch(const T* from, Index stride, const Range& rows, Index length) {
        constexpr Index kElements = 64 / static_cast<Index>(sizeof(T)); // of a cache line
        for (Index row = rows.begin; row < rows.end; ++row)
            for (Index i = 0; i < length; i += kElements)
                __builtin_prefetch(from + row * stride + i, 0, 2);
    }

    // The stretches of the chunk's rows on which the tap with these offsets reads inside the input.
    void find_segments(const Range& chunk, Index offset_d, Index offset_h, Index offset_w,
                       std::vector<Segment>& segments) const {
        const auto& [d, h, w] = plan_.axes;
        const Range inside = valid_range(w.outputs, w.step, offset_w, w.source_size);
        segments.clear();
        for (Index row = chunk.begin / w.outputs; row * w.outputs < chunk.end; ++row) {
            const Index sd = row / h.outputs * d.step + offset_d, sh = row % h.outputs * h.step + offset_h;
            if (sd < 0 || sd >= d.source_size || sh < 0 || sh >= h.source_size)
                continue;
            const Index begin = std::max(inside.begin, chunk.begin - row * w.outputs);
            const Index end = std::min(inside.end, chunk.end - row * w.outputs);
            if (begin < end)
                segments.push_back({(sd * h.source_size + sh) * w.source_size + begin * w.step + offset_w,
                                    (row * w.outputs + begin - chunk.begin) * width_, end - begin});
        }
    }

    const bool exchanged_;
    const ConvGeometry& g_;
    const GatherPlan& plan_;
    const Size3 source_size_;
    const T* x_;
    const T* grad_y_;
    const Tiles<T>& tile_;
    const int vectors_;
    const Index width_, inputs_, outputs_, taps_, pixels_, blocks_, partial_;
    // Of x along a row. One beyond the row has no second element to go to, and products with it would
    // overflow.
    const Index step_;
    Index chunk_, chunks_, parts_;
};

// Whether a 1x1 kernel skips pixels, and has no padding under it: then those that it reads are taken
// beforehand.
bool skips_pixels(const ConvGeometry& g) {
    if (volume(g.kernel) != 1 || g.is_pointwise())
        return false;
    for (std::size_t axis = 0; axis < 3; ++axis)
        if (g.pad_low[axis] != 0 || (g.output[axis] - 1) * g.stride[axis] >= g.input[axis])
            return false;
    return true;
}

ConvGeometry without_skipped_pixels(ConvGeometry g) {
    if (skips_pixels(g)) {
        g.input = g.output;
        g.stride = {1, 1, 1};
    }
    return g;
}

template <class T>
struct GradWeightProblem {
    GradWeightProblem(const ConvGeometry& whole, const T* x, const T* grad_y, T* grad_weight)
        : g(without_skipped_pixels(whole)),
          taken(skips_pixels(whole) ? g.batch * g.in_channels * volume(g.input) : 0),
          forward(forward_problem<T>(g, x, nullptr, nullptr, Activation::none, const_cast<T*>(grad_y))),
          grad_weight(grad_weight) {}

    const ConvGeometry g;
    const Index taken; // elements of x that are copied beforehand
    // The forward gather says which elements meet; grad_y stands where its results would.
    GatherProblem<T> forward;
    T* grad_weight;
};

template <class T>
Estimate with_taken(const GradWeightProblem<T>& p, Estimate estimate) {
    estimate.workspace += static_cast<double>(p.taken) * sizeof(T);
    return estimate;
}

// visit(problem, gradient) with the problem as outer products take it: either of x and grad_y may be the one
// that is turned, and of a pointwise convolution it is the smaller.
template <class T, class Visit>
auto by_outer_products(const GradWeightProblem<T>& p, const Visit& visit) {
    const GatherProblem<T>& forward = p.forward;
    if (!p.g.is_pointwise() || p.g.out_channels <= p.g.in_channels || p.g.group_outputs() > kMostExchanged)
        return visit(forward, GradWeight<T>(p.g, forward, forward.source, forward.result, false));
    ConvGeometry exchanged = p.g;
    std::swap(exchanged.in_channels, exchanged.out_channels);
    const GatherProblem<T> backward = forward_problem<T>(exchanged, forward.result, nullptr, nullptr,
                                                         Activation::none, const_cast<T*>(forward.source));
    return visit(backward, GradWeight<T>(exchanged, backward, backward.source, backward.result, true));
}

template <class T>
bool outer_products_apply(const GradWeightProblem<T>&) {
    return true;
}
template <class T>
Estimate estimate_outer_products(const GradWeightProblem<T>& p, int threads) {
    return by_outer_products(p, [&](const GatherProblem<T>& forward, const GradWeight<T>& gradient) {
        return with_taken(p, outer_products_estimate(forward, gradient.workspace_bytes(threads), threads));
    });
}
template <class T>
bool run_outer_products(const GradWeightProblem<T>& p, int threads) {
    by_outer_products(p, [&](const GatherProblem<T>&, const GradWeight<T>& gradient) {
        gradient.run(p.grad_weight, threads);
    });
    return true;
}

template <class T>
bool window_serves(const GradWeightProblem<T>& p) {
    return window_grad_weight_applies(p.forward);
}
template <class T>
Estimate estimate_window(const GradWeightProblem<T>& p, int threads) {
    return with_taken(p, window_grad_weight_estimate(p.forward, threads));
}
template <class T>
bool run_window(const GradWeightProblem<T>& p, int threads) {
    window_grad_weight(p.forward, p.grad_weight, threads);
    return true;
}

template <class T>
bool winograd_serves(const GradWeightProblem<T>& p) {
    return winograd_applies(p.forward);
}
template <class T>
Estimate estimate_winograd(const GradWeightProblem<T>& p, int threads) {
    return winograd_grad_weight_estimate(p.forward, threads);
}
template <class T>
bool run_winograd(const GradWeightProblem<T>& p, int threads) {
    return winograd_grad_weight(p.forward, p.grad_weight, threads);
}

template <class T>
bool depthwise_serves(const GradWeightProblem<T>& p) {
    if constexpr (std::is_floating_point_v<T>)
        return depthwise_grad_weight_applies(p.forward);
    else
        return false;
}
template <class T>
Estimate estimate_depthwise(const GradWeightProblem<T>& p, int threads) {
    return with_taken(p, depthwise_estimate(p.forward, threads));
}
template <class T>
bool run_depthwise(const GradWeightProblem<T>& p, int threads) {
    if constexpr (std::is_floating_point_v<T>)
        depthwise_grad_weight(p.forward, p.grad_weight, threads);
    return true;
}

constexpr const char* kWindowNeeds =
    "few channels in and out of each group (totals of their weights must fit 1 MiB), "
    "and windows and strides of at most 64";

template <class T>
constexpr std::array<Method<GradWeightProblem<T>>, 4> kMethods{{
    {Algorithm::gemm, true, "nothing", outer_products_apply<T>, estimate_outer_products<T>,
     run_outer_products<T>},
    {Algorithm::window, true, kWindowNeeds, window_serves<T>, estimate_window<T>, run_window<T>},
    {Algorithm::depthwise, true, kDepthwiseNeeds, depthwise_serves<T>, estimate_depthwise<T>,
     run_depthwise<T>},
    {Algorithm::winograd, false, kWinogradNeeds, winograd_serves<T>, estimate_winograd<T>, run_winograd<T>},
}};

} // namespace

template <class T>
void conv_grad_weight(const T* x, const T* grad_y, T* grad_weight, const ConvGeometry& g,
                      const Settings& settings) {
    GradWeightProblem<T> problem(g, x, grad_y, grad_weight);
    const auto& chosen = choose(kMethods<T>, problem, settings);
    if (problem.taken > 0) {
        T* taken = workspace<T>(Slot::places, problem.taken);
        take_strided(x, g.batch * g.in_channels, g.input, g.stride, g.output, taken, settings.threads);
        problem.forward.source = taken;
    }
    run(chosen, kMethods<T>, problem, settings);
}

template <class T>
Choice explain_conv_grad_weight(const ConvGeometry& g, const Settings& settings) {
    return explain(kMethods<T>, GradWeightProblem<T>(g, nullptr, nullptr, nullptr), settings);
}

#define INSTANTIATE(T)                                                                            \
    template void conv_grad_weight(const T*, const T*, T*, const ConvGeometry&, const Settings&); \
    template Choice explain_conv_grad_weight<T>(const ConvGeometry&, const Settings&);
FASTCONV_CONV_TYPES(INSTANTIATE)

} // namespace fastconv
