// Large memory: on huge pages, and kept for the next who needs as much.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <utility>
#include <vector>

namespace fastconv {

constexpr std::size_t kHugePage = std::size_t{2} << 20;

// So many bytes, rounded up; more than any system has where that overflows.
constexpr std::size_t whole_huge_pages(std::size_t bytes) {
    return bytes > SIZE_MAX - kHugePage ? SIZE_MAX : (bytes + kHugePage - 1) / kHugePage * kHugePage;
}

// Uninitialised memory and its owner. It is aligned to cache lines, and from the size of a huge page on to
// huge pages, which the system is asked for. Any thread may free it, and so may a child of fork() its copy.
class Memory {
public:
    Memory() = default;
    Memory(Memory&& other) noexcept { swap(other); }
    Memory& operator=(Memory&& other) noexcept {
        Memory(std::move(other)).swap(*this);
        return *this;
    }
    ~Memory();

    // At least so many bytes, or none where the system has not as many.
    static Memory try_allocate(std::size_t bytes) noexcept;

    void* data() const { return data_; }
    std::size_t size() const { return size_; }

private:
    Memory(void* data, std::size_t size) : data_(data), size_(size) {}
    void swap(Memory& other) noexcept {
        std::swap(data_, other.data_);
        std::swap(size_, other.size_);
    }

    void* data_ = nullptr;
    std::size_t size_ = 0;
};

// Buffers that nobody uses any more wait here for the next request of their size, since the first use of new
// memory costs a page fault for every page. Any number of threads may call at once; fork() may come at any
// time.
class BufferPool {
public:
    // Of this process. Never destroyed, because the interpreter frees arrays to its very end.
    static BufferPool& instance();

    // At least so many bytes: an idle buffer, or a new one. What it holds is left over from its last use.
    // Throws std::bad_alloc.
    Memory take(std::size_t bytes);

    // The buffer is idle from now on; the longest idle ones are freed where there are more than the limit.
    void give(Memory memory) noexcept;

    // New memory, for which idle buffers are freed where the system has no other. Throws std::bad_alloc.
    Memory allocate(std::size_t bytes);

    // Frees all idle buffers; returns their bytes.
    std::size_t clear() noexcept;

    // How many bytes may lie idle; none at first.
    void set_limit(std::size_t bytes) noexcept;
    std::size_t limit() const noexcept;
    std::size_t idle_bytes() const noexcept;

    // For tests: whether buffers are filled with NaN before they are handed out, so that nothing left over
    // passes for a result.
    void set_poison(bool poison) noexcept { poison_ = poison; }

    void before_fork() noexcept { mutex_.lock(); }
    void after_fork() noexcept { mutex_.unlock(); }

private:
    std::size_t shrink(std::size_t most) noexcept;
    Memory take_idle(std::size_t size) noexcept;

    mutable std::mutex mutex_; // guards what follows, save poison_
    std::vector<Memory> idle_; // the longest idle first
    std::size_t idle_bytes_ = 0;
    std::size_t limit_ = 0;
    std::atomic<bool> poison_{false};
};

// A buffer of the pool, which gets it back.
struct Loan {
    explicit Loan(std::size_t bytes) : memory(BufferPool::instance().take(bytes)) {}
    ~Loan() { BufferPool::instance().give(std::move(memory)); }
    Loan(const Loan&) = delete;
    Loan& operator=(const Loan&) = delete;

    Memory memory;
};

} // namespace fastconv
