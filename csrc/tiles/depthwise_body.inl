// The tiles of depthwise convolutions (see depthwise_tiles.h), included by tile_body.inl.
//
// Each is written for R rows of results which read source rows that lie as far apart (in units of the
// window's) as their columns do, by kStep. With R = 1 rows may have any step.
//
// Loads that straddle cache lines are dear, and of rows of AVX-512's vectors nearly all do. There a vector is
// loaded once for three neighbouring columns of taps, whose products are summed apart; at the end the sums
// are shifted by a lane or two and added. So the last lanes of a vector hold no result.
//
// Rows that fill less than half of such a vector go in pairs, those of one channel in the lower half of the
// lanes and those of the next in the upper one; what a shift takes from one half to the other is no result.

template <DepthwiseKind KIND>
constexpr bool kTwoWindows = KIND == DepthwiseKind::two_windows || KIND == DepthwiseKind::two_windows_pairs;
template <DepthwiseKind KIND>
constexpr int kStep = KIND == DepthwiseKind::step_two || KIND == DepthwiseKind::step_two_pairs ? 2 : 1;
template <DepthwiseKind KIND>
constexpr bool kPairs = KIND >= DepthwiseKind::step_one_pairs;
template <DepthwiseKind KIND>
constexpr int kSourceVectors = kPairs<KIND> ? 2 : kStep<KIND>; // that are loaded of a source row
template <class T>
constexpr bool kHasPairs = kMasksAreFree && kLanes<T> == 16; // half of a shorter vector is hardly a row
template <class T, DepthwiseKind KIND>
constexpr int kTapColumns =
    kLanes<T> < 16                                               ? kStep<KIND>
    : kTwoWindows<KIND> || KIND == DepthwiseKind::step_one_pairs ? 2
                                                                 : kDepthwiseTapColumns;
template <class T, DepthwiseKind KIND>
constexpr int kShifts = (kTapColumns<T, KIND> + kStep<KIND> - 1) / kStep<KIND>; // of u / kStep for column u
template <class T, DepthwiseKind KIND>
constexpr int kResults = kLanes<T> / (kPairs<KIND> ? 2 : 1) - kShifts<T, KIND> + 1; // of a vector or a half
constexpr int kHalfTile = 4; // rows, where a whole one has too many

// What S neighbouring columns of taps read: lanes[u] holds columns u, u + S, ... of a piece of a source row.
template <class T, int S>
struct Columns {
    Vector<T> lanes[S];
};

template <class T>
INLINE Columns<T, 2> split(Vector<T> low, Vector<T> high) {
    return {{even_lanes<T>(low, high), odd_lanes<T>(low, high)}};
}

// Of two vectors of which each is 0 where the other is not.
template <class T>
INLINE Vector<T> joined(Vector<T> a, Vector<T> b) {
    return (Vector<T>)((Vector<Position<T>>)a | (Vector<Position<T>>)b);
}

// *p in all lanes; of pairs, p[channel] in the upper half.
template <class T, DepthwiseKind KIND>
INLINE Vector<T> broadcast_to(const T* p, Index channel) {
    if constexpr (kPairs<KIND>)
        return halves<T>(broadcast(p[0]), broadcast(p[channel]));
    else
        return broadcast(*p);
}

// Where all lanes are inside.
template <class T, DepthwiseKind KIND>
struct AllLanes {
    INLINE Columns<T, kStep<KIND>> load_from(const T* p) const {
        if constexpr (kStep<KIND> == 1)
            return {{load(p)}};
        else
            return split<T>(load(p), load(p + kLanes<T>));
    }
    INLINE Vector<T> add(int, Vector<T> sum, Vector<T> a, Vector<T> b) const { return sum + a * b; }
};

// Where some are. Nothing is added to other lanes: an infinite weight meets no zero there. They are read only
// where that is quicker, and inside the array.
template <class T, DepthwiseKind KIND>
struct SomeLanes {
    LaneMask<T> read[kSourceVectors<KIND>], used[kTapColumns<T, KIND>];
    const T *array, *array_end;
    Index second; // from the first of these vectors to the other

