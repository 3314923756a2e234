#include "core/cpu/frame_attention.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/Parallel.h>

#include <optional>
#include <stdexcept>
#include <string>

#include "operators.h"

namespace enma {

namespace {

using at::Tensor;
using Maybe = std::optional<Tensor>;

AttentionRows rows(const Tensor& x, const char* name, const FrameAttention& g, at::ScalarType dtype) {
    TORCH_CHECK_VALUE(x.device().is_cpu(), "frame_attention: ", name, " is on ", x.device(), "; expected the CPU");
    TORCH_CHECK_VALUE(x.scalar_type() == dtype, "frame_attention: ", name, " is ", x.scalar_type());
    TORCH_CHECK_VALUE(x.dim() == 4 && x.size(1) == g.heads && x.size(3) == g.head_dim, "frame_attention: ", name,
                      " has shape ", x.sizes());
    TORCH_CHECK_VALUE(x.stride(3) == 1, "frame_attention: ", name, " has strides ", x.strides());
    return {x.const_data_ptr(), x.stride(0), x.stride(1), x.stride(2)};
}

AttentionPart part(const Tensor& k, const Tensor& v, const char* name, int64_t count, const FrameAttention& g,
                   at::ScalarType dtype) {
    AttentionPart part{rows(k, name, g, dtype), rows(v, name, g, dtype), count, 1};
    TORCH_CHECK_VALUE(k.sizes() == v.sizes(), "frame_attention: ", name, " has values of shape ", v.sizes());
    TORCH_CHECK_VALUE(0 <= count && count <= k.size(2), "frame_attention: ", name, " has ", k.size(2), " tokens; ",
                      count, " asked for");
    const bool divides = k.size(0) > 0 && g.batch % k.size(0) == 0;
    TORCH_CHECK_VALUE(g.batch == 0 || divides, "frame_attention: ", name, " has ", k.size(0), " groups");
    part.rows_per_batch = g.batch == 0 ? 1 : g.batch / k.size(0);
    return part;
}

}  // namespace

Tensor frame_attention(const Tensor& q, const Tensor& k, const Tensor& v, const Maybe& cache_k, const Maybe& cache_v,
                       const Maybe& prefix_k, const Maybe& prefix_v, int64_t length, int64_t prefix_length,
                       const std::string& isa) {
    const at::ScalarType dtype = q.scalar_type();
    TORCH_CHECK_VALUE(dtype == at::kFloat || dtype == at::kBFloat16, "frame_attention: q is ", dtype,
                      "; expected float32 or bfloat16");
    TORCH_CHECK_VALUE(q.dim() == 4, "frame_attention: q has shape ", q.sizes());
    TORCH_CHECK_VALUE(1 <= q.size(3) && q.size(3) <= MAX_HEAD_DIM, "frame_attention: q has head dim ", q.size(3),
                      "; expected 1 to ", MAX_HEAD_DIM);
    TORCH_CHECK_VALUE(cache_k.has_value() == cache_v.has_value() && prefix_k.has_value() == prefix_v.has_value(),
                      "frame_attention: keys without values");
    FrameAttention g{};
    g.bf16 = dtype == at::kBFloat16;
    g.batch = q.size(0), g.heads = q.size(1), g.tokens = q.size(2), g.head_dim = q.size(3);
    g.q = rows(q, "q", g, dtype);
    TORCH_CHECK_VALUE(k.dim() == 4 && k.size(0) == g.batch, "frame_attention: k has shape ", k.sizes());
    if (prefix_k) g.parts[0] = part(*prefix_k, *prefix_v, "prefix", prefix_length, g, dtype);
    if (cache_k) {
        TORCH_CHECK_VALUE(cache_k->dim() == 4 && cache_k->size(0) == g.batch, "frame_attention: cache has shape ",
                          cache_k->sizes());
        g.parts[1] = part(*cache_k, *cache_v, "cache", length, g, dtype);
    }
    g.parts[2] = part(k, v, "k", g.tokens, g, dtype);
    g.threads = at::get_num_threads();
    Isa with{};
    try {
        with = isa_by_name(isa);
    } catch (const std::invalid_argument& error) {
        TORCH_CHECK_VALUE(false, "frame_attention: ", error.what());
    }
    Tensor out = at::empty(q.sizes(), q.options());
    g.out = out.mutable_data_ptr();
    g.out_token_stride = g.head_dim, g.out_head_stride = g.tokens * g.head_dim;
    g.out_batch_stride = g.heads * g.out_head_stride;
    frame_attention(g, with);
    return out;
}

}  // namespace enma
