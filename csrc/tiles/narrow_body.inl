// The tiles of numbers of 16 bits (see narrow_tiles.h), included by tile_body.inl.
//
// Half precision has 5 bits of exponent with bias 15 and 10 of mantissa, a float 8 with bias 127 and 23.
// Moved to a float's place, the bits of a half mean a number 2^112 times smaller, subnormal ones included.
// The other way round, rounding is an addition: of half a unit to the bits, where carries go on into the
// exponent, or for results that are subnormal, of 1/2, in whose vicinity a float's unit is 2^-24, as theirs
// is.

typedef Narrow NarrowVector __attribute__((vector_size(VECTOR_BYTES / 2)));
typedef std::uint32_t Bits __attribute__((vector_size(VECTOR_BYTES)));

INLINE Vector<float> float_of(Bits bits) {
    Vector<float> v;
    __builtin_memcpy(&v, &bits, sizeof v);
    return v;
}

INLINE Bits bits_of(Vector<float> v) {
    Bits bits;
    __builtin_memcpy(&bits, &v, sizeof bits);
    return bits;
}

INLINE Bits all(std::uint32_t bits) {
    return bits - Bits{};
}

struct Float16 {
    static INLINE Vector<float> widen(Bits h) {
        const Bits magnitude = (h & 0x7FFF) << 13;
        const Bits number = bits_of(float_of(magnitude) * broadcast(0x1p112f));
        const Bits special = magnitude | 0x7F800000; // infinities and NaN
        return float_of((magnitude >= 0x7C00u << 13 ? special : number) | (h & 0x8000) << 16);
    }

    static INLINE Bits round(Vector<float> v) {
        const Bits bits = bits_of(v), magnitude = bits & 0x7FFFFFFF;
        const Bits sign = bits >> 16 & 0x8000;
        const Bits rounded = (magnitude + 0xFFF + (magnitude >> 13 & 1) - (112u << 23)) >> 13;
        const Bits small = bits_of(float_of(magnitude) + broadcast(0.5f)) - bits_of(broadcast(0.5f));
        const Bits payload = magnitude >> 13 & 0x3FF;
        const Bits nan = (payload == 0 ? all(1) : payload) | 0x7C00;
        Bits h = magnitude < 113u << 23 ? small : rounded;
        h = magnitude >= 0x477FF000 ? all(0x7C00) : h; // 65520 and more round to infinity
        h = magnitude > 0x7F800000 ? nan : h;
        return h | sign;
    }
};

struct BFloat16 {
    static INLINE Vector<float> widen(Bits b) { return float_of(b << 16); }

    static INLINE Bits round(Vector<float> v) {
        const Bits bits = bits_of(v);
        const Bits rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
        return (bits & 0x7FFFFFFF) > 0x7F800000 ? (bits >> 16 & 0x8000) | 0x7FC0 : rounded;
    }
};

template <class Type>
INLINE void widen_vector(const Narrow* from, float* to) {
    NarrowVector v;
    __builtin_memcpy(&v, from, sizeof v);
    store(to, Type::widen(__builtin_convertvector(v, Bits)));
}

template <class Type>
INLINE void round_vector(const float* from, Narrow* to) {
    const NarrowVector v = __builtin_convertvector(Type::round(load(from)), NarrowVector);
    __builtin_memcpy(to, &v, sizeof v);
}

template <class Type>
void widen_narrow(const Narrow* from, Index count, float* to) {
    constexpr int L = kLanes<float>;
    Index i = 0;
    for (; i + L <= count; i += L)
        widen_vector<Type>(from + i, to + i);
    if (i < count) {
        Narrow part[L] = {};
        float wide[L];
        for (Index j = i; j < count; ++j)
            part[j - i] = from[j];
        widen_vector<Type>(part, wide);
        for (Index j = i; j < count; ++j)
            to[j] = wide[j - i];
    }
}

template <class Type>
void round_to_narrow(const float* from, Index count, Narrow* to) {
    constexpr int L = kLanes<float>;
    Index i = 0;
    for (; i + L <= count; i += L)
        round_vector<Type>(from + i, to + i);
    if (i < count) {
        float part[L] = {};
        Narrow rounded[L];
        for (Index j = i; j < count; ++j)
            part[j - i] = from[j];
        round_vector<Type>(part, rounded);
        for (Index j = i; j < count; ++j)
            to[j] = rounded[j - i];
    }
}

template <class Type>
constexpr NarrowTiles narrow_table() {
    return {widen_narrow<Type>, round_to_narrow<Type>};
}
