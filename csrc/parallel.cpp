#include "parallel.h"

#include <array>
#include <atomic>
#include <chrono>
#include <exception>
#include <string>
#include <thread>
#include <utility>

#include "buffers.h"
#include "thread_pool.h"

#if defined(FASTCONV_OPENMP)
#include <omp.h>
#include <pthread.h>
#endif

namespace fastconv {
namespace {

using Clock = std::chrono::steady_clock;
using Body = void (*)(const void* context, Index task);

void no_check() {}
void (*interrupt_check)() = no_check;

constexpr auto kCheckInterval = std::chrono::milliseconds(50);

// Nobody gets thousands; OpenMP's library ends the process where it cannot start a thread.
const int kMostThreads = std::max(16, 2 * static_cast<int>(std::thread::hardware_concurrency()));

std::atomic<std::size_t> bytes_of_workspaces{0};

// Memory that only grows, counted.
class Workspace {
public:
    Workspace() = default;
    Workspace(Workspace&&) = default;
    Workspace& operator=(Workspace&& other) noexcept {
        release();
        memory_ = std::move(other.memory_);
        return *this;
    }
    ~Workspace() { release(); }

    void* reserve(std::size_t bytes) {
        if (bytes > memory_.size()) {
            release();
            memory_ = BufferPool::instance().allocate(bytes < kHugePage ? bytes : whole_huge_pages(bytes));
            bytes_of_workspaces += memory_.size();
        }
        return memory_.data();
    }

    std::size_t release() noexcept {
        const std::size_t bytes = std::exchange(memory_, Memory()).size();
        bytes_of_workspaces -= bytes;
        return bytes;
    }

private:
    Memory memory_;
};

using Workspaces = std::array<Workspace, static_cast<std::size_t>(Slot::count)>;

thread_local Workspaces workspaces;

// While it lives its thread has other workspaces, and those before stay as they are.
class WorkspaceAside {
public:
    WorkspaceAside() : before_(std::move(workspaces)) {}
    ~WorkspaceAside() { workspaces = std::move(before_); }
    WorkspaceAside(const WorkspaceAside&) = delete;
    WorkspaceAside& operator=(const WorkspaceAside&) = delete;

private:
    Workspaces before_;
};

std::size_t release_own_workspaces() {
    std::size_t bytes = 0;
    for (Workspace& workspace : workspaces)
        bytes += workspace.release();
    return bytes;
}

// One parallel loop: workers claim its tasks one by one; the first exception ends it.
class Loop {
public:
    Loop(Index tasks, Body body, const void* context) : tasks_(tasks), body_(body), context_(context) {}

    void work(bool caller) {
        auto last_check = tasks_ > 1 ? Clock::now() : Clock::time_point();
        for (Index task; (task = next_.fetch_add(1, std::memory_order_relaxed)) < tasks_;) {
            try {
                body_(context_, task);
                if (caller && tasks_ > 1) {
                    const auto now = Clock::now();
                    if (now - last_check > kCheckInterval) {
                        last_check = now;
                        const WorkspaceAside aside; // what is called may compute, too
                        interrupt_check();
                    }
                }
            } catch (...) {
                if (!failed_.test_and_set())
                    error_ = std::current_exception();
                next_.store(tasks_, std::memory_order_relaxed);
            }
        }
    }

    // When all workers have left.
    void rethrow() const {
        if (error_)
            std::rethrow_exception(error_);
    }

private:
    const Index tasks_;
    const Body body_;
    const void* const context_;
    std::atomic<Index> next_{0};
    std::atomic_flag failed_ = ATOMIC_FLAG_INIT;
    std::exception_ptr error_;
};

void run_on_pool(int workers, Loop& loop) {
    ThreadPool::instance().run(
        workers - 1, [](void* context, bool caller) { static_cast<Loop*>(context)->work(caller); }, &loop);
}

#if defined(FASTCONV_OPENMP)
const std::string kOpenMP = "OpenMP " + std::to_string(_OPENMP);

// A child of fork() inherits the team's records but not its threads, and would wait for them for ever.
// Releasing the team before the fork lets parent and child start a new one on demand.
void release_team() {
    omp_pause_resource_all(omp_pause_hard);
}

const int fork_handler = pthread_atfork(release_team, nullptr, nullptr);

void run_on_openmp(int workers, Loop& loop) {
#pragma omp parallel num_threads(workers)
    loop.work(omp_get_thread_num() == 0);
}
#endif

std::atomic<void (*)(int, Loop&)> run_on{run_on_pool};

} // namespace

void Parallel::set_interrupt_check(void (*check)()) {
    interrupt_check = check;
}

bool Parallel::use_openmp(bool use) {
#if defined(FASTCONV_OPENMP)
    run_on = use ? run_on_openmp : run_on_pool;
    return true;
#else
    return !use;
#endif
}

std::string Parallel::description() {
#if defined(FASTCONV_OPENMP)
    return run_on == run_on_openmp ? kOpenMP : "own threads (" + kOpenMP + " on request)";
#else
    return "own threads (built without OpenMP)";
#endif
}

void Parallel::run_erased(Index tasks, int threads, Erased body, const void* context) {
    const int workers = static_cast<int>(std::min<Index>(std::min(threads, kMostThreads), tasks));
    Loop loop(tasks, body, context);
    if (workers > 1)
        run_on.load(std::memory_order_relaxed)(workers, loop);
    else
        loop.work(true);
    loop.rethrow();
}

void* workspace_bytes(Slot slot, std::size_t bytes) {
    return workspaces[static_cast<std::size_t>(slot)].reserve(bytes);
}

std::size_t total_workspace_bytes() {
    return bytes_of_workspaces;
}

std::size_t release_workspaces() {
    ThreadPool::instance().ask_workers([] { release_own_workspaces(); });
    return release_own_workspaces();
}

} // namespace fastconv
