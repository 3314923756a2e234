#include <cstdint>

#include "core/cpu/modulated_norm.h"

#define ENMA_LANES 4
#include "core/cpu/lanes.h"
// The body needs the lanes.
#include "core/cpu/modulated_norm_body.h"

const enma::ModulatedNormKernels* enma::modulated_norm_portable() { return &KERNELS; }
