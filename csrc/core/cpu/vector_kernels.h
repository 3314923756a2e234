// The kernels over vectors of lanes.h: one translation unit of each instruction set holds those of every operator.
#pragma once

#include "core/cpu/dispatch.h"
#include "core/cpu/frame_attention.h"
#include "core/cpu/point_attention.h"
#include "core/cpu/rms_norm.h"
#include "core/cpu/row_sums.h"
#include "core/cpu/second_difference.h"
#include "core/cpu/self_attention.h"
#include "core/cpu/swiglu.h"
#include "core/cpu/tile_convolution.h"
#include "core/cpu/wave_transform.h"

namespace enma {

struct VectorKernels {
    FrameAttentionKernels frame_attention;
    PointAttentionKernels point_attention;
    RmsNormKernels rms_norm;
    SelfAttentionKernels self_attention;
    SwigluKernels swiglu;
    // Values through elu, in place.
    void (*elu)(float* values, int64_t count);
    void (*row_sums)(const RowSums& sums);
    TileKernels tiles;
    DifferenceKernels differences;
    WaveKernels waves;
};

extern const VectorKernels vector_kernels_portable, vector_kernels_avx2, vector_kernels_avx512;

// Those of an instruction set, or the portable ones where the compiler could not make them.
const VectorKernels& vector_kernels(Isa isa);

}  // namespace enma
