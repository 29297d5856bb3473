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

// v = A y, the adjoint of transform_output.
template <class T>
INLINE void transform_input(const Vector<T> (&y)[4], Vector<T> (&v)[6]) {
    constexpr T a = T(kA), b = T(kB), p = T(kP), q = T(kQ);
    const Vector<T> even_a = y[0] + p * y[2], odd_a = a * y[1] + a * p * y[3];
    const Vector<T> even_b = y[0] + q * y[2], odd_b = b * y[1] + b * q * y[3];
    v[0] = y[0];
    v[1] = even_a + odd_a;
    v[2] = even_a - odd_a;
    v[3] = even_b + odd_b;
    v[4] = even_b - odd_b;
    v[5] = y[3];
}

constexpr double kNormA = 1 / (2 * kP * (kP - kQ)), kNormB = 1 / (2 * kQ * (kQ - kP));

// u = G g.
template <class T>
INLINE void transform_filter(const Vector<T> (&g)[3], Vector<T> (&u)[6]) {
    constexpr T a = T(kA), b = T(kB), p = T(kP), q = T(kQ), n_a = T(kNormA), n_b = T(kNormB);
    const Vector<T> even_a = (g[0] + p * g[2]) * n_a, odd_a = g[1] * (a * n_a);
    const Vector<T> even_b = (g[0] + q * g[2]) * n_b, odd_b = g[1] * (b * n_b);
    u[0] = g[0] * (1 / (p * q));
    u[1] = even_a + odd_a;
    u[2] = even_a - odd_a;
    u[3] = even_b + odd_b;
    u[4] = even_b - odd_b;
    u[5] = g[2];
}

// g = G^T u.
template <class T>
INLINE void transform_sum(const Vector<T> (&u)[6], Vector<T> (&g)[3]) {
    constexpr T a = T(kA), b = T(kB), p = T(kP), q = T(kQ), n_a = T(kNormA), n_b = T(kNormB);
    const Vector<T> sum_a = n_a * (u[1] + u[2]), difference_a = n_a * (u[1] - u[2]);
    const Vector<T> sum_b = n_b * (u[3] + u[4]), difference_b = n_b * (u[3] - u[4]);
    g[0] = (1 / (p * q)) * u[0] + (sum_a + sum_b);
    g[1] = a * difference_a + b * difference_b;
    g[2] = u[5] + (p * sum_a + q * sum_b);
}

// turned[column][channel] = row[column] of each channel's plane for `columns` of one row, which lies inside
// the plane.
template <class T>
INLINE void turn_row(const WinogradPatches<T>& call, const T* row, int columns, T* turned) {
    constexpr int L = kLanes<T>;
    for (int j = 0; j < columns; j += L) {
        const Index begin = -(call.column + j), end = call.width - (call.column + j);
        const int last = end < 0 ? 0 : end < L ? static_cast<int>(end) : L;
        const int first = begin < 0 ? 0 : begin < last ? static_cast<int>(begin) : last;
        T* to = turned + j * L;
        if (first == last) {
            for (int i = 0; i < L; ++i)
                store(to + i * L, Vector<T>{});
            continue;
        }
        const T* from = row + call.column + j;
#pragma GCC unroll 16
        for (int c = 0; c < L; ++c)
            __builtin_prefetch(from + call.ahead + c * call.plane);
        Vector<T> block[L];
        if (call.channels == L) {
#pragma GCC unroll 16
            for (int c = 0; c < L; ++c)
                block[c] = load_lanes<T>(from + c * call.plane, first, last);
        } else {
#pragma GCC unroll 16
            for (int c = 0; c < L; ++c)
                block[c] =
                    c < call.channels ? load_lanes<T>(from + c * call.plane, first, last) : Vector<T>{};
        }
        transpose_block<T>(block);
#pragma GCC unroll 16
        for (int i = 0; i < L; ++i)
            store(to + i * L, block[i]);
    }
}

// Patches of SIZE x SIZE: rows are turned, then transformed downwards and along.
template <class T, int SIZE>
INLINE void transform_tiles(const WinogradPatches<T>& call) {
    constexpr int L = kLanes<T>;
    const int columns = kWinogradResults * (call.tiles - 1) + SIZE;
    const Index stride = (columns + L - 1) / L * L * L; // from one turned row to the next
    T* turned = call.staging;
    T* down = turned + SIZE * stride;
    for (int r = 0; r < SIZE; ++r) {
        const Index y = call.row + r;
        if (y >= 0 && y < call.height)
            turn_row(call, call.planes + y * call.width, columns, turned + r * stride);
        else
            for (int i = 0; i < columns; ++i)
                store(turned + r * stride + i * L, Vector<T>{});
    }
    for (int i = 0; i < columns; ++i) {
        Vector<T> d[SIZE], v[6];
#pragma GCC unroll 6
        for (int r = 0; r < SIZE; ++r)
            d[r] = load(turned + r * stride + i * L);
        transform_input<T>(d, v);
#pragma GCC unroll 6
        for (int r = 0; r < 6; ++r)
            store(down + r * stride + i * L, v[r]);
    }
    for (int t = 0; t < call.tiles; ++t)
        for (int i = 0; i < 6; ++i) {
            const T* from = down + i * stride + t * kWinogradResults * L;
            T* to = call.to + i * 6 * call.product_stride + t * call.tile_stride;
            Vector<T> d[SIZE], v[6];
#pragma GCC unroll 6
            for (int j = 0; j < SIZE; ++j)
                d[j] = load(from + j * L);
            transform_input<T>(d, v);
#pragma GCC unroll 6
            for (int j = 0; j < 6; ++j)
                store(to + j * call.product_stride, v[j]);
        }
}

