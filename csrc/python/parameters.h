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

}  // namespace enma
