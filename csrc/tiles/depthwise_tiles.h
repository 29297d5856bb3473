// The register-level inner loops of depthwise convolutions: each result channel is a sum over the few taps of
// one source channel, which is read where it lies, without a copy. A tile holds one vector of neighbouring
// columns in each of several rows of results, since neighbouring rows share most of the source rows that they
// read. tiles.h says what a tile function is.
#pragma once

#include <cstdint>

namespace fastconv {

using Index = std::int64_t;
enum class Activation;

constexpr int kDepthwiseRows = 7;    // of a whole tile: what becomes of 224 by halving is a multiple of 7
constexpr int kDepthwiseTapRows = 3; // at most, of a block of taps
constexpr int kDepthwiseTapColumns = 3;

// A block of neighbouring taps, and what one vector of results reads through it: of a source row, as many
// vectors from `from` on as the step of columns. Lane l of tap column u is element u % step + l*step of
// these, and belongs to result l - u / step. So tap columns that read the same elements share a vector.
struct DepthwisePiece {
    Index from;            // in row 0 of the slice of the source, from its channel's first element
    Index row;             // of the source, less `top`, that the first tap reads for row 0 of the results
    Index weight;          // of the first tap
    int rows, columns;     // of the block
    std::uint32_t read[2]; // by vector, the lanes that lie inside the source, as bits; of pairs by channel
    std::uint32_t used[kDepthwiseTapColumns]; // by tap column, those that also belong to a result
    bool whole;                               // whether all lanes do both
};

// For row r of the results, tap row t of a piece's block reads row top + piece.row + r*row_step + t*unit of
// the source, where that is in [0, rows). Its weight in tap column u is at
// piece.weight + t*weight_row + u*weight_column.
struct DepthwiseWindows {
    const DepthwisePiece* pieces;
    const int* ends;     // by vector of results, where its pieces end and those of the next begin
    Index rows, columns; // of a slice of the source
    Index top, row_step, unit;
    Index weight_row, weight_column;
};

// What the results of a call read, and how the tiles are to take it.
enum class DepthwiseKind {
    step_one, // columns with step 1
    step_two,
    two_windows, // one of the even result columns and one of the odd ones, both with step 1
    // The same of rows so short that two channels share a vector: each half of the lanes is a row of one.
    step_one_pairs,
    step_two_pairs,
    two_windows_pairs
};
constexpr int kDepthwiseKinds = 6;

// `channels` channels of results, from one to the next `..._channel` apart.
template <class T>
struct DepthwiseSums {
    DepthwiseKind kind;
    const DepthwiseWindows* windows;
    const T *source, *weight;
    const T *array, *array_end; // what `source` lies in, and may be read
    T* result;                  // of row first_row
    Index source_channel, weight_channel, result_channel, bias_channel, channels;
    Index first_row, rows, columns; // of a channel's results
    Index result_row;               // from one row of results to the next
    const T* bias;                  // one value per channel, or null
    Activation activation;          // one of none .. leaky_relu
};

// The adjoint, of one window.
template <class T>
struct DepthwiseProducts {
    DepthwiseKind kind;
    const DepthwiseWindows* windows;
    const T *source, *gradient; // the latter of row first_row
    const T *array, *array_end; // what `source` lies in, and may be read
    Index source_channel, gradient_channel, sums_channel, channels;
    Index first_row, rows, columns; // of a channel's gradient
    Index gradient_row;             // from one of its rows to the next
    T* sums;                        // by weight, one vector each, which the channels of a pair share
};

template <class T>
struct DepthwiseTiles {
    int tap_columns[kDepthwiseKinds]; // of a block of taps at most, by kind; rows: kDepthwiseTapRows
    int results[kDepthwiseKinds];     // of a vector (a half, of pairs) and window; 0 where there are no tiles

    // result[(r - first_row)*result_row + j] = activation(bias + sum over taps of weight * source), for every
    // channel, r in [first_row, first_row + rows) and j in [0, columns). Nothing else is touched.
    void (*sums)(const DepthwiseSums<T>& call);

    // Adds to the sum of the lanes of vector w of `sums`, for every tap with weight w, the sum over the same
    // r and j of gradient[(r - first_row)*gradient_row + j] * source: to each lane one product at most for
    // every row of every vector.
    void (*products)(const DepthwiseProducts<T>& call);

    // totals[i] += the sum of the lanes of vector i of `sums`, which becomes 0, for i in [0, count).
    void (*add_lanes)(T* sums, Index count, double* totals);

    // The same of each half: to `lower` and, unless it is null, to `upper`.
    void (*add_halves)(T* sums, Index count, double* lower, double* upper);
};

} // namespace fastconv
