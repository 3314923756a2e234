#include "core/cpu/flow_head.h"

#include "python/bindings.h"
#include "python/tensor.h"

namespace enma {

namespace flow_head_binding {

constexpr char OP[] = "flow_head";

// `tensors`: condition, inward, (modulation, up, down) of each block, modulation, outward, each weight then bias.
std::unique_ptr<FlowHead> make_flow_head(const std::vector<Tensor>& tensors, const Tensor& time,
                                         std::vector<float> moves, int moves_per_step) {
    expect(tensors.size() >= 8 && (tensors.size() - 8) % 6 == 0, OP, ": ", tensors.size(),
           " weights; expected 8 and 6 for each block");
    const Tensor& like = tensors[0];
    const NumberFormat format = checked_format(OP, like, "condition_weight");
    expect(like.dim() == 2 && tensors[2].dim() == 2, OP, ": weights are not matrices");
    const std::int64_t w = like.size(0), d = like.size(1), c = tensors[2].size(1);
    expect(w > 0 && d > 0 && c > 0 && std::max({w, d, c}) <= 1 << 20, OP, ": widths are ", w, ", ", d, " and ", c,
           "; expected 1 to 2^20");
    expect(moves_per_step > 0 && moves.size() < 1u << 20, OP, ": the schedule is not valid");
    FlowHeadWeights weights;
    weights.channels = static_cast<int>(c);
    weights.condition_width = static_cast<int>(d);
    weights.width = static_cast<int>(w);
    weights.evaluations = static_cast<int>(moves.size());
    weights.moves_per_step = moves_per_step;
    weights.format = format;
    std::size_t next = 0;
    const auto take = [&](const char* name, const std::vector<std::int64_t>& shape) {
        return checked(OP, tensors[next++], name, shape, like.dtype());
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
    weights.time = checked(OP, time, "time_RW", {static_cast<std::int64_t>(moves.size()), w}, like.dtype());
    weights.moves = std::move(moves);
    const py::gil_scoped_release release;
    return std::make_unique<FlowHead>(weights);
}

Tensor run_flow_head(const FlowHead& head, const Tensor& c, const Tensor& noise, int threads, const std::string& isa,
                     const std::string& division) {
    const FlowHeadView& view = head.view();
    const NumberFormat format = checked_format(OP, c, "c");
    expect(c.dim() == 2, OP, ": c has shape ", c.sizes(), "; expected [M, ", view.condition_width, "]");
    const std::int64_t rows = c.size(0);
    const void* const conditions = checked(OP, c, "c", {rows, view.condition_width}, c.dtype());
    const void* const from = checked(OP, noise, "noise", {rows, view.channels}, Dtype::float32);
    expect(threads > 0, OP, ": threads is ", threads, "; expected at least 1");
    expect(division == "" || division == "rows" || division == "columns", OP, ": division is '", division,
           "'; expected 'rows' or 'columns'");
    const Isa chosen = isa_of(OP, isa);
    Tensor out = Tensor::empty({rows, view.channels}, Dtype::float32, noise);
    const FlowHeadCall call{conditions, format, static_cast<const float*>(from), out.data<float>(), rows};
    const py::gil_scoped_release release;
    head.run(call, threads, chosen,
             division.empty()     ? Division::automatic
             : division == "rows" ? Division::rows
                                  : Division::columns);
    return out;
}

}  // namespace flow_head_binding

void bind_flow_head(py::module_& m) {
    using namespace flow_head_binding;
    py::class_<FlowHead>(m, "FlowHead", "Packed weights and schedule of a flow-matching head.")
        .def(py::init(&make_flow_head), arg("weights"), arg("time"), arg("moves"), arg("moves_per_step"))
        .def("run", &run_flow_head, arg("c"), arg("noise"), arg("threads"), arg("isa") = "", arg("division") = "");
}

}  // namespace enma