    INLINE SomeLanes(const DepthwisePiece& piece, const T* begin, const T* end, Index channel)
        : array(begin), array_end(end), second(!kPairs<KIND>      ? kLanes<T>
                                               : kStep<KIND> == 1 ? channel - kLanes<T> / 2
                                                                  : channel) {
#pragma GCC unroll 2
        for (int i = 0; i < kSourceVectors<KIND>; ++i)
            read[i] = mask_of_bits<T>(piece.read[i]);
#pragma GCC unroll 3
        for (int u = 0; u < kTapColumns<T, KIND>; ++u)
            used[u] = mask_of_bits<T>(piece.used[u]);
    }
    INLINE Columns<T, kStep<KIND>> load_from(const T* p) const {
        if constexpr (!kMasksLoad)
            if (p >= array && array_end - p >= kStep<KIND> * kLanes<T>)
                return AllLanes<T, KIND>{}.load_from(p);
        if constexpr (kSourceVectors<KIND> == 1)
            return {{load_lanes<T>(p, read[0])}};
        else if constexpr (kStep<KIND> == 1)
            return {{joined<T>(load_lanes<T>(p, read[0]), load_lanes<T>(p + second, read[1]))}};
        else
            return split<T>(load_lanes<T>(p, read[0]), load_lanes<T>(p + second, read[1]));
    }
    INLINE Vector<T> add(int u, Vector<T> sum, Vector<T> a, Vector<T> b) const {
        return add_product<T>(sum, a, b, used[u]);
    }
};

// work.block<rows, columns>(lanes), as many as the block of taps has, at most C columns.
template <int K, int C, class Lanes, class Work>
INLINE void with_columns(int columns, const Lanes& lanes, const Work& work) {
    if (columns == C)
        return work.template block<K, C>(lanes);
    if constexpr (C > 2)
        if (columns == 2)
            return work.template block<K, 2>(lanes);
    if constexpr (C > 1)
        work.template block<K, 1>(lanes);
}

template <int C, class Lanes, class Work>
INLINE void with_rows(const DepthwisePiece& piece, const Lanes& lanes, const Work& work) {
    if (piece.rows == 3)
        with_columns<3, C>(piece.columns, lanes, work);
    else if (piece.rows == 2)
        with_columns<2, C>(piece.columns, lanes, work);
    else
        with_columns<1, C>(piece.columns, lanes, work);
}

template <class T, DepthwiseKind KIND, class Call, class Work>
INLINE void with_piece(const Call& call, const DepthwisePiece& piece, const Work& work) {
    constexpr int C = kTapColumns<T, KIND>;
    if constexpr (!kMasksAreFree)
        if (piece.whole)
            return with_rows<C>(piece, AllLanes<T, KIND>{}, work);
    with_rows<C>(piece, SomeLanes<T, KIND>(piece, call.array, call.array_end, call.source_channel), work);
}

// One comparison, mostly true.
INLINE bool inside(Index row, Index rows) {
    return __builtin_expect(static_cast<std::uint64_t>(row) < static_cast<std::uint64_t>(rows), 1);
}

INLINE int at_most(int most, Index count) {
    return count < most ? static_cast<int>(count) : most;
}

// Fetches `bytes` bytes a few thousand further on than `from`: processors do not foresee such rows well.
INLINE void fetch(const void* from, Index bytes) {
    constexpr Index kAhead = 4096;
    const char* p = static_cast<const char*>(from) + kAhead;
    for (Index i = 0; i < bytes; i += kLine)
        __builtin_prefetch(p + i);
}

// What `count` rows of results from row r on read, less what lies between rows that are far apart.
template <class T>
INLINE void fetch_source(const DepthwiseWindows& w, const T* source, Index r, int count) {
    const Index rows = count * (w.row_step < 2 ? w.row_step : 2);
    fetch(source + r * w.row_step * w.columns, rows * w.columns * static_cast<Index>(sizeof(T)));
}

// --- sums --------------------------------------------------------------------------------------------------

// Adds the products of a block of taps to R rows of results; `row` is the first source row that it reads, and
// `from` the place in row 0.
template <class T, DepthwiseKind KIND, int R>
struct AddProducts {
    const DepthwiseWindows& w;
    const T *from, *weight;
    Index weight_channel, row;
    Vector<T> (&sums)[kShifts<T, KIND>][R];

