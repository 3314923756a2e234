// An instruction set by the name that a caller gave; none is the best one.
#pragma once

#include <c10/util/Exception.h>

#include <stdexcept>
#include <string>

#include "core/cpu/dispatch.h"

namespace enma {

// Throws ValueError, which begins with the operator, for one that is not known or not there.
inline Isa isa_of(const char* op, const std::string& name) {
    try {
        return isa_by_name(name);
    } catch (const std::invalid_argument& error) {
        TORCH_CHECK_VALUE(false, op, ": ", error.what());
    }
}

}  // namespace enma
