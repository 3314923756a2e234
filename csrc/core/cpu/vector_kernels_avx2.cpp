// System headers come before the pragma: what they define inline must stay runnable on any machine, since the linker
// keeps one copy for the whole program. Behind it all is anonymous.
#include <cstdint>

#include "core/cpu/vector_kernels.h"

#ifdef ENMA_X86_KERNELS
#include <immintrin.h>

#pragma GCC push_options
#pragma GCC target("avx2,fma")
#pragma GCC optimize("fp-contract=fast")
#define ENMA_LANES 8
#define ENMA_AVX2
#include "core/cpu/vector_bodies.h"
#pragma GCC pop_options

const enma::VectorKernels enma::vector_kernels_avx2 = ENMA_VECTOR_KERNELS;
#endif
