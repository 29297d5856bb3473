// Convolution as an implicit matrix product in registers: M x N results of a block, TM x TN of each of its
// threads, from panels of K terms in shared memory. While one panel is multiplied the next is read into
// registers.
#pragma once

#include "convolution.cuh"

template <class T, class I, int M, int N, int K>
struct alignas(16) Panels {
    T left[2][K][M + 4]; // rows apart by 4 more: threads of a warp write 8 columns of 4 rows
    T right[2][K][N];
    Point<I> terms[2][kChunk]; // of this chunk and the next
};

// Blocks that a multiprocessor has registers for at least.
template <class T, int TM, int TN>
constexpr int kResident = sizeof(T) * TM * TN > 64 ? 1 : 2;

template <class T, class I, int M, int N, int K, int TM, int TN, bool kGradWeight>
__global__ void __launch_bounds__((M / TM) * (N / TN), (kResident<T, TM, TN>))
    conv_gemm(const Convolution<I> p, const T* sources, const T* lefts, const T* bias, T* results,
              T* partial) {
    constexpr int kThreads = (M / TM) * (N / TN), kLeft = M * K / kThreads, kRight = K * N / kThreads;
    constexpr int kPanels = kChunk / K; // in a chunk
    constexpr int kAcross = N / TN;     // threads
    static_assert(kThreads % N == 0 && kThreads % K == 0 && kLeft > 0 && kRight > 0,
                  "every thread loads as much");
    using Shared = Panels<T, I, M, N, K>;
    SHARED(Shared, shared);

    const Product<I, kGradWeight> product{p};
    const I rows = p.results, columns = product.columns();
    // Neighbouring blocks share columns, whose sources are the larger operand.
    const I row_blocks = ceil_div<I>(rows, M), column_blocks = ceil_div<I>(columns, N);
    I block = blockIdx.x;
    const I first_row = block % row_blocks * M;
    block /= row_blocks;
    const I first_column = block % column_blocks * N;
    block /= column_blocks;
    const I group = block % p.groups, part = block / p.groups;
    const I begin = part * p.part_length, end = least(begin + p.part_length, product.terms());
    const I panels = begin < end ? ceil_div<I>(end - begin, K) : 0;

    const int thread = threadIdx.x;
    const T* const source = sources + product.source(group);
    const T* const left = lefts + product.left(group, 0);
    const I left_row = product.left(0, 1);

    // Of the right panel a thread loads one column, of the left one every kThreads-th element along the
    // terms.
    const int right_column = thread % N, right_term = thread / N;
    const int left_term = thread % K, left_first = thread / K;
    const bool in_columns = first_column + right_column < columns;
    const Point<I> right_point = product.column(in_columns ? first_column + right_column : 0);

    const auto find_terms = [&](I chunk) {
        for (int i = thread; i < kChunk; i += kThreads) {
            const I k = begin + chunk * kChunk + i;
            if (k < end)
                shared.terms[chunk % 2][i] = product.term(k);
        }
    };
    T next_left[kLeft], next_right[kRight];
    const auto load = [&](I panel) {
        const Point<I>* terms = &shared.terms[panel / kPanels % 2][panel % kPanels * K];
        const I remaining = end - begin - panel * K; // terms, of which K are in this panel
#pragma unroll
        for (int i = 0; i < kLeft; ++i) {
            const I m = first_row + left_first + i * (kThreads / K);
            next_left[i] =
                left_term < remaining && m < rows ? left[m * left_row + terms[left_term].other] : T(0);
        }
#pragma unroll
        for (int i = 0; i < kRight; ++i) {
            const int k = right_term + i * (kThreads / N);
            const bool counts = in_columns && k < remaining && meet(p, right_point, terms[k]);
            next_right[i] = counts ? source[right_point.source + terms[k].source] : T(0);
        }
    };
    const auto store = [&](int buffer) {
#pragma unroll
        for (int i = 0; i < kLeft; ++i)
            shared.left[buffer][left_term][left_first + i * (kThreads / K)] = next_left[i];
#pragma unroll
        for (int i = 0; i < kRight; ++i)
            shared.right[buffer][right_term + i * (kThreads / N)][right_column] = next_right[i];
    };

    // A thread's results are strips of 4 that lie apart, so that a warp reads neighbouring vectors.
    const int row = thread / kAcross * 4, column = thread % kAcross * 4;
    const auto row_of = [&](int i) { return row + i % 4 + i / 4 * (M / TM * 4); };
    const auto column_of = [&](int j) { return column + j % 4 + j / 4 * (N / TN * 4); };
    T sums[TM][TN] = {}, totals[TM][TN] = {};

    find_terms(0);
    __syncthreads();
    if (panels > 0) {
        load(0);
        store(0);
    }
    __syncthreads();
    for (I panel = 0; panel < panels; ++panel) {
        if (panel % kPanels == 0)
            find_terms(panel / kPanels +
                       1); // read from the end of this chunk on; the one before is done with
        if (panel + 1 < panels)
            load(panel + 1);
        const int buffer = panel % 2;
#pragma unroll
        for (int k = 0; k < K; ++k) {
            T a[TM], b[TN];
#pragma unroll
            for (int i = 0; i < TM; ++i)
                a[i] = shared.left[buffer][k][row_of(i)];
#pragma unroll
            for (int j = 0; j < TN; ++j)
                b[j] = shared.right[buffer][k][column_of(j)];
#pragma unroll
            for (int i = 0; i < TM; ++i)
#pragma unroll
                for (int j = 0; j < TN; ++j)
                    sums[i][j] += a[i] * b[j];
        }
        if ((panel + 1) % kPanels == 0 || panel + 1 == panels) {
#pragma unroll
            for (int i = 0; i < TM; ++i)
#pragma unroll
                for (int j = 0; j < TN; ++j) {
                    totals[i][j] += sums[i][j];
                    sums[i][j] = 0;
                }
        }
        if (panel + 1 < panels)
            store(1 - buffer);
        __syncthreads();
    }

    const bool whole = p.parts == 1;
    T* const target = whole ? results : partial + part * p.groups * p.results * columns;
    bool all_finite = true;
#pragma unroll
    for (int j = 0; j < TN; ++j) {
        if (first_column + column_of(j) >= columns)
            continue;
        const I at = product.column(first_column + column_of(j)).other;
#pragma unroll
        for (int i = 0; i < TM; ++i) {
            const I m = first_row + row_of(i);
            if (m >= rows)
                continue;
            T value = totals[i][j];
            all_finite &= is_finite(value);
            if (whole && bias)
                value += bias[group * rows + m];
            target[product.result(group, m) + at] = whole ? cheaply_activated(value, p.activation) : value;
        }
    }
    if constexpr (kFloating<T>) {
        // What is rare or takes long stands once, not in every copy of the loops above.
        if (!whole || (all_finite && is_cheap(p.activation)))
            return;
#pragma unroll 1
        for (int index = 0; index < TM * TN; ++index) {
            const I m = first_row + row_of(index / TN), j = first_column + column_of(index % TN);
            if (m >= rows || j >= columns)
                continue;
            const Point<I> at = product.column(j);
            T* const result = results + product.result(group, m) + at.other;
            T value = *result;
            if (!all_finite) {
                value = product.element(source, left + m * left_row, at, I(0), product.terms());
                if (bias)
                    value += bias[group * rows + m];
            }
            *result = activated(value, p.activation);
        }
    }
}

// The gradient of the weights from its parts, added in their order.
template <class T, class I>
__global__ void __launch_bounds__(256, 1)
    conv_add_parts(const Convolution<I> p, const T* x, const T* grad_y, const T* partial, T* grad_weight) {
    const Product<I, true> product{p};
    const I columns = product.columns(), size = p.groups * p.results * columns;
    const I i = thread_number<I>();
    if (i >= size)
        return;
    T total = 0;
    for (I part = 0; part < p.parts; ++part)
        total += partial[part * size + i];
    if (!is_finite(total)) {
        const I channel = i / columns, group = channel / p.results;
        total = product.element(x + product.source(group), grad_y + product.left(0, channel),
                                product.column(i % columns), I(0), product.terms());
    }
    grad_weight[i] = total;
}
