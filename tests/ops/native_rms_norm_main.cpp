// The core of rms_norm without Torch, for the sanitizers: every instruction set of this machine against the formula in
// double, in buffers that end where the data ends.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "core/cpu/rms_norm.h"

using namespace enma;

namespace {

std::mt19937 random_bits(1);

float random_float() { return static_cast<float>(static_cast<double>(random_bits()) / 2147483648.0 - 1.0); }

std::vector<float> drawn(int64_t count) {
    std::vector<float> out(count);
    for (float& x : out) x = random_float();
    return out;
}

int failures = 0;

void expect(const char* what, double found, double expected, double tolerance) {
    if (std::fabs(found - expected) <= tolerance * (1 + std::fabs(expected))) return;
    if (++failures < 10) std::printf("%s: %g, expected %g\n", what, found, expected);
}

void check(Isa isa, bool with_residual, int64_t R, int64_t W, int threads) {
    const double eps = 1e-5, tolerance = 2e-5;
    const std::vector<float> x = drawn(R * W), residual = drawn(R * W), weight = drawn(W);
    std::vector<float> y(R * W), h(R * W), rstd(R), grad_weight(W);
    RmsNorm g{};
    g.rows = R, g.width = W, g.eps = static_cast<float>(eps), g.threads = threads;
    g.weight = weight.data();
    RmsNormForward f{};
    f.x = {x.data(), W};
    if (with_residual) f.residual = {residual.data(), W}, f.h = h.data();
    f.y = y.data(), f.rstd = rstd.data();
    rms_norm_forward(g, f, isa);
    const std::vector<float>& normed = with_residual ? h : x;

    const std::vector<float> grad_y = drawn(R * W), grad_h = drawn(R * W);
    std::vector<float> grad_x(R * W);
    const RmsNormBackward b{grad_y.data(),      with_residual ? grad_h.data() : nullptr,
                            {normed.data(), W}, rstd.data(),
                            grad_x.data(),      grad_weight.data()};
    rms_norm_backward(g, b, isa);

    std::vector<double> expected_weight(W), n(W), a(W);
    for (int64_t r = 0; r < R; ++r) {
        double square = 0, along = 0;
        for (int64_t i = 0; i < W; ++i) {
            const int64_t at = r * W + i;
            if (with_residual) expect("h", h[at], x[at] + residual[at], tolerance);
            square += std::pow(normed[at], 2) / W;
        }
        const double inverse = 1 / std::sqrt(square + eps);
        for (int64_t i = 0; i < W; ++i) {
            n[i] = normed[r * W + i] * inverse;
            expect("y", y[r * W + i], n[i] * weight[i], tolerance);
            a[i] = grad_y[r * W + i] * weight[i];
            along += a[i] * n[i] / W;
            expected_weight[i] += grad_y[r * W + i] * n[i];
        }
        // A row near zero magnifies what rounding left of it.
        const double loose = tolerance * std::fmax(1, inverse);
        for (int64_t i = 0; i < W; ++i) {
            const double later = with_residual ? grad_h[r * W + i] : 0;
            expect("grad_x", grad_x[r * W + i], (a[i] - n[i] * along) * inverse + later, loose);
        }
    }
    for (int64_t i = 0; i < W; ++i) expect("grad_weight", grad_weight[i], expected_weight[i], tolerance * (1 + R));
}

}  // namespace

int main() {
    int count = 0;
    for (const std::string& name : supported_isas()) {
        for (const bool residual : {false, true}) {
            for (const int64_t W : {1, 2, 15, 16, 67, 192}) {
                for (const int64_t R : {1, 5, 37}) check(isa_by_name(name), residual, R, W, 1), ++count;
            }
            check(isa_by_name(name), residual, 300, 192, 3);
            check(isa_by_name(name), residual, 0, 16, 2);
        }
    }
    if (failures) return std::printf("%d failures\n", failures), 1;
    std::printf("ok: %d problems\n", count);
    return 0;
}
