#include "core/cpu/point_attention.h"

#include "python/bindings.h"
#include "python/tensor.h"

namespace enma {

namespace point_attention_binding {

constexpr char OP[] = "point_attention";
using Maybe = std::optional<Tensor>;

void expect_float(const Tensor& x, const char* name, std::int64_t dims) {
    expect(x.is_cpu(), OP, ": ", name, " is on ", x.device(), "; expected the CPU");
    expect(x.dtype() == Dtype::float32, OP, ": ", name, " is ", x.dtype());
    expect(x.dim() == dims, OP, ": ", name, " has ", x.dim(), " dimensions; expected ", dims);
}

PointAttentionRows rows(const Tensor& x, const char* name, std::int64_t batches, std::int64_t heads, std::int64_t count,
                        std::int64_t width) {
    expect_float(x, name, 4);
    expect(x.size(0) == batches && x.size(1) == heads && x.size(2) == count && x.size(3) == width, OP, ": ", name,
           " has shape ", x.sizes());
    expect(x.size(3) < 2 || x.numel() == 0 || x.stride(3) == 1, OP, ": ", name, " has gaps between channels");
    return {x.data<float>(), x.stride(0), x.stride(1), x.stride(2)};
}

PointAttentionPlaces places(const Tensor& x, const char* name, std::int64_t batches, std::int64_t count,
                            std::int64_t dims) {
    expect_float(x, name, x.dim() == 2 ? 2 : 3);
    const bool fits = x.size(-2) == count && x.size(-1) == dims && (x.dim() == 2 || x.size(0) == batches);
    expect(fits && x.is_contiguous(), OP, ": ", name, " has shape ", x.sizes());
    return {x.data<float>(), x.dim() == 2 ? 0 : count * dims};
}

PointAttention problem_of(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& query_points,
                          const Tensor& points, const Tensor& slopes, const Maybe& valid, std::int64_t power,
                          const std::vector<double>& periods, int threads) {
    expect_float(q, "q", 4);
    expect_float(k, "k", 4);
    expect_float(v, "v", 4);
    PointAttention g{};
    g.batches = q.size(0), g.heads = q.size(1), g.queries = q.size(2), g.head_dim = q.size(3);
    g.points = k.size(2), g.value_dim = v.size(3);
    expect(g.head_dim > 0 && g.value_dim > 0, OP, ": q or v has no channels");
    expect(g.points <= INT32_MAX, OP, ": more than 2^31 points");
    expect(power == 1 || power == 2, OP, ": power is ", power, "; expected 1 or 2");
    expect(1 <= periods.size() && periods.size() <= 3, OP, ": ", periods.size(), " dimensions; expected 1 to 3");
    g.dims = static_cast<int>(periods.size());
    g.power = static_cast<int>(power);
    for (int i = 0; i < g.dims; ++i) g.periods[i] = static_cast<float>(periods[i]);
    g.q = rows(q, "q", g.batches, g.heads, g.queries, g.head_dim);
    g.k = rows(k, "k", g.batches, g.heads, g.points, g.head_dim);
    g.v = rows(v, "v", g.batches, g.heads, g.points, g.value_dim);
    g.query_points = places(query_points, "query_points", g.batches, g.queries, g.dims);
    g.point_places = places(points, "points", g.batches, g.points, g.dims);
    g.slopes = static_cast<const float*>(checked(OP, slopes, "slopes", {g.heads}, Dtype::float32));
    if (valid) {
        g.valid = static_cast<const std::uint8_t*>(checked(OP, *valid, "valid", {g.batches, g.points}, Dtype::boolean));
    }
    g.threads = threads;
    return g;
}

// out; the logarithms of the sums of weights.
std::tuple<Tensor, Tensor> forward(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& query_points,
                                   const Tensor& points, const Tensor& slopes, const Maybe& valid, std::int64_t power,
                                   const std::vector<double>& periods, int threads) {
    const PointAttention g = problem_of(q, k, v, query_points, points, slopes, valid, power, periods, threads);
    Tensor out = Tensor::empty({g.batches, g.heads, g.queries, g.value_dim}, Dtype::float32, q);
    Tensor lse = Tensor::empty({g.batches, g.heads, g.queries}, Dtype::float32, q);
    point_attention_forward(g, out.data<float>(), lse.data<float>(), best_isa());
    return {std::move(out), std::move(lse)};
}

// Gradients of q, k, v; of slopes [B, H]; of the coordinates [B, H, rows, d], or empty ones.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> backward(
    const Tensor& out_grad, const Tensor& lse, const Tensor& delta, const Tensor& q, const Tensor& k, const Tensor& v,
    const Tensor& query_points, const Tensor& points, const Tensor& slopes, const Maybe& valid, std::int64_t power,
    const std::vector<double>& periods, bool with_places, int threads) {
    const PointAttention g = problem_of(q, k, v, query_points, points, slopes, valid, power, periods, threads);
    const auto given = [&](const Tensor& x, const char* name, const std::vector<std::int64_t>& shape) {
        return static_cast<const float*>(checked(OP, x, name, shape, Dtype::float32));
    };
    const auto made = [&](const std::vector<std::int64_t>& shape) { return Tensor::empty(shape, Dtype::float32, q); };
    const auto of_places = [&](std::int64_t count) {
        return made(with_places ? std::vector<std::int64_t>{g.batches, g.heads, count, g.dims}
                                : std::vector<std::int64_t>{0});
    };
    Tensor q_grad = made({g.batches, g.heads, g.queries, g.head_dim});
    Tensor k_grad = made({g.batches, g.heads, g.points, g.head_dim});
    Tensor v_grad = made({g.batches, g.heads, g.points, g.value_dim});
    Tensor slopes_grad = made({g.batches, g.heads});
    Tensor query_points_grad = of_places(g.queries), points_grad = of_places(g.points);
    PointAttentionGradients to{};
    to.out_grad = given(out_grad, "out_grad", {g.batches, g.heads, g.queries, g.value_dim});
    to.lse = given(lse, "lse", {g.batches, g.heads, g.queries});
    to.delta = given(delta, "delta", {g.batches, g.heads, g.queries});
    to.q = q_grad.data<float>();
    to.k = k_grad.data<float>();
    to.v = v_grad.data<float>();
    to.slopes = slopes_grad.data<float>();
    to.query_points = with_places ? query_points_grad.data<float>() : nullptr;
    to.point_places = with_places ? points_grad.data<float>() : nullptr;
    point_attention_backward(g, to, best_isa());
    return {std::move(q_grad),
            std::move(k_grad),
            std::move(v_grad),
            std::move(slopes_grad),
            std::move(query_points_grad),
            std::move(points_grad)};
}

}  // namespace point_attention_binding

void bind_point_attention(py::module_& m) {
    using namespace point_attention_binding;
    m.def("point_attention_forward", &forward, without_lock());
    m.def("point_attention_backward", &backward, without_lock());
}

}  // namespace enma
