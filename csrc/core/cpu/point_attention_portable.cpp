#include <cstdint>

#include "core/cpu/point_attention_task.h"

#define ENMA_POINT_ATTENTION_NAME "portable"
#define ENMA_POINT_ATTENTION_WIDTH 4
#include "core/cpu/point_attention_vector.h"
// The body needs the vector.
#include "core/cpu/point_attention_body.h"

const enma::PointAttentionKernels* enma::point_attention_portable() { return &KERNELS; }
