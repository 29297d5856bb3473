// Winograd's minimal filtering F(4x4, 3x3): 4x4 results of a 3x3 window take 36 products instead of 144.
//
// With n = 6 points a_j (the last is infinity) the convolution of 4 results with a filter of 3 is
//     y = A^T [(G g) * (B^T d)],
// where G evaluates the filter as a polynomial at the points, each divided by the product of its distances to
// the others; A^T evaluates powers 0..3; and row j of B^T holds the coefficients of prod_{k != j} (x - a_k).
// Two dimensions nest. The points 0, +-5/8, +-3/2, infinity (rather than the textbook's 0, +-1, +-2) keep all
// constants of A and B exact in binary, and errors at some three to six times those of direct summation.
//
// Lavin and Gray, "Fast algorithms for convolutional neural networks", CVPR 2016; points of the form +-c in
// the way of Barabasz et al., "Error analysis and improving the accuracy of Winograd convolution", 2020.
#pragma once

#include <cstdint>

namespace fastconv {

using Index = std::int64_t;
enum class Activation;

constexpr int kWinogradResults = 4, kWinogradPatch = 6, kWinogradProducts = 36;

// B^T d B of `count` (1 .. lanes) patches that follow one another along a row, for each of `channels`:
//     to[e*product_stride + c*channel_stride + t], e in [0, 36).
// The first patch begins at (row, column) of planes of height x width, the next one 4 columns further; what
// lies outside a plane is zero.
template <class T>
struct WinogradPatches {
    const T* planes; // of the first channel
    Index plane, height, width;
    Index row, column;
    int count;
    Index channels;
    T* to;
    Index product_stride, channel_stride;
};

// The reverse: A^T m A of `count` products m[e*product_stride + c*channel_stride + t] for each of `channels`,
// of which `rows` and `columns` (of 4 and 4*count) are stored.
template <class T>
struct WinogradResults {
    const T* products;
    Index product_stride, channel_stride;
    int count;
    Index channels;
    T* to;
    Index plane, row_stride; // of the results
    int rows, columns;
    const T* bias;         // one value per channel, or null
    Activation activation; // one of none .. leaky_relu
};

template <class T>
struct WinogradTiles {
    void (*transform_patches)(const WinogradPatches<T>& call);

    // False where a result is not finite.
    bool (*transform_results)(const WinogradResults<T>& call);

    // u[e*product_stride + c*rows + i] = (G g G^T)[e] of the filter whose elements are filters[(c*9 + j)*rows
    // + i], for c in [0, count), i in [0, rows), where rows is that of the product tile.
    void (*transform_filters)(const T* filters, Index count, T* u, Index product_stride);
};

} // namespace fastconv
