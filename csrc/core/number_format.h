// Formats of stored weights and of activations. Sums are fp32 in all of them.
#pragma once

namespace enma {

enum class NumberFormat { fp32, bf16 };

}  // namespace enma
