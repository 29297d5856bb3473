// Convolutions of numbers of 16 bits: they are stored as such and computed with as float32. Some images at a
// time are converted, so few that the copies stay in a cache, and so are their results; weights are converted
// once, and brought into the algorithm's form once.
#pragma once

#include "algorithms.h"
#include "kernels.h"

namespace fastconv {

enum class NarrowType { float16, bfloat16 };

// Of the kernels of the same name.
void narrow_conv_forward(NarrowType type, const Narrow* x, const Narrow* weight, const Narrow* bias,
                         Activation activation, Narrow* y, const ConvGeometry& geometry,
                         const Settings& settings);
void narrow_conv_grad_input(NarrowType type, const Narrow* grad_y, const Narrow* weight, const Narrow* bias,
                            Activation activation, Narrow* grad_x, const ConvGeometry& geometry,
                            const Settings& settings);
void narrow_conv_grad_weight(NarrowType type, const Narrow* x, const Narrow* grad_y, Narrow* grad_weight,
                             const ConvGeometry& geometry, const Settings& settings);

// What they run of a kernel of float32: explain_conv_forward<float> and its like.
using ExplainConv = Choice (*)(const ConvGeometry&, const Settings&);
Choice explain_narrow(ExplainConv explain, const ConvGeometry& geometry, const Settings& settings);

// to[i] = from[i], in the other type.
void widen(NarrowType type, const Narrow* from, Index count, float* to, int threads);
void round_to(NarrowType type, const float* from, Index count, Narrow* to, int threads);

} // namespace fastconv
