// Maximum pooling: of equal elements the first in row-major order wins, NaN over everything, the last NaN
// over others.
#include <atomic>
#include <cstring>
#include <limits>

#include "kernels.h"
#include "pooling.h"

namespace fastconv {
namespace {

constexpr Index kConvertedElements = 1 << 20;    // at a time
constexpr Index kStagedBytes = 512 << 10;        // of a plane that is made in the second-level cache
constexpr Index kMostConverted = Index{1} << 26; // elements of a plane that may be copied into a wider type

template <class T>
constexpr T lowest() {
    return std::numeric_limits<T>::has_infinity ? -std::numeric_limits<T>::infinity()
                                                : std::numeric_limits<T>::lowest();
}

template <class T>
const MaxTiles<T>& max_tiles();
template <>
const MaxTiles<float>& max_tiles() {
    return tile_set().pool.max_f32;
}
template <>
const MaxTiles<double>& max_tiles() {
    return tile_set().pool.max_f64;
}
template <>
const MaxTiles<std::int32_t>& max_tiles() {
    return tile_set().pool.max_i32;
}
template <>
const MaxTiles<std::int64_t>& max_tiles() {
    return tile_set().pool.max_i64;
}

template <class T>
struct MaxArrays {
    const T* x;
    T* y;
    Index* indices; // or null
};

template <class T>
void max_by_columns(const PoolProblem& p, const MaxArrays<T>& a, bool small) {
    const MaxTiles<T>& tile = max_tiles<T>();
    const PoolPlan plan = p.plan();
    const RowWindows windows = p.row_windows();
    const Index columns = windows.results, pitch = round_up(columns, tiles<T>().lanes);
    const bool where = a.indices != nullptr, past = past_caches<T>(p.g.planes * p.y_plane());
    const T* end = a.x + p.g.planes * p.x_plane();
    const PoolTasks tasks = PoolTasks::of_planes(
        plan, p.g.planes, pitch * static_cast<Index>(sizeof(T) + sizeof(Position<T>)), p.threads);
    tasks.run(plan, [&](Index plane, const PoolBlock& block, const PoolRows& rows) {
        const Index out = plane * p.y_plane() + plan.first_result(block), count = block.results() * columns;
        const PoolSources<T> x{a.x + plane * p.x_plane(), rows.sources.data(), rows.count(), a.x, end};
        T* y = past ? workspace<T>(Slot::results, count) : a.y + out;
        auto* places = where ? workspace<Position<T>>(Slot::places, count) : nullptr;
        if (small) {
            tile.windows(x, windows, rows.parts.row_lists(), y, places);
        } else {
            T* values = workspace<T>(Slot::panels, rows.count() * pitch);
            auto* positions = where ? workspace<Position<T>>(Slot::positions, rows.count() * pitch) : nullptr;
            tile.along(x, windows, values, positions, pitch);
            tile.across(values, positions, pitch, rows.parts.row_lists(), columns, y, places);
        }
        if (past)
            tiles<T>().stream(y, count, a.y + out, true);
        if (where)
            tile.widen(places, count, a.indices + out, past);
    });
}

// False where that needs too much memory.
template <class T>
bool max_by_planes(const PoolProblem& p, const MaxArrays<T>& a) {
    const MaxTiles<T>& tile = max_tiles<T>();
    const PoolPlan plan = p.plan();
    const AxisLists width = p.lists(2);
    const Index lanes = tiles<T>().lanes, x_row = p.g.input[2] * lanes, y_row = p.g.output[2] * lanes;
    const bool where = a.indices != nullptr, past = past_caches<T>(p.g.planes * p.y_plane());
    const Index row_bytes = x_row * static_cast<Index>(sizeof(T)) +
                            2 * y_row * static_cast<Index>(sizeof(T) + sizeof(Position<T>));
    const PoolTasks tasks = PoolTasks::of_groups(plan, p.g.planes, lanes, row_bytes, p.threads);
    if (!tasks.fit())
        return false;
    tasks.run(plan, [&](Index group, const PoolBlock& block, const PoolRows& rows) {
        const Index plane = group * lanes, planes = std::min(lanes, p.g.planes - plane);
        T* x = workspace<T>(Slot::window, block.sources() * x_row);
        T* values = workspace<T>(Slot::panels, rows.count() * y_row);
        T* y = workspace<T>(Slot::results, block.results() * y_row);
        Position<T>*positions = nullptr, *places = nullptr;
        if (where) {
            positions = workspace<Position<T>>(Slot::positions, rows.count() * y_row);
            places = workspace<Position<T>>(Slot::places, block.results() * y_row);
        }
        interleave(plan, block, a.x + plane * p.x_plane(), planes, x);
        for (Index i = 0; i < rows.count(); ++i)
            tile.along_interleaved(x + rows.in_block[i] * x_row, static_cast<Position<T>>(rows.sources[i]),
                                   width.row_lists(), values + i * y_row,
                                   where ? positions + i * y_row : nullptr);
        tile.across(values, positions, y_row, rows.parts.row_lists(), y_row, y, places);
        const Index length = block.results() * p.g.output[2];
        const Index out = plane * p.y_plane() + plan.first_result(block);
        separate(y, length, planes, a.y + out, p.y_plane());
        if (!where)
            return;
        auto* staged = workspace<Position<T>>(Slot::staging, planes * length);
        separate(places, length, planes, staged, length);
        for (Index i = 0; i < planes; ++i)
            tile.widen(staged + i * length, length, a.indices + out + i * p.y_plane(), past);
    });
    return true;
}

template <class T>
void max_by_windows(const PoolProblem& p, const MaxArrays<T>& a) {
    const PoolPlan plan = p.plan();
    const PoolTasks tasks = PoolTasks::of_planes(plan, p.g.planes, 1, p.threads);
    tasks.run(plan, [&](Index plane, const PoolBlock& block, const PoolRows& rows) {
        const T* x = a.x + plane * p.x_plane();
        Index out = plane * p.y_plane() + plan.first_result(block);
        for (Index row = 0; row < block.results(); ++row)
            for (const Window& w : p.windows[2]) {
                Position<T> where;
                max_tiles<T>().window(x, w.first, rows.offsets_of(row), rows.count_of(row), w.inside,
                                      a.y + out, &where);
                if (a.indices != nullptr)
                    a.indices[out] = where;
                ++out;
            }
    });
}

template <class T>
void max_by_elements(const PoolProblem& p, const MaxArrays<T>& a) {
    for_each_plane(p.g.planes, p.x_plane() + p.y_plane(), p.threads, [&](Index plane) {
        const T* x = a.x + plane * p.x_plane();
        p.for_each_window([&](Index out, Index d, Index h, Index w) {
            T best = lowest<T>();
            Index where = -1;
            p.for_each_element(d, h, w, [&](Index i) {
                if (where < 0 || x[i] > best || x[i] != x[i]) {
                    best = x[i];
                    where = i;
                }
            });
            a.y[plane * p.y_plane() + out] = best;
            if (a.indices != nullptr)
                a.indices[plane * p.y_plane() + out] = where;
        });
    });
}

template <class T>
void max_pool_compared(const MaxArrays<T>& a, const PoolGeometry& g, int threads) {
    const PoolProblem p(g, threads);
    if (p.x_plane() > std::numeric_limits<Position<T>>::max())
        return max_by_elements(p, a);
    go_cheapest(
        p, tiles<T>().lanes, PoolWork::maximum, [&] { return max_by_planes(p, a); },
        [&](bool small) { max_by_columns(p, a, small); }, [&] { max_by_windows(p, a); },
        [&] { max_by_elements(p, a); });
}

// to[indices[i]] += from[i], where an index of -1 adds nothing. False where another lies outside [0, size).
template <class T>
bool scatter_add(const T* from, const Index* indices, Index count, T* to, Index size) {
    bool sound = true;
    for (Index i = 0; i < count; ++i) {
        const Index where = indices[i];
        if (static_cast<std::uint64_t>(where) < static_cast<std::uint64_t>(size))
            to[where] += from[i];
        else
            sound &= where == -1;
    }
    return sound;
}

// The type that elements are compared in: one that has tiles, and room for all values in the same order.
template <class T>
using Compared = std::conditional_t<
    std::is_floating_point_v<T>, T,
    std::conditional_t<sizeof(T) < 4 || std::is_same_v<T, std::int32_t>, std::int32_t, std::int64_t>>;

constexpr std::uint64_t kSignBit = std::uint64_t{1} << 63; // flipped, uint64 becomes int64 in the same order

template <class T>
Compared<T> to_compared(T value) {
    if constexpr (std::is_same_v<T, std::uint64_t>)
        return static_cast<std::int64_t>(value ^ kSignBit);
    else
        return value;
}

template <class T>
T from_compared(Compared<T> value) {
    if constexpr (std::is_same_v<T, std::uint64_t>)
        return static_cast<std::uint64_t>(value) ^ kSignBit;
    else // the maximum of no element is lower than any T
        return static_cast<T>(std::max(value, static_cast<Compared<T>>(lowest<T>())));
}

} // namespace

template <class T>
void max_pool(const T* x, T* y, Index* indices, const PoolGeometry& geometry, int threads) {
    if constexpr (std::is_same_v<T, Compared<T>>) {
        max_pool_compared<T>({x, y, indices}, geometry, threads);
    } else {
        PoolGeometry g = geometry;
        const Index in = volume(g.input), out = volume(g.output), planes = g.planes;
        if (in + out > kMostConverted) { // a copy of one plane would be too large
            max_by_elements<T>(PoolProblem(g, threads), {x, y, indices});
            return;
        }
        const Index most = std::clamp<Index>(kConvertedElements / (in + out), 1, planes);
        std::vector<Compared<T>> from(static_cast<std::size_t>(most * in)), to(most * out);
        for (Index plane = 0; plane < planes; plane += g.planes) {
            g.planes = std::min(most, planes - plane);
            std::transform(x + plane * in, x + (plane + g.planes) * in, from.begin(), to_compared<T>);
            max_pool_compared<Compared<T>>(
                {from.data(), to.data(), indices == nullptr ? nullptr : indices + plane * out}, g, threads);
            std::transform(to.begin(), to.begin() + g.planes * out, y + plane * out, from_compared<T>);
        }
    }
}

template <class T>
Index max_pool_grad_input(const T* grad_y, const Index* indices, T* grad_x, Index planes, Index output_plane,
                          Index input_plane, int threads) {
    std::atomic<bool> sound{true};
    const bool past =
        past_caches<T>(planes * input_plane) && input_plane * static_cast<Index>(sizeof(T)) <= kStagedBytes;
    for_each_planes(planes, input_plane + output_plane, threads, [&](Index first, Index count) {
        T* staged = past ? workspace<T>(Slot::staging, count * input_plane) : grad_x + first * input_plane;
        std::memset(staged, 0, static_cast<std::size_t>(count * input_plane) * sizeof(T));
        for (Index plane = 0; plane < count; ++plane) {
            const Index out = (first + plane) * output_plane;
            if (!scatter_add(grad_y + out, indices + out, output_plane, staged + plane * input_plane,
                             input_plane))
                sound = false;
        }
        if (past)
            tiles<T>().stream(staged, count * input_plane, grad_x + first * input_plane, true);
    });
    if (sound)
        return -1;
    const Index* bad = std::find_if(indices, indices + planes * output_plane,
                                    [&](Index where) { return where < -1 || where >= input_plane; });
    return bad - indices;
}

#define INSTANTIATE_MAX(T) template void max_pool(const T*, T*, Index*, const PoolGeometry&, int);
#define INSTANTIATE_GRAD(T) \
    template Index max_pool_grad_input(const T*, const Index*, T*, Index, Index, Index, int);
FASTCONV_MAX_TYPES(INSTANTIATE_MAX)
FASTCONV_MEAN_TYPES(INSTANTIATE_GRAD)

} // namespace fastconv
