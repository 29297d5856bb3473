// Runs CUDA kernels on the CPU, for tests: what g++ needs in front of their source.
//
// Blocks run one after another. Each thread of a block is a fiber, which runs until it waits for others: at a
// barrier, or in an exchange between the lanes of its warp. So whatever one thread may not read before a
// barrier that another has not written yet, some order of threads shows; shared memory starts as NaN. Waiting
// in vain, waiting at different barriers and lanes that exchange different things are errors that tell the
// place.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

#define __global__
#define __device__
#define __launch_bounds__(...)
#define SHARED(Type, name) Type& name = *emulator::shared<Type>()

namespace emulator {

// Saves the registers that a call preserves on this stack, and goes on where the other stack was left.
extern "C" void emulator_switch(void** leave, void* enter);
#if defined(__x86_64__)
asm(R"(
.text
.weak emulator_switch
.type emulator_switch, @function
emulator_switch:
    pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
    ret
.size emulator_switch, .-emulator_switch
)");
constexpr int kReturnWord = 6, kFrameWords = 8;
#elif defined(__aarch64__)
asm(R"(
.text
.weak emulator_switch
.type emulator_switch, %function
emulator_switch:
    sub sp, sp, #160
    stp x19, x20, [sp]; stp x21, x22, [sp, #16]; stp x23, x24, [sp, #32]; stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]; stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]; stp d10, d11, [sp, #112]; stp d12, d13, [sp, #128]; stp d14, d15, [sp, #144]
    mov x9, sp; str x9, [x0]; mov sp, x1
    ldp x19, x20, [sp]; ldp x21, x22, [sp, #16]; ldp x23, x24, [sp, #32]; ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]; ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]; ldp d10, d11, [sp, #112]; ldp d12, d13, [sp, #128]; ldp d14, d15, [sp, #144]
    add sp, sp, #160
    ret
.size emulator_switch, .-emulator_switch
)");
constexpr int kReturnWord = 11, kFrameWords = 20;
#else
#error "the emulator knows how to switch stacks on x86-64 and AArch64 only"
#endif

constexpr std::size_t kStack = 64 * 1024, kPage = 4096;
constexpr int kWarpSize = 32, kSlot = 16; // bytes that a lane gives or takes at most

struct Index {
    unsigned x;
};

enum class State { ready, at_barrier, in_warp, done, failed };

// An exchange between the lanes of a warp that not all have come to, or not all have left.
struct Exchange {
    const char* name = nullptr;
    std::uint32_t mask = 0, arrived = 0, left = 0;
    bool finished = false;
    alignas(16) unsigned char given[kWarpSize][kSlot], taken[kWarpSize][kSlot];
};

struct Thread {
    void* stack_pointer;
    Index index;
    State state;
    int line;         // of the barrier that it waits at
    void* fake_stack; // AddressSanitizer's
};

struct Block {
    Index index, blocks, threads;
    std::vector<Thread> of;
    std::vector<Exchange> exchanges; // one for each warp
    unsigned waiting = 0, done = 0;
    int barrier_line = 0;
    char error[256];
    void* scheduler;
    void (*body)(const void*);
    const void* arguments;
    const void* bottom;
    std::size_t size;
    void* fake_stack;
};

inline Block block;
inline Thread* thread;
inline unsigned order =
    0; // 0: upwards, 1: downwards, otherwise the seed of a permutation of warps and of lanes

// --- memory ---

// `count` bytes that end at a page which may not be touched.
class GuardedMemory {
public:
    unsigned char* end(std::size_t bytes) {
        if (bytes > size_) {
            if (base_)
                munmap(base_, size_ + kPage);
            size_ = (bytes + kPage - 1) / kPage * kPage;
            base_ = static_cast<unsigned char*>(mmap(nullptr, size_ + kPage, PROT_READ | PROT_WRITE,
                                                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
            mprotect(base_ + size_, kPage, PROT_NONE);
        }
        return base_ + size_;
    }

private:
    unsigned char* base_ = nullptr;
    std::size_t size_ = 0;
};

inline GuardedMemory shared_memory;
inline std::size_t shared_bytes = 0; // of this block, once a thread has asked

template <class T>
T* shared() {
    static_assert(alignof(T) <= 16 && sizeof(T) <= 48 * 1024, "what every device has");
    constexpr std::size_t bytes = (sizeof(T) + 15) / 16 * 16;
    unsigned char* const start = shared_memory.end(bytes) - bytes;
    if (shared_bytes == 0) {
        std::memset(start, 0xff, bytes);
        shared_bytes = bytes;
    }
    return reinterpret_cast<T*>(start);
}

// --- switching ---

inline void leave() {
#if defined(__SANITIZE_ADDRESS__)
    const bool last = thread->state == State::done || thread->state == State::failed;
    __sanitizer_start_switch_fiber(last ? nullptr : &thread->fake_stack, block.bottom, block.size);
#endif
    emulator_switch(&thread->stack_pointer, block.scheduler);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(thread->fake_stack, &block.bottom, &block.size);
#endif
}

template <class... Values>
void fail(const char* format, Values... values) {
    const int used = std::snprintf(block.error, sizeof block.error, "block %u, thread %u: ", block.index.x,
                                   thread->index.x);
    std::snprintf(block.error + used, sizeof block.error - used, format, values...);
    thread->state = State::failed;
    leave();
}

inline void run_thread() {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(nullptr, &block.bottom, &block.size);
#endif
    block.body(block.arguments);
    ++block.done;
    thread->state = State::done;
    leave();
}

inline void barrier(int line) {
    if (block.waiting == 0)
        block.barrier_line = line;
    else if (block.barrier_line != line)
        fail("waits at the barrier of line %d, others at that of line %d", line, block.barrier_line);
    thread->line = line;
    if (++block.waiting == block.threads.x) {
        block.waiting = 0;
        for (Thread& other : block.of)
            other.state = State::ready;
        return;
    }
    thread->state = State::at_barrier;
    leave();
}

// Every lane of `mask` gives a value; the last one to come finds what each takes.
template <class Given, class Taken, class Combine>
Taken exchange(const char* name, std::uint32_t mask, const Given& given, const Combine& combine) {
    static_assert(sizeof(Given) <= kSlot && sizeof(Taken) <= kSlot, "a slot is too small");
    const unsigned lane = thread->index.x % kWarpSize, first = thread->index.x - lane;
    const std::uint32_t own = 1u << lane;
    Exchange& e = block.exchanges[first / kWarpSize];
    if (!(mask & own))
        fail("%s: the lane is not in its own mask %08x", name, mask);
    while (e.finished) { // not all lanes have left the one before
        thread->state = State::in_warp;
        leave();
    }
    if (e.arrived == 0) {
        e.name = name;
        e.mask = mask;
    } else if (e.mask != mask || std::strcmp(e.name, name) != 0) {
        fail("in %s of mask %08x, others of its warp in %s of mask %08x", name, mask, e.name, e.mask);
    }
    std::memcpy(e.given[lane], &given, sizeof given);
    e.arrived |= own;
    const auto wake = [&] {
        for (unsigned i = 0; i < kWarpSize && first + i < block.of.size(); ++i)
            if (block.of[first + i].state == State::in_warp)
                block.of[first + i].state = State::ready;
    };
    if (e.arrived == mask) {
        Given all[kWarpSize] = {};
        for (int i = 0; i < kWarpSize; ++i)
            if (mask >> i & 1)
                std::memcpy(&all[i], e.given[i], sizeof(Given));
        for (int i = 0; i < kWarpSize; ++i) {
            const Taken found = combine(all, i);
            std::memcpy(e.taken[i], &found, sizeof found);
        }
        e.finished = true;
        wake();
    }
    while (!e.finished) {
        thread->state = State::in_warp;
        leave();
    }
    Taken taken;
    std::memcpy(&taken, e.taken[lane], sizeof taken);
    e.left |= own;
    if (e.left == mask) {
        e.arrived = e.left = 0;
        e.finished = false;
        wake();
    }
    return taken;
}

// --- launching ---

inline std::uint64_t scrambled(std::uint64_t value) {
    value = (value ^ value >> 31) * 0x7fb5d329728ea185;
    value = (value ^ value >> 27) * 0x81dadef4bc2dd44d;
    return value ^ value >> 33;
}

// The threads of a block, warp by warp, in the order of this run.
inline std::vector<unsigned> thread_order(unsigned count, unsigned seed) {
    std::vector<unsigned> found(count);
    for (unsigned i = 0; i < count; ++i)
        found[i] = seed == 1 ? count - 1 - i : i;
    if (seed > 1)
        std::sort(found.begin(), found.end(), [&](unsigned a, unsigned b) {
            const auto rank = [&](unsigned i) {
                return std::make_tuple(scrambled(seed * 977ull + i / kWarpSize), i / kWarpSize,
                                       scrambled(seed * 1009ull + i), i);
            };
            return rank(a) < rank(b);
        });
    return found;
}

inline bool run_block(const std::vector<unsigned>& turns, unsigned char* stacks) {
    for (unsigned i = 0; i < block.threads.x; ++i) {
        Thread& t = block.of[i];
        t = {nullptr, {i}, State::ready, 0, nullptr};
        void** frame = reinterpret_cast<void**>(stacks + (i + 1) * kStack) - kFrameWords;
        frame[kReturnWord] = reinterpret_cast<void*>(run_thread);
        t.stack_pointer = frame;
    }
    block.exchanges.assign((block.threads.x + kWarpSize - 1) / kWarpSize, Exchange());
    block.waiting = block.done = 0;
    block.barrier_line = 0;
    shared_bytes = 0;
    while (block.done < block.threads.x) {
        bool moved = false;
        for (const unsigned i : turns) {
            thread = &block.of[i];
            if (thread->state != State::ready)
                continue;
            moved = true;
#if defined(__SANITIZE_ADDRESS__)
            __sanitizer_start_switch_fiber(&block.fake_stack, stacks + i * kStack, kStack);
#endif
            emulator_switch(&block.scheduler, thread->stack_pointer);
#if defined(__SANITIZE_ADDRESS__)
            __sanitizer_finish_switch_fiber(block.fake_stack, nullptr, nullptr);
#endif
            if (thread->state == State::failed)
                return false;
        }
        if (!moved) {
            std::snprintf(block.error, sizeof block.error,
                          "block %u: %u threads wait at the barrier of line %d, %u have ended, others wait "
                          "in their warps",
                          block.index.x, block.waiting, block.barrier_line, block.done);
            return false;
        }
    }
    return true;
}

// A kernel and where each of its arguments lies.
template <class... Parameters>
struct Call {
    void (*kernel)(Parameters...);
    void** arguments;

    template <std::size_t... i>
    void run(std::index_sequence<i...>) const {
        kernel(*static_cast<std::remove_const_t<Parameters>*>(arguments[i])...);
    }
};

// Runs a kernel; false with `block.error` where it must not do what it does.
template <class... Parameters>
bool launch(void (*kernel)(Parameters...), unsigned blocks, unsigned threads, void** arguments,
            unsigned seed) {
    static unsigned char* stacks = nullptr;
    static unsigned stacks_of = 0;
    if (threads > stacks_of) {
        if (stacks)
            munmap(stacks, stacks_of * kStack);
        stacks = static_cast<unsigned char*>(mmap(nullptr, threads * kStack, PROT_READ | PROT_WRITE,
                                                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
        for (unsigned i = 0; i < threads; ++i) // stacks grow down to it
            mprotect(stacks + i * kStack, kPage, PROT_NONE);
        stacks_of = threads;
    }
    const Call<Parameters...> call{kernel, arguments};
    block.arguments = &call;
    block.body = [](const void* call) {
        static_cast<const Call<Parameters...>*>(call)->run(std::index_sequence_for<Parameters...>());
    };
    block.blocks = {blocks};
    block.threads = {threads};
    block.of.resize(threads);
    const std::vector<unsigned> turns = thread_order(threads, seed);
    for (unsigned i = 0; i < blocks; ++i) {
        block.index = {seed == 0 ? i : blocks - 1 - i};
        if (!run_block(turns, stacks))
            return false;
    }
    return true;
}

} // namespace emulator

// --- what kernels call ---

#define threadIdx (emulator::thread->index)
#define blockIdx (emulator::block.index)
#define blockDim (emulator::block.threads)

inline void __syncthreads(int line = __builtin_LINE()) {
    emulator::barrier(line);
}

inline void __syncwarp(std::uint32_t mask = 0xffffffff) {
    emulator::exchange<int, int>("__syncwarp", mask, 0, [](const int*, int) { return 0; });
}

inline std::uint32_t __ballot_sync(std::uint32_t mask, bool vote) {
    return emulator::exchange<bool, std::uint32_t>("__ballot_sync", mask, vote, [&](const bool* votes, int) {
        std::uint32_t found = 0;
        for (int i = 0; i < emulator::kWarpSize; ++i)
            found |= static_cast<std::uint32_t>((mask >> i & 1) && votes[i]) << i;
        return found;
    });
}

inline bool __any_sync(std::uint32_t mask, bool vote) {
    return __ballot_sync(mask, vote) != 0;
}

template <class T>
std::uint32_t __match_any_sync(std::uint32_t mask, T value) {
    return emulator::exchange<T, std::uint32_t>(
        "__match_any_sync", mask, value, [&](const T* values, int lane) {
            std::uint32_t found = 0;
            for (int i = 0; i < emulator::kWarpSize; ++i)
                found |= static_cast<std::uint32_t>((mask >> i & 1) && values[i] == values[lane]) << i;
            return found;
        });
}

inline int __popc(unsigned value) {
    return __builtin_popcount(value);
}

template <class T>
T atomicMin(T* address, T value) {
    const T before = *address;
    *address = std::min(before, value);
    return before;
}

using std::exp;
using std::expm1;
using std::tanh;
