// config.json of a checkpoint, as far as this library implements it: enma_fast/config.py.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/cpu/codec.h"
#include "core/cpu/decoder.h"
#include "core/cpu/latent_grid.h"
#include "core/json.h"

namespace enma {

// Hidden channels of the MLP of a transformer's block for each channel.
constexpr int MLP_RATIO = 2;

class Engine;
class Tensors;
struct ModelConfig;
struct ContextConfig;

// A kind of context. Each is a file of its own and a line in config.cpp.
struct ContextKind {
    const char* name;
    void (*read)(Fields& fields, ContextConfig& out);
    std::unique_ptr<const Engine> (*engine)(const ModelConfig& config, Tensors& tensors, NumberFormat format);
    // Whether models may be told more than fields.
    bool takes_known = false;
};
extern const ContextKind causal_transformer, physics;

struct ContextConfig {
    const ContextKind* kind = nullptr;
    int width = 512, heads = 8, layers = 6;
    std::vector<std::int64_t> patch = {1};
    bool rotary = false;
    int scale_shift_rank = 24;
    // Of kind `physics`.
    std::string floor = "persistence";
    int block = 2, hidden = 96;
};

// The masked transformer, of the same width; without layers there is none.
struct TrunkConfig {
    int layers = 0;
    bool concat = false;
};

// A driver that a model is told: a parameter, or one that varies in time (series), in space (map) or in both (forcing).
struct KnownInput {
    std::string name;
    bool in_time = false, in_space = false;

    const char* kind() const { return in_time ? (in_space ? "forcing" : "series") : (in_space ? "map" : "parameter"); }
};

struct SamplingConfig {
    int mask_steps = 6, flow_steps = 10;
    double temperature = 1.0;
    int shifts = 1;
};

struct ModelConfig {
    std::string name, dataset;
    int num_frames = 20;
    int shortest_context = 0;  // 0: num_frames
    double frame_interval = 0.05;
    CodecConfig codec;
    ContextConfig context;
    TrunkConfig trunk;
    MakeDecoder initial, step;  // `initial` may be empty
    SamplingConfig sampling;
    std::vector<KnownInput> known;

    // Whether it is told more than fields: drivers, or where these have no values.
    bool is_told() const { return !known.empty() || codec.masked; }
    // Points of a frame, places of its latents, and tokens that the transformers see, which are patches of places.
    int points() const { return static_cast<int>(codec.points()); }
    int num_tokens() const { return static_cast<int>(codec.places()) / patch(); }
    int token_channels() const { return codec.latent_channels * patch(); }
    // Rows of a member in the masked transformer.
    int masked_rows() const { return num_tokens() * (trunk.concat ? 2 : 1); }
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
};

// Throws Error: ENMA_CHECKPOINT for what is not valid, ENMA_UNSUPPORTED for what this library does not implement; the
// message names the field.
ModelConfig read_config(const Json& json, const std::string& source);
// Likewise the settings of the sampler.
SamplingConfig read_sampling_config(const Json& json, const std::string& source);

}  // namespace enma
