// Average pooling: the sum of a window over its divisor, and the adjoint, which gives every element an equal
// share.
#include <map>
#include <numeric>

#include "kernels.h"
#include "pooling.h"

namespace fastconv {
namespace {

template <class T>
const SumTiles<T>& sum_tiles();
template <>
const SumTiles<float>& sum_tiles() {
    return tile_set().pool.sum_f32;
}
template <>
const SumTiles<double>& sum_tiles() {
    return tile_set().pool.sum_f64;
}

class Divisors {
public:
    explicit Divisors(const PoolProblem& problem) : p_(problem) {}

    double operator()(Index d, Index h, Index w) const {
        if (p_.g.divisor_override != 0)
            return static_cast<double>(p_.g.divisor_override);
        const double product = side(0, d) * side(1, h) * side(2, w);
        return product > 0 ? product : 1; // of no element
    }

    // Rows that have the same product have the same divisors.
    double of_row(Index d, Index h) const { return p_.g.divisor_override != 0 ? 1 : side(0, d) * side(1, h); }

private:
    double side(int axis, Index i) const {
        const Window& w = p_.windows[axis][static_cast<std::size_t>(i)];
        return static_cast<double>(p_.g.count_include_pad ? w.length : w.inside);
    }

    const PoolProblem& p_;
};

// The divisors of all rows of a plane of results, of which equal ones lie in memory once. Whole vectors may
// be read.
template <class T>
class DivisorRows {
public:
    explicit DivisorRows(const PoolProblem& p) {
        const auto& [depth, height, columns] = p.g.output;
        const Divisors divisors(p);
        rows_.reserve(static_cast<std::size_t>(depth * height));
        for (Index d = 0; d < depth; ++d)
            for (Index h = 0; h < height; ++h) {
                std::vector<T>& row = distinct_[divisors.of_row(d, h)];
                if (row.empty()) {
                    row.assign(static_cast<std::size_t>(round_up(columns, tiles<T>().lanes)), T{1});
                    for (Index w = 0; w < columns; ++w)
                        row[static_cast<std::size_t>(w)] = static_cast<T>(divisors(d, h, w));
                }
                rows_.push_back(row.data());
            }
    }

