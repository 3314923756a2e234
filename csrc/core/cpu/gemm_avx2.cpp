// AVX2 and FMA. Headers with inline functions come before the target pragma, see gemm_kernels.h.
#include "core/cpu/sampler.h"

#ifdef ENMA_X86_KERNELS

#include <immintrin.h>

#pragma GCC target("avx2,fma")
// Else GCC keeps one of twelve sums in memory where bf16 weights meet three rows, which is a third slower.
#pragma GCC optimize("no-tree-coalesce-vars")

#include "core/cpu/sampler_kernels.h"

namespace enma {
namespace {

struct Vector {
    typedef __m256 Float;
    static constexpr int LANES = 8;
    static constexpr int ACCUMULATORS = 12;
    static constexpr int MAX_ROWS = 6;
    static constexpr uint32_t HIGH = 0xffff0000u;

    ENMA_INLINE Float all(float a) { return _mm256_set1_ps(a); }
    ENMA_INLINE Float load(const float* p) { return _mm256_loadu_ps(p); }
    ENMA_INLINE void store(float* p, Float a) { _mm256_storeu_ps(p, a); }
    ENMA_INLINE Float add(Float a, Float b) { return _mm256_add_ps(a, b); }
    ENMA_INLINE Float subtract(Float a, Float b) { return _mm256_sub_ps(a, b); }
    ENMA_INLINE Float multiply(Float a, Float b) { return _mm256_mul_ps(a, b); }
    ENMA_INLINE Float divide(Float a, Float b) { return _mm256_div_ps(a, b); }
    ENMA_INLINE Float fma(Float a, Float b, Float c) { return _mm256_fmadd_ps(a, b, c); }
    // The inner loops keep every register busy. In this order they fit; the compiler would move loads ahead.
    ENMA_INLINE Float broadcast(const float* p) {
        Float a;
        asm volatile("vbroadcastss %1, %0" : "=x"(a) : "m"(*p));
        return a;
    }
    ENMA_INLINE Float accumulate(Float sum, Float a, Float b) {
        asm volatile("vfmadd231ps %2, %1, %0" : "+x"(sum) : "x"(a), "x"(b));
        return sum;
    }
    // The even or the odd halves of pairs of bf16.
    template <bool ODD>
    ENMA_INLINE Float widen(const uint32_t* pairs) {
        alignas(32) static constexpr uint32_t mask[] = {HIGH, HIGH, HIGH, HIGH, HIGH, HIGH, HIGH, HIGH};
        const __m256i_u& both = *reinterpret_cast<const __m256i_u*>(pairs);
        Float a;
        if constexpr (ODD) {
            asm volatile("vmovaps %2, %0\n\tvandps %1, %0, %0"
                         : "=&x"(a)
                         : "m"(both), "m"(*reinterpret_cast<const __m256i*>(mask)));
        } else {
            asm volatile("vmovdqu %1, %0\n\tvpslld $16, %0, %0" : "=&x"(a) : "m"(both));
        }
        return a;
    }
    ENMA_INLINE float fma_one(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
    // Both return b if it is NaN.
    ENMA_INLINE Float minimum(Float a, Float b) { return _mm256_min_ps(a, b); }
    ENMA_INLINE Float maximum(Float a, Float b) { return _mm256_max_ps(a, b); }
    // a 2^n for the integer n in the low bits of `shifted`.
    ENMA_INLINE Float scale_by_power(Float a, Float shifted) {
        const __m256i exponent = _mm256_slli_epi32(_mm256_castps_si256(shifted), 23);
        return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a), exponent));
    }
    ENMA_INLINE float sum(Float a) {
        __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
        b = _mm_add_ps(b, _mm_movehl_ps(b, b));
        return _mm_cvtss_f32(_mm_add_ss(b, _mm_movehdup_ps(b)));
    }
    ENMA_INLINE void store_half(Half* p, Float a) { store_rounded<Vector>(p, a); }
};

}  // namespace

const Kernels kernels_avx2 = kernels_with<Vector, Widened>();

}  // namespace enma

#endif
