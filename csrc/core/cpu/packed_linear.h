// Linear layers with packed weights, and the widths of the rows that they take and give.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "core/cpu/gemm.h"
#include "core/cpu/parallel.h"

namespace enma {

// A linear layer of all places, with packed weights.
class Linear {
   public:
    Linear() = default;
    // Column j has weight(j, k) and bias(j).
    template <class Weight, class Bias>
    Linear(int columns, int inputs, const Weight& weight, const Bias& bias)
        : packed_(packed_bytes(columns, inputs, NumberFormat::fp32)) {
        std::vector<float> weights(static_cast<std::size_t>(columns) * inputs), biases(columns);
        for (int j = 0; j < columns; ++j) {
            for (int k = 0; k < inputs; ++k) weights[static_cast<std::size_t>(j) * inputs + k] = weight(j, k);
            biases[j] = bias(j);
        }
        pack_linear(weights.data(), biases.data(), columns, inputs, NumberFormat::fp32, packed_.data());
        view_ = view_linear(packed_.data(), columns, inputs, NumberFormat::fp32);
    }
    const LinearView& view() const { return view_; }

   private:
    Buffer packed_;
    LinearView view_{};
};

// The fp32 values of the parameter of this name and shape, which outlive the call; throws where there is no such one.
using TakeParameter = std::function<const float*(const std::string& name, const std::vector<std::int64_t>& shape)>;

// The layer `name`, [outward, inward], over rows of whole panels; of its columns the first `used`.
Linear read_linear(const TakeParameter& take, const std::string& name, int inward, int outward, int used);

}  // namespace enma
