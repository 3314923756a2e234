#include "core/cpu/vector_kernels.h"

namespace enma {

const VectorKernels& vector_kernels(Isa isa) {
    const VectorKernels* found = nullptr;
    switch (isa) {
        case Isa::avx2: found = vector_kernels_avx2(); break;
        case Isa::avx512:
        case Isa::avx512_bf16: found = vector_kernels_avx512(); break;
        default: break;
    }
    return found != nullptr ? *found : *vector_kernels_portable();
}

}  // namespace enma
