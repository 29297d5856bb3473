// The tiles of pooling (see pool_tiles.h), included by tile_body.inl.

template <class T>
using Positions = Vector<Position<T>>;

template <class T>
INLINE Positions<T> lane_numbers() {
    Position<T> numbers[kLanes<T>];
    for (int i = 0; i < kLanes<T>; ++i)
        numbers[i] = i;
    return load(numbers);
}

// --- rows with a step --------------------------------------------------------------------------------------

// Elements p[0], p[step], p[2*step], ... STEP is the step where it is known, otherwise 0. With step 2 the
// element behind the last one is read, too.
template <class T, int STEP>
INLINE Vector<T> load_step(const T* p, Index step) {
    constexpr int L = kLanes<T>;
    if constexpr (STEP == 1)
        return load(p);
    if constexpr (STEP == 2)
        return even_lanes<T>(load(p), load(p + L));
    T lanes[L];
#pragma GCC unroll 16
    for (int i = 0; i < L; ++i)
        lanes[i] = p[i * step];
    return load(lanes);
}

// The same of the lanes [first, last) only, first < last, with zero elsewhere. Touches nothing else.
template <class T, int STEP>
INLINE Vector<T> load_step_lanes(const T* p, Index step, int first, int last) {
    constexpr int L = kLanes<T>;
    if constexpr (STEP == 1)
        return load_lanes<T>(p, first, last);
    if constexpr (STEP == 2) {
        const int begin = 2 * first, end = 2 * last - 1;
        const Vector<T> low = load_lanes<T>(p, begin < L ? begin : L, end < L ? end : L);
        if (end <= L)
            return even_lanes<T>(low, Vector<T>{});
        return even_lanes<T>(low, load_lanes<T>(p + L, begin > L ? begin - L : 0, end - L));
    }
    T lanes[L] = {};
    for (int i = first; i < last; ++i)
        lanes[i] = p[i * step];
    return load(lanes);
}

// The lanes whose element start + lane*step lies in [0, size).
struct LaneRange {
    int first, last;
};

template <class T>
INLINE LaneRange lanes_inside(Index start, Index step, Index size) {
    constexpr int L = kLanes<T>;
    const Index first = start >= 0 ? 0 : (step - 1 - start) / step;
    const Index last = start >= size ? 0 : (size - start + step - 1) / step;
    const int end = last < L ? static_cast<int>(last) : L;
    return {first < end ? static_cast<int>(first) : end, end};
}

// Whether all that load_step reads for a vector of windows lies inside the row.
template <class T, int STEP>
INLINE bool all_inside(Index start, Index step, const RowWindows& w) {
    constexpr int L = kLanes<T>;
    const Index length = STEP == 0 ? step * (L - 1) + 1 : STEP * L;
    return w.kernel > 0 && start >= 0 && start + (w.kernel - 1) * w.dilation + length <= w.size;
}

// --- maxima ------------------------------------------------------------------------------------------------

// The maximum of no element.
template <class T>
constexpr T lowest() {
    if constexpr (static_cast<T>(0.5) != 0)
        return -static_cast<T>(__builtin_inf());
    else
        return static_cast<T>(~0ull << (8 * sizeof(T) - 1));
}

// Results of windows without an element. They are rare: kept out of the loops that have them.
template <class T>
__attribute__((noinline)) void store_lowest(T* values, Position<T>* positions, Index count) {
    for (Index i = 0; i < count; ++i)
        values[i] = lowest<T>();
    for (Index i = 0; i < count && positions != nullptr; ++i)
        positions[i] = -1;
}

// Where a candidate takes the place of the best before it.
template <class T>
INLINE Positions<T> wins(Vector<T> candidate, Vector<T> best) {
    if constexpr (static_cast<T>(0.5) != 0)
        return (Positions<T>)(candidate > best) | (Positions<T>)(candidate != candidate);
    else
        return (Positions<T>)(candidate > best);
}

