// System headers come before the pragma: what they define inline must stay runnable on any machine, since the linker
// keeps one copy for the whole program. Behind it all is anonymous.
#include <cstdint>

#include "core/cpu/vector_kernels.h"

#ifdef ENMA_X86_KERNELS
#include <immintrin.h>

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma")
#pragma GCC optimize("fp-contract=fast")
#define ENMA_LANES 16
#define ENMA_AVX512
#include "core/cpu/lanes.h"
#include "core/cpu/tiles.h"
// The bodies need the lanes.
#include "core/cpu/elu_body.h"
#include "core/cpu/frame_attention_body.h"
#include "core/cpu/point_attention_body.h"
#include "core/cpu/rms_norm_body.h"
#include "core/cpu/row_sums_body.h"
#include "core/cpu/self_attention_body.h"
#include "core/cpu/swiglu_body.h"
#pragma GCC pop_options

static constexpr enma::VectorKernels KERNELS{frame::KERNELS, point::KERNELS, norm::KERNELS, projected::KERNELS,
                                             gated::KERNELS, units::elu,     sums::of_rows};

const enma::VectorKernels* enma::vector_kernels_avx512() { return &KERNELS; }
#else
const enma::VectorKernels* enma::vector_kernels_avx512() { return nullptr; }
#endif
