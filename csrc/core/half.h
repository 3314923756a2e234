// 16-bit floating-point numbers as fp32, exactly, and back; in integers, so that a program which flushes subnormals changes nothing.
#pragma once

#include <bit>
#include <cstdint>

namespace enma {

inline float from_bf16(std::uint16_t bits) { return std::bit_cast<float>(std::uint32_t{bits} << 16); }

// Rounded to the nearest, ties to even.
inline std::uint16_t to_bf16(float value) {
    const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
    if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return 0x7FC0;
    return static_cast<std::uint16_t>((bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16);
}

inline float from_fp16(std::uint16_t bits) {
    const std::uint32_t sign = (bits & 0x8000u) << 16, exponent = bits >> 10 & 0x1Fu;
    std::uint32_t fraction = bits & 0x3FFu;
    if (exponent == 31) return std::bit_cast<float>(sign | 0x7F800000u | fraction << 13);
    if (exponent == 0) {
        if (fraction == 0) return std::bit_cast<float>(sign);
        // A subnormal number, fraction 2^-24, is a normal one in fp32.
        const int zeros = std::countl_zero(fraction) - 21;
        fraction = fraction << zeros & 0x3FFu;
        return std::bit_cast<float>(sign | static_cast<std::uint32_t>(113 - zeros) << 23 | fraction << 13);
    }
    return std::bit_cast<float>(sign | (exponent + 112) << 23 | fraction << 13);
}

}  // namespace enma
