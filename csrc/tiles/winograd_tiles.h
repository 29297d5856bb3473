// Winograd's minimal filtering F(4x4, 3x3): 4x4 results of a 3x3 window take 36 products instead of 144.
//
// With n = 6 points a_j (the last is infinity) the convolution of 4 results with a filter of 3 is
//     y = A^T [(G g) * (B^T d)],
// where G evaluates the filter as a polynomial at the points, each divided by the product of its distances to
// the others; A^T evaluates powers 0..3; and row j of B^T holds the coefficients of prod_{k != j} (x - a_k).
// Two dimensions nest. The points 0, +-5/8, +-3/2, infinity (rather than the textbook's 0, +-1, +-2) keep all
// constants of A and B exact in binary, and errors at some three to six times those of direct summation.
//
// The derivative by g is the adjoint: G^T [(A dy) * (B^T d)], summed over all tiles.
//
// Lavin and Gray, "Fast algorithms for convolutional neural networks", CVPR 2016; points of the form +-c in
// the way of Barabasz et al., "Error analysis and improving the accuracy of Winograd convolution", 2020.
#pragma once

#include <cstdint>

namespace fastconv {

using Index = std::int64_t;
enum class Activation;

constexpr int kWinogradResults = 4, kWinogradPatch = 6, kWinogradProducts = 36;

// One row of neighbouring tiles, up to one vector of neighbouring channels. A vector holds channels: an image
// lies in memory by channels, so it is transposed on its way in and out. Transformed tiles are
//     tile[e*product_stride + t*tile_stride + channel], e in [0, 36), t in [0, tiles).

// B^T d B of patches of 6x6, or A d A^T of patches of 4x4: the first begins at (row, column) of planes of
// height x width, the next one 4 columns further; what lies outside a plane is zero, and so are the lanes
// that no channel fills.
template <class T>
struct WinogradPatches {
    const T* planes; // of the first channel
    Index plane, height, width;
    Index row, column;
    int tiles, channels;
    T* to;
    Index product_stride, tile_stride;
    T* staging;  // kWinogradPatch * 2 * (columns read, in whole vectors) vectors
    Index ahead; // from the first patch's corner to where the next call's lies, to fetch it meanwhile
};

// The reverse: A^T m A, of which `rows` and `columns` (of 4 and 4*tiles) are stored.
template <class T>
struct WinogradResults {
    const T* products;
    Index product_stride, tile_stride;
    int tiles, channels;
    T* to;                   // of the first channel
    Index plane, row_stride; // of the results
    int rows, columns;
    const T* bias;         // one value per channel, or null
    Activation activation; // one of none .. leaky_relu
    T* staging;            // kWinogradResults * (columns, in whole vectors) vectors
};

template <class T>
struct WinogradTiles {
    void (*transform_patches)(const WinogradPatches<T>& call);   // of 6x6
    void (*transform_gradients)(const WinogradPatches<T>& call); // of 4x4

    // False where a result is not finite.
    bool (*transform_results)(const WinogradResults<T>& call);

    // u[e*product_stride + c*width + i] = (G g G^T)[e] of the filter whose elements are
    // filters[(c*9 + j)*width + i], for c in [0, count), i in [0, width), in whole vectors.
    void (*transform_filters)(const T* filters, Index count, Index width, T* u, Index product_stride);

    // Its adjoint: filters[(c*9 + j)*width + i] = (G^T u G)[j]. False where one is not finite.
    bool (*transform_sums)(const T* u, Index product_stride, Index count, Index width, T* filters);
};

} // namespace fastconv
