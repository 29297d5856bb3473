// The tiles of one instruction set, written once over GCC's vector extension. An including file selects the
// target, opens a namespace of its own, and defines
//   VECTOR_BYTES               the vector's size
//   ROWS, VECTORS              the product tile: ROWS x VECTORS vectors of sums
//   OUTER_ROWS, OUTER_VECTORS  the weight gradient's tile
//   PARTIAL_ACCESS             the file with load_lanes(p, first, last), which loads lanes [first, last) of a
//   vector at
//                              p, zero elsewhere, and store_lanes(p, count, v); both touch nothing else
// Vectors travel through inlined functions only, so no calling convention depends on the instruction set.

#define INLINE inline __attribute__((always_inline))

template <class T>
struct VectorOf {
    typedef T type __attribute__((vector_size(VECTOR_BYTES)));
};
template <class T>
using Vector = typename VectorOf<T>::type;
template <class T>
constexpr int kLanes = VECTOR_BYTES / static_cast<int>(sizeof(T));

template <class T>
INLINE Vector<T> load(const T* p) {
    Vector<T> v;
    __builtin_memcpy(&v, p, sizeof v);
    return v;
}

template <class T>
INLINE void store(T* p, Vector<T> v) {
    __builtin_memcpy(p, &v, sizeof v);
}

template <class T>
INLINE Vector<T> broadcast(T value) {
    return value - Vector<T>{};
}

#include PARTIAL_ACCESS
#include "shuffles.inl"

// NaN passes through all of them, as it does in NumPy.
template <class T>
INLINE Vector<T> activate(Vector<T> v, Activation activation) {
    const Vector<T> zero = {};
    switch (activation) {
    case Activation::relu:
        return v < zero ? zero : v;
    case Activation::relu6: {
        const Vector<T> six = broadcast<T>(6);
        const Vector<T> low = v < zero ? zero : v;
        return low > six ? six : low;
    }
    case Activation::leaky_relu:
        return v > zero ? v : v * broadcast<T>(static_cast<T>(0.01));
    default:
        return v;
    }
}

// --- product tile
// ----------------------------------------------------------------------------------------------------

// Sums stay in R x VECTORS registers; each step loads VECTORS vectors of b and broadcasts R values of a.
template <class T, int R>
INLINE void multiply_rows(const T* a, const T* b, Index depth, Vector<T> (&sums)[R][VECTORS]) {
    constexpr int L = kLanes<T>;
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i)
#pragma GCC unroll 4
        for (int j = 0; j < VECTORS; ++j)
            sums[i][j] = Vector<T>{};
    for (Index k = 0; k < depth; ++k) {
        Vector<T> columns[VECTORS];
#pragma GCC unroll 4
        for (int j = 0; j < VECTORS; ++j)
            columns[j] = load(b + j * L);
#pragma GCC unroll 16
        for (int i = 0; i < R; ++i) {
            const Vector<T> value = broadcast(a[i]);
#pragma GCC unroll 4
            for (int j = 0; j < VECTORS; ++j)
                sums[i][j] += value * columns[j];
        }
        a += ROWS;
        b += VECTORS * L;
    }
}

template <class T>
INLINE Vector<T> finish(Vector<T> v, const TileStore<T>& s, int row) {
    if (!s.last)
        return v;
    if (s.bias != nullptr)
        v += broadcast(s.bias[row]);
    return activate<T>(v, s.activation);
}

