#include <ATen/ATen.h>
#include <torch/csrc/utils/pybind.h>

#include <string>

#include "core/cpu/dispatch.h"
#include "core/cpu/gemm.h"

namespace enma {

namespace {

using at::Tensor;

bool is_bf16(const Tensor& tensor, const char* name) {
    const auto type = tensor.scalar_type();
    TORCH_CHECK_VALUE(tensor.device().is_cpu(), "packed_linear: ", name, " is on ", tensor.device(), "; expected cpu");
    TORCH_CHECK_VALUE(type == at::kFloat || type == at::kBFloat16, "packed_linear: ", name, " is ", type,
                      "; expected float32 or bfloat16");
    return type == at::kBFloat16;
}

void check_size(int64_t n, int64_t k) {
    TORCH_CHECK_VALUE(n > 0 && k > 0 && n <= 1 << 20 && k <= 1 << 20, "packed_linear: weight has shape [", n, ", ", k,
                      "]; expected sizes of 1 to 2^20");
}

// weight [parts n, k] as `parts` packed matrices [n, k], one after the other.
Tensor pack(const Tensor& weight, const std::optional<Tensor>& bias, int64_t parts) {
    const bool bf16 = is_bf16(weight, "weight");
    TORCH_CHECK_VALUE(parts == 1 || parts == 2, "packed_linear: ", parts, " parts; expected 1 or 2");
    TORCH_CHECK_VALUE(weight.dim() == 2 && weight.size(0) % parts == 0 && weight.is_contiguous(),
                      "packed_linear: weight has shape ", weight.sizes(), "; expected a contiguous matrix");
    const int64_t n = weight.size(0) / parts, k = weight.size(1);
    check_size(n, k);
    if (bias) {
        TORCH_CHECK_VALUE(bias->scalar_type() == weight.scalar_type() && bias->device().is_cpu() &&
                              bias->dim() == 1 && bias->size(0) == weight.size(0) && bias->is_contiguous(),
                          "packed_linear: bias does not fit the weight");
    }
    const int64_t bytes = static_cast<int64_t>(packed_bytes(static_cast<int>(n), static_cast<int>(k), bf16));
    Tensor packed = at::empty({parts * bytes}, at::kByte);
    char* out = static_cast<char*>(packed.mutable_data_ptr());
    const int64_t size = weight.element_size();
    pybind11::gil_scoped_release release;
    for (int64_t i = 0; i < parts; ++i) {
        const void* biases = bias ? static_cast<const char*>(bias->const_data_ptr()) + i * n * size : nullptr;
        pack_linear(static_cast<const char*>(weight.const_data_ptr()) + i * n * k * size, k, biases,
                    static_cast<int>(n), static_cast<int>(k), bf16, out + i * bytes);
    }
    return packed;
}

Tensor run(const Tensor& x, const Tensor& packed, int64_t n, bool bf16, const std::string& activation, int64_t threads,
           const std::string& isa) {
    const bool x_bf16 = is_bf16(x, "x");
    TORCH_CHECK_VALUE(x.dim() == 2 && (x.size(1) == 1 || x.stride(1) == 1), "packed_linear: x has shape ", x.sizes(),
                      "; expected a matrix with contiguous rows");
    const int64_t k = x.size(1);
    check_size(n, k);
    TORCH_CHECK_VALUE(activation == "" || activation == "silu" || activation == "swiglu",
                      "packed_linear: activation is '", activation, "'; expected '', 'silu' or 'swiglu'");
    TORCH_CHECK_VALUE(threads > 0, "packed_linear: threads is ", threads, "; expected at least 1");
    const int64_t parts = activation == "swiglu" ? 2 : 1;
    const int64_t bytes = static_cast<int64_t>(packed_bytes(static_cast<int>(n), static_cast<int>(k), bf16));
    TORCH_CHECK_VALUE(packed.scalar_type() == at::kByte && packed.device().is_cpu() && packed.is_contiguous() &&
                          packed.dim() == 1 && packed.size(0) == parts * bytes,
                      "packed_linear: packed weights have ", packed.numel(), " bytes; expected ", parts * bytes);
    const Isa chosen = isa_by_name(isa);
    Tensor y = at::empty({x.size(0), n}, x.options());
    const char* weights = static_cast<const char*>(packed.const_data_ptr());
    LinearCall call;
    // Gate first, as in the weight.
    call.gate = view_linear(weights, static_cast<int>(n), static_cast<int>(k), bf16);
    call.weight = view_linear(weights + (parts - 1) * bytes, static_cast<int>(n), static_cast<int>(k), bf16);
    call.activation = activation == "silu" ? Activation::silu : parts == 2 ? Activation::swiglu : Activation::none;
    call.x = x.const_data_ptr();
    call.x_stride = x.stride(0);
    call.x_bf16 = x_bf16;
    call.y = y.mutable_data_ptr();
    call.y_stride = n;
    call.y_bf16 = x_bf16;
    call.rows = x.size(0);
    pybind11::gil_scoped_release release;
    linear(call, static_cast<int>(threads), chosen);
    return y;
}

}  // namespace

void bind_linear(pybind11::module_& m) {
    namespace py = pybind11;
    m.def("pack_linear", &pack, py::arg("weight"), py::arg("bias"), py::arg("parts"));
    m.def("packed_linear", &run, py::arg("x"), py::arg("packed"), py::arg("n"), py::arg("bf16"), py::arg("activation"),
          py::arg("threads"), py::arg("isa") = "");
}

}  // namespace enma
