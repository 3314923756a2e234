// Checkpoints of format 1, which the shipped models still have: config and names of tensors become those of format 2, which
// config.h reads. checkpoint.cpp calls it; nothing behind it knows format 1.
#pragma once

#include <functional>
#include <string>

#include "core/json.h"

namespace enma {

// The name in format 2 of a tensor; empty for one that format 2 does not have.
using NewName = std::function<std::string(const std::string& name)>;

struct FromFormat1 {
    Json config;
    NewName name;
};

// Fields that were never valid stay, for config.h to refuse. Throws Error for values that format 2 cannot say.
FromFormat1 from_format_1(Json config, const std::string& source);

}  // namespace enma
