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

uint16_t bf16_of(float a) {
    uint32_t bits;
    std::memcpy(&bits, &a, sizeof bits);
    return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

float float_of(uint16_t half) {
    const uint32_t bits = static_cast<uint32_t>(half) << 16;
    float a;
    std::memcpy(&a, &bits, sizeof a);
    return a;
}

// Values in the problem's type, and what they are in double.
struct Values {
    std::vector<char> bytes;
    bool bf16;

    Values(int64_t count, bool is_bf16) : bytes(count * (is_bf16 ? 2 : 4)), bf16(is_bf16) {
        for (int64_t i = 0; i < count; ++i) set(i, random_float());
    }
    void set(int64_t i, float a) {
        const uint16_t half = bf16_of(a);
        std::memcpy(bytes.data() + i * (bf16 ? 2 : 4), bf16 ? static_cast<const void*>(&half) : &a, bf16 ? 2 : 4);
    }
    double at(int64_t i) const {
        float a;
        uint16_t half;
        if (!bf16) return std::memcpy(&a, bytes.data() + 4 * i, 4), a;
        return std::memcpy(&half, bytes.data() + 2 * i, 2), float_of(half);
    }
};

int failures = 0;

void expect(const char* what, double found, double expected, double tolerance) {
    if (std::fabs(found - expected) <= tolerance * (1 + std::fabs(expected))) return;
    if (++failures < 10) std::printf("%s: %g, expected %g\n", what, found, expected);
}

void check(Isa isa, bool bf16, bool with_residual, int64_t R, int64_t W, int threads) {
    const double eps = 1e-5, tolerance = bf16 ? 2e-2 : 2e-5;
    Values x(R * W, bf16), residual(R * W, bf16), weight(W, bf16), y(R * W, bf16), h(R * W, bf16);
    std::vector<float> rstd(R), grad_weight(W);
    RmsNorm g{};
    g.format = g.weight_format = bf16 ? NumberFormat::bf16 : NumberFormat::fp32;
    g.rows = R, g.width = W, g.eps = static_cast<float>(eps), g.threads = threads;
    g.weight = weight.bytes.data();
    RmsNormForward f{};
    f.x = {x.bytes.data(), W};
    if (with_residual) f.residual = {residual.bytes.data(), W}, f.h = h.bytes.data();
    f.y = y.bytes.data(), f.rstd = rstd.data();
    rms_norm_forward(g, f, isa);
    const Values& normed = with_residual ? h : x;

    Values grad_y(R * W, bf16), grad_h(R * W, bf16), grad_x(R * W, bf16);
    const RmsNormBackward b{grad_y.bytes.data(),      with_residual ? grad_h.bytes.data() : nullptr,
                            {normed.bytes.data(), W}, rstd.data(),
                            grad_x.bytes.data(),      grad_weight.data()};
    rms_norm_backward(g, b, isa);

    std::vector<double> expected_weight(W), n(W), a(W);
    for (int64_t r = 0; r < R; ++r) {
        double square = 0, along = 0;
        for (int64_t i = 0; i < W; ++i) {
            const int64_t at = r * W + i;
            if (with_residual) expect("h", h.at(at), x.at(at) + residual.at(at), tolerance);
            square += std::pow(normed.at(at), 2) / W;
        }
        const double inverse = 1 / std::sqrt(square + eps);
        for (int64_t i = 0; i < W; ++i) {
            n[i] = normed.at(r * W + i) * inverse;
            expect("y", y.at(r * W + i), n[i] * weight.at(i), tolerance);
            a[i] = grad_y.at(r * W + i) * weight.at(i);
            along += a[i] * n[i] / W;
            expected_weight[i] += grad_y.at(r * W + i) * n[i];
        }
        // A row near zero magnifies what rounding left of it.
        const double loose = tolerance * std::fmax(1, inverse);
        for (int64_t i = 0; i < W; ++i) {
            const double later = with_residual ? grad_h.at(r * W + i) : 0;
            expect("grad_x", grad_x.at(r * W + i), (a[i] - n[i] * along) * inverse + later, loose);
        }
    }
    for (int64_t i = 0; i < W; ++i) expect("grad_weight", grad_weight[i], expected_weight[i], tolerance * (1 + R));
}

}  // namespace

int main() {
    int count = 0;
    for (const std::string& name : supported_isas()) {
        for (const bool bf16 : {false, true}) {
            for (const bool residual : {false, true}) {
                for (const int64_t W : {1, 2, 15, 16, 67, 192}) {
                    for (const int64_t R : {1, 5, 37}) check(isa_by_name(name), bf16, residual, R, W, 1), ++count;
                }
                check(isa_by_name(name), bf16, residual, 300, 192, 3);
                check(isa_by_name(name), bf16, residual, 0, 16, 2);
            }
        }
    }
    if (failures) return std::printf("%d failures\n", failures), 1;
    std::printf("ok: %d problems\n", count);
    return 0;
}
