// Which instruction set the kernels use, decided at run time: one build serves every x86-64 processor, and others too.
#pragma once

#include <string>
#include <vector>

// The kernels are compiled for more than the baseline by a pragma of GCC.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define ENMA_X86_KERNELS 1
#endif

namespace enma {

// Emulated: the AVX-512 kernels on vectors of 16 floats made of whatever the baseline has, for tests.
enum class Isa { scalar, avx2, avx512, avx512_bf16, emulated_avx512, emulated_avx512_bf16 };

const char* isa_name(Isa isa);

// Whether this processor, and the operating system's saving of its registers, can run it.
bool isa_supported(Isa isa);

// The best this processor has; never an emulated one.
Isa best_isa();

// Every instruction set that can run here, by name.
std::vector<std::string> supported_isas();

// An operator's kernels for an instruction set; null where the compiler could not make them, then the portable ones.
template <class Kernels>
const Kernels& kernels_for(
    Isa isa, const Kernels* portable, const Kernels* avx2, const Kernels* avx512, const Kernels* emulated
) {
    const Kernels* found = nullptr;
    switch (isa) {
        case Isa::avx2: found = avx2; break;
        case Isa::avx512:
        case Isa::avx512_bf16: found = avx512; break;
        case Isa::emulated_avx512:
        case Isa::emulated_avx512_bf16: found = emulated; break;
        case Isa::scalar: break;
    }
    return found != nullptr ? *found : *portable;
}

// By name, "" for the best. Throws std::invalid_argument if unknown or not supported here.
Isa isa_by_name(const std::string& name);

}  // namespace enma
