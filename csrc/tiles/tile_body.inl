// The tiles of one instruction set, written once over GCC's vector extension. An including file selects the
// target, opens a namespace of its own, and defines
//   VECTOR_BYTES               the vector's size
//   ROWS, VECTORS              the product tile: ROWS x VECTORS vectors of sums
//   OUTER_VECTORS              the widest of the weight gradient's tiles, whose sums are OUTER_SUMS vectors
//   OUTER_SUMS
//   PARTIAL_ACCESS             the file with load_lanes(p, first, last), which loads lanes [first, last) of
//                              a vector at p, zero elsewhere; store_lanes(p, first, last, v); both touch
//                              nothing else; store_every_second(p, count, v); load_lanes and add_product by
//                              mask_of_bits(bits), whether such a load is an instruction, and whether neither
//                              costs more than without a mask; store_past_caches(p, v) and finish_stores()
// Vectors travel through inlined functions only, so no calling convention depends on the instruction set.

#define INLINE inline __attribute__((always_inline))

template <class T>
struct VectorOf {
    typedef T type __attribute__((vector_size(VECTOR_BYTES)));
};
template <class T>
using Vector = typename VectorOf<T>::type;
constexpr int kLine = 64; // bytes of a cache line
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

#include "shuffles.inl"

#include PARTIAL_ACCESS

template <class T>
INLINE void store_lanes(T* p, int count, Vector<T> v) {
    store_lanes<T>(p, 0, count, v);
}

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

// --- product tile ------------------------------------------------------------------------------------------

// Where a step's columns come from: a packed panel,
template <class T>
struct PackedColumns {
    const T* b;

    INLINE Vector<T> column(int j) const { return load(b + j * kLanes<T>); }
    INLINE void next() { b += VECTORS * kLanes<T>; }
};

// or the source, while they are packed for the blocks to come.
template <class T>
struct SourceColumns {
    const T* from[VECTORS];
    Index stride;
    T* packed;

    INLINE Vector<T> column(int j) const {
        const Vector<T> v = load(from[j]);
        store(packed + j * kLanes<T>, v);
        return v;
    }
    INLINE void next() {
#pragma GCC unroll 4
        for (int j = 0; j < VECTORS; ++j)
            from[j] += stride;
        packed += VECTORS * kLanes<T>;
    }
};

// Sums stay in R x V registers; each step loads V vectors of b and broadcasts R values of a.
template <class T, int R, int V, class Columns>
INLINE void multiply_rows(const T* a, Columns b, Index depth, const char* ahead, Index ahead_bytes,
                          Vector<T> (&sums)[R][V]) {
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i)
#pragma GCC unroll 4
        for (int j = 0; j < V; ++j)
            sums[i][j] = Vector<T>{};
    for (Index k = 0; k < depth; ++k) {
        __builtin_prefetch(ahead, 0, 2);
        ahead += ahead_bytes;
        Vector<T> columns[V];
#pragma GCC unroll 4
        for (int j = 0; j < V; ++j)
            columns[j] = b.column(j);
        b.next();
#pragma GCC unroll 16
        for (int i = 0; i < R; ++i) {
            const Vector<T> value = broadcast(a[i]);
#pragma GCC unroll 4
            for (int j = 0; j < V; ++j)
                sums[i][j] += value * columns[j];
        }
        a += ROWS;
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

template <class T, int R, int V>
INLINE void finish_rows(Vector<T> (&sums)[R][V], const TileStore<T>& s) {
    if (!s.last || (s.bias == nullptr && s.activation == Activation::none))
        return;
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i) {
        if (i >= s.rows)
            break;
#pragma GCC unroll 4
        for (int j = 0; j < V; ++j)
            sums[i][j] = finish<T>(sums[i][j], s, i);
    }
}

// Whether no piece reaches beyond the vector it starts in.
template <class T>
INLINE bool within_vectors(const TileStore<T>& s) {
    constexpr int L = kLanes<T>;
    bool within = s.column_step == 1;
    for (int p = 0; p < s.piece_count && within; ++p)
        within = s.pieces[p].column % L + s.pieces[p].count <= L;
    return within;
}

