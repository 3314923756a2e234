// y = silu(gate) * up over rows [gate; up], and the gradient of the rows.
#pragma once

#include <cstdint>

#include "core/cpu/dispatch.h"
#include "core/number_format.h"

namespace enma {

struct Swiglu {
    NumberFormat format;  // of all rows
    int64_t rows, width;
    const void* x;  // [rows, 2, width], without gaps
    int threads;
};

// y [rows, width]
void swiglu_forward(const Swiglu& g, void* y, Isa isa);
// grad_x [rows, 2, width] from grad_y [rows, width]
void swiglu_backward(const Swiglu& g, const void* grad_y, void* grad_x, Isa isa);

// The kernels of an instruction set, for rows [begin, end).
struct SwigluKernels {
    void (*forward)(const Swiglu&, void* y, int64_t begin, int64_t end);
    void (*backward)(const Swiglu&, const void* grad_y, void* grad_x, int64_t begin, int64_t end);
};

}  // namespace enma
