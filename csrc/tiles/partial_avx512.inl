// Parts of a vector by AVX-512's mask registers; lanes that are off do not fault.

constexpr bool kMasksAreFree = true, kMasksLoad = true;

template <class T>
using LaneMask = unsigned;

template <class T>
INLINE LaneMask<T> lane_mask(int first, int last) {
    return last > first ? ((1u << last) - 1u) & ~((1u << first) - 1u) : 0u;
}

template <class T>
INLINE Vector<T> load_lanes(const T* p, LaneMask<T> mask) {
    if constexpr (sizeof(T) == 4)
        return (Vector<T>)_mm512_maskz_loadu_epi32((__mmask16)mask, p);
    else
        return (Vector<T>)_mm512_maskz_loadu_epi64((__mmask8)mask, p);
}

template <class T>
INLINE Vector<T> load_lanes(const T* p, int first, int last) {
    return load_lanes<T>(p, lane_mask<T>(first, last));
}

template <class T>
INLINE void store_lanes(T* p, int first, int last, Vector<T> v) {
    const unsigned mask = lane_mask<T>(first, last);
    if constexpr (sizeof(T) == 4)
        _mm512_mask_storeu_epi32(p, (__mmask16)mask, (__m512i)v);
    else
        _mm512_mask_storeu_epi64(p, (__mmask8)mask, (__m512i)v);
}

// p[2*j] = v[j] for j in [0, count).
template <class T>
INLINE void store_every_second(T* p, int count, Vector<T> v) {
    constexpr int L = kLanes<T>;
    const unsigned even = 0x55555555u & lane_mask<T>(0, 2 * count < 32 ? 2 * count : 31);
    const Vector<T> low = interleave_low<T>(v, v), high = interleave_high<T>(v, v);
    if constexpr (sizeof(T) == 4) {
        _mm512_mask_storeu_epi32(p, (__mmask16)even, (__m512i)low);
        _mm512_mask_storeu_epi32(p + L, (__mmask16)(even >> L), (__m512i)high);
    } else {
        _mm512_mask_storeu_epi64(p, (__mmask8)even, (__m512i)low);
        _mm512_mask_storeu_epi64(p + L, (__mmask8)(even >> L), (__m512i)high);
    }
}

// Of the lanes whose bits are set.
template <class T>
INLINE LaneMask<T> mask_of_bits(std::uint32_t bits) {
    return bits;
}

// sum + a*b in the lanes of the mask, sum in the others. Of floating-point numbers.
template <class T>
INLINE Vector<T> add_product(Vector<T> sum, Vector<T> a, Vector<T> b, LaneMask<T> mask) {
    if constexpr (sizeof(T) == 4)
        return (Vector<T>)_mm512_mask3_fmadd_ps((__m512)a, (__m512)b, (__m512)sum, (__mmask16)mask);
    else
        return (Vector<T>)_mm512_mask3_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)sum, (__mmask8)mask);
}

// Stores to an aligned address without reading the line first; finish_stores before anybody else looks.
template <class T>
INLINE void store_past_caches(T* p, Vector<T> v) {
    _mm512_stream_si512((__m512i*)p, (__m512i)v);
}

INLINE void finish_stores() {
    _mm_sfence();
}
