// Parts of a vector by AVX2's masked loads and stores, which do not fault on lanes that are off.

constexpr bool kMasksAreFree = false, kMasksLoad = true;

template <class T>
using LaneMask = __m256i;

template <class T>
INLINE LaneMask<T> lane_mask(int first, int last) {
    if constexpr (sizeof(T) == 4) {
        const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
        return _mm256_andnot_si256(_mm256_cmpgt_epi32(_mm256_set1_epi32(first), lane),
                                   _mm256_cmpgt_epi32(_mm256_set1_epi32(last), lane));
    } else {
        const __m256i lane = _mm256_setr_epi64x(0, 1, 2, 3);
        return _mm256_andnot_si256(_mm256_cmpgt_epi64(_mm256_set1_epi64x(first), lane),
                                   _mm256_cmpgt_epi64(_mm256_set1_epi64x(last), lane));
    }
}

template <class T>
INLINE Vector<T> load_lanes(const T* p, LaneMask<T> mask) {
    if constexpr (sizeof(T) == 4)
        return (Vector<T>)_mm256_maskload_epi32((const int*)p, mask);
    else
        return (Vector<T>)_mm256_maskload_epi64((const long long*)p, mask);
}

template <class T>
INLINE Vector<T> load_lanes(const T* p, int first, int last) {
    return load_lanes<T>(p, lane_mask<T>(first, last));
}

template <class T>
INLINE void store_lanes(T* p, int first, int last, Vector<T> v) {
    if constexpr (sizeof(T) == 4)
        _mm256_maskstore_epi32((int*)p, lane_mask<T>(first, last), (__m256i)v);
    else
        _mm256_maskstore_epi64((long long*)p, lane_mask<T>(first, last), (__m256i)v);
}

// p[2*j] = v[j] for j in [0, count).
template <class T>
INLINE void store_every_second(T* p, int count, Vector<T> v) {
    constexpr int L = kLanes<T>;
    const Vector<T> parts[2] = {interleave_low<T>(v, v), interleave_high<T>(v, v)};
    for (int i = 0; i < 2; ++i) {
        const __m256i within = lane_mask<T>(0, 2 * count - i * L);
        if constexpr (sizeof(T) == 4)
            _mm256_maskstore_epi32((int*)p + i * L,
                                   _mm256_and_si256(within, _mm256_setr_epi32(-1, 0, -1, 0, -1, 0, -1, 0)),
                                   (__m256i)parts[i]);
        else
            _mm256_maskstore_epi64((long long*)p + i * L,
                                   _mm256_and_si256(within, _mm256_setr_epi64x(-1, 0, -1, 0)),
                                   (__m256i)parts[i]);
    }
}

// Of the lanes whose bits are set.
template <class T>
INLINE LaneMask<T> mask_of_bits(std::uint32_t bits) {
    if constexpr (sizeof(T) == 4) {
        const __m256i lane = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
        return _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(static_cast<int>(bits)), lane), lane);
    } else {
        const __m256i lane = _mm256_setr_epi64x(1, 2, 4, 8);
        return _mm256_cmpeq_epi64(_mm256_and_si256(_mm256_set1_epi64x(bits), lane), lane);
    }
}

// sum + a*b in the lanes of the mask, sum in the others. Of floating-point numbers.
template <class T>
INLINE Vector<T> add_product(Vector<T> sum, Vector<T> a, Vector<T> b, LaneMask<T> mask) {
    return (Vector<Position<T>>)mask ? sum + a * b : sum;
}

// Stores to an aligned address without reading the line first; finish_stores before anybody else looks.
template <class T>
INLINE void store_past_caches(T* p, Vector<T> v) {
    _mm256_stream_si256((__m256i*)p, (__m256i)v);
}

INLINE void finish_stores() {
    _mm_sfence();
}
