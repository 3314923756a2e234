// The kernels of swiglu, compiled once per instruction set behind lanes.h.
#pragma once

namespace {
namespace gated {

using enma::Swiglu;

// 1 / (1 + e^-x)
ENMA_INLINE Floats sigmoid(Floats x) {
    const Floats exponent = x * all(-LOG2_E);
    // The power is taken up to 2^127 only.
    const Floats bounded = exponent > all(127.0f) ? all(127.0f) : exponent;
    return exponent > all(127.0f) ? Floats{} : all(1.0f) / (all(1.0f) + exp2_of(bounded));
}

template <class T>
void forward(const Swiglu& g, void* y, int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
        const T* const gate = static_cast<const T*>(g.x) + 2 * r * g.width;
        T* const out = static_cast<T*>(y) + r * g.width;
        each(g.width, [&](int64_t i, auto part) {
            const Floats x = load(gate + i, part);
            store(out + i, x * sigmoid(x) * load(gate + g.width + i, part), part);
        });
    }
}

template <class T>
void backward(const Swiglu& g, const void* grad_y, void* grad_x, int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
        const T* const gate = static_cast<const T*>(g.x) + 2 * r * g.width;
        const T* const grad = static_cast<const T*>(grad_y) + r * g.width;
        T* const out = static_cast<T*>(grad_x) + 2 * r * g.width;
        each(g.width, [&](int64_t i, auto part) {
            const Floats x = load(gate + i, part), s = sigmoid(x), a = load(grad + i, part);
            // silu' = s (1 + x (1 - s))
            const Floats slope = s * fma(x, all(1.0f) - s, all(1.0f));
            store(out + i, a * load(gate + g.width + i, part) * slope, part);
            store(out + g.width + i, a * x * s, part);
        });
    }
}

void forward_of(const Swiglu& g, void* y, int64_t begin, int64_t end) {
    (is_half(g.format) ? forward<uint16_t> : forward<float>)(g, y, begin, end);
}

void backward_of(const Swiglu& g, const void* grad_y, void* grad_x, int64_t begin, int64_t end) {
    (is_half(g.format) ? backward<uint16_t> : backward<float>)(g, grad_y, grad_x, begin, end);
}

constexpr enma::SwigluKernels KERNELS{&forward_of, &backward_of};

}  // namespace gated
}  // namespace
