// What belongs to the process: instruction sets, subnormal numbers, and keys of weights.
#include <cstring>

#include "core/cpu/parallel.h"
#include "core/cpu/subnormals.h"
#include "python/bindings.h"
#include "python/tensor.h"

namespace enma {

namespace process_binding {

// Address and number of changes of every parameter. The sum stands for the number where PyTorch does not count.
py::bytes weights_key(const py::object& module) {
    // Names of attributes, made once: a forecast asks for a few hundred.
    static const PyObject* const names[] = {PyUnicode_InternFromString("_modules"),
                                            PyUnicode_InternFromString("_parameters"),
                                            PyUnicode_InternFromString("_version")};
    const auto get = [](py::handle object, int name) {
        return py::reinterpret_steal<py::object>(PyObject_GetAttr(object.ptr(), const_cast<PyObject*>(names[name])));
    };
    std::vector<std::int64_t> key;
    std::vector<py::object> left{module};
    while (!left.empty()) {
        const py::object part = std::move(left.back());
        left.pop_back();
        if (part.is_none()) continue;
        const py::dict modules = get(part, 0), parameters = get(part, 1);
        for (const auto& [name, child] : modules) left.push_back(py::reinterpret_borrow<py::object>(child));
        for (const auto& [name, parameter] : parameters) {
            if (parameter.is_none()) continue;
            key.push_back(reinterpret_cast<std::intptr_t>(Tensor::of(parameter).data()));
            if (const py::object version = get(parameter, 2)) {
                key.push_back(version.cast<std::int64_t>());
            } else {
                PyErr_Clear();
                const double sum = parameter.attr("double")().attr("sum")().attr("item")().cast<double>();
                std::memcpy(&key.emplace_back(), &sum, sizeof sum);
            }
        }
    }
    return {reinterpret_cast<const char*>(key.data()), key.size() * sizeof key[0]};
}

}  // namespace process_binding

void bind_process(py::module_& m) {
    using namespace process_binding;
    m.def("cpu_isa", [] { return isa_name(best_isa()); }, "The instruction set that the kernels use here.");
    m.def("cpu_isas", &supported_isas, "Every instruction set that can run here.");
    m.def(
        "flush_subnormals",
        [](bool flush, int threads) { parallel(threads, [&](int, int) { flush_subnormals(flush); }); }, arg("flush"),
        arg("threads"), "Take subnormal numbers for zero, or keep them, in this thread and those that compute for it.",
        without_lock());
    m.def("weights_key", &weights_key, arg("module"), "A key that differs after a weight has been changed.");
}

}  // namespace enma
