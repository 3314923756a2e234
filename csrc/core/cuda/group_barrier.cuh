// A barrier over a group of blocks that run at the same time.
//
// Stores of a block to global memory before its last sync_block are visible to every block of the group after the
// barrier. Either a cluster's own barrier (Hopper and later), or a counter in global memory: bit 31 flips when the last
// block arrives and the lower bits return to where they were, so that no launch or graph replay has to reset anything.
#pragma once

#include "core/cuda/device.cuh"

namespace enma {

struct Group {
    uint32_t* counter;  // one of the group's own, in a cache line of its own; not used by a cluster
    int blocks;
    int rank;  // of this block
    bool cluster;
};

template <int SITE>
ENMA_DEVICE void sync_group(const Group& group) {
    if (group.cluster) {
        device::sync_cluster<SITE>();
        return;
    }
    if (device::enabled<SITE>() && device::thread() == 0) {
        // The sum over the group is 2^31.
        const uint32_t mine = group.rank == 0 ? 0x80000000u - static_cast<uint32_t>(group.blocks - 1) : 1u;
        const uint32_t before = device::fetch_add_release(group.counter, mine);
        while (((device::load_acquire(group.counter) ^ before) & 0x80000000u) == 0) device::pause();
    }
    device::sync_block<SITE + 1>();
}

// Rows of bf16 in the shared memory of every block of a cluster, into which all of them store. A phase ends for a block
// when all bytes that are stored in it have come.
struct Mailbox {
    uint16_t* rows;
    uint64_t* barrier;
    uint32_t phase;
};

// Eight neighbours of a row, of which each of four neighbouring lanes brings two, at the offset of this lane's two, to
// each block of a cluster; every block begins with another.
ENMA_DEVICE void post(const Mailbox& box, int offset, uint32_t pair, int rank, int blocks) {
    const uint4 all = device::gather_quad(pair);
    const int lane = device::thread() % 4;
    for (int i = lane; i < blocks; i += 4) {
        const int to = rank + i < blocks ? rank + i : rank + i - blocks;
        device::store_remote(box.rows + offset - 2 * lane, all, box.barrier, to);
    }
}

template <int SITE>
ENMA_DEVICE void collect(Mailbox& box, uint32_t bytes) {
    if (device::thread() == 0) device::expect_bytes(box.barrier, bytes);
    device::wait_barrier<SITE>(box.barrier, box.phase % 2);
    ++box.phase;
}

}  // namespace enma
