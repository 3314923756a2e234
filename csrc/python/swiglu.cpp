#include "core/cpu/swiglu.h"

#include "python/bindings.h"
#include "python/tensor.h"

namespace enma {

namespace swiglu_binding {

constexpr char OP[] = "swiglu";

Swiglu problem_of(const Tensor& x, int threads) {
    const NumberFormat format = checked_format(OP, x, "x");
    expect(x.dim() == 2 && x.size(1) % 2 == 0, OP, ": x has shape ", x.sizes());
    const std::int64_t rows = x.size(0), width = x.size(1) / 2;
    const void* const values = checked(OP, x, "x", {rows, 2 * width}, x.dtype());
    return {format, rows, width, values, threads};
}

// silu(gate) * up over rows [gate; up].
Tensor forward(const Tensor& x, int threads, const std::string& isa) {
    const Swiglu g = problem_of(x, threads);
    Tensor y = Tensor::empty({g.rows, g.width}, x.dtype(), x);
    swiglu_forward(g, y.data(), isa_of(OP, isa));
    return y;
}

// Gradient of the rows.
Tensor backward(const Tensor& grad_y, const Tensor& x, int threads, const std::string& isa) {
    const Swiglu g = problem_of(x, threads);
    Tensor grad_x = Tensor::empty({g.rows, 2 * g.width}, x.dtype(), x);
    swiglu_backward(g, checked(OP, grad_y, "grad_y", {g.rows, g.width}, x.dtype()), grad_x.data(), isa_of(OP, isa));
    return grad_x;
}

}  // namespace swiglu_binding

void bind_swiglu(py::module_& m) {
    using namespace swiglu_binding;
    m.def("swiglu_forward", &forward, arg("x"), arg("threads") = 1, arg("isa") = "", without_lock());
    m.def("swiglu_backward", &backward, arg("grad_y"), arg("x"), arg("threads") = 1, arg("isa") = "", without_lock());
}

}  // namespace enma