    // From this row on.
    const T* const* from(Index row) const { return rows_.data() + row; }

private:
    std::map<double, std::vector<T>> distinct_;
    std::vector<const T*> rows_;
};

// One window without gaps that covers the plane.
bool is_global(const PoolProblem& p) {
    return p.y_plane() == 1 && p.elements[0] == p.g.input[0] && p.elements[1] == p.g.input[1] &&
           p.elements[2] == p.g.input[2];
}

// --- forward -----------------------------------------------------------------------------------------------

template <class T>
void avg_by_columns(const PoolProblem& p, const T* x, T* y, bool small) {
    const SumTiles<T>& tile = sum_tiles<T>();
    const PoolPlan plan = p.plan();
    const RowWindows windows = p.row_windows();
    const DivisorRows<T> divisors(p);
    const Index columns = windows.results, pitch = round_up(columns, tiles<T>().lanes);
    const T* end = x + p.g.planes * p.x_plane();
    const bool past = past_caches<T>(p.g.planes * p.y_plane());
    const PoolTasks tasks =
        PoolTasks::of_planes(plan, p.g.planes, pitch * static_cast<Index>(sizeof(T)), p.threads);
    tasks.run(plan, [&](Index plane, const PoolBlock& block, const PoolRows& rows) {
        const Index first = plan.first_result(block), count = block.results() * columns;
        T* to = y + plane * p.y_plane() + first;
        T* means = past ? workspace<T>(Slot::results, count) : to;
        const PoolSources<T> sources{x + plane * p.x_plane(), rows.sources.data(), rows.count(), x, end};
        const T* const* divisor = divisors.from(first / columns);
        if (small) {
            tile.windows(sources, windows, rows.parts.row_lists(), divisor, means);
        } else {
            T* sums = workspace<T>(Slot::panels, rows.count() * pitch);
            tile.along(sources, windows, sums, pitch);
            tile.across(sums, pitch, rows.parts.row_lists(), columns, divisor, false, means);
        }
        if (past)
            tiles<T>().stream(means, count, to, true);
    });
}

// False where that needs too much memory; as below.
template <class T>
bool avg_by_planes(const PoolProblem& p, const T* x, T* y) {
    const SumTiles<T>& tile = sum_tiles<T>();
    const PoolPlan plan = p.plan();
    const AxisLists width = p.lists(2);
    const DivisorRows<T> divisors(p);
    const Index columns = p.g.output[2], lanes = tiles<T>().lanes;
    const Index x_row = p.g.input[2] * lanes, y_row = columns * lanes;
    const Index row_bytes = (x_row + 2 * y_row) * static_cast<Index>(sizeof(T));
    const PoolTasks tasks = PoolTasks::of_groups(plan, p.g.planes, lanes, row_bytes, p.threads);
    if (!tasks.fit())
        return false;
    tasks.run(plan, [&](Index group, const PoolBlock& block, const PoolRows& rows) {
        const Index plane = group * lanes, planes = std::min(lanes, p.g.planes - plane);
        const Index first = plan.first_result(block);
        T* source = workspace<T>(Slot::window, block.sources() * x_row);
        T* sums = workspace<T>(Slot::panels, rows.count() * y_row);
        T* result = workspace<T>(Slot::results, block.results() * y_row);
        interleave(plan, block, x + plane * p.x_plane(), planes, source);
        for (Index i = 0; i < rows.count(); ++i)
            tile.along_interleaved(source + rows.in_block[i] * x_row, width.row_lists(), sums + i * y_row);
        tile.across(sums, y_row, rows.parts.row_lists(), y_row, divisors.from(first / columns), true, result);
        separate(result, block.results() * columns, planes, y + plane * p.y_plane() + first, p.y_plane());
    });
    return true;
}

template <class T>
void avg_by_windows(const PoolProblem& p, const T* x, T* y) {
    const PoolPlan plan = p.plan();
    const DivisorRows<T> divisors(p);
    const Index columns = p.g.output[2];
    const PoolTasks tasks = PoolTasks::of_planes(plan, p.g.planes, 1, p.threads);
    tasks.run(plan, [&](Index plane, const PoolBlock& block, const PoolRows& rows) {
        const Index first = plan.first_result(block);
        const T* const* divisor = divisors.from(first / columns);
        T* to = y + plane * p.y_plane() + first;
        for (Index row = 0; row < block.results(); ++row, to += columns)
            for (Index j = 0; j < columns; ++j) {
                const Window& w = p.windows[2][static_cast<std::size_t>(j)];
                to[j] = sum_tiles<T>().window(x + plane * p.x_plane(), w.first, rows.offsets_of(row),
                                              rows.count_of(row), w.inside) /
                        divisor[row][j];
            }
    });
}

template <class T>
void avg_by_elements(const PoolProblem& p, const T* x, T* y) {
    const Divisors divisors(p);
    for_each_plane(p.g.planes, p.x_plane() + p.y_plane(), p.threads, [&](Index plane) {
        const T* from = x + plane * p.x_plane();
        p.for_each_window([&](Index out, Index d, Index h, Index w) {
            double sum = 0;
            p.for_each_element(d, h, w, [&](Index i) { sum += from[i]; });
            y[plane * p.y_plane() + out] = static_cast<T>(sum / divisors(d, h, w));
        });
    });
}

// --- backward ----------------------------------------------------------------------------------------------

// Along a row the adjoint of windows with a step is one sum of neighbours for each phase of the columns
// modulo the step: column step*j + phase is part of result o at kernel position t where
//     step*j + phase = o*step - pad + t*dilation,  so  o = j + (phase + pad - t*dilation) / step,
// for those t that leave no remainder. They lie step / gcd(step, dilation) apart, the results dilation /
// gcd(step, dilation).
std::vector<RowWindows> phases(const RowWindows& w) {
    std::vector<RowWindows> phases;
    const Index apart = w.step / std::gcd(w.step, w.dilation), dilation = w.dilation * apart / w.step;
    for (Index phase = 0; phase < std::min(w.step, w.size); ++phase) {
        Index first = 0; // the lowest t without remainder
        while (first < apart && (phase + w.pad - first * w.dilation) % w.step != 0)
            ++first;
        const Index taps = first < apart && first < w.kernel ? (w.kernel - 1 - first) / apart + 1 : 0;
        const Index last = first + (taps - 1) * apart; // the results ascend as t descends
        phases.push_back({w.results, ceil_div(w.size - phase, w.step), taps, 1, dilation,
                          taps == 0 ? 0 : -((phase + w.pad - last * w.dilation) / w.step)});
    }
    return phases;
}

// Result rows are those of the input here.
PoolPlan adjoint_plan(const PoolProblem& p) {
    return {p.g.output, p.g.input, inverse_lists(p.lists(0), p.g.input[0]),
            inverse_lists(p.lists(1), p.g.input[1])};
}

template <class T>
void avg_grad_by_columns(const PoolProblem& p, const T* grad_y, T* grad_x) {
    const SumTiles<T>& tile = sum_tiles<T>();
    const PoolPlan plan = adjoint_plan(p);
    const RowWindows windows = p.row_windows();
    const std::vector<RowWindows> parts = phases(windows);
    const DivisorRows<T> divisors(p);
    const Index step = static_cast<Index>(parts.size()), lanes = tiles<T>().lanes;
    const Index part_pitch = round_up(parts[0].results, lanes),
                pitch = std::max(round_up(windows.size, lanes), 2 * part_pitch);
    const bool past = past_caches<T>(p.g.planes * p.x_plane());
    const PoolTasks tasks =
        PoolTasks::of_planes(plan, p.g.planes, pitch * static_cast<Index>(sizeof(T)), p.threads);
    tasks.run(plan, [&](Index plane, const PoolBlock& block, const PoolRows& rows) {
        const Index count = block.results() * windows.size;
        T* result = grad_x + plane * p.x_plane() + plan.first_result(block);
        T* shares = workspace<T>(Slot::staging, windows.results);
        T* sums = workspace<T>(Slot::window, step * part_pitch);
        T* spread = workspace<T>(Slot::panels, rows.count() * pitch);
        for (Index i = 0; i < rows.count(); ++i) {
            T* to = spread + i * pitch;
            const Index source = rows.sources[i], start = 0;
            tile.divide(grad_y + plane * p.y_plane() + source, *divisors.from(source / windows.results),
                        windows.results, shares);
            for (Index phase = 0; phase < step; ++phase)
                tile.along({shares, &start, 1, shares, shares + windows.results}, parts[phase],
                           step == 1 ? to : sums + phase * part_pitch, part_pitch);
            if (step == 2)
                tile.alternate(sums, sums + part_pitch, parts[0].results, to);
            for (Index phase = 0; phase < step && step > 2; ++phase)
                for (Index j = 0; j < parts[phase].results; ++j)
                    to[j * step + phase] = sums[phase * part_pitch + j];
        }
        T* across = past ? workspace<T>(Slot::results, count) : result;
        tile.across(spread, pitch, rows.parts.row_lists(), windows.size, nullptr, false, across);
        if (past)
            tiles<T>().stream(across, count, result, true);
    });
}

template <class T>
void avg_grad_by_spreading(const PoolProblem& p, const T* grad_y, T* grad_x) {
    const PoolPlan plan = adjoint_plan(p);
    const RowWindows windows = p.row_windows();
    const DivisorRows<T> divisors(p);
    const bool past = past_caches<T>(p.g.planes * p.x_plane());
    const PoolTasks tasks =
        PoolTasks::of_planes(plan, p.g.planes, windows.size * static_cast<Index>(sizeof(T)), p.threads);
    tasks.run(plan, [&](Index plane, const PoolBlock& block, const PoolRows& rows) {
        const Index count = block.results() * windows.size;
        T* result = grad_x + plane * p.x_plane() + plan.first_result(block);
        T* to = past ? workspace<T>(Slot::results, count) : result;
        sum_tiles<T>().spread(
            {grad_y + plane * p.y_plane(), rows.sources.data(), rows.count(), grad_y, grad_y}, windows,
            rows.parts.row_lists(), divisors.from(0), to);
        if (past)
            tiles<T>().stream(to, count, result, true);
    });
}

template <class T>
bool avg_grad_by_planes(const PoolProblem& p, const T* grad_y, T* grad_x) {
    const SumTiles<T>& tile = sum_tiles<T>();
    const PoolPlan plan = adjoint_plan(p);
    const AxisLists width = inverse_lists(p.lists(2), p.g.input[2]);
    const DivisorRows<T> divisors(p);
    const Index lanes = tiles<T>().lanes, x_row = p.g.input[2] * lanes, y_row = p.g.output[2] * lanes;
    const Index row_bytes = (2 * x_row + y_row) * static_cast<Index>(sizeof(T));
    const PoolTasks tasks = PoolTasks::of_groups(plan, p.g.planes, lanes, row_bytes, p.threads);
    if (!tasks.fit())
        return false;
    tasks.run(plan, [&](Index group, const PoolBlock& block, const PoolRows& rows) {
        const Index plane = group * lanes, planes = std::min(lanes, p.g.planes - plane);
        T* shares = workspace<T>(Slot::window, block.sources() * y_row);
        T* spread = workspace<T>(Slot::panels, rows.count() * x_row);
        T* result = workspace<T>(Slot::results, block.results() * x_row);
        interleave(plan, block, grad_y + plane * p.y_plane(), planes, shares);
        for (Index i = 0; i < rows.count(); ++i) {
            T* share = shares + rows.in_block[i] * y_row;
            const Index list[] = {0, 1}, itself = 0;
            tile.across(share, y_row, {1, list, &itself}, y_row,
                        divisors.from(rows.sources[i] / p.g.output[2]), true, share);
            tile.along_interleaved(share, width.row_lists(), spread + i * x_row);
        }
        tile.across(spread, x_row, rows.parts.row_lists(), x_row, nullptr, true, result);
        separate(result, block.results() * p.g.input[2], planes,
                 grad_x + plane * p.x_plane() + plan.first_result(block), p.x_plane());
    });
    return true;
}

template <class T>
void avg_grad_by_windows(const PoolProblem& p, const T* grad_y, T* grad_x) {
    const PoolPlan plan = p.plan();
    const DivisorRows<T> divisors(p);
    const PoolRows rows =
        plan.rows({{0, p.g.output[0]}, {0, p.g.output[1]}, {0, p.g.input[0]}, {0, p.g.input[1]}});
    const Index y_rows = p.g.output[0] * p.g.output[1];
    for_each_plane(p.g.planes, p.x_plane() + p.y_plane(), p.threads, [&](Index plane) {
        T* to = grad_x + plane * p.x_plane();
        std::fill_n(to, p.x_plane(), T{});
        const T* from = grad_y + plane * p.y_plane();
        for (Index row = 0; row < y_rows; ++row, from += p.g.output[2])
            for (Index j = 0; j < p.g.output[2]; ++j) {
                const Window& w = p.windows[2][static_cast<std::size_t>(j)];
                sum_tiles<T>().add_to_window(from[j] / (*divisors.from(row))[j], w.first,
                                             rows.offsets_of(row), rows.count_of(row), w.inside, to);
            }
    });
}

template <class T>
void avg_grad_by_elements(const PoolProblem& p, const T* grad_y, T* grad_x) {
    const Divisors divisors(p);
    for_each_plane(p.g.planes, p.x_plane() + p.y_plane(), p.threads, [&](Index plane) {
        T* to = grad_x + plane * p.x_plane();
        std::fill_n(to, p.x_plane(), T{});
        p.for_each_window([&](Index out, Index d, Index h, Index w) {
            const T share = grad_y[plane * p.y_plane() + out] / static_cast<T>(divisors(d, h, w));
            p.for_each_element(d, h, w, [&](Index i) { to[i] += share; });
        });
    });
}

} // namespace

template <class T>
void avg_pool(const T* x, T* y, const PoolGeometry& geometry, int threads) {
    const PoolProblem p(geometry, threads);
    if (is_global(p)) {
        const T divisor = static_cast<T>(Divisors(p)(0, 0, 0));
        return for_each_planes(p.g.planes, p.x_plane(), threads, [&](Index first, Index count) {
            sum_tiles<T>().total(x + first * p.x_plane(), p.x_plane(), count, y + first);
            for (Index plane = first; plane < first + count; ++plane)
                y[plane] /= divisor;
        });
    }
    go_cheapest(
        p, tiles<T>().lanes, PoolWork::mean, [&] { return avg_by_planes(p, x, y); },
        [&](bool small) { avg_by_columns(p, x, y, small); }, [&] { avg_by_windows(p, x, y); },
        [&] { avg_by_elements(p, x, y); });
}

template <class T>
void avg_pool_grad_input(const T* grad_y, T* grad_x, const PoolGeometry& geometry, int threads) {
    const PoolProblem p(geometry, threads);
    if (is_global(p)) {
        const T divisor = static_cast<T>(Divisors(p)(0, 0, 0));
        return for_each_plane(p.g.planes, p.x_plane(), threads, [&](Index plane) {
            std::fill_n(grad_x + plane * p.x_plane(), p.x_plane(), grad_y[plane] / divisor);
        });
    }
    go_cheapest(
        p, tiles<T>().lanes, PoolWork::mean_adjoint, [&] { return avg_grad_by_planes(p, grad_y, grad_x); },
        [&](bool small) {
            small ? avg_grad_by_spreading(p, grad_y, grad_x) : avg_grad_by_columns(p, grad_y, grad_x);
        },
        [&] { avg_grad_by_windows(p, grad_y, grad_x); }, [&] { avg_grad_by_elements(p, grad_y, grad_x); });
}

#define INSTANTIATE(T)                                              \
    template void avg_pool(const T*, T*, const PoolGeometry&, int); \
    template void avg_pool_grad_input(const T*, T*, const PoolGeometry&, int);
FASTCONV_MEAN_TYPES(INSTANTIATE)

} // namespace fastconv