    template <int K, int C, class Lanes>
    INLINE void block(const Lanes& lanes) const {
        constexpr int S = kStep<KIND>;
        Vector<T> weights[K][C];
#pragma GCC unroll 3
        for (int k = 0; k < K; ++k)
#pragma GCC unroll 3
            for (int u = 0; u < C; ++u)
                weights[k][u] =
                    broadcast_to<T, KIND>(weight + k * w.weight_row + u * w.weight_column, weight_channel);
        const Index rows = w.rows, unit = w.unit, pitch = unit * w.columns;
        const T* p = from + row * w.columns;
        Index at = row;
#pragma GCC unroll 16
        for (int i = 0; i < (R - 1) * S + K; ++i, at += unit, p += pitch) {
            if (!inside(at, rows))
                continue;
            const Columns<T, S> read = lanes.load_from(p);
#pragma GCC unroll 3
            for (int u = 0; u < C; ++u)
#pragma GCC unroll 8
                for (int o = 0; o < R; ++o)
                    if (i >= o * S && i < o * S + K)
                        sums[u / S][o] =
                            lanes.add(u, sums[u / S][o], read.lanes[u % S], weights[i - o * S][u]);
        }
    }
};

// Rows r, r + 1, ... of the results in one vector of columns.
template <class T, DepthwiseKind KIND, int R>
INLINE void sum_windows(const DepthwiseSums<T>& call, const DepthwiseWindows& w, const T* source,
                        const T* weight, Index r, int vector, Vector<T> (&results)[R]) {
    constexpr int SHIFTS = kShifts<T, KIND>;
    Vector<T> sums[SHIFTS][R];
#pragma GCC unroll 3
    for (int i = 0; i < SHIFTS; ++i)
#pragma GCC unroll 8
        for (int o = 0; o < R; ++o)
            sums[i][o] = Vector<T>{};
    const DepthwisePiece* piece = w.pieces + (vector == 0 ? 0 : w.ends[vector - 1]);
    for (const DepthwisePiece* end = w.pieces + w.ends[vector]; piece != end; ++piece)
        with_piece<T, KIND>(call, *piece,
                            AddProducts<T, KIND, R>{w, source + piece->from, weight + piece->weight,
                                                    call.weight_channel, w.top + piece->row + r * w.row_step,
                                                    sums});
#pragma GCC unroll 8
    for (int o = 0; o < R; ++o) {
        results[o] = sums[0][o];
        if constexpr (SHIFTS > 1)
            results[o] += lanes_from<T, 1>(sums[1][o]);
        if constexpr (SHIFTS > 2)
            results[o] += lanes_from<T, 2>(sums[2][o]);
    }
}

template <class T>
INLINE void store_columns(T* p, int count, Vector<T> v) {
    if (count >= kLanes<T>)
        store(p, v);
    else if (count > 0)
        store_lanes<T>(p, count, v);
}

// R rows of results from row r on.
template <class T, DepthwiseKind KIND, int R>
INLINE void sum_tile_rows(const DepthwiseSums<T>& call, const T* source, const T* weight, Vector<T> bias,
                          Index r, T* result) {
    constexpr int L = kLanes<T>, WINDOWS = kTwoWindows<KIND> ? 2 : 1, WIDTH = WINDOWS * kResults<T, KIND>;
    int vector = 0;
    for (Index j = 0; j < call.columns; j += WIDTH, ++vector) {
        Vector<T> v[WINDOWS][R];
#pragma GCC unroll 2
        for (int i = 0; i < WINDOWS; ++i) {
            sum_windows<T, KIND, R>(call, call.windows[i], source, weight, r, vector, v[i]);
#pragma GCC unroll 8
            for (int o = 0; o < R; ++o)
                v[i][o] += bias;
            if (call.activation != Activation::none)
#pragma GCC unroll 8
                for (int o = 0; o < R; ++o)
                    v[i][o] = activate<T>(v[i][o], call.activation);
        }
        T* to = result + j;
        const int count = at_most(WIDTH, call.columns - j);
#pragma GCC unroll 8
        for (int o = 0; o < R; ++o, to += call.result_row) {
            if constexpr (kTwoWindows<KIND>) {
                store_columns<T>(to, count, interleave_low<T>(v[0][o], v[1][o]));
                store_columns<T>(to + (kPairs<KIND> ? call.result_channel : L),
                                 kPairs<KIND> ? count : count - L, interleave_high<T>(v[0][o], v[1][o]));
            } else if constexpr (kPairs<KIND>) {
                store_lanes<T>(to, count, v[0][o]);
                store_lanes<T>(to + call.result_channel - L / 2, L / 2, L / 2 + count, v[0][o]);
            } else {
                store_columns<T>(to, count, v[0][o]);
            }
        }
    }
}

