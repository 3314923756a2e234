// Numbers nearer to zero than 2^-126: kept, or taken for zero, by this thread.
#pragma once

#include <cstdint>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace enma {

inline void flush_subnormals(bool flush) {
#if defined(__x86_64__)
    constexpr unsigned RESULTS_AND_INPUTS = 0x8040;
    _mm_setcsr(flush ? _mm_getcsr() | RESULTS_AND_INPUTS : _mm_getcsr() & ~RESULTS_AND_INPUTS);
#elif defined(__aarch64__)
    constexpr std::uint64_t RESULTS_AND_INPUTS = std::uint64_t{1} << 24;
    std::uint64_t state;
    asm volatile("mrs %0, fpcr" : "=r"(state));
    state = flush ? state | RESULTS_AND_INPUTS : state & ~RESULTS_AND_INPUTS;
    asm volatile("msr fpcr, %0" : : "r"(state));
#else
    (void)flush;
#endif
}

}  // namespace enma
