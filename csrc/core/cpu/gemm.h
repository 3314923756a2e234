// Linear layers with weights packed once, and the kernels of each instruction set that multiply with them.
//
// Packed W: panels of 16 outputs, zero beyond n. fp32: [k][16]. bf16: pairs of inputs, [ceil(k / 2)][16][2], as
// AVX-512 BF16 multiplies them; other instruction sets widen a pair by a shift and a mask. The bias follows in fp32.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/cpu/dispatch.h"
#include "core/number_format.h"

namespace enma {

constexpr int PANEL = 16;
constexpr int whole_panels(int width) { return (width + PANEL - 1) / PANEL * PANEL; }
// Distance between rows of work space: whole vectors, and not a power of two, which would crowd a few cache sets.
constexpr std::ptrdiff_t row_stride(int width) {
    const std::ptrdiff_t whole = (width + PANEL - 1) / PANEL * PANEL;
    return whole % 128 == 0 ? whole + PANEL : whole;
}

// Rows that one product takes at most, and that one task carries: weights pass through the cache once for all of them.
constexpr int GEMM_ROWS = 128;
constexpr int TILE = 48;
// Inputs of a panel that stay in the first-level cache while the rows of a tile pass by.
constexpr int BLOCK_K = 512;
// Panels that one kernel call spans at most.
constexpr int MAX_SPAN = 8;
// Bytes of partial sums of one product.
constexpr std::size_t GEMM_SCRATCH = std::size_t{GEMM_ROWS} * MAX_SPAN * PANEL * sizeof(float);

struct LinearView {
    const void* weight;
    const float* bias;
    int n;
    int k;
    NumberFormat format;
};

std::size_t packed_bytes(int n, int k, NumberFormat format);

// weight [n, k]; bias [n] or null; both bf16 or both fp32.
void pack_linear(const void* weight, const void* bias, int n, int k, NumberFormat format, void* packed);

LinearView view_linear(const void* packed, int n, int k, NumberFormat format);

class Barrier;
struct FlowHeadView;
struct FlowHeadCall;
struct SamplerView;
struct SamplerState;
struct CausalTask;
struct MaskTask;
struct Moments;

// One member of a group of threads.
struct Member {
    int thread;
    int threads;
    Barrier* barrier;
};

// For the others of the group; alone, at once.
void wait(const Member& member);

struct Kernels {
    // All steps of a tile of rows, alone: modulations are recomputed and never stored.
    void (*flow_head_rows)(const FlowHeadView& head, const FlowHeadCall& call, std::int64_t row, int rows,
                           char* scratch);
    // All steps of a few rows by a group of threads that share the columns; modulations of many evaluations at once.
    void (*flow_head_columns)(const FlowHeadView& head, const FlowHeadCall& call, std::int64_t row, int rows,
                              const Member& member, char* shared, char* scratch);
    // Parts of a sampler's frame by a team of threads; see sampler.h.
    void (*causal_frame)(const SamplerView& model, const SamplerState& state, const CausalTask& task,
                         const Member& member, char* shared, char* scratch);
    void (*mask_step)(const SamplerView& model, const SamplerState& state, const MaskTask& task, const Member& member,
                      char* shared, char* scratch);
    // Moments of conditions [begin, end).
    void (*moments)(const SamplerView& model, const SamplerState& state, const Moments& moments, int begin, int end,
                    char* scratch);
    // out = a W^T + b for any number of rows over fp32 weights; whole panels of columns are written. `scratch` has
    // GEMM_SCRATCH bytes.
    void (*linear)(const LinearView& linear, const float* a, std::ptrdiff_t lda, int rows, float* out,
                   std::ptrdiff_t ldo, char* scratch);
    // True if inputs of products over bf16 weights are bf16.
    bool halves;
};

const Kernels& kernels(Isa isa);

extern const Kernels kernels_scalar;
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
extern const Kernels kernels_avx512_bf16;

}  // namespace enma
