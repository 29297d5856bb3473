// Lane permutations for each vector length, by constants that both GCC and Clang turn into single
// instructions.

template <class T>
INLINE Vector<T> interleave_low(Vector<T> a, Vector<T> b) {
    if constexpr (kLanes<T> == 16)
        return __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    else if constexpr (kLanes<T> == 8)
        return __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
    else if constexpr (kLanes<T> == 4)
        return __builtin_shufflevector(a, b, 0, 4, 1, 5);
    else
        return __builtin_shufflevector(a, b, 0, 2);
}

template <class T>
INLINE Vector<T> interleave_high(Vector<T> a, Vector<T> b) {
    if constexpr (kLanes<T> == 16)
        return __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
    else if constexpr (kLanes<T> == 8)
        return __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
    else if constexpr (kLanes<T> == 4)
        return __builtin_shufflevector(a, b, 2, 6, 3, 7);
    else
        return __builtin_shufflevector(a, b, 1, 3);
}

// Lanes 0, 2, 4, ... of a followed by b.
template <class T>
INLINE Vector<T> even_lanes(Vector<T> a, Vector<T> b) {
    if constexpr (kLanes<T> == 16)
        return __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    else if constexpr (kLanes<T> == 8)
        return __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14);
    else if constexpr (kLanes<T> == 4)
        return __builtin_shufflevector(a, b, 0, 2, 4, 6);
    else
        return __builtin_shufflevector(a, b, 0, 2);
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

// The lower half of a and the upper half of b.
template <class T>
INLINE Vector<T> halves(Vector<T> a, Vector<T> b) {
    if constexpr (kLanes<T> == 16)
        return __builtin_shufflevector(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 24, 25, 26, 27, 28, 29, 30, 31);
    else if constexpr (kLanes<T> == 8)
        return __builtin_shufflevector(a, b, 0, 1, 2, 3, 12, 13, 14, 15);
    else if constexpr (kLanes<T> == 4)
        return __builtin_shufflevector(a, b, 0, 1, 6, 7);
    else
        return __builtin_shufflevector(a, b, 0, 3);
}

// Lanes N, N + 1, ... of a, and then the first N.
template <class T, int N>
INLINE Vector<T> lanes_from(Vector<T> a) {
    if constexpr (kLanes<T> == 16)
        return __builtin_shufflevector(a, a, N, N + 1, N + 2, N + 3, N + 4, N + 5, N + 6, N + 7, N + 8, N + 9,
                                       N + 10, N + 11, N + 12, N + 13, N + 14, N + 15);
    else if constexpr (kLanes<T> == 8)
        return __builtin_shufflevector(a, a, N, N + 1, N + 2, N + 3, N + 4, N + 5, N + 6, N + 7);
    else if constexpr (kLanes<T> == 4)
        return __builtin_shufflevector(a, a, N, N + 1, N + 2, N + 3);
    else
        return __builtin_shufflevector(a, a, N, N + 1);
}
