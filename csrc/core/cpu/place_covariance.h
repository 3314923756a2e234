// Covariance of a field at two places, from a table of differences and, where there are walls, of sums of places.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

namespace enma {

// Coordinates along two axes, the first of which a field of one dimension lacks.
struct Place {
    double at[2];
};

class PlaceCovariance {
   public:
    struct Axis {
        std::int64_t points;
        double length;
        bool ring;

        std::int64_t frequencies() const { return ring ? points / 2 + 1 : points; }
    };

    // `power` of one wave of each frequency, [f0, f1], 0 from some frequency on; waves are those of
    // enma_fast/models/covariance.py.
    PlaceCovariance(const std::array<Axis, 2>& axes, const std::vector<double>& power);

    // out [count] of one place with others. The bits depend on no instruction set.
    void between(const Place& one, const Place* others, std::int64_t count, double* out) const;

   private:
    struct Steps {
        std::int64_t count;  // of half a turn
        double per_unit;
        bool ring;
    };

    // Of differences or sums of places along both axes. Between walls these count alike, around a ring sums hardly do.
    const std::vector<double>& table(bool first_sums, bool last_sums) const;

    Steps axes_[2];
    std::int64_t stride_;
    std::array<std::vector<double>, 4> tables_;
};

}  // namespace enma
