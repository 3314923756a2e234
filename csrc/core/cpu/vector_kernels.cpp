#include "core/cpu/vector_kernels.h"

namespace enma {

const VectorKernels& vector_kernels(Isa isa) {
    switch (isa) {
#ifdef ENMA_X86_KERNELS
        case Isa::avx2: return vector_kernels_avx2;
        case Isa::avx512:
        case Isa::avx512_bf16: return vector_kernels_avx512;
#endif
        default: return vector_kernels_portable;
    }
}

}  // namespace enma
