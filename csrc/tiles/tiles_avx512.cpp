// AVX-512 (F, VL, DQ, BW): 32 registers of 64 bytes; 8 x 3 sums leave room for 3 columns and a broadcast.
#include "tiles.h"

#if defined(__x86_64__)
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512vl,avx512dq,avx512bw,avx2,fma"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512vl,avx512dq,avx512bw,avx2,fma,prefer-vector-width=512")
#endif

#define VECTOR_BYTES 64
#define ROWS 8
#define VECTORS 3
#define OUTER_VECTORS 4
#define OUTER_SUMS 24
#define PARTIAL_ACCESS "partial_avx512.inl"

namespace fastconv::avx512 {
#include "tile_body.inl"
} // namespace fastconv::avx512

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace fastconv {
extern const TileSet tiles_avx512;
const TileSet tiles_avx512 = avx512::make_tile_set("avx512");
} // namespace fastconv

#endif
