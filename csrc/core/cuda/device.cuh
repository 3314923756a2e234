// The few device features that the kernels of this folder use, in one place.
//
// Under nvcc these are intrinsics and PTX. A plain C++20 compiler takes tests/cuda_shim/device.h instead, where a
// thread of the GPU is a thread of the CPU, so that sanitizers see the same kernels.
#pragma once

#include <cstdint>

#ifndef __CUDACC__
#include "cuda_shim/device.h"
#else

#define ENMA_DEVICE __device__ __forceinline__
#define ENMA_KERNEL(THREADS) __global__ void __launch_bounds__(THREADS, 1)
#define ENMA_PARAMETER __grid_constant__

namespace enma::device {

ENMA_DEVICE int block_x() { return static_cast<int>(blockIdx.x); }
ENMA_DEVICE int block_y() { return static_cast<int>(blockIdx.y); }
ENMA_DEVICE int thread() { return static_cast<int>(threadIdx.x); }
ENMA_DEVICE int threads() { return static_cast<int>(blockDim.x); }

ENMA_DEVICE unsigned char* shared_memory() {
    extern __shared__ __align__(16) unsigned char memory[];
    return memory;
}

// SITE names the place in the code: the tests leave out one place at a time.
template <int SITE>
ENMA_DEVICE void sync_block() {
    __syncthreads();
}

template <int SITE>
ENMA_DEVICE void sync_cluster() {
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#else
    __trap();
#endif
}

// Every block of the cluster arrives and later waits for the others; orders nothing but what init_barrier did before.
ENMA_DEVICE void arrive_at_cluster() {
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
#else
    __trap();
#endif
}

template <int SITE>
ENMA_DEVICE void wait_for_cluster() {
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#else
    __trap();
#endif
}

// A barrier in shared memory, aligned to 8 bytes, whose phases end when as many bytes have been stored by store_remote
// as thread 0 expects. Phases end in order; wait_barrier takes the parity of the phase's number.
ENMA_DEVICE void init_barrier(uint64_t* barrier) {
#if __CUDA_ARCH__ >= 900
    const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(barrier));
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(address) : "memory");
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#else
    __trap();
#endif
}

// The bytes of the phase that is running; those that have arrived before are counted too.
ENMA_DEVICE void expect_bytes(uint64_t* barrier, uint32_t bytes) {
#if __CUDA_ARCH__ >= 900
    const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(barrier));
    asm volatile("{.reg .b64 state; mbarrier.arrive.expect_tx.shared::cta.b64 state, [%0], %1;}" ::"r"(address),
                 "r"(bytes)
                 : "memory");
#else
    __trap();
#endif
}

// PTX ISA 8.6.
#if __CUDACC_VER_MAJOR__ * 100 + __CUDACC_VER_MINOR__ >= 1208
#define ENMA_WAIT "relaxed"
#define ENMA_AFTER_WAIT "fence.acquire.sync_restrict::shared::cluster.cluster;"
#else
#define ENMA_WAIT "acquire"
#define ENMA_AFTER_WAIT ""
#endif

// What has been stored in the phase is there for this thread. The fence is of shared memory only: an acquire of the
// whole cluster, as older compilers have it, throws away the L1 of this multiprocessor each time.
template <int SITE>
ENMA_DEVICE void wait_barrier(uint64_t* barrier, uint32_t parity) {
#if __CUDA_ARCH__ >= 900
    const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(barrier));
    uint32_t done = 0;
    while (done == 0) {
        asm volatile("{.reg .pred p; mbarrier.try_wait.parity." ENMA_WAIT
                     ".cluster.shared::cta.b64 p, [%1], %2; selp.b32 %0, 1, 0, p;}"
                     : "=r"(done)
                     : "r"(address), "r"(parity)
                     : "memory");
    }
    asm volatile(ENMA_AFTER_WAIT ::: "memory");
#else
    __trap();
#endif
}

// What four neighbouring lanes bring, in each of them; all four have to be here.
ENMA_DEVICE uint4 gather_quad(uint32_t value) {
    const int lane = thread() % 32;
    const uint32_t quad = 0xfu << (lane & ~3);
    return {__shfl_sync(quad, value, 0, 4), __shfl_sync(quad, value, 1, 4), __shfl_sync(quad, value, 2, 4),
            __shfl_sync(quad, value, 3, 4)};
}

// Stores at the place of `mine`, aligned to 16 bytes, and counts at that of `barrier`, in the shared memory of a block
// of the cluster, which has several: for one alone this is not defined.
ENMA_DEVICE void store_remote(void* mine, uint4 value, uint64_t* barrier, int rank) {
#if __CUDA_ARCH__ >= 900
    const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(mine));
    const auto counts = static_cast<uint32_t>(__cvta_generic_to_shared(barrier));
    asm volatile(
        "{.reg .b32 to, at; mapa.shared::cluster.u32 to, %0, %6; mapa.shared::cluster.u32 at, %5, %6; "
        "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [to], {%1, %2, %3, %4}, [at];}" ::"r"(address),
        "r"(value.x), "r"(value.y), "r"(value.z), "r"(value.w), "r"(counts), "r"(rank)
        : "memory");
#else
    __trap();
#endif
}

template <int SITE>
ENMA_DEVICE constexpr bool enabled() {
    return true;
}

ENMA_DEVICE uint32_t fetch_add_release(uint32_t* counter, uint32_t value) {
    uint32_t old;
    asm volatile("atom.add.release.gpu.global.u32 %0, [%1], %2;" : "=r"(old) : "l"(counter), "r"(value) : "memory");
    return old;
}

ENMA_DEVICE uint32_t load_acquire(const uint32_t* counter) {
    uint32_t value;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(counter) : "memory");
    return value;
}

ENMA_DEVICE void pause() {}

// The sum over the warp, by a butterfly: the same bits in every lane.
ENMA_DEVICE float warp_sum(float value) {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) value += __shfl_xor_sync(0xffffffffu, value, distance);
    return value;
}

// d[16, 8] += a[16, 16] b[16, 8] by one warp, bf16 in, fp32 out.
ENMA_DEVICE void mma_16x8x16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Data that nobody writes during the kernel.
template <class Value>
ENMA_DEVICE Value load_constant(const Value* p) {
    return __ldg(p);
}

// Data that another block of the same kernel wrote: from L2, past the L1 of this multiprocessor.
ENMA_DEVICE uint4 load_exchanged(const uint4* p) { return __ldcg(p); }

ENMA_DEVICE void copy_async(uint4* to_shared, const uint4* from_global) {
    const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(to_shared));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(from_global) : "memory");
}

ENMA_DEVICE void copy_wait() { asm volatile("cp.async.wait_all;" ::: "memory"); }

ENMA_DEVICE float bits_as_float(uint32_t bits) { return __uint_as_float(bits); }

// Two floats as two bf16, rounded to nearest even, `low` at the lower address.
ENMA_DEVICE uint32_t pack_bf16(float low, float high) {
    uint32_t packed;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
}

ENMA_DEVICE float silu(float x) { return __fdividef(x, 1.0f + __expf(-x)); }
ENMA_DEVICE float reciprocal_root(float x) { return rsqrtf(x); }

}  // namespace enma::device

#endif

namespace enma::device {

ENMA_DEVICE float low_bf16(uint32_t packed) { return bits_as_float(packed << 16); }
ENMA_DEVICE float high_bf16(uint32_t packed) { return bits_as_float(packed & 0xffff0000u); }

}  // namespace enma::device
