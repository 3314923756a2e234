// Cross-attention between scattered points with a geometry bias, streaming over the points:
//
//     out_q = sum_p softmax_p( q . k_p / sqrt(K) - m_h dist(x_q, x_p)^power ) v_p
//
// Legend: B batch, H heads, Q queries, P points, K head dim, V value dim, d space dimensions. Everything is fp32;
// memory grows with Q and P, never with their product.
#pragma once

#include <cstdint>

#include "core/cpu/dispatch.h"

namespace enma {

// A [B, H, rows, width] array; strides count elements, the last dimension is contiguous.
struct PointAttentionRows {
    const float* data;
    int64_t batch, head, row;
};

// Coordinates [rows, d] (batch == 0) or [B, rows, d], rows contiguous.
struct PointAttentionPlaces {
    const float* data;
    int64_t batch;
};

struct PointAttention {
    int64_t batches, heads, queries, points, head_dim, value_dim;
    int dims;          // 1 to 3
    int power;         // 1 or 2
    float periods[3];  // 0: not periodic
    PointAttentionRows q, k, v;
    PointAttentionPlaces query_points, point_places;
    const float* slopes;   // [H]
    const uint8_t* valid;  // [B, P], or null: all. What lies at other points is never read.
    int threads;
};

// Everything contiguous. `delta` is the row sum of out_grad * out, minus the gradient of lse where that has one.
struct PointAttentionGradients {
    const float* out_grad;  // [B, H, Q, V]
    const float* lse;       // [B, H, Q]
    const float* delta;     // [B, H, Q]
    float* q;               // [B, H, Q, K]
    float* k;               // [B, H, P, K]
    float* v;               // [B, H, P, V]
    float* slopes;          // [B, H], to be summed over B
    float* query_points;    // [B, H, Q, d], to be summed over H (and B), or null
    float* point_places;    // [B, H, P, d], likewise; both or none
};

// out [B, H, Q, V] and lse [B, H, Q] (natural logarithm of the sum of exponentials), contiguous. A batch row without
// valid points gives zeros and minus infinity. The result does not depend on the number of threads.
void point_attention_forward(const PointAttention& g, float* out, float* lse, Isa isa);
void point_attention_backward(const PointAttention& g, const PointAttentionGradients& to, Isa isa);

// Queries [first_query, end_query) of heads [first_head, end_head) of one batch row.
struct PointAttentionTask {
    int64_t batch, first_head, end_head, first_query, end_query;
    // The valid points of this batch row in order; null: all of them.
    const int32_t* index;
    int64_t count;
};

// The kernels of an instruction set.
struct PointAttentionKernels {
    // Floats of scratch (64-byte aligned) that a task of so many heads and queries needs.
    int64_t (*forward_scratch)(const PointAttention&, int64_t heads, int64_t queries);
    void (*forward)(const PointAttention&, const PointAttentionTask&, float* scratch, float* out, float* lse);
    int64_t (*backward_scratch)(const PointAttention&);
    // One head and all queries.
    void (*backward)(const PointAttention&, const PointAttentionTask&, float* scratch, const PointAttentionGradients&);
};

}  // namespace enma