template <class T, int R>
INLINE void multiply_store(const T* a, const T* b, Index depth, const TileStore<T>& s) {
    constexpr int L = kLanes<T>;
    Vector<T> sums[R][VECTORS];
    multiply_rows<T, R>(a, b, depth, sums);

    bool whole = s.column_step == 1 && s.piece_count == VECTORS;
    for (int j = 0; j < s.piece_count && whole; ++j)
        whole = s.pieces[j].column == j * L && s.pieces[j].count == L;
    if (whole) {
        for (int j = 0; j < VECTORS; ++j)
            __builtin_prefetch(s.y + s.pieces[j].offset, 1);
#pragma GCC unroll 16
        for (int i = 0; i < R; ++i) {
            if (i >= s.rows)
                break;
#pragma GCC unroll 4
            for (int j = 0; j < VECTORS; ++j) {
                T* y = s.y + i * s.row_stride + s.pieces[j].offset;
                store(y, finish<T>(s.first ? sums[i][j] : sums[i][j] + load(y), s, i));
            }
        }
        return;
    }
    // Pieces start at any column: pass through memory. The last piece's load may reach one vector beyond the
    // tile.
    T staged[R][(VECTORS + 1) * L];
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i) {
#pragma GCC unroll 4
        for (int j = 0; j < VECTORS; ++j)
            store(&staged[i][j * L], sums[i][j]);
        store(&staged[i][VECTORS * L], Vector<T>{});
    }
    for (int p = 0; p < s.piece_count; ++p) {
        const Piece piece = s.pieces[p];
        for (int i = 0; i < s.rows; ++i) {
            T* y = s.y + i * s.row_stride + piece.offset;
            Vector<T> v = load(&staged[i][piece.column]);
            if (s.column_step == 1) {
                if (!s.first)
                    v += load_lanes<T>(y, 0, piece.count);
                store_lanes<T>(y, piece.count, finish<T>(v, s, i));
                continue;
            }
            if (!s.first) {
                T before[L] = {};
                for (int j = 0; j < piece.count; ++j)
                    before[j] = y[j * s.column_step];
                v += load(before);
            }
            T after[L];
            store(after, finish<T>(v, s, i));
            for (int j = 0; j < piece.count; ++j)
                y[j * s.column_step] = after[j];
        }
    }
}

template <class T>
void multiply(const T* a, const T* b, Index depth, const TileStore<T>& s) {
    if (s.rows > ROWS / 2)
        multiply_store<T, ROWS>(a, b, depth, s);
    else if (s.rows > ROWS / 4)
        multiply_store<T, ROWS / 2>(a, b, depth, s);
    else
        multiply_store<T, ROWS / 4>(a, b, depth, s);
}

// --- packing
// ---------------------------------------------------------------------------------------------------------

template <class T>
void pack_run(const T* src, Index src_stride, Index step, T* dst, Index dst_stride, Index channels, int first,
              int last, int count) {
    constexpr int L = kLanes<T>;
    if (first >= last) {
        for (Index c = 0; c < channels; ++c, dst += dst_stride)
            store_lanes<T>(dst, count, Vector<T>{});
    } else if (step == 1 && first == 0 && last == L) {
        for (Index c = 0; c < channels; ++c, src += src_stride, dst += dst_stride)
            store(dst, load(src));
    } else if (step == 1) {
        for (Index c = 0; c < channels; ++c, src += src_stride, dst += dst_stride)
            store_lanes<T>(dst, count, load_lanes<T>(src - first, first, last));
    } else if (step == 2) {
        // Lanes 0, 2, 4, ... of two vectors; the second holds source elements L and up.
        const int end = 2 * last - 1;
        src -= 2 * first;
        for (Index c = 0; c < channels; ++c, src += src_stride, dst += dst_stride) {
            const Vector<T> low = load_lanes<T>(src, 2 * first, end < L ? end : L);
            const Vector<T> high =
                end > L ? load_lanes<T>(src + L, 2 * first > L ? 2 * first - L : 0, end - L) : Vector<T>{};
            store_lanes<T>(dst, count, even_lanes<T>(low, high));
        }
    } else {
        for (Index c = 0; c < channels; ++c, src += src_stride, dst += dst_stride)
            for (int j = 0; j < count; ++j)
                dst[j] = j >= first && j < last ? src[(j - first) * step] : T{};
    }
}

