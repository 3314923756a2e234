// Parameters of Python modules as the engine reads weights: by name, without a copy.
#pragma once

#include <string>

#include "python/tensor.h"
#include "runtime/checkpoint.h"

namespace enma {

inline Tensors tensors_of(const pybind11::dict& parameters) {
    Tensors out;
    for (const auto& [name, parameter] : parameters) {
        const std::string key = pybind11::str(name);
        expect(Tensor::is_one(parameter), "parameter ", key, " is no tensor");
        out.add(key, Tensor::of(parameter).view());
    }
    return out;
}

// By name, fp32 or bf16; ValueError for another.
inline NumberFormat format_of(const std::string& name) {
    expect(name == "fp32" || name == "bf16", "format is '", name, "'; expected 'fp32' or 'bf16'");
    return name == "bf16" ? NumberFormat::bf16 : NumberFormat::fp32;
}

}  // namespace enma
