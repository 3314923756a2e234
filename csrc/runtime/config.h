// config.json of a checkpoint: enma_fast/config.py, as far as this library implements it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "runtime/json.h"

namespace enma {

enum class LayerKind { residual, space, time };

struct TokenizerConfig {
    std::vector<std::int64_t> grid = {128};
    std::vector<double> lengths = {1.0};
    std::vector<bool> periodic = {true};
    std::vector<float> field_mean, field_scale;  // of each channel; none leaves fields as they are
    int field_channels = 1, latent_channels = 4, width = 16, max_width = 128;
    std::vector<LayerKind> layers;
    int kernel = 3, kernel_time = 3, kernel_ends = 7;
    bool variational = true;

    int count(LayerKind kind) const;
    int space_factor() const { return 1 << count(LayerKind::space); }
    int time_factor() const { return 1 << count(LayerKind::time); }
    // Latent frames that cover so many frames, and those that cover none beyond them.
    std::int64_t latent_frames(std::int64_t frames) const;
    std::int64_t whole_latents(std::int64_t frames) const;
};

struct FlowConfig {
    int width = 512, layers = 3, time_features = 256;
    bool residual = false;
};

struct DynamicsConfig {
    int width = 512, heads = 8, temporal_layers = 6, spatial_layers = 6;
    double mlp_ratio = 2.0;
    std::vector<std::int64_t> patch = {1};
    bool rotary = false, concat = true, one_pass = false;
    int scale_shift_rank = 24;
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
    double frame_interval = 0.05;
    TokenizerConfig tokenizer;
    DynamicsConfig dynamics;
    SamplingConfig sampling;

    int grid() const { return static_cast<int>(tokenizer.grid[0]); }
    int patch() const { return static_cast<int>(dynamics.patch[0]); }
    int num_tokens() const { return grid() / tokenizer.space_factor() / patch(); }
    int token_channels() const { return tokenizer.latent_channels * patch(); }
};

// Throws Error: ENMA_CHECKPOINT for what is not valid, ENMA_UNSUPPORTED for what this library does not implement; the
// message names the field.
ModelConfig read_config(const Json& json, const std::string& source);

// Grid points by which each shift moves the field, enma_fast/sampling/shifts.py. Throws Error (ENMA_INVALID_ARGUMENT).
std::vector<int> shift_amounts(const ModelConfig& config, int shifts);

}  // namespace enma
