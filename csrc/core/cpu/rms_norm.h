// h = x + residual;  y = h / sqrt(mean(h^2) + eps) * weight, a row at a time; and the gradients of y in x and weight.
#pragma once

#include <cstdint>

#include "core/cpu/dispatch.h"

namespace enma {

// Rows `stride` elements apart; null: absent.
struct NormRows {
    const float* data = nullptr;
    int64_t stride = 0;
};

struct RmsNorm {
    int64_t rows, width;
    float eps;
    const float* weight;
    int threads;
};

struct RmsNormForward {
    NormRows x, residual;
    float* y;     // rows without gaps
    float* h;     // likewise; null without a residual
    float* rstd;  // [rows], 1 / sqrt(mean(h^2) + eps); may be null
};

struct RmsNormBackward {
    const float* grad_y;  // rows without gaps
    const float* grad_h;  // likewise; null: zero
    NormRows x;
    const float* rstd;
    float* grad_x;       // rows without gaps; null: not wanted
    float* grad_weight;  // [width]; null: not wanted
};

// Throw std::bad_alloc.
void rms_norm_forward(const RmsNorm& g, const RmsNormForward& f, Isa isa);
void rms_norm_backward(const RmsNorm& g, const RmsNormBackward& b, Isa isa);

// The kernels of an instruction set, for rows [begin, end). `work` holds RMS_NORM_WORK_ROWS rows of padded_width floats,
// `sum` one.
struct RmsNormKernels {
    void (*forward)(const RmsNorm&, const RmsNormForward&, int64_t begin, int64_t end, float* work);
    void (*backward)(const RmsNorm&, const RmsNormBackward&, int64_t begin, int64_t end, float* work, float* sum);
};

// Rows of work space are as long as a whole number of the widest vectors.
inline int64_t padded_width(int64_t width) { return (width + 15) / 16 * 16; }

constexpr int64_t RMS_NORM_WORK_ROWS = 2;

}  // namespace enma
