// Codec `points`, the convolutions of `conv` over features on a grid: scattered points to them, and back to the field;
// enma_fast/models/codecs/interpolation.py.
//
// Legend: P observed points, X grid points, H heads, K head dim, F grid features, c physical channels, d space dimensions.
#pragma once

#include <cstdint>
#include <vector>

#include "core/cpu/codec.h"
#include "core/cpu/dispatch.h"
#include "core/cpu/packed_linear.h"
#include "core/cpu/point_attention.h"

namespace enma {

struct InterpolationConfig {
    int features = 64, heads = 4;
    static constexpr int hidden = 16, head_dim = 4, frequencies = 12, max_log2_frequency = 4;
    static constexpr int refine_depth = 2, refine_heads = 4, refine_head_dim = 4, slices = 16;
};

class Interpolation {
   public:
    // Throws what `take` throws.
    Interpolation(const CodecConfig& config, const InterpolationConfig& options, const TakeParameter& take);

    // Coordinates [X, d] of the regular grid.
    const std::vector<float>& regular() const { return regular_; }
    // Bytes of work space of one call, aligned to pages.
    std::size_t to_grid_bytes(std::int64_t points) const;
    std::size_t to_field_bytes() const;
    // Features [X, F] of standardised values [P, c] at points [P, d].
    void to_grid(const float* values, const float* points, std::int64_t count, Isa isa, char* work, float* out) const;
    // Standardised values [X, c] of features [X, F] at the points of the regular grid; they lie in `work`.
    const float* to_field(const float* features, Isa isa, char* work) const;

   private:
    struct Refinement {
        std::vector<float> norm_1_weight, norm_1_bias, norm_2_weight, norm_2_bias;
        std::vector<float> assign_weight, assign_bias, temperature, qkv;
        Linear values, out, widen, narrow;
    };
    struct ToGrid;
    struct ToField;

    int encoded_width() const { return 2 * options_.frequencies * config_.dims(); }
    std::int64_t attention_scratch(int value_dim) const;
    void encode(const float* point, float* out) const;
    PointAttention attention(const float* queries, const float* query_points, const float* keys, const float* points,
                             std::int64_t count, const float* values, int value_dim, const float* slopes) const;
    void attend(const PointAttention& g, Isa isa, float* scratch, float* out, float* lse, float* rows) const;
    void refine(const Refinement& block, const ToGrid& work, Isa isa) const;

    CodecConfig config_;
    InterpolationConfig options_;
    std::int64_t size_;  // X
    int inner_;          // H K
    std::vector<float> bands_, regular_, slopes_in_, slopes_out_, queries_in_, queries_out_;
    std::vector<float> grid_;  // [X, d], learned
    Linear lift_, in_k_, in_v_, in_out_, out_k_, out_v_, out_out_, project_;
    std::vector<Refinement> refine_;
};

}  // namespace enma
