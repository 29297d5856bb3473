#include "pooling.h"

#include <limits>

namespace fastconv {
namespace {

constexpr Index kElement = 4 * kMemoryBound; // the time of one, in multiply-adds
constexpr Index kWorkPerTask = 1 << 14;      // elements
constexpr Index kTasksPerWorker = 4;
constexpr Index kFewestRows = 4; // of a block: neighbours compute the rows that they share twice
constexpr Index kPlaneBytes = 128 << 10, kGroupBytes = 512 << 10; // of a block: L2
constexpr Index kLargestLists = 1 << 22;                          // entries
constexpr Index kFarthest = Index{1} << 31; // stride, dilation or padding whose sums are taken
constexpr Index kLargestStep = 64;          // whose phases are worth it

// Windows that take whole rows are windows of one long row.
PoolGeometry folded(PoolGeometry g) {
    for (int axis = 1; axis >= 0; --axis) {
        const Index width = g.input[axis + 1];
        const bool whole = !g.adaptive && g.output[axis + 1] == 1 && g.kernel[axis + 1] == width &&
                           g.pad_low[axis + 1] == 0 && g.pad_high[axis + 1] == 0 &&
                           g.dilation[axis + 1] == 1 && g.dilation[axis] == 1;
        const bool near =
            std::max({width, g.kernel[axis], g.stride[axis], g.pad_low[axis], g.pad_high[axis]}) <= kFarthest;
        if (!whole || !near)
            continue;
        for (Size3* size : {&g.input, &g.kernel, &g.stride, &g.pad_low, &g.pad_high})
            (*size)[axis] *= width;
        g.input[axis + 1] = g.kernel[axis + 1] = g.stride[axis + 1] = 1;
    }
    return g;
}

// Axes of a single element come first.
PoolGeometry rotated(PoolGeometry g) {
    for (int i = 0; i < 2 && g.input[2] == 1 && g.output[2] == 1; ++i)
        for (Size3* size : {&g.input, &g.output, &g.kernel, &g.stride, &g.dilation, &g.pad_low, &g.pad_high})
            std::rotate(size->begin(), size->begin() + 2, size->end());
    return g;
}

Index count_elements(const std::vector<Window>& windows) {
    Index count = 0;
    for (const Window& w : windows)
        count += w.inside;
    return count;
}

Range united(Range a, Range b) {
    if (a.size() == 0 || b.size() == 0)
        return a.size() == 0 ? b : a;
    return {std::min(a.begin, b.begin), std::max(a.end, b.end)};
}

// The sources from the first to the last that result j needs.
Range span(const AxisLists& lists, Index j) {
    const Index begin = lists.begin[j], end = lists.begin[j + 1];
    return begin == end ? Range{0, 0} : Range{lists.entries[begin], lists.entries[end - 1] + 1};
}

} // namespace

AxisLists inverse_lists(const AxisLists& lists, Index sources) {
    AxisLists inverse{std::vector<Index>(static_cast<std::size_t>(sources) + 1),
                      std::vector<Index>(lists.entries.size())};
    for (const Index entry : lists.entries)
        ++inverse.begin[entry + 1];
    for (Index i = 0; i < sources; ++i)
        inverse.begin[i + 1] += inverse.begin[i];
    std::vector<Index> next(inverse.begin.begin(), inverse.begin.end() - 1);
    for (Index j = 0; j + 1 < static_cast<Index>(lists.begin.size()); ++j)
        for (Index i = lists.begin[j]; i < lists.begin[j + 1]; ++i)
            inverse.entries[next[lists.entries[i]]++] = j;
    return inverse;
}

// --- which way ---------------------------------------------------------------------------------------------

PoolProblem::PoolProblem(const PoolGeometry& geometry, int threads)
    : g(rotated(folded(geometry))), windows{axis_windows(g, 0), axis_windows(g, 1), axis_windows(g, 2)},
      elements{count_elements(windows[0]), count_elements(windows[1]), count_elements(windows[2])},
      threads(threads) {}

PoolWay PoolProblem::cheapest(Index lanes, PoolWork work, bool planes_fit) const {
    if (std::max(elements[0], elements[1]) > kLargestLists)
        return PoolWay::none;
    for (const Size3& size : {g.stride, g.dilation, g.pad_low})
        if (*std::max_element(size.begin(), size.end()) > kFarthest)
            return PoolWay::none;
    // Cycles for a plane, fitted roughly to measurements on one machine.
    const auto real = [](auto value) { return static_cast<double>(value); };
    const bool adjoint = work == PoolWork::mean_adjoint, maximum = work == PoolWork::maximum;
    const double x = real(x_plane()), y = real(y_plane()), width = real(g.input[2]),
                 results = real(g.output[2]), x_rows = x / width, y_rows = y / results, l = real(lanes),
                 step = real(g.stride[2]);
    const double all_taps = real(elements[2]), taps = all_taps / results;
    const double merged = real(elements[0]) * real(elements[1]); // rows of x of all rows of y together
    const double rows = std::min(merged, x_rows);                // that take part

    const double by_plane =
        adjoint ? 12 * x + 6 * y + 3 * merged * width + 3 * y_rows * all_taps
                : (maximum ? 2.3 : 1.5) * (4 * x + 8 * y + 2 * merged * results + 2 * rows * all_taps);
    const double by_planes = by_plane * real(ceil_div(g.planes, lanes)) / real(g.planes);

    double by_columns, by_small = std::numeric_limits<double>::infinity();
    if (adjoint) {
        const double vectors = real(ceil_div(g.input[2], lanes)), phases = std::min(step, taps);
        by_columns = y_rows * vectors * (2.5 * std::max(1., taps / step) + (step > 2 ? l : 2)) +
                     20 * y_rows * phases + 2.5 * merged * vectors + 15 * y_rows * (1 + phases) + 20 * x_rows;
        if (spreads())
            by_small = 20 + y_rows * (5 + 15 * real(ceil_div(g.output[2], lanes))) + 2 * x_rows * vectors;
    } else {
        const RowWindows w = row_windows();
        const double vectors = real(ceil_div(g.output[2], lanes)), kernel = real(w.kernel);
        const double cut = g.pad_low[2] > 0 ? std::min(vectors, 2.) : 0; // vectors with elements outside
        const double inner_tap = step > 2 ? 1.25 * l : (maximum ? 3 : 2) * step,
                     cut_tap = step > 2 ? 2 * l : 15 * step;
        by_columns = rows * kernel * (inner_tap * (vectors - cut) + cut_tap * cut) + 2 * merged * vectors +
                     15 * rows + 20 * y_rows;
        const double whole = 2 * g.output[2] <= lanes ? 0.5 : vectors; // two rows in a vector
        const double tap = maximum ? 4 : 2, result = maximum ? 5 : 15;
        if (is_small())
            by_small =
                40 + result * whole * y_rows + merged * (whole * (4 + tap * kernel) + cut * 4 * kernel);
    }

    const double row_vectors = real(ceil_div(elements[2], g.output[2] * lanes));
    const double by_windows = maximum   ? y * 100 + merged * results * (8 + 5 * row_vectors)
                              : adjoint ? merged * results * (6 + 2 * row_vectors) + x / l
                                        : y * (20 + 2 * l) + merged * results * (6 + 2 * row_vectors);

    PoolWay way = PoolWay::none;
    double least = std::numeric_limits<double>::infinity();
    const auto consider = [&](PoolWay candidate, bool possible, double cycles) {
        if (possible && cycles < least) {
            way = candidate;
            least = cycles;
        }
    };
    consider(PoolWay::planes, planes_fit && elements[2] <= kLargestLists, by_planes);
    consider(PoolWay::columns, !g.adaptive && (!adjoint || g.stride[2] <= kLargestStep), by_columns);
    consider(PoolWay::small, true, by_small);
    consider(PoolWay::windows, g.dilation[2] == 1 || g.kernel[2] == 1, by_windows);
    return way;
}

AxisLists PoolProblem::lists(int axis) const {
    AxisLists lists;
    lists.begin.reserve(windows[axis].size() + 1);
    lists.entries.reserve(static_cast<std::size_t>(elements[axis]));
    lists.begin.push_back(0);
    for (const Window& w : windows[axis]) {
        for (Index i = 0; i < w.inside; ++i)
            lists.entries.push_back(w.first + i * g.dilation[axis]);
        lists.begin.push_back(static_cast<Index>(lists.entries.size()));
    }
    return lists;
}

bool PoolProblem::is_small() const {
    constexpr Index kMostRows = 4; // of a window: with more, the maxima or sums of a row are worth keeping
    constexpr Index kLongestRow = 1 << 30;
    const RowWindows w = row_windows();
    const auto full = [](const std::vector<Window>& axis) {
        return std::all_of(axis.begin(), axis.end(), [](const Window& window) { return window.inside > 0; });
    };
    return !g.adaptive && w.size < kLongestRow && (w.kernel == 2 || w.kernel == 3) && w.step == 2 &&
           w.dilation == 1 && g.kernel[0] * g.kernel[1] <= kMostRows &&
           std::all_of(windows.begin(), windows.end(), full);
}

bool PoolProblem::spreads() const {
    const RowWindows w = row_windows();
    const auto apart = [&](int axis) { return g.dilation[axis] == 1 && g.kernel[axis] <= g.stride[axis]; };
    return !g.adaptive && w.kernel == 2 && w.step == 2 && w.dilation == 1 && w.pad == 0 && apart(0) &&
           apart(1);
}

RowWindows PoolProblem::row_windows() const {
    const Index size = g.input[2], results = g.output[2], step = g.stride[2], dilation = g.dilation[2],
                pad = g.pad_low[2], last_start = (results - 1) * step - pad;
    const Index first = last_start < 0 ? ceil_div(-last_start, dilation) : 0;
    const Index end = std::min(g.kernel[2], ceil_div(size + pad, dilation));
    return {size, results, std::max<Index>(0, end - first), step, dilation, pad - first * dilation};
}

// --- division of the work ----------------------------------------------------------------------------------

PoolPlan::PoolPlan(const Size3& source, const Size3& result, AxisLists depth, AxisLists height)
    : source(source), result(result), depth_(std::move(depth)), height_(std::move(height)) {}

PoolRows PoolPlan::rows(const PoolBlock& block) const {
    const auto for_each = [&](const auto& visit) {
        for (Index slice = block.result_slices.begin; slice < block.result_slices.end; ++slice)
            for (Index row = block.result_rows.begin; row < block.result_rows.end; ++row)
                visit(slice, row);
    };
    // Numbers of the source rows of the block, -1 for those that no result needs.
    std::vector<Index> numbers(static_cast<std::size_t>(block.sources()), -1);
    const auto number = [&](Index d, Index h) -> Index& {
        return numbers[(d - block.slices.begin) * block.rows.size() + h - block.rows.begin];
    };
    Index parts = 0;
    for_each([&](Index slice, Index row) {
        for_each_part(slice, row, [&](Index d, Index h) {
            number(d, h) = 0;
            ++parts;
        });
    });
    PoolRows rows;
    rows.sources.reserve(numbers.size());
    rows.in_block.reserve(numbers.size());
    for (Index slice = block.slices.begin; slice < block.slices.end; ++slice)
        for (Index row = block.rows.begin; row < block.rows.end; ++row)
            if (number(slice, row) == 0) {
                number(slice, row) = rows.count();
                rows.in_block.push_back((slice - block.slices.begin) * block.rows.size() + row -
                                        block.rows.begin);
                rows.sources.push_back(source_row(slice, row));
            }
    rows.parts.begin.reserve(static_cast<std::size_t>(block.results()) + 1);
    rows.parts.entries.reserve(static_cast<std::size_t>(parts));
    rows.offsets.reserve(static_cast<std::size_t>(parts));
    rows.parts.begin.push_back(0);
    for_each([&](Index slice, Index row) {
        for_each_part(slice, row, [&](Index d, Index h) {
            rows.parts.entries.push_back(number(d, h));
            rows.offsets.push_back(source_row(d, h));
        });
        rows.parts.begin.push_back(static_cast<Index>(rows.parts.entries.size()));
    });
    return rows;
}

Index PoolPlan::longest_span() const {
    Index slices = 0, rows = 0;
    for (Index j = 0; j < result[0]; ++j)
        slices = std::max(slices, span(depth_, j).size());
    for (Index j = 0; j < result[1]; ++j)
        rows = std::max(rows, span(height_, j).size());
    return slices * rows;
}

std::vector<PoolBlock> PoolPlan::blocks(Index source_rows, Index result_rows) const {
    Range all_rows{0, 0};
    for (Index j = 0; j < result[1]; ++j)
        all_rows = united(all_rows, span(height_, j));

    std::vector<PoolBlock> blocks;
    for (Index d = 0; d < result[0];) {
        // As many whole slices as fit; of a slice that does not fit, as many rows.
        Index end = d + 1;
        Range slices = span(depth_, d);
        for (; end < result[0] && (end + 1 - d) * result[1] <= result_rows; ++end) {
            const Range more = united(slices, span(depth_, end));
            if (more.size() * all_rows.size() > source_rows)
                break;
            slices = more;
        }
        if (end > d + 1) {
            blocks.push_back({{d, end}, {0, result[1]}, slices, all_rows});
            d = end;
            continue;
        }
        for (Index h = 0; h < result[1];) {
            Index last = h + 1;
            Range rows = span(height_, h);
            for (; last < result[1] && last + 1 - h <= result_rows; ++last) {
                const Range more = united(rows, span(height_, last));
                if (slices.size() * more.size() > source_rows)
                    break;
                rows = more;
            }
            blocks.push_back({{d, end}, {h, last}, slices, rows});
            h = last;
        }
        d = end;
    }
    return blocks;
}

PoolTasks PoolTasks::of_planes(const PoolPlan& plan, Index planes, Index row_bytes, int threads) {
    return {plan, planes, 1, row_bytes, kPlaneBytes, threads};
}

PoolTasks PoolTasks::of_groups(const PoolPlan& plan, Index planes, Index lanes, Index row_bytes,
                               int threads) {
    return {plan, planes, lanes, row_bytes, kGroupBytes, threads};
}

PoolTasks::PoolTasks(const PoolPlan& plan, Index planes, Index per_unit, Index row_bytes, Index bytes,
                     int threads)
    : units_(ceil_div(planes, per_unit)), largest_bytes_(0) {
    const Index unit_work = per_unit * (volume(plan.source) + volume(plan.result));
    workers_ = pool_workers(units_ * unit_work, threads);
    // Many units are dealt out whole, few in blocks.
    const Index tasks = kTasksPerWorker * workers_;
    const bool whole = workers_ == 1 || units_ >= tasks;
    // Neighbouring blocks compute the rows that both need twice: where windows are tall, blocks are larger.
    const Index span = 2 * plan.longest_span(), result_rows = plan.result[0] * plan.result[1];
    const Index fitting = std::max<Index>(1, bytes / row_bytes);
    const Index rows = span > fitting && span * row_bytes <= kLargestBytes ? span : fitting;
    const Index fair_rows =
        whole ? result_rows : std::max(kFewestRows, ceil_div(units_ * result_rows, tasks));
    blocks_ = plan.blocks(rows, std::min(rows, fair_rows));
    for (const PoolBlock& block : blocks_)
        largest_bytes_ = std::max(largest_bytes_, row_bytes * std::max(block.sources(), block.results()));
    per_task_ = whole ? static_cast<Index>(blocks_.size()) *
                            std::clamp<Index>(kWorkPerTask / unit_work, 1, std::max<Index>(1, units_ / tasks))
                      : 1;
}

int pool_workers(Index elements, int threads) {
    return worthwhile_threads(kElement * elements, threads);
}

} // namespace fastconv
