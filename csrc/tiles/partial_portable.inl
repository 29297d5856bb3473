// Parts of a vector through a small array, for instruction sets without masked access.

template <class T>
INLINE Vector<T> load_lanes(const T* p, int first, int last) {
    T lanes[kLanes<T>] = {};
    for (int j = first; j < last; ++j)
        lanes[j] = p[j];
    return load(lanes);
}

template <class T>
INLINE void store_lanes(T* p, int first, int last, Vector<T> v) {
    T lanes[kLanes<T>];
    store(lanes, v);
    for (int j = first; j < last; ++j)
        p[j] = lanes[j];
}

// p[2*j] = v[j] for j in [0, count).
template <class T>
INLINE void store_every_second(T* p, int count, Vector<T> v) {
    T lanes[kLanes<T>];
    store(lanes, v);
    for (int j = 0; j < count; ++j)
        p[2 * j] = lanes[j];
}

constexpr bool kMasksAreFree = false, kMasksLoad = false;

template <class T>
struct LaneMask {
    std::uint32_t bits;
    Vector<Position<T>> lanes; // all bits of the lanes that are on
};

// Of the lanes whose bits are set.
template <class T>
INLINE LaneMask<T> mask_of_bits(std::uint32_t bits) {
    Position<T> bit_of_lane[kLanes<T>];
    for (int i = 0; i < kLanes<T>; ++i)
        bit_of_lane[i] = Position<T>{1} << i;
    const Vector<Position<T>> bit = load(bit_of_lane);
    return {bits, (broadcast(static_cast<Position<T>>(bits)) & bit) == bit};
}

template <class T>
INLINE Vector<T> load_lanes(const T* p, LaneMask<T> mask) {
    T lanes[kLanes<T>];
    for (int i = 0; i < kLanes<T>; ++i)
        lanes[i] = (mask.bits >> i & 1) != 0 ? p[i] : T{};
    return load(lanes);
}

// sum + a*b in the lanes of the mask, sum in the others. Of floating-point numbers.
template <class T>
INLINE Vector<T> add_product(Vector<T> sum, Vector<T> a, Vector<T> b, LaneMask<T> mask) {
    return sum + (Vector<T>)((Vector<Position<T>>)(a * b) & mask.lanes);
}

// There is no portable way past the caches.
template <class T>
INLINE void store_past_caches(T* p, Vector<T> v) {
    store(p, v);
}

INLINE void finish_stores() {}
