// Vectors of AVX-512 with products of bf16, for the files that are compiled for both.
#pragma once

#include "core/cpu/gemm_avx512_vector.h"

namespace enma {
namespace {

struct Avx512Bf16 : Avx512 {
    typedef __m512i Pair;

    ENMA_INLINE Pair load_pairs(const uint32_t* p) { return _mm512_loadu_si512(p); }
    ENMA_INLINE Pair all_pairs(const Half* p) {
        int pair;
        __builtin_memcpy(&pair, p, sizeof pair);
        return _mm512_set1_epi32(pair);
    }
    ENMA_INLINE Float dot(Float sum, Pair a, Pair b) { return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b); }
    ENMA_INLINE void store_half(Half* p, Float a) {
        const __m256i halves = (__m256i)_mm512_cvtneps_pbh(a);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), halves);
    }
};

}  // namespace
}  // namespace enma
