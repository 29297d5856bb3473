// Average pooling: the sum of a window over its divisor, and the adjoint, which gives every element an equal
// share.
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

    // Whether two rows have the same divisors.
    bool same_row(Index d, Index h, Index other_d, Index other_h) const {
        return p_.g.divisor_override != 0 || side(0, d) * side(1, h) == side(0, other_d) * side(1, other_h);
    }

private:
    double side(int axis, Index i) const {
        const Window& w = p_.windows[axis][static_cast<std::size_t>(i)];
        return static_cast<double>(p_.g.count_include_pad ? w.length : w.inside);
    }

    const PoolProblem& p_;
};

// The divisors of one row after the other, made anew only where they change; whole vectors may be read.
template <class T>
class DivisorRow {
public:
    DivisorRow(const PoolProblem& problem, Index columns)
        : divisors_(problem), columns_(columns),
          row_(static_cast<std::size_t>(round_up(columns, tiles<T>().lanes)), T{1}) {}

    const T* of(Index d, Index h) {
        if (d_ < 0 || !divisors_.same_row(d, h, d_, h_))
            for (Index w = 0; w < columns_; ++w)
                row_[w] = static_cast<T>(divisors_(d, h, w));
        d_ = d;
        h_ = h;
        return row_.data();
    }

private:
    const Divisors divisors_;
    const Index columns_;
    std::vector<T> row_;
    Index d_ = -1, h_ = -1;
};

// One window without gaps that covers the plane.
bool is_global(const PoolProblem& p) {
    return p.y_plane() == 1 && p.elements[0] == p.g.input[0] && p.elements[1] == p.g.input[1] &&
           p.elements[2] == p.g.input[2];
}

// --- forward -----------------------------------------------------------------------------------------------

template <class T>
void avg_by_columns(const PoolProblem& p, const T* x, T* y) {
    const SumTiles<T>& tile = sum_tiles<T>();
    const PoolPlan plan = p.plan();
    const RowWindows windows = p.row_windows();
    const Index columns = windows.results, pitch = round_up(columns, tiles<T>().lanes);
    const PoolTasks tasks =
        PoolTasks::of_planes(plan, p.g.planes, pitch * static_cast<Index>(sizeof(T)), p.threads);
    tasks.run([&](Index plane, const PoolBlock& block) {
        T* sums = workspace<T>(Slot::panels, block.sources() * pitch);
        DivisorRow<T> divisors(p, columns);
        plan.for_each_source_row(block, [&](Index slice, Index row, Index i) {
            tile.along(x + plane * p.x_plane() + plan.source_row(slice, row), windows, sums + i * pitch);
        });
        plan.for_each_result_row(
            block, pitch, [&](Index slice, Index row, Index, const Index* rows, Index row_count) {
                tile.across(sums, rows, row_count, columns, divisors.of(slice, row), false,
                            y + plane * p.y_plane() + plan.result_row(slice, row));
            });
    });
}

// False where that needs too much memory; as below.
template <class T>
bool avg_by_planes(const PoolProblem& p, const T* x, T* y) {
    const SumTiles<T>& tile = sum_tiles<T>();
    const PoolPlan plan = p.plan();
    const AxisLists width = p.lists(2);
    const Index lanes = tiles<T>().lanes, x_row = p.g.input[2] * lanes, y_row = p.g.output[2] * lanes;
    const Index row_bytes = (x_row + 2 * y_row) * static_cast<Index>(sizeof(T));
    const PoolTasks tasks = PoolTasks::of_groups(plan, p.g.planes, lanes, row_bytes, p.threads);
    if (!tasks.fit())
        return false;
    tasks.run([&](Index group, const PoolBlock& block) {
        const Index plane = group * lanes, planes = std::min(lanes, p.g.planes - plane);
        T* source = workspace<T>(Slot::window, block.sources() * x_row);
        T* sums = workspace<T>(Slot::panels, block.sources() * y_row);
        T* result = workspace<T>(Slot::results, block.results() * y_row);
        DivisorRow<T> divisors(p, p.g.output[2]);
        interleave(plan, block, x + plane * p.x_plane(), planes, source);
        plan.for_each_source_row(block, [&](Index, Index, Index i) {
            tile.along_interleaved(source + i * x_row, width.row_lists(), sums + i * y_row);
        });
        plan.for_each_result_row(
            block, y_row, [&](Index slice, Index row, Index i, const Index* rows, Index row_count) {
                tile.across(sums, rows, row_count, y_row, divisors.of(slice, row), true, result + i * y_row);
            });
        separate(plan, block, result, planes, y + plane * p.y_plane());
    });
    return true;
}

