#include "core/cpu/gemm.h"

#include <cstring>

#include "core/half.h"

namespace enma {

namespace {

std::size_t weight_bytes(int n, int k, NumberFormat format) {
    const std::size_t panels = (static_cast<std::size_t>(n) + PANEL - 1) / PANEL;
    const std::size_t words = is_half(format) ? (static_cast<std::size_t>(k) + 1) / 2 : static_cast<std::size_t>(k);
    return panels * PANEL * words * 4;
}

}  // namespace

std::size_t packed_bytes(int n, int k, NumberFormat format) {
    return weight_bytes(n, k, format) + (static_cast<std::size_t>(n) + PANEL - 1) / PANEL * PANEL * sizeof(float);
}

void pack_linear(const void* weight, const void* bias, int n, int k, NumberFormat format, void* packed) {
    std::memset(packed, 0, packed_bytes(n, k, format));
    const std::ptrdiff_t words = is_half(format) ? (k + 1) / 2 : k;
    for (int i = 0; i < n; ++i) {
        const std::ptrdiff_t at = static_cast<std::ptrdiff_t>(i / PANEL) * words * PANEL + i % PANEL;
        if (is_half(format)) {
            const std::uint16_t* row = static_cast<const std::uint16_t*>(weight) + static_cast<std::ptrdiff_t>(i) * k;
            std::uint16_t* out = static_cast<std::uint16_t*>(packed) + 2 * at;
            for (int j = 0; j < k; ++j) out[static_cast<std::ptrdiff_t>(j / 2) * 2 * PANEL + j % 2] = row[j];
        } else {
            const float* row = static_cast<const float*>(weight) + static_cast<std::ptrdiff_t>(i) * k;
            float* out = static_cast<float*>(packed) + at;
            for (int j = 0; j < k; ++j) out[static_cast<std::ptrdiff_t>(j) * PANEL] = row[j];
        }
    }
    if (bias == nullptr) return;
    float* biases = reinterpret_cast<float*>(static_cast<char*>(packed) + weight_bytes(n, k, format));
    for (int i = 0; i < n; ++i) {
        biases[i] = is_half(format) ? from_bf16(static_cast<const std::uint16_t*>(bias)[i])
                                    : static_cast<const float*>(bias)[i];
    }
}

LinearView view_linear(const void* packed, int n, int k, NumberFormat format) {
    const char* bias = static_cast<const char*>(packed) + weight_bytes(n, k, format);
    return {packed, reinterpret_cast<const float*>(bias), n, k, format};
}

const Kernels& kernels(Isa isa) {
    switch (isa) {
#ifdef ENMA_X86_KERNELS
        case Isa::avx2: return kernels_avx2;
        case Isa::avx512: return kernels_avx512;
        case Isa::avx512_bf16: return kernels_avx512_bf16;
#endif
        default: return kernels_scalar;
    }
}

}  // namespace enma
