#include "core/cpu/rms_norm.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/Parallel.h>

#include <optional>
#include <string>
#include <tuple>
#include <utility>

#include "isa.h"
#include "operators.h"

namespace enma {

namespace {

using at::Tensor;

void expect_cpu(const Tensor& x, const char* name, at::ScalarType dtype) {
    TORCH_CHECK_VALUE(x.device().is_cpu(), "rms_norm: ", name, " is on ", x.device(), "; expected the CPU");
    TORCH_CHECK_VALUE(x.scalar_type() == dtype, "rms_norm: ", name, " is ", x.scalar_type());
}

// Rows [R, W].
NormRows rows(const Tensor& x, const char* name, const RmsNorm& g, at::ScalarType dtype) {
    expect_cpu(x, name, dtype);
    TORCH_CHECK_VALUE(x.dim() == 2 && x.size(0) == g.rows && x.size(1) == g.width, "rms_norm: ", name, " has shape ",
                      x.sizes());
    TORCH_CHECK_VALUE(g.width == 1 || x.numel() == 0 || x.stride(1) == 1, "rms_norm: ", name, " has strides ",
                      x.strides());
    return {x.const_data_ptr(), x.stride(0)};
}

RmsNorm problem_of(const Tensor& x, const Tensor& weight) {
    const at::ScalarType dtype = x.scalar_type();
    TORCH_CHECK_VALUE(dtype == at::kFloat || dtype == at::kBFloat16, "rms_norm: x is ", dtype,
                      "; expected float32 or bfloat16");
    TORCH_CHECK_VALUE(x.dim() == 2 && x.size(1) > 0, "rms_norm: x has shape ", x.sizes());
    RmsNorm g{};
    g.bf16 = dtype == at::kBFloat16;
    g.rows = x.size(0), g.width = x.size(1);
    g.threads = at::get_num_threads();
    g.weight_bf16 = weight.scalar_type() == at::kBFloat16;
    expect_cpu(weight, "weight", g.weight_bf16 ? dtype : at::kFloat);
    TORCH_CHECK_VALUE(weight.dim() == 1 && weight.size(0) == g.width && weight.is_contiguous(),
                      "rms_norm: weight has shape ", weight.sizes());
    g.weight = weight.const_data_ptr();
    return g;
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> rms_norm_forward(const Tensor& x, const Tensor& weight,
                                                    const std::optional<Tensor>& residual, double eps, bool keep,
                                                    const std::string& isa) {
    RmsNorm g = problem_of(x, weight);
    g.eps = static_cast<float>(eps);
    Tensor y = at::empty({g.rows, g.width}, x.options());
    Tensor h = at::empty({residual ? g.rows : 0, g.width}, x.options());
    Tensor rstd = at::empty({keep ? g.rows : 0}, x.options().dtype(at::kFloat));
    RmsNormForward f{};
    f.x = rows(x, "x", g, x.scalar_type());
    if (residual) {
        f.residual = rows(*residual, "residual", g, x.scalar_type());
        f.h = h.mutable_data_ptr();
    }
    f.y = y.mutable_data_ptr();
    f.rstd = keep ? rstd.mutable_data_ptr<float>() : nullptr;
    const Isa with = isa_of("rms_norm", isa);
    rms_norm_forward(g, f, with);
    return {std::move(y), std::move(h), std::move(rstd)};
}

std::tuple<Tensor, Tensor> rms_norm_backward(const Tensor& grad_y, const std::optional<Tensor>& grad_h, const Tensor& x,
                                             const Tensor& rstd, const Tensor& weight, bool want_x, bool want_weight,
                                             const std::string& isa) {
    const RmsNorm g = problem_of(x, weight);
    rows(grad_y, "grad_y", g, x.scalar_type());
    TORCH_CHECK_VALUE(grad_y.is_contiguous(), "rms_norm: grad_y has strides ", grad_y.strides());
    if (grad_h) {
        rows(*grad_h, "grad_h", g, x.scalar_type());
        TORCH_CHECK_VALUE(grad_h->is_contiguous(), "rms_norm: grad_h has strides ", grad_h->strides());
    }
    expect_cpu(rstd, "rstd", at::kFloat);
    TORCH_CHECK_VALUE(rstd.dim() == 1 && rstd.size(0) == g.rows && rstd.is_contiguous(), "rms_norm: rstd has shape ",
                      rstd.sizes());
    Tensor grad_x = at::empty({want_x ? g.rows : 0, g.width}, x.options());
    Tensor grad_weight = at::empty({want_weight ? g.width : 0}, rstd.options());
    RmsNormBackward b{};
    b.grad_y = grad_y.const_data_ptr();
    b.grad_h = grad_h ? grad_h->const_data_ptr() : nullptr;
    b.x = rows(x, "x", g, x.scalar_type());
    b.rstd = rstd.const_data_ptr<float>();
    b.grad_x = want_x ? grad_x.mutable_data_ptr() : nullptr;
    b.grad_weight = want_weight ? grad_weight.mutable_data_ptr<float>() : nullptr;
    const Isa with = isa_of("rms_norm", isa);
    rms_norm_backward(g, b, with);
    return {std::move(grad_x), grad_weight.to(weight.scalar_type())};
}

}  // namespace enma
