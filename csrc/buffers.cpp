#include "buffers.h"

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>

#include <pthread.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace fastconv {
namespace {

constexpr std::size_t kCacheLine = 64;
constexpr std::size_t kPage = 4096;
constexpr std::size_t kMost = PTRDIFF_MAX - 2 * kHugePage; // nothing below overflows
constexpr int kPoison = 0xFF;                              // NaN in every floating type

std::size_t round_up(std::size_t bytes, std::size_t step) {
    return (bytes + step - 1) / step * step;
}

// Sizes of buffers come in eight steps from a power of two to the next: requests that differ little share
// them, and less than an eighth is wasted.
std::size_t buffer_size(std::size_t bytes) {
    std::size_t step = kPage;
    while (step <= bytes / 16)
        step *= 2;
    return round_up(std::max(bytes, kPage), step);
}

void* allocate_aligned(std::size_t bytes, std::size_t alignment) noexcept {
    return std::aligned_alloc(alignment, bytes);
}

#if defined(__linux__)

// Not from malloc, which would keep part of what is freed.
void* allocate_huge(std::size_t bytes) noexcept {
    void* const all =
        mmap(nullptr, bytes + kHugePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (all == MAP_FAILED)
        return nullptr;
    const auto begin = reinterpret_cast<std::uintptr_t>(all);
    const std::size_t before = round_up(begin, kHugePage) - begin, after = kHugePage - before;
    char* const data = static_cast<char*>(all) + before;
    if (before != 0)
        munmap(all, before);
    if (after != 0)
        munmap(data + bytes, after);
    madvise(data, bytes, MADV_HUGEPAGE); // where there are none, small ones do
    return data;
}

void free_huge(void* data, std::size_t bytes) noexcept {
    munmap(data, bytes);
}

#else

void* allocate_huge(std::size_t bytes) noexcept {
    return allocate_aligned(round_up(bytes, kHugePage), kHugePage);
}

void free_huge(void* data, std::size_t) noexcept {
    std::free(data);
}

#endif

alignas(BufferPool) unsigned char pool_memory[sizeof(BufferPool)];

// A child goes on with its parent's idle buffers: whoever forks holds the lock, so that no other thread does.
const int fork_handler =
    (new (pool_memory) BufferPool,
     pthread_atfork([] { BufferPool::instance().before_fork(); }, [] { BufferPool::instance().after_fork(); },
                    [] { BufferPool::instance().after_fork(); }));

} // namespace

Memory::~Memory() {
    if (size_ >= kHugePage)
        free_huge(data_, size_);
    else
        std::free(data_);
}

Memory Memory::try_allocate(std::size_t bytes) noexcept {
    if (bytes > kMost)
        return {};
    const bool huge = bytes >= kHugePage;
    const std::size_t size = round_up(std::max(bytes, kCacheLine), huge ? kPage : kCacheLine);
    void* const data = huge ? allocate_huge(size) : allocate_aligned(size, kCacheLine);
    return data != nullptr ? Memory(data, size) : Memory();
}

BufferPool& BufferPool::instance() {
    return *std::launder(reinterpret_cast<BufferPool*>(pool_memory));
}

Memory BufferPool::take(std::size_t bytes) {
    if (bytes > kMost)
        throw std::bad_alloc();
    const std::size_t size = buffer_size(bytes);
    Memory memory = take_idle(size);
    if (memory.data() == nullptr)
        memory = allocate(size);
    if (poison_.load(std::memory_order_relaxed))
        std::memset(memory.data(), kPoison, bytes);
    return memory;
}

Memory BufferPool::take_idle(std::size_t size) noexcept {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found =
        std::find_if(idle_.rbegin(), idle_.rend(), [&](const Memory& idle) { return idle.size() == size; });
    if (found == idle_.rend())
        return {};
    Memory memory = std::move(*found);
    idle_.erase(std::next(found).base());
    idle_bytes_ -= size;
    return memory;
}

void BufferPool::give(Memory memory) noexcept {
    const std::size_t size = memory.size();
    std::size_t most = 0;
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        most = limit_;
        if (size > most)
            return;
        try {
            idle_.push_back(std::move(memory));
        } catch (const std::bad_alloc&) {
            return;
        }
        idle_bytes_ += size;
    }
    shrink(most);
}

Memory BufferPool::allocate(std::size_t bytes) {
    Memory memory = Memory::try_allocate(bytes);
    if (memory.data() == nullptr && clear() > 0)
        memory = Memory::try_allocate(bytes);
    if (memory.data() == nullptr)
        throw std::bad_alloc();
    return memory;
}

std::size_t BufferPool::clear() noexcept {
    return shrink(0);
}

void BufferPool::set_limit(std::size_t bytes) noexcept {
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        limit_ = bytes;
    }
    shrink(bytes);
}

std::size_t BufferPool::limit() const noexcept {
    const std::lock_guard<std::mutex> lock(mutex_);
    return limit_;
}

std::size_t BufferPool::idle_bytes() const noexcept {
    const std::lock_guard<std::mutex> lock(mutex_);
    return idle_bytes_;
}

// Frees the longest idle buffers until no more than so many bytes are idle; returns how many it freed.
std::size_t BufferPool::shrink(std::size_t most) noexcept {
    for (std::size_t freed = 0;;) {
        Memory oldest; // freed when the lock is, which may take long
        const std::lock_guard<std::mutex> lock(mutex_);
        if (idle_bytes_ <= most)
            return freed;
        oldest = std::move(idle_.front());
        idle_.erase(idle_.begin());
        idle_bytes_ -= oldest.size();
        freed += oldest.size();
    }
}

} // namespace fastconv
