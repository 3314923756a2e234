#include "core/cpu/analysis.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include "operators.h"

namespace enma {

namespace {

std::vector<double> numbers(const char* name, const at::Tensor& x, std::int64_t count) {
    TORCH_CHECK_VALUE(x.is_cpu() && x.scalar_type() == at::kDouble && x.is_contiguous() && x.numel() == count,
                      "analyse: ", name, " must be ", count, " contiguous float64 on the CPU");
    return {x.const_data_ptr<double>(), x.const_data_ptr<double>() + count};
}

}  // namespace

std::tuple<at::Tensor, double> analyse(const at::Tensor& mean, const at::Tensor& deviation,
                                       const at::Tensor& correlation, const std::vector<int64_t>& grid,
                                       const std::vector<double>& lengths, const std::vector<bool>& periodic,
                                       const at::Tensor& values, const at::Tensor& points,
                                       const std::vector<int64_t>& rows, bool shared, const std::vector<double>& errors,
                                       int64_t seed, const std::vector<int64_t>& draws, int64_t step) {
    FieldCovariance covariance;
    covariance.grid = grid;
    covariance.lengths = lengths;
    covariance.periodic = periodic;
    covariance.channels = static_cast<int>(mean.numel());
    const std::int64_t d = covariance.dims(), c = covariance.channels, L = static_cast<std::int64_t>(rows.size());
    TORCH_CHECK_VALUE((d == 1 || d == 2) && lengths.size() == grid.size() && periodic.size() == grid.size(),
                      "analyse: grid, lengths and periodic have ", d, ", ", lengths.size(), " and ", periodic.size(),
                      " entries; expected 1 or 2 of each");
    for (const int64_t n : grid) TORCH_CHECK_VALUE(n > 0, "analyse: grid has ", n);
    covariance.mean = numbers("mean", mean, c);
    covariance.deviation = numbers("deviation", deviation, covariance.entries());
    covariance.correlation = numbers("correlation", correlation, covariance.entries());
    std::int64_t count = 0;
    for (const int64_t n : rows) {
        TORCH_CHECK_VALUE(n > 0 && (!shared || n == rows[0]), "analyse: rows has ", n);
        count += n;
    }
    for (const auto& [name, x, expected] : {std::tuple{"values", values, count * c},
                                            std::tuple{"points", points, (shared && L > 0 ? rows[0] : count) * d}}) {
        TORCH_CHECK_VALUE(
            L > 0 && x.is_cpu() && x.scalar_type() == at::kFloat && x.is_contiguous() && x.numel() == expected,
            "analyse: ", name, " must be ", expected, " contiguous float32 on the CPU");
    }
    TORCH_CHECK_VALUE(errors.empty() || static_cast<std::int64_t>(errors.size()) == c, "analyse: errors has ",
                      errors.size(), " entries; expected ", c);
    FieldDraws drawn{static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(step), {}};
    for (const int64_t number : draws) drawn.numbers.push_back(static_cast<std::uint32_t>(number));
    const std::int64_t S = draws.empty() ? 1 : static_cast<std::int64_t>(draws.size());
    const at::Tensor out = at::empty({S, L, covariance.points(), c}, values.options());
    const double size =
        analyse(covariance, {values.const_data_ptr<float>(), points.const_data_ptr<float>(), rows, shared}, errors,
                draws.empty() ? nullptr : &drawn, out.mutable_data_ptr<float>());
    return {out, size};
}

}  // namespace enma
