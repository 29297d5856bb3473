// What maximum and average pooling share: which way the vectors lie, which source rows make up a result row,
// and how the work is divided into blocks that stay in the cache. tiles/pool_tiles.h describes the stages;
// the adjoint of average pooling has the same ones, with sources and results exchanged.
#pragma once

#include "geometry.h"
#include "parallel.h"
#include "tiles/tiles.h"

namespace fastconv {

// For each result of an axis the sources that it is made of, ascending:
// entries[begin[j]] .. entries[begin[j + 1] - 1].
struct AxisLists {
    std::vector<Index> begin, entries;

    RowLists row_lists() const {
        return {static_cast<Index>(begin.size()) - 1, begin.data(), entries.data()};
    }
};

AxisLists inverse_lists(const AxisLists& lists, Index sources); // for each source the results it is part of

// Result rows, and all source rows from the first to the last that they need.
struct PoolBlock {
    Range result_slices, result_rows, slices, rows;

    Index sources() const { return slices.size() * rows.size(); }
    Index results() const { return result_slices.size() * result_rows.size(); }
};

// The rows of a block. Those of the results follow one another in their plane.
struct PoolRows {
    std::vector<Index> sources;  // where those begin in their plane that some results need
    std::vector<Index> in_block; // their numbers in the block
    AxisLists parts; // for each result row the source rows that it is made of, by number in `sources`
    std::vector<Index> offsets; // of these parts in their plane

    Index count() const { return static_cast<Index>(sources.size()); }
    const Index* offsets_of(Index result) const { return offsets.data() + parts.begin[result]; }
    Index count_of(Index result) const { return parts.begin[result + 1] - parts.begin[result]; }
};

// Which rows of a source plane make up which rows of a result plane.
class PoolPlan {
public:
    PoolPlan(const Size3& source, const Size3& result, AxisLists depth, AxisLists height);

    // Blocks of at most so many rows, or else of one result row.
    std::vector<PoolBlock> blocks(Index source_rows, Index result_rows) const;

    Index longest_span() const; // source rows from the first to the last that a result row needs

    PoolRows rows(const PoolBlock& block) const;

    // Where a row begins in its plane.
    Index source_row(Index slice, Index row) const { return (slice * source[1] + row) * source[2]; }
    Index first_result(const PoolBlock& block) const {
        return (block.result_slices.begin * result[1] + block.result_rows.begin) * result[2];
    }

    const Size3 source, result;

private:
    // visit(d, h) for each source row that a result row is made of.
    template <class Visit>
    void for_each_part(Index slice, Index row, const Visit& visit) const {
        for (Index d = depth_.begin[slice]; d < depth_.begin[slice + 1]; ++d)
            for (Index h = height_.begin[row]; h < height_.begin[row + 1]; ++h)
                visit(depth_.entries[d], height_.entries[h]);
    }

    const AxisLists depth_, height_;
};

// Which way the vectors lie.
enum class PoolWay {
    columns, // along the results of a row: for regular windows
    planes,  // across planes: for any windows, and for rows shorter than a vector
    windows, // along the rows of a window: for large windows without gaps that overlap little
    small,   // the same in one stage: for small windows of neighbours
    none     // one element after the other: for what is too large for lists and narrow positions
};

enum class PoolWork { maximum, mean, mean_adjoint };

struct PoolProblem {
    PoolProblem(const PoolGeometry& geometry, int threads);

    // The way that takes the least time with vectors of so many lanes; across planes only where those fit.
    PoolWay cheapest(Index lanes, PoolWork work, bool planes_fit = true) const;

    Index x_plane() const { return volume(g.input); }
    Index y_plane() const { return volume(g.output); }

    AxisLists lists(int axis) const;
    PoolPlan plan() const { return {g.input, g.output, lists(0), lists(1)}; }

    // Whether the tiles know a way of one stage: forward, and of the mean's adjoint.
    bool is_small() const;
    bool spreads() const;

    // The windows of a row, less the kernel positions that lie outside the input in every window.
    RowWindows row_windows() const;

    // visit(output position, d, h, w) for each window of a plane.
    template <class Visit>
    void for_each_window(const Visit& visit) const {
        Index position = 0;
        for (Index d = 0; d < g.output[0]; ++d)
            for (Index h = 0; h < g.output[1]; ++h)
                for (Index w = 0; w < g.output[2]; ++w)
                    visit(position++, d, h, w);
    }

