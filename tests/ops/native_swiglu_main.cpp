// The core of swiglu without Torch, for the sanitizers: every instruction set of this machine against the formula in
// double, in buffers that end where the data ends.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

#include "core/cpu/swiglu.h"

using namespace enma;

namespace {

int failures = 0;

void expect(const char* what, double found, double expected) {
    if (std::fabs(found - expected) <= 2e-6 * (1 + std::fabs(expected))) return;
    if (++failures < 10) std::printf("%s: %g, expected %g\n", what, found, expected);
}

void check(Isa isa, int64_t rows, int64_t width, int threads) {
    std::vector<float> x(2 * rows * width), grad_x(x.size()), y(rows * width), grad_y(y.size());
    for (size_t i = 0; i < x.size(); ++i) x[i] = 9.0f * std::sin(1.7f * static_cast<float>(i));
    for (size_t i = 0; i < y.size(); ++i) grad_y[i] = std::cos(0.3f * static_cast<float>(i));
    const Swiglu g{NumberFormat::fp32, rows, width, x.data(), threads};
    swiglu_forward(g, y.data(), isa);
    swiglu_backward(g, grad_y.data(), grad_x.data(), isa);
    for (int64_t r = 0; r < rows; ++r) {
        for (int64_t i = 0; i < width; ++i) {
            const int64_t at = 2 * r * width + i, from = r * width + i;
            const double gate = x[at], up = x[at + width], s = 1 / (1 + std::exp(-gate));
            expect("y", y[from], gate * s * up);
            expect("grad of gate", grad_x[at], grad_y[from] * up * s * (1 + gate * (1 - s)));
            expect("grad of up", grad_x[at + width], grad_y[from] * gate * s);
        }
    }
}

// bf16 rows: memory alone.
void touch(Isa isa, int64_t rows, int64_t width) {
    std::vector<uint16_t> x(2 * rows * width, 0x3f80), grad_x(x.size()), y(rows * width), grad_y(y.size());
    const Swiglu g{NumberFormat::bf16, rows, width, x.data(), 1};
    swiglu_forward(g, y.data(), isa);
    swiglu_backward(g, grad_y.data(), grad_x.data(), isa);
}

}  // namespace

int main() {
    int count = 0;
    for (const std::string& name : supported_isas()) {
        for (const int64_t width : {1, 15, 16, 67}) {
            for (const int64_t rows : {0, 1, 5}) check(isa_by_name(name), rows, width, 1), ++count;
            touch(isa_by_name(name), 3, width);
        }
        check(isa_by_name(name), 300, 192, 3);
    }
    if (failures) return std::printf("%d failures\n", failures), 1;
    std::printf("ok: %d problems\n", count);
    return 0;
}
