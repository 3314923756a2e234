// The extension module enma_fast._C.
#include "python/bindings.h"
#include "core/error.h"

PYBIND11_MODULE(_C, m) {
    using namespace enma;
    py::register_exception_translator([](std::exception_ptr thrown) {
        try {
            if (thrown) std::rethrow_exception(thrown);
        } catch (const Error& error) {
            PyObject* const type = error.status() == ENMA_NO_MEMORY  ? PyExc_MemoryError
                                   : error.status() == ENMA_INTERNAL ? PyExc_RuntimeError
                                                                     : PyExc_ValueError;
            py::set_error(type, error.what());
        }
    });
    bind_process(m);
    bind_field_network(m);
    bind_flow_head(m);
    bind_frame_attention(m);
    bind_lattice_steps(m);
    bind_philox_normal(m);
    bind_point_attention(m);
    bind_rms_norm(m);
    bind_self_attention(m);
    bind_swiglu(m);
    bind_scattered(m);
    bind_codec(m);
    bind_dynamics(m);
#ifdef ENMA_WITH_CUDA
    bind_flow_head_cuda(m);
#endif
}
