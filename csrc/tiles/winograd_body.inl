// The tiles of Winograd's algorithm (see winograd_tiles.h), included by tile_body.inl.

// The points +-a and +-b, and their squares.
constexpr double kA = 0.625, kB = 1.5, kP = kA * kA, kQ = kB * kB;

// v = B^T d. For the pair +-a the polynomial is (x^2 +- a x)(x^2 - q), and likewise for +-b.
template <class T>
INLINE void transform_input(const Vector<T> (&d)[6], Vector<T> (&v)[6]) {
    constexpr T a = T(kA), b = T(kB), p = T(kP), q = T(kQ);
    const Vector<T> even_a = d[4] - q * d[2], odd_a = d[3] - q * d[1];
    const Vector<T> even_b = d[4] - p * d[2], odd_b = d[3] - p * d[1];
    v[0] = p * q * d[0] + (d[4] - (p + q) * d[2]);
    v[1] = even_a + a * odd_a;
    v[2] = even_a - a * odd_a;
    v[3] = even_b + b * odd_b;
    v[4] = even_b - b * odd_b;
    v[5] = p * q * d[1] + (d[5] - (p + q) * d[3]);
}

// y = A^T m.
template <class T>
INLINE void transform_output(const Vector<T> (&m)[6], Vector<T> (&y)[4]) {
    constexpr T a = T(kA), b = T(kB), p = T(kP), q = T(kQ);
    const Vector<T> sum_a = m[1] + m[2], difference_a = m[1] - m[2];
    const Vector<T> sum_b = m[3] + m[4], difference_b = m[3] - m[4];
    y[0] = m[0] + (sum_a + sum_b);
    y[1] = a * difference_a + b * difference_b;
    y[2] = p * sum_a + q * sum_b;
    y[3] = m[5] + (a * p * difference_a + b * q * difference_b);
}

template <class T>
INLINE Vector<T> odd_lanes(Vector<T> a, Vector<T> b) {
    if constexpr (kLanes<T> == 16)
        return __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
    else if constexpr (kLanes<T> == 8)
        return __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15);
    else if constexpr (kLanes<T> == 4)
        return __builtin_shufflevector(a, b, 1, 3, 5, 7);
    else
        return __builtin_shufflevector(a, b, 1, 3);
}

// Lanes 1, 2, ... of a, then lane LANE of b.
template <class T, int LANE>
INLINE Vector<T> next_lanes(Vector<T> a, Vector<T> b) {
    constexpr int L = kLanes<T>;
    if constexpr (L == 16)
        return __builtin_shufflevector(a, b, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, L + LANE);
    else if constexpr (L == 8)
        return __builtin_shufflevector(a, b, 1, 2, 3, 4, 5, 6, 7, L + LANE);
    else if constexpr (L == 4)
        return __builtin_shufflevector(a, b, 1, 2, 3, L + LANE);
    else
        return __builtin_shufflevector(a, b, 1, L + LANE);
}

// Elements 4*t + j of a row for every patch t and j in [0, 6). Reads 5 vectors from p; INSIDE says that all
// are there, otherwise only columns [0, width) are, and p is at `column`.
template <class T, bool INSIDE>
INLINE void load_patches(const T* p, const int (&first)[5], const int (&last)[5], Vector<T> (&d)[6]) {
    constexpr int L = kLanes<T>;
    Vector<T> x[5];
#pragma GCC unroll 5
    for (int i = 0; i < 5; ++i)
        x[i] = INSIDE ? load(p + i * L) : load_lanes<T>(p + i * L, first[i], last[i]);
    const Vector<T> even_low = even_lanes<T>(x[0], x[1]), even_high = even_lanes<T>(x[2], x[3]);
    const Vector<T> odd_low = odd_lanes<T>(x[0], x[1]), odd_high = odd_lanes<T>(x[2], x[3]);
    d[0] = even_lanes<T>(even_low, even_high);
    d[1] = even_lanes<T>(odd_low, odd_high);
    d[2] = odd_lanes<T>(even_low, even_high);
    d[3] = odd_lanes<T>(odd_low, odd_high);
    d[4] = next_lanes<T, 0>(d[0], x[4]);
    d[5] = next_lanes<T, 1>(d[1], x[4]);
}

template <class T, bool INSIDE>
INLINE void transform_patches_where(const WinogradPatches<T>& call) {
    constexpr int L = kLanes<T>;
    int first[5], last[5];
    for (int i = 0; i < 5; ++i) { // which lanes of the vectors of a row lie inside the plane
        const Index begin = -call.column - i * L, end = call.width - call.column - i * L;
        last[i] = end < 0 ? 0 : end < L ? static_cast<int>(end) : L;
        first[i] = begin < 0 ? 0 : begin < last[i] ? static_cast<int>(begin) : last[i];
    }
    for (Index c = 0; c < call.channels; ++c) {
        const T* plane = call.planes + c * call.plane;
        T* to = call.to + c * call.channel_stride;
        Vector<T> rows[6][6];
        for (int r = 0; r < 6; ++r) {
            const Index y = call.row + r;
            Vector<T> d[6] = {};
            if (y >= 0 && y < call.height)
                load_patches<T, INSIDE>(plane + y * call.width + call.column, first, last, d);
            transform_input<T>(d, rows[r]);
        }
        for (int j = 0; j < 6; ++j) {
            const Vector<T> d[6] = {rows[0][j], rows[1][j], rows[2][j], rows[3][j], rows[4][j], rows[5][j]};
            Vector<T> v[6];
            transform_input<T>(d, v);
#pragma GCC unroll 6
            for (int i = 0; i < 6; ++i) {
                T* p = to + (i * 6 + j) * call.product_stride;
                if (call.count == L)
                    store(p, v[i]);
                else
                    store_lanes<T>(p, call.count, v[i]);
            }
        }
    }
}

