#include "core/cpu/modulated_norm.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/csrc/utils/pybind.h>

#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>

namespace enma {

namespace {

using at::Tensor;
using Maybe = std::optional<Tensor>;

void expect_cpu(const Tensor& x, const char* name, at::ScalarType dtype) {
    TORCH_CHECK_VALUE(x.device().is_cpu(), "modulated_norm: ", name, " is on ", x.device(), "; expected the CPU");
    TORCH_CHECK_VALUE(x.scalar_type() == dtype, "modulated_norm: ", name, " is ", x.scalar_type());
}

// Rows [R, W], or [1, W] where `shared` allows one for all.
NormRows rows(const Tensor& x, const char* name, const ModulatedNorm& g, at::ScalarType dtype, bool shared) {
    expect_cpu(x, name, dtype);
    const bool fits = x.dim() == 2 && x.size(1) == g.width && (x.size(0) == g.rows || (shared && x.size(0) == 1));
    TORCH_CHECK_VALUE(fits, "modulated_norm: ", name, " has shape ", x.sizes());
    TORCH_CHECK_VALUE(g.width == 1 || x.stride(1) == 1, "modulated_norm: ", name, " has strides ", x.strides());
    return {x.const_data_ptr(), x.size(0) == 1 ? 0 : x.stride(0)};
}

ModulatedNorm problem_of(
    const Tensor& x, const char* name, const Maybe& weight, const Maybe& shift, const Maybe& scale,
    const Maybe& residual, const Maybe& gate, bool rms
) {
    const at::ScalarType dtype = x.scalar_type();
    TORCH_CHECK_VALUE(
        dtype == at::kFloat || dtype == at::kBFloat16, "modulated_norm: ", name, " is ", dtype,
        "; expected float32 or bfloat16"
    );
    TORCH_CHECK_VALUE(x.dim() == 2 && x.size(1) > 0, "modulated_norm: ", name, " has shape ", x.sizes());
    TORCH_CHECK_VALUE(!gate || residual, "modulated_norm: gate is given without residual");
    ModulatedNorm g{};
    g.bf16 = dtype == at::kBFloat16;
    g.rms = rms;
    g.rows = x.size(0), g.width = x.size(1);
    g.threads = at::get_num_threads();
    if (weight) {
        g.weight_bf16 = weight->scalar_type() == at::kBFloat16;
        expect_cpu(*weight, "weight", g.weight_bf16 ? dtype : at::kFloat);
        TORCH_CHECK_VALUE(
            weight->dim() == 1 && weight->size(0) == g.width && weight->is_contiguous(),
            "modulated_norm: weight has shape ", weight->sizes()
        );
        g.weight = weight->const_data_ptr();
    }
    if (shift) g.shift = rows(*shift, "shift", g, dtype, true);
    if (scale) g.scale = rows(*scale, "scale", g, dtype, true);
    if (residual) g.residual = rows(*residual, "residual", g, dtype, false);
    if (gate) g.gate = rows(*gate, "gate", g, dtype, true);
    return g;
}

Isa isa_of(const std::string& name) {
    try {
        return isa_by_name(name);
    } catch (const std::invalid_argument& error) {
        TORCH_CHECK_VALUE(false, "modulated_norm: ", error.what());
    }
}

// y, h (no rows without a residual), and mean and reciprocal deviation [2, R] (no columns unless kept).
std::tuple<Tensor, Tensor, Tensor> forward(
    const Tensor& x, const Maybe& weight, const Maybe& shift, const Maybe& scale, const Maybe& residual,
    const Maybe& gate, bool rms, double eps, bool keep, const std::string& isa
) {
    ModulatedNorm g = problem_of(x, "x", weight, shift, scale, residual, gate, rms);
    g.eps = static_cast<float>(eps);
    Tensor y = at::empty({g.rows, g.width}, x.options());
    Tensor h = at::empty({residual ? g.rows : 0, g.width}, x.options());
    Tensor stats = at::empty({2, keep ? g.rows : 0}, x.options().dtype(at::kFloat));
    ModulatedNormForward f{};
    f.x = rows(x, "x", g, x.scalar_type(), false);
    f.y = y.mutable_data_ptr();
    f.h = residual ? h.mutable_data_ptr() : nullptr;
    f.stats = keep ? stats.mutable_data_ptr<float>() : nullptr;
    const Isa with = isa_of(isa);
    pybind11::gil_scoped_release released;
    modulated_norm_forward(g, f, with);
    return {std::move(y), std::move(h), std::move(stats)};
}

// Fills every gradient that has rows: all of them, or one that is the sum over them.
void backward(
    const Tensor& grad_y, const Maybe& grad_h, const Tensor& h, const Tensor& stats, const Maybe& weight,
    const Maybe& scale, const Maybe& residual, const Maybe& gate, bool rms, Tensor grad_x, Tensor grad_weight,
    Tensor grad_shift, Tensor grad_scale, Tensor grad_residual, Tensor grad_gate, const std::string& isa
) {
    // The residual is at hand only where the gradient of a gate needs it.
    const Maybe none;
    ModulatedNorm g = problem_of(h, "h", weight, none, scale, residual, gate, rms);
    const at::ScalarType dtype = h.scalar_type();
    const auto whole = [&](const Tensor& x, const char* name) {
        TORCH_CHECK_VALUE(
            rows(x, name, g, dtype, false).data != nullptr && x.is_contiguous(), "modulated_norm: ", name,
            " has strides ", x.strides()
        );
    };
    if (g.rows > 0) {
        whole(grad_y, "grad_y");
        if (grad_h) whole(*grad_h, "grad_h");
    }
    expect_cpu(stats, "stats", at::kFloat);
    TORCH_CHECK_VALUE(
        stats.dim() == 2 && stats.size(0) == 2 && stats.size(1) == g.rows && stats.is_contiguous(),
        "modulated_norm: stats has shape ", stats.sizes()
    );
    ModulatedNormBackward b{};
    b.grad_y = grad_y.const_data_ptr();
    b.grad_h = grad_h ? grad_h->const_data_ptr() : nullptr;
    b.h = rows(h, "h", g, dtype, false);
    b.stats = stats.const_data_ptr<float>();
    const auto row_wise = [&](const Tensor& x, const char* name) -> void* {
        if (x.size(0) == 0) return nullptr;
        whole(x, name);
        return x.mutable_data_ptr();
    };
    Tensor sums = at::empty({4, g.width}, stats.options());
    const auto summed = [&](int i, const Tensor& x, bool is_sum) -> float* {
        return x.size(0) > 0 && is_sum ? sums[i].mutable_data_ptr<float>() : nullptr;
    };
    const bool scale_is_sum = g.scale.data != nullptr && scale->size(0) == 1;
    const bool gate_is_sum = g.gate.data != nullptr && gate->size(0) == 1;
    b.x = row_wise(grad_x, "grad_x");
    TORCH_CHECK_VALUE(gate || grad_residual.size(0) == 0, "modulated_norm: grad_residual is wanted without a gate");
    b.residual = row_wise(grad_residual, "grad_residual");
    TORCH_CHECK_VALUE(residual || grad_gate.size(0) == 0, "modulated_norm: grad_gate is wanted without a residual");
    b.scale = scale_is_sum ? nullptr : row_wise(grad_scale, "grad_scale");
    b.gate = gate_is_sum ? nullptr : row_wise(grad_gate, "grad_gate");
    b.weight_sum = summed(0, grad_weight, true);
    b.shift_sum = summed(1, grad_shift, true);
    b.scale_sum = summed(2, grad_scale, scale_is_sum);
    b.gate_sum = summed(3, grad_gate, gate_is_sum);
    const Isa with = isa_of(isa);
    {
        pybind11::gil_scoped_release released;
        modulated_norm_backward(g, b, with);
    }
    if (b.weight_sum != nullptr) grad_weight.copy_(sums.slice(0, 0, 1));
    if (b.shift_sum != nullptr) grad_shift.copy_(sums.slice(0, 1, 2));
    if (b.scale_sum != nullptr) grad_scale.copy_(sums.slice(0, 2, 3));
    if (b.gate_sum != nullptr) grad_gate.copy_(sums.slice(0, 3, 4));
}

}  // namespace

void bind_modulated_norm(pybind11::module_& m) {
    namespace py = pybind11;
    m.def(
        "modulated_norm_forward", &forward, py::arg("x"), py::arg("weight"), py::arg("shift"), py::arg("scale"),
        py::arg("residual"), py::arg("gate"), py::arg("rms"), py::arg("eps"), py::arg("keep"), py::arg("isa") = ""
    );
    m.def(
        "modulated_norm_backward", &backward, py::arg("grad_y"), py::arg("grad_h"), py::arg("h"), py::arg("stats"),
        py::arg("weight"), py::arg("scale"), py::arg("residual"), py::arg("gate"), py::arg("rms"), py::arg("grad_x"),
        py::arg("grad_weight"), py::arg("grad_shift"), py::arg("grad_scale"), py::arg("grad_residual"),
        py::arg("grad_gate"), py::arg("isa") = ""
    );
}

}  // namespace enma
