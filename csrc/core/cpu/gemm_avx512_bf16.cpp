// AVX-512 with BF16: where weights are in bf16, inputs are rounded to bf16 too. Headers with inline functions come
// before the target pragma, see gemm_kernels.h.
#include "core/cpu/sampler.h"

#ifdef ENMA_X86_KERNELS

#include <immintrin.h>

#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma")

#include "core/cpu/sampler_kernels.h"
#include "core/cpu/gemm_avx512_vector.h"

namespace enma {
namespace {

struct Vector : Avx512 {
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

const Kernels kernels_avx512_bf16 = kernels_with<Vector, Paired>();

}  // namespace enma

#endif
