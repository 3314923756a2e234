// Tensors of PyTorch as arguments and results, without a header of PyTorch: pointer, shape, strides and format.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <ostream>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/cpu/dispatch.h"
#include "core/number_format.h"
#include "python/exchange.h"
#include "core/error.h"

namespace enma {

// Throws std::invalid_argument, Python's ValueError, of the parts as one text.
template <class... Parts>
void expect(bool holds, const Parts&... parts) {
    if (!holds) throw std::invalid_argument(text(parts...));
}

enum class Dtype { float32, float64, bfloat16, int64, boolean, uint8, other };
std::ostream& operator<<(std::ostream& out, Dtype dtype);

// Sizes, [2, 3] as text.
struct Extents {
    const std::int64_t* values;
    int count;

    bool operator==(const Extents& other) const {
        return std::equal(values, values + count, other.values, other.values + other.count);
    }
};
std::ostream& operator<<(std::ostream& out, Extents extents);

class Tensor {
   public:
    // For arguments, which fill it.
    Tensor() = default;
    // A new one, contiguous, whose values are not set; on the device of `like`.
    static Tensor empty(const std::vector<std::int64_t>& shape, Dtype dtype, const Tensor& like);
    // One that Python holds. Throws pybind11::error_already_set.
    static Tensor of(pybind11::handle object);
    // True for a tensor of PyTorch.
    static bool is_one(pybind11::handle object);
    // To Python, which has it then. Only of `empty`, and once.
    pybind11::object release();

    int dim() const { return view_.ndim; }
    // Axes from the last one are counted by -1 and so on.
    std::int64_t size(int axis) const { return view_.shape[axis < 0 ? axis + dim() : axis]; }
    std::int64_t stride(int axis) const;
    Extents sizes() const { return {view_.shape, dim()}; }
    std::int64_t numel() const;
    Dtype dtype() const;
    bool is_cpu() const { return view_.device.device_type == kDLCPU; }
    bool is_cuda() const { return view_.device.device_type == kDLCUDA; }
    // "cpu", "cuda:0".
    std::string device() const;
    int device_id() const { return view_.device.device_id; }
    bool is_contiguous() const;
    void* data() const { return static_cast<char*>(view_.data) + view_.byte_offset; }
    template <class T>
    T* data() const {
        return static_cast<T*>(data());
    }
    const DLTensor& view() const { return view_; }
    // True if the shape is this one.
    bool has_shape(const std::vector<std::int64_t>& shape) const;
    // PyTorch's stream on the tensor's device.
    void* stream() const;

   private:
    struct Free {
        void operator()(ManagedTensor* tensor) const { tensor->deleter(tensor); }
    };
    DLTensor view_{};
    std::unique_ptr<ManagedTensor, Free> made_;
};

// Contiguous memory of a tensor on the CPU, after checks that name operator and argument.
void* checked(const char* op, const Tensor& x, const char* name, const std::vector<std::int64_t>& shape, Dtype dtype);

// fp32 or bf16; another type is refused.
NumberFormat checked_format(const char* op, const Tensor& x, const char* name);

// An instruction set by name, none is the best one; ValueError, which begins with the operator, for another.
Isa isa_of(const char* op, const std::string& name);

}  // namespace enma

namespace pybind11::detail {

template <>
struct type_caster<enma::Tensor> {
    PYBIND11_TYPE_CASTER(enma::Tensor, const_name("torch.Tensor"));

    bool load(handle source, bool) {
        if (!enma::Tensor::is_one(source)) return false;
        value = enma::Tensor::of(source);
        return true;
    }

    static handle cast(enma::Tensor&& tensor, return_value_policy, handle) { return tensor.release().release(); }
};

}  // namespace pybind11::detail
