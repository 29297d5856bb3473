// AArch64 NEON: 32 registers of 16 bytes; 8 x 3 sums as on AVX-512, multiplied by lane.
#include "tiles.h"

#if defined(__aarch64__)

#define VECTOR_BYTES 16
#define ROWS 8
#define VECTORS 3
#define OUTER_VECTORS 4
#define OUTER_SUMS 24
#define PARTIAL_ACCESS "partial_portable.inl"

namespace fastconv::neon {
#include "tile_body.inl"
} // namespace fastconv::neon

namespace fastconv {
extern const TileSet tiles_neon;
const TileSet tiles_neon = neon::make_tile_set("neon");
} // namespace fastconv

#endif