// Straight from the registers.
template <class T, int R, int V>
INLINE void store_vectors(Vector<T> (&sums)[R][V], const TileStore<T>& s) {
    constexpr int L = kLanes<T>;
    int p = 0;
    if (!s.first)
#pragma GCC unroll 4
        for (int j = 0; j < V; ++j)
            for (; p < s.piece_count && s.pieces[p].column < (j + 1) * L; ++p) {
                const int first = s.pieces[p].column - j * L, last = first + s.pieces[p].count;
                const T* y = s.y + (s.pieces[p].offset - first);
#pragma GCC unroll 16
                for (int i = 0; i < R; ++i) {
                    if (i >= s.rows)
                        break;
                    sums[i][j] += last - first == L ? load(y + i * s.row_stride)
                                                    : load_lanes<T>(y + i * s.row_stride, first, last);
                }
            }
    finish_rows<T, R, V>(sums, s);
    p = 0;
#pragma GCC unroll 4
    for (int j = 0; j < V; ++j)
        for (; p < s.piece_count && s.pieces[p].column < (j + 1) * L; ++p) {
            const int first = s.pieces[p].column - j * L, last = first + s.pieces[p].count;
            T* y = s.y + (s.pieces[p].offset - first);
#pragma GCC unroll 16
            for (int i = 0; i < R; ++i) {
                if (i >= s.rows)
                    break;
                if (last - first == L)
                    store(y + i * s.row_stride, sums[i][j]);
                else
                    store_lanes<T>(y + i * s.row_stride, first, last, sums[i][j]);
            }
        }
}

// Pieces start at any column: pass through memory. The last piece's load may reach one vector beyond the
// tile.
template <class T, int R, int V>
INLINE void store_pieces(Vector<T> (&sums)[R][V], const TileStore<T>& s) {
    constexpr int L = kLanes<T>;
    T staged[R][(V + 1) * L];
    if (s.first)
        finish_rows<T, R, V>(sums, s);
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i) {
#pragma GCC unroll 4
        for (int j = 0; j < V; ++j)
            store(&staged[i][j * L], sums[i][j]);
        store(&staged[i][V * L], Vector<T>{});
    }
    for (int p = 0; p < s.piece_count; ++p) {
        const Piece piece = s.pieces[p];
        for (int i = 0; i < s.rows; ++i) {
            T* y = s.y + i * s.row_stride + piece.offset;
            const Vector<T> v = load(&staged[i][piece.column]);
            if (s.first && s.column_step == 1) {
                store_lanes<T>(y, piece.count, v);
            } else if (s.first && s.column_step == 2) {
                store_every_second<T>(y, piece.count, v);
            } else {
                T lanes[L] = {};
                for (int j = 0; j < piece.count && !s.first; ++j)
                    lanes[j] = y[j * s.column_step];
                store(lanes, s.first ? v : finish<T>(v + load(lanes), s, i));
                for (int j = 0; j < piece.count; ++j)
                    y[j * s.column_step] = lanes[j];
            }
        }
    }
}

template <class T, int R, int V, class Columns>
INLINE void multiply_store(const T* a, const Columns& b, Index depth, const TileStore<T>& s,
                           const void* ahead, Index ahead_bytes) {
    constexpr int L = kLanes<T>;
    Vector<T> sums[R][V];
    for (int i = 0; i < s.rows; ++i)
        for (int p = 0; p < s.piece_count; ++p) {
            const T* y = s.y + i * s.row_stride + s.pieces[p].offset;
            __builtin_prefetch(y, 1);
            if (s.column_step > 1) { // on to further lines
                const Index last = (s.pieces[p].count - 1) * s.column_step;
                __builtin_prefetch(y + (last < L ? last : L), 1);
                __builtin_prefetch(y + last, 1);
            }
        }
    multiply_rows<T, R, V>(a, b, depth, (const char*)ahead, ahead_bytes, sums);
    if (s.before != nullptr)
#pragma GCC unroll 16
        for (int i = 0; i < R; ++i)
#pragma GCC unroll 4
            for (int j = 0; j < V; ++j)
                sums[i][j] += load(s.before + (i * VECTORS + j) * L);
    if (within_vectors<T>(s))
        store_vectors<T, R, V>(sums, s);
    else
        store_pieces<T, R, V>(sums, s);
}

