// Context `physics`: numbers of a trajectory from windows of its frames. enma_fast/models/contexts/physics.py
#pragma once

#include <string>
#include <vector>

#include "core/cpu/floor.h"

namespace enma {

// Numbers that tell the physics, and the most windows that they are read from.
constexpr int PHYSICS_NUMBERS = 32, MOST_WINDOWS = 6;

// Means and root mean squares of training data, for each channel, and their range: Scales of field_step.py.
struct FieldScales {
    FieldScales(const TakeParameter& take, const std::string& prefix, int channels, int views);

    // The last of three frames, its last change and the change of that, each in its own unit, to `row` floats a point.
    void inputs(Past past, std::int64_t points, int row, float* out) const;

    int channels;
    std::vector<float> mean, std, change, bend, error, low, high, view;
};

// First frames of the windows of so many frames, evenly spread; below 0 where there are too few.
std::vector<std::int64_t> window_starts(std::int64_t count);
// Windows [count, 3, values] of frames [T, values]; before fewer frames than three is the first one.
std::vector<float> windows_of(const float* frames, std::int64_t count, std::int64_t values);

struct PhysicsShape {
    std::string floor;
    int block, width, layers, hidden;
};

class PhysicsEncoder {
   public:
    PhysicsEncoder(const PhysicsShape& shape, const FloorGrid& grid, int features, const TakeParameter& take,
                   const std::string& prefix);
    std::size_t bytes() const { return packed_.size(); }
    // The numbers of a trajectory, from its windows and what floor and drivers tell.
    std::vector<float> numbers(const Windows& windows, const std::vector<float>& told, Isa isa) const;

   private:
    PhysicsShape shape_;
    FloorGrid grid_;
    FieldScales scales_;
    GridBlocks blocks_;
    int inward_, features_;  // channels of the stem, numbers of floor and drivers
    GridConvolution stem_;
    std::vector<GatedBlock> stack_;
    std::vector<float> norm_weight_, norm_bias_;
    LinearView hidden_{}, attention_{}, first_{}, last_{};
    Buffer packed_;
};

}  // namespace enma
