// The register-level inner loops of one instruction set, as a table of functions for each element type.
//
// A tile function is pointer arithmetic only: no threads, no allocation, no standard library. It is written
// once in tile_body.inl over a vector type and compiled for each instruction set; callers read the tile's
// extents from the table. select_tiles.cpp chooses the table at run time.
#pragma once

#include <cstdint>

#include "depthwise_tiles.h"
#include "narrow_tiles.h"
#include "pool_tiles.h"
#include "winograd_tiles.h"

namespace fastconv {

// A run of results: tile columns [column, column + count) are y[offset], y[offset + step], ... of each row.
struct Piece {
    Index offset;
    int column, count;
};

// Codes of fastconv.activations, in its order.
enum class Activation { none, relu, relu6, leaky_relu, elu, sigmoid, tanh, silu };

// Where and how a product tile is stored. Sums may come in several parts: the first overwrites what is there,
// or what came before lies elsewhere.
template <class T>
struct TileStore {
    T* y;              // row 0
    Index row_stride;  // from one row of the tile to the next
    Index column_step; // from one column of a piece to the next
    const Piece* pieces;
    int piece_count;
    int rows;              // 1 .. Tiles::rows
    bool first, last;      // overwrite / finish
    const T* before;       // sums to add, row by row and side by side as whole tiles are, or null
    const T* bias;         // one value per row, or null; added with the last part
    Activation activation; // one of none .. leaky_relu; applied with the last part
};

// One run of a sum of outer products: `count` steps from x + x_offset (every x_step) and g + g_offset (every
// row).
struct Segment {
    Index x_offset, g_offset, count;
};

// What will be read next: rows [row, row + n) of a block fetch the lines at from + row*row_bytes, each step
// `step_bytes` further. Nothing is read; the addresses need not be valid.
struct Ahead {
    const void* from;
    Index row_bytes, step_bytes;
};

// d[i*d_stride + k] (+)= sum over segments s and steps t of
//     x[i*x_stride + s.x_offset + t*x_step] * g[s.g_offset + t*width + k]
// for i in [0, rows) and k in [0, width), where width is 1, 2 or outer_vectors vectors; overwritten where
// `first`. Meanwhile the lines in `ahead` are fetched into the second-level cache.
template <class T>
struct OuterProducts {
    const T* x;
    Index x_stride, x_step;
    const T* g;
    const Segment* segments;
    Index segment_count;
    T* d;
    Index d_stride;
    int rows, vectors;
    bool first;
    Ahead ahead[2];
};

// Rows of results as weighted sums of rows of a window, for `results` channels that share it:
//     dst[i*result_stride + r*dst_stride + j] (+)= sum over p in [0, products) of
//         weights[p*results + i] * src[r*src_stride + offsets[p] + j]
// for r in [0, rows), j in [0, columns). Sums may come in several parts: the first overwrites, and bias and
// activation come with the last. src may be read up to one vector beyond its last element.
template <class T>
struct WeightedRows {
    const T* src;
    Index src_stride;
    const Index* offsets;
    const T* weights;
    Index products;
    int results; // 1 .. Tiles::rows
    T* dst;
    Index dst_stride, result_stride;
    Index rows, columns;
    bool first, last;
    const T* bias; // or null
    Activation activation;
};

// Sums of products of rows of several results' gradients with rows of a window:
//     sums[i*places + p] (+)= sum over r in [0, rows) and j in [0, columns) of
//         g[i*result_stride + r*g_stride + j] * src[r*src_stride + offsets[p] + j]
// for i in [0, results), p in [0, places); overwritten where `first`.
template <class T>
struct RowProducts {
    const T* g;
    Index g_stride, result_stride;
    const T* src;
    Index src_stride;
    const Index* offsets;
    Index places;
    int results;
    Index rows, columns;
    T* sums;
    bool first;
};

template <class T>
struct Tiles {
    int lanes;         // elements of a vector
    int rows, columns; // the product tile; columns are whole vectors
    int outer_vectors; // the widest block of outer products

    // y tile (+)= a * b, where a is [depth][rows] and b is [depth][columns], both packed. Each step fetches
    // the line at `ahead` into the second-level cache, the next one `ahead_bytes` further.
    void (*multiply)(const T* a, const T* b, Index depth, const TileStore<T>& store, const void* ahead,
                     Index ahead_bytes);

    // The same of all rows, and of columns not packed yet: vector j of step k is read at source[j] +
    // k*source_stride and written to b.
    void (*multiply_source)(const T* a, const T* const* source, Index source_stride, T* b, Index depth,
                            const TileStore<T>& store, const void* ahead, Index ahead_bytes);

    // For each of `channels`: dst[j] = src[(j - first)*step] for j in [first, last), 0 for the other j in [0,
    // count); count <= lanes. Then src += src_stride, dst += dst_stride. Nothing outside these elements is
    // touched; the lines at src + ahead are fetched.
    void (*pack_run)(const T* src, Index src_stride, Index step, T* dst, Index dst_stride, Index channels,
                     int first, int last, int count, Index ahead);

    // dst[j*dst_stride + i] = i < rows ? src[i*src_stride + j] : 0 for i in [0, width), j in [0, length).
    void (*transpose)(const T* src, Index src_stride, Index rows, Index length, T* dst, Index dst_stride,
                      Index width);

    void (*outer)(const OuterProducts<T>& call);

    void (*weighted_rows)(const WeightedRows<T>& call);

    // For each of `rows`: dst[2*j] = even[j], dst[2*j + 1] = odd[j], `count` elements of dst. Then dst +=
    // dst_stride, even and odd += src_stride; they may be read up to one vector beyond their last element.
    void (*interleave)(const T* even, const T* odd, Index src_stride, T* dst, Index dst_stride, Index rows,
                       Index count);

    void (*row_products)(const RowProducts<T>& call);

    // to[i] = from[i] for i in [0, count), past the caches: to be finished before anybody else looks.
    void (*stream)(const T* from, Index count, T* to, bool finish);

    // Nothing but multiply-adds, `rounds` of each of several independent sums that stay in registers; returns
    // their number. A vector is read from and written to values, so that none of it is in vain.
    Index (*multiply_adds)(Index rounds, T* values);
};

struct TileSet {
    const char* name;
    Tiles<float> f32;
    Tiles<double> f64;
    Tiles<std::int32_t> i32;
    Tiles<std::int64_t> i64;
    PoolTileSet pool;
    DepthwiseTiles<float> depthwise_f32;
    DepthwiseTiles<double> depthwise_f64;
    WinogradTiles<float> winograd_f32;
    WinogradTiles<double> winograd_f64;
    NarrowTiles float16, bfloat16;
};

// The table in use, and the names of those that this processor can run, best first.
const TileSet& tile_set();
int tile_set_count();
const char* tile_set_name(int i);
bool select_tile_set(const char* name); // false where there is no such set, or the processor cannot run it

template <class T>
const Tiles<T>& tiles();
template <>
inline const Tiles<float>& tiles() {
    return tile_set().f32;
}
template <>
inline const Tiles<double>& tiles() {
    return tile_set().f64;
}
template <>
inline const Tiles<std::int32_t>& tiles() {
    return tile_set().i32;
}
template <>
inline const Tiles<std::int64_t>& tiles() {
    return tile_set().i64;
}

} // namespace fastconv
