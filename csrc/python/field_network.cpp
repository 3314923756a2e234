#include "core/cpu/field_network.h"

#include <map>

#include "python/bindings.h"
#include "python/parameters.h"
#include "python/tensor.h"

namespace enma {

namespace field_network_binding {

constexpr char OP[] = "field_network";

GridEdge edge_of(const std::string& name) {
    static const std::map<std::string, GridEdge> known = {
        {"periodic", GridEdge::periodic}, {"wall", GridEdge::wall}, {"open", GridEdge::open}};
    const auto found = known.find(name);
    expect(found != known.end(), OP, ": an edge is '", name, "'; expected 'periodic', 'wall' or 'open'");
    return found->second;
}

// `channels`: of inputs, of outputs and of the condition.
std::unique_ptr<FieldNetwork> make_network(const std::string& config, const std::vector<int>& grid,
                                           const std::vector<std::string>& edges, const std::array<int, 3>& channels,
                                           const py::dict& parameters) {
    Tensors tensors = tensors_of(parameters);
    const Json given = Json::parse(config, "config");
    Fields fields(given, "config");
    fields.ignore("kind");
    FieldNetworkShape shape{read_field_config(fields), {}, channels[0], channels[1], channels[2]};
    expect(grid.size() == edges.size() && (grid.size() == 1 || grid.size() == 2), OP, ": has ", grid.size(),
           " axes; expected 1 or 2, each with an edge");
    for (std::size_t i = 0; i < grid.size(); ++i) shape.grid.push_back({grid[i], edge_of(edges[i])});
    const py::gil_scoped_release release;
    auto network = std::make_unique<FieldNetwork>(
        shape,
        [&](const std::string& name, const std::vector<std::int64_t>& sizes) { return tensors.take(name, sizes); }, "");
    tensors.check_all_taken();
    return network;
}

// `[rows, *grid, outward]` of x `[rows, *grid, inward]`, a condition `[rows, Z]` and noise `[rows, *grid / block, n]`.
Tensor run(const FieldNetwork& network, const Tensor& x, const std::optional<Tensor>& condition,
           const std::optional<Tensor>& noise, int threads, const std::string& isa) {
    const FieldNetworkShape& shape = network.shape();
    expect(x.dim() > 0, OP, ": x has shape ", x.sizes());
    const std::int64_t rows = x.size(0);
    std::vector<std::int64_t> sizes{rows};
    for (const GridAxis& axis : shape.grid) sizes.push_back(axis.points);
    sizes.push_back(shape.inward);
    FieldNetworkCall call{static_cast<const float*>(checked(OP, x, "x", sizes, Dtype::float32)), nullptr, nullptr,
                          nullptr};
    if (condition) {
        call.condition =
            static_cast<const float*>(checked(OP, *condition, "condition", {rows, shape.condition}, Dtype::float32));
    }
    if (noise) {
        expect(noise->numel() == rows * network.places() * shape.config.noise && noise->is_contiguous(), OP,
               ": noise has shape ", noise->sizes(), "; expected [", rows, ", *grid / block, ", shape.config.noise,
               "]");
        call.noise = static_cast<const float*>(noise->data());
    }
    expect(threads > 0, OP, ": threads is ", threads, "; expected at least 1");
    const Isa chosen = isa_of(OP, isa);
    sizes.back() = shape.outward;
    Tensor out = Tensor::empty(sizes, Dtype::float32, x);
    call.out = out.data<float>();
    const py::gil_scoped_release release;
    network.run(call, rows, threads, chosen);
    return out;
}

}  // namespace field_network_binding

void bind_field_network(py::module_& m) {
    using namespace field_network_binding;
    py::class_<FieldNetwork>(m, "FieldNetwork", "Packed weights of the network of a field model.")
        .def(py::init(&make_network), arg("config"), arg("grid"), arg("edges"), arg("channels"), arg("parameters"))
        .def_property_readonly("bytes", &FieldNetwork::bytes)
        .def("run", &run, arg("x"), arg("condition") = py::none(), arg("noise") = py::none(), arg("threads") = 1,
             arg("isa") = "");
}

}  // namespace enma
