// The second difference along the axes of a grid of one or two axes, and functions of it, in fp64:
// enma_fast/models/floors/second_difference.py
#pragma once

#include <cstdint>

namespace enma {

// Rows next to a wall, points that they reach, and points that all others reach.
constexpr int WALL_ROWS = 2, WALL_REACH = 4, INSIDE = 5;

// Along one axis: five weights about each point, around a ring or with rows of their own next to both walls.
struct DifferenceAxis {
    int points;
    bool ring;
    double inside[INSIDE];
    double wall[WALL_ROWS][WALL_REACH];
};

// The sum along both axes, of fields [lines, points]; of one line there is no first axis.
struct Difference {
    DifferenceAxis first, last;

    std::int64_t size() const { return std::int64_t{first.points} * last.points; }
};

struct DifferenceKernels {
    // out = rows + their difference; not in place.
    void (*moved)(const Difference& difference, const double* rows, double* out);
    // out = sum of factors[i] * fields[i], of at most four; may be one of them.
    void (*sum)(const double* const* fields, const double* factors, int count, std::int64_t size, double* out);
    double (*product)(const double* a, const double* b, std::int64_t size);
};

}  // namespace enma
