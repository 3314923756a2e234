// csrc/core/cuda/device.cuh for a plain C++20 compiler: every thread of the GPU is a thread of the CPU.
//
// Barriers are barriers and atomics are atomics, with the orders that the kernels ask for, so that the thread sanitizer
// sees what the GPU's memory model would. A warp's lanes meet only where the instruction makes them meet. Shared memory
// is an allocation of exactly the size asked for, filled with NaN, and again when its block has ended. A remote store is
// there at once and orders all that its thread did before; on a GPU it orders itself alone. Included by device.cuh alone.
#pragma once

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <climits>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <new>
#include <thread>
#include <vector>

#define ENMA_DEVICE inline
#define ENMA_KERNEL(THREADS) inline void
#define ENMA_PARAMETER

struct alignas(8) uint2 {
    uint32_t x, y;
};
struct alignas(16) uint4 {
    uint32_t x, y, z, w;
};

namespace enma::shim {

// The tests leave one of these out to see that they can fail: a SITE of sync_block or sync_group, or this one.
inline constexpr int kRelaxedAtomics = 100;
#ifdef ENMA_TEST_SKIP_BARRIER
inline int skipped_site = 0;
inline bool skipped(int site) { return site == skipped_site; }
#else
constexpr bool skipped(int) { return false; }
#endif

// Orders its own threads and no others. std::barrier and std::atomic::wait do not: waiters of different barriers meet in
// a pool that they share (libstdc++), so that the thread sanitizer misses races between blocks. Nor do threads that wake
// up queue for a mutex, which takes twice the time.
class Barrier {
public:
    Barrier(int threads) : threads_(threads) {}
    void arrive_and_wait() {
        // It cannot change before this thread has arrived.
        const int mine = round_.load(std::memory_order_relaxed);
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == threads_) {
            arrived_.store(0, std::memory_order_relaxed);
            round_.store(mine + 1, std::memory_order_release);
            syscall(SYS_futex, &round_, FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
            return;
        }
        // The system looks again before it puts the thread to sleep.
        while (round_.load(std::memory_order_acquire) == mine) {
            syscall(SYS_futex, &round_, FUTEX_WAIT_PRIVATE, mine, nullptr, nullptr, 0);
        }
    }

private:
    std::atomic<int> round_ = 0, arrived_ = 0;
    static_assert(sizeof(std::atomic<int>) == 4);
    int threads_;
};

struct Lane {
    uint32_t a[4];
    uint32_t b[2];
    float value;
};

struct Warp {
    Barrier meet{32};
    // Two, taken in turn: who writes one again has met all who read it, at the exchange between.
    Lane lanes[2][32];
    Barrier quads[8] = {4, 4, 4, 4, 4, 4, 4, 4};
    uint32_t gathered[2][32];
};

struct Block {
    Barrier meet;
    std::unique_ptr<Warp[]> warps;
    unsigned char* shared;
    size_t bytes;
    std::atomic<bool> ended = false;

