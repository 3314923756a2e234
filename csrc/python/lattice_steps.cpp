#include "core/cpu/lattice_steps.h"

#include <algorithm>
#include <cmath>

#include "core/cpu/parallel.h"
#include "core/cpu/vector_kernels.h"
#include "python/bindings.h"
#include "python/tensor.h"

namespace enma {

namespace lattice_steps_binding {

constexpr char OP[] = "lattice_steps";

// Fields [B, c, *x] of one or two axes a frame later, by coefficients [B, P] of all terms.
Tensor advance(const Tensor& fields, const Tensor& coefficients, int steps, int threads, const std::string& isa) {
    expect(fields.dim() == 3 || fields.dim() == 4, OP, ": fields has shape ", fields.sizes());
    const bool plane = fields.dim() == 4;
    const int channels = static_cast<int>(fields.size(1)), points = static_cast<int>(fields.size(-1));
    const int lines = plane ? static_cast<int>(fields.size(2)) : 1;
    const std::int64_t rows = fields.size(0), each = std::int64_t{channels} * lines * points;
    const std::int64_t terms = EquationTerms::count(plane, channels);
    const std::vector<std::int64_t> shape(fields.sizes().values, fields.sizes().values + fields.dim());
    const auto* before = static_cast<float*>(checked(OP, fields, "fields", shape, Dtype::float32));
    const auto* scales = static_cast<float*>(checked(OP, coefficients, "coefficients", {rows, terms}, Dtype::float32));
    expect(steps > 0, OP, ": steps is ", steps);
    std::vector<float> active(terms);
    for (std::int64_t i = 0; i < rows * terms; ++i) active[i % terms] += std::abs(scales[i]);
    const LatticeSteps step({lines, points}, plane, channels, active);
    const bool by_neighbours = step.local();
    expect(by_neighbours, OP, ": coefficients has a term with a potential, which neighbours do not give");
    Tensor after = Tensor::empty(shape, Dtype::float32, fields);
    const WaveKernels& run = vector_kernels(isa_of(OP, isa)).waves;
    threads = static_cast<int>(std::clamp<std::int64_t>(threads, 1, std::max<std::int64_t>(rows, 1)));
    const std::size_t bytes = pages(step.work_bytes());
    const Scratch scratch(bytes * threads);
    parallel(threads, [&](int thread, int n) {
        for (std::int64_t row = rows * thread / n; row < rows * (thread + 1) / n; ++row) {
            float* const out = after.data<float>() + row * each;
            std::copy_n(before + row * each, each, out);
            step.advance(run, scales + row * terms, steps, scratch.data() + bytes * thread, out);
        }
    });
    return after;
}

}  // namespace lattice_steps_binding

void bind_lattice_steps(py::module_& m) {
    m.def(lattice_steps_binding::OP, &lattice_steps_binding::advance, arg("fields"), arg("coefficients"), arg("steps"),
          arg("threads") = 1, arg("isa") = "", without_lock());
}

}  // namespace enma
