// Kernels with one fault each, which the emulator must tell (test_cuda.py).
#pragma once

struct Numbers {
    int of[64];
};

// Without a barrier in between.
template <class I>
__global__ void reads_too_early(I* out) {
    SHARED(Numbers, numbers);
    numbers.of[threadIdx.x] = threadIdx.x;
    out[threadIdx.x] = numbers.of[63 - threadIdx.x];
}

template <class I>
__global__ void half_at_a_barrier(I* out) {
    if (threadIdx.x < 32)
        __syncthreads();
    out[threadIdx.x] = 1;
}

template <class I>
__global__ void two_barriers(I* out) {
    if (threadIdx.x < 32)
        __syncthreads();
    else
        __syncthreads();
    out[threadIdx.x] = 1;
}

template <class I>
__global__ void half_a_warp(I* out) {
    if (threadIdx.x < 16)
        out[threadIdx.x] = __ballot_sync(0xffffffff, true);
}

template <class I>
__global__ void two_exchanges(I* out) {
    out[threadIdx.x] = threadIdx.x % 2 ? __ballot_sync(0xffffffff, true) : __match_any_sync(0xffffffff, 1);
}
