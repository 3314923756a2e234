// Rows of whole trajectories through a codec; a session that needs one frame at a time pushes it through the streams itself.
#pragma once

#include <cstdint>

#include "core/cpu/codec.h"

namespace enma {

// Frames to encode, standardised: values [rows, frames, *grid, c] on the grid, or [rows, frames, P, c] at points
// [rows, frames, P, d], NaN for one that is not there; each frame has one.
struct FramesOfRows {
    const float* values;
    const float* points;  // null on the grid
    std::int64_t rows, frames;
    std::int64_t count;  // P
};

// Latent frames [rows, T', places, C]; the last one may lack frames of its own, which repeat the last. Throws Error.
void encode_rows(const CodecConfig& config, const Codec& codec, const FramesOfRows& given, int threads, Isa isa,
                 float* out);
// The first `frames` standardised fields [rows, frames, *grid, c] of latent frames [rows, latents, places, C].
void decode_rows(const CodecConfig& config, const Codec& codec, const float* latents, std::int64_t rows,
                 std::int64_t count, std::int64_t frames, int threads, Isa isa, float* out);

}  // namespace enma
