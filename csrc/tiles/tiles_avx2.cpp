// AVX2 and FMA: 16 registers of 32 bytes; 6 x 2 sums leave room for 2 columns and a broadcast.
#include "tiles.h"

#if defined(__x86_64__)
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif

#define VECTOR_BYTES 32
#define ROWS 6
#define VECTORS 2
#define OUTER_VECTORS 2
#define OUTER_SUMS 12
#define PARTIAL_ACCESS "partial_avx2.inl"

namespace fastconv::avx2 {
#include "tile_body.inl"
} // namespace fastconv::avx2

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace fastconv {
extern const TileSet tiles_avx2;
const TileSet tiles_avx2 = avx2::make_tile_set("avx2");
} // namespace fastconv

#endif
