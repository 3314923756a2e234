// AVX-512 without BF16: weights in bf16 are widened. Headers with inline functions come before the target pragma, see
// gemm_kernels.h.
#include "core/cpu/sampler.h"

#ifdef ENMA_X86_KERNELS

#include <immintrin.h>

#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma")
// Fewer sums in memory where bf16 weights are widened.
#pragma GCC optimize("no-tree-coalesce-vars")

#include "core/cpu/sampler_kernels.h"
#include "core/cpu/gemm_avx512_vector.h"

namespace enma {

const Kernels kernels_avx512 = kernels_with<Avx512, Widened>();

}  // namespace enma

#endif
