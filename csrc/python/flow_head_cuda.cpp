// Binding of the flow head's CUDA kernels; nothing where the extension is built without CUDA. The caller makes the device
// current.
#ifdef ENMA_WITH_CUDA

#include <array>

#include "core/cuda/flow_head.h"
#include "python/bindings.h"
#include "python/tensor.h"

namespace enma {
namespace flow_head_cuda_binding {

constexpr char OP[] = "flow_head";

FlowHeadGroup group_named(const std::string& name) {
    if (name == "best") return FlowHeadGroup::best;
    if (name == "remote") return FlowHeadGroup::remote;
    if (name == "cluster") return FlowHeadGroup::cluster;
    expect(name == "counter", OP, ": group is '", name, "'; expected best, remote, cluster or counter");
    return FlowHeadGroup::counter;
}

// Rows, channels, condition width, width, blocks, evaluations, moves per step.
FlowHeadSizes sizes_of(const std::array<std::int64_t, 7>& n) { return {n[0], n[1], n[2], n[3], n[4], n[5], n[6]}; }

// Empty: these sizes can run on this device.
std::string flow_head_cuda_problem(const std::array<std::int64_t, 7>& sizes, const std::string& group) {
    FlowHeadGeometry geometry;
    const char* problem = plan_flow_head_cuda(sizes_of(sizes), group_named(group), geometry);
    return problem == nullptr ? "" : problem;
}

const void* data_of(const Tensor& x, const char* name, Dtype dtype, std::int64_t count, const Tensor& noise) {
    expect(x.is_cuda() && x.device_id() == noise.device_id(), OP, ": ", name, " is on ", x.device(), "; expected ",
           noise.device());
    expect(x.dtype() == dtype, OP, ": ", name, " is ", x.dtype(), "; expected ", dtype);
    expect(x.is_contiguous(), OP, ": ", name, " is not contiguous");
    expect(x.numel() == count, OP, ": ", name, " has ", x.numel(), " elements; expected ", count);
    return x.data();
}

Tensor flow_head_cuda(const Tensor& c, const Tensor& noise, const std::vector<Tensor>& packed,
                      const std::array<std::int64_t, 7>& numbers, const std::string& group) {
    const FlowHeadSizes s = sizes_of(numbers);
    expect(noise.is_cuda(), OP, ": noise is on ", noise.device(), "; expected a CUDA device");
    const char* problem = flow_head_problem(s);
    expect(problem == nullptr, OP, ": ", problem == nullptr ? "" : problem);
    const void* const conditions = data_of(c, "c", Dtype::bfloat16, s.rows * s.condition_width, noise);
    // Rows of c are read 16 bytes at a time; a view may begin anywhere.
    expect(reinterpret_cast<std::uintptr_t>(conditions) % 16 == 0, OP, ": c is not aligned to 16 bytes");
    const void* const from = data_of(noise, "noise", Dtype::float32, s.rows * s.channels, noise);

    struct Part {
        const char* name;
        Dtype dtype;
        std::int64_t count;
    };
    const std::array<Part, 12> parts{{
        {"condition weight", Dtype::bfloat16, s.width * s.condition_padded()},
        {"condition bias", Dtype::float32, s.width},
        {"time", Dtype::float32, s.evaluations * s.width},
        {"modulation weight", Dtype::bfloat16, s.modulations() * s.width},
        {"modulation bias", Dtype::float32, s.modulations()},
        {"inward weight", Dtype::bfloat16, s.width * 16 * s.inward_steps()},
        {"inward bias", Dtype::float32, s.width},
        {"block weights", Dtype::bfloat16, 2 * s.blocks * s.width * s.width},
        {"block biases", Dtype::float32, 2 * s.blocks * s.width},
        {"outward weight", Dtype::bfloat16, 8 * s.outward_tiles() * s.width},
        {"outward bias", Dtype::float32, 8 * s.outward_tiles()},
        {"moves", Dtype::float32, s.evaluations},
    }};
    expect(packed.size() == parts.size(), OP, ": ", packed.size(), " packed tensors; expected 12");
    const auto bytes = [&](std::size_t i) {
        return data_of(packed[i], parts[i].name, parts[i].dtype, parts[i].count, noise);
    };
    const auto floats = [&](std::size_t i) { return static_cast<const float*>(bytes(i)); };
    const FlowHeadWeights weights{bytes(0),  floats(1), floats(2), bytes(3), floats(4),  bytes(5),
                                  floats(6), bytes(7),  floats(8), bytes(9), floats(10), floats(11)};

    Tensor out = Tensor::empty({s.rows, s.channels}, Dtype::float32, noise);
    if (s.rows == 0) return out;
    FlowHeadGeometry geometry;
    problem = plan_flow_head_cuda(s, group_named(group), geometry);
    expect(problem == nullptr, OP, ": ", problem == nullptr ? "" : problem);
    const Tensor scratch = Tensor::empty({flow_head_cuda_scratch(s, geometry)}, Dtype::uint8, noise);
    problem = launch_flow_head_cuda(s, weights, geometry, conditions, static_cast<const float*>(from),
                                    out.data<float>(), scratch.data(), noise.stream());
    if (problem != nullptr) throw std::runtime_error(text(OP, ": ", problem));
    return out;
}

}  // namespace flow_head_cuda_binding

void bind_flow_head_cuda(py::module_& m) {
    using namespace flow_head_cuda_binding;
    m.def("flow_head_cuda_problem", &flow_head_cuda_problem, without_lock());
    m.def("flow_head_cuda", &flow_head_cuda, without_lock());
}

}  // namespace enma

#endif