// Rows first, first + 1, ... of the results of a channel or a pair, as long as R are left; returns the next.
// Not inlined: in functions much larger than this, compilers run out of registers.
template <class T, DepthwiseKind KIND, int R>
__attribute__((noinline)) Index sum_rows(const DepthwiseSums<T>& call, const T* source, const T* weight,
                                         const T* channel_bias, Index first, T* result) {
    const Vector<T> bias =
        channel_bias == nullptr ? Vector<T>{} : broadcast_to<T, KIND>(channel_bias, call.bias_channel);
    Index i = first;
    for (; i + R <= call.rows; i += R) {
        const Index r = call.first_row + i;
        fetch_source(call.windows[0], source, r, R);
        if constexpr (kPairs<KIND>)
            fetch_source(call.windows[0], source + call.source_channel, r, R);
        sum_tile_rows<T, KIND, R>(call, source, weight, bias, r, result + i * call.result_row);
    }
    return i;
}

template <class T, DepthwiseKind KIND>
INLINE void sum_channels(DepthwiseSums<T> call) {
    constexpr int TOGETHER = kPairs<KIND> ? 2 : 1;
    const bool shares = call.windows[0].row_step == kStep<KIND> * call.windows[0].unit;
    const T *source = call.source, *weight = call.weight, *bias = call.bias;
    T* result = call.result;
    for (Index c = 0; c < call.channels; c += TOGETHER) {
        if (c + TOGETHER > call.channels) // the last one makes a pair with itself
            call.source_channel = call.weight_channel = call.result_channel = call.bias_channel = 0;
        Index i = 0;
        if (shares) {
            i = sum_rows<T, KIND, kDepthwiseRows>(call, source, weight, bias, 0, result);
            if (i < call.rows)
                i = sum_rows<T, KIND, kHalfTile>(call, source, weight, bias, i, result);
            // Some rows a second time, rather than each of the last ones for itself.
            if (i < call.rows && call.rows >= kHalfTile)
                i = sum_rows<T, KIND, kHalfTile>(call, source, weight, bias, call.rows - kHalfTile, result);
        }
        if (i < call.rows)
            sum_rows<T, KIND, 1>(call, source, weight, bias, i, result);
        source += TOGETHER * call.source_channel;
        weight += TOGETHER * call.weight_channel;
        result += TOGETHER * call.result_channel;
        if (bias != nullptr)
            bias += TOGETHER;
    }
}

template <class T>
void depthwise_sums(const DepthwiseSums<T>& call) {
    switch (call.kind) {
    case DepthwiseKind::step_one:
        return sum_channels<T, DepthwiseKind::step_one>(call);
    case DepthwiseKind::step_two:
        return sum_channels<T, DepthwiseKind::step_two>(call);
    case DepthwiseKind::two_windows:
        return sum_channels<T, DepthwiseKind::two_windows>(call);
    case DepthwiseKind::step_one_pairs:
        if constexpr (kHasPairs<T>)
            sum_channels<T, DepthwiseKind::step_one_pairs>(call);
        return;
    case DepthwiseKind::step_two_pairs:
        if constexpr (kHasPairs<T>)
            sum_channels<T, DepthwiseKind::step_two_pairs>(call);
        return;
    case DepthwiseKind::two_windows_pairs:
        if constexpr (kHasPairs<T>)
            sum_channels<T, DepthwiseKind::two_windows_pairs>(call);
    }
}

// --- products ----------------------------------------------------------------------------------------------

