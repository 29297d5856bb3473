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

// Whether no window from j on, in a vector, has an element outside the row, while load_step reads nothing
// outside the array: behind the last window it may read what follows.
template <class T, int STEP>
INLINE bool all_inside(const T* row, Index j, const T* end, const RowWindows& w) {
    constexpr int L = kLanes<T>;
    const Index step = STEP == 0 ? w.step : STEP, start = j * step - w.pad;
    const Index windows = w.results - j < L ? w.results - j : L;
    const Index length = STEP == 0 ? step * (L - 1) + 1 : STEP * L;
    const Index last = start + (w.kernel - 1) * w.dilation; // tap of the first window
    return w.kernel > 0 && start >= 0 && last + (windows - 1) * step < w.size && last + length <= end - row;
}

// What rows read soon is fetched this far ahead: processors foresee short rows badly.
constexpr Index kPoolAhead = 4096;

template <class T>
INLINE void fetch_ahead(const T* p, Index step) {
    const char* from = reinterpret_cast<const char*>(p) + kPoolAhead;
    for (Index line = 0; line < step * VECTOR_BYTES && line < 4 * VECTOR_BYTES; line += kLine)
        __builtin_prefetch(from + line);
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
INLINE void max_along_row(const T* row, Position<T> first, const T* end, const RowWindows& w, T* values,
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
        if (all_inside<T, STEP>(row, j, end, w)) {
            fetch_ahead(row + start, step);
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

template <class T, int STEP, bool WHERE>
INLINE void max_along_rows(const PoolSources<T>& rows, const RowWindows& windows, T* values,
                           Position<T>* positions, Index pitch) {
    const RowWindows w = windows;
    for (Index i = 0; i < rows.count; ++i) {
        max_along_row<T, STEP, WHERE>(rows.plane + rows.starts[i], static_cast<Position<T>>(rows.starts[i]),
                                      rows.end, w, values, positions);
        values += pitch;
        if constexpr (WHERE)
            positions += pitch;
    }
}

template <class T, int STEP>
INLINE void max_along_any(const PoolSources<T>& rows, const RowWindows& w, T* values, Position<T>* positions,
                          Index pitch) {
    if (positions == nullptr)
        max_along_rows<T, STEP, false>(rows, w, values, positions, pitch);
    else
        max_along_rows<T, STEP, true>(rows, w, values, positions, pitch);
}

template <class T>
void max_along(const PoolSources<T>& rows, const RowWindows& w, T* values, Position<T>* positions,
               Index pitch) {
    if (w.step == 1)
        max_along_any<T, 1>(rows, w, values, positions, pitch);
    else if (w.step == 2)
        max_along_any<T, 2>(rows, w, values, positions, pitch);
    else
        max_along_any<T, 0>(rows, w, values, positions, pitch);
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
INLINE void max_across_row(const T* values, const Position<T>* positions, Index pitch, const Index* rows,
                           Index row_count, Index count, T* y, Position<T>* to) {
    constexpr int L = kLanes<T>;
    if (row_count == 0)
        return store_lowest(y, to, count);
    for (Index j = 0; j < count; j += L) {
        Vector<T> best = load(values + rows[0] * pitch + j);
        Positions<T> where = {};
        if constexpr (WHERE)
            where = load(positions + rows[0] * pitch + j);
        for (Index r = 1; r < row_count; ++r) {
            const Vector<T> candidate = load(values + rows[r] * pitch + j);
            const Positions<T> better = wins<T>(candidate, best);
            best = better ? candidate : best;
            if constexpr (WHERE)
                where = better ? load(positions + rows[r] * pitch + j) : where;
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

template <class T, bool WHERE>
INLINE void max_across_rows(const T* values, const Position<T>* positions, Index pitch, const RowLists& rows,
                            Index count, T* y, Position<T>* where) {
    const Index *begin = rows.begin, *entries = rows.entries;
    for (Index r = 0, results = rows.results; r < results; ++r) {
        max_across_row<T, WHERE>(values, positions, pitch, entries + begin[r], begin[r + 1] - begin[r], count,
                                 y, where);
        y += count;
        if constexpr (WHERE)
            where += count;
    }
}

template <class T>
void max_across(const T* values, const Position<T>* positions, Index pitch, const RowLists& rows, Index count,
                T* y, Position<T>* where) {
    if (positions == nullptr)
        max_across_rows<T, false>(values, positions, pitch, rows, count, y, where);
    else
        max_across_rows<T, true>(values, positions, pitch, rows, count, y, where);
}

// The candidate where it wins.
template <class T>
INLINE void take(Vector<T>& best, Positions<T>& where, Vector<T> candidate, Positions<T> at) {
    const Positions<T> better = wins<T>(candidate, best);
    best = better ? candidate : best;
    where = better ? at : where;
}

constexpr int kChains = 4; // of comparisons that do not wait for each other

// The best of lanes with their own best each: of equals the first position, of NaNs the last. Position -1
// stands for a lane that found nothing above the lowest value; if all did, `first` holds the maximum.
template <class T>
__attribute__((noinline)) void best_lane(const T* values, const Position<T>* positions, Position<T> first,
                                         T* value, Position<T>* where) {
    T best = lowest<T>();
    Position<T> at = -1;
    for (int l = 0; l < kChains * kLanes<T>; ++l) {
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

// The better of two lanes, no NaNs, that found their best apart from each other. Position -1 goes with the
// lowest value only, and no other does.
template <class T>
INLINE void take_better(Vector<T>& best, Positions<T>& where, Vector<T> candidate, Positions<T> at) {
    const Positions<T> better =
        (Positions<T>)(candidate > best) | ((Positions<T>)(candidate == best) & (at < where));
    best = better ? candidate : best;
    where = better ? at : where;
}

template <class T, int N>
INLINE void take_better_lanes(Vector<T>& best, Positions<T>& where) {
    take_better<T>(best, where, lanes_from<T, N>(best), lanes_from<Position<T>, N>(where));
}

template <class T>
void max_window(const T* plane, Index first, const Index* rows, Index row_count, Index length, T* value,
                Position<T>* where) {
    constexpr int L = kLanes<T>;
    const Positions<T> lane = lane_numbers<T>();
    Vector<T> best[kChains];
    Positions<T> places[kChains];
#pragma GCC unroll 4
    for (int c = 0; c < kChains; ++c) {
        best[c] = broadcast(lowest<T>());
        places[c] = Positions<T>{} - 1;
    }
    for (Index r = 0; r < row_count; ++r) {
        const T* row = plane + rows[r] + first;
        Positions<T> at = static_cast<Position<T>>(rows[r] + first) + lane;
        Index i = 0;
        for (; i + kChains * L <= length; i += kChains * L)
#pragma GCC unroll 4
            for (int c = 0; c < kChains; ++c, at += L)
                take<T>(best[c], places[c], load(row + i + c * L), at);
        for (; i + L <= length; i += L, at += L)
            take<T>(best[0], places[0], load(row + i), at);
        if (i < length) {
            const int count = static_cast<int>(length - i);
            const Vector<T> candidate = load_lanes<T>(row + i, 0, count);
            take<T>(best[1], places[1], lane < count ? candidate : broadcast(lowest<T>()), at);
        }
    }
    const bool empty = row_count == 0 || length == 0;
    const Position<T> start = empty ? -1 : static_cast<Position<T>>(rows[0] + first);
    T values[kChains * L];
    Position<T> positions[kChains * L];
    bool numbers = true;
#pragma GCC unroll 4
    for (int c = 0; c < kChains; ++c) {
        store(values + c * L, best[c]);
        store(positions + c * L, places[c]);
    }
    if constexpr (static_cast<T>(0.5) != 0)
        for (int l = 0; l < kChains * L; ++l)
            numbers &= values[l] == values[l];
    if (!numbers)
        return best_lane(values, positions, start, value, where);
    take_better<T>(best[0], places[0], best[1], places[1]);
    take_better<T>(best[2], places[2], best[3], places[3]);
    take_better<T>(best[0], places[0], best[2], places[2]);
    if constexpr (L > 8)
        take_better_lanes<T, 8>(best[0], places[0]);
    if constexpr (L > 4)
        take_better_lanes<T, 4>(best[0], places[0]);
    if constexpr (L > 2)
        take_better_lanes<T, 2>(best[0], places[0]);
    take_better_lanes<T, 1>(best[0], places[0]);
    *value = best[0][0];
    *where = places[0][0] < 0 ? start : places[0][0];
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
INLINE void sum_along_row(const T* row, const T* end, const RowWindows& w, T* sums) {
    const Index step = STEP == 0 ? w.step : STEP;
    for (Index j = 0; j < w.results; j += kLanes<T>) {
        const Index start = j * step - w.pad;
        Vector<T> sum = {};
        if (all_inside<T, STEP>(row, j, end, w)) {
            fetch_ahead(row + start, step);
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

template <class T, int STEP>
INLINE void sum_along_rows(const PoolSources<T>& rows, const RowWindows& windows, T* sums, Index pitch) {
    const RowWindows w = windows;
    for (Index i = 0; i < rows.count; ++i)
        sum_along_row<T, STEP>(rows.plane + rows.starts[i], rows.end, w, sums + i * pitch);
}

template <class T>
void sum_along(const PoolSources<T>& rows, const RowWindows& w, T* sums, Index pitch) {
    if (w.step == 1)
        sum_along_rows<T, 1>(rows, w, sums, pitch);
    else if (w.step == 2)
        sum_along_rows<T, 2>(rows, w, sums, pitch);
    else
        sum_along_rows<T, 0>(rows, w, sums, pitch);
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
INLINE void sum_across_row(const T* sums, Index pitch, const Index* rows, Index row_count, Index count,
                           const T* divisors, bool interleaved, T* y) {
    constexpr int L = kLanes<T>;
    constexpr Index kBlock = 256; // rows: sums of sums keep rounding errors from growing with the window
    for (Index j = 0; j < count; j += L) {
        Vector<T> sum = {};
        for (Index begin = 0; begin < row_count; begin += kBlock) {
            const Index end = row_count - begin < kBlock ? row_count : begin + kBlock;
            Vector<T> part = load(sums + rows[begin] * pitch + j);
            for (Index r = begin + 1; r < end; ++r)
                part += load(sums + rows[r] * pitch + j);
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
void sum_across(const T* sums, Index pitch, const RowLists& rows, Index count, const T* const* divisors,
                bool interleaved, T* y) {
    const Index *begin = rows.begin, *entries = rows.entries;
    for (Index r = 0, results = rows.results; r < results; ++r, y += count)
        sum_across_row(sums, pitch, entries + begin[r], begin[r + 1] - begin[r], count,
                       divisors == nullptr ? nullptr : divisors[r], interleaved, y);
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

// Lane i is the sum of the lanes of v[i]. Each step adds the halves of two vectors: one's sums are in the
// even lanes, the other's in the odd ones.
template <class T>
INLINE Vector<T> lane_sums(const Vector<T> (&v)[kLanes<T>]) {
    constexpr int L = kLanes<T>;
    Vector<T> sums[L];
#pragma GCC unroll 16
    for (int i = 0; i < L; ++i)
        sums[i] = v[i];
#pragma GCC unroll 4
    for (int half = L / 2; half > 0; half /= 2)
#pragma GCC unroll 8
        for (int i = 0; i < half; ++i)
            sums[i] =
                interleave_low<T>(sums[i], sums[i + half]) + interleave_high<T>(sums[i], sums[i + half]);
    return sums[0];
}

template <class T>
void total(const T* rows, Index length, Index count, T* totals) {
    constexpr int L = kLanes<T>;
    const Index zero = 0;
    for (Index i = 0; i < count; i += L, rows += L * length, totals += L) {
        if (length > 8 * L || count - i < L) { // the lanes' sum is a small part, or there are too few
            for (Index r = 0; r < count - i && r < L; ++r)
                totals[r] = sum_window(rows, r * length, &zero, 1, length);
            continue;
        }
        Vector<T> sums[L];
#pragma GCC unroll 16
        for (int r = 0; r < L; ++r) {
            const T* row = rows + r * length;
            fetch_ahead(row, 1);
            Vector<T> sum = {};
            Index j = 0;
            for (; j + L <= length; j += L)
                sum += load(row + j);
            if (j < length)
                sum += load_lanes<T>(row + j, 0, static_cast<int>(length - j));
            sums[r] = sum;
        }
        store(totals, lane_sums<T>(sums));
    }
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

// --- small windows in one stage ----------------------------------------------------------------------------

// How the elements of a vector of windows are read.
enum class Reading {
    plain,
    choosing, // some lanes lie outside the row, though inside the array
    masked    // so that nothing outside the row is touched
};

// Results of a vector in one row, and elements read at most.
template <class T, bool PAIR>
constexpr int kSmallWidth = PAIR ? kLanes<T> / 2 : kLanes<T>;
template <class T, int KERNEL, bool PAIR>
constexpr Index kSmallReach = KERNEL - 1 + (PAIR ? kLanes<T> : 2 * kLanes<T>);

// Vectors of windows of KERNEL neighbours with step 2, in one row or, where two rows of results fit into a
// vector, in two: lanes from L / 2 on belong to the second.
template <class T, int KERNEL, bool PAIR>
struct SmallWindows {
    Index start, size; // of the first window; of the row

    // Of window j of the vector.
    INLINE Positions<T> columns() const {
        const Positions<T> lane = lane_numbers<T>();
        const Positions<T> window = lane & static_cast<Position<T>>(kSmallWidth<T, PAIR> - 1);
        return static_cast<Position<T>>(start) + window * 2;
    }

    template <Reading READING>
    INLINE Vector<T> elements(const T* row, Index offset) const {
        if constexpr (READING != Reading::masked)
            return load(row + start + offset);
        constexpr int L = kLanes<T>;
        const Index first = start + offset < 0 ? -(start + offset) : 0, last = size - (start + offset);
        const int end = last < 0 ? 0 : last < L ? static_cast<int>(last) : L;
        return load_lanes<T>(row + start + offset, first < end ? static_cast<int>(first) : end, end);
    }

    // Tap t of all windows. Those outside the row are `outside`, unless nothing is outside.
    template <Reading READING>
    INLINE void taps(const T* row, const T* second, T outside, Vector<T> (&values)[KERNEL]) const {
#pragma GCC unroll 4
        for (int t = 0; t < KERNEL; t += 2) {
            const Vector<T> low = elements<READING>(row, t);
            const Vector<T> high =
                PAIR ? elements<READING>(second, t) : elements<READING>(row, t + kLanes<T>);
            values[t] = even_lanes<T>(low, high);
            if (t + 1 < KERNEL)
                values[t + 1] = odd_lanes<T>(low, high);
        }
        fetch_ahead(row + start, PAIR ? 1 : 2);
        if constexpr (READING != Reading::plain) {
            const Positions<T> first = columns();
#pragma GCC unroll 4
            for (int t = 0; t < KERNEL; ++t) {
                const Positions<T> column = first + t;
                values[t] = ((column >= 0) & (column < static_cast<Position<T>>(size))) ? values[t]
                                                                                        : broadcast(outside);
            }
        }
    }
};

// Calls reduce for every vector of results.
template <class T, int KERNEL, bool PAIR, class Reduce>
INLINE void reduce_windows(const PoolSources<T>& x, const RowWindows& w, const RowLists& lists,
                           const Reduce& reduce) {
    typedef SmallWindows<T, KERNEL, PAIR> Windows;
    const Index *begin = lists.begin, *entries = lists.entries, *starts = x.starts;
    const T *plane = x.plane, *array = x.begin, *end = x.end;
    const Index results = lists.results, columns = w.results, pad = w.pad, size = w.size;
    for (Index r = 0; r < results;) {
        const Index rows = begin[r + 1] - begin[r];
        const bool two = PAIR && r + 1 < results && begin[r + 2] - begin[r + 1] == rows;
        const Index *first = entries + begin[r], *second = two ? first + rows : first;
        const T *top = plane + starts[first[0]], *bottom = plane + starts[second[rows - 1]];
        for (Index j = 0; j < columns; j += kSmallWidth<T, PAIR>) {
            const Index count = columns - j < kSmallWidth<T, PAIR> ? columns - j : kSmallWidth<T, PAIR>;
            const Windows windows{j * 2 - pad, size};
            const Index start = windows.start;
            const bool inside = array - top <= start && start + kSmallReach<T, KERNEL, PAIR> <= end - bottom;
            const bool whole = start >= 0 && start + (count - 1) * 2 + KERNEL <= size;
            if (inside && whole)
                reduce.template vector<Reading::plain>(windows, first, second, rows, r, two, j, count);
            else if (inside)
                reduce.template vector<Reading::choosing>(windows, first, second, rows, r, two, j, count);
            else
                reduce.template vector<Reading::masked>(windows, first, second, rows, r, two, j, count);
        }
        r += two ? 2 : 1;
    }
}

template <class T>
INLINE void store_some(T* p, int count, Vector<T> v) {
    if (count >= kLanes<T>)
        store(p, v);
    else
        store_lanes<T>(p, count, v);
}

// The first `count` lanes, and of two rows the other ones.
template <class T, bool PAIR>
INLINE void store_windows(T* to, Index pitch, bool two, Index count, Vector<T> v) {
    store_some<T>(to, static_cast<int>(count), v);
    if (PAIR && two)
        store_lanes<T>(to + pitch, static_cast<int>(count), lanes_from<T, kLanes<T> / 2>(v));
}

template <class T, int KERNEL, bool PAIR, bool WHERE>
struct MaxWindows {
    const T* plane;
    const Index* starts;
    Index pitch;
    T* y;
    Position<T>* places;

    template <Reading READING>
    INLINE void vector(const SmallWindows<T, KERNEL, PAIR>& windows, const Index* first, const Index* second,
                       Index rows, Index r, bool two, Index j, Index count) const {
        constexpr int L = kLanes<T>;
        const Positions<T> columns = windows.columns();
        Vector<T> best = broadcast(lowest<T>());
        Positions<T> where = {};
        for (Index i = 0; i < rows; ++i) {
            const Index a = starts[first[i]], b = PAIR ? starts[second[i]] : a;
            Vector<T> values[KERNEL];
            windows.template taps<READING>(plane + a, plane + b, lowest<T>(), values);
            Positions<T> at = columns + static_cast<Position<T>>(a);
            if (PAIR)
                at +=
                    lane_numbers<T>() >= L / 2 ? broadcast(static_cast<Position<T>>(b - a)) : Positions<T>{};
            if (i == 0) { // before anything wins, the first element inside has
                const Positions<T> inside = columns < 0 ? -columns : Positions<T>{};
                where = READING == Reading::plain ? at : at + inside;
            }
#pragma GCC unroll 4
            for (int t = 0; t < KERNEL; ++t)
                if (i == 0 && t == 0 && READING == Reading::plain)
                    best = values[0];
                else
                    take<T>(best, where, values[t], at + t);
        }
        store_windows<T, PAIR>(y + r * pitch + j, pitch, two, count, best);
        if constexpr (WHERE)
            store_windows<Position<T>, PAIR>(places + r * pitch + j, pitch, two, count, where);
    }
};

template <class T, int KERNEL, bool PAIR>
INLINE void max_small(const PoolSources<T>& x, const RowWindows& w, const RowLists& rows, T* y,
                      Position<T>* places) {
    if (places == nullptr)
        reduce_windows<T, KERNEL, PAIR>(
            x, w, rows, MaxWindows<T, KERNEL, PAIR, false>{x.plane, x.starts, w.results, y, places});
    else
        reduce_windows<T, KERNEL, PAIR>(
            x, w, rows, MaxWindows<T, KERNEL, PAIR, true>{x.plane, x.starts, w.results, y, places});
}

template <class T>
void max_windows(const PoolSources<T>& x, const RowWindows& w, const RowLists& rows, T* y,
                 Position<T>* places) {
    const bool pair = kLanes<T> > 2 && w.results <= kLanes<T> / 2;
    if (w.kernel == 2)
        pair ? max_small<T, 2, true>(x, w, rows, y, places) : max_small<T, 2, false>(x, w, rows, y, places);
    else
        pair ? max_small<T, 3, true>(x, w, rows, y, places) : max_small<T, 3, false>(x, w, rows, y, places);
}

template <class T, int KERNEL, bool PAIR>
struct MeanWindows {
    const T* plane;
    const Index* starts;
    Index pitch;
    T* y;
    const T* const* divisors;

    template <Reading READING>
    INLINE void vector(const SmallWindows<T, KERNEL, PAIR>& windows, const Index* first, const Index* second,
                       Index rows, Index r, bool two, Index j, Index count) const {
        Vector<T> sum = {};
        for (Index i = 0; i < rows; ++i) {
            Vector<T> values[KERNEL];
            windows.template taps<READING>(plane + starts[first[i]], plane + starts[second[i]], T{}, values);
            Vector<T> part = values[0];
#pragma GCC unroll 4
            for (int t = 1; t < KERNEL; ++t)
                part += values[t];
            sum = i == 0 ? part : sum + part;
        }
        T* to = y + r * pitch + j;
        const Vector<T> divisor = load(divisors[r] + j);
        if constexpr (PAIR) {
            store_lanes<T>(to, static_cast<int>(count), sum / divisor);
            if (two)
                store_lanes<T>(to + pitch, static_cast<int>(count),
                               lanes_from<T, kLanes<T> / 2>(sum) / load(divisors[r + 1] + j));
        } else {
            store_some<T>(to, static_cast<int>(count), sum / divisor);
        }
    }
};

template <class T, int KERNEL, bool PAIR>
INLINE void mean_small(const PoolSources<T>& x, const RowWindows& w, const RowLists& rows,
                       const T* const* divisors, T* y) {
    reduce_windows<T, KERNEL, PAIR>(x, w, rows,
                                    MeanWindows<T, KERNEL, PAIR>{x.plane, x.starts, w.results, y, divisors});
}

template <class T>
void mean_windows(const PoolSources<T>& x, const RowWindows& w, const RowLists& rows,
                  const T* const* divisors, T* y) {
    const bool pair = kLanes<T> > 2 && w.results <= kLanes<T> / 2;
    if (w.kernel == 2)
        pair ? mean_small<T, 2, true>(x, w, rows, divisors, y)
             : mean_small<T, 2, false>(x, w, rows, divisors, y);
    else
        pair ? mean_small<T, 3, true>(x, w, rows, divisors, y)
             : mean_small<T, 3, false>(x, w, rows, divisors, y);
}

template <class T>
void spread(const PoolSources<T>& y, const RowWindows& w, const RowLists& rows, const T* const* divisors,
            T* x) {
    constexpr int L = kLanes<T>;
    const Index *begin = rows.begin, *entries = rows.entries;
    const Index size = w.size, results = w.results;
    for (Index r = 0, next; r < rows.results; r = next) {
        const bool empty = begin[r] == begin[r + 1];
        const Index entry = empty ? 0 : entries[begin[r]];
        for (next = r + 1; next < rows.results && (begin[next] == begin[next + 1]) == empty; ++next)
            if (!empty && entries[begin[next]] != entry)
                break;
        const T* shares = y.plane + (empty ? 0 : y.starts[entry]);
        for (Index j = 0; 2 * j < size; j += L) {
            const int count = j >= results ? 0 : results - j < L ? static_cast<int>(results - j) : L;
            Vector<T> share = {};
            if (!empty && count > 0)
                share = (count == L ? load(shares + j) : load_lanes<T>(shares + j, 0, count)) /
                        load(divisors[y.starts[entry] / results] + j);
            const Vector<T> low = interleave_low<T>(share, share), high = interleave_high<T>(share, share);
            const Index left = size - 2 * j;
            for (Index k = r; k < next; ++k) {
                T* to = x + k * size + 2 * j;
                store_some<T>(to, left < L ? static_cast<int>(left) : L, low);
                if (left > L)
                    store_some<T>(to + L, left < 2 * L ? static_cast<int>(left - L) : L, high);
            }
        }
    }
}

// --- the tables --------------------------------------------------------------------------------------------

template <class T>
constexpr MaxTiles<T> max_table() {
    return {max_along<T>, max_along_interleaved<T>, max_across<T>, max_windows<T>, max_window<T>, widen<T>};
}

template <class T>
constexpr SumTiles<T> sum_table() {
    return {sum_along<T>,     sum_along_interleaved<T>,
            sum_across<T>,    mean_windows<T>,
            spread<T>,        divide<T>,
            total<T>,         sum_window<T>,
            add_to_window<T>, alternate<T>};
}

constexpr PoolTileSet pool_table() {
    return {max_table<float>(),        max_table<double>(), max_table<std::int32_t>(),
            max_table<std::int64_t>(), sum_table<float>(),  sum_table<double>()};
}
