#include "core/cpu/flow_head.h"

#include <array>

#include "python/bindings.h"
#include "python/parameters.h"
#include "python/tensor.h"

namespace enma {

namespace flow_head_binding {

constexpr char OP[] = "flow_head";

// Packed weights and a schedule.
struct PackedHead {
    FlowHead head;
    std::vector<float> time, moves;
    FlowHeadView view;
};

// `shape`: channels, condition width, width, layers. `time` [R, W] are the embeddings of the times of the evaluations.
std::unique_ptr<PackedHead> make_flow_head(const py::dict& parameters, const std::array<int, 4>& shape,
                                           const std::string& format, const Tensor& time, std::vector<float> moves,
                                           int moves_per_step) {
    Tensors tensors = tensors_of(parameters);
    const std::ptrdiff_t R = static_cast<std::ptrdiff_t>(moves.size()), W = shape[2], row = row_stride(shape[2]);
    const auto* const times = static_cast<const float*>(checked(OP, time, "time_RW", {R, W}, Dtype::float32));
    expect(moves_per_step > 0, OP, ": moves_per_step is ", moves_per_step);
    const py::gil_scoped_release release;
    const TakeParameter take = [&](const std::string& name, const std::vector<std::int64_t>& sizes) {
        return tensors.take(name, sizes);
    };
    std::unique_ptr<PackedHead> made(
        new PackedHead{{{shape[0], shape[1], shape[2], shape[3]}, take, "", format_of(format)},
                       std::vector<float>(R * row),
                       std::move(moves),
                       {}});
    for (std::ptrdiff_t k = 0; k < R; ++k) std::copy_n(times + k * W, W, made->time.data() + k * row);
    made->view = made->head.view();
    made->view.evaluations = static_cast<int>(R);
    made->view.moves_per_step = moves_per_step;
    made->view.time = made->time.data();
    made->view.moves = made->moves.data();
    return made;
}

Tensor run(const PackedHead& packed, const Tensor& c, const Tensor& noise, int threads, const std::string& isa) {
    const FlowHeadView& view = packed.view;
    const NumberFormat format = checked_format(OP, c, "c");
    expect(c.dim() == 2, OP, ": c has shape ", c.sizes(), "; expected [M, ", view.condition_width, "]");
    const std::int64_t rows = c.size(0);
    const void* const conditions = checked(OP, c, "c", {rows, view.condition_width}, c.dtype());
    const void* const from = checked(OP, noise, "noise", {rows, view.channels}, Dtype::float32);
    expect(threads > 0, OP, ": threads is ", threads, "; expected at least 1");
    const Isa chosen = isa_of(OP, isa);
    Tensor out = Tensor::empty({rows, view.channels}, Dtype::float32, noise);
    const FlowHeadCall call{conditions, format, static_cast<const float*>(from), out.data<float>(), rows};
    const py::gil_scoped_release release;
    run_flow_head(view, call, threads, chosen);
    return out;
}

}  // namespace flow_head_binding

void bind_flow_head(py::module_& m) {
    using namespace flow_head_binding;
    py::class_<PackedHead>(m, "FlowHead", "Packed weights and schedule of a flow-matching head.")
        .def(py::init(&make_flow_head), arg("parameters"), arg("shape"), arg("format"), arg("time"), arg("moves"),
             arg("moves_per_step"))
        .def("run", &run, arg("c"), arg("noise"), arg("threads"), arg("isa") = "");
}

}  // namespace enma
