#include "core/cpu/swiglu.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/Parallel.h>

#include <string>

#include "isa.h"
#include "operators.h"

namespace enma {

namespace {

using at::Tensor;

Swiglu problem_of(const Tensor& x) {
    const at::ScalarType dtype = x.scalar_type();
    TORCH_CHECK_VALUE(x.device().is_cpu(), "swiglu: x is on ", x.device(), "; expected the CPU");
    TORCH_CHECK_VALUE(dtype == at::kFloat || dtype == at::kBFloat16, "swiglu: x is ", dtype,
                      "; expected float32 or bfloat16");
    TORCH_CHECK_VALUE(x.dim() == 2 && x.size(1) % 2 == 0, "swiglu: x has shape ", x.sizes());
    TORCH_CHECK_VALUE(x.is_contiguous(), "swiglu: x has strides ", x.strides());
    return {dtype == at::kBFloat16, x.size(0), x.size(1) / 2, x.const_data_ptr(), at::get_num_threads()};
}

}  // namespace

Tensor swiglu_forward(const Tensor& x, const std::string& isa) {
    const Swiglu g = problem_of(x);
    Tensor y = at::empty({g.rows, g.width}, x.options());
    const Isa with = isa_of("swiglu", isa);
    void* const out = y.mutable_data_ptr();
    swiglu_forward(g, out, with);
    return y;
}

Tensor swiglu_backward(const Tensor& grad_y, const Tensor& x, const std::string& isa) {
    const Swiglu g = problem_of(x);
    TORCH_CHECK_VALUE(grad_y.device().is_cpu() && grad_y.scalar_type() == x.scalar_type(), "swiglu: grad_y is ",
                      grad_y.scalar_type(), " on ", grad_y.device());
    TORCH_CHECK_VALUE(grad_y.dim() == 2 && grad_y.size(0) == g.rows && grad_y.size(1) == g.width,
                      "swiglu: grad_y has shape ", grad_y.sizes());
    TORCH_CHECK_VALUE(grad_y.is_contiguous(), "swiglu: grad_y has strides ", grad_y.strides());
    Tensor grad_x = at::empty(x.sizes(), x.options());
    const Isa with = isa_of("swiglu", isa);
    void* const out = grad_x.mutable_data_ptr();
    swiglu_backward(g, grad_y.const_data_ptr(), out, with);
    return grad_x;
}

}  // namespace enma
