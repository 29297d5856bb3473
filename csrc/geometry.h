// The sizes of a call, as fastconv/geometry.py settles them: 64-bit, always three spatial axes (depth,
// height, width).
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

namespace fastconv {

using Index = std::int64_t;
using Size3 = std::array<Index, 3>;

inline Index volume(const Size3& size) {
    return size[0] * size[1] * size[2];
}
inline Index ceil_div(Index a, Index b) {
    return a / b + (a % b > 0);
} // b > 0
inline Index floor_div(Index a, Index b) {
    return a / b - (a % b < 0);
} // b > 0
inline Index round_up(Index a, Index b) {
    return ceil_div(a, b) * b;
}

// y[n,k,o] = sum over c, t of weight[k,c,t] * x[n,c, o*stride - pad_low + t*dilation]
struct ConvGeometry {
    Index batch, in_channels, out_channels, groups;
    Size3 input, output, kernel, stride, dilation, pad_low;

    Index group_inputs() const { return in_channels / groups; }
    Index group_outputs() const { return out_channels / groups; }
    bool is_pointwise() const {
        return volume(kernel) == 1 && stride == Size3{1, 1, 1} && pad_low == Size3{0, 0, 0} &&
               input == output;
    }
};

struct PoolGeometry {
    Index planes;
    Size3 input, output, kernel, stride, dilation, pad_low, pad_high;
    bool adaptive, count_include_pad;
    Index divisor_override; // 0: none
};

// A half-open range of indices.
struct Range {
    Index begin, end;

    Index size() const { return end > begin ? end - begin : 0; }
};

// The j in [0, count) for which j*step + offset lies in [0, size).
inline Range valid_range(Index count, Index step, Index offset, Index size) {
    const Index first = offset >= 0 ? 0 : ceil_div(-offset, step);
    const Index last = offset >= size ? 0 : floor_div(size - 1 - offset, step) + 1;
    return {std::min(first, count), std::max(std::min(first, count), std::min(last, count))};
}

// For each window of one axis: its first tap inside the input, how many taps lie inside, and its divisor
// length.
struct Window {
    Index first, inside, length;
};

// The twin of _axis_windows in geometry.py: windows may be far larger than the input, so they are clipped by
// arithmetic.
inline std::vector<Window> axis_windows(const PoolGeometry& g, int axis) {
    std::vector<Window> windows(static_cast<std::size_t>(g.output[axis]));
    const Index size = g.input[axis], outputs = g.output[axis];
    for (Index i = 0; i < outputs; ++i) {
        if (g.adaptive) {
            const Index first = i * size / outputs, end = ceil_div((i + 1) * size, outputs);
            windows[i] = {first, end - first, end - first};
            continue;
        }
        const Index start = i * g.stride[axis] - g.pad_low[axis], dilation = g.dilation[axis],
                    kernel = g.kernel[axis];
        const Index skipped = start < 0 ? ceil_div(-start, dilation) : 0;
        const Index inside = std::min(kernel, start < size ? ceil_div(size - start, dilation) : 0);
        const Index end = size + g.pad_high[axis];
        const Index length = std::min(kernel, start < end ? ceil_div(end - start, dilation) : 0);
        windows[i] = {start + skipped * dilation, std::max<Index>(0, inside - skipped), length};
    }
    return windows;
}

} // namespace fastconv
