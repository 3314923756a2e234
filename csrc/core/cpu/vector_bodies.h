// The kernels of every operator, behind the lanes of an instruction set.
#pragma once

#include "core/cpu/lanes.h"
#include "core/cpu/tiles.h"
// The bodies need the lanes.
#include "core/cpu/elu_body.h"
#include "core/cpu/frame_attention_body.h"
#include "core/cpu/point_attention_body.h"
#include "core/cpu/rms_norm_body.h"
#include "core/cpu/row_sums_body.h"
#include "core/cpu/second_difference_body.h"
#include "core/cpu/self_attention_body.h"
#include "core/cpu/swiglu_body.h"
#include "core/cpu/tile_convolution_body.h"
#include "core/cpu/wave_transform_body.h"

#define ENMA_VECTOR_KERNELS                                                                \
    {frame::KERNELS, point::KERNELS, norm::KERNELS,  projected::KERNELS,   gated::KERNELS, \
     units::elu,     sums::of_rows,  tiled::KERNELS, differences::KERNELS, waves::KERNELS}
