// Encoder and decoder of a model with their weights packed: immutable, and shared by sessions. Rows of whole trajectories
// go through here; a session that needs one frame at a time pushes it through the streams itself.
#pragma once

#include <cstdint>
#include <optional>

#include "core/cpu/interpolation.h"
#include "core/cpu/tokenizer.h"
#include "runtime/checkpoint.h"

namespace enma {

// Frames to encode, standardised: values [rows, frames, *grid, c] on the grid, or [rows, frames, P, c] at points
// [rows, frames, P, d], NaN for one that is not there; each frame has one.
struct FramesOfRows {
    const float* values;
    const float* points;  // null on the grid
    std::int64_t rows, frames;
    std::int64_t count;  // P
};

class Codec {
   public:
    // Throws Error.
    Codec(const TokenizerConfig& config, Tensors& tensors);

    const TokenizerConfig& config() const { return config_; }
    const Stream& encoder() const { return *encoder_; }
    const Stream& decoder() const { return *decoder_; }
    // Null in a model that works on its grid alone.
    const Interpolation* interpolation() const { return interpolation_ ? &*interpolation_ : nullptr; }

    // Latent frames [rows, T', places, C]; the last one may lack frames of its own, which repeat the last.
    void encode(const FramesOfRows& given, int threads, Isa isa, float* out) const;
    // The first `frames` standardised fields [rows, frames, *grid, c] of latent frames [rows, latents, places, C].
    void decode(const float* latents, std::int64_t rows, std::int64_t count, std::int64_t frames, int threads, Isa isa,
                float* out) const;

   private:
    class Reader;
    TokenizerConfig config_;
    std::optional<Stream> encoder_, decoder_;
    std::optional<Interpolation> interpolation_;
};

}  // namespace enma
