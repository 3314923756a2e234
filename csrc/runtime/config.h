// config.json of a checkpoint: enma_fast/config.py, as far as this library implements it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/cpu/local_head.h"
#include "core/cpu/tokenizer_config.h"
#include "runtime/json.h"

namespace enma {

// Points of a frame.
constexpr std::int64_t MOST_POINTS = 1 << 22;

struct FlowConfig {
    int width = 512, layers = 3, time_features = 256;
    bool residual = false;
};

struct LocalConfig {
    int width = 64, layers = 4, past = 3, modes = 0;  // 0: no Fourier blocks
};
// With Fourier blocks, one of so many blocks is one, the first among them.
constexpr int FOURIER_EVERY = 3;

struct DynamicsConfig {
    int width = 512, heads = 8, temporal_layers = 6, spatial_layers = 6;
    double mlp_ratio = 2.0;
    std::vector<std::int64_t> patch = {1};
    bool rotary = false, concat = true, one_pass = false;
    int scale_shift_rank = 24;
    std::optional<LocalConfig> local, first;
    FlowConfig flow;
};

struct SamplingConfig {
    int mask_steps = 6, flow_steps = 10, last_flow_steps = 0;  // 0: as flow_steps
    bool midpoint = true;
    double temperature = 1.0;
    int shifts = 1;
};

struct ModelConfig {
    std::string name, dataset;
    int num_frames = 20;
    int shortest_context = 0;  // 0: num_frames
    double frame_interval = 0.05;
    TokenizerConfig tokenizer;
    DynamicsConfig dynamics;
    SamplingConfig sampling;

    // Points of a frame, places of its latents, and tokens that the transformers see, which are patches of places.
    int points() const;
    int places() const { return points() / places_of(tokenizer.space_factor()); }
    int num_tokens() const { return places() / patch(); }
    int token_channels() const { return tokenizer.latent_channels * patch(); }
    // How many of the frames of a context are used: as many as training shows, or those of whole latent frames.
    std::int64_t context_frames(std::int64_t given) const;
    // Places of a token.
    int patch() const;
    LatentGrid latent_grid() const;
    // Tokens along a dimension.
    int tokens_along(int axis) const;
    // Shape of an array of so many frames in a row, or of one frame of each member: [count, *grid, channels].
    std::vector<std::int64_t> frames_shape(std::vector<std::int64_t> before) const;
    // Where in a latent frame [num_tokens, token_channels] the channels of each place are.
    std::vector<std::int64_t> place_offsets() const;

   private:
    int places_of(int factor) const { return tokenizer.dims() == 2 ? factor * factor : factor; }
};

// Throws Error: ENMA_CHECKPOINT for what is not valid, ENMA_UNSUPPORTED for what this library does not implement; the
// message names the field.
ModelConfig read_config(const Json& json, const std::string& source);
// Likewise the part of a tokenizer, and that of the sampler.
TokenizerConfig read_tokenizer_config(const Json& json, const std::string& source);
SamplingConfig read_sampling_config(const Json& json, const std::string& source);

}  // namespace enma
