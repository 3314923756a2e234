// The kernels of AVX-512 and AVX-512 BF16 on vectors emulated one number at a time, so that machines without can test
// them.
#ifdef ENMA_EMULATION
#include "core/cpu/sampler.h"

// Small and slow: full optimisation takes a minute and half a megabyte.
#pragma GCC optimize("O1")
#ifndef ENMA_SMALL
#define ENMA_SMALL
#endif
#include "core/cpu/sampler_kernels.h"

namespace enma {
namespace {

// Calls, not copies of every loop below.
#define ENMA_CALLED __attribute__((noinline)) static

struct Emulated {
    static constexpr int LANES = 16;
    static constexpr int ACCUMULATORS = 24;
    static constexpr int MAX_ROWS = 9;

    struct Float {
        float lanes[LANES];
    };
    struct Pair {
        Half lanes[LANES][2];
    };

    template <class F>
    ENMA_INLINE Float each(F f) {
        Float out;
        for (int j = 0; j < LANES; ++j) out.lanes[j] = f(j);
        return out;
    }

    ENMA_CALLED Float all(float a) {
        return each([&](int) { return a; });
    }
    ENMA_CALLED Float load(const float* p) {
        return each([&](int j) { return p[j]; });
    }
    ENMA_CALLED void store(float* p, const Float& a) {
        for (int j = 0; j < LANES; ++j) p[j] = a.lanes[j];
    }
    ENMA_CALLED Float add(const Float& a, const Float& b) {
        return each([&](int j) { return a.lanes[j] + b.lanes[j]; });
    }
    ENMA_CALLED Float subtract(const Float& a, const Float& b) {
        return each([&](int j) { return a.lanes[j] - b.lanes[j]; });
    }
    ENMA_CALLED Float multiply(const Float& a, const Float& b) {
        return each([&](int j) { return a.lanes[j] * b.lanes[j]; });
    }
    ENMA_CALLED Float divide(const Float& a, const Float& b) {
        return each([&](int j) { return a.lanes[j] / b.lanes[j]; });
    }
    ENMA_CALLED Float fma(const Float& a, const Float& b, const Float& c) {
        return each([&](int j) { return fma_one(a.lanes[j], b.lanes[j], c.lanes[j]); });
    }
    ENMA_CALLED Float broadcast(const float* p) { return all(*p); }
    ENMA_CALLED Float accumulate(const Float& sum, const Float& a, const Float& b) { return fma(a, b, sum); }
    ENMA_CALLED float fma_one(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
    // Both return b if it is NaN.
    ENMA_CALLED Float minimum(const Float& a, const Float& b) {
        return each([&](int j) { return a.lanes[j] < b.lanes[j] ? a.lanes[j] : b.lanes[j]; });
    }
    ENMA_CALLED Float maximum(const Float& a, const Float& b) {
        return each([&](int j) { return a.lanes[j] > b.lanes[j] ? a.lanes[j] : b.lanes[j]; });
    }
    // a 2^n for the integer n in the low bits of `shifted`.
    ENMA_CALLED Float scale_by_power(const Float& a, const Float& shifted) {
        return each([&](int j) {
            uint32_t bits, power;
            __builtin_memcpy(&bits, a.lanes + j, sizeof bits);
            __builtin_memcpy(&power, shifted.lanes + j, sizeof power);
            bits += power << 23;
            float value;
            __builtin_memcpy(&value, &bits, sizeof value);
            return value;
        });
    }
    ENMA_CALLED float sum(Float a) {
        for (int width = LANES / 2; width > 0; width /= 2) {
            for (int j = 0; j < width; ++j) a.lanes[j] += a.lanes[j + width];
        }
        return a.lanes[0];
    }
    ENMA_CALLED void store_half(Half* p, const Float& a) {
        for (int j = 0; j < LANES; ++j) p[j] = rounded(a.lanes[j]);
    }
    // The even or the odd halves of pairs of bf16.
    template <bool ODD>
    ENMA_CALLED Float widen(const uint32_t* pairs) {
        const Pair both = load_pairs(pairs);
        return each([&](int j) { return widened(both.lanes[j][ODD]); });
    }
    ENMA_CALLED Pair load_pairs(const uint32_t* p) {
        Pair a;
        __builtin_memcpy(&a, p, sizeof a);
        return a;
    }
    ENMA_CALLED Pair all_pairs(const Half* p) {
        Pair a;
        for (int j = 0; j < LANES; ++j) {
            a.lanes[j][0] = p[0];
            a.lanes[j][1] = p[1];
        }
        return a;
    }
    // As VDPBF16PS: the odd products first. Products of two bf16 are exact in fp32, so none of it needs to be fused.
    ENMA_CALLED Float dot(const Float& sum, const Pair& a, const Pair& b) {
        return each([&](int j) {
            const float odd = widened(a.lanes[j][1]) * widened(b.lanes[j][1]) + sum.lanes[j];
            return widened(a.lanes[j][0]) * widened(b.lanes[j][0]) + odd;
        });
    }
};

}  // namespace

const Kernels kernels_emulated_avx512 = kernels_with<Emulated, Widened>();
const Kernels kernels_emulated_avx512_bf16 = kernels_with<Emulated, Paired>();

}  // namespace enma

#endif
