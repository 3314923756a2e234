// All kernels of an instruction set, for weights in fp32 and as `HalfMode` takes those in bf16: the flow-matching head,
// and the two transformers of a sampler. See gemm_kernels.h for what this file may not do.
#pragma once

#include "core/cpu/flow_head_kernels.h"
#include "core/cpu/sampler_causal.h"
#include "core/cpu/sampler_masked.h"

namespace enma {
namespace {

template <class Mode>
void causal_of(const SamplerView& model, const SamplerState& state, const CausalTask& task, const Member& member,
               char* shared, char* memory) {
    const int rows = (task.end - task.begin) * model.tokens;
    SamplerKernels<Mode>(model, state, member, rows, memory).causal_frame(task, shared);
}

template <class Mode>
void masked_of(const SamplerView& model, const SamplerState& state, const MaskTask& task, const Member& member,
               char* shared, char* memory) {
    const int rows = (task.end - task.begin) * model.masked_rows;
    SamplerKernels<Mode>(model, state, member, rows, memory).mask_step(task, shared);
}

template <class Vector, template <class> class HalfMode>
void causal_frame(const SamplerView& model, const SamplerState& state, const CausalTask& task, const Member& member,
                  char* shared, char* memory) {
    (is_half(model.format) ? causal_of<HalfMode<Vector>> : causal_of<Full<Vector>>)(model, state, task, member, shared,
                                                                                    memory);
}

template <class Vector, template <class> class HalfMode>
void mask_step(const SamplerView& model, const SamplerState& state, const MaskTask& task, const Member& member,
               char* shared, char* memory) {
    (is_half(model.format) ? masked_of<HalfMode<Vector>> : masked_of<Full<Vector>>)(model, state, task, member, shared,
                                                                                    memory);
}

template <class Vector, template <class> class HalfMode>
void moments(const SamplerView& model, const SamplerState& state, const Moments& task, int begin, int end,
             char* memory) {
    const Member alone{0, 1, nullptr};
    if (is_half(model.format)) {
        SamplerKernels<HalfMode<Vector>>(model, state, alone, 0, memory).moments(task, begin, end);
    } else {
        SamplerKernels<Full<Vector>>(model, state, alone, 0, memory).moments(task, begin, end);
    }
}

template <class V>
void linear_rows(const LinearView& linear, const float* a, ptrdiff_t lda, int rows, float* out, ptrdiff_t ldo,
                 char* scratch) {
    const float* bias = linear.bias;
    for (int row = 0; row < rows; row += GEMM_ROWS) {
        float* to = out + row * ldo;
        gemm<Full<V>>(a + row * lda, lda, smaller(GEMM_ROWS, rows - row), linear, 0, panels_of(linear.n),
                      reinterpret_cast<float*>(scratch), [=](int r, int j, typename V::Float sum) ENMA_ALWAYS {
                          V::store(to + r * ldo + j, V::add(sum, V::load(bias + j)));
                      });
    }
}

// All kernels of an instruction set.
template <class Vector, template <class> class HalfMode>
constexpr Kernels kernels_with() {
    return {flow_head_rows<Vector, HalfMode>, flow_head_columns<Vector, HalfMode>, causal_frame<Vector, HalfMode>,
            mask_step<Vector, HalfMode>,      moments<Vector, HalfMode>,           linear_rows<Vector>,
            is_paired<HalfMode<Vector>>};
}

}  // namespace
}  // namespace enma
