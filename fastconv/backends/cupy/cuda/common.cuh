// What all kernels share. No header of CUDA or C++ is included, so that the compiler library alone builds
// them. They are templates over the element T and the type I of sizes and offsets: int where everything fits,
// else long long.
#pragma once

#ifndef SHARED // a kernel's shared memory, one variable at most
#define SHARED(Type, name) __shared__ Type name
#endif

// The longest running sum: longer ones are sums of such parts, or rounding errors would grow with the length.
constexpr int kChunk = 256;

template <class T>
struct Sum {
    T total = 0, part = 0;
    int terms = 0;

    __device__ void add(T term) {
        part += term;
        if (++terms == kChunk) {
            total += part;
            part = 0;
            terms = 0;
        }
    }
    __device__ T value() const { return total + part; }
};

template <class T>
constexpr bool kFloating = static_cast<T>(0.5) != 0;

// What is neither infinite nor NaN; every whole number is finite.
template <class T>
__device__ bool is_finite(T value) {
    return value - value == 0;
}

template <class I>
__device__ I ceil_div(I a, I b) { // b > 0
    return a / b + (a % b > 0);
}

template <class I>
__device__ I floor_div(I a, I b) { // b > 0
    return a / b - (a % b < 0);
}

template <class I>
__device__ I least(I a, I b) {
    return b < a ? b : a;
}

template <class I>
__device__ I most(I a, I b) {
    return a < b ? b : a;
}

template <class I>
struct Unsigned;
template <>
struct Unsigned<int> {
    using Type = unsigned;
};
template <>
struct Unsigned<long long> {
    using Type = unsigned long long;
};

// Whether 0 <= position < size.
template <class I>
__device__ bool is_inside(I position, I size) {
    using U = typename Unsigned<I>::Type;
    return static_cast<U>(position) < static_cast<U>(size);
}

template <class I>
__device__ I volume(const I (&size)[3]) {
    return size[0] * size[1] * size[2];
}

// The number of this thread among those of all blocks.
template <class I>
__device__ I thread_number() {
    return static_cast<I>(blockIdx.x) * static_cast<I>(blockDim.x) + static_cast<I>(threadIdx.x);
}

// The activations of fastconv/activations.py, numbered in their order.
enum Activation { kNone, kRelu, kRelu6, kLeakyRelu, kElu, kSigmoid, kTanh, kSilu };

// Whether an activation is a comparison and a product at most.
__device__ inline bool is_cheap(int activation) {
    return activation <= kLeakyRelu;
}

template <class T>
__device__ T cheaply_activated(T value, int activation) {
    if (activation == kNone || activation > kLeakyRelu)
        return value;
    if constexpr (kFloating<T>)
        if (activation == kLeakyRelu)
            return value > 0 ? value : static_cast<T>(0.01) * value;
    const T low = value < 0 ? 0 : value; // NaN stays
    return activation == kRelu6 && low > 6 ? 6 : low;
}

template <class T>
__device__ T activated(T value, int activation) {
    if constexpr (kFloating<T>) {
        switch (activation) {
        case kElu:
            return value > 0 ? value : expm1(value);
        case kTanh:
            return tanh(value);
        case kSigmoid:
        case kSilu: {
            const T e = exp(value < 0 ? value : -value); // never overflows; NaN stays
            const T sigmoid = (value < 0 ? e : 1) / (1 + e);
            return activation == kSigmoid ? sigmoid : value * sigmoid;
        }
        }
    }
    return cheaply_activated(value, activation);
}
