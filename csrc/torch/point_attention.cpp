#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <optional>
#include <tuple>
#include <vector>

#include "core/cpu/point_attention.h"
#include "operators.h"

namespace enma {

namespace {

using at::Tensor;

void expect_float(const Tensor& x, const char* name, int64_t dims) {
    TORCH_CHECK_VALUE(x.device().is_cpu(), "point_attention: ", name, " is on ", x.device(), "; expected the CPU");
    TORCH_CHECK_VALUE(x.scalar_type() == at::kFloat, "point_attention: ", name, " is ", x.scalar_type());
    TORCH_CHECK_VALUE(x.dim() == dims, "point_attention: ", name, " has ", x.dim(), " dimensions; expected ", dims);
}

PointAttentionRows rows(const Tensor& x, const char* name, int64_t batches, int64_t heads, int64_t count,
                        int64_t width) {
    expect_float(x, name, 4);
    TORCH_CHECK_VALUE(x.size(0) == batches && x.size(1) == heads && x.size(2) == count && x.size(3) == width,
                      "point_attention: ", name, " has shape ", x.sizes());
    TORCH_CHECK_VALUE(x.size(3) < 2 || x.numel() == 0 || x.stride(3) == 1, "point_attention: ", name, " has strides ",
                      x.strides());
    return {x.const_data_ptr<float>(), x.stride(0), x.stride(1), x.stride(2)};
}

PointAttentionPlaces places(const Tensor& x, const char* name, int64_t batches, int64_t count, int64_t dims) {
    expect_float(x, name, x.dim() == 2 ? 2 : 3);
    const bool fits = x.size(-2) == count && x.size(-1) == dims && (x.dim() == 2 || x.size(0) == batches);
    TORCH_CHECK_VALUE(fits && x.is_contiguous(), "point_attention: ", name, " has shape ", x.sizes());
    return {x.const_data_ptr<float>(), x.dim() == 2 ? 0 : count * dims};
}

void expect_whole(const Tensor& x, const char* name, at::IntArrayRef shape) {
    expect_float(x, name, static_cast<int64_t>(shape.size()));
    TORCH_CHECK_VALUE(x.sizes() == shape && x.is_contiguous(), "point_attention: ", name, " has shape ", x.sizes());
}

PointAttention problem_of(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& query_points,
                          const Tensor& points, const Tensor& slopes, const std::optional<Tensor>& valid, int64_t power,
                          const std::vector<double>& periods, int64_t threads) {
    expect_float(q, "q", 4);
    expect_float(k, "k", 4);
    expect_float(v, "v", 4);
    PointAttention g{};
    g.batches = q.size(0), g.heads = q.size(1), g.queries = q.size(2), g.head_dim = q.size(3);
    g.points = k.size(2), g.value_dim = v.size(3);
    TORCH_CHECK_VALUE(g.head_dim > 0 && g.value_dim > 0, "point_attention: q or v has no channels");
    TORCH_CHECK_VALUE(g.points <= INT32_MAX, "point_attention: more than 2^31 points");
    TORCH_CHECK_VALUE(power == 1 || power == 2, "point_attention: power is ", power, "; expected 1 or 2");
    TORCH_CHECK_VALUE(1 <= periods.size() && periods.size() <= 3, "point_attention: ", periods.size(),
                      " dimensions; expected 1 to 3");
    g.dims = static_cast<int>(periods.size());
    g.power = static_cast<int>(power);
    for (int i = 0; i < g.dims; ++i) g.periods[i] = static_cast<float>(periods[i]);
    g.q = rows(q, "q", g.batches, g.heads, g.queries, g.head_dim);
    g.k = rows(k, "k", g.batches, g.heads, g.points, g.head_dim);
    g.v = rows(v, "v", g.batches, g.heads, g.points, g.value_dim);
    g.query_points = places(query_points, "query_points", g.batches, g.queries, g.dims);
    g.point_places = places(points, "points", g.batches, g.points, g.dims);
    expect_whole(slopes, "slopes", {g.heads});
    g.slopes = slopes.const_data_ptr<float>();
    if (valid) {
        TORCH_CHECK_VALUE(valid->scalar_type() == at::kBool, "point_attention: valid is ", valid->scalar_type());
        TORCH_CHECK_VALUE(valid->device().is_cpu() && valid->is_contiguous() && valid->dim() == 2 &&
                              valid->size(0) == g.batches && valid->size(1) == g.points,
                          "point_attention: valid has shape ", valid->sizes());
        g.valid = reinterpret_cast<const uint8_t*>(valid->const_data_ptr<bool>());
    }
    g.threads = static_cast<int>(threads);
    return g;
}

}  // namespace

std::tuple<Tensor, Tensor> point_attention_forward(const Tensor& q, const Tensor& k, const Tensor& v,
                                                   const Tensor& query_points, const Tensor& points,
                                                   const Tensor& slopes, const std::optional<Tensor>& valid,
                                                   int64_t power, const std::vector<double>& periods, int64_t threads) {
    const PointAttention g = problem_of(q, k, v, query_points, points, slopes, valid, power, periods, threads);
    Tensor out = at::empty({g.batches, g.heads, g.queries, g.value_dim}, q.options());
    Tensor lse = at::empty({g.batches, g.heads, g.queries}, q.options());
    point_attention_forward(g, out.mutable_data_ptr<float>(), lse.mutable_data_ptr<float>(), best_isa());
    return {out, lse};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> point_attention_backward(
    const Tensor& out_grad, const Tensor& lse, const Tensor& delta, const Tensor& q, const Tensor& k, const Tensor& v,
    const Tensor& query_points, const Tensor& points, const Tensor& slopes, const std::optional<Tensor>& valid,
    int64_t power, const std::vector<double>& periods, bool with_places, int64_t threads) {
    const PointAttention g = problem_of(q, k, v, query_points, points, slopes, valid, power, periods, threads);
    expect_whole(out_grad, "out_grad", {g.batches, g.heads, g.queries, g.value_dim});
    expect_whole(lse, "lse", {g.batches, g.heads, g.queries});
    expect_whole(delta, "delta", {g.batches, g.heads, g.queries});
    const auto made = [&](at::IntArrayRef shape) { return at::empty(shape, q.options()); };
    Tensor q_grad = made({g.batches, g.heads, g.queries, g.head_dim});
    Tensor k_grad = made({g.batches, g.heads, g.points, g.head_dim});
    Tensor v_grad = made({g.batches, g.heads, g.points, g.value_dim});
    Tensor slopes_grad = made({g.batches, g.heads});
    Tensor query_points_grad = with_places ? made({g.batches, g.heads, g.queries, g.dims}) : made({0});
    Tensor points_grad = with_places ? made({g.batches, g.heads, g.points, g.dims}) : made({0});
    PointAttentionGradients to{};
    to.out_grad = out_grad.const_data_ptr<float>();
    to.lse = lse.const_data_ptr<float>();
    to.delta = delta.const_data_ptr<float>();
    to.q = q_grad.mutable_data_ptr<float>();
    to.k = k_grad.mutable_data_ptr<float>();
    to.v = v_grad.mutable_data_ptr<float>();
    to.slopes = slopes_grad.mutable_data_ptr<float>();
    to.query_points = with_places ? query_points_grad.mutable_data_ptr<float>() : nullptr;
    to.point_places = with_places ? points_grad.mutable_data_ptr<float>() : nullptr;
    point_attention_backward(g, to, best_isa());
    return {q_grad, k_grad, v_grad, slopes_grad, query_points_grad, points_grad};
}

}  // namespace enma
