// What belongs to the process: instruction sets, subnormal numbers, and keys of weights.
#include <cstring>

#include "core/cpu/parallel.h"
#include "core/cpu/subnormals.h"
#include "python/bindings.h"
#include "python/tensor.h"

namespace enma {

namespace process_binding {

// An attribute that a module keeps in its own dictionary; borrowed.
PyObject* own_dict(py::handle module, PyObject* name) {
    const auto attributes = py::reinterpret_steal<py::object>(PyObject_GenericGetDict(module.ptr(), nullptr));
    PyObject* const found = attributes ? PyDict_GetItemWithError(attributes.ptr(), name) : nullptr;
    if (found == nullptr || !PyDict_Check(found)) throw py::type_error("weights_key: not a module of PyTorch");
    return found;
}

// Address and number of changes of every parameter and buffer. The sum stands for the number where PyTorch does not count.
py::bytes weights_key(const py::object& module) {
    // A forecast asks for a few hundred: names are made once, and PyTorch's descriptors are called without a look-up.
    static PyObject* const modules = PyUnicode_InternFromString("_modules");
    static PyObject* const kinds[] = {PyUnicode_InternFromString("_parameters"),
                                      PyUnicode_InternFromString("_buffers")};
    const auto descriptor = [](const char* name) {
        return py::object(py::module_::import("torch").attr("Tensor").attr(name)).release().ptr();
    };
    static const auto* const version = reinterpret_cast<PyGetSetDescrObject*>(descriptor("_version"));
    static const auto* const address = reinterpret_cast<PyMethodDescrObject*>(descriptor("data_ptr"));
    std::vector<std::int64_t> key;
    std::vector<PyObject*> left{module.ptr()};
    while (!left.empty()) {
        PyObject* const part = left.back();
        left.pop_back();
        if (part == Py_None) continue;
        PyObject *name, *entry;
        for (Py_ssize_t at = 0; PyDict_Next(own_dict(part, modules), &at, &name, &entry);) left.push_back(entry);
        for (PyObject* const kind : kinds)
            for (Py_ssize_t at = 0; PyDict_Next(own_dict(part, kind), &at, &name, &entry);) {
                if (entry == Py_None) continue;
                if (!Tensor::is_one(entry)) throw py::type_error("weights_key: a weight is no tensor");
                const auto place = py::reinterpret_steal<py::object>(address->d_method->ml_meth(entry, nullptr));
                if (!place) PyErr_Clear();
                key.push_back(place ? static_cast<std::int64_t>(PyLong_AsUnsignedLongLong(place.ptr())) : 0);
                const auto number =
                    py::reinterpret_steal<py::object>(version->d_getset->get(entry, version->d_getset->closure));
                if (number) {
                    key.push_back(PyLong_AsLongLong(number.ptr()));
                } else {
                    PyErr_Clear();
                    const double sum = py::handle(entry).attr("double")().attr("sum")().attr("item")().cast<double>();
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