// An L x L block in registers: log2(L) rounds that interleave the first half of the rows with the second. One
// round rotates the bits of (row, lane) by one place, so after log2(L) rounds row and lane have changed
// places.
template <class T>
INLINE void transpose_block(Vector<T> (&v)[kLanes<T>]) {
    constexpr int L = kLanes<T>;
#pragma GCC unroll 4
    for (int round = 1; round < L; round *= 2) {
        Vector<T> next[L];
#pragma GCC unroll 16
        for (int i = 0; i < L / 2; ++i) {
            next[2 * i] = interleave_low<T>(v[i], v[i + L / 2]);
            next[2 * i + 1] = interleave_high<T>(v[i], v[i + L / 2]);
        }
#pragma GCC unroll 16
        for (int i = 0; i < L; ++i)
            v[i] = next[i];
    }
}

template <class T>
void transpose(const T* src, Index src_stride, Index rows, Index length, T* dst, Index dst_stride,
               Index width) {
    constexpr int L = kLanes<T>;
    for (Index j = 0; j < length; j += L) {
        const int columns = length - j < L ? static_cast<int>(length - j) : L;
        for (Index i = 0; i < width; i += L) {
            const int lanes = width - i < L ? static_cast<int>(width - i) : L;
            Vector<T> block[L];
#pragma GCC unroll 16
            for (int r = 0; r < L; ++r) {
                const T* row = src + (i + r) * src_stride + j;
                block[r] = i + r >= rows  ? Vector<T>{}
                           : columns == L ? load(row)
                                          : load_lanes<T>(row, 0, columns);
            }
            transpose_block<T>(block);
#pragma GCC unroll 16
            for (int c = 0; c < L; ++c) {
                if (c >= columns)
                    break;
                T* out = dst + (j + c) * dst_stride + i;
                if (lanes == L)
                    store(out, block[c]);
                else
                    store_lanes<T>(out, lanes, block[c]);
            }
        }
    }
}

// --- weight gradient
// -------------------------------------------------------------------------------------------------

template <class T, int R>
INLINE void outer_rows(const T* x, Index x_stride, Index x_step, const T* g, const Segment* segments,
                       Index segment_count, T* d, Index d_stride, bool first) {
    constexpr int L = kLanes<T>;
    Vector<T> sums[R][OUTER_VECTORS];
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i)
#pragma GCC unroll 4
        for (int j = 0; j < OUTER_VECTORS; ++j)
            sums[i][j] = first ? Vector<T>{} : load(d + i * d_stride + j * L);
    for (Index s = 0; s < segment_count; ++s) {
        const T* xs = x + segments[s].x_offset;
        const T* gs = g + segments[s].g_offset;
        for (Index t = 0; t < segments[s].count; ++t) {
            Vector<T> columns[OUTER_VECTORS];
#pragma GCC unroll 4
            for (int j = 0; j < OUTER_VECTORS; ++j)
                columns[j] = load(gs + j * L);
#pragma GCC unroll 16
            for (int i = 0; i < R; ++i) {
                const Vector<T> value = broadcast(xs[i * x_stride]);
#pragma GCC unroll 4
                for (int j = 0; j < OUTER_VECTORS; ++j)
                    sums[i][j] += value * columns[j];
            }
            xs += x_step;
            gs += OUTER_VECTORS * L;
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i)
#pragma GCC unroll 4
        for (int j = 0; j < OUTER_VECTORS; ++j)
            store(d + i * d_stride + j * L, sums[i][j]);
}

template <class T>
void outer(const T* x, Index x_stride, Index x_step, const T* g, const Segment* segments, Index segment_count,
           T* d, Index d_stride, int rows, bool first) {
    int row = 0;
    for (; row + OUTER_ROWS <= rows; row += OUTER_ROWS)
        outer_rows<T, OUTER_ROWS>(x + row * x_stride, x_stride, x_step, g, segments, segment_count,
                                  d + row * d_stride, d_stride, first);
    for (; row + OUTER_ROWS / 2 <= rows; row += OUTER_ROWS / 2)
        outer_rows<T, OUTER_ROWS / 2>(x + row * x_stride, x_stride, x_step, g, segments, segment_count,
                                      d + row * d_stride, d_stride, first);
    for (; row < rows; ++row)
        outer_rows<T, 1>(x + row * x_stride, x_stride, x_step, g, segments, segment_count, d + row * d_stride,
                         d_stride, first);
}

