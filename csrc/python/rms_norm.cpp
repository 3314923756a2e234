#include "core/cpu/rms_norm.h"

#include "python/bindings.h"
#include "python/tensor.h"

namespace enma {

namespace rms_norm_binding {

constexpr char OP[] = "rms_norm";
using Maybe = std::optional<Tensor>;

// Rows [R, W], which may have gaps between them.
NormRows rows(const Tensor& x, const char* name, const RmsNorm& g) {
    expect(x.is_cpu(), OP, ": ", name, " is on ", x.device(), "; expected the CPU");
    expect(x.dtype() == Dtype::float32, OP, ": ", name, " is ", x.dtype(), "; expected float32");
    expect(x.has_shape({g.rows, g.width}), OP, ": ", name, " has shape ", x.sizes());
    expect(g.width == 1 || x.numel() == 0 || x.stride(1) == 1, OP, ": ", name, " has gaps within a row");
    return {x.data<float>(), x.stride(0)};
}

const float* given(const Tensor& x, const char* name, const std::vector<std::int64_t>& shape) {
    return static_cast<const float*>(checked(OP, x, name, shape, Dtype::float32));
}

RmsNorm problem_of(const Tensor& x, const Tensor& weight, int threads) {
    RmsNorm g{};
    expect(x.dim() == 2 && x.size(1) > 0, OP, ": x has shape ", x.sizes());
    g.rows = x.size(0), g.width = x.size(1);
    g.threads = threads;
    g.weight = given(weight, "weight", {g.width});
    return g;
}

// y; h (no rows without a residual); 1 / sqrt(mean(h^2) + eps) of each row (empty unless kept).
std::tuple<Tensor, Tensor, Tensor> forward(const Tensor& x, const Tensor& weight, const Maybe& residual, double eps,
                                           bool keep, int threads, const std::string& isa) {
    RmsNorm g = problem_of(x, weight, threads);
    g.eps = static_cast<float>(eps);
    Tensor y = Tensor::empty({g.rows, g.width}, Dtype::float32, x);
    Tensor h = Tensor::empty({residual ? g.rows : 0, g.width}, Dtype::float32, x);
    Tensor rstd = Tensor::empty({keep ? g.rows : 0}, Dtype::float32, x);
    RmsNormForward f{};
    f.x = rows(x, "x", g);
    if (residual) {
        f.residual = rows(*residual, "residual", g);
        f.h = h.data<float>();
    }
    f.y = y.data<float>();
    f.rstd = keep ? rstd.data<float>() : nullptr;
    rms_norm_forward(g, f, isa_of(OP, isa));
    return {std::move(y), std::move(h), std::move(rstd)};
}

// Gradients of x and, in fp32, of the weight; one that is not wanted is empty.
std::tuple<Tensor, Tensor> backward(const Tensor& grad_y, const Maybe& grad_h, const Tensor& x, const Tensor& rstd,
                                    const Tensor& weight, bool want_x, bool want_weight, int threads,
                                    const std::string& isa) {
    const RmsNorm g = problem_of(x, weight, threads);
    Tensor grad_x = Tensor::empty({want_x ? g.rows : 0, g.width}, Dtype::float32, x);
    Tensor grad_weight = Tensor::empty({want_weight ? g.width : 0}, Dtype::float32, x);
    RmsNormBackward b{};
    b.grad_y = given(grad_y, "grad_y", {g.rows, g.width});
    b.grad_h = grad_h ? given(*grad_h, "grad_h", {g.rows, g.width}) : nullptr;
    b.x = rows(x, "x", g);
    b.rstd = given(rstd, "rstd", {g.rows});
    b.grad_x = want_x ? grad_x.data<float>() : nullptr;
    b.grad_weight = want_weight ? grad_weight.data<float>() : nullptr;
    rms_norm_backward(g, b, isa_of(OP, isa));
    return {std::move(grad_x), std::move(grad_weight)};
}

}  // namespace rms_norm_binding

void bind_rms_norm(py::module_& m) {
    using namespace rms_norm_binding;
    m.def("rms_norm_forward", &forward, arg("x"), arg("weight"), arg("residual"), arg("eps"), arg("keep"),
          arg("threads") = 1, arg("isa") = "", without_lock());
    m.def("rms_norm_backward", &backward, arg("grad_y"), arg("grad_h"), arg("x"), arg("rstd"), arg("weight"),
          arg("want_x"), arg("want_weight"), arg("threads") = 1, arg("isa") = "", without_lock());
}

}  // namespace enma
