// The kernels of rms_norm, compiled once per instruction set behind lanes.h.
#pragma once

namespace {
namespace norm {

using enma::NormRows;
using enma::RmsNorm;
using enma::RmsNormBackward;
using enma::RmsNormForward;

ENMA_INLINE const float* row_of(const NormRows& rows, int64_t r) { return rows.data + r * rows.stride; }

void forward(const RmsNorm& g, const RmsNormForward& f, int64_t begin, int64_t end, float* row) {
    const int64_t width = g.width;
    const float inverse = 1.0f / static_cast<float>(width);
    for (int64_t r = begin; r < end; ++r) {
        const float* x = row_of(f.x, r);
        Sums sums;
        const auto take = [&](int64_t i, auto part, int chain, Floats h) {
            store(row + i, h, part);
            sums.chain[chain] += h * h;
        };
        if (f.residual.data == nullptr) {
            sweep(width, [&](int64_t i, auto part, int chain) { take(i, part, chain, load(x + i, part)); });
        } else {
            float* h_out = f.h + r * width;
            const float* residual = row_of(f.residual, r);
            sweep(width, [&](int64_t i, auto part, int chain) {
                const Floats h = load(x + i, part) + load(residual + i, part);
                store(h_out + i, h, part);
                take(i, part, chain, h);
            });
        }
        const float rstd = 1.0f / __builtin_sqrtf(sums.total_of_all() * inverse + g.eps);
        if (f.rstd != nullptr) f.rstd[r] = rstd;
        float* y = f.y + r * width;
        each(width,
             [&](int64_t i, auto part) { store(y + i, load(row + i, part) * rstd * load(g.weight + i, part), part); });
    }
}

void backward(const RmsNorm& g, const RmsNormBackward& b, int64_t begin, int64_t end, float* work, float* sum) {
    const int64_t width = g.width;
    float* n_row = work;
    float* a_row = work + enma::padded_width(width);
    const float inverse = 1.0f / static_cast<float>(width);
    for (int64_t r = begin; r < end; ++r) {
        const float* grad_y = b.grad_y + r * width;
        const float* x = row_of(b.x, r);
        const float rstd = b.rstd[r];
        Sums along;
        sweep(width, [&](int64_t i, auto part, int chain) {
            const Floats n = only(load(x + i, part) * rstd, part);
            const Floats a = load(grad_y + i, part) * load(g.weight + i, part);
            store(n_row + i, n, part);
            store(a_row + i, a, part);
            along.chain[chain] += a * n;
        });
        if (b.grad_weight != nullptr) {
            each(width, [&](int64_t i, auto part) {
                store(sum + i, load(sum + i, part) + load(grad_y + i, part) * load(n_row + i, part), part);
            });
        }
        if (b.grad_x == nullptr) continue;
        const float mean = along.total_of_all() * inverse;
        float* grad_x = b.grad_x + r * width;
        const float* grad_h = b.grad_h == nullptr ? nullptr : b.grad_h + r * width;
        each(width, [&](int64_t i, auto part) {
            const Floats of_y = (load(a_row + i, part) - load(n_row + i, part) * mean) * rstd;
            store(grad_x + i, grad_h == nullptr ? of_y : of_y + load(grad_h + i, part), part);
        });
    }
}

constexpr enma::RmsNormKernels KERNELS{&forward, &backward};

}  // namespace norm
}  // namespace