    Block(int threads, int64_t shared_bytes)
        : meet(threads), warps(new Warp[static_cast<size_t>(threads / 32)]), bytes(static_cast<size_t>(shared_bytes)) {
        shared = static_cast<unsigned char*>(::operator new(bytes, std::align_val_t(16)));
        std::memset(shared, 0xff, bytes);
    }
    ~Block() { ::operator delete(shared, std::align_val_t(16)); }
    // Its shared memory is gone when all threads are done: who stores there later races with this.
    void end() {
        meet.arrive_and_wait();
        if (ended.exchange(true, std::memory_order_relaxed)) return;
        std::memset(shared, 0xff, bytes);
    }
    Block(const Block&) = delete;
    Block& operator=(const Block&) = delete;
};

struct Thread {
    int block_x, block_y, index, threads;
    Block* block;
    Barrier* cluster;
    Block* const* neighbours;  // all blocks of the cluster
    int exchanges, gathers;
};
inline thread_local Thread self;

inline int own_lane() { return self.index % 32; }

// The values that the lanes of this warp brought.
inline const Lane* exchange(const Lane& own) {
    Warp& warp = self.block->warps[static_cast<size_t>(self.index / 32)];
    Lane* lanes = warp.lanes[self.exchanges++ % 2];
    lanes[own_lane()] = own;
    warp.meet.arrive_and_wait();
    return lanes;
}

// All blocks of a row of the grid at the same time, one row after the other; `cluster` blocks share a barrier.
inline void launch(
    int grid_x, int grid_y, int threads, int64_t shared, int cluster, const std::function<void()>& kernel) {
    for (int y = 0; y < grid_y; ++y) {
        std::vector<std::unique_ptr<Block>> blocks;
        std::vector<Block*> of_all;
        std::vector<std::unique_ptr<Barrier>> clusters;
        for (int x = 0; x < grid_x; ++x) {
            blocks.push_back(std::make_unique<Block>(threads, shared));
            of_all.push_back(blocks.back().get());
            if (x % cluster == 0) clusters.push_back(std::make_unique<Barrier>(cluster * threads));
        }
        std::vector<std::thread> running;
        for (int x = 0; x < grid_x; ++x) {
            for (int i = 0; i < threads; ++i) {
                const Thread thread{x, y, i, threads, blocks[static_cast<size_t>(x)].get(),
                                    clusters[static_cast<size_t>(x / cluster)].get(),
                                    of_all.data() + x / cluster * cluster, 0, 0};
                running.emplace_back([thread, &kernel] {
                    self = thread;
                    kernel();
                    self.block->end();
                });
            }
        }
        for (auto& thread : running) thread.join();
    }
}

}  // namespace enma::shim