template <class T>
void transform_patches(const WinogradPatches<T>& call) {
    transform_tiles<T, kWinogradPatch>(call);
}

template <class T>
void transform_gradients(const WinogradPatches<T>& call) {
    transform_tiles<T, kWinogradResults>(call);
}

template <class T>
INLINE bool all_zero(Vector<T> v, int count) {
    T lanes[kLanes<T>];
    store(lanes, v);
    bool zero = true;
    for (int i = 0; i < count; ++i)
        zero &= lanes[i] == 0;
    return zero;
}

template <class T>
bool transform_results(const WinogradResults<T>& call) {
    constexpr int L = kLanes<T>;
    const Vector<T> bias = call.bias == nullptr ? Vector<T>{} : load_lanes<T>(call.bias, 0, call.channels);
    const Index stride = (call.columns + L - 1) / L * L * L; // from one staged row to the next
    Vector<T> check = {};                                    // becomes NaN where a result is not finite
    for (int i = 0; i < call.rows; ++i)
        for (int c = 0; c < call.channels; ++c)
            for (int j = 0; j < call.columns; j += kLine / (int)sizeof(T))
                __builtin_prefetch(call.to + c * call.plane + i * call.row_stride + j, 1);
    for (int t = 0; t < call.tiles; ++t) {
        const T* from = call.products + t * call.tile_stride;
        Vector<T> rows[4][6];
#pragma GCC unroll 6
        for (int j = 0; j < 6; ++j) {
            Vector<T> m[6], y[4];
#pragma GCC unroll 6
            for (int i = 0; i < 6; ++i)
                m[i] = load(from + (i * 6 + j) * call.product_stride);
            transform_output<T>(m, y);
#pragma GCC unroll 4
            for (int i = 0; i < 4; ++i)
                rows[i][j] = y[i];
        }
        for (int i = 0; i < call.rows; ++i) {
            Vector<T> y[4];
            transform_output<T>(rows[i], y);
#pragma GCC unroll 4
            for (int j = 0; j < 4; ++j) {
                if (t * kWinogradResults + j >= call.columns)
                    break;
                check += (y[j] - y[j]);
                store(call.staging + i * stride + (t * kWinogradResults + j) * L,
                      activate<T>(y[j] + bias, call.activation));
            }
        }
    }
    for (int i = 0; i < call.rows; ++i)
        for (int j = 0; j < call.columns; j += L) {
            const int count = call.columns - j < L ? call.columns - j : L;
            Vector<T> block[L];
#pragma GCC unroll 16
            for (int k = 0; k < L; ++k)
                block[k] = load(call.staging + i * stride + (j + k) * L);
            transpose_block<T>(block);
            T* to = call.to + i * call.row_stride + j;
#pragma GCC unroll 16
            for (int c = 0; c < L; ++c)
                if (c < call.channels) {
                    if (count == L)
                        store(to + c * call.plane, block[c]);
                    else
                        store_lanes<T>(to + c * call.plane, count, block[c]);
                }
        }
    return all_zero<T>(check, call.channels);
}

template <class T>
void transform_filters(const T* filters, Index count, Index width, T* u, Index product_stride) {
    constexpr int L = kLanes<T>;
    for (Index c = 0; c < count; ++c, filters += 9 * width, u += width)
        for (Index lane = 0; lane < width; lane += L) {
            Vector<T> columns[3][6];
#pragma GCC unroll 3
            for (int j = 0; j < 3; ++j) {
                const T* g = filters + j * width + lane;
                const Vector<T> column[3] = {load(g), load(g + 3 * width), load(g + 6 * width)};
                transform_filter<T>(column, columns[j]);
            }
#pragma GCC unroll 6
            for (int e = 0; e < 6; ++e) {
                const Vector<T> g[3] = {columns[0][e], columns[1][e], columns[2][e]};
                Vector<T> row[6];
                transform_filter<T>(g, row);
#pragma GCC unroll 6
                for (int f = 0; f < 6; ++f)
                    store(u + (e * 6 + f) * product_stride + lane, row[f]);
            }
        }
}

template <class T>
bool transform_sums(const T* u, Index product_stride, Index count, Index width, T* filters) {
    constexpr int L = kLanes<T>;
    Vector<T> check = {};
    for (Index c = 0; c < count; ++c, filters += 9 * width, u += width)
        for (Index lane = 0; lane < width; lane += L) {
            Vector<T> columns[6][3];
#pragma GCC unroll 6
            for (int f = 0; f < 6; ++f) {
                Vector<T> m[6];
#pragma GCC unroll 6
                for (int e = 0; e < 6; ++e)
                    m[e] = load(u + (e * 6 + f) * product_stride + lane);
                transform_sum<T>(m, columns[f]);
            }
#pragma GCC unroll 3
            for (int i = 0; i < 3; ++i) {
                const Vector<T> m[6] = {columns[0][i], columns[1][i], columns[2][i],
                                        columns[3][i], columns[4][i], columns[5][i]};
                Vector<T> g[3];
                transform_sum<T>(m, g);
#pragma GCC unroll 3
                for (int j = 0; j < 3; ++j) {
                    check += g[j] - g[j];
                    store(filters + (i * 3 + j) * width + lane, g[j]);
                }
            }
        }
    return all_zero<T>(check, L);
}

template <class T>
constexpr WinogradTiles<T> winograd_table() {
    return {transform_patches<T>, transform_gradients<T>, transform_results<T>, transform_filters<T>,
            transform_sums<T>};
}
