#pragma once

#include "pooling.cuh"

// The largest element of each window, one to a thread: the first of equals wins, NaN wins over all, the last
// NaN over others. Indices may be null; `lowest` is the maximum of no element.
template <class T, class I>
__global__ void __launch_bounds__(256, 1)
    max_pool(const Pooling<I> p, const T lowest, const T* x, T* y, long long* indices) {
    const I number = thread_number<I>();
    if (number >= p.planes * volume(p.output))
        return;
    const Place<I> place(number, p.output);
    const Window<I> depths = window_of(p, 0, place.at[0]), rows = window_of(p, 1, place.at[1]),
                    columns = window_of(p, 2, place.at[2]);
    const T* const plane = x + place.plane * volume(p.input);
    T best = lowest;
    I where = -1;
    for (I d = 0; d < depths.inside; ++d)
        for (I h = 0; h < rows.inside; ++h) {
            const I row = (depths.first + d * p.dilation[0]) * p.input[1] + rows.first + h * p.dilation[1];
            for (I w = 0; w < columns.inside; ++w) {
                const I at = row * p.input[2] + columns.first + w * p.dilation[2];
                const T value = plane[at];
                if (where < 0 || value > best || value != value) {
                    best = value;
                    where = at;
                }
            }
        }
    y[number] = best;
    if (indices)
        indices[number] = where;
}

constexpr unsigned kWarp = 0xffffffff;

// grad_x[indices[i]] += grad_y[i] in each plane. Results belong to warps: each looks at all indices of its
// plane, 32 at a time, and adds to its own part of the plane alone, so that no atomic addition is needed.
// Lanes that meet in one element add one after the other in their order. `bad` becomes the first index
// outside the plane, where there is one.
template <class T, class I>
__global__ void __launch_bounds__(256, 1)
    max_pool_grad_input(const I planes, const I plane_size, const I pooled, const I parts, const T* grad_y,
                        const long long* indices, T* grad_x, unsigned long long* bad) {
    const I warp = thread_number<I>() / 32;
    if (warp >= planes * parts)
        return;
    const int lane = threadIdx.x % 32;
    const I plane = warp / parts, part = warp % parts, length = ceil_div(plane_size, parts);
    const I begin = part * length, size = most<I>(0, least(length, plane_size - begin));
    T* const target = grad_x + plane * plane_size + begin;
    for (I i = lane; i < size; i += 32)
        target[i] = 0;
    __syncwarp();
    for (I first = 0; first < pooled; first += 32) {
        const I i = plane * pooled + first + lane;
        const long long index = first + lane < pooled ? indices[i] : -1;
        if (part == 0 && (index < -1 || index >= plane_size))
            atomicMin(bad, static_cast<unsigned long long>(i));
        const bool own = index >= begin && index < begin + size;
        const unsigned owners = __ballot_sync(kWarp, own);
        if (owners == 0)
            continue;
        const T value = own ? grad_y[i] : T(0);
        const unsigned same = __match_any_sync(kWarp, own ? index : -1ll) & owners;
        const int turn = own ? __popc(same & ((1u << lane) - 1)) : 32;
        for (int now = 0; __any_sync(kWarp, own && turn >= now); ++now) {
            if (turn == now)
                target[index - begin] += value;
            __syncwarp();
        }
    }
}
