// Threads that help a caller with its loop, if they come in time.
#pragma once

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <vector>

#include <pthread.h>

namespace fastconv {

// The caller of a parallel loop works itself, and at the end waits only for those workers that have begun,
// never for one to arrive. OpenMP's barriers wait for everybody: where another program (or the spinning pool
// of another library) holds a processor, each loop then takes a time slice of some milliseconds.
class ThreadPool {
public:
    using Work = void (*)(void* context, bool caller); // must not throw

    // Of this process: a child of fork() gets a new one. Never destroyed, because its workers may outlive
    // every static object.
    static ThreadPool& instance();

    // Calls work(context, true) here, and work(context, false) on each of up to `helpers` workers that come
    // before that has returned. Returns when all have. Any number of threads may call at once: each worker
    // serves one of them at a time.
    void run(int helpers, Work work, void* context);

    // Has every worker call chore() once, between loops: those that wait at once. Does not wait for them. The
    // last chore stands for those before it that a worker has not come to.
    using Chore = void (*)(); // must not throw
    void ask_workers(Chore chore);

private:
    // A loop that wants helpers. It lies on its caller's stack.
    struct Posting {
        Work work;
        void* context;
        int wanted;
        std::atomic<int> inside{0};
        Posting* next = nullptr;
    };

    void add_workers(int count);
    void keep_workers_off_this_processor();
    void serve();
    void wait_for_work(std::unique_lock<std::mutex>& lock, unsigned chores_done);
    Posting* wanting() const;
    void remove(const Posting* posting);

    std::mutex mutex_; // guards what follows, save atomics
    std::condition_variable wake_, left_;
    std::atomic<unsigned> posted_{0}; // counts postings and chores
    Posting* postings_ = nullptr;
    Chore chore_ = nullptr;
    unsigned chores_ = 0; // counts them
    std::vector<pthread_t> threads_;
    std::size_t awake_ = 0;
    std::size_t placed_ = 0; // so many of the threads are kept off
    int kept_off_ = -1;      // this processor
};

} // namespace fastconv
