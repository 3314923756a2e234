// Fields from values at scattered points, and fields that are drawn, by the code that libenma runs.
#include "core/cpu/analysis.h"
#include "python/bindings.h"
#include "python/tensor.h"

namespace enma {

namespace scattered_binding {

constexpr char OP[] = "analyse";

std::vector<double> numbers(const char* name, const Tensor& x, std::int64_t count) {
    expect(x.is_cpu() && x.dtype() == Dtype::float64 && x.is_contiguous() && x.numel() == count, OP, ": ", name,
           " must be ", count, " contiguous float64 on the CPU");
    return {x.data<double>(), x.data<double>() + count};
}

const float* values_of(const char* name, const Tensor& x, std::int64_t count) {
    expect(x.is_cpu() && x.dtype() == Dtype::float32 && x.is_contiguous() && x.numel() == count, OP, ": ", name,
           " must be ", count, " contiguous float32 on the CPU");
    return x.data<float>();
}

FieldCovariance covariance_of(const Tensor& mean, const Tensor& deviation, const Tensor& correlation,
                              const std::vector<std::int64_t>& grid, const std::vector<double>& lengths,
                              const std::vector<bool>& periodic) {
    FieldCovariance covariance;
    covariance.grid = grid;
    covariance.lengths = lengths;
    covariance.periodic = periodic;
    covariance.channels = static_cast<int>(mean.numel());
    const std::int64_t d = covariance.dims();
    expect((d == 1 || d == 2) && lengths.size() == grid.size() && periodic.size() == grid.size(), OP,
           ": grid, lengths and periodic have ", d, ", ", lengths.size(), " and ", periodic.size(),
           " entries; expected 1 or 2 of each");
    for (const std::int64_t n : grid) expect(n > 0, OP, ": grid has ", n);
    covariance.mean = numbers("mean", mean, covariance.channels);
    covariance.deviation = numbers("deviation", deviation, covariance.entries());
    covariance.correlation = numbers("correlation", correlation, covariance.entries());
    return covariance;
}

// A field [X, c] that begins a trajectory, like the first frame [*grid, c] of another one where that is given.
Tensor draw(const Tensor& mean, const Tensor& deviation, const Tensor& correlation,
            const std::vector<std::int64_t>& grid, const std::vector<double>& lengths,
            const std::vector<bool>& periodic, const std::optional<Tensor>& first, std::int64_t seed,
            std::int64_t member) {
    const FieldCovariance covariance = covariance_of(mean, deviation, correlation, grid, lengths, periodic);
    const std::int64_t X = covariance.points(), c = covariance.channels;
    const float* const like = first ? values_of("first", *first, X * c) : nullptr;
    Tensor out = Tensor::empty({X, c}, Dtype::float32, mean);
    draw_field(covariance, like, static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(member),
               out.data<float>());
    return out;
}

// Fields [S, L, X, c] of draws, or of the analysis alone, and the size of the observations: core/cpu/analysis.h.
std::tuple<Tensor, double> estimate(const Tensor& mean, const Tensor& deviation, const Tensor& correlation,
                                    const std::vector<std::int64_t>& grid, const std::vector<double>& lengths,
                                    const std::vector<bool>& periodic, const Tensor& values, const Tensor& points,
                                    const std::vector<std::int64_t>& rows, bool shared,
                                    const std::vector<double>& errors, std::int64_t seed,
                                    const std::vector<std::int64_t>& draws, std::int64_t step) {
    const FieldCovariance covariance = covariance_of(mean, deviation, correlation, grid, lengths, periodic);
    const std::int64_t d = covariance.dims(), c = covariance.channels, L = static_cast<std::int64_t>(rows.size());
    expect(L > 0, OP, ": rows is empty");
    std::int64_t count = 0;
    for (const std::int64_t n : rows) {
        expect(n > 0 && (!shared || n == rows[0]), OP, ": rows has ", n);
        count += n;
    }
    const ScatteredFrames seen{values_of("values", values, count * c),
                               values_of("points", points, (shared ? rows[0] : count) * d), rows, shared};
    expect(errors.empty() || static_cast<std::int64_t>(errors.size()) == c, OP, ": errors has ", errors.size(),
           " entries; expected ", c);
    FieldDraws drawn{static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(step), {}};
    for (const std::int64_t number : draws) drawn.numbers.push_back(static_cast<std::uint32_t>(number));
    const std::int64_t S = draws.empty() ? 1 : static_cast<std::int64_t>(draws.size());
    Tensor out = Tensor::empty({S, L, covariance.points(), c}, Dtype::float32, values);
    const double size = enma::analyse(covariance, seen, errors, draws.empty() ? nullptr : &drawn, out.data<float>());
    return {std::move(out), size};
}

}  // namespace scattered_binding

void bind_scattered(py::module_& m) {
    using namespace scattered_binding;
    m.def("analyse", &estimate, arg("mean"), arg("deviation"), arg("correlation"), arg("grid"), arg("lengths"),
          arg("periodic"), arg("values"), arg("points"), arg("rows"), arg("shared"), arg("errors"), arg("seed"),
          arg("draws"), arg("step"), without_lock());
    m.def("draw_field", &draw, arg("mean"), arg("deviation"), arg("correlation"), arg("grid"), arg("lengths"),
          arg("periodic"), arg("first"), arg("seed"), arg("member"), without_lock());
}

}  // namespace enma
