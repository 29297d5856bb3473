#pragma once

#include "pooling.cuh"

// The sum of each window divided by its divisor, one to a thread.
template <class T, class I>
__global__ void __launch_bounds__(256, 1) avg_pool(const Pooling<I> p, const T* x, T* y) {
    const I number = thread_number<I>();
    if (number >= p.planes * volume(p.output))
        return;
    const Place<I> place(number, p.output);
    const Window<I> depths = window_of(p, 0, place.at[0]), rows = window_of(p, 1, place.at[1]),
                    columns = window_of(p, 2, place.at[2]);
    const T* const plane = x + place.plane * volume(p.input);
    Sum<T> sum;
    for (I d = 0; d < depths.inside; ++d)
        for (I h = 0; h < rows.inside; ++h) {
            const I row = (depths.first + d * p.dilation[0]) * p.input[1] + rows.first + h * p.dilation[1];
            for (I w = 0; w < columns.inside; ++w)
                sum.add(plane[row * p.input[2] + columns.first + w * p.dilation[2]]);
        }
    y[number] = sum.value() / divisor_of<T>(p, depths, rows, columns);
}

// The windows of an axis that hold element i, and others between them: [first, last].
template <class I>
struct Holders {
    I first, last;
};

template <class I>
__device__ Holders<I> holders_of(const Pooling<I>& p, int axis, I i) {
    const I size = p.input[axis], outputs = p.output[axis];
    if (p.adaptive) // floor(o*size/outputs) <= i < ceil((o+1)*size/outputs)
        return {i * outputs / size, ceil_div((i + 1) * outputs, size) - 1};
    const I position = i + p.pad_low[axis], reach = (p.kernel[axis] - 1) * p.dilation[axis];
    return {most<I>(0, ceil_div(position - reach, p.stride[axis])),
            least<I>(outputs - 1, position / p.stride[axis])};
}

// Whether window o of an axis has element i among its taps.
template <class I>
__device__ bool holds(const Pooling<I>& p, int axis, I o, I i) {
    return p.adaptive || (i + p.pad_low[axis] - o * p.stride[axis]) % p.dilation[axis] == 0;
}

// The adjoint: every element gathers its shares from the windows that hold it.
template <class T, class I>
__global__ void __launch_bounds__(256, 1)
    avg_pool_grad_input(const Pooling<I> p, const T* grad_y, T* grad_x) {
    const I number = thread_number<I>();
    if (number >= p.planes * volume(p.input))
        return;
    const Place<I> place(number, p.input);
    const Holders<I> depths = holders_of(p, 0, place.at[0]), rows = holders_of(p, 1, place.at[1]),
                     columns = holders_of(p, 2, place.at[2]);
    const T* const plane = grad_y + place.plane * volume(p.output);
    Sum<T> sum;
    for (I d = depths.first; d <= depths.last; ++d) {
        if (!holds(p, 0, d, place.at[0]))
            continue;
        const Window<I> depth = window_of(p, 0, d);
        for (I h = rows.first; h <= rows.last; ++h) {
            if (!holds(p, 1, h, place.at[1]))
                continue;
            const Window<I> row = window_of(p, 1, h);
            for (I w = columns.first; w <= columns.last; ++w) {
                if (!holds(p, 2, w, place.at[2]))
                    continue;
                const T share = plane[(d * p.output[1] + h) * p.output[2] + w];
                sum.add(share / divisor_of<T>(p, depth, row, window_of(p, 2, w)));
            }
        }
    }
    grad_x[number] = sum.value();
}
