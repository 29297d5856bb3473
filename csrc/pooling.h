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

// Which rows of a source plane make up which rows of a result plane.
class PoolPlan {
public:
    PoolPlan(const Size3& source, const Size3& result, AxisLists depth, AxisLists height);

    // Blocks of at most so many rows, or else of one result row.
    std::vector<PoolBlock> blocks(Index source_rows, Index result_rows) const;

    Index longest_span() const; // source rows from the first to the last that a result row needs

    // visit(slice, row, i) for each source row of a block that some of its results need, the i-th of the
    // block.
    template <class Visit>
    void for_each_source_row(const PoolBlock& block, const Visit& visit) const {
        const std::vector<bool> slice_used = used(depth_, block.result_slices, block.slices);
        const std::vector<bool> row_used = used(height_, block.result_rows, block.rows);
        Index i = 0;
        for (Index slice = block.slices.begin; slice < block.slices.end; ++slice)
            for (Index row = block.rows.begin; row < block.rows.end; ++row, ++i)
                if (slice_used[slice - block.slices.begin] && row_used[row - block.rows.begin])
                    visit(slice, row, i);
    }

    // visit(slice, row, i, offsets, count) for each result row of a block, the i-th; it is made of the
    // `count` source rows at these offsets in an array that has `pitch` elements for each source row of the
    // block.
    template <class Visit>
    void for_each_result_row(const PoolBlock& block, Index pitch, const Visit& visit) const {
        visit_results(block, block.slices.begin, block.rows.begin, block.rows.size() * pitch, pitch, visit);
    }

    // The same with the offsets of the source rows in their plane.
    template <class Visit>
    void for_each_result_row(const PoolBlock& block, const Visit& visit) const {
        visit_results(block, 0, 0, source[1] * source[2], source[2], visit);
    }

    // Where a row begins in its plane.
    Index source_row(Index slice, Index row) const { return (slice * source[1] + row) * source[2]; }
    Index result_row(Index slice, Index row) const { return (slice * result[1] + row) * result[2]; }

    const Size3 source, result;

private:
    // Which of the sources some of the results need.
    static std::vector<bool> used(const AxisLists& lists, Range results, Range sources);

    template <class Visit>
    void visit_results(const PoolBlock& block, Index first_slice, Index first_row, Index slice_pitch,
                       Index row_pitch, const Visit& visit) const {
        std::vector<Index> offsets;
        Index i = 0;
        for (Index slice = block.result_slices.begin; slice < block.result_slices.end; ++slice)
            for (Index row = block.result_rows.begin; row < block.result_rows.end; ++row, ++i) {
                offsets.clear();
                for (Index d = depth_.begin[slice]; d < depth_.begin[slice + 1]; ++d)
                    for (Index h = height_.begin[row]; h < height_.begin[row + 1]; ++h)
                        offsets.push_back((depth_.entries[d] - first_slice) * slice_pitch +
                                          (height_.entries[h] - first_row) * row_pitch);
                visit(slice, row, i, offsets.data(), static_cast<Index>(offsets.size()));
            }
    }

    const AxisLists depth_, height_;
};

// Which way the vectors lie.
enum class PoolWay {
    columns, // along the results of a row: for regular windows
    planes,  // across planes: for any windows, and for rows shorter than a vector
    windows, // along the rows of a window: for large windows without gaps that overlap little
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
    if (way == PoolWay::columns)
        by_columns();
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

    // visit(unit, block)
    template <class Visit>
    void run(const Visit& visit) const {
        const Index per_unit = static_cast<Index>(blocks_.size()), count = units_ * per_unit;
        Parallel::run(ceil_div(count, per_task_), workers_, [&](Index task) {
            for (Index i = task * per_task_; i < std::min(count, (task + 1) * per_task_); ++i)
                visit(i / per_unit, blocks_[static_cast<std::size_t>(i % per_unit)]);
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

// visit(plane) for planes of so many elements, read and written, that do not depend on each other.
template <class Visit>
void for_each_plane(Index planes, Index elements, int threads, const Visit& visit) {
    constexpr Index kPerTask = 1 << 14;
    const Index per_task = std::clamp<Index>(kPerTask / elements, 1, planes);
    Parallel::run(ceil_div(planes, per_task), pool_workers(planes * elements, threads), [&](Index task) {
        for (Index i = task * per_task; i < std::min(planes, (task + 1) * per_task); ++i)
            visit(i);
    });
}

// Copies the source rows of a block of `planes` planes, interleaved.
template <class T>
void interleave(const PoolPlan& plan, const PoolBlock& block, const T* source, Index planes, T* to) {
    const Index lanes = tiles<T>().lanes, length = block.rows.size() * plan.source[2];
    for (Index slice = block.slices.begin; slice < block.slices.end; ++slice, to += length * lanes)
        tiles<T>().transpose(source + plan.source_row(slice, block.rows.begin), volume(plan.source), planes,
                             length, to, lanes, lanes);
}

// store(offset, length, from) for each run of a block's result rows: `length` interleaved elements belong at
// `offset` of the planes.
template <class T, class Store>
void for_each_run(const PoolPlan& plan, const PoolBlock& block, const T* from, const Store& store) {
    const Index lanes = tiles<T>().lanes, length = block.result_rows.size() * plan.result[2];
    for (Index slice = block.result_slices.begin; slice < block.result_slices.end; ++slice) {
        store(plan.result_row(slice, block.result_rows.begin), length, from);
        from += length * lanes;
    }
}

// Copies the interleaved result rows of a block to `planes` planes.
template <class T>
void separate(const PoolPlan& plan, const PoolBlock& block, const T* from, Index planes, T* result) {
    for_each_run(plan, block, from, [&](Index offset, Index length, const T* run) {
        tiles<T>().transpose(run, tiles<T>().lanes, length, planes, result + offset, volume(plan.result),
                             length);
    });
}

} // namespace fastconv
