// Numbers nearer to zero than 2^-126: kept, or taken for zero, by every thread that PyTorch computes with.

#include <ATen/Context.h>
#include <ATen/Parallel.h>

#include "core/cpu/parallel.h"
#include "operators.h"

namespace enma {

// torch.set_flush_denormal is for the calling thread alone; the others of its pool keep what they had at their start.
void flush_subnormals(bool flush) {
    parallel(at::get_num_threads(), [&](int, int) { at::globalContext().setFlushDenormal(flush); });
}

}  // namespace enma
