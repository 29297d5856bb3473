// Convolution by its definition, one result to a thread (or one weight to a block): for groups of few
// results, whose products are too small for panels, depthwise layers above all. No tap outside the source
// takes part.
#pragma once

#include "convolution.cuh"

// A pass whose positions have divisors serves all phases of a stride at once.
template <class T, class I>
__global__ void __launch_bounds__(256, 1)
    conv_direct(const Convolution<I> p, const T* sources, const T* weights, const T* bias, T* results) {
    // Results are numbered as they lie in memory, so that neighbouring threads read and write neighbours.
    const I plane = volume(p.outputs), number = thread_number<I>();
    if (number >= p.batch * p.groups * p.results * plane)
        return;
    const I channels = p.groups * p.results, image = number / plane / channels,
            channel = number / plane % channels;
    const I group = channel / p.results;
    const Point<I> pixel = pixel_point(p, image * plane + number % plane);
    const T* const source = sources + (image * p.groups + group) * p.sources * volume(p.source_size);
    const T* weight = weights + group * p.weight_group + channel % p.results * p.weight_result +
                      p.kernel_start[0] + p.kernel_start[1] + p.kernel_start[2];

    Sum<T> sum;
    for (I d = 0; d < p.taps[0]; ++d) {
        const I depth = pixel.place[0] + d * p.tap_step[0];
        if (depth % p.divisor[0] != 0 || !is_inside(depth / p.divisor[0], p.source_size[0]))
            continue;
        for (I h = 0; h < p.taps[1]; ++h) {
            const I row = pixel.place[1] + h * p.tap_step[1];
            if (row % p.divisor[1] != 0 || !is_inside(row / p.divisor[1], p.source_size[1]))
                continue;
            for (I w = 0; w < p.taps[2]; ++w) {
                const I column = pixel.place[2] + w * p.tap_step[2];
                if (column % p.divisor[2] != 0 || !is_inside(column / p.divisor[2], p.source_size[2]))
                    continue;
                const I place[3] = {depth / p.divisor[0], row / p.divisor[1], column / p.divisor[2]};
                const T* x = source + source_offset(p, place);
                const T* factor = weight + d * p.kernel_step[0] + h * p.kernel_step[1] + w * p.kernel_step[2];
                for (I c = 0; c < p.sources; ++c)
                    sum.add(factor[c * p.weight_source] * x[c * volume(p.source_size)]);
            }
        }
    }
    const T value = bias ? sum.value() + bias[channel] : sum.value();
    results[channel * volume(p.result_size) + pixel.other] = activated(value, p.activation);
}

// The gradient of a weight: a part of its sum to a block, whose threads add every 256th term.
template <class T, class I>
__global__ void __launch_bounds__(256, 1)
    conv_direct_grad_weight(const Convolution<I> p, const T* x, const T* grad_y, T* grad_weight) {
    struct Sums {
        T of[256];
    };
    SHARED(Sums, sums);
    const Product<I, true> product{p};
    const I columns = product.columns(), size = p.groups * p.results * columns;
    const I weight = static_cast<I>(blockIdx.x) % size, part = static_cast<I>(blockIdx.x) / size;
    const I channel = weight / columns, group = channel / p.results;
    const Point<I> tap = product.column(weight % columns);
    const T* const sources = x + product.source(group);
    const T* const left = grad_y + product.left(0, channel);
    const I begin = part * p.part_length, end = least(begin + p.part_length, product.terms());

    Sum<T> sum;
    for (I k = begin + threadIdx.x; k < end; k += 256) {
        const Point<I> pixel = product.term(k);
        if (meet(p, pixel, tap))
            sum.add(left[pixel.other] * sources[pixel.source + tap.source]);
    }
    sums.of[threadIdx.x] = sum.value();
    for (unsigned half = 128; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half)
            sums.of[threadIdx.x] += sums.of[threadIdx.x + half];
    }
    if (threadIdx.x == 0)
        grad_weight[part * size + weight] = sums.of[0];
}