template <class T, int R>
INLINE void multiply_width(const T* a, const T* b, Index depth, const TileStore<T>& s, const void* ahead,
                           Index ahead_bytes) {
    const PackedColumns<T> columns{b};
    const Piece end = s.pieces[s.piece_count - 1];
    if (R == ROWS && end.column + end.count <= kLanes<T>)
        multiply_store<T, R, 1>(a, columns, depth, s, ahead, ahead_bytes);
    else
        multiply_store<T, R, VECTORS>(a, columns, depth, s, ahead, ahead_bytes);
}

template <class T>
void multiply(const T* a, const T* b, Index depth, const TileStore<T>& s, const void* ahead,
              Index ahead_bytes) {
    if (s.rows > ROWS / 2)
        multiply_width<T, ROWS>(a, b, depth, s, ahead, ahead_bytes);
    else if (s.rows > ROWS / 4)
        multiply_width<T, ROWS / 2>(a, b, depth, s, ahead, ahead_bytes);
    else
        multiply_width<T, ROWS / 4>(a, b, depth, s, ahead, ahead_bytes);
}

template <class T>
void multiply_source(const T* a, const T* const* source, Index source_stride, T* b, Index depth,
                     const TileStore<T>& s, const void* ahead, Index ahead_bytes) {
    SourceColumns<T> columns{{}, source_stride, b};
    for (int j = 0; j < VECTORS; ++j)
        columns.from[j] = source[j];
    multiply_store<T, ROWS, VECTORS>(a, columns, depth, s, ahead, ahead_bytes);
}

// --- packing -----------------------------------------------------------------------------------------------

template <class T>
void pack_run(const T* src, Index src_stride, Index step, T* dst, Index dst_stride, Index channels, int first,
              int last, int count, Index ahead) {
    constexpr int L = kLanes<T>;
    if (first >= last) {
        for (Index c = 0; c < channels; ++c, dst += dst_stride)
            store_lanes<T>(dst, count, Vector<T>{});
    } else if (step == 1 && first == 0 && last == L) {
        for (Index c = 0; c < channels; ++c, src += src_stride, dst += dst_stride) {
            __builtin_prefetch(src + ahead);
            store(dst, load(src));
        }
    } else if (step == 1) {
        for (Index c = 0; c < channels; ++c, src += src_stride, dst += dst_stride) {
            __builtin_prefetch(src + ahead);
            store_lanes<T>(dst, count, load_lanes<T>(src - first, first, last));
        }
    } else if (step == 2) {
        // Lanes 0, 2, 4, ... of two vectors; the second holds source elements L and up.
        const int end = 2 * last - 1;
        src -= 2 * first;
        for (Index c = 0; c < channels; ++c, src += src_stride, dst += dst_stride) {
            __builtin_prefetch(src + ahead);
            __builtin_prefetch(src + ahead + L);
            const Vector<T> low = load_lanes<T>(src, 2 * first, end < L ? end : L);
            const Vector<T> high =
                end > L ? load_lanes<T>(src + L, 2 * first > L ? 2 * first - L : 0, end - L) : Vector<T>{};
            store_lanes<T>(dst, count, even_lanes<T>(low, high));
        }
    } else if (step == 4) {
        src -= 4 * first;
        for (Index c = 0; c < channels; ++c, src += src_stride, dst += dst_stride) {
            Vector<T> parts[4];
#pragma GCC unroll 4
            for (int i = 0; i < 4; ++i) {
                __builtin_prefetch(src + ahead + i * L);
                const int begin = 4 * first - i * L, end = 4 * last - 3 - i * L;
                parts[i] = end > 0 && begin < L
                               ? load_lanes<T>(src + i * L, begin > 0 ? begin : 0, end < L ? end : L)
                               : Vector<T>{};
            }
            store_lanes<T>(
                dst, count,
                even_lanes<T>(even_lanes<T>(parts[0], parts[1]), even_lanes<T>(parts[2], parts[3])));
        }
    } else {
        for (Index c = 0; c < channels; ++c, src += src_stride, dst += dst_stride)
            for (int j = 0; j < count; ++j)
                dst[j] = j >= first && j < last ? src[(j - first) * step] : T{};
    }
}