template <class T>
void transform_patches(const WinogradPatches<T>& call) {
    constexpr Index kReach = 5 * kLanes<T>;
    if (call.column >= 0 && call.column + kReach <= call.width)
        transform_patches_where<T, true>(call);
    else
        transform_patches_where<T, false>(call);
}

template <class T>
bool transform_results(const WinogradResults<T>& call) {
    constexpr int L = kLanes<T>;
    Vector<T> check = {}; // becomes NaN where a result is not finite
    for (Index c = 0; c < call.channels; ++c) {
        const T* from = call.products + c * call.channel_stride;
        T* to = call.to + c * call.plane;
        const Vector<T> bias = call.bias == nullptr ? Vector<T>{} : broadcast(call.bias[c]);
        Vector<T> rows[4][6];
        for (int j = 0; j < 6; ++j) {
            Vector<T> m[6], y[4];
#pragma GCC unroll 6
            for (int i = 0; i < 6; ++i) {
                const T* p = from + (i * 6 + j) * call.product_stride;
                m[i] = call.count == L ? load(p) : load_lanes<T>(p, 0, call.count);
            }
            transform_output<T>(m, y);
            for (int i = 0; i < 4; ++i)
                rows[i][j] = y[i];
        }
        for (int i = 0; i < call.rows; ++i) {
            Vector<T> y[4];
            transform_output<T>(rows[i], y);
            for (int j = 0; j < 4; ++j) {
                check += (y[j] - y[j]);
                y[j] = activate<T>(y[j] + bias, call.activation);
            }
            const Vector<T> even_low = interleave_low<T>(y[0], y[2]), odd_low = interleave_low<T>(y[1], y[3]);
            const Vector<T> even_high = interleave_high<T>(y[0], y[2]),
                            odd_high = interleave_high<T>(y[1], y[3]);
            const Vector<T> x[4] = {
                interleave_low<T>(even_low, odd_low), interleave_high<T>(even_low, odd_low),
                interleave_low<T>(even_high, odd_high), interleave_high<T>(even_high, odd_high)};
            T* p = to + i * call.row_stride;
            for (int j = 0; j < 4; ++j, p += L) {
                const int count = call.columns - j * L;
                if (count >= L)
                    store(p, x[j]);
                else if (count > 0)
                    store_lanes<T>(p, count, x[j]);
            }
        }
    }
    T lanes[L];
    store(lanes, check);
    bool finite = true;
    for (int i = 0; i < L; ++i)
        finite &= lanes[i] == 0;
    return finite;
}

// The same element of the filters of ROWS result channels; vectors have a power of two of lanes.
template <class T>
struct FilterLanes {
    static_assert(ROWS <= 8);
    typedef T type __attribute__((vector_size(8 * sizeof(T))));
};

// u = G g of a column or row.
template <class T, class V>
INLINE void transform_filter(V g0, V g1, V g2, V (&u)[6]) {
    constexpr T a = T(kA), b = T(kB), p = T(kP), q = T(kQ);
    constexpr T n_a = 1 / (2 * p * (p - q)), n_b = 1 / (2 * q * (q - p));
    const V even_a = (g0 + p * g2) * n_a, odd_a = g1 * (a * n_a);
    const V even_b = (g0 + q * g2) * n_b, odd_b = g1 * (b * n_b);
    u[0] = g0 * (1 / (p * q));
    u[1] = even_a + odd_a;
    u[2] = even_a - odd_a;
    u[3] = even_b + odd_b;
    u[4] = even_b - odd_b;
    u[5] = g2;
}

template <class T>
void transform_filters(const T* filters, Index count, T* u, Index product_stride) {
    using V = typename FilterLanes<T>::type;
    for (Index c = 0; c < count; ++c, filters += 9 * ROWS, u += ROWS) {
        V g[9] = {}, columns[3][6], row[6];
        for (int j = 0; j < 9; ++j)
            __builtin_memcpy(&g[j], filters + j * ROWS, ROWS * sizeof(T));
        for (int j = 0; j < 3; ++j)
            transform_filter<T, V>(g[j], g[3 + j], g[6 + j], columns[j]);
        for (int e = 0; e < 6; ++e) {
            transform_filter<T, V>(columns[0][e], columns[1][e], columns[2][e], row);
            for (int f = 0; f < 6; ++f)
                __builtin_memcpy(u + (e * 6 + f) * product_stride, &row[f], ROWS * sizeof(T));
        }
    }
}

template <class T>
constexpr WinogradTiles<T> winograd_table() {
    return {transform_patches<T>, transform_results<T>, transform_filters<T>};
}
