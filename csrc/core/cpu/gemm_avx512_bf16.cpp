// AVX-512 with BF16: where weights are in bf16, inputs are rounded to bf16 too. Headers with inline functions come
// before the target pragma, see gemm_kernels.h.
#include "core/cpu/sampler.h"

#ifdef ENMA_X86_KERNELS

#include <immintrin.h>

#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma")

#include "core/cpu/sampler_kernels.h"
#include "core/cpu/gemm_avx512_bf16_vector.h"

namespace enma {

const Kernels kernels_avx512_bf16 = kernels_with<Avx512Bf16, Paired>();

}  // namespace enma

#endif
