// Choice of the kernels' instruction set at run time: one build serves every x86-64 processor, and others too.
#pragma once

#include <string>
#include <vector>

// The kernels are compiled for more than the baseline by a pragma of GCC.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define ENMA_X86_KERNELS 1
#endif

namespace enma {

enum class Isa { scalar, avx2, avx512, avx512_bf16 };

const char* isa_name(Isa isa);

// True if this processor, and the operating system's saving of its registers, can run it.
bool isa_supported(Isa isa);

// The one that the environment variable ENMA_ISA names, or the best that this processor has.
// Throws std::invalid_argument as isa_by_name.
Isa best_isa();

// Every instruction set that can run here, by name.
std::vector<std::string> supported_isas();

// By name, "" for the best. Throws std::invalid_argument if unknown or not supported here.
Isa isa_by_name(const std::string& name);

}  // namespace enma
