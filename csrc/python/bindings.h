// Functions that give Python the operators and the engine; each file binds its own.
#pragma once

#include <pybind11/pybind11.h>

namespace enma {

namespace py = pybind11;
using py::arg;

// The function runs without the interpreter's lock.
using without_lock = py::call_guard<py::gil_scoped_release>;

void bind_codec(py::module_& m);
void bind_dynamics(py::module_& m);
void bind_field_network(py::module_& m);
void bind_flow_head(py::module_& m);
void bind_frame_attention(py::module_& m);
void bind_lattice_steps(py::module_& m);
void bind_philox_normal(py::module_& m);
void bind_point_attention(py::module_& m);
void bind_process(py::module_& m);
void bind_rms_norm(py::module_& m);
void bind_scattered(py::module_& m);
void bind_self_attention(py::module_& m);
void bind_swiglu(py::module_& m);
#ifdef ENMA_WITH_CUDA
void bind_flow_head_cuda(py::module_& m);
#endif

}  // namespace enma
