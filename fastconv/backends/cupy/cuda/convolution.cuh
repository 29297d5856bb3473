// One pass of a convolution, and where its elements lie. A pass computes
//
//     result[n, m, out_start + o*out_step] = sum over c, t of weight[m, c, t] * source[n, c, o*step + offset
//     + t*tap_step]
//
// on each axis, for the channels of each group. The forward convolution is one pass; the input's gradient is
// one for every phase of the stride, in which each result has the same taps, so that nothing is multiplied by
// zeros between strides. The gradient of the weights is the sum over n and o of the same products, with the
// results' gradient in the place of the weights.
#pragma once

#include "common.cuh"

template <class I>
struct Convolution {
    I batch, groups;
    I sources, results; // channels of a group
    I source_size[3];   // of a plane
    I result_size[3];   // of a plane
    I outputs[3];       // results of this pass
    I out_start[3], out_step[3];
    I step[3], offset[3];
    I taps[3], tap_step[3];
    I kernel_start[3]; // the first tap's position in the kernel, along the axis
    I kernel_step[3];  // from one tap's position in the whole kernel to the next along the axis
    I divisor[3];      // of source positions: a tap counts where it divides (conv_direct only)
    I weight_group, weight_result,
        weight_source;    // distances between weights of neighbouring groups and channels
    I parts, part_length; // the sum is made in so many parts, each of so many terms
    I activation;
};

// A factor of products: its place in a plane of sources, as far as it knows it, and the offsets of elements.
template <class I>
struct Point {
    I place[3];
    I source; // offset into the sources
    I other;  // offset into weights (of a tap) or results (of a pixel)
};

template <class I>
__device__ I source_offset(const Convolution<I>& p, const I (&place)[3]) {
    return (place[0] * p.source_size[1] + place[1]) * p.source_size[2] + place[2];
}

// A source channel and a tap of its window.
template <class I>
__device__ Point<I> tap_point(const Convolution<I>& p, I k) {
    const I w = k % p.taps[2], rest = k / p.taps[2];
    const I h = rest % p.taps[1], rest2 = rest / p.taps[1];
    const I d = rest2 % p.taps[0], channel = rest2 / p.taps[0];
    Point<I> point{{d * p.tap_step[0], h * p.tap_step[1], w * p.tap_step[2]}, 0, 0};
    point.source = channel * volume(p.source_size) + source_offset(p, point.place);
    point.other = channel * p.weight_source + p.kernel_start[0] + d * p.kernel_step[0] + p.kernel_start[1] +
                  h * p.kernel_step[1] + p.kernel_start[2] + w * p.kernel_step[2];
    return point;
}

// An image and a place in its result; what its first tap reads may lie outside.
template <class I>
__device__ Point<I> pixel_point(const Convolution<I>& p, I j) {
    const I w = j % p.outputs[2], rest = j / p.outputs[2];
    const I h = rest % p.outputs[1], rest2 = rest / p.outputs[1];
    const I d = rest2 % p.outputs[0], image = rest2 / p.outputs[0];
    Point<I> point{
        {d * p.step[0] + p.offset[0], h * p.step[1] + p.offset[1], w * p.step[2] + p.offset[2]}, 0, 0};
    point.source = image * p.groups * p.sources * volume(p.source_size) + source_offset(p, point.place);
    const I rows =
        (p.out_start[0] + d * p.out_step[0]) * p.result_size[1] + p.out_start[1] + h * p.out_step[1];
    point.other = image * p.groups * p.results * volume(p.result_size) + rows * p.result_size[2] +
                  p.out_start[2] + w * p.out_step[2];
    return point;
}

// Whether a tap of a pixel's window lies in the source, in which order they ever come.
template <class I>
__device__ bool meet(const Convolution<I>& p, const Point<I>& a, const Point<I>& b) {
    return is_inside(a.place[0] + b.place[0], p.source_size[0]) &&
           is_inside(a.place[1] + b.place[1], p.source_size[1]) &&
           is_inside(a.place[2] + b.place[2], p.source_size[2]);
}

// The pass as a matrix product: `left` has a row for every channel of results and a column for every term of
// the sums, the gathered sources a row for every term and a column for every other index of the result.
template <class I, bool kGradWeight>
struct Product {
    const Convolution<I>& p;

    __device__ I pixels() const { return p.batch * volume(p.outputs); }
    __device__ I taps() const { return p.sources * volume(p.taps); }
    __device__ I terms() const { return kGradWeight ? pixels() : taps(); }
    __device__ I columns() const { return kGradWeight ? taps() : pixels(); }
    __device__ Point<I> term(I k) const { return kGradWeight ? pixel_point(p, k) : tap_point(p, k); }
    __device__ Point<I> column(I j) const { return kGradWeight ? tap_point(p, j) : pixel_point(p, j); }

    __device__ I pixel_group(I group, I m) const { return (group * p.results + m) * volume(p.result_size); }
    __device__ I weight_group(I group, I m) const { return group * p.weight_group + m * p.weight_result; }
    __device__ I source(I group) const { return group * p.sources * volume(p.source_size); }
    __device__ I left(I group, I m) const {
        return kGradWeight ? pixel_group(group, m) : weight_group(group, m);
    }
    __device__ I result(I group, I m) const {
        return kGradWeight ? weight_group(group, m) : pixel_group(group, m);
    }

    // One element without the terms that lie outside the source, which a product with zeros would spoil where
    // the other factor is not finite.
    template <class T>
    __device__ T element(const T* sources, const T* left, const Point<I>& column, I begin, I end) const {
        Sum<T> sum;
        for (I k = begin; k < end; ++k) {
            const Point<I> at = term(k);
            if (meet(p, at, column))
                sum.add(left[at.other] * sources[column.source + at.source]);
        }
        return sum.value();
    }
};
