// The activations that are not a vector instruction or two: applied to a tile right after it was stored, in
// cache.
#pragma once

#include <cmath>
#include <type_traits>

#include "tiles/tiles.h"

namespace fastconv {

inline bool in_tile(Activation activation) {
    return activation <= Activation::leaky_relu;
}

// Every activation of fastconv/activations.py, one element at a time.
template <class T>
T activated(T value, Activation activation) {
    if constexpr (std::is_integral_v<T>) {
        if (activation == Activation::none)
            return value;
        const T low = value < 0 ? 0 : value;
        return activation == Activation::relu6 && low > 6 ? 6 : low;
    } else {
        const auto sigmoid = [](T v) {
            const T e = std::exp(-std::abs(v)); // never overflows
            return (v >= 0 ? T{1} : e) / (1 + e);
        };
        switch (activation) {
        case Activation::none:
            return value;
        case Activation::relu:
            return value < 0 ? 0 : value;
        case Activation::relu6:
            return value < 0 ? 0 : value > 6 ? 6 : value;
        case Activation::leaky_relu:
            return value > 0 ? value : static_cast<T>(0.01) * value;
        case Activation::elu:
            return value > 0 ? value : std::expm1(value);
        case Activation::sigmoid:
            return std::isnan(value) ? value : sigmoid(value);
        case Activation::tanh:
            return std::tanh(value);
        case Activation::silu:
            return std::isnan(value) ? value : value * sigmoid(value);
        }
        return value;
    }
}

} // namespace fastconv
