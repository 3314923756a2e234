// Numbers nearer to zero than 2^-126: kept, or taken for zero, by every thread that PyTorch computes with.

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <torch/csrc/utils/pybind.h>

namespace enma {

namespace {

// torch.set_flush_denormal is for the calling thread alone; the others of its pool keep what they had at their start.
void flush_subnormals(bool flush) {
#pragma omp parallel num_threads(at::get_num_threads())
    at::globalContext().setFlushDenormal(flush);
}

}  // namespace

void bind_subnormals(pybind11::module_& m) {
    m.def("flush_subnormals", &flush_subnormals, pybind11::arg("flush"),
          "Take subnormal numbers for zero, or keep them, in this thread and those that compute for it.");
}

}  // namespace enma