// The adjoint: adds to the sums of a block of taps what R rows of the gradient contribute.
template <class T, DepthwiseKind KIND, int R>
struct AddRowProducts {
    const DepthwiseWindows& w;
    const T* from;
    Index row;
    const Vector<T> (&gradient)[kShifts<T, KIND>][R];
    T* to;

    template <int K, int C, class Lanes>
    INLINE void block(const Lanes& lanes) const {
        constexpr int S = kStep<KIND>;
        Vector<T> sums[K][C];
#pragma GCC unroll 3
        for (int k = 0; k < K; ++k)
#pragma GCC unroll 3
            for (int u = 0; u < C; ++u)
                sums[k][u] = Vector<T>{};
        const Index rows = w.rows, unit = w.unit, pitch = unit * w.columns;
        const T* p = from + row * w.columns;
        Index at = row;
#pragma GCC unroll 16
        for (int i = 0; i < (R - 1) * S + K; ++i, at += unit, p += pitch) {
            if (!inside(at, rows))
                continue;
            const Columns<T, S> read = lanes.load_from(p);
#pragma GCC unroll 3
            for (int u = 0; u < C; ++u)
#pragma GCC unroll 8
                for (int o = 0; o < R; ++o)
                    if (i >= o * S && i < o * S + K)
                        sums[i - o * S][u] =
                            lanes.add(u, sums[i - o * S][u], read.lanes[u % S], gradient[u / S][o]);
        }
#pragma GCC unroll 3
        for (int k = 0; k < K; ++k)
#pragma GCC unroll 3
            for (int u = 0; u < C; ++u) {
                T* total = to + (k * w.weight_row + u * w.weight_column) * kLanes<T>;
                store(total, load(total) + sums[k][u]);
            }
    }
};

template <class T, DepthwiseKind KIND, int R>
INLINE void multiply_tile_rows(const DepthwiseProducts<T>& call, const T* source, const T* gradient, Index r,
                               T* sums) {
    constexpr int L = kLanes<T>, WIDTH = kResults<T, KIND>, SHIFTS = kShifts<T, KIND>;
    const DepthwiseWindows& w = *call.windows;
    const DepthwisePiece* piece = w.pieces;
    const int* end = w.ends;
    for (Index j = 0; j < call.columns; j += WIDTH, ++end) {
        const int count = at_most(WIDTH, call.columns - j);
        Vector<T> rows[SHIFTS][R];
        const T* g = gradient + j;
#pragma GCC unroll 8
        for (int o = 0; o < R; ++o, g += call.gradient_row) {
            if constexpr (kPairs<KIND>)
                rows[0][o] =
                    joined<T>(load_lanes<T>(g, 0, count),
                              load_lanes<T>(g + call.gradient_channel - L / 2, L / 2, L / 2 + count));
            else
                rows[0][o] = count == L ? load(g) : load_lanes<T>(g, 0, count);
            if constexpr (SHIFTS > 1)
                rows[1][o] = lanes_from<T, L - 1>(rows[0][o]);
            if constexpr (SHIFTS > 2)
                rows[2][o] = lanes_from<T, L - 2>(rows[0][o]);
        }
        for (; piece != w.pieces + *end; ++piece)
            with_piece<T, KIND>(call, *piece,
                                AddRowProducts<T, KIND, R>{w, source + piece->from,
                                                           w.top + piece->row + r * w.row_step, rows,
                                                           sums + piece->weight * L});
    }
}

// As sum_rows.
template <class T, DepthwiseKind KIND, int R>
__attribute__((noinline)) Index multiply_rows(const DepthwiseProducts<T>& call, const T* source,
                                              const T* gradient, Index first, T* sums) {
    Index i = first;
    for (; i + R <= call.rows; i += R) {
        const T* g = gradient + i * call.gradient_row;
        fetch_source(*call.windows, source, call.first_row + i, R);
        if constexpr (kPairs<KIND>)
            fetch_source(*call.windows, source + call.source_channel, call.first_row + i, R);
        fetch(g, R * call.gradient_row * static_cast<Index>(sizeof(T)));
        multiply_tile_rows<T, KIND, R>(call, source, g, call.first_row + i, sums);
    }
    return i;
}

