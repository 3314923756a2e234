#include <cstdint>

#include "core/cpu/frame_attention.h"

#define ENMA_LANES 4
#include "core/cpu/lanes.h"
// The body needs the lanes.
#include "core/cpu/frame_attention_body.h"

const enma::FrameAttentionKernels* enma::frame_attention_portable() { return &KERNELS; }
