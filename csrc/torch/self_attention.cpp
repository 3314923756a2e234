#include "core/cpu/self_attention.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/Parallel.h>

#include <optional>
#include <string>
#include <tuple>
#include <utility>

#include "isa.h"
#include "operators.h"

namespace enma {

namespace {

using at::IntArrayRef;
using at::Tensor;
using Optional = std::optional<Tensor>;

// The tensor's memory, after a check of where and how it lies.
const void* data_of(const Tensor& x, const char* name, IntArrayRef shape, at::ScalarType dtype) {
    TORCH_CHECK_VALUE(x.device().is_cpu(), "self_attention: ", name, " is on ", x.device(), "; expected the CPU");
    TORCH_CHECK_VALUE(x.scalar_type() == dtype, "self_attention: ", name, " is ", x.scalar_type());
    TORCH_CHECK_VALUE(x.sizes() == shape, "self_attention: ", name, " has shape ", x.sizes());
    TORCH_CHECK_VALUE(x.is_contiguous(), "self_attention: ", name, " has strides ", x.strides());
    return x.const_data_ptr();
}

const void* data_of(const Optional& x, const char* name, IntArrayRef shape, at::ScalarType dtype) {
    return x ? data_of(*x, name, shape, dtype) : nullptr;
}

SelfAttention problem_of(const Tensor& qkv, const Tensor& q_weight, const Tensor& k_weight, const Optional& cosines,
                         const Optional& sines, const Optional& past_keys, const Optional& past_values, int64_t frame,
                         double eps) {
    const at::ScalarType dtype = qkv.scalar_type();
    TORCH_CHECK_VALUE(dtype == at::kFloat || dtype == at::kBFloat16, "self_attention: qkv is ", dtype,
                      "; expected float32 or bfloat16");
    TORCH_CHECK_VALUE(qkv.dim() == 5 && qkv.size(2) == 3 && qkv.size(4) > 0, "self_attention: qkv has shape ",
                      qkv.sizes());
    TORCH_CHECK_VALUE(frame > 0, "self_attention: frame is ", frame);
    TORCH_CHECK_VALUE(cosines.has_value() == sines.has_value() && past_keys.has_value() == past_values.has_value(),
                      "self_attention: one of a pair is missing");
    SelfAttention g{};
    g.bf16 = dtype == at::kBFloat16;
    g.batch = qkv.size(0), g.tokens = qkv.size(1), g.heads = qkv.size(3), g.head_dim = qkv.size(4);
    g.frame = frame, g.eps = static_cast<float>(eps), g.threads = at::get_num_threads();
    g.past = past_keys && past_keys->dim() == 4 ? past_keys->size(2) : 0;
    g.qkv = data_of(qkv, "qkv", qkv.sizes(), dtype);
    g.q_weight = static_cast<const float*>(data_of(q_weight, "q_weight", {g.head_dim}, at::kFloat));
    g.k_weight = static_cast<const float*>(data_of(k_weight, "k_weight", {g.head_dim}, at::kFloat));
    TORCH_CHECK_VALUE(!cosines || g.head_dim % 2 == 0, "self_attention: qkv has head dim ", g.head_dim,
                      "; expected an even one to rotate");
    const int64_t turns[] = {g.tokens, g.head_dim / 2}, past[] = {g.batch, g.heads, g.past, g.head_dim};
    g.cosines = static_cast<const float*>(data_of(cosines, "cosines", turns, at::kFloat));
    g.sines = static_cast<const float*>(data_of(sines, "sines", turns, at::kFloat));
    g.past_keys = data_of(past_keys, "past_keys", past, dtype);
    g.past_values = data_of(past_values, "past_values", past, dtype);
    return g;
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor> self_attention_forward(const Tensor& qkv, const Tensor& q_weight,
                                                                  const Tensor& k_weight, const Optional& cosines,
                                                                  const Optional& sines, const Optional& past_keys,
                                                                  const Optional& past_values, int64_t frame,
                                                                  double eps, bool keep, const std::string& isa) {
    const SelfAttention g = problem_of(qkv, q_weight, k_weight, cosines, sines, past_keys, past_values, frame, eps);
    Tensor out = at::empty({g.batch, g.tokens, g.heads, g.head_dim}, qkv.options());
    Tensor lse = at::empty({g.batch, g.heads, g.tokens}, q_weight.options());
    const int64_t count = keep ? g.past + g.tokens : 0;
    Tensor keys = at::empty({g.batch, g.heads, count, g.head_dim}, qkv.options());
    Tensor values = at::empty_like(keys);
    const SelfAttentionForward f{out.mutable_data_ptr(), lse.mutable_data_ptr<float>(),
                                 keep ? keys.mutable_data_ptr() : nullptr, keep ? values.mutable_data_ptr() : nullptr};
    const Isa with = isa_of("self_attention", isa);
    self_attention_forward(g, f, with);
    return {std::move(out), std::move(lse), std::move(keys), std::move(values)};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> self_attention_backward(
    const Tensor& grad_out, const Optional& grad_keys, const Optional& grad_values, const Tensor& out,
    const Tensor& lse, const Tensor& qkv, const Tensor& q_weight, const Tensor& k_weight, const Optional& cosines,
    const Optional& sines, const Optional& past_keys, const Optional& past_values, int64_t frame, double eps,
    const std::string& isa) {
    const SelfAttention g = problem_of(qkv, q_weight, k_weight, cosines, sines, past_keys, past_values, frame, eps);
    const at::ScalarType dtype = qkv.scalar_type();
    const int64_t shape[] = {g.batch, g.tokens, g.heads, g.head_dim};
    const int64_t kept[] = {g.batch, g.heads, g.past + g.tokens, g.head_dim};
    Tensor grad_qkv = at::empty(qkv.sizes(), qkv.options());
    Tensor grad_weights = at::empty({2, g.head_dim}, q_weight.options());
    Tensor grad_past_keys = at::empty({g.batch, g.heads, g.past, g.head_dim}, qkv.options());
    Tensor grad_past_values = at::empty_like(grad_past_keys);
    const SelfAttentionBackward b{
        data_of(out, "out", shape, dtype),
        data_of(grad_out, "grad_out", shape, dtype),
        static_cast<const float*>(data_of(lse, "lse", {g.batch, g.heads, g.tokens}, at::kFloat)),
        data_of(grad_keys, "grad_keys", kept, dtype),
        data_of(grad_values, "grad_values", kept, dtype),
        grad_qkv.mutable_data_ptr(),
        grad_past_keys.mutable_data_ptr(),
        grad_past_values.mutable_data_ptr(),
        grad_weights.mutable_data_ptr<float>(),
    };
    const Isa with = isa_of("self_attention", isa);
    self_attention_backward(g, b, with);
    return {std::move(grad_qkv), std::move(grad_weights), std::move(grad_past_keys), std::move(grad_past_values)};
}

}  // namespace enma
