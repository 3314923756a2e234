// The core of modulated_norm without Torch, for the sanitizers: every instruction set of this machine against the formula
// in double, in buffers that end where the data ends.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "core/cpu/modulated_norm.h"

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

void check(Isa isa, bool bf16, bool rms, bool one_row, int64_t R, int64_t W, int threads) {
    const double eps = 1e-5, tolerance = bf16 ? 2e-2 : 2e-5;
    const int64_t shared = one_row ? 1 : R, stride = one_row ? 0 : W;
    Values x(R * W, bf16), residual(R * W, bf16), weight(W, bf16), y(R * W, bf16), h(R * W, bf16);
    Values scale(shared * W, bf16), shift(shared * W, bf16), gate(shared * W, bf16);
    std::vector<float> stats(2 * R);
    ModulatedNorm g{};
    g.bf16 = g.weight_bf16 = bf16;
    g.rms = rms, g.rows = R, g.width = W, g.eps = static_cast<float>(eps), g.threads = threads;
    g.weight = weight.bytes.data();
    g.shift = {shift.bytes.data(), stride}, g.scale = {scale.bytes.data(), stride};
    g.residual = {residual.bytes.data(), W}, g.gate = {gate.bytes.data(), stride};
    modulated_norm_forward(g, {{x.bytes.data(), W}, y.bytes.data(), h.bytes.data(), stats.data()}, isa);

    Values grad_y(R * W, bf16), grad_h(R * W, bf16), grad_x(R * W, bf16), grad_residual(R * W, bf16);
    Values grad_scale(R * W, bf16), grad_gate(R * W, bf16);
    std::vector<float> sums(4 * W);
    ModulatedNormBackward b{};
    b.grad_y = grad_y.bytes.data(), b.grad_h = grad_h.bytes.data(), b.h = {h.bytes.data(), W}, b.stats = stats.data();
    b.x = grad_x.bytes.data(), b.residual = grad_residual.bytes.data();
    b.weight_sum = sums.data(), b.shift_sum = sums.data() + W;
    if (one_row) {
        b.scale_sum = sums.data() + 2 * W, b.gate_sum = sums.data() + 3 * W;
    } else {
        b.scale = grad_scale.bytes.data(), b.gate = grad_gate.bytes.data();
    }
    modulated_norm_backward(g, b, isa);

    std::vector<double> expected_sums(4 * W), n(W), a(W);
    for (int64_t r = 0; r < R; ++r) {
        const auto shared_at = [&](const Values& values, int64_t i) { return values.at((one_row ? 0 : r * W) + i); };
        double mean = 0, square = 0, sum_a = 0, sum_an = 0;
        for (int64_t i = 0; i < W; ++i) {
            expect("h", h.at(r * W + i), x.at(r * W + i) + shared_at(gate, i) * residual.at(r * W + i), tolerance);
            mean += rms ? 0 : h.at(r * W + i) / W;
        }
        for (int64_t i = 0; i < W; ++i) square += std::pow(h.at(r * W + i) - mean, 2) / W;
        const double rstd = 1 / std::sqrt(square + eps);
        for (int64_t i = 0; i < W; ++i) {
            n[i] = (h.at(r * W + i) - mean) * rstd;
            const double dy = grad_y.at(r * W + i), modulation = 1 + shared_at(scale, i);
            expect("y", y.at(r * W + i), n[i] * weight.at(i) * modulation + shared_at(shift, i), tolerance);
            a[i] = dy * modulation * weight.at(i);
            sum_a += rms ? 0 : a[i] / W, sum_an += a[i] * n[i] / W;
            expected_sums[i] += dy * modulation * n[i], expected_sums[W + i] += dy;
            expected_sums[2 * W + i] += dy * weight.at(i) * n[i];
            if (!one_row) expect("grad_scale", grad_scale.at(r * W + i), dy * weight.at(i) * n[i], tolerance);
        }
        // A row of one value has no deviation: 1 / sqrt(eps) magnifies what rounding left of it.
        const double loose = tolerance * std::fmax(1, rstd);
        for (int64_t i = 0; i < W; ++i) {
            const double dx = (a[i] - sum_a - n[i] * sum_an) * rstd + grad_h.at(r * W + i);
            expect("grad_x", grad_x.at(r * W + i), dx, loose);
            expect("grad_residual", grad_residual.at(r * W + i), shared_at(gate, i) * dx, loose);
            expected_sums[3 * W + i] += residual.at(r * W + i) * dx;
            if (!one_row) expect("grad_gate", grad_gate.at(r * W + i), residual.at(r * W + i) * dx, loose);
        }
    }
    for (int64_t i = 0; i < (one_row ? 4 : 2) * W; ++i) expect("sum", sums[i], expected_sums[i], tolerance * (1 + R));
}

}  // namespace

int main() {
    int count = 0;
    for (const std::string& name : supported_isas()) {
        for (const bool bf16 : {false, true}) {
            for (const bool rms : {false, true}) {
                for (const bool one_row : {false, true}) {
                    for (const int64_t W : {2, 15, 16, 67, 192}) {
                        for (const int64_t R : {1, 5, 37}) check(isa_by_name(name), bf16, rms, one_row, R, W, 1), ++count;
                    }
                    check(isa_by_name(name), bf16, rms, one_row, 300, 192, 3);
                    check(isa_by_name(name), bf16, rms, one_row, 0, 16, 2);
                }
            }
        }
    }
    if (failures) return std::printf("%d failures\n", failures), 1;
    std::printf("ok: %d problems\n", count);
    return 0;
}