namespace enma::device {

inline int block_x() { return shim::self.block_x; }
inline int block_y() { return shim::self.block_y; }
inline int thread() { return shim::self.index; }
inline int threads() { return shim::self.threads; }
inline unsigned char* shared_memory() { return shim::self.block->shared; }

template <int SITE>
void sync_block() {
    if (!shim::skipped(SITE)) shim::self.block->meet.arrive_and_wait();
}

template <int SITE>
void sync_cluster() {
    if (!shim::skipped(SITE)) shim::self.cluster->arrive_and_wait();
}

inline void arrive_at_cluster() {}

template <int SITE>
void wait_for_cluster() {
    sync_cluster<SITE>();
}

inline uint4 gather_quad(uint32_t value) {
    shim::Warp& warp = shim::self.block->warps[static_cast<size_t>(shim::self.index / 32)];
    const int lane = shim::own_lane(), first = lane & ~3;
    uint32_t* all = warp.gathered[shim::self.gathers++ % 2];
    all[lane] = value;
    warp.quads[lane / 4].arrive_and_wait();
    return {all[first], all[first + 1], all[first + 2], all[first + 3]};
}

// Bit 63: parity of the phase; bit 62: its bytes are known; below them bytes that are to come, less those that came.
inline void init_barrier(uint64_t* barrier) { *barrier = 0; }

inline void change_barrier(uint64_t* barrier, int64_t bytes, bool known) {
    const auto order = shim::skipped(shim::kRelaxedAtomics) ? std::memory_order_relaxed : std::memory_order_release;
    const std::atomic_ref<uint64_t> state(*barrier);
    constexpr uint64_t kParity = uint64_t{1} << 63, kKnown = uint64_t{1} << 62, kBytes = kKnown - 1;
    uint64_t before = state.load(std::memory_order_relaxed), after = 0;
    do {
        after = (before & ~kBytes) | ((before + static_cast<uint64_t>(bytes)) & kBytes) | (known ? kKnown : 0);
        if (after == (before & kParity) + kKnown) after = (before & kParity) ^ kParity;
    } while (!state.compare_exchange_weak(before, after, order, std::memory_order_relaxed));
}

inline void expect_bytes(uint64_t* barrier, uint32_t bytes) { change_barrier(barrier, bytes, true); }

template <int SITE>
void wait_barrier(uint64_t* barrier, uint32_t parity) {
    if (shim::skipped(SITE)) return;
    const auto order = shim::skipped(shim::kRelaxedAtomics) ? std::memory_order_relaxed : std::memory_order_acquire;
    while (std::atomic_ref<uint64_t>(*barrier).load(order) >> 63 == parity) std::this_thread::yield();
}

inline void store_remote(void* mine, uint4 value, uint64_t* barrier, int rank) {
    unsigned char* there = shim::self.neighbours[rank]->shared;
    const auto at = [&](void* p) { return there + (static_cast<unsigned char*>(p) - shim::self.block->shared); };
    *reinterpret_cast<uint4*>(at(mine)) = value;
    change_barrier(reinterpret_cast<uint64_t*>(at(barrier)), -16, false);
}

template <int SITE>
bool enabled() {
    return !shim::skipped(SITE);
}

inline uint32_t fetch_add_release(uint32_t* counter, uint32_t value) {
    const auto order = shim::skipped(shim::kRelaxedAtomics) ? std::memory_order_relaxed : std::memory_order_release;
    return std::atomic_ref<uint32_t>(*counter).fetch_add(value, order);
}

inline uint32_t load_acquire(const uint32_t* counter) {
    const auto order = shim::skipped(shim::kRelaxedAtomics) ? std::memory_order_relaxed : std::memory_order_acquire;
    return std::atomic_ref<uint32_t>(*const_cast<uint32_t*>(counter)).load(order);
}

inline void pause() { std::this_thread::yield(); }

inline float warp_sum(float value) {
    const shim::Lane* lanes = shim::exchange({{}, {}, value});
    float sums[32];
    for (int i = 0; i < 32; ++i) sums[i] = lanes[i].value;
    for (int distance = 16; distance > 0; distance /= 2) {
        float next[32];
        for (int i = 0; i < 32; ++i) next[i] = sums[i] + sums[i ^ distance];
        std::memcpy(sums, next, sizeof(sums));
    }
    return sums[shim::own_lane()];
}

inline float bits_as_float(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof(value));
    return value;
}

inline uint32_t round_to_bf16(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof(bits));
    if (std::isnan(value)) return 0x7fffu;
    return (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
}

inline uint32_t pack_bf16(float low, float high) { return round_to_bf16(low) | round_to_bf16(high) << 16; }

inline void mma_16x8x16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    const shim::Lane* lanes = shim::exchange({{a[0], a[1], a[2], a[3]}, {b0, b1}, 0.0f});
    const int lane = shim::own_lane();
    // Element (row, k) of a: lane row%8 * 4 + k%8 / 2, register row/8 + 2 (k/8), half k%2; likewise (k, column) of b.
    const auto half = [](uint32_t packed, int k) { return bits_as_float(k % 2 ? packed & 0xffff0000u : packed << 16); };
    for (int i = 0; i < 4; ++i) {
        const int row = lane / 4 + 8 * (i / 2);
        const int column = (lane % 4) * 2 + i % 2;
        for (int k = 0; k < 16; ++k) {
            const int of_k = k % 8 / 2;
            const float x = half(lanes[row % 8 * 4 + of_k].a[row / 8 + 2 * (k / 8)], k);
            d[i] += x * half(lanes[column * 4 + of_k].b[k / 8], k);
        }
    }
}

template <class Value>
Value load_constant(const Value* p) {
    return *p;
}

inline uint4 load_exchanged(const uint4* p) { return *p; }
inline void copy_async(uint4* to_shared, const uint4* from_global) { *to_shared = *from_global; }
inline void copy_wait() {}
inline float silu(float x) { return x / (1.0f + std::exp(-x)); }
inline float reciprocal_root(float x) { return 1.0f / std::sqrt(x); }

}  // namespace enma::device
