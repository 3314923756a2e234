// The vectors that every processor has: on x86-64 vectors of four floats, and no fused multiply-add.
#include "core/cpu/sampler.h"
#include "core/cpu/sampler_kernels.h"

namespace enma {
namespace {

struct Vector {
    typedef float Float __attribute__((vector_size(16)));
    typedef uint32_t Bits __attribute__((vector_size(16)));
    static constexpr int LANES = 4;
    static constexpr int ACCUMULATORS = 12;
    static constexpr int MAX_ROWS = 3;

    ENMA_INLINE Float all(float a) { return Float{} + a; }
    ENMA_INLINE Float load(const float* p) {
        Float a;
        __builtin_memcpy(&a, p, sizeof a);
        return a;
    }
    ENMA_INLINE void store(float* p, Float a) { __builtin_memcpy(p, &a, sizeof a); }
    ENMA_INLINE Float add(Float a, Float b) { return a + b; }
    ENMA_INLINE Float subtract(Float a, Float b) { return a - b; }
    ENMA_INLINE Float multiply(Float a, Float b) { return a * b; }
    ENMA_INLINE Float divide(Float a, Float b) { return a / b; }
    ENMA_INLINE Float fma(Float a, Float b, Float c) { return a * b + c; }
    ENMA_INLINE Float broadcast(const float* p) { return all(*p); }
    ENMA_INLINE Float accumulate(Float sum, Float a, Float b) { return fma(a, b, sum); }
    ENMA_INLINE float fma_one(float a, float b, float c) { return a * b + c; }
    // Both return b if it is NaN.
    ENMA_INLINE Float minimum(Float a, Float b) { return a < b ? a : b; }
    ENMA_INLINE Float maximum(Float a, Float b) { return a > b ? a : b; }
    // a 2^n for the integer n in the low bits of `shifted`.
    ENMA_INLINE Float scale_by_power(Float a, Float shifted) { return (Float)((Bits)a + ((Bits)shifted << 23)); }
    ENMA_INLINE float sum(Float a) {
        float lanes[LANES];
        store(lanes, a);
        for (int width = LANES / 2; width > 0; width /= 2) {
            for (int j = 0; j < width; ++j) lanes[j] += lanes[j + width];
        }
        return lanes[0];
    }
    // The even or the odd halves of pairs of bf16.
    template <bool ODD>
    ENMA_INLINE Float widen(const uint32_t* pairs) {
        Bits both;
        __builtin_memcpy(&both, pairs, sizeof both);
        return (Float)(ODD ? both & 0xffff0000u : both << 16);
    }
    ENMA_INLINE void store_half(Half* p, Float a) { store_rounded<Vector>(p, a); }
};

}  // namespace

const Kernels kernels_scalar = kernels_with<Vector, Widened>();

}  // namespace enma
