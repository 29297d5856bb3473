#include "fma_peak.h"

#include <algorithm>
#include <atomic>
#include <chrono>

#include "parallel.h"
#include "tiles/tiles.h"

namespace fastconv {
namespace {

constexpr int kMostLanes = 64;
constexpr Index kRounds = Index{1} << 14; // of one task: some 30 microseconds
constexpr int kRuns = 5;
constexpr std::chrono::duration<double> kRun{0.01}; // long beside the time in which threads wake

} // namespace

template <class T>
double fma_peak(int threads) {
    using Clock = std::chrono::steady_clock;
    double best = 0;
    Index tasks = threads;
    for (int runs = 0; runs < kRuns;) {
        std::atomic<Index> done{0};
        const auto start = Clock::now();
        Parallel::run(tasks, threads, [&done](Index) {
            T values[kMostLanes] = {};
            done += tiles<T>().multiply_adds(kRounds, values);
        });
        const std::chrono::duration<double> elapsed = Clock::now() - start;
        if (elapsed < kRun) {
            tasks *= 2;
            continue;
        }
        best = std::max(best, 2 * static_cast<double>(done) / elapsed.count());
        ++runs;
    }
    return best;
}

template double fma_peak<float>(int threads);
template double fma_peak<double>(int threads);

} // namespace fastconv
