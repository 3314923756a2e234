// Numbers nearer to zero than 2^-126: kept, or taken for zero, by every thread that PyTorch computes with.

#include <ATen/Context.h>
#include <ATen/Parallel.h>

#include "operators.h"

namespace enma {

// torch.set_flush_denormal is for the calling thread alone; the others of its pool keep what they had at their start.
void flush_subnormals(bool flush) {
#pragma omp parallel num_threads(at::get_num_threads())
    at::globalContext().setFlushDenormal(flush);
}

}  // namespace enma
