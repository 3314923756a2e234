// Vectors of 16 lanes out of what the baseline has: the code of AVX-512 under test on any machine.
#include <cstdint>

#include "core/cpu/modulated_norm.h"

#define ENMA_LANES 16
#include "core/cpu/lanes.h"
// The body needs the lanes.
#include "core/cpu/modulated_norm_body.h"

const enma::ModulatedNormKernels* enma::modulated_norm_emulated() { return &KERNELS; }
