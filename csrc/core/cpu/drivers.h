// What a model is told of trajectories beside their fields: drivers, and where fields have values.
// enma_fast/models/drivers.py
#pragma once

#include <cstdint>
#include <vector>

namespace enma {

// What a model was trained to be told.
struct ToldShape {
    std::vector<bool> in_time;  // of each driver
    bool masked = false;

    bool empty() const { return in_time.empty() && !masked; }
    // Numbers of each point in a step, and of a trajectory.
    int inputs() const;
    int numbers() const;
};

// A driver of several trajectories, standardised: [trajectories or 1, frames or 1, points or 1].
struct Driver {
    std::int64_t trajectories, frames, points;
    std::vector<float> values;

    // Of a frame; before the first and after the last one these stay.
    const float* at(std::int64_t trajectory, std::int64_t frame) const;
};

struct Told {
    std::vector<Driver> drivers;
    // 1 where fields have values, [points, channels]; none of fields that have them everywhere.
    std::vector<float> mask;

    // Throws Error if that is not what a model is told of so many trajectories.
    void check(const ToldShape& shape, std::int64_t trajectories, std::int64_t points, std::int64_t channels) const;
    // What the step is told that makes a frame, for each of `points`, in rows of so many floats.
    void inputs(const ToldShape& shape, std::int64_t trajectory, std::int64_t frame, std::int64_t points, int row,
                float* out) const;
    // Means over space of the drivers that do not vary in time.
    std::vector<float> numbers(const ToldShape& shape, std::int64_t trajectory) const;
};

}  // namespace enma
