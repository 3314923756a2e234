// h = x + gate * residual;  y = norm(h) * weight * (1 + scale) + shift, a row at a time, and its gradients.
#pragma once

#include <cstdint>

#include "core/cpu/dispatch.h"

namespace enma {

// Rows of the problem's type; `stride` elements apart, 0 for one row that all share. Null: absent.
struct NormRows {
    const void* data = nullptr;
    int64_t stride = 0;
};

struct ModulatedNorm {
    bool bf16;  // of all rows, else fp32
    bool rms;
    bool weight_bf16;
    int64_t rows, width;
    float eps;
    const void* weight;  // null: 1
    NormRows shift, scale, residual, gate;
    int threads;
};

struct ModulatedNormForward {
    NormRows x;
    void* y;       // rows without gaps
    void* h;       // the same; null without a residual
    float* stats;  // [2, rows]: mean and reciprocal deviation; may be null
};

// Gradients are rows without gaps; null where not wanted. Those of weight and shift, and those of scale and gate where
// these are one row, are sums over the rows in fp32.
struct ModulatedNormBackward {
    const void* grad_y;
    const void* grad_h;  // may be null
    NormRows h;
    const float* stats;
    void* x;
    void* residual;
    void* scale;
    void* gate;
    float* weight_sum;
    float* shift_sum;
    float* scale_sum;
    float* gate_sum;
};

// Throw std::bad_alloc.
void modulated_norm_forward(const ModulatedNorm& g, const ModulatedNormForward& f, Isa isa);
void modulated_norm_backward(const ModulatedNorm& g, const ModulatedNormBackward& b, Isa isa);

// What an instruction set brings. `work` holds modulated_norm_work floats, `sums` four rows of padded_width.
struct ModulatedNormKernels {
    void (*forward)(const ModulatedNorm&, const ModulatedNormForward&, int64_t begin, int64_t end, float* work);
    void (*backward)(
        const ModulatedNorm&, const ModulatedNormBackward&, int64_t begin, int64_t end, float* work, float* sums
    );
};

// Rows of work space are as long as a whole number of the widest vectors.
inline int64_t padded_width(int64_t width) { return (width + 15) / 16 * 16; }

constexpr int64_t MODULATED_NORM_WORK_ROWS = 4;

// Null where the compiler cannot make them.
const ModulatedNormKernels* modulated_norm_portable();
const ModulatedNormKernels* modulated_norm_emulated();
const ModulatedNormKernels* modulated_norm_avx2();
const ModulatedNormKernels* modulated_norm_avx512();

}  // namespace enma
