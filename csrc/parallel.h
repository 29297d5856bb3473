// Parallel loops: on threads of our own (thread_pool.h) or on OpenMP's, of which only parallel.cpp knows.
#pragma once

#include <memory>
#include <string>
#include <type_traits>

#include "geometry.h"

namespace fastconv {

// Calls body(task) for every task in [0, tasks), on at most `threads` threads, in any order. The first
// exception ends the loop and is thrown again here; so does an interrupt (see below).
class Parallel {
public:
    template <class Body>
    static void run(Index tasks, int threads, const Body& body) {
        run_erased(
            tasks, threads,
            [](const void* context, Index task) { (*static_cast<const Body*>(context))(task); }, &body);
    }

    // Called now and then by the calling thread; throws to end the loop. Set once, by the bindings.
    static void set_interrupt_check(void (*check)());

    // Whose threads to use from now on; false where the module was built without OpenMP.
    static bool use_openmp(bool use);

    static std::string description();

private:
    using Erased = void (*)(const void* context, Index task);
    static void run_erased(Index tasks, int threads, Erased body, const void* context);
};

// How many of `threads` are worth their start for this many multiply-adds of a matrix product. A start costs
// two microseconds where the workers are awake, and some tens where they have to be woken.
inline int worthwhile_threads(Index multiply_adds, int threads) {
    constexpr Index kPerThread = Index{1} << 22; // about 40 microseconds
    return static_cast<int>(std::min<Index>(threads, 1 + multiply_adds / kPerThread));
}

// The same of a number that may be too large for an integer.
inline int threads_for(double multiply_adds, int threads) {
    constexpr double kPlenty = 1e18;
    return worthwhile_threads(static_cast<Index>(std::min(multiply_adds, kPlenty)), threads);
}

// Work that is bound by memory, in multiply-adds that take as long.
constexpr Index kMemoryBound = 8;

// Memory for packed operands: aligned, kept by its thread from call to call, never shared between threads.
// Each slot is one array; asking again may move it.
enum class Slot {
    weights,
    panels,
    partial,
    window,
    staging,
    positions,
    results,
    places,
    wide_weights,
    wide_source,
    wide_result,
    count
};

void* workspace_bytes(Slot slot, std::size_t bytes);

template <class T>
T* workspace(Slot slot, Index count) {
    return static_cast<T*>(workspace_bytes(slot, static_cast<std::size_t>(count) * sizeof(T)));
}

// Frees the calling thread's workspaces and returns their bytes, and has the pool's workers free theirs as
// soon as they have nothing to do. Not to be called by a kernel, which may be using them.
std::size_t release_workspaces();

// Of all threads.
std::size_t total_workspace_bytes();

} // namespace fastconv
