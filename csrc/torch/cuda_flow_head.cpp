// Binding of the flow head's CUDA kernels; nothing where the extension is built without CUDA.
#ifdef ENMA_WITH_CUDA

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/csrc/utils/pybind.h>

#include <array>
#include <string>
#include <vector>

#include "core/cuda/flow_head.h"

namespace enma {
namespace {

FlowHeadGroup group_named(const std::string& name) {
    if (name == "best") return FlowHeadGroup::best;
    if (name == "remote") return FlowHeadGroup::remote;
    if (name == "cluster") return FlowHeadGroup::cluster;
    TORCH_CHECK_VALUE(name == "counter", "flow_head: group is '", name, "'; expected best, remote, cluster or counter");
    return FlowHeadGroup::counter;
}

// Rows, channels, condition width, width, blocks, evaluations, moves per step.
FlowHeadSizes sizes_of(const std::array<int64_t, 7>& n) { return {n[0], n[1], n[2], n[3], n[4], n[5], n[6]}; }

// Empty: these sizes can run on this device.
std::string flow_head_cuda_problem(int64_t device, const std::array<int64_t, 7>& sizes, const std::string& group) {
    const c10::cuda::CUDAGuard guard(static_cast<c10::DeviceIndex>(device));
    FlowHeadGeometry geometry;
    const char* problem = plan_flow_head_cuda(sizes_of(sizes), group_named(group), geometry);
    return problem == nullptr ? "" : problem;
}

void check(const at::Tensor& tensor, const char* name, at::ScalarType dtype, int64_t count, const at::Device& device) {
    TORCH_CHECK_VALUE(tensor.device() == device, "flow_head: ", name, " is on ", tensor.device(), "; expected ",
                      device);
    TORCH_CHECK_VALUE(tensor.scalar_type() == dtype, "flow_head: ", name, " is ", tensor.scalar_type());
    TORCH_CHECK_VALUE(tensor.is_contiguous(), "flow_head: ", name, " is not contiguous");
    TORCH_CHECK_VALUE(tensor.numel() == count, "flow_head: ", name, " has ", tensor.numel(), " elements; expected ",
                      count);
}

at::Tensor flow_head_cuda(const at::Tensor& c, const at::Tensor& noise, const std::vector<at::Tensor>& packed,
                          const std::array<int64_t, 7>& numbers, const std::string& group) {
    const FlowHeadSizes s = sizes_of(numbers);
    TORCH_CHECK_VALUE(noise.is_cuda(), "flow_head: noise is on ", noise.device(), "; expected a CUDA device");
    const at::Device device = noise.device();
    const char* problem = flow_head_problem(s);
    TORCH_CHECK_VALUE(problem == nullptr, "flow_head: ", problem);
    check(c, "c", at::kBFloat16, s.rows * s.condition_width, device);
    check(noise, "noise", at::kFloat, s.rows * s.channels, device);

    struct Part {
        const char* name;
        at::ScalarType dtype;
        int64_t count;
    };
    const std::array<Part, 12> parts{{
        {"condition weight", at::kBFloat16, s.width * s.condition_padded()},
        {"condition bias", at::kFloat, s.width},
        {"time", at::kFloat, s.evaluations * s.width},
        {"modulation weight", at::kBFloat16, s.modulations() * s.width},
        {"modulation bias", at::kFloat, s.modulations()},
        {"inward weight", at::kBFloat16, s.width * 16 * s.inward_steps()},
        {"inward bias", at::kFloat, s.width},
        {"block weights", at::kBFloat16, 2 * s.blocks * s.width * s.width},
        {"block biases", at::kFloat, 2 * s.blocks * s.width},
        {"outward weight", at::kBFloat16, 8 * s.outward_tiles() * s.width},
        {"outward bias", at::kFloat, 8 * s.outward_tiles()},
        {"moves", at::kFloat, s.evaluations},
    }};
    TORCH_CHECK_VALUE(packed.size() == parts.size(), "flow_head: ", packed.size(), " packed tensors; expected 12");
    for (size_t i = 0; i < parts.size(); ++i) check(packed[i], parts[i].name, parts[i].dtype, parts[i].count, device);

    const auto floats = [&](size_t i) { return packed[i].const_data_ptr<float>(); };
    const auto bytes = [&](size_t i) { return packed[i].const_data_ptr(); };
    const FlowHeadWeights weights{bytes(0),  floats(1), floats(2), bytes(3), floats(4),  bytes(5),
                                  floats(6), bytes(7),  floats(8), bytes(9), floats(10), floats(11)};

    const c10::cuda::CUDAGuard guard(device);
    at::Tensor out = at::empty_like(noise);
    if (s.rows == 0) return out;
    FlowHeadGeometry geometry;
    problem = plan_flow_head_cuda(s, group_named(group), geometry);
    TORCH_CHECK_VALUE(problem == nullptr, "flow_head: ", problem);
    const at::Tensor scratch = at::empty({flow_head_cuda_scratch(s, geometry)}, noise.options().dtype(at::kByte));
    // Rows of c are read 16 bytes at a time; a view may begin anywhere.
    const bool aligned = reinterpret_cast<uintptr_t>(c.const_data_ptr()) % 16 == 0;
    const at::Tensor conditions = aligned ? c : c.clone();
    void* stream = c10::cuda::getCurrentCUDAStream().stream();
    problem = launch_flow_head_cuda(s, weights, geometry, conditions.const_data_ptr(), noise.const_data_ptr<float>(),
                                    out.mutable_data_ptr<float>(), scratch.mutable_data_ptr(), stream);
    TORCH_CHECK(problem == nullptr, "flow_head: ", problem);
    return out;
}

}  // namespace

void bind_flow_head_cuda(pybind11::module_& m) {
    const auto release = pybind11::call_guard<pybind11::gil_scoped_release>();
    m.def("flow_head_cuda_problem", &flow_head_cuda_problem, release);
    m.def("flow_head_cuda", &flow_head_cuda, release);
}

}  // namespace enma

#endif
