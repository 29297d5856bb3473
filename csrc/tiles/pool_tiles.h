// The register-level inner loops of pooling, as tables of functions for each element type; tiles.h says what
// a tile function is.
//
// Pooling runs in two stages: along each row, which reduces a source row to one element for each result
// column, and across rows, which merges the rows that make up a window. Both take their operands in row-major
// order, so a maximum needs no more than "greater, or NaN" at each step to keep the first of equals and the
// last of NaNs: the rows of a window follow one another in that order, and within each the columns did.
//
// The lanes of a vector are either neighbouring columns of a plane, or the same element of neighbouring
// planes. In the second layout, "interleaved", element i of a plane lies in the vector at i * lanes.
#pragma once

#include <cstdint>

namespace fastconv {

using Index = std::int64_t;

// A flat position within a plane, as wide as the elements it belongs to, so that one comparison selects both.
template <int BYTES>
struct PositionOf;
template <>
struct PositionOf<4> {
    using type = std::int32_t;
};
template <>
struct PositionOf<8> {
    using type = std::int64_t;
};
template <class T>
using Position = typename PositionOf<sizeof(T)>::type;

// Regular windows along a row: result j takes the elements j*step - pad + t*dilation, t in [0, kernel), as
// far as they lie in [0, size). pad may be negative.
struct RowWindows {
    Index size, results, kernel, step, dilation, pad;
};

// Rows of a plane: row i starts at plane + starts[i]. All of [begin, end) may be read.
template <class T>
struct PoolSources {
    const T* plane;
    const Index* starts;
    Index count;
    const T *begin, *end;
};

// Any windows along a row: result j takes the elements entries[begin[j]] .. entries[begin[j + 1] - 1].
struct RowLists {
    Index results;
    const Index *begin, *entries;
};

// For float, double, int32 and int64. Arrays of positions may be null where nobody asks for them. The maximum
// of no element is the lowest value, at position -1.
template <class T>
struct MaxTiles {
    // values[i*pitch + j], positions[i*pitch + j] = the maximum of window j of row i. Writes whole vectors.
    void (*along)(const PoolSources<T>& rows, const RowWindows& windows, T* values, Position<T>* positions,
                  Index pitch);

    // The same of an interleaved row, whose first element has position `first`.
    void (*along_interleaved)(const T* row, Position<T> first, const RowLists& windows, T* values,
                              Position<T>* positions);

    // y[r*count + i], where[r*count + i] = the maximum over the entries of result row r of
    // values[entry*pitch + i], for i in [0, count). Reads whole vectors.
    void (*across)(const T* values, const Position<T>* positions, Index pitch, const RowLists& rows,
                   Index count, T* y, Position<T>* where);

    // Both stages in one, for windows of 2 or 3 neighbours with step 2, none of which is empty.
    void (*windows)(const PoolSources<T>& x, const RowWindows& windows, const RowLists& rows, T* y,
                    Position<T>* where);

    // *value, *where = the maximum of a large window: the elements rows[r] + first + i of a plane, for i
    // in [0, length).
    void (*window)(const T* plane, Index first, const Index* rows, Index row_count, Index length, T* value,
                   Position<T>* where);

    // to[i] = from[i], for i in [0, count); past the caches where nobody reads it soon.
    void (*widen)(const Position<T>* from, Index count, Index* to, bool past_caches);
};

// For float and double.
template <class T>
struct SumTiles {
    // sums[i*pitch + j] = the sum of window j of row i; as above. Writes whole vectors.
    void (*along)(const PoolSources<T>& rows, const RowWindows& windows, T* sums, Index pitch);
    void (*along_interleaved)(const T* row, const RowLists& windows, T* sums);

    // y[r*count + i] = the sum over the entries of result row r of sums[entry*pitch + i], for i in
    // [0, count), divided by divisors[r][i], or by divisors[r][i / lanes] where `interleaved`, or by nothing
    // where divisors is null. Reads whole vectors.
    void (*across)(const T* sums, Index pitch, const RowLists& rows, Index count, const T* const* divisors,
                   bool interleaved, T* y);

    // Both stages in one, as above.
    void (*windows)(const PoolSources<T>& x, const RowWindows& windows, const RowLists& rows,
                    const T* const* divisors, T* y);

    // The adjoint for windows of 2 neighbours with step 2 and no padding, which share no elements:
    // x[r*size + i] is the share of window i / 2 of the source row that is the entry of row r, or 0 where
    // there is none. A source row starts at a whole number of rows, which is that of its divisors.
    void (*spread)(const PoolSources<T>& y, const RowWindows& windows, const RowLists& rows,
                   const T* const* divisors, T* x);

    // to[i] = from[i] / divisors[i], for i in [0, count)
    void (*divide)(const T* from, const T* divisors, Index count, T* to);

    // totals[i] = the sum of the `length` elements at rows + i*length, for i in [0, count).
    void (*total)(const T* rows, Index length, Index count, T* totals);

    // The sum of a large window, as above; and its adjoint, which adds `share` to every element.
    T (*window)(const T* plane, Index first, const Index* rows, Index row_count, Index length);
    void (*add_to_window)(T share, Index first, const Index* rows, Index row_count, Index length, T* plane);

    // to[2i], to[2i + 1] = even[i], odd[i], for i in [0, count). Reads and writes whole vectors.
    void (*alternate)(const T* even, const T* odd, Index count, T* to);
};

struct PoolTileSet {
    MaxTiles<float> max_f32;
    MaxTiles<double> max_f64;
    MaxTiles<std::int32_t> max_i32;
    MaxTiles<std::int64_t> max_i64;
    SumTiles<float> sum_f32;
    SumTiles<double> sum_f64;
};

} // namespace fastconv
