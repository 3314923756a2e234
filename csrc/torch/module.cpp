// The extension module enma_fast._C: the Python definitions of operators.h; files with classes bring their own.
//
// All files of this folder but those of CUDA are compiled as this one, at its end: apart they take 66 s of a core, of
// which Torch's headers are 47 s.

#include <torch/csrc/utils/pybind.h>

#include "operators.h"

namespace enma {

void bind_flow_head(pybind11::module_& m);
void bind_sampler(pybind11::module_& m);
void bind_tokenizer(pybind11::module_& m);
void bind_weights_key(pybind11::module_& m);
#ifdef ENMA_WITH_CUDA
void bind_flow_head_cuda(pybind11::module_& m);
#endif

namespace {

void bind_operators(pybind11::module_& m) {
    using pybind11::arg;
    const auto release = pybind11::call_guard<pybind11::gil_scoped_release>();
    m.def("analyse", &analyse, arg("mean"), arg("deviation"), arg("correlation"), arg("grid"), arg("lengths"),
          arg("periodic"), arg("values"), arg("points"), arg("rows"), arg("shared"), arg("errors"), arg("seed"),
          arg("draws"), arg("step"), release);
    m.def("frame_attention", &frame_attention, arg("q"), arg("k"), arg("v"), arg("cache_k"), arg("cache_v"),
          arg("prefix_k"), arg("prefix_v"), arg("length"), arg("prefix_length"), arg("isa") = "", release);
    m.def("philox_normal", &philox_normal, arg("seed"), arg("members"), arg("frame"), arg("mask_step"), arg("tokens"),
          arg("out"), release);
    m.def("point_attention_forward", &point_attention_forward, release);
    m.def("point_attention_backward", &point_attention_backward, release);
    m.def("rms_norm_forward", &rms_norm_forward, arg("x"), arg("weight"), arg("residual"), arg("eps"), arg("keep"),
          arg("isa") = "", release);
    m.def("rms_norm_backward", &rms_norm_backward, arg("grad_y"), arg("grad_h"), arg("x"), arg("rstd"), arg("weight"),
          arg("want_x"), arg("want_weight"), arg("isa") = "", release);
    m.def("self_attention_forward", &self_attention_forward, arg("qkv"), arg("q_weight"), arg("k_weight"),
          arg("cosines"), arg("sines"), arg("past_keys"), arg("past_values"), arg("frame"), arg("eps"), arg("keep"),
          arg("isa") = "", release);
    m.def("self_attention_backward", &self_attention_backward, arg("grad_out"), arg("grad_keys"), arg("grad_values"),
          arg("out"), arg("lse"), arg("qkv"), arg("q_weight"), arg("k_weight"), arg("cosines"), arg("sines"),
          arg("past_keys"), arg("past_values"), arg("frame"), arg("eps"), arg("isa") = "", release);
    m.def("flush_subnormals", &flush_subnormals, arg("flush"),
          "Take subnormal numbers for zero, or keep them, in this thread and those that compute for it.");
    m.def("swiglu_forward", &swiglu_forward, arg("x"), arg("isa") = "", release);
    m.def("swiglu_backward", &swiglu_backward, arg("grad_y"), arg("x"), arg("isa") = "", release);
}

}  // namespace

}  // namespace enma

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
    enma::bind_operators(m);
    enma::bind_flow_head(m);
    enma::bind_sampler(m);
    enma::bind_tokenizer(m);
    enma::bind_weights_key(m);
#ifdef ENMA_WITH_CUDA
    enma::bind_flow_head_cuda(m);
#endif
}

#include "analysis.cpp"
#include "flow_head.cpp"
#include "frame_attention.cpp"
#include "philox_normal.cpp"
#include "point_attention.cpp"
#include "rms_norm.cpp"
#include "sampler.cpp"
#include "self_attention.cpp"
#include "subnormals.cpp"
#include "swiglu.cpp"
#include "tokenizer.cpp"
#include "weights_key.cpp"
