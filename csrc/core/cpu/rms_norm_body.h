// The kernels of rms_norm, compiled once per instruction set behind lanes.h.
#pragma once

namespace {
namespace norm {

using enma::NormRows;
using enma::RmsNorm;
using enma::RmsNormBackward;
using enma::RmsNormForward;

template <class T>
ENMA_INLINE const T* row_of(const NormRows& rows, int64_t r) {
    return static_cast<const T*>(rows.data) + r * rows.stride;
}

// The weight in fp32.
void widen_weight(const RmsNorm& g, float* weight) {
    each(g.width, [&](int64_t i, auto part) {
        const Floats w = is_half(g.weight_format) ? load(static_cast<const uint16_t*>(g.weight) + i, part)
                                                  : load(static_cast<const float*>(g.weight) + i, part);
        store(weight + i, w, part);
    });
}

template <class T>
void forward(const RmsNorm& g, const RmsNormForward& f, int64_t begin, int64_t end, float* work) {
    const int64_t width = g.width, padded = enma::padded_width(width);
    float* row = work;
    float* weight = work + padded;
    widen_weight(g, weight);
    const float inverse = 1.0f / static_cast<float>(width);
    for (int64_t r = begin; r < end; ++r) {
        const T* x = row_of<T>(f.x, r);
        Sums sums;
        const auto take = [&](int64_t i, auto part, int chain, Floats h) {
            store(row + i, h, part);
            sums.chain[chain] += h * h;
        };
        if (f.residual.data == nullptr) {
            sweep(width, [&](int64_t i, auto part, int chain) { take(i, part, chain, load(x + i, part)); });
        } else {
            T* h_out = static_cast<T*>(f.h) + r * width;
            const T* residual = row_of<T>(f.residual, r);
            sweep(width, [&](int64_t i, auto part, int chain) {
                const Floats h = load(x + i, part) + load(residual + i, part);
                store(h_out + i, h, part);
                take(i, part, chain, rounded(h_out, h));
            });
        }
        const float rstd = 1.0f / __builtin_sqrtf(sums.total_of_all() * inverse + g.eps);
        if (f.rstd != nullptr) f.rstd[r] = rstd;
        T* y = static_cast<T*>(f.y) + r * width;
        each(width,
             [&](int64_t i, auto part) { store(y + i, load(row + i, part) * rstd * load(weight + i, part), part); });
    }
}

template <class T>
void backward(const RmsNorm& g, const RmsNormBackward& b, int64_t begin, int64_t end, float* work, float* sum) {
    const int64_t width = g.width, padded = enma::padded_width(width);
    float* weight = work;
    float* n_row = work + padded;
    float* a_row = work + 2 * padded;
    widen_weight(g, weight);
    const float inverse = 1.0f / static_cast<float>(width);
    for (int64_t r = begin; r < end; ++r) {
        const T* grad_y = static_cast<const T*>(b.grad_y) + r * width;
        const T* x = row_of<T>(b.x, r);
        const float rstd = b.rstd[r];
        Sums along;
        sweep(width, [&](int64_t i, auto part, int chain) {
            const Floats n = only(load(x + i, part) * rstd, part);
            const Floats a = load(grad_y + i, part) * load(weight + i, part);
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
        T* grad_x = static_cast<T*>(b.grad_x) + r * width;
        const T* grad_h = b.grad_h == nullptr ? nullptr : static_cast<const T*>(b.grad_h) + r * width;
        each(width, [&](int64_t i, auto part) {
            const Floats of_y = (load(a_row + i, part) - load(n_row + i, part) * mean) * rstd;
            store(grad_x + i, grad_h == nullptr ? of_y : of_y + load(grad_h + i, part), part);
        });
    }
}

void forward_of(const RmsNorm& g, const RmsNormForward& f, int64_t begin, int64_t end, float* work) {
    (is_half(g.format) ? forward<uint16_t> : forward<float>)(g, f, begin, end, work);
}

void backward_of(const RmsNorm& g, const RmsNormBackward& b, int64_t begin, int64_t end, float* work, float* sum) {
    (is_half(g.format) ? backward<uint16_t> : backward<float>)(g, b, begin, end, work, sum);
}

constexpr enma::RmsNormKernels KERNELS{&forward_of, &backward_of};

}  // namespace norm
}  // namespace
