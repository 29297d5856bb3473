// What the compiler may assume everywhere: SSE2 on x86-64 (16 registers of 16 bytes).
#include "tiles.h"

#if !defined(__aarch64__)

#define VECTOR_BYTES 16
#define ROWS 6
#define VECTORS 2
#define OUTER_VECTORS 2
#define OUTER_SUMS 12
#define PARTIAL_ACCESS "partial_portable.inl"

namespace fastconv::baseline {
#include "tile_body.inl"
} // namespace fastconv::baseline

namespace fastconv {
extern const TileSet tiles_baseline;
const TileSet tiles_baseline = baseline::make_tile_set("baseline");
} // namespace fastconv

#endif