template <class T>
void avg_by_windows(const PoolProblem& p, const T* x, T* y) {
    const PoolPlan plan = p.plan();
    const Divisors divisors(p);
    const PoolTasks tasks = PoolTasks::of_planes(plan, p.g.planes, 1, p.threads);
    tasks.run([&](Index plane, const PoolBlock& block) {
        plan.for_each_result_row(block, [&](Index slice, Index row, Index, const Index* rows,
                                            Index row_count) {
            T* to = y + plane * p.y_plane() + plan.result_row(slice, row);
            for (Index j = 0; j < p.g.output[2]; ++j) {
                const Window& w = p.windows[2][static_cast<std::size_t>(j)];
                to[j] = sum_tiles<T>().window(x + plane * p.x_plane(), w.first, rows, row_count, w.inside) /
                        static_cast<T>(divisors(slice, row, j));
            }
        });
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
    const Index step = static_cast<Index>(parts.size()), lanes = tiles<T>().lanes;
    const Index part_pitch = round_up(parts[0].results, lanes),
                pitch = std::max(round_up(windows.size, lanes), 2 * part_pitch);
    const PoolTasks tasks =
        PoolTasks::of_planes(plan, p.g.planes, pitch * static_cast<Index>(sizeof(T)), p.threads);
    tasks.run([&](Index plane, const PoolBlock& block) {
        T* shares = workspace<T>(Slot::staging, windows.results);
        T* sums = workspace<T>(Slot::window, step * part_pitch);
        T* spread = workspace<T>(Slot::panels, block.sources() * pitch);
        DivisorRow<T> divisors(p, windows.results);
        plan.for_each_source_row(block, [&](Index slice, Index row, Index i) {
            T* to = spread + i * pitch;
            tile.divide(grad_y + plane * p.y_plane() + plan.source_row(slice, row), divisors.of(slice, row),
                        windows.results, shares);
            for (Index phase = 0; phase < step; ++phase)
                tile.along(shares, parts[phase], step == 1 ? to : sums + phase * part_pitch);
            if (step == 2)
                tile.alternate(sums, sums + part_pitch, parts[0].results, to);
            for (Index phase = 0; phase < step && step > 2; ++phase)
                for (Index j = 0; j < parts[phase].results; ++j)
                    to[j * step + phase] = sums[phase * part_pitch + j];
        });
        plan.for_each_result_row(block, pitch,
                                 [&](Index slice, Index row, Index, const Index* rows, Index row_count) {
                                     tile.across(spread, rows, row_count, windows.size, nullptr, false,
                                                 grad_x + plane * p.x_plane() + plan.result_row(slice, row));
                                 });
    });
}

template <class T>
bool avg_grad_by_planes(const PoolProblem& p, const T* grad_y, T* grad_x) {
    const SumTiles<T>& tile = sum_tiles<T>();
    const PoolPlan plan = adjoint_plan(p);
    const AxisLists width = inverse_lists(p.lists(2), p.g.input[2]);
    const Index lanes = tiles<T>().lanes, x_row = p.g.input[2] * lanes, y_row = p.g.output[2] * lanes;
    const Index row_bytes = (2 * x_row + y_row) * static_cast<Index>(sizeof(T));
    const PoolTasks tasks = PoolTasks::of_groups(plan, p.g.planes, lanes, row_bytes, p.threads);
    if (!tasks.fit())
        return false;
    tasks.run([&](Index group, const PoolBlock& block) {
        const Index plane = group * lanes, planes = std::min(lanes, p.g.planes - plane);
        T* shares = workspace<T>(Slot::window, block.sources() * y_row);
        T* spread = workspace<T>(Slot::panels, block.sources() * x_row);
        T* result = workspace<T>(Slot::results, block.results() * x_row);
        DivisorRow<T> divisors(p, p.g.output[2]);
        interleave(plan, block, grad_y + plane * p.y_plane(), planes, shares);
        plan.for_each_source_row(block, [&](Index slice, Index row, Index i) {
            T* share = shares + i * y_row;
            const Index itself = 0;
            tile.across(share, &itself, 1, y_row, divisors.of(slice, row), true, share);
            tile.along_interleaved(share, width.row_lists(), spread + i * x_row);
        });
        plan.for_each_result_row(
            block, x_row, [&](Index, Index, Index i, const Index* rows, Index row_count) {
                tile.across(spread, rows, row_count, x_row, nullptr, true, result + i * x_row);
            });
        separate(plan, block, result, planes, grad_x + plane * p.x_plane());
    });
    return true;
}

template <class T>
void avg_grad_by_windows(const PoolProblem& p, const T* grad_y, T* grad_x) {
    const PoolPlan plan = p.plan();
    const Divisors divisors(p);
    const PoolBlock everything{{0, p.g.output[0]}, {0, p.g.output[1]}, {0, 0}, {0, 0}};
    for_each_plane(p.g.planes, p.x_plane() + p.y_plane(), p.threads, [&](Index plane) {
        T* to = grad_x + plane * p.x_plane();
        std::fill_n(to, p.x_plane(), T{});
        plan.for_each_result_row(
            everything, [&](Index slice, Index row, Index, const Index* rows, Index row_count) {
                const T* from = grad_y + plane * p.y_plane() + plan.result_row(slice, row);
                for (Index j = 0; j < p.g.output[2]; ++j) {
                    const Window& w = p.windows[2][static_cast<std::size_t>(j)];
                    sum_tiles<T>().add_to_window(from[j] / static_cast<T>(divisors(slice, row, j)), w.first,
                                                 rows, row_count, w.inside, to);
                }
            });
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
        return for_each_plane(p.g.planes, p.x_plane(), threads, [&](Index plane) {
            const Index row = plane * p.x_plane();
            y[plane] = sum_tiles<T>().window(x, 0, &row, 1, p.x_plane()) / divisor;
        });
    }
    go_cheapest(
        p, tiles<T>().lanes, PoolWork::mean, [&] { return avg_by_planes(p, x, y); },
        [&] { avg_by_columns(p, x, y); }, [&] { avg_by_windows(p, x, y); },
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
        [&] { avg_grad_by_columns(p, grad_y, grad_x); }, [&] { avg_grad_by_windows(p, grad_y, grad_x); },
        [&] { avg_grad_by_elements(p, grad_y, grad_x); });
}

#define INSTANTIATE(T)                                              \
    template void avg_pool(const T*, T*, const PoolGeometry&, int); \
    template void avg_pool_grad_input(const T*, T*, const PoolGeometry&, int);
FASTCONV_MEAN_TYPES(INSTANTIATE)

} // namespace fastconv
