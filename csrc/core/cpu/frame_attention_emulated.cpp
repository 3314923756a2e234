// Vectors of 16 lanes out of what the baseline has: the code of AVX-512 under test on any machine.
#include <cstdint>

#include "core/cpu/frame_attention.h"

#define ENMA_LANES 16
#include "core/cpu/lanes.h"
// The body needs the lanes.
#include "core/cpu/frame_attention_body.h"

const enma::FrameAttentionKernels* enma::frame_attention_emulated() { return &KERNELS; }
