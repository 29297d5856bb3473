#include "thread_pool.h"

#include <algorithm>
#include <chrono>
#include <csignal>
#include <new>
#include <system_error>
#include <thread>

#if defined(__linux__)
#include <sched.h>
#endif

namespace fastconv {
namespace {

using Clock = std::chrono::steady_clock;

constexpr auto kStayAwake = std::chrono::microseconds(200); // kernels often follow one another closely
constexpr auto kSpinAtEnd = std::chrono::microseconds(50);  // the last tasks usually end together

const std::size_t processors = std::thread::hardware_concurrency();

alignas(ThreadPool) unsigned char pool_memory[sizeof(ThreadPool)];

// A child has none of its parent's threads, and its mutex may have been held by one: what they had is lost.
void make_pool() {
    new (pool_memory) ThreadPool;
}

// While the module is imported: nothing is left to initialise when several threads, or a child, call first.
const int fork_handler = (make_pool(), pthread_atfork(nullptr, nullptr, make_pool));

void pause() {
    for (int i = 0; i < 16; ++i) {
#if defined(__x86_64__)
        __builtin_ia32_pause();
#elif defined(__aarch64__)
        asm volatile("yield");
#endif
    }
}

// Signals are for the interpreter's own threads.
class SignalsBlocked {
public:
    SignalsBlocked() {
        sigset_t all;
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before_);
    }
    ~SignalsBlocked() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
    SignalsBlocked(const SignalsBlocked&) = delete;
    SignalsBlocked& operator=(const SignalsBlocked&) = delete;

private:
    sigset_t before_;
};

} // namespace

ThreadPool& ThreadPool::instance() {
    return *std::launder(reinterpret_cast<ThreadPool*>(pool_memory));
}

void ThreadPool::run(int helpers, Work work, void* context) {
    Posting posting{work, context, helpers};
    std::size_t sleepers = 0;
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        add_workers(helpers);
        keep_workers_off_this_processor();
        posting.next = postings_;
        postings_ = &posting;
        sleepers = threads_.size() - awake_;
        posted_.fetch_add(1, std::memory_order_release);
    }
    for (std::size_t i = std::min(sleepers, static_cast<std::size_t>(helpers)); i > 0; --i)
        wake_.notify_one();
    work(context, true);
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        remove(&posting); // from here on nobody enters
    }
    const auto until = Clock::now() + kSpinAtEnd;
    while (posting.inside.load(std::memory_order_acquire) != 0 && Clock::now() < until)
        pause();
    if (posting.inside.load(std::memory_order_acquire) == 0)
        return;
    std::unique_lock<std::mutex> lock(mutex_);
    left_.wait(lock, [&] { return posting.inside.load(std::memory_order_acquire) == 0; });
}

void ThreadPool::ask_workers(Chore chore) {
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        chore_ = chore;
        ++chores_;
        posted_.fetch_add(1, std::memory_order_release);
    }
    wake_.notify_all();
}

void ThreadPool::add_workers(int count) {
    if (threads_.size() >= static_cast<std::size_t>(count))
        return;
    threads_.reserve(static_cast<std::size_t>(count)); // a thread without a place in it could not be let go
    const SignalsBlocked blocked;                      // also for the new threads
    while (threads_.size() < static_cast<std::size_t>(count)) {
        try {
            std::thread thread([this] { serve(); });
            threads_.push_back(thread.native_handle());
            thread.detach();
        } catch (const std::system_error&) {
            return; // no more than these: the caller does what nobody else does
        }
    }
}

// Some schedulers wake a thread on the processor of the one that wakes it, where it waits for that to end.
// With several callers at once, workers are kept off the one that came last. A caller that may use one
// processor only says nothing about where its workers should be.
void ThreadPool::keep_workers_off_this_processor() {
#if defined(__linux__)
    const int here = sched_getcpu();
    if (here < 0 || (here == kept_off_ && placed_ == threads_.size()))
        return;
    cpu_set_t others;
    CPU_ZERO(&others);
    if (sched_getaffinity(0, sizeof others, &others) != 0 || CPU_COUNT(&others) < 2)
        return;
    CPU_CLR(here, &others);
    for (const pthread_t thread : threads_)
        pthread_setaffinity_np(thread, sizeof others, &others);
    kept_off_ = here;
    placed_ = threads_.size();
#endif
}

void ThreadPool::serve() {
    std::unique_lock<std::mutex> lock(mutex_);
    ++awake_;
    unsigned chores_done = chores_;
    for (;;) {
        if (chores_done != chores_) {
            chores_done = chores_;
            const Chore chore = chore_;
            lock.unlock();
            chore();
            lock.lock();
            continue;
        }
        Posting* posting = wanting();
        if (posting == nullptr) {
            wait_for_work(lock, chores_done);
            continue;
        }
        --posting->wanted;
        posting->inside.fetch_add(1, std::memory_order_relaxed);
        lock.unlock();
        posting->work(posting->context, false);
        lock.lock();
        const bool last = posting->inside.fetch_sub(1, std::memory_order_acq_rel) == 1;
        if (last) // the caller may be gone by now, and the posting with it
            left_.notify_all();
    }
}

// Stays awake for a moment, unless there are more workers than processors; then sleeps.
void ThreadPool::wait_for_work(std::unique_lock<std::mutex>& lock, unsigned chores_done) {
    const auto wanted = [&] { return wanting() != nullptr || chores_done != chores_; };
    const auto until = Clock::now() + kStayAwake;
    while (awake_ < processors && Clock::now() < until) {
        const unsigned seen = posted_.load(std::memory_order_acquire);
        lock.unlock();
        while (posted_.load(std::memory_order_acquire) == seen && Clock::now() < until)
            pause();
        lock.lock();
        if (wanted())
            return;
    }
    --awake_;
    wake_.wait(lock, wanted);
    ++awake_;
}

ThreadPool::Posting* ThreadPool::wanting() const {
    Posting* posting = postings_;
    while (posting != nullptr && posting->wanted == 0)
        posting = posting->next;
    return posting;
}

void ThreadPool::remove(const Posting* posting) {
    Posting** link = &postings_;
    while (*link != posting)
        link = &(*link)->next;
    *link = posting->next;
}

} // namespace fastconv
