// System headers come before the pragma: what they define inline must stay runnable on any machine, since the linker
// keeps one copy for the whole program. Behind it all is anonymous.
#include <cstdint>

#include "core/cpu/modulated_norm.h"

#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__)
#include <immintrin.h>

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma")
#define ENMA_LANES 16
#define ENMA_AVX512
#include "core/cpu/lanes.h"
// The body needs the lanes.
#include "core/cpu/modulated_norm_body.h"
#pragma GCC pop_options

const enma::ModulatedNormKernels* enma::modulated_norm_avx512() { return &KERNELS; }
#else
const enma::ModulatedNormKernels* enma::modulated_norm_avx512() { return nullptr; }
#endif
