// Which instruction set to use: the best that the processor has, unless select_tile_set names another.
#include <atomic>
#include <cstring>

#include "tiles/tiles.h"

namespace fastconv {

extern const TileSet tiles_avx512, tiles_avx2, tiles_neon, tiles_baseline;

namespace {

struct Row {
    const TileSet* set;
    bool (*runs_here)();
};

// Best first.
const Row kRows[] = {
#if defined(__x86_64__)
    {&tiles_avx512,
     [] {
         return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
                __builtin_cpu_supports("fma");
     }},
    {&tiles_avx2, [] { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }},
#endif
#if defined(__aarch64__)
    {&tiles_neon, [] { return true; }},
#else
    {&tiles_baseline, [] { return true; }},
#endif
};

const TileSet* find(const char* name) {
    for (const Row& row : kRows)
        if ((name == nullptr || std::strcmp(row.set->name, name) == 0) && row.runs_here())
            return row.set;
    return nullptr;
}

std::atomic<const TileSet*>& selected() {
    static std::atomic<const TileSet*> set{find(nullptr)};
    return set;
}

} // namespace

const TileSet& tile_set() {
    return *selected().load(std::memory_order_relaxed);
}

int tile_set_count() {
    int count = 0;
    for (const Row& row : kRows)
        count += row.runs_here();
    return count;
}

const char* tile_set_name(int i) {
    for (const Row& row : kRows)
        if (row.runs_here() && i-- == 0)
            return row.set->name;
    return nullptr;
}

bool select_tile_set(const char* name) {
    const TileSet* set = find(name);
    if (set != nullptr)
        selected().store(set, std::memory_order_relaxed);
    return set != nullptr;
}

} // namespace fastconv