// --- depthwise
// -------------------------------------------------------------------------------------------------------

template <class T, int V>
INLINE void weighted_vectors(const T* src, const Index* offsets, const T* weights, Index taps,
                             Vector<T> (&sums)[V], T bias) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v)
        sums[v] = broadcast(bias);
    for (Index i = 0; i < taps; ++i) {
        const Vector<T> weight = broadcast(weights[i]);
        const T* row = src + offsets[i];
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v)
            sums[v] += weight * load(row + v * kLanes<T>);
    }
}

template <class T>
void weighted_rows(const T* src, const Index* offsets, const T* weights, Index taps, T* dst, Index count,
                   T bias, Activation activation) {
    constexpr int L = kLanes<T>;
    Index j = 0;
    for (; j + 4 * L <= count; j += 4 * L) {
        Vector<T> sums[4];
        weighted_vectors<T, 4>(src + j, offsets, weights, taps, sums, bias);
#pragma GCC unroll 4
        for (int v = 0; v < 4; ++v)
            store(dst + j + v * L, activate<T>(sums[v], activation));
    }
    for (; j < count; j += L) {
        Vector<T> sums[1];
        weighted_vectors<T, 1>(src + j, offsets, weights, taps, sums, bias);
        store_lanes<T>(dst + j, count - j < L ? static_cast<int>(count - j) : L,
                       activate<T>(sums[0], activation));
    }
}

// Sums of TAPS taps stay in registers while all rows pass by.
template <class T, int TAPS>
INLINE void tap_products(const T* g, Index g_stride, const T* src, Index src_stride, const Index* offsets,
                         Index rows, Index count, T* sums) {
    constexpr int L = kLanes<T>;
    Vector<T> total[TAPS];
#pragma GCC unroll 4
    for (int i = 0; i < TAPS; ++i)
        total[i] = load(sums + i * L);
    for (Index r = 0; r < rows; ++r, g += g_stride, src += src_stride) {
        Index j = 0;
        for (; j + L <= count; j += L) {
            const Vector<T> gradient = load(g + j);
#pragma GCC unroll 4
            for (int i = 0; i < TAPS; ++i)
                total[i] += gradient * load(src + offsets[i] + j);
        }
        if (j < count) {
            const Vector<T> gradient = load_lanes<T>(g + j, 0, static_cast<int>(count - j));
#pragma GCC unroll 4
            for (int i = 0; i < TAPS; ++i)
                total[i] += gradient * load(src + offsets[i] + j);
        }
    }
#pragma GCC unroll 4
    for (int i = 0; i < TAPS; ++i)
        store(sums + i * L, total[i]);
}

template <class T>
void row_products(const T* g, Index g_stride, const T* src, Index src_stride, const Index* offsets,
                  Index taps, Index rows, Index count, T* sums) {
    constexpr int L = kLanes<T>;
    Index i = 0;
    for (; i + 4 <= taps; i += 4)
        tap_products<T, 4>(g, g_stride, src, src_stride, offsets + i, rows, count, sums + i * L);
    for (; i < taps; ++i)
        tap_products<T, 1>(g, g_stride, src, src_stride, offsets + i, rows, count, sums + i * L);
}

// --- the table
// -------------------------------------------------------------------------------------------------------

template <class T>
constexpr Tiles<T> table() {
    return {kLanes<T>,      ROWS,        VECTORS * kLanes<T>, OUTER_ROWS, OUTER_VECTORS * kLanes<T>,
            multiply<T>,    pack_run<T>, transpose<T>,        outer<T>,   weighted_rows<T>,
            row_products<T>};
}

constexpr TileSet make_tile_set(const char* name) {
    return {name, table<float>(), table<double>(), table<std::int32_t>(), table<std::int64_t>()};
}

#undef INLINE
