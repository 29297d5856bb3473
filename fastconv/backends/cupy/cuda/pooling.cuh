// The windows of a pooling, as fastconv/geometry.py defines them.
#pragma once

#include "common.cuh"

template <class I>
struct Pooling {
    I planes;
    I input[3], output[3];
    I kernel[3], stride[3], dilation[3];
    I pad_low[3], pad_high[3];
    I adaptive, count_include_pad;
    I divisor_override; // 0: none
};

// Of one window of an axis: its first tap inside the input, how many taps lie inside, and its divisor length.
template <class I>
struct Window {
    I first, inside, length;
};

template <class I>
__device__ Window<I> window_of(const Pooling<I>& p, int axis, I i) {
    const I size = p.input[axis];
    if (p.adaptive) {
        const I outputs = p.output[axis], first = i * size / outputs,
                count = ceil_div((i + 1) * size, outputs) - first;
        return {first, count, count};
    }
    const I start = i * p.stride[axis] - p.pad_low[axis], dilation = p.dilation[axis];
    const I end = size + p.pad_high[axis];
    const I skipped = start < 0 ? ceil_div(-start, dilation) : 0;
    const I inside = least(p.kernel[axis], start < size ? ceil_div(size - start, dilation) : 0);
    const I length = least(p.kernel[axis], start < end ? ceil_div(end - start, dilation) : 0);
    return {start + skipped * dilation, most<I>(0, inside - skipped), length};
}

// What the sum of a window is divided by.
template <class T, class I>
__device__ T divisor_of(const Pooling<I>& p, const Window<I>& d, const Window<I>& h, const Window<I>& w) {
    if (p.divisor_override)
        return static_cast<T>(p.divisor_override);
    const bool padding = p.count_include_pad;
    const T count = static_cast<T>(padding ? d.length : d.inside) *
                    static_cast<T>(padding ? h.length : h.inside) *
                    static_cast<T>(padding ? w.length : w.inside);
    return count > 1 ? count : 1; // where nothing would be divided
}

// A plane and a place in it; elements are numbered as they lie in memory.
template <class I>
struct Place {
    I plane, at[3];

    __device__ Place(I number, const I (&size)[3])
        : plane(number / size[2] / size[1] / size[0]),
          at{number / size[2] / size[1] % size[0], number / size[2] % size[1], number % size[2]} {}
};
