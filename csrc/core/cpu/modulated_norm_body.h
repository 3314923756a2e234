// The row kernels, compiled once per instruction set behind lanes.h.
#pragma once

namespace {

using enma::ModulatedNorm;
using enma::ModulatedNormBackward;
using enma::ModulatedNormForward;
using enma::NormRows;

template <class T>
ENMA_INLINE const T* row_of(const NormRows& rows, int64_t r) {
    return static_cast<const T*>(rows.data) + r * rows.stride;
}

// The weight in fp32 and a row of zeros for what is absent, so that the loops have no cases.
void prepare(const ModulatedNorm& g, float* weight, float* zeros) {
    each(g.width, [&](int64_t i, auto part) {
        Floats w = all(1.0f);
        if (g.weight != nullptr) {
            w = g.weight_bf16 ? load(static_cast<const uint16_t*>(g.weight) + i, part)
                              : load(static_cast<const float*>(g.weight) + i, part);
        }
        store(weight + i, w, part);
        store(zeros + i, Floats{}, part);
    });
}

template <class T, bool RMS>
void forward(const ModulatedNorm& g, const ModulatedNormForward& f, int64_t begin, int64_t end, float* work) {
    const int64_t width = g.width, padded = enma::padded_width(width);
    float* row = work;
    float* weight = work + padded;
    float* zeros = work + 2 * padded;
    prepare(g, weight, zeros);
    const NormRows absent{zeros, 0};
    const NormRows& scales = g.scale.data ? g.scale : absent;
    const NormRows& shifts = g.shift.data ? g.shift : absent;
    const float inverse = 1.0f / static_cast<float>(width);
    for (int64_t r = begin; r < end; ++r) {
        const T* x = row_of<T>(f.x, r);
        Sums sums;
        const auto take = [&](int64_t i, auto part, int chain, Floats h) {
            store(row + i, h, part);
            sums.chain[chain] += RMS ? h * h : h;
        };
        if (g.residual.data == nullptr) {
            sweep(width, [&](int64_t i, auto part, int chain) { take(i, part, chain, load(x + i, part)); });
        } else {
            T* h_out = static_cast<T*>(f.h) + r * width;
            const T* residual = row_of<T>(g.residual, r);
            const auto keep = [&](int64_t i, auto part, int chain, Floats h) {
                store(h_out + i, h, part);
                take(i, part, chain, rounded(h_out, h));
            };
            if (g.gate.data == nullptr) {
                sweep(width, [&](int64_t i, auto part, int chain) {
                    keep(i, part, chain, load(x + i, part) + load(residual + i, part));
                });
            } else {
                const T* gate = row_of<T>(g.gate, r);
                sweep(width, [&](int64_t i, auto part, int chain) {
                    keep(i, part, chain, load(x + i, part) + load(gate + i, part) * load(residual + i, part));
                });
            }
        }
        float mean = 0.0f, square = sums.total_of_all() * inverse;
        if (!RMS) {
            mean = square;
            Sums squares;
            sweep(width, [&](int64_t i, auto part, int chain) {
                const Floats centred = only(load(row + i, part) - mean, part);
                store(row + i, centred, part);
                squares.chain[chain] += centred * centred;
            });
            square = squares.total_of_all() * inverse;
        }
        const float rstd = 1.0f / __builtin_sqrtf(square + g.eps);
        if (f.stats != nullptr) f.stats[r] = mean, f.stats[g.rows + r] = rstd;
        const T* scale = row_of<T>(scales, r);
        const T* shift = row_of<T>(shifts, r);
        T* y = static_cast<T*>(f.y) + r * width;
        each(width, [&](int64_t i, auto part) {
            const Floats n = load(row + i, part) * rstd * load(weight + i, part);
            store(y + i, n * (1.0f + load(scale + i, part)) + load(shift + i, part), part);
        });
    }
}

ENMA_INLINE void add(float* sum, Floats a, auto part) { store(sum, load(sum, part) + a, part); }

template <class T, bool RMS>
void backward(
    const ModulatedNorm& g, const ModulatedNormBackward& b, int64_t begin, int64_t end, float* work, float* sums
) {
    const int64_t width = g.width, padded = enma::padded_width(width);
    float* weight = work;
    float* zeros = work + padded;
    float* n_row = work + 2 * padded;
    float* g_row = work + 3 * padded;
    prepare(g, weight, zeros);
    const NormRows absent{zeros, 0};
    const NormRows& scales = g.scale.data ? g.scale : absent;
    const float inverse = 1.0f / static_cast<float>(width);
    for (int64_t r = begin; r < end; ++r) {
        const T* grad_y = static_cast<const T*>(b.grad_y) + r * width;
        const T* h = row_of<T>(b.h, r);
        const T* scale = row_of<T>(scales, r);
        const float mean = RMS ? 0.0f : b.stats[r], rstd = b.stats[g.rows + r];
        Sums plain, along;
        sweep(width, [&](int64_t i, auto part, int chain) {
            const Floats n = only((load(h + i, part) - mean) * rstd, part);
            const Floats a = load(grad_y + i, part) * (1.0f + load(scale + i, part)) * load(weight + i, part);
            store(n_row + i, n, part);
            store(g_row + i, a, part);
            plain.chain[chain] += a;
            along.chain[chain] += a * n;
        });
        if (b.weight_sum != nullptr) {
            each(width, [&](int64_t i, auto part) {
                const Floats a = load(grad_y + i, part) * (1.0f + load(scale + i, part));
                add(sums + i, a * load(n_row + i, part), part);
            });
        }
        if (b.shift_sum != nullptr) {
            each(width, [&](int64_t i, auto part) { add(sums + padded + i, load(grad_y + i, part), part); });
        }
        if (b.scale != nullptr || b.scale_sum != nullptr) {
            T* out = static_cast<T*>(b.scale) + (b.scale ? r * width : 0);
            each(width, [&](int64_t i, auto part) {
                const Floats a = load(grad_y + i, part) * load(weight + i, part) * load(n_row + i, part);
                if (b.scale != nullptr) store(out + i, a, part);
                if (b.scale_sum != nullptr) add(sums + 2 * padded + i, a, part);
            });
        }
        const float mean_g = RMS ? 0.0f : plain.total_of_all() * inverse;
        const float mean_gn = along.total_of_all() * inverse;
        const T* grad_h = static_cast<const T*>(b.grad_h) + (b.grad_h ? r * width : 0);
        T* x = static_cast<T*>(b.x) + (b.x ? r * width : 0);
        each(width, [&](int64_t i, auto part) {
            Floats a = (load(g_row + i, part) - mean_g - load(n_row + i, part) * mean_gn) * rstd;
            if (b.grad_h != nullptr) a += load(grad_h + i, part);
            if (b.x != nullptr) store(x + i, a, part);
            store(g_row + i, a, part);
        });
        if (b.residual != nullptr) {
            const T* gate = row_of<T>(g.gate, r);
            T* out = static_cast<T*>(b.residual) + r * width;
            each(width, [&](int64_t i, auto part) {
                store(out + i, load(gate + i, part) * load(g_row + i, part), part);
            });
        }
        if (b.gate != nullptr || b.gate_sum != nullptr) {
            const T* residual = row_of<T>(g.residual, r);
            T* out = static_cast<T*>(b.gate) + (b.gate ? r * width : 0);
            each(width, [&](int64_t i, auto part) {
                const Floats a = load(residual + i, part) * load(g_row + i, part);
                if (b.gate != nullptr) store(out + i, a, part);
                if (b.gate_sum != nullptr) add(sums + 3 * padded + i, a, part);
            });
        }
    }
}

void forward_of(const ModulatedNorm& g, const ModulatedNormForward& f, int64_t begin, int64_t end, float* work) {
    if (g.bf16) {
        (g.rms ? forward<uint16_t, true> : forward<uint16_t, false>)(g, f, begin, end, work);
    } else {
        (g.rms ? forward<float, true> : forward<float, false>)(g, f, begin, end, work);
    }
}

void backward_of(
    const ModulatedNorm& g, const ModulatedNormBackward& b, int64_t begin, int64_t end, float* work, float* sums
) {
    if (g.bf16) {
        (g.rms ? backward<uint16_t, true> : backward<uint16_t, false>)(g, b, begin, end, work, sums);
    } else {
        (g.rms ? backward<float, true> : backward<float, false>)(g, b, begin, end, work, sums);
    }
}

constexpr enma::ModulatedNormKernels KERNELS{&forward_of, &backward_of};

}  // namespace
