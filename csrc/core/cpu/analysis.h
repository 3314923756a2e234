// Fields from observations at scattered points, by optimal interpolation: enma_fast/forecasting/analysis.py.
//
// Legend: L frames, P observations that are used together, S draws, M waves, c channels, d space dimensions.
#pragma once

#include <cstdint>
#include <vector>

namespace enma {

// Statistics of the fields of the training data: enma_fast/models/covariance.py.
struct FieldCovariance {
    std::vector<std::int64_t> grid;
    std::vector<double> lengths;
    std::vector<bool> periodic;
    int channels = 1;
    std::vector<double> mean;                    // [c]
    std::vector<double> deviation, correlation;  // [*f, c]: half of the ring and one, or as many as points of walls

    int dims() const { return static_cast<int>(grid.size()); }
    std::int64_t points() const;
    // Entries of deviation, and of correlation.
    std::int64_t entries() const;
};

// Frames seen at scattered points.
struct ScatteredFrames {
    const float* values;  // [rows, c]
    const float* points;  // [rows, d], or [P, d] that all frames share
    std::vector<std::int64_t> rows;
    bool shared;
};

// Fields to draw from what observations leave open, by their numbers; the words of their noise (sampling/noise.py).
struct FieldDraws {
    std::uint32_t seed, step;
    std::vector<std::uint32_t> numbers;
};

// Fields [S, L, *grid, c] of the draws, or of the analysis alone without them, S = 1. `errors` are the standard deviations
// of the error of the values of each channel, none for no error. Returns how many times as large as the statistics have
// them the observations are. The bits depend on no instruction set.
double analyse(const FieldCovariance& covariance, const ScatteredFrames& seen, const std::vector<double>& errors,
               const FieldDraws* draws, float* out);

// A field [*grid, c] whose waves are normal, as large as the statistics have them; with `first`, the first frame [*grid, c]
// of a trajectory of the same physics, each shell of waves has the power that it has there:
// enma_fast/models/decoders/gaussian.py.
void draw_field(const FieldCovariance& covariance, const float* first, std::uint32_t seed, std::uint32_t number,
                float* out);

}  // namespace enma
