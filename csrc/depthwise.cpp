// Depthwise convolution: every result channel has one source channel, so there is nothing to multiply as
// matrices and the work is bound by memory. A task copies a zero-padded window of its source plane, split by
// the step of the gather (even and odd columns for step 2), so that every tap reads neighbouring elements; a
// row of results is then a weighted sum of rows of the window, and a row of the weight gradient a product of
// rows.
#include "activation.h"
#include "gather.h"
#include "kernels.h"
#include "parallel.h"

namespace fastconv {
namespace {

constexpr Index kWindowBytes = 96 << 10; // rows of a window are shared by many taps: keep them close
constexpr Index kLargestExtent = 64; // of a dilated kernel or a step; beyond, windows would be mostly margin
constexpr Index kWorkPerThread = 1 << 15;

Index smallest_offset(const GatherAxis& a) {
    Index smallest = a.taps.front().offset;
    for (const GatherTap& tap : a.taps)
        smallest = std::min(smallest, tap.offset);
    return smallest;
}

Index extent(const GatherAxis& a) {
    Index largest = a.taps.front().offset;
    for (const GatherTap& tap : a.taps)
        largest = std::max(largest, tap.offset);
    return largest - smallest_offset(a) + 1;
}

bool small_windows(const GatherPlan& plan) {
    for (const GatherAxis& a : plan.axes)
        if (a.step > kLargestExtent || extent(a) > kLargestExtent)
            return false;
    return true;
}

// The window that a block of results reads: [tap slices][rows][step][row_length], zero where the source ends.
template <class T>
class PaddedWindow {
public:
    explicit PaddedWindow(const GatherPlan& plan)
        : plan_(plan), lanes_(tiles<T>().lanes),
          origin_{smallest_offset(plan.axes[0]), smallest_offset(plan.axes[1]),
                  smallest_offset(plan.axes[2])} {
        const auto& [d, h, w] = plan.axes;
        slices_ = static_cast<Index>(d.taps.size());
        columns = std::min<Index>(w.outputs, 1024);
        row_length_ = round_up(columns + ceil_div(extent(w), w.step), lanes_) + lanes_;
        const Index row_bytes = slices_ * w.step * row_length_ * static_cast<Index>(sizeof(T));
        rows = std::clamp<Index>((kWindowBytes / row_bytes - extent(h)) / h.step, 1, h.outputs);
        window_rows_ = (rows - 1) * h.step + extent(h);
        for (Index i = 0; i < slices_; ++i)
            for (const GatherTap& th : h.taps)
                for (const GatherTap& tw : w.taps) {
                    const Index column = tw.offset - origin_[2];
                    offsets.push_back(
                        ((i * window_rows_ + th.offset - origin_[1]) * w.step + column % w.step) *
                            row_length_ +
                        column / w.step);
                }
        elements = slices_ * window_rows_ * w.step * row_length_ + 4 * lanes_;
        row_stride = h.step * w.step * row_length_;
    }

    // The taps' weights in the order of `offsets`.
    std::vector<T> ordered(const T* weight, const Size3& kernel) const {
        std::vector<T> out;
        for (const GatherTap& d : plan_.axes[0].taps)
            for (const GatherTap& h : plan_.axes[1].taps)
                for (const GatherTap& w : plan_.axes[2].taps)
                    out.push_back(weight[(d.kernel_position * kernel[1] + h.kernel_position) * kernel[2] +
                                         w.kernel_position]);
        return out;
    }

    // Fills `window` for the results from (jd, jh, jw) on.
    void copy(const T* plane, Index jd, Index jh, Index jw, T* window) const {
        const auto& [d, h, w] = plan_.axes;
        const Tiles<T>& tile = tiles<T>();
        const Index slice_elements = window_rows_ * w.step * row_length_;
        for (Index i = 0; i < slices_; ++i) {
            const Index sd = jd * d.step + d.taps[i].offset;
            T* slice = window + i * slice_elements;
            const Index top = jh * h.step + origin_[1];
            Range inside = valid_range(window_rows_, 1, top, h.source_size);
            if (sd < 0 || sd >= d.source_size)
                inside = {0, 0};
            if (inside.size() == 0) {
                std::fill_n(slice, slice_elements, T{});
                continue;
            }
            const Index row_elements = w.step * row_length_;
            std::fill_n(slice, inside.begin * row_elements, T{});
            std::fill_n(slice + inside.end * row_elements, (window_rows_ - inside.end) * row_elements, T{});
            const T* from = plane + (sd * h.source_size + top + inside.begin) * w.source_size;
            for (Index part = 0; part < w.step; ++part)
                for (Index column = 0; column < row_length_; column += lanes_) {
                    const Index count = std::min(lanes_, row_length_ - column);
                    const Index start = jw * w.step + origin_[2] + part + column * w.step;
                    const Range valid = valid_range(count, w.step, start, w.source_size);
                    const T* first = valid.size() > 0 ? from + start + valid.begin * w.step : from;
                    tile.pack_run(first, w.source_size, w.step,
                                  slice + inside.begin * row_elements + part * row_length_ + column,
                                  row_elements, inside.size(), static_cast<int>(valid.begin),
                                  static_cast<int>(valid.end), static_cast<int>(count));
                }
        }
    }