template <class T, int STEP, bool WHERE>
INLINE void max_along_step(const T* row, Position<T> first, const RowWindows& w, T* values,
                           Position<T>* positions) {
    constexpr int L = kLanes<T>;
    const Index step = STEP == 0 ? w.step : STEP;
    const Positions<T> lane = lane_numbers<T>();
    const Positions<T> next = broadcast(static_cast<Position<T>>(w.dilation));
    for (Index j = 0; j < w.results; j += L) {
        const Index start = j * step - w.pad;
        Positions<T> at = static_cast<Position<T>>(first + start) + lane * static_cast<Position<T>>(step);
        Vector<T> best;
        Positions<T> where;
        if (all_inside<T, STEP>(start, step, w)) {
            best = load_step<T, STEP>(row + start, step);
            where = at;
            for (Index t = 1; t < w.kernel; ++t) {
                const Vector<T> candidate = load_step<T, STEP>(row + start + t * w.dilation, step);
                const Positions<T> better = wins<T>(candidate, best);
                at += next;
                best = better ? candidate : best;
                where = better ? at : where;
            }
        } else {
            best = broadcast(lowest<T>());
            where = Positions<T>{} - 1;
            for (Index t = 0; t < w.kernel; ++t, at += next) {
                const Index offset = start + t * w.dilation;
                const LaneRange inside = lanes_inside<T>(offset, step, w.size);
                if (inside.first >= inside.last)
                    continue;
                const Vector<T> candidate =
                    load_step_lanes<T, STEP>(row + offset, step, inside.first, inside.last);
                const Positions<T> better =
                    (lane >= inside.first) & (lane < inside.last) & (wins<T>(candidate, best) | (where < 0));
                best = better ? candidate : best;
                where = better ? at : where;
            }
        }
        store(values + j, best);
        if constexpr (WHERE)
            store(positions + j, where);
    }
}

template <class T, int STEP>
INLINE void max_along_any(const T* row, Position<T> first, const RowWindows& w, T* values,
                          Position<T>* positions) {
    if (positions == nullptr)
        max_along_step<T, STEP, false>(row, first, w, values, positions);
    else
        max_along_step<T, STEP, true>(row, first, w, values, positions);
}

template <class T>
void max_along(const T* row, Position<T> first, const RowWindows& w, T* values, Position<T>* positions) {
    if (w.step == 1)
        max_along_any<T, 1>(row, first, w, values, positions);
    else if (w.step == 2)
        max_along_any<T, 2>(row, first, w, values, positions);
    else
        max_along_any<T, 0>(row, first, w, values, positions);
}

template <class T, bool WHERE>
INLINE void max_along_lists(const T* row, Position<T> first, const RowLists& w, T* values,
                            Position<T>* positions) {
    constexpr int L = kLanes<T>;
    const Index *begin = w.begin, *entries = w.entries;
    for (Index j = 0, results = w.results; j < results; ++j) {
        const Index *entry = entries + begin[j], *end = entries + begin[j + 1];
        if (entry == end) {
            store_lowest(values + j * L, WHERE ? positions + j * L : nullptr, L);
            continue;
        }
        Vector<T> best = load(row + *entry * L);
        Positions<T> where = broadcast(static_cast<Position<T>>(first + *entry));
        while (++entry < end) {
            const Vector<T> candidate = load(row + *entry * L);
            const Positions<T> better = wins<T>(candidate, best);
            best = better ? candidate : best;
            where = better ? broadcast(static_cast<Position<T>>(first + *entry)) : where;
        }
        store(values + j * L, best);
        if constexpr (WHERE)
            store(positions + j * L, where);
    }
}

template <class T>
void max_along_interleaved(const T* row, Position<T> first, const RowLists& w, T* values,
                           Position<T>* positions) {
    if (positions == nullptr)
        max_along_lists<T, false>(row, first, w, values, positions);
    else
        max_along_lists<T, true>(row, first, w, values, positions);
}

template <class T, bool WHERE>
INLINE void max_across_rows(const T* values, const Position<T>* positions, const Index* rows, Index row_count,
                            Index count, T* y, Position<T>* to) {
    constexpr int L = kLanes<T>;
    if (row_count == 0)
        return store_lowest(y, to, count);
    for (Index j = 0; j < count; j += L) {
        Vector<T> best = load(values + rows[0] + j);
        Positions<T> where = {};
        if constexpr (WHERE)
            where = load(positions + rows[0] + j);
        for (Index r = 1; r < row_count; ++r) {
            const Vector<T> candidate = load(values + rows[r] + j);
            const Positions<T> better = wins<T>(candidate, best);
            best = better ? candidate : best;
            if constexpr (WHERE)
                where = better ? load(positions + rows[r] + j) : where;
        }
        if (count - j >= L) {
            store(y + j, best);
            if constexpr (WHERE)
                store(to + j, where);
        } else {
            store_lanes<T>(y + j, static_cast<int>(count - j), best);
            if constexpr (WHERE)
                store_lanes<Position<T>>(to + j, static_cast<int>(count - j), where);
        }
    }
}

