#include "core/cpu/flow_head.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty_like.h>
#include <torch/csrc/utils/pybind.h>

#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "core/cpu/dispatch.h"

namespace enma {

namespace {

using at::Tensor;

// Checks one weight and returns its memory.
const void* data_of(const Tensor& tensor, const char* name, const Tensor& like, std::vector<int64_t> shape) {
    TORCH_CHECK_VALUE(tensor.device().is_cpu(), "flow_head: ", name, " is on ", tensor.device(), "; expected cpu");
    TORCH_CHECK_VALUE(tensor.scalar_type() == like.scalar_type(), "flow_head: ", name, " is ", tensor.scalar_type(),
                      "; expected ", like.scalar_type());
    TORCH_CHECK_VALUE(tensor.sizes() == c10::IntArrayRef(shape), "flow_head: ", name, " has shape ", tensor.sizes(),
                      "; expected ", c10::IntArrayRef(shape));
    TORCH_CHECK_VALUE(tensor.is_contiguous(), "flow_head: ", name, " is not contiguous");
    return tensor.const_data_ptr();
}

// `tensors`: condition, inward, (modulation, up, down) of each block, modulation, outward, each weight then bias.
std::unique_ptr<FlowHead> make_flow_head(const std::vector<Tensor>& tensors, const Tensor& time,
                                         std::vector<float> moves, int moves_per_step) {
    TORCH_CHECK_VALUE(tensors.size() >= 8 && (tensors.size() - 8) % 6 == 0, "flow_head: ", tensors.size(),
                      " weights; expected 8 and 6 for each block");
    const Tensor& like = tensors[0];
    const auto type = like.scalar_type();
    TORCH_CHECK_VALUE(type == at::kFloat || type == at::kBFloat16, "flow_head: weights are ", type,
                      "; expected float32 or bfloat16");
    TORCH_CHECK_VALUE(like.dim() == 2 && tensors[2].dim() == 2, "flow_head: weights are not matrices");
    const int64_t w = like.size(0), d = like.size(1), c = tensors[2].size(1);
    TORCH_CHECK_VALUE(w > 0 && d > 0 && c > 0 && std::max({w, d, c}) <= 1 << 20, "flow_head: widths are ", w, ", ", d,
                      " and ", c, "; expected 1 to 2^20");
    TORCH_CHECK_VALUE(moves_per_step > 0 && moves.size() < 1u << 20, "flow_head: the schedule is not valid");
    FlowHeadWeights weights;
    weights.channels = static_cast<int>(c);
    weights.condition_width = static_cast<int>(d);
    weights.width = static_cast<int>(w);
    weights.evaluations = static_cast<int>(moves.size());
    weights.moves_per_step = moves_per_step;
    weights.bf16 = type == at::kBFloat16;
    std::size_t next = 0;
    const auto take = [&](const char* name, std::vector<int64_t> shape) {
        return data_of(tensors[next++], name, like, std::move(shape));
    };
    weights.condition_weight = take("condition_weight", {w, d});
    weights.condition_bias = take("condition_bias", {w});
    weights.inward_weight = take("inward_weight", {w, c});
    weights.inward_bias = take("inward_bias", {w});
    for (std::size_t i = 0; i < (tensors.size() - 8) / 6; ++i) {
        FlowBlockWeights& block = weights.blocks.emplace_back();
        block.modulation_weight = take("modulation_weight", {3 * w, w});
        block.modulation_bias = take("modulation_bias", {3 * w});
        block.up_weight = take("up_weight", {w, w});
        block.up_bias = take("up_bias", {w});
        block.down_weight = take("down_weight", {w, w});
        block.down_bias = take("down_bias", {w});
    }
    weights.modulation_weight = take("modulation_weight", {2 * w, w});
    weights.modulation_bias = take("modulation_bias", {2 * w});
    weights.outward_weight = take("outward_weight", {c, w});
    weights.outward_bias = take("outward_bias", {c});
    weights.time = data_of(time, "time_RW", like, {static_cast<int64_t>(moves.size()), w});
    weights.moves = std::move(moves);
    pybind11::gil_scoped_release release;
    return std::make_unique<FlowHead>(weights);
}

Tensor run_flow_head(const FlowHead& head, const Tensor& c, const Tensor& noise, int threads, const std::string& isa,
                     const std::string& division) {
    const FlowHeadView& view = head.view();
    TORCH_CHECK_VALUE(c.device().is_cpu() && noise.device().is_cpu(), "flow_head: c and noise must be on the CPU");
    TORCH_CHECK_VALUE(c.scalar_type() == at::kFloat || c.scalar_type() == at::kBFloat16, "flow_head: c is ",
                      c.scalar_type(), "; expected float32 or bfloat16");
    TORCH_CHECK_VALUE(noise.scalar_type() == at::kFloat, "flow_head: noise is ", noise.scalar_type(),
                      "; expected float32");
    TORCH_CHECK_VALUE(c.dim() == 2 && c.size(1) == view.condition_width, "flow_head: c has shape ", c.sizes(),
                      "; expected [M, ", view.condition_width, "]");
    TORCH_CHECK_VALUE(noise.dim() == 2 && noise.size(0) == c.size(0) && noise.size(1) == view.channels,
                      "flow_head: noise has shape ", noise.sizes(), "; expected [", c.size(0), ", ", view.channels,
                      "]");
    TORCH_CHECK_VALUE(c.is_contiguous() && noise.is_contiguous(), "flow_head: c and noise must be contiguous");
    TORCH_CHECK_VALUE(threads > 0, "flow_head: threads is ", threads, "; expected at least 1");
    TORCH_CHECK_VALUE(division == "" || division == "rows" || division == "columns", "flow_head: division is '",
                      division, "'; expected 'rows' or 'columns'");
    const Isa chosen = isa_by_name(isa);
    Tensor out = at::empty_like(noise);
    const FlowHeadCall call{c.const_data_ptr(), c.scalar_type() == at::kBFloat16, noise.const_data_ptr<float>(),
                            out.mutable_data_ptr<float>(), c.size(0)};
    pybind11::gil_scoped_release release;
    head.run(call, threads, chosen,
             division.empty()     ? Division::automatic
             : division == "rows" ? Division::rows
                                  : Division::columns);
    return out;
}

}  // namespace

void bind_flow_head(pybind11::module_& m) {
    namespace py = pybind11;
    m.def("cpu_isa", [] { return isa_name(best_isa()); }, "The instruction set that the kernels use here.");
    m.def("cpu_isas", &supported_isas, "Every instruction set that can run here.");
    py::class_<FlowHead>(m, "FlowHead", "Packed weights and schedule of a flow-matching head.")
        .def(py::init(&make_flow_head), py::arg("weights"), py::arg("time"), py::arg("moves"),
             py::arg("moves_per_step"))
        .def("run", &run_flow_head, py::arg("c"), py::arg("noise"), py::arg("threads"), py::arg("isa") = "",
             py::arg("division") = "");
}

}  // namespace enma
