// The views that members have of a field, and frames and points as they show them.
#pragma once

#include <cstdint>
#include <vector>

#include "runtime/config.h"

namespace enma {

// How members see a field, enma_fast/sampling/shifts.py: moved forward by so many grid points along each dimension, or
// between walls mirrored along those with an amount of 1, and then with both dimensions exchanged, or not.
struct View {
    std::vector<std::int64_t> amount;
    bool exchanged = false;

    bool moves() const;
};

// The view of each shift. Throws Error (ENMA_INVALID_ARGUMENT).
std::vector<View> views(const ModelConfig& config, int shifts);

// A frame [*grid, c] as a view shows it, or back.
void shift(const float* frame, const CodecConfig& codec, const View& view, bool back, float* out);

// What rounding may take a coordinate beyond the ends of the domain, as a part of its length.
constexpr double AT_THE_END = 1e-6;

// Points [count, d] where a view shows them; those that it does not move are given back as they are.
const float* move(const float* points, std::int64_t count, const CodecConfig& codec, const View& view, float* out);

}  // namespace enma
