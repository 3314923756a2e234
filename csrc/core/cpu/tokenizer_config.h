// Sizes of a tokenizer: TokenizerConfig of enma_fast/config.py.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <vector>

namespace enma {

enum class LayerKind { residual, space, time };

struct InterpolationConfig {
    int features = 64, hidden = 16, heads = 4, head_dim = 4, frequencies = 12;
    double max_log2_frequency = 4.0;
    int distance_power = 1;
    int refine_depth = 2, refine_heads = 4, refine_head_dim = 4, slices = 16;
};

struct TokenizerConfig {
    std::vector<std::int64_t> grid = {128};
    std::vector<double> lengths = {1.0};
    std::vector<bool> periodic = {true};
    std::vector<float> field_mean, field_scale;  // of each channel; none leaves fields as they are
    int field_channels = 1, latent_channels = 4, width = 16, max_width = 128;
    std::vector<LayerKind> layers;
    int kernel = 3, kernel_time = 3, kernel_ends = 7, stride_ends = 1;
    bool variational = true;
    std::optional<InterpolationConfig> interpolation;

    // Channels that the convolutions see on the grid.
    int grid_channels() const { return interpolation ? interpolation->features : field_channels; }
    int dims() const { return static_cast<int>(grid.size()); }
    bool has_ring() const { return std::find(periodic.begin(), periodic.end(), true) != periodic.end(); }
    int count(LayerKind kind) const { return static_cast<int>(std::count(layers.begin(), layers.end(), kind)); }
    int space_factor() const { return stride_ends << count(LayerKind::space); }
    int time_factor() const { return 1 << count(LayerKind::time); }
    // Points of a frame, and places of a latent frame.
    std::int64_t points() const { return points_over(1); }
    std::int64_t places() const { return points_over(space_factor()); }
    // Latent frames that cover so many frames, and those that cover none beyond them.
    std::int64_t latent_frames(std::int64_t frames) const {
        return (frames - 1 + time_factor() - 1) / time_factor() + 1;
    }
    std::int64_t whole_latents(std::int64_t frames) const { return frames == 0 ? 0 : (frames - 1) / time_factor() + 1; }

   private:
    std::int64_t points_over(std::int64_t factor) const {
        std::int64_t product = 1;
        for (const std::int64_t n : grid) product *= n / factor;
        return product;
    }
};

}  // namespace enma
