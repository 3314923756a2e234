// The extension module enma_fast._C: each operator's bindings are beside this file.

#include <torch/csrc/utils/pybind.h>

namespace enma {

void bind_flow_head(pybind11::module_& m);
void bind_frame_attention(pybind11::module_& m);
void bind_philox_normal(pybind11::module_& m);
void bind_point_attention(pybind11::module_& m);
void bind_rms_norm(pybind11::module_& m);
void bind_sampler(pybind11::module_& m);
void bind_self_attention(pybind11::module_& m);
void bind_subnormals(pybind11::module_& m);
void bind_swiglu(pybind11::module_& m);
void bind_tokenizer(pybind11::module_& m);
#ifdef ENMA_WITH_CUDA
void bind_flow_head_cuda(pybind11::module_& m);
#endif

}  // namespace enma

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
    enma::bind_flow_head(m);
    enma::bind_frame_attention(m);
    enma::bind_philox_normal(m);
    enma::bind_point_attention(m);
    enma::bind_rms_norm(m);
    enma::bind_sampler(m);
    enma::bind_self_attention(m);
    enma::bind_subnormals(m);
    enma::bind_swiglu(m);
    enma::bind_tokenizer(m);
#ifdef ENMA_WITH_CUDA
    enma::bind_flow_head_cuda(m);
#endif
}