template <class T>
void max_across(const T* values, const Position<T>* positions, const Index* rows, Index row_count,
                Index count, T* y, Position<T>* where) {
    if (positions == nullptr)
        max_across_rows<T, false>(values, positions, rows, row_count, count, y, where);
    else
        max_across_rows<T, true>(values, positions, rows, row_count, count, y, where);
}

// The best of lanes with their own best each: of equals the first position, of NaNs the last. Position -1
// stands for a lane that found nothing above the lowest value; if all did, `first` holds the maximum.
template <class T>
__attribute__((noinline)) void best_lane(const T* values, const Position<T>* positions, Position<T> first,
                                         T* value, Position<T>* where) {
    T best = lowest<T>();
    Position<T> at = -1;
    for (int l = 0; l < kLanes<T>; ++l) {
        const T v = values[l];
        const Position<T> p = positions[l];
        if (p >= 0 && (at < 0 || v > best || (v == best && p < at) || (v != v && (best == best || p > at)))) {
            best = v;
            at = p;
        }
    }
    *value = best;
    *where = at < 0 ? first : at;
}

template <class T>
void max_window(const T* plane, Index first, const Index* rows, Index row_count, Index length, T* value,
                Position<T>* where) {
    constexpr int L = kLanes<T>;
    const Positions<T> lane = lane_numbers<T>();
    Vector<T> best = broadcast(lowest<T>());
    Positions<T> places = Positions<T>{} - 1;
    for (Index r = 0; r < row_count; ++r) {
        const T* row = plane + rows[r] + first;
        Positions<T> at = static_cast<Position<T>>(rows[r] + first) + lane;
        Index i = 0;
        for (; i + L <= length; i += L, at += L) {
            const Vector<T> candidate = load(row + i);
            const Positions<T> better = wins<T>(candidate, best);
            best = better ? candidate : best;
            places = better ? at : places;
        }
        if (i < length) {
            const int count = static_cast<int>(length - i);
            const Vector<T> candidate = load_lanes<T>(row + i, 0, count);
            const Positions<T> better = (lane < count) & wins<T>(candidate, best);
            best = better ? candidate : best;
            places = better ? at : places;
        }
    }
    T values[L];
    Position<T> positions[L];
    store(values, best);
    store(positions, places);
    const bool empty = row_count == 0 || length == 0;
    best_lane(values, positions, empty ? -1 : static_cast<Position<T>>(rows[0] + first), value, where);
}

template <class T>
void widen(const Position<T>* from, Index count, Index* to, bool past_caches) {
    constexpr int L = kLanes<Index>;
    Index i = 0;
    if (past_caches) {
        for (; i < count && reinterpret_cast<std::uintptr_t>(to + i) % VECTOR_BYTES != 0; ++i)
            to[i] = from[i];
        for (; i + L <= count; i += L) {
            Index lanes[L];
#pragma GCC unroll 8
            for (int lane = 0; lane < L; ++lane)
                lanes[lane] = from[i + lane];
            store_past_caches(to + i, load(lanes));
        }
        finish_stores();
    }
    for (; i < count; ++i)
        to[i] = from[i];
}

// --- sums --------------------------------------------------------------------------------------------------

template <class T, int STEP>
INLINE void sum_along_step(const T* row, const RowWindows& w, T* sums) {
    const Index step = STEP == 0 ? w.step : STEP;
    for (Index j = 0; j < w.results; j += kLanes<T>) {
        const Index start = j * step - w.pad;
        Vector<T> sum = {};
        if (all_inside<T, STEP>(start, step, w)) {
            for (Index t = 0; t < w.kernel; ++t)
                sum += load_step<T, STEP>(row + start + t * w.dilation, step);
        } else {
            for (Index t = 0; t < w.kernel; ++t) {
                const Index offset = start + t * w.dilation;
                const LaneRange inside = lanes_inside<T>(offset, step, w.size);
                if (inside.first < inside.last)
                    sum += load_step_lanes<T, STEP>(row + offset, step, inside.first, inside.last);
            }
        }
        store(sums + j, sum);
    }
}

template <class T>
void sum_along(const T* row, const RowWindows& w, T* sums) {
    if (w.step == 1)
        sum_along_step<T, 1>(row, w, sums);
    else if (w.step == 2)
        sum_along_step<T, 2>(row, w, sums);
    else
        sum_along_step<T, 0>(row, w, sums);
}

