// Self-attention from a projection, frame by frame, after keys and values of earlier calls; and its gradients.
//
//     q, k = rotate(norm(q)), rotate(norm(k));  out = softmax(q [past; k]^T / sqrt(K)) [past; v]
//
// A token sees the past and its own and earlier frames.
#pragma once

#include <cstdint>

#include "core/cpu/dispatch.h"
#include "core/number_format.h"

namespace enma {

// All tensors lie without gaps, in the problem's type unless said otherwise.
struct SelfAttention {
    NumberFormat format;  // of all rows
    int64_t batch, heads, tokens, head_dim;
    int64_t frame;  // tokens of a frame
    int64_t past;   // earlier keys
    float eps;
    const void* qkv;                      // [batch, tokens, 3, heads, head_dim]
    const float *q_weight, *k_weight;     // [head_dim]
    const float *cosines, *sines;         // [tokens, head_dim / 2]; null: nothing is rotated
    const void *past_keys, *past_values;  // [batch, heads, past, head_dim]; null without a past
    int threads;
};

struct SelfAttentionForward {
    void* out;            // [batch, tokens, heads, head_dim]
    float* lse;           // [batch, heads, tokens], logarithm (base 2) of the sum of weights
    void *keys, *values;  // [batch, heads, past + tokens, head_dim]; null: not wanted
};

struct SelfAttentionBackward {
    const void *out, *grad_out;  // [batch, tokens, heads, head_dim]
    const float* lse;
    const void *grad_keys, *grad_values;  // [batch, heads, past + tokens, head_dim]; null: zero
    void* grad_qkv;
    void *grad_past_keys, *grad_past_values;  // null without a past
    float* grad_weights;                      // [2, head_dim], of q and of k
};

// Throw std::bad_alloc.
void self_attention_forward(const SelfAttention& g, const SelfAttentionForward& f, Isa isa);
void self_attention_backward(const SelfAttention& g, const SelfAttentionBackward& b, Isa isa);

// The kernels of an instruction set, for one row of the batch and one head; `work` has as many floats as the others say.
struct SelfAttentionKernels {
    int64_t (*forward_work)(const SelfAttention&);
    int64_t (*backward_work)(const SelfAttention&);
    void (*forward)(const SelfAttention&, const SelfAttentionForward&, int64_t b, int64_t h, float* work);
    // `weights` [2, head_dim] takes the gradients of the weights.
    void (*backward)(const SelfAttention&, const SelfAttentionBackward&, int64_t b, int64_t h, float* weights,
                     float* work);
};

}  // namespace enma
