// What tells whether a weight of a module has been changed or replaced; `weights_key` in enma_fast/models/layers.py.

#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>

#include <cstdint>
#include <cstring>
#include <vector>

namespace enma {

namespace {

namespace py = pybind11;

std::int64_t bits(double x) {
    std::int64_t out;
    std::memcpy(&out, &x, sizeof out);
    return out;
}

// Names of attributes, made once: a forecast asks for a few hundred.
struct Names {
    py::object modules = py::reinterpret_steal<py::object>(PyUnicode_InternFromString("_modules"));
    py::object parameters = py::reinterpret_steal<py::object>(PyUnicode_InternFromString("_parameters"));
};

// Address and number of changes of every parameter. The sum stands for the number where PyTorch does not count.
py::bytes weights_key(const py::object& module) {
    static const Names* const names = new Names;
    std::vector<std::int64_t> key;
    std::vector<py::object> left{module};
    while (!left.empty()) {
        const py::object part = std::move(left.back());
        left.pop_back();
        if (part.is_none()) continue;
        const py::dict modules = py::getattr(part, names->modules), parameters = py::getattr(part, names->parameters);
        for (const auto& [name, child] : modules) left.push_back(py::reinterpret_borrow<py::object>(child));
        for (const auto& [name, parameter] : parameters) {
            if (parameter.is_none()) continue;
            const at::Tensor& p = THPVariable_Unpack(parameter.ptr());
            key.push_back(reinterpret_cast<std::intptr_t>(p.data_ptr()));
            key.push_back(p.is_inference() ? bits(p.to(at::kDouble).sum().item<double>()) : p._version());
        }
    }
    return {reinterpret_cast<const char*>(key.data()), key.size() * sizeof key[0]};
}

}  // namespace

void bind_weights_key(py::module_& m) {
    m.def("weights_key", &weights_key, py::arg("module"), "A key that differs after a weight has been changed.");
}

}  // namespace enma