// R rows of L lanes in registers: log2(R) rounds that interleave the first half of the rows with the second.
// One round rotates the bits of (row, lane) by one place, so after log2(R) rounds row and lane have changed
// places: the vectors hold L columns of R elements, one after the other.
template <class T, int R>
INLINE void transpose_block(Vector<T> (&v)[R]) {
#pragma GCC unroll 4
    for (int round = 1; round < R; round *= 2) {
        Vector<T> next[R];
#pragma GCC unroll 16
        for (int i = 0; i < R / 2; ++i) {
            next[2 * i] = interleave_low<T>(v[i], v[i + R / 2]);
            next[2 * i + 1] = interleave_high<T>(v[i], v[i + R / 2]);
        }
#pragma GCC unroll 16
        for (int i = 0; i < R; ++i)
            v[i] = next[i];
    }
}

// Half a vector of rows, side by side: two columns in every vector.
template <class T>
INLINE void transpose_half(const T* src, Index src_stride, Index rows, Index length, T* dst) {
    constexpr int L = kLanes<T>, R = L / 2;
    for (Index j = 0; j < length; j += L, dst += R * L) {
        const int columns = length - j < L ? static_cast<int>(length - j) : L;
        Vector<T> block[R];
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
            const T* row = src + r * src_stride + j;
            block[r] = r >= rows ? Vector<T>{} : columns == L ? load(row) : load_lanes<T>(row, 0, columns);
        }
        transpose_block<T, R>(block);
#pragma GCC unroll 16
        for (int i = 0; i < R; ++i) {
            const int count = columns * R - i * L;
            if (count >= L)
                store(dst + i * L, block[i]);
            else if (count > 0)
                store_lanes<T>(dst + i * L, count, block[i]);
        }
    }
}