    // element(position) for each element of the window of result (d, h, w).
    template <class Element>
    void for_each_element(Index d, Index h, Index w, const Element& element) const {
        const Window &a = windows[0][d], &b = windows[1][h], &c = windows[2][w];
        for (Index i = 0; i < a.inside; ++i)
            for (Index j = 0; j < b.inside; ++j) {
                const Index row =
                    ((a.first + i * g.dilation[0]) * g.input[1] + b.first + j * g.dilation[1]) * g.input[2] +
                    c.first;
                for (Index k = 0; k < c.inside; ++k)
                    element(row + k * g.dilation[2]);
            }
    }

    // Axes of a single element are moved to the front, so that planes of one column become rows.
    const PoolGeometry g;
    const std::array<std::vector<Window>, 3> windows;
    const std::array<Index, 3> elements; // of all windows of an axis
    const int threads;
};

// Goes the cheapest way. by_planes says whether the planes fit.
template <class Planes, class Columns, class Windows, class Elements>
void go_cheapest(const PoolProblem& p, Index lanes, PoolWork work, const Planes& by_planes,
                 const Columns& by_columns, const Windows& by_windows, const Elements& by_elements) {
    PoolWay way = p.cheapest(lanes, work);
    if (way == PoolWay::planes) {
        if (by_planes())
            return;
        way = p.cheapest(lanes, work, false);
    }
    if (way == PoolWay::columns || way == PoolWay::small)
        by_columns(way == PoolWay::small);
    else if (way == PoolWay::windows)
        by_windows();
    else
        by_elements();
}

// The blocks of all units of work, which are planes or groups of planes, dealt out to threads.
class PoolTasks {
public:
    // A block takes `row_bytes` for each of its rows.
    static PoolTasks of_planes(const PoolPlan& plan, Index planes, Index row_bytes, int threads);
    static PoolTasks of_groups(const PoolPlan& plan, Index planes, Index lanes, Index row_bytes, int threads);

    // Not so where a few rows of a group of planes are longer than a cache.
    bool fit() const { return largest_bytes_ <= kLargestBytes; }

    // visit(unit, block, rows of the block)
    template <class Visit>
    void run(const PoolPlan& plan, const Visit& visit) const {
        const Index per_unit = static_cast<Index>(blocks_.size()), count = units_ * per_unit;
        Parallel::run(ceil_div(count, per_task_), workers_, [&](Index task) {
            const Index first = task * per_task_, last = std::min(count, first + per_task_);
            PoolRows rows;
            for (Index i = first; i < last; ++i) {
                const PoolBlock& block = blocks_[static_cast<std::size_t>(i % per_unit)];
                if (i == first || per_unit > 1)
                    rows = plan.rows(block);
                visit(i / per_unit, block, rows);
            }
        });
    }

private:
    static constexpr Index kLargestBytes = 8 << 20;

    PoolTasks(const PoolPlan& plan, Index planes, Index per_unit, Index row_bytes, Index bytes, int threads);

    Index units_, per_task_, largest_bytes_;
    int workers_;
    std::vector<PoolBlock> blocks_;
};

// Threads worth their start for so many elements read and written.
int pool_workers(Index elements, int threads);

// visit(first, count) for a few planes of so many elements, read and written, that do not depend on each
// other.
template <class Visit>
void for_each_planes(Index planes, Index elements, int threads, const Visit& visit) {
    constexpr Index kPerTask = 1 << 14;
    const Index per_task = std::clamp<Index>(kPerTask / elements, 1, planes);
    Parallel::run(ceil_div(planes, per_task), pool_workers(planes * elements, threads), [&](Index task) {
        const Index first = task * per_task;
        visit(first, std::min(per_task, planes - first));
    });
}

// The same for one plane after the other.
template <class Visit>
void for_each_plane(Index planes, Index elements, int threads, const Visit& visit) {
    for_each_planes(planes, elements, threads, [&](Index first, Index count) {
        for (Index i = first; i < first + count; ++i)
            visit(i);
    });
}

// Whether so many results are not found in a cache again.
template <class T>
bool past_caches(Index results) {
    constexpr Index kCachedBytes = 12 << 20;
    return results > kCachedBytes / static_cast<Index>(sizeof(T));
}

// Copies the source rows of a block of `planes` planes, interleaved.
template <class T>
void interleave(const PoolPlan& plan, const PoolBlock& block, const T* source, Index planes, T* to) {
    const Index lanes = tiles<T>().lanes, length = block.rows.size() * plan.source[2];
    for (Index slice = block.slices.begin; slice < block.slices.end; ++slice, to += length * lanes)
        tiles<T>().transpose(source + plan.source_row(slice, block.rows.begin), volume(plan.source), planes,
                             length, to, lanes, lanes);
}

// Copies `length` interleaved elements to each of `planes` planes.
template <class T>
void separate(const T* from, Index length, Index planes, T* to, Index plane) {
    tiles<T>().transpose(from, tiles<T>().lanes, length, planes, to, plane, length);
}

} // namespace fastconv
