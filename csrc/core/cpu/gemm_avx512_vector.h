// Vectors of AVX-512, for the files that are compiled for it.
#pragma once

namespace enma {
namespace {

struct Avx512 {
    typedef __m512 Float;
    static constexpr int LANES = 16;
    static constexpr int ACCUMULATORS = 24;
    // Addresses of more rows do not stay in registers; measured, docs/notes/packed-products.md.
    static constexpr int MAX_ROWS = 9;

    ENMA_INLINE Float all(float a) { return _mm512_set1_ps(a); }
    ENMA_INLINE Float load(const float* p) { return _mm512_loadu_ps(p); }
    ENMA_INLINE void store(float* p, Float a) { _mm512_storeu_ps(p, a); }
    ENMA_INLINE Float add(Float a, Float b) { return _mm512_add_ps(a, b); }
    ENMA_INLINE Float subtract(Float a, Float b) { return _mm512_sub_ps(a, b); }
    ENMA_INLINE Float multiply(Float a, Float b) { return _mm512_mul_ps(a, b); }
    ENMA_INLINE Float divide(Float a, Float b) { return _mm512_div_ps(a, b); }
    ENMA_INLINE Float fma(Float a, Float b, Float c) { return _mm512_fmadd_ps(a, b, c); }
    ENMA_INLINE Float broadcast(const float* p) { return all(*p); }
    ENMA_INLINE Float accumulate(Float sum, Float a, Float b) { return fma(a, b, sum); }
    ENMA_INLINE float fma_one(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
    // Both return b if it is NaN.
    ENMA_INLINE Float minimum(Float a, Float b) { return _mm512_min_ps(a, b); }
    ENMA_INLINE Float maximum(Float a, Float b) { return _mm512_max_ps(a, b); }
    // a 2^n for the integer n in the low bits of `shifted`.
    ENMA_INLINE Float scale_by_power(Float a, Float shifted) {
        const __m512i exponent = _mm512_slli_epi32(_mm512_castps_si512(shifted), 23);
        return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(a), exponent));
    }
    ENMA_INLINE float sum(Float a) { return _mm512_reduce_add_ps(a); }
    ENMA_INLINE void store_half(Half* p, Float a) { store_rounded<Avx512>(p, a); }
    // The even or the odd halves of pairs of bf16; in this order, as the compiler would move loads ahead and then sums
    // through memory.
    template <bool ODD>
    ENMA_INLINE Float widen(const uint32_t* pairs) {
        const __m512i_u& both = *reinterpret_cast<const __m512i_u*>(pairs);
        Float a;
        if constexpr (ODD) {
            const __m512i mask = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
            asm volatile("vpandd %1, %2, %0" : "=v"(a) : "m"(both), "v"(mask));
        } else {
            asm volatile("vpslld $16, %1, %0" : "=v"(a) : "m"(both));
        }
        return a;
    }
};

}  // namespace
}  // namespace enma
