// The filter of a Fourier block: a matrix for each of few waves of a periodic latent grid; FourierBlock of
// enma_fast/models/decoders/local.py.
//
// Legend: m modes, K waves across the lines of the grid (2 m - 1, or 1 on a line), W width.
#pragma once

#include <cstddef>
#include <vector>

#include "core/cpu/dispatch.h"
#include "core/cpu/gemm.h"

namespace enma {

// Sines and cosines between places and waves, one factor for each part (real, imaginary) of a wave.
struct FourierTables {
    const float* along;   // [m, 2; places]: places of a line to its waves
    const float* across;  // [2, K; 2, lines]: lines to waves across them
    const float* lines;   // [2, lines; 2, K]: and back
    const float* places;  // [places; m, 2]: waves of a line to its places
};

struct FourierGrid {
    int lines, places, modes, width;

    int waves() const { return lines == 1 ? 1 : 2 * modes - 1; }
    std::size_t filter_size() const { return std::size_t{2} * waves() * modes * width * width; }
};

// In the order of FourierTables.
std::vector<std::vector<float>> fourier_tables(const FourierGrid& grid);

// A filter as stored, [2, K, m, W, W], in fp32 as the sums read it: [m, K, 2, W, W].
std::vector<float> fourier_filter(const float* filter, const FourierGrid& grid);

// Floats that a team shares, twice, and of each thread.
std::size_t fourier_shared(const FourierGrid& grid);
std::size_t fourier_own(const FourierGrid& grid);

// A frame's convolution by a team of threads, whose members wait for each other between the parts. `waves` and `lines`
// have the floats of fourier_shared, `work` those of fourier_own.
struct Fourier {
    FourierGrid grid;
    const FourierTables& tables;
    Isa isa;
    float *waves, *lines, *work;

    // Lines of places [.., W] to waves along them; a team divides the lines.
    void to_waves(const float* places, const Member& member) const;
    // Waves through the filter; a team divides those along the lines.
    void filtered(const float* filter, const Member& member) const;
    // Places [begin, end) of the grid, [.., W].
    void to_places(int begin, int end, float* places) const;
};

}  // namespace enma
