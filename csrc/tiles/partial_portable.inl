// Parts of a vector through a small array, for instruction sets without masked access.

template <class T>
INLINE Vector<T> load_lanes(const T* p, int first, int last) {
    T lanes[kLanes<T>] = {};
    for (int j = first; j < last; ++j)
        lanes[j] = p[j];
    return load(lanes);
}

template <class T>
INLINE void store_lanes(T* p, int count, Vector<T> v) {
    T lanes[kLanes<T>];
    store(lanes, v);
    for (int j = 0; j < count; ++j)
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

// There is no portable way past the caches.
template <class T>
INLINE void store_past_caches(T* p, Vector<T> v) {
    store(p, v);
}

INLINE void finish_stores() {}
