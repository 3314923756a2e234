#include "python/tensor.h"

#include <functional>
#include <numeric>

namespace enma {

namespace py = pybind11;

namespace {

struct Torch {
    py::object type;
    const ExchangeApi* api;
};

// PyTorch's type of tensors and its table, found once. Never destroyed: results may outlive the module.
const Torch& torch() {
    static const Torch& found = *[] {
        py::object type = py::module_::import("torch").attr("Tensor");
        const py::capsule capsule = type.attr("__dlpack_c_exchange_api__");
        const auto* api = capsule.get_pointer<const ExchangeApi>();
        while (api != nullptr && api->version.major != 1) api = api->previous;
        if (api == nullptr) throw std::runtime_error("this PyTorch exchanges tensors by another DLPack than 1.x");
        return new Torch{std::move(type), api};
    }();
    return found;
}

constexpr DLDataType types[] = {{kDLFloat, 32, 1}, {kDLFloat, 64, 1}, {4, 16, 1},
                                {kDLInt, 64, 1},   {6, 8, 1},         {kDLUInt, 8, 1}};
constexpr const char* names[] = {"float32", "float64", "bfloat16", "int64", "bool", "uint8", "another type"};

}  // namespace

std::ostream& operator<<(std::ostream& out, Dtype dtype) { return out << names[static_cast<int>(dtype)]; }

std::ostream& operator<<(std::ostream& out, Extents extents) {
    out << '[';
    for (int i = 0; i < extents.count; ++i) out << (i == 0 ? "" : ", ") << extents.values[i];
    return out << ']';
}

std::string Tensor::device() const {
    if (is_cpu()) return "cpu";
    return is_cuda() ? text("cuda:", device_id()) : "another device";
}

bool Tensor::is_one(py::handle object) {
    return object && PyObject_TypeCheck(object.ptr(), reinterpret_cast<PyTypeObject*>(torch().type.ptr()));
}

Tensor Tensor::of(py::handle object) {
    Tensor out;
    const bool failed = torch().api->from_python(object.ptr(), &out.view_) != 0;
    if (failed) PyErr_Clear();
    // Without memory, as a meta tensor, or of a type that DLPack has not: of no device, which every check refuses by name.
    if (failed || (out.view_.data == nullptr && out.numel() > 0)) out.view_ = {};
    return out;
}

Tensor Tensor::empty(const std::vector<std::int64_t>& shape, Dtype dtype, const Tensor& like) {
    DLTensor asked{};
    asked.device = like.view_.device;
    asked.ndim = static_cast<std::int32_t>(shape.size());
    asked.dtype = types[static_cast<int>(dtype)];
    asked.shape = const_cast<std::int64_t*>(shape.data());
    ManagedTensor* made = nullptr;
    std::string problem;
    const auto failed = [](void* to, const char*, const char* message) { *static_cast<std::string*>(to) = message; };
    if (torch().api->allocate(&asked, &made, &problem, failed) != 0) throw std::runtime_error(problem);
    Tensor out;
    out.made_.reset(made);
    out.view_ = made->tensor;
    return out;
}

py::object Tensor::release() {
    void* object = nullptr;
    if (torch().api->to_python(made_.get(), &object) != 0) throw py::error_already_set();
    made_.release();
    return py::reinterpret_steal<py::object>(static_cast<PyObject*>(object));
}

std::int64_t Tensor::stride(int axis) const {
    axis = axis < 0 ? axis + dim() : axis;
    if (view_.strides != nullptr) return view_.strides[axis];
    return std::accumulate(view_.shape + axis + 1, view_.shape + dim(), std::int64_t{1}, std::multiplies<>());
}

std::int64_t Tensor::numel() const {
    return std::accumulate(view_.shape, view_.shape + dim(), std::int64_t{1}, std::multiplies<>());
}

Dtype Tensor::dtype() const {
    const DLDataType own = view_.dtype;
    for (int i = 0; i < static_cast<int>(Dtype::other); ++i) {
        if (types[i].code == own.code && types[i].bits == own.bits && own.lanes == 1) return static_cast<Dtype>(i);
    }
    return Dtype::other;
}

bool Tensor::is_contiguous() const {
    std::int64_t expected = 1;
    for (int i = dim() - 1; i >= 0; --i) {
        if (size(i) == 0) return true;
        if (size(i) != 1 && stride(i) != expected) return numel() == 0;
        expected *= size(i);
    }
    return true;
}

bool Tensor::has_shape(const std::vector<std::int64_t>& shape) const {
    return std::equal(shape.begin(), shape.end(), view_.shape, view_.shape + dim());
}

void* Tensor::stream() const {
    void* found = nullptr;
    if (torch().api->current_stream(view_.device.device_type, view_.device.device_id, &found) != 0) {
        throw py::error_already_set();
    }
    return found;
}

void* checked(const char* op, const Tensor& x, const char* name, const std::vector<std::int64_t>& shape, Dtype dtype) {
    expect(x.is_cpu(), op, ": ", name, " is on ", x.device(), "; expected the CPU");
    expect(x.dtype() == dtype, op, ": ", name, " is ", x.dtype(), "; expected ", dtype);
    expect(x.has_shape(shape), op, ": ", name, " has shape ", x.sizes(), "; expected ",
           Extents{shape.data(), static_cast<int>(shape.size())});
    expect(x.is_contiguous(), op, ": ", name, " is not contiguous");
    return x.data();
}

NumberFormat checked_format(const char* op, const Tensor& x, const char* name) {
    expect(x.dtype() == Dtype::float32 || x.dtype() == Dtype::bfloat16, op, ": ", name, " is ", x.dtype(),
           "; expected float32 or bfloat16");
    return x.dtype() == Dtype::bfloat16 ? NumberFormat::bf16 : NumberFormat::fp32;
}

Isa isa_of(const char* op, const std::string& name) {
    try {
        return isa_by_name(name);
    } catch (const std::invalid_argument& error) {
        throw std::invalid_argument(text(op, ": ", error.what()));
    }
}

}  // namespace enma
