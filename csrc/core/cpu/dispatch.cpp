#include "core/cpu/dispatch.h"

#include <cstdlib>
#include <stdexcept>

namespace enma {

namespace {

constexpr Isa ALL[] = {Isa::scalar, Isa::avx2, Isa::avx512, Isa::avx512_bf16};

#ifdef ENMA_X86_KERNELS
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
bool has_avx512() {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}
bool has_avx512_bf16() { return has_avx512() && __builtin_cpu_supports("avx512bf16"); }
#else
bool has_avx2() { return false; }
bool has_avx512() { return false; }
bool has_avx512_bf16() { return false; }
#endif

}  // namespace

const char* isa_name(Isa isa) {
    switch (isa) {
        case Isa::scalar: return "scalar";
        case Isa::avx2: return "avx2";
        case Isa::avx512: return "avx512";
        case Isa::avx512_bf16: return "avx512_bf16";
    }
    return "unknown";
}

bool isa_supported(Isa isa) {
    switch (isa) {
        case Isa::avx2: return has_avx2();
        case Isa::avx512: return has_avx512();
        case Isa::avx512_bf16: return has_avx512_bf16();
        default: return true;
    }
}

Isa best_isa() {
    static const Isa best = [] {
        const char* asked = std::getenv("ENMA_ISA");
        if (asked != nullptr && *asked != '\0') {
            try {
                return isa_by_name(asked);
            } catch (const std::invalid_argument& error) {
                throw std::invalid_argument("ENMA_ISA: " + std::string(error.what()));
            }
        }
        return has_avx512_bf16() ? Isa::avx512_bf16 : has_avx512() ? Isa::avx512 : has_avx2() ? Isa::avx2 : Isa::scalar;
    }();
    return best;
}

std::vector<std::string> supported_isas() {
    std::vector<std::string> names;
    for (Isa isa : ALL) {
        if (isa_supported(isa)) names.emplace_back(isa_name(isa));
    }
    return names;
}

Isa isa_by_name(const std::string& name) {
    if (name.empty()) return best_isa();
    std::string known;
    for (Isa isa : ALL) {
        known += (known.empty() ? "" : ", ") + std::string(isa_name(isa));
        if (name != isa_name(isa)) continue;
        if (!isa_supported(isa))
            throw std::invalid_argument("isa '" + name + "' is not supported by this processor or system");
        return isa;
    }
    throw std::invalid_argument("isa '" + name + "' is unknown; expected one of " + known);
}

}  // namespace enma
