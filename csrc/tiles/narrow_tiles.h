// Numbers of 16 bits, which are stored but not computed with: IEEE's half precision, and bfloat16, the upper
// half of a float.
#pragma once

#include <cstdint>

namespace fastconv {

using Index = std::int64_t;
using Narrow = std::uint16_t; // the bits of either type

// to[i] = from[i] for i in [0, count); the other way rounds to the nearest, ties to even. NaN stays NaN, and
// nothing between the finite numbers and infinity is lost: subnormal numbers are converted as they are.
struct NarrowTiles {
    void (*widen)(const Narrow* from, Index count, float* to);
    void (*round)(const float* from, Index count, Narrow* to);
};

} // namespace fastconv
