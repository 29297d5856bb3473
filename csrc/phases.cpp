#include "phases.h"

#include "kernels.h"
#include "parallel.h"

namespace fastconv {
namespace {

// One phase of the planes of one image.
struct Phase {
    Index row, column, down, across; // its first element, and the distances to the next
    Index rows, columns;             // of the phase, rounded up
    Index rows_there, columns_there; // that exist
};

// visit(phase, its number) for every phase of planes of this size.
template <class Visit>
void for_each_phase(const Size3& size, const GatherPlan& plan, const Visit& visit) {
    const Index down = tap_distance(plan.axes[1]), across = tap_distance(plan.axes[2]);
    for (Index i = 0; i < down * across; ++i) {
        const Index row = i / across, column = i % across;
        visit(Phase{row, column, down, across, ceil_div(size[1], down), ceil_div(size[2], across),
                    std::max<Index>(0, ceil_div(size[1] - row, down)),
                    std::max<Index>(0, ceil_div(size[2] - column, across))},
              i);
    }
}

int workers_for(Index batch, Index channels, const Size3& size, int threads) {
    return worthwhile_threads(kMemoryBound * batch * channels * volume(size), threads);
}

} // namespace

template <class T>
GatherProblem<T> problem_of_phases(const GatherProblem<T>& problem) {
    GatherProblem<T> dense = problem;
    for (const std::size_t i : {std::size_t{1}, std::size_t{2}}) {
        GatherAxis& axis = dense.plans.front().axes[i];
        const Index distance = tap_distance(axis);
        dense.batch *= distance;
        dense.source_size[i] = axis.source_size = ceil_div(axis.source_size, distance);
        dense.result_size[i] = axis.outputs = ceil_div(axis.outputs, distance);
        for (GatherTap& tap : axis.taps)
            tap.offset /= distance;
    }
    return dense;
}

template <class T>
void split_phases(const T* images, Index batch, Index channels, const Size3& size, const GatherPlan& plan,
                  T* phases, int threads) {
    const Tiles<T>& tile = tiles<T>();
    const Index lanes = tile.lanes;
    Parallel::run(batch * channels, workers_for(batch, channels, size, threads), [&](Index task) {
        const Index image = task / channels, channel = task % channels;
        const T* plane = images + task * volume(size);
        for_each_phase(size, plan, [&](const Phase& p, Index i) {
            T* to = phases + ((image * p.down * p.across + i) * channels + channel) * p.rows * p.columns;
            for (Index j = 0; j < p.columns; j += lanes) {
                const Index count = std::min(lanes, p.columns - j);
                const Index there = std::clamp<Index>(p.columns_there - j, 0, count);
                tile.pack_run(plane + p.row * size[2] + p.column + (there > 0 ? j * p.across : 0),
                              p.down * size[2], p.across, to + j, p.columns, p.rows_there, 0,
                              static_cast<int>(there), static_cast<int>(count), 0);
            }
            std::fill_n(to + p.rows_there * p.columns, (p.rows - p.rows_there) * p.columns, T{});
        });
    });
}

template <class T>
void join_phases(const T* phases, Index batch, Index channels, const Size3& size, const GatherPlan& plan,
                 T* images, int threads) {
    Parallel::run(batch * channels, workers_for(batch, channels, size, threads), [&](Index task) {
        const Index image = task / channels, channel = task % channels;
        T* plane = images + task * volume(size);
        for_each_phase(size, plan, [&](const Phase& p, Index i) {
            const T* from =
                phases + ((image * p.down * p.across + i) * channels + channel) * p.rows * p.columns;
            for (Index row = 0; row < p.rows_there; ++row) {
                T* to = plane + (p.row + row * p.down) * size[2] + p.column;
                for (Index column = 0; column < p.columns_there; ++column)
                    to[column * p.across] = from[row * p.columns + column];
            }
        });
    });
}

template <class T>
GatherProblem<T> problem_in_phases(const GatherProblem<T>& problem, bool with_results, int threads) {
    GatherProblem<T> dense = problem_of_phases(problem);
    const Index sources = problem.groups * problem.sources, results = problem.groups * problem.results;
    const GatherPlan& plan = problem.plans.front();
    T* source = workspace<T>(Slot::places, dense.batch * sources * volume(dense.source_size));
    dense.source = source;
    dense.result = workspace<T>(Slot::positions, dense.batch * results * volume(dense.result_size));
    split_phases(problem.source, problem.batch, sources, problem.source_size, plan, source, threads);
    if (with_results)
        split_phases<T>(problem.result, problem.batch, results, problem.result_size, plan, dense.result,
                        threads);
    return dense;
}

template <class T>
void take_strided(const T* planes, Index count, const Size3& size, const Size3& stride, const Size3& output,
                  T* taken, int threads) {
    const Tiles<T>& tile = tiles<T>();
    const Index lanes = tile.lanes;
    // Where there is one output the stride may be anything: products with it must not overflow.
    const Index down = std::min(stride[1], size[1]), across = std::min(stride[2], size[2]);
    Parallel::run(count, workers_for(1, count, output, threads), [&](Index task) {
        for (Index slice = 0; slice < output[0]; ++slice) {
            const T* from =
                planes + (task * size[0] + (slice > 0 ? slice * stride[0] : 0)) * size[1] * size[2];
            T* to = taken + (task * output[0] + slice) * output[1] * output[2];
            for (Index j = 0; j < output[2]; j += lanes) {
                const int columns = static_cast<int>(std::min(lanes, output[2] - j));
                tile.pack_run(from + j * across, down * size[2], across, to + j, output[2], output[1], 0,
                              columns, columns, 0);
            }
        }
    });
}

#define INSTANTIATE(T)                                                                            \
    template GatherProblem<T> problem_in_phases(const GatherProblem<T>&, bool, int);              \
    template GatherProblem<T> problem_of_phases(const GatherProblem<T>&);                         \
    template void split_phases(const T*, Index, Index, const Size3&, const GatherPlan&, T*, int); \
    template void join_phases(const T*, Index, Index, const Size3&, const GatherPlan&, T*, int);  \
    template void take_strided(const T*, Index, const Size3&, const Size3&, const Size3&, T*, int);
FASTCONV_CONV_TYPES(INSTANTIATE)

} // namespace fastconv