template <class T>
void transpose(const T* src, Index src_stride, Index rows, Index length, T* dst, Index dst_stride,
               Index width) {
    constexpr int L = kLanes<T>;
    if (L > 2 && 2 * width == L && dst_stride == width)
        return transpose_half<T>(src, src_stride, rows, length, dst);
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
            transpose_block<T, L>(block);
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

// --- outer products ---------------------------------------------------------------------------------------

template <class T, int R, int V>
INLINE void outer_rows(const OuterProducts<T>& call, int row) {
    constexpr int L = kLanes<T>;
    const Index x_stride = call.x_stride, x_step = call.x_step;
    Vector<T> sums[R][V];
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i)
#pragma GCC unroll 4
        for (int j = 0; j < V; ++j)
            sums[i][j] = Vector<T>{};
    const char* ahead[2];
    for (int i = 0; i < 2; ++i)
        ahead[i] = (const char*)call.ahead[i].from + row * call.ahead[i].row_bytes;
    const Index ahead_step[2] = {call.ahead[0].step_bytes, call.ahead[1].step_bytes};
    for (Index s = 0; s < call.segment_count; ++s) {
        const T* xs = call.x + row * x_stride + call.segments[s].x_offset;
        const T* gs = call.g + call.segments[s].g_offset;
        for (Index t = 0; t < call.segments[s].count; ++t) {
#pragma GCC unroll 2
            for (int i = 0; i < 2; ++i) {
                __builtin_prefetch(ahead[i], 0, 2);
                ahead[i] += ahead_step[i];
            }
            Vector<T> columns[V];
#pragma GCC unroll 4
            for (int j = 0; j < V; ++j)
                columns[j] = load(gs + j * L);
#pragma GCC unroll 16
            for (int i = 0; i < R; ++i) {
                const Vector<T> value = broadcast(xs[i * x_stride]);
#pragma GCC unroll 4
                for (int j = 0; j < V; ++j)
                    sums[i][j] += value * columns[j];
            }
            xs += x_step;
            gs += V * L;
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i)
#pragma GCC unroll 4
        for (int j = 0; j < V; ++j) {
            T* d = call.d + (row + i) * call.d_stride + j * L;
            store(d, call.first ? sums[i][j] : sums[i][j] + load(d));
        }
}

template <class T, int R, int V>
INLINE int outer_blocks(const OuterProducts<T>& call, int row) {
    for (; row + R <= call.rows; row += R)
        outer_rows<T, R, V>(call, row);
    return row;
}

// All rows, by blocks of ever fewer: as many as leave room in the registers, at most 12. Few rows take as
// long as the latency of their sums, so what is left goes into few blocks.
template <class T, int V>
INLINE void outer_width(const OuterProducts<T>& call) {
    constexpr int R = OUTER_SUMS / V < 12 ? OUTER_SUMS / V : 12;
    int row = outer_blocks<T, R, V>(call, 0);
    row = outer_blocks<T, R * 2 / 3, V>(call, row);
    row = outer_blocks<T, R / 2, V>(call, row);
    row = outer_blocks<T, R / 3, V>(call, row);
    outer_blocks<T, 1, V>(call, row);
}

template <class T>
void outer(const OuterProducts<T>& call) {
    if (call.vectors == 1)
        outer_width<T, 1>(call);
    else if (call.vectors == 2)
        outer_width<T, 2>(call);
    else
        outer_width<T, OUTER_VECTORS>(call);
}

// --- few channels ------------------------------------------------------------------------------------------

// R results at C places, `src_step` and `dst_step` apart: C neighbouring vectors of a row, or C rows. Several
// sums in flight hide the latency of a multiply-add.
template <class T, int R, int C>
INLINE void weighted_places(const WeightedRows<T>& call, const T* src, Index src_step, T* dst, Index dst_step,
                            int lanes) {
    Vector<T> sums[R][C];
#pragma GCC unroll 8
    for (int i = 0; i < R; ++i)
#pragma GCC unroll 4
        for (int c = 0; c < C; ++c)
            sums[i][c] = Vector<T>{};
    const T* weights = call.weights;
    for (Index p = 0; p < call.products; ++p, weights += R) {
        const T* row = src + call.offsets[p];
        Vector<T> values[C];
#pragma GCC unroll 4
        for (int c = 0; c < C; ++c)
            values[c] = load(row + c * src_step);
#pragma GCC unroll 8
        for (int i = 0; i < R; ++i) {
            const Vector<T> weight = broadcast(weights[i]);
#pragma GCC unroll 4
            for (int c = 0; c < C; ++c)
                sums[i][c] += weight * values[c];
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < R; ++i)
#pragma GCC unroll 4
        for (int c = 0; c < C; ++c) {
            T* y = dst + i * call.result_stride + c * dst_step;
            Vector<T> v = sums[i][c];
            if (!call.first)
                v += load_lanes<T>(y, 0, lanes);
            if (call.last) {
                if (call.bias != nullptr)
                    v += broadcast(call.bias[i]);
                v = activate<T>(v, call.activation);
            }
            if (lanes == kLanes<T>)
                store(y, v);
            else
                store_lanes<T>(y, lanes, v);
        }
}

// As many places as registers hold sums and elements of, beside a weight.
template <int R>
constexpr int kPlaces =
    ((ROWS + 1) * VECTORS < 16 ? 15 : 31) / (R + 1) < 4 ? ((ROWS + 1) * VECTORS < 16 ? 15 : 31) / (R + 1) : 4;

template <class T, int R>
INLINE void weighted_results(const WeightedRows<T>& call) {
    constexpr int L = kLanes<T>, C = kPlaces<R>;
    const Index wide = call.columns / (C * L) * (C * L);
    for (Index r = 0; r < call.rows && wide > 0; ++r)
        for (Index j = 0; j < wide; j += C * L)
            weighted_places<T, R, C>(call, call.src + r * call.src_stride + j, L,
                                     call.dst + r * call.dst_stride + j, L, L);
    for (Index j = wide; j < call.columns; j += L) {
        const int lanes = call.columns - j < L ? static_cast<int>(call.columns - j) : L;
        Index r = 0;
        for (; r + C <= call.rows; r += C)
            weighted_places<T, R, C>(call, call.src + r * call.src_stride + j, call.src_stride,
                                     call.dst + r * call.dst_stride + j, call.dst_stride, lanes);
        for (; r < call.rows; ++r)
            weighted_places<T, R, 1>(call, call.src + r * call.src_stride + j, 0,
                                     call.dst + r * call.dst_stride + j, 0, lanes);
    }
}

// Picks the code for call.results, of at most R results.
template <class T, int R>
INLINE void weighted_up_to(const WeightedRows<T>& call) {
    if constexpr (R == 1)
        weighted_results<T, 1>(call);
    else if (call.results == R)
        weighted_results<T, R>(call);
    else
        weighted_up_to<T, R - 1>(call);
}

template <class T>
void weighted_rows(const WeightedRows<T>& call) {
    weighted_up_to<T, ROWS>(call);
}

template <class T>
void interleave(const T* even, const T* odd, Index src_stride, T* dst, Index dst_stride, Index rows,
                Index count) {
    constexpr int L = kLanes<T>;
    for (Index j = 0; j < count; j += 2 * L) {
        const int lanes = count - j < 2 * L ? static_cast<int>(count - j) : 2 * L;
        const T *a = even + j / 2, *b = odd + j / 2;
        T* to = dst + j;
        for (Index r = 0; r < rows; ++r, a += src_stride, b += src_stride, to += dst_stride) {
            const Vector<T> low = interleave_low<T>(load(a), load(b));
            const Vector<T> high = interleave_high<T>(load(a), load(b));
            if (lanes == 2 * L) {
                store(to, low);
                store(to + L, high);
            } else {
                store_lanes<T>(to, lanes < L ? lanes : L, low);
                if (lanes > L)
                    store_lanes<T>(to + L, lanes - L, high);
            }
        }
    }
}

// --- products of rows --------------------------------------------------------------------------------------

// lane j of the result is the sum of v[j]'s lanes. A round adds the halves of each vector's sums and puts
// those of v[i] beside those of v[i + L/2], so that after log2(L) rounds one vector holds them in order.
template <class T>
INLINE Vector<T> sums_of_lanes(Vector<T> (&v)[kLanes<T>]) {
#pragma GCC unroll 4
    for (int half = kLanes<T> / 2; half > 0; half /= 2)
#pragma GCC unroll 8
        for (int i = 0; i < half; ++i)
            v[i] = interleave_low<T>(v[i], v[i + half]) + interleave_high<T>(v[i], v[i + half]);
    return v[0];
}

template <class T, int R, int N>
INLINE void add_row_products(Vector<T> (&sums)[R * N], const Vector<T> (&gradients)[R], Vector<T> value,
                             int n) {
#pragma GCC unroll 4
    for (int i = 0; i < R; ++i)
        sums[i * N + n] += gradients[i] * value;
}

// Sums of R results with N places of the window stay in registers while all rows pass by; the first `places`
// of them are stored.
template <class T, int R, int N>
INLINE void row_sums(const RowProducts<T>& call, int result, Index place, int places) {
    constexpr int L = kLanes<T>, kSums = R * N;
    Vector<T> sums[kSums];
#pragma GCC unroll 32
    for (int i = 0; i < kSums; ++i)
        sums[i] = Vector<T>{};
    const T* src[N];
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n)
        src[n] = call.src + call.offsets[place + (n < places ? n : places - 1)];
    const Index stride = call.result_stride, whole = call.columns / L * L;
    const int rest = static_cast<int>(call.columns - whole);
    const T* g = call.g + result * stride;
    const Index ahead = place == 0 ? R * stride : 0; // to the results that come next
    Index at = 0;
    for (Index r = 0; r < call.rows; ++r, g += call.g_stride, at += call.src_stride) {
        Vector<T> gradients[R];
        for (Index j = 0; j < whole; j += L) {
#pragma GCC unroll 4
            for (int i = 0; i < R; ++i) {
                __builtin_prefetch(g + i * stride + j + ahead);
                gradients[i] = load(g + i * stride + j);
            }
#pragma GCC unroll 8
            for (int n = 0; n < N; ++n)
                add_row_products<T, R, N>(sums, gradients, load(src[n] + at + j), n);
        }
        if (rest > 0) {
#pragma GCC unroll 4
            for (int i = 0; i < R; ++i) {
                __builtin_prefetch(g + i * stride + whole + ahead);
                gradients[i] = load_lanes<T>(g + i * stride + whole, 0, rest);
            }
#pragma GCC unroll 8
            for (int n = 0; n < N; ++n)
                add_row_products<T, R, N>(sums, gradients, load_lanes<T>(src[n] + at + whole, 0, rest), n);
        }
    }
    T totals[(kSums + L - 1) / L * L];
#pragma GCC unroll 32
    for (int first = 0; first < kSums; first += L) {
        Vector<T> part[L];
#pragma GCC unroll 16
        for (int i = 0; i < L; ++i)
            part[i] = first + i < kSums ? sums[first + i] : Vector<T>{};
        store(totals + first, sums_of_lanes<T>(part));
    }
    for (int i = 0; i < R; ++i) {
        T* out = call.sums + (result + i) * call.places + place;
        for (int n = 0; n < places; ++n)
            out[n] = call.first ? totals[i * N + n] : out[n] + totals[i * N + n];
    }
}

template <class T, int R>
INLINE void row_products_of(const RowProducts<T>& call, int result) {
    constexpr int N = 6;
    for (Index place = 0; place < call.places; place += N) {
        const Index left = call.places - place;
        if (left > N / 2)
            row_sums<T, R, N>(call, result, place, static_cast<int>(left < N ? left : N));
        else
            row_sums<T, R, N / 2>(call, result, place, static_cast<int>(left));
    }
}

template <class T>
void row_products(const RowProducts<T>& call) {
    constexpr int R = OUTER_SUMS / 6;
    int result = 0;
    for (; result + R <= call.results; result += R)
        row_products_of<T, R>(call, result);
    for (; result + R / 2 <= call.results; result += R / 2)
        row_products_of<T, R / 2>(call, result);
    for (; R > 2 && result < call.results; ++result)
        row_products_of<T, 1>(call, result);
}

// --- pooling -----------------------------------------------------------------------------------------------

#include "pool_body.inl"

// --- depthwise ---------------------------------------------------------------------------------------------

#include "depthwise_body.inl"

// --- Winograd ----------------------------------------------------------------------------------------------

#include "winograd_body.inl"

// --- numbers of 16 bits ------------------------------------------------------------------------------------

#include "narrow_body.inl"

// --- past the caches ---------------------------------------------------------------------------------------

template <class T>
void stream(const T* from, Index count, T* to, bool finish) {
    constexpr int L = kLanes<T>;
    Index i = 0;
    for (; i < count && reinterpret_cast<std::uintptr_t>(to + i) % kLine != 0; ++i)
        to[i] = from[i];
    for (; i + L <= count; i += L)
        store_past_caches(to + i, load(from + i));
    for (; i < count; ++i)
        to[i] = from[i];
    if (finish)
        finish_stores();
}

// --- the ceiling -------------------------------------------------------------------------------------------

// A dozen sums hide the latency of two multiply-adds per cycle, and leave registers for their operands.
template <class T>
Index multiply_adds(Index rounds, T* values) {
    constexpr int kSums = 12;
    const Vector<T> factor = broadcast(static_cast<T>(0.5)), addend = broadcast(static_cast<T>(1));
    Vector<T> sums[kSums];
#pragma GCC unroll 12
    for (int i = 0; i < kSums; ++i)
        sums[i] = load(values) + broadcast(static_cast<T>(i)); // all different, or they would be one
    for (Index round = 0; round < rounds; ++round) {
#pragma GCC unroll 12
        for (int i = 0; i < kSums; ++i)
            sums[i] = sums[i] * factor + addend;
    }
    Vector<T> total = {};
#pragma GCC unroll 12
    for (int i = 0; i < kSums; ++i)
        total += sums[i];
    store(values, total);
    return rounds * kSums * kLanes<T>;
}

// --- the table ---------------------------------------------------------------------------------------------

template <class T>
constexpr Tiles<T> table() {
    return {kLanes<T>,
            ROWS,
            VECTORS * kLanes<T>,
            OUTER_VECTORS,
            multiply<T>,
            multiply_source<T>,
            pack_run<T>,
            transpose<T>,
            outer<T>,
            weighted_rows<T>,
            interleave<T>,
            row_products<T>,
            stream<T>,
            multiply_adds<T>};
}

constexpr TileSet make_tile_set(const char* name) {
    return {name,
            table<float>(),
            table<double>(),
            table<std::int32_t>(),
            table<std::int64_t>(),
            pool_table(),
            depthwise_table<float>(),
            depthwise_table<double>(),
            winograd_table<float>(),
            winograd_table<double>(),
            narrow_table<Float16>(),
            narrow_table<BFloat16>()};
}

#undef INLINE
