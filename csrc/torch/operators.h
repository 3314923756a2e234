// The operators that touch no Python object, so they may run without the interpreter's lock. They are
// given to Python by module.cpp.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

namespace enma {

// Fields [S, L, X, c] of draws, or of the analysis alone, and the size of the observations: core/cpu/analysis.h.
std::tuple<at::Tensor, double> analyse(const at::Tensor& mean, const at::Tensor& deviation,
                                       const at::Tensor& correlation, const std::vector<int64_t>& grid,
                                       const std::vector<double>& lengths, const std::vector<bool>& periodic,
                                       const at::Tensor& values, const at::Tensor& points,
                                       const std::vector<int64_t>& rows, bool shared, const std::vector<double>& errors,
                                       int64_t seed, const std::vector<int64_t>& draws, int64_t step);

// Attention of the tokens of a frame to a prefix, a cache and one another.
at::Tensor frame_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                           const std::optional<at::Tensor>& cache_k, const std::optional<at::Tensor>& cache_v,
                           const std::optional<at::Tensor>& prefix_k, const std::optional<at::Tensor>& prefix_v,
                           int64_t length, int64_t prefix_length, const std::string& isa);

// Fills `out` [B, M, C], contiguous, with the normals of the tokens that one mask step decides.
void philox_normal(const at::Tensor& seed, const at::Tensor& members, const at::Tensor& frame,
                   const at::Tensor& mask_step, const at::Tensor& tokens, const at::Tensor& out);

// out; the logarithms of the sums of weights.
std::tuple<at::Tensor, at::Tensor> point_attention_forward(const at::Tensor& q, const at::Tensor& k,
                                                           const at::Tensor& v, const at::Tensor& query_points,
                                                           const at::Tensor& points, const at::Tensor& slopes,
                                                           const std::optional<at::Tensor>& valid, int64_t power,
                                                           const std::vector<double>& periods, int64_t threads);

// Gradients of q, k, v; of slopes [B, H]; of the coordinates [B, H, rows, d], or empty ones.
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> point_attention_backward(
    const at::Tensor& out_grad, const at::Tensor& lse, const at::Tensor& delta, const at::Tensor& q,
    const at::Tensor& k, const at::Tensor& v, const at::Tensor& query_points, const at::Tensor& points,
    const at::Tensor& slopes, const std::optional<at::Tensor>& valid, int64_t power, const std::vector<double>& periods,
    bool with_places, int64_t threads);

// y; h (no rows without a residual); 1 / sqrt(mean(h^2) + eps) of each row (empty unless kept).
std::tuple<at::Tensor, at::Tensor, at::Tensor> rms_norm_forward(const at::Tensor& x, const at::Tensor& weight,
                                                                const std::optional<at::Tensor>& residual, double eps,
                                                                bool keep, const std::string& isa);

// Gradients of x and of the weight; one that is not wanted is empty.
std::tuple<at::Tensor, at::Tensor> rms_norm_backward(const at::Tensor& grad_y, const std::optional<at::Tensor>& grad_h,
                                                     const at::Tensor& x, const at::Tensor& rstd,
                                                     const at::Tensor& weight, bool want_x, bool want_weight,
                                                     const std::string& isa);

// out; the logarithms of the sums of weights; all keys and all values (empty unless kept).
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> self_attention_forward(
    const at::Tensor& qkv, const at::Tensor& q_weight, const at::Tensor& k_weight,
    const std::optional<at::Tensor>& cosines, const std::optional<at::Tensor>& sines,
    const std::optional<at::Tensor>& past_keys, const std::optional<at::Tensor>& past_values, int64_t frame, double eps,
    bool keep, const std::string& isa);

// Gradients of qkv, of both weights, and of the past keys and values (empty without a past).
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> self_attention_backward(
    const at::Tensor& grad_out, const std::optional<at::Tensor>& grad_keys,
    const std::optional<at::Tensor>& grad_values, const at::Tensor& out, const at::Tensor& lse, const at::Tensor& qkv,
    const at::Tensor& q_weight, const at::Tensor& k_weight, const std::optional<at::Tensor>& cosines,
    const std::optional<at::Tensor>& sines, const std::optional<at::Tensor>& past_keys,
    const std::optional<at::Tensor>& past_values, int64_t frame, double eps, const std::string& isa);

// Takes subnormal numbers for zero, or keeps them, in this thread and those that compute for it.
void flush_subnormals(bool flush);

// silu(gate) * up over rows [gate; up].
at::Tensor swiglu_forward(const at::Tensor& x, const std::string& isa);

// Gradient of the rows.
at::Tensor swiglu_backward(const at::Tensor& grad_y, const at::Tensor& x, const std::string& isa);

}  // namespace enma
