#include "parallel.h"

#include <array>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <exception>
#include <new>
#include <string>
#include <thread>

#if defined(FASTCONV_OPENMP)
#include <omp.h>
#endif
#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace fastconv {
namespace {

void no_check() {}
void (*interrupt_check)() = no_check;

constexpr auto kCheckInterval = std::chrono::milliseconds(50);

#if defined(FASTCONV_OPENMP)
// A child of fork() inherits the pool's records but not its threads, and would wait for them for ever.
// Releasing the pool before the fork lets parent and child start a new one on demand.
void release_pool() {
    omp_pause_resource_all(omp_pause_hard);
}

const int fork_handler = pthread_atfork(release_pool, nullptr, nullptr);
#endif

} // namespace

void Parallel::set_interrupt_check(void (*check)()) {
    interrupt_check = check;
}

const char* Parallel::description() {
#if defined(FASTCONV_OPENMP)
    static const std::string text = "OpenMP " + std::to_string(_OPENMP);
    return text.c_str();
#else
    return "none";
#endif
}

void Parallel::run_erased(Index tasks, int threads, Erased body, const void* context) {
    std::atomic<bool> stop{false};
    std::exception_ptr error;
    std::atomic_flag error_taken = ATOMIC_FLAG_INIT;
    auto last_check = std::chrono::steady_clock::now();
    const bool may_be_long = tasks > 1;

    const auto guarded = [&](Index task, int worker) {
        if (stop.load(std::memory_order_relaxed))
            return;
        try {
            body(context, task, worker);
            if (worker == 0 && may_be_long) {
                const auto now = std::chrono::steady_clock::now();
                if (now - last_check > kCheckInterval) {
                    last_check = now;
                    interrupt_check();
                }
            }
        } catch (...) {
            if (!error_taken.test_and_set())
                error = std::current_exception();
            stop.store(true, std::memory_order_relaxed);
        }
    };

    // OpenMP's library ends the process where it cannot start a thread, so nobody gets thousands.
    static const int most = std::max(16, 2 * static_cast<int>(std::thread::hardware_concurrency()));
    const int workers = static_cast<int>(std::min<Index>(std::min(threads, most), tasks));
#if defined(FASTCONV_OPENMP)
    if (workers > 1) {
#pragma omp parallel num_threads(workers)
        {
            const int worker = omp_get_thread_num();
#pragma omp for schedule(dynamic, 1)
            for (Index task = 0; task < tasks; ++task)
                guarded(task, worker);
        }
    } else {
        for (Index task = 0; task < tasks; ++task)
            guarded(task, 0);
    }
#else
    (void)workers;
    for (Index task = 0; task < tasks; ++task)
        guarded(task, 0);
#endif
    if (error)
        std::rethrow_exception(error);
}

namespace {

constexpr std::size_t kHugePage = std::size_t{2} << 20;
constexpr std::size_t kCacheLine = 64;

struct Buffer {
    void* data = nullptr;
    std::size_t capacity = 0;

    ~Buffer() { std::free(data); }

    void* reserve(std::size_t bytes) {
        if (bytes <= capacity)
            return data;
        std::free(data);
        data = nullptr;
        capacity = 0;
        // Large buffers lie on huge pages: thousands of page faults less on first use.
        const std::size_t alignment = bytes >= kHugePage ? kHugePage : kCacheLine;
        const std::size_t size = (bytes + alignment - 1) / alignment * alignment;
        if (size < bytes)
            throw std::bad_alloc();
        data = std::aligned_alloc(alignment, size);
        if (data == nullptr)
            throw std::bad_alloc();
#if defined(__linux__)
        if (alignment == kHugePage)
            madvise(data, size, MADV_HUGEPAGE);
#endif
        capacity = size;
        return data;
    }
};

thread_local std::array<Buffer, static_cast<std::size_t>(Slot::count)> buffers;

} // namespace

void* workspace_bytes(Slot slot, std::size_t bytes) {
    return buffers[static_cast<std::size_t>(slot)].reserve(bytes);
}

} // namespace fastconv
