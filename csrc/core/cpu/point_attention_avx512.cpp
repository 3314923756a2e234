// System headers come before the pragma: what they define inline must stay runnable on any machine, since the linker
// keeps one copy for the whole program. Behind it all is anonymous.
#include <cstdint>

#include "core/cpu/point_attention_task.h"

#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__)
#include <immintrin.h>

#pragma GCC push_options
#pragma GCC target("avx512f,avx2,fma")
#define ENMA_POINT_ATTENTION_NAME "avx512"
#define ENMA_POINT_ATTENTION_WIDTH 16
#include "core/cpu/point_attention_vector.h"
// The body needs the vector.
#include "core/cpu/point_attention_body.h"
#pragma GCC pop_options

const enma::PointAttentionKernels* enma::point_attention_avx512() { return &KERNELS; }
#else
const enma::PointAttentionKernels* enma::point_attention_avx512() { return nullptr; }
#endif
