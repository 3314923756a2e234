// Waves of fields on periodic grids of one or two axes: rfftn. In fp32 by products with tables of sines, which small grids
// need no faster transform for, and in fp64 by a transform of mixed radix.
#pragma once

#include <complex>
#include <cstdint>
#include <vector>

#include "core/cpu/allocator.h"
#include "core/cpu/gemm.h"
#include "core/cpu/packed_linear.h"

namespace enma {

using Complex = std::complex<double>;

// The grid of waves: all along the first of two axes, and half along the last.
struct WaveGrid {
    int lines, points;  // one line unless there are two axes
    int half() const { return points / 2 + 1; }
    int waves() const { return lines * half(); }
    int size() const { return lines * points; }
};

// Waves [waves] of a field [size], without a factor.
std::vector<Complex> waves_of(const WaveGrid& grid, const std::vector<double>& field);
// The field [lines, points] whose waves these are, those beyond them being zero; times its number of points.
std::vector<double> field_of(const WaveGrid& grid, const std::vector<Complex>& waves, int points);

// The same in fp32, of one channel at a time.
class Spectrum {
   public:
    explicit Spectrum(const WaveGrid& grid);
    // Floats of waves, real and imaginary parts as the products leave them, and of the work space.
    std::size_t wave_floats() const { return static_cast<std::size_t>(columns_) * grid_.lines; }
    std::size_t work_bytes() const;
    // Where in them the real part of a wave is; the imaginary one is `apart()` later.
    std::size_t place(int wave) const;
    std::size_t apart() const { return grid_.lines == 1 ? grid_.half() : grid_.lines; }
    void forward(const float* field, Isa isa, char* work, float* waves) const;
    void inverse(const float* waves, Isa isa, char* work, float* field) const;

   private:
    struct Parts;

    WaveGrid grid_;
    int columns_;  // of a line's waves, in whole panels
    Linear along_, across_, back_along_, back_across_;
};

}  // namespace enma
