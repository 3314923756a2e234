// System headers come before the pragma: what they define inline must stay runnable on any machine, since the linker
// keeps one copy for the whole program. Behind it all is anonymous.
#include <cstdint>

#include "core/cpu/frame_attention.h"

#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__)
#include <immintrin.h>

#pragma GCC push_options
#pragma GCC target("avx2,fma")
#define ENMA_LANES 8
#define ENMA_AVX2
#include "core/cpu/lanes.h"
// The body needs the lanes.
#include "core/cpu/frame_attention_body.h"
#pragma GCC pop_options

const enma::FrameAttentionKernels* enma::frame_attention_avx2() { return &KERNELS; }
#else
const enma::FrameAttentionKernels* enma::frame_attention_avx2() { return nullptr; }
#endif
