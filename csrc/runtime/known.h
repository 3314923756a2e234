// Known inputs of a trajectory, given by name in the units of training: checked, and standardised.
// enma_fast/forecasting/known.py
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "core/cpu/drivers.h"
#include "runtime/model.h"
#include "runtime/tensor.h"

namespace enma {

class KnownInputs {
   public:
    // Messages begin with `argument`. The model outlives it.
    KnownInputs(const Model& model, const char* argument) : model_(&model), argument_(argument) {}

    // Takes one of them, in place of what it was. Throws Error for a name that the model does not have, and for values
    // of another shape, or that are missing where fields have values.
    void give(const std::string& name, const DLTensor* values);
    // All of them, for a trajectory of so many frames. Throws Error that names what lacks or ends too early.
    Told told(std::int64_t frames) const;
    void clear() { given_.clear(); }

    // Of a saved session: what `told` gave, as parts in bytes, and back from `at` on, which moves on. Throws Error.
    static void save(const Told& told, const std::function<void(const void*, std::size_t)>& put);
    Told restored(const char*& at, const char* end, std::int64_t frames) const;

   private:
    std::string shape_text(const KnownInput& input, std::int64_t frames) const;

    const Model* model_;
    const char* argument_;
    std::map<std::string, Driver> given_;
};

}  // namespace enma
