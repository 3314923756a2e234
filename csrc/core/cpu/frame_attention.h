// out = softmax(q [prefix; cache; own]^T / sqrt(K)) [prefix; cache; own], no mask, nothing concatenated.
#pragma once

#include <cstdint>

#include "core/cpu/dispatch.h"
#include "core/number_format.h"

namespace enma {

// [batch, heads, tokens, head_dim], strides in elements; channels lie side by side.
struct AttentionRows {
    const void* data = nullptr;
    int64_t batch_stride = 0, head_stride = 0, token_stride = 0;
};

// Keys and values that a query sees; `rows_per_batch` rows of the queries share one batch entry.
struct AttentionPart {
    AttentionRows k, v;
    int64_t count = 0;
    int64_t rows_per_batch = 1;
};

struct FrameAttention {
    NumberFormat format;  // of all rows
    int64_t batch, heads, tokens, head_dim;
    AttentionRows q;
    AttentionPart parts[3];  // prefix, cache, own; a part may be empty, not all of them
    void* out;
    int64_t out_batch_stride, out_head_stride, out_token_stride;
    int threads;
};

constexpr int64_t MAX_HEAD_DIM = 128;

// Throws std::bad_alloc.
void frame_attention(const FrameAttention& g, Isa isa);

// The kernels of an instruction set: `queries` at a time, from token `first` of row b and head h on.
struct FrameAttentionKernels {
    int64_t (*queries)(int64_t tokens);
    void (*attend)(const FrameAttention&, int64_t b, int64_t h, int64_t first, float* work);
};

// Widest vectors times two, and a step of keys.
constexpr int64_t MAX_QUERIES = 32, MAX_KEY_STEP = 12;

inline int64_t frame_attention_keys(const FrameAttention& g) {
    return g.parts[0].count + g.parts[1].count + g.parts[2].count;
}

// Floats of work space of one thread: queries, result and a tile of keys or values; then the weights.
inline int64_t frame_attention_work(int64_t keys) { return (2 * MAX_QUERIES + 64) * MAX_HEAD_DIM + keys * MAX_QUERIES; }

}  // namespace enma