template <class T>
void sum_along_interleaved(const T* row, const RowLists& w, T* sums) {
    constexpr int L = kLanes<T>;
    const Index *begin = w.begin, *entries = w.entries;
    for (Index j = 0, results = w.results; j < results; ++j) {
        Vector<T> sum = {};
        for (Index i = begin[j]; i < begin[j + 1]; ++i)
            sum += load(row + entries[i] * L);
        store(sums + j * L, sum);
    }
}

template <class T>
void sum_across(const T* sums, const Index* rows, Index row_count, Index count, const T* divisors,
                bool interleaved, T* y) {
    constexpr int L = kLanes<T>;
    constexpr Index kBlock = 256; // rows: sums of sums keep rounding errors from growing with the window
    for (Index j = 0; j < count; j += L) {
        Vector<T> sum = {};
        for (Index begin = 0; begin < row_count; begin += kBlock) {
            const Index end = row_count - begin < kBlock ? row_count : begin + kBlock;
            Vector<T> part = load(sums + rows[begin] + j);
            for (Index r = begin + 1; r < end; ++r)
                part += load(sums + rows[r] + j);
            sum += part;
        }
        if (divisors != nullptr)
            sum /= interleaved ? broadcast(divisors[j / L]) : load(divisors + j);
        if (count - j >= L)
            store(y + j, sum);
        else
            store_lanes<T>(y + j, static_cast<int>(count - j), sum);
    }
}

template <class T>
void divide(const T* from, const T* divisors, Index count, T* to) {
    constexpr int L = kLanes<T>;
    Index j = 0;
    for (; j + L <= count; j += L)
        store(to + j, load(from + j) / load(divisors + j));
    for (; j < count; ++j)
        to[j] = from[j] / divisors[j];
}

// Sums of a few vectors at a time keep rounding errors from growing with the window.
template <class T>
T sum_window(const T* plane, Index first, const Index* rows, Index row_count, Index length) {
    constexpr int L = kLanes<T>;
    constexpr Index kBlock = 256 * L;
    Vector<T> total = {}, sums[4] = {};
    Index pending = 0; // elements in `sums`
    for (Index r = 0; r < row_count; ++r)
        for (Index begin = 0; begin < length; begin += kBlock) {
            const T* p = plane + rows[r] + first + begin;
            const Index count = length - begin < kBlock ? length - begin : kBlock;
            Index i = 0;
            for (; i + 4 * L <= count; i += 4 * L)
#pragma GCC unroll 4
                for (int v = 0; v < 4; ++v)
                    sums[v] += load(p + i + v * L);
            for (; i + L <= count; i += L)
                sums[0] += load(p + i);
            if (i < count)
                sums[1] += load_lanes<T>(p + i, 0, static_cast<int>(count - i));
            pending += count;
            if (pending >= kBlock) {
                total += (sums[0] + sums[1]) + (sums[2] + sums[3]);
                sums[0] = sums[1] = sums[2] = sums[3] = Vector<T>{};
                pending = 0;
            }
        }
    total += (sums[0] + sums[1]) + (sums[2] + sums[3]);
    T lanes[L];
    store(lanes, total);
    T sum{};
    for (int l = 0; l < L; ++l)
        sum += lanes[l];
    return sum;
}

template <class T>
void add_to_window(T share, Index first, const Index* rows, Index row_count, Index length, T* plane) {
    constexpr int L = kLanes<T>;
    for (Index r = 0; r < row_count; ++r) {
        T* row = plane + rows[r] + first;
        Index i = 0;
        for (; i + L <= length; i += L)
            store(row + i, load(row + i) + share);
        for (; i < length; ++i)
            row[i] += share;
    }
}

template <class T>
void alternate(const T* even, const T* odd, Index count, T* to) {
    constexpr int L = kLanes<T>;
    for (Index i = 0; i < count; i += L) {
        const Vector<T> a = load(even + i), b = load(odd + i);
        store(to + 2 * i, interleave_low<T>(a, b));
        store(to + 2 * i + L, interleave_high<T>(a, b));
    }
}

// --- the tables --------------------------------------------------------------------------------------------

template <class T>
constexpr MaxTiles<T> max_table() {
    return {max_along<T>, max_along_interleaved<T>, max_across<T>, max_window<T>, widen<T>};
}

template <class T>
constexpr SumTiles<T> sum_table() {
    return {sum_along<T>,  sum_along_interleaved<T>, sum_across<T>, divide<T>,
            sum_window<T>, add_to_window<T>,         alternate<T>};
}

constexpr PoolTileSet pool_table() {
    return {max_table<float>(),        max_table<double>(), max_table<std::int32_t>(),
            max_table<std::int64_t>(), sum_table<float>(),  sum_table<double>()};
}
