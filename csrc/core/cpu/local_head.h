// The local head of a one-pass model: tokens of a frame from conditions and past frames, by convolutions over the
// latent grid and Fourier blocks; enma_fast/models/local_head.py.
//
// Legend: N tokens per frame, C channels of a latent place, W width of the head, P past frames.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/cpu/dispatch.h"
#include "core/cpu/fourier.h"
#include "core/cpu/gemm.h"

namespace enma {

// Places of a latent frame, in lines; a field on a line has one of them.
struct LatentGrid {
    int lines, places;
    bool plane, ring_of_lines, ring;
    int patch_lines, patch_places;  // of a token

    int size() const { return lines * places; }
    int patch() const { return patch_lines * patch_places; }
    // Places of a window of a convolution.
    int taps() const { return plane ? 9 : 3; }
    // Number of a place among the parts of all tokens.
    int part_of(int place) const {
        const int line = place / places, at = place % places;
        const int token = line / patch_lines * (places / patch_places) + at / patch_places;
        return token * patch() + line % patch_lines * patch_places + at % patch_places;
    }
};

// From what each dimension has, of one or two: places, places of a token, and whether it is periodic.
LatentGrid latent_grid(const std::vector<std::int64_t>& grid, const std::vector<std::int64_t>& patch,
                       const std::vector<bool>& periodic);

// A block of convolutions, or with a filter a Fourier block, whose gate_up is of single places.
struct LocalBlockView {
    const float* norm;
    LinearView gate_up, down;
    const float* filter;
};

struct LocalHeadView {
    LatentGrid grid;
    int width, channels, past;
    float epsilon;
    LinearView frames;  // of windows of past frames
    const LocalBlockView* blocks;
    int layers;
    const float* norm;
    LinearView read;
    int modes;  // 0: no Fourier blocks
    FourierTables fourier;
};

// The filter of a Fourier block is [2, (2 modes - 1,) modes, W, W]; null in others.
struct LocalBlockWeights {
    const void *norm, *gate_up, *down, *filter = nullptr;
};

// Weights as stored, all bf16 or all fp32, but for those of the features, which the sampler reads; convolutions are [outward, inward, (3,) 3].
struct LocalHeadWeights {
    LatentGrid grid;
    int width, channels, past;
    const void* frames;
    std::vector<LocalBlockWeights> blocks;
    const void *norm, *read_weight, *read_bias;
    int modes = 0;
};

inline FourierGrid fourier_grid(const LatentGrid& grid, int modes, int width) {
    return {grid.lines, grid.places, modes, width};
}
// Largest number of modes of a grid; 0 where a dimension has walls.
inline int most_modes(const LatentGrid& grid) {
    if (!grid.ring || (grid.plane && !grid.ring_of_lines)) return 0;
    return ((grid.plane && grid.lines < grid.places ? grid.lines : grid.places) + 1) / 2;
}

// Past frames of a head that makes frame 0: noise, and zeros.
constexpr int NOISE_PAST = 2;

// Products of whole panels of columns.
constexpr bool local_width_fits(int width) { return width > 0 && width % PANEL == 0; }

// A convolution's weight in fp32 as the products read it: [outward, (line, place, inward)].
std::vector<float> local_windows(const void* weight, int outward, int inward, int taps, NumberFormat format);

// Bytes that a team shares, and of each thread.
std::size_t local_head_shared_bytes(const LocalHeadView& head);
std::size_t local_head_own_bytes(const LocalHeadView& head);

// tokens [N, patch C] of one member, from features [N, patch W] and past frames [P, N, patch C], by a team of threads
// that divides the places. The bits depend on neither the team nor other members.
void local_head(const LocalHeadView& head, Isa isa, const float* features, const float* past, float* tokens,
                const Member& member, char* shared, char* own);

}  // namespace enma
