// Between the dispatcher and the kernels, which are compiled once per instruction set.
#pragma once

#include <cstdint>

#include "core/cpu/point_attention.h"

namespace enma {

// Queries [first_query, end_query) of heads [first_head, end_head) of one batch row.
struct PointAttentionTask {
    int64_t batch, first_head, end_head, first_query, end_query;
    // The valid points of this batch row in order; null: all of them.
    const int32_t* index;
    int64_t count;
};

struct PointAttentionKernels {
    const char* name;
    // Floats of scratch (64-byte aligned) that a task of so many heads and queries needs.
    int64_t (*forward_scratch)(const PointAttention&, int64_t heads, int64_t queries);
    void (*forward)(const PointAttention&, const PointAttentionTask&, float* scratch, float* out, float* lse);
    int64_t (*backward_scratch)(const PointAttention&);
    // One head and all queries.
    void (*backward)(
        const PointAttention&, const PointAttentionTask&, float* scratch, const PointAttentionGradients&
    );
    void (*exp2)(const float* x, float* y, int64_t n);
};

// Null where the compiler cannot make them; the processor may lack what it made.
const PointAttentionKernels* point_attention_avx512();
const PointAttentionKernels* point_attention_avx2();
const PointAttentionKernels* point_attention_portable();
const PointAttentionKernels* point_attention_kernels();

void point_attention_forward_by(
    const PointAttentionKernels& kernels, const PointAttention& problem, float* out, float* lse
);
void point_attention_backward_by(
    const PointAttentionKernels& kernels, const PointAttention& problem, const PointAttentionGradients& gradients
);

}  // namespace enma
