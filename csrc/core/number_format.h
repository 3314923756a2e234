// Formats of stored weights and of activations. Sums are fp32 in all of them.
#pragma once

namespace enma {

enum class NumberFormat { fp32, bf16 };

constexpr bool is_half(NumberFormat format) { return format == NumberFormat::bf16; }
constexpr int bytes_of(NumberFormat format) { return is_half(format) ? 2 : 4; }

}  // namespace enma
