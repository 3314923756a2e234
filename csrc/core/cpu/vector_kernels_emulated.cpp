// Vectors of 16 lanes out of what the baseline has: the code of AVX-512 under test on any machine.
#ifdef ENMA_EMULATION
#include <cstdint>

#include "core/cpu/vector_kernels.h"

// Small and slow: full optimisation of lanes that are no vectors takes five times as long.
#pragma GCC optimize("O1")

#define ENMA_LANES 16
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

static constexpr enma::VectorKernels KERNELS{frame::KERNELS, point::KERNELS, norm::KERNELS, projected::KERNELS,
                                             gated::KERNELS, units::elu,     sums::of_rows};

const enma::VectorKernels* enma::vector_kernels_emulated() { return &KERNELS; }

#endif
