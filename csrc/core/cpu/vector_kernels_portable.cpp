#include <cstdint>

#include "core/cpu/vector_kernels.h"

#define ENMA_LANES 4
#include "core/cpu/vector_bodies.h"

const enma::VectorKernels enma::vector_kernels_portable = ENMA_VECTOR_KERNELS;