    Index rows, columns;        // results of a block
    Index elements, row_stride; // of the window; from one row of results to the next
    std::vector<Index> offsets; // of the taps

private:
    const GatherPlan& plan_;
    const Index lanes_;
    const Size3 origin_;
    Index slices_, window_rows_, row_length_;
};

// visit(jd, jh, jw, rows, columns) for each block of a plan's results.
template <class T, class Visit>
void for_each_block(const GatherPlan& plan, const PaddedWindow<T>& window, const Visit& visit) {
    const auto& [d, h, w] = plan.axes;
    for (Index jd = 0; jd < d.outputs; ++jd)
        for (Index jh = 0; jh < h.outputs; jh += window.rows)
            for (Index jw = 0; jw < w.outputs; jw += window.columns)
                visit(jd, jh, jw, std::min(window.rows, h.outputs - jh),
                      std::min(window.columns, w.outputs - jw));
}

template <class T>
void weighted_plane(const GatherProblem<T>& p, const GatherPlan& plan, const PaddedWindow<T>& window,
                    const T* source, const T* weight, T bias, T* result) {
    const auto& [d, h, w] = plan.axes;
    const Tiles<T>& tile = tiles<T>();
    const std::vector<T> weights = window.ordered(weight, p.kernel);
    const Index taps = static_cast<Index>(weights.size());
    T* memory = workspace<T>(Slot::window, window.elements);
    T* staged = workspace<T>(Slot::staging, window.columns);
    for_each_block(plan, window, [&](Index jd, Index jh, Index jw, Index rows, Index columns) {
        window.copy(source, jd, jh, jw, memory);
        for (Index r = 0; r < rows; ++r) {
            T* out =
                result +
                ((d.out_start + jd * d.out_step) * p.result_size[1] + h.out_start + (jh + r) * h.out_step) *
                    p.result_size[2] +
                w.out_start + jw * w.out_step;
            T* row = w.out_step == 1 ? out : staged;
            tile.weighted_rows(memory + r * window.row_stride, window.offsets.data(), weights.data(), taps,
                               row, columns, bias, p.activation);
            if (!in_tile(p.activation))
                for (Index j = 0; j < columns; ++j)
                    row[j] = activated(row[j], p.activation);
            if (row == staged)
                for (Index j = 0; j < columns; ++j)
                    out[j * w.out_step] = staged[j];
        }
    });
}

} // namespace

template <class T>
bool depthwise_applies(const GatherProblem<T>& p) {
    if (p.sources != 1 || p.results != 1 || p.plans.size() > kLargestExtent)
        return false;
    return std::all_of(p.plans.begin(), p.plans.end(), small_windows);
}

template <class T>
void gather_depthwise(const GatherProblem<T>& p, int threads) {
    std::vector<PaddedWindow<T>> windows;
    Index work = 0;
    for (const GatherPlan& plan : p.plans) {
        windows.emplace_back(plan);
        work += plan.outputs() * plan.taps();
    }
    const int workers =
        static_cast<int>(std::min<Index>(threads, 1 + work * p.batch * p.groups / kWorkPerThread));
    const Index source_plane = volume(p.source_size), result_plane = volume(p.result_size);
    // A task is one channel of one image, or several where planes are tiny.
    const Index planes = p.batch * p.groups, per_task = std::clamp<Index>(4096 / result_plane, 1, 64);
    Parallel::run(ceil_div(planes, per_task), workers, [&](Index task, int) {
        for (Index plane = task * per_task; plane < std::min(planes, (task + 1) * per_task); ++plane) {
            const Index channel = plane % p.groups;
            for (std::size_t i = 0; i < p.plans.size(); ++i)
                weighted_plane(p, p.plans[i], windows[i], p.source + plane * source_plane,
                               p.weight + channel * p.group_stride, p.bias == nullptr ? T{} : p.bias[channel],
                               p.result + plane * result_plane);
        }
    });
}

template <class T>
void depthwise_grad_weight(const GatherProblem<T>& p, T* grad_weight, int threads) {
    const GatherPlan& plan = p.plans.front();
    const PaddedWindow<T> window(plan);
    const Tiles<T>& tile = tiles<T>();
    const Index taps = plan.taps(), source_plane = volume(p.source_size),
                result_plane = volume(p.result_size);
    const Index work = p.batch * p.groups * plan.outputs() * taps;
    const int workers = static_cast<int>(std::min<Index>(threads, 1 + work / kWorkPerThread));
    Parallel::run(p.groups, workers, [&](Index channel, int) {
        T* memory = workspace<T>(Slot::window, window.elements);
        T* sums = workspace<T>(Slot::partial, taps * tile.lanes);
        std::fill_n(sums, taps * tile.lanes, T{});
        for (Index n = 0; n < p.batch; ++n) {
            const T* x = p.source + (n * p.groups + channel) * source_plane;
            const T* grad_y = p.result + (n * p.groups + channel) * result_plane;
            for_each_block(plan, window, [&](Index jd, Index jh, Index jw, Index rows, Index columns) {
                window.copy(x, jd, jh, jw, memory);
                const T* g = grad_y + (jd * p.result_size[1] + jh) * p.result_size[2] + jw;
                tile.row_products(g, p.result_size[2], memory, window.row_stride, window.offsets.data(), taps,
                                  rows, columns, sums);
            });
        }
        for (Index t = 0; t < taps; ++t) {
            T total{};
            for (int lane = 0; lane < tile.lanes; ++lane)
                total += sums[t * tile.lanes + lane];
            grad_weight[channel * taps + t] = total;
        }
    });
}

#define INSTANTIATE(T)                                            \
    template bool depthwise_applies(const GatherProblem<T>&);     \
    template void gather_depthwise(const GatherProblem<T>&, int); \
    template void depthwise_grad_weight(const GatherProblem<T>&, T*, int);
FASTCONV_CONV_TYPES(INSTANTIATE)

} // namespace fastconv