template <class T, DepthwiseKind KIND>
INLINE void multiply_channels(DepthwiseProducts<T> call) {
    constexpr int TOGETHER = kPairs<KIND> ? 2 : 1;
    const bool shares = call.windows->row_step == kStep<KIND> * call.windows->unit;
    const T *source = call.source, *gradient = call.gradient;
    T* sums = call.sums;
    for (Index c = 0; c < call.channels; c += TOGETHER) {
        if (c + TOGETHER >
            call.channels) // the last one makes a pair with itself, whose upper half nobody reads
            call.source_channel = call.gradient_channel = 0;
        Index i = 0;
        if (shares) {
            i = multiply_rows<T, KIND, kDepthwiseRows>(call, source, gradient, 0, sums);
            if (i < call.rows)
                i = multiply_rows<T, KIND, kHalfTile>(call, source, gradient, i, sums);
        }
        if (i < call.rows)
            multiply_rows<T, KIND, 1>(call, source, gradient, i, sums);
        source += TOGETHER * call.source_channel;
        gradient += TOGETHER * call.gradient_channel;
        sums += call.sums_channel;
    }
}

template <class T>
void depthwise_products(const DepthwiseProducts<T>& call) {
    if constexpr (kHasPairs<T>) {
        if (call.kind == DepthwiseKind::step_one_pairs)
            return multiply_channels<T, DepthwiseKind::step_one_pairs>(call);
        if (call.kind == DepthwiseKind::step_two_pairs)
            return multiply_channels<T, DepthwiseKind::step_two_pairs>(call);
    }
    if (call.kind == DepthwiseKind::step_one)
        multiply_channels<T, DepthwiseKind::step_one>(call);
    else
        multiply_channels<T, DepthwiseKind::step_two>(call);
}

// Lanes 0, N, 2*N, ... = the sums of N lanes from there on.
template <class T, int N>
INLINE Vector<T> sum_lanes(Vector<T> v) {
    if constexpr (N > 8)
        v += lanes_from<T, 8>(v);
    if constexpr (N > 4)
        v += lanes_from<T, 4>(v);
    if constexpr (N > 2)
        v += lanes_from<T, 2>(v);
    if constexpr (N > 1)
        v += lanes_from<T, 1>(v);
    return v;
}

template <class T>
void add_lanes(T* sums, Index count, double* totals) {
    constexpr int L = kLanes<T>;
    for (Index i = 0; i < count; ++i, sums += L) {
        const Vector<T> v = sum_lanes<T, L>(load(sums));
        totals[i] += static_cast<double>(v[0]);
        store(sums, Vector<T>{});
    }
}

template <class T>
void add_halves(T* sums, Index count, double* lower, double* upper) {
    constexpr int L = kLanes<T>;
    for (Index i = 0; i < count; ++i, sums += L) {
        const Vector<T> v = sum_lanes<T, L / 2>(load(sums));
        lower[i] += static_cast<double>(v[0]);
        if (upper != nullptr)
            upper[i] += static_cast<double>(v[L / 2]);
        store(sums, Vector<T>{});
    }
}

// --- the table ---------------------------------------------------------------------------------------------

template <class T, DepthwiseKind KIND>
constexpr int kPairResults = kHasPairs<T> ? kResults<T, KIND> : 0;

template <class T>
constexpr DepthwiseTiles<T> depthwise_table() {
    return {{kTapColumns<T, DepthwiseKind::step_one>, kTapColumns<T, DepthwiseKind::step_two>,
             kTapColumns<T, DepthwiseKind::two_windows>, kTapColumns<T, DepthwiseKind::step_one_pairs>,
             kTapColumns<T, DepthwiseKind::step_two_pairs>, kTapColumns<T, DepthwiseKind::two_windows_pairs>},
            {kResults<T, DepthwiseKind::step_one>, kResults<T, DepthwiseKind::step_two>,
             kResults<T, DepthwiseKind::two_windows>, kPairResults<T, DepthwiseKind::step_one_pairs>,
             kPairResults<T, DepthwiseKind::step_two_pairs>,
             kPairResults<T, DepthwiseKind::two_windows_pairs>},
            depthwise_sums<T>,
            depthwise_products<T>,
            add_lanes<T>,
            add_halves<T>};
}
