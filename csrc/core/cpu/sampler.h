// Frames by transformers, without a call back to the caller.
//
// Legend: B rows (members being sampled together), G groups of rows that share history and context, N tokens per frame,
// R rows of the masked transformer per member (2N: context and frame; N where these are added), M tokens decided in a
// mask step, C token channels, D width, K head dim.
//
// Memory rows of D numbers are row_stride(D) apart; columns beyond D are zero and stay zero.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "core/cpu/frame_attention.h"
#include "core/cpu/frame_session.h"
#include "core/cpu/gemm.h"
#include "core/cpu/parallel.h"

namespace enma {

struct BlockView {
    const float *norm_1, *q_norm, *k_norm, *norm_2;
    LinearView q, k, v, out, gate, up, down;
};

// Cosines and sines of the turn of each token, [..., N, K / 2]; null without.
struct RotaryView {
    const float *cosines, *sines;
};

struct SamplerSizes {
    int tokens, channels, width, heads, hidden;
    int rank;                          // of scaling and shift; 0: none
    int causal_layers, masked_layers;  // 0 of the latter: no masked transformer
    bool concat;
    float epsilon;  // of the norms
};

struct SamplerView : SamplerSizes {
    int head_dim;
    NumberFormat format;
    int masked_rows;
    int head_unit;                // heads whose columns fill whole panels: what threads take
    int head_columns;             // columns of heads in work space
    std::ptrdiff_t input_stride;  // of work space for inputs of products
    // Causal transformer.
    LinearView embed;
    const float* start;   // [2, D]
    const float* places;  // [N, D] or null, of both transformers
    RotaryView rotary;    // of each frame
    const BlockView* causal;
    // Scaling and shift of the context by a bottleneck.
    LinearView narrow, gamma, beta;
    // Masked transformer.
    LinearView masked_embed;
    const float* mask;         // [D]
    RotaryView masked_rotary;  // of each of the R rows
    const BlockView* masked;
    const float* final_norm;
};

struct SamplerShape : SamplerSizes {
    std::vector<float> places;        // [N, D], or none
    std::vector<float> masked_turns;  // cosines, then sines, [2, R, K / 2], or none
};

// Packed weights; immutable, so that sessions can share it.
class Sampler {
   public:
    // Throws what `take` throws.
    Sampler(const SamplerShape& shape, const TakeParameter& take, NumberFormat format, const MakeDecoder& initial,
            const MakeDecoder& step);
    Sampler(const Sampler&) = delete;
    Sampler& operator=(const Sampler&) = delete;
    const SamplerView& view() const { return view_; }
    // Of frame 0 of a generated trajectory, and of all others; the same where the model has no decoder of frame 0.
    const Decoder& initial() const { return initial_ ? *initial_ : *step_; }
    const Decoder& step() const { return *step_; }
    std::size_t bytes() const { return packed_.size() + step_->bytes() + (initial_ ? initial_->bytes() : 0); }

   private:
    Buffer packed_;
    std::vector<BlockView> causal_, masked_;
    SamplerView view_{};
    std::unique_ptr<const Decoder> initial_, step_;
};

// Keys and values [layers, rows, 2, tokens, row_stride(D)], as inputs of products.
struct KeyValues {
    char* data;
    std::ptrdiff_t layer, row, value, token;  // distances in elements
};

// Memory of a session; kernels and decoders read and write it.
struct SamplerState {
    const int* group;                      // [B]
    const std::uint32_t *seeds, *members;  // [B] keys of the noise
    int frame;                             // number of the next frame
    int prefix_frames, own_frames;
    bool at_start;  // no frame follows the start of the last segment
    KeyValues prefix, own;
    float* group_h;            // [G, N, D] raw output of the causal transformer after the shared frames
    float* anchor;             // [G, N, D] its output at the start of the last segment
    float* opening;            // [N, D] the same of a first segment
    float* h;                  // [B, N, D] after an own frame
    float* tokens;             // [B, N, C]
    float *group_past, *past;  // [G, P, N, C] and [B, P, N, C] before the next frame, as many as `step` reads
    // Of the masked transformer.
    int* order;      // [B, N] tokens as they are decided
    float* input;    // [B, R, D]
    float* context;  // [B, N, D], where context and frame are added
    float* noise;    // [B M, C]; [B, N, C] in one pass
    const FrameAttentionKernels* attention;
};

// Normals of `count` tokens of a row, those after the first `done` in its order, into state.noise.
void draw_noise(const SamplerView& model, const SamplerState& state, int row, int step, int done, int count,
                float temperature);

// Rows [begin, end) of one call of a kernel: members of the session, or groups while the shared frames are read.
struct CausalTask {
    int begin, end;
    bool shared;
    int start;            // segment whose start frame is read, or -1: `tokens`
    const float* tokens;  // [rows, N, C]
    float* h;             // [rows, N, D]
};

struct MaskTask {
    int begin, end;
    int step;      // of this frame
    int done;      // tokens decided before
    int previous;  // of these, in the last step
    int count;     // to decide now
    // By which noise enters, which decides all tokens at once; null: tokens that are known enter.
    const LinearView* noise;
    // [B, R, 3, D] of the first layer, kept from step to step; null where there is but one.
    char* first_qkv;
    // What is read of the last layer, to [B M, columns] in fp32; null: conditions [B M, D] without gaps, as inputs.
    const LinearView* read;
    void* to;
};

// Mean and raw scale, [B M, row_stride(C)], that are linear in conditions.
struct Moments {
    LinearView mean, scale;
    const char* condition;
    float *means, *scales;
};

// Columns of one piece of a fused product; its intermediate results stay in the second-level cache.
constexpr int SAMPLER_COLUMNS = 128;

// One chunk of an ensemble. Everything is allocated here; nothing is while frames are made.
class SamplerSession : public FrameSession {
   public:
    // `turns` are cosines, then sines, [2, frames, N, K / 2], of at least as many frames as are read; null without. Throws
    // what decoders throw, std::bad_alloc.
    SamplerSession(std::shared_ptr<const Sampler> sampler, std::shared_ptr<const std::vector<float>> turns,
                   const SamplerSettings& settings);
    SamplerSession(const SamplerSession&) = delete;
    SamplerSession& operator=(const SamplerSession&) = delete;

    void reset() override;
    void start_segment(int segment) override;
    void read(const float* tokens) override;
    void reopen(std::int64_t count, std::int64_t first_frame) override;
    void begin(const std::uint32_t* seeds, const std::uint32_t* members, const int* groups) override;
    void frame(float* out, bool last) override;
    void follow(const float* tokens) override;
    void keep(const int* rows, int count) override;

    const SamplerSettings& settings() const override { return settings_; }
    std::int64_t most_rows() const override { return static_cast<std::int64_t>(group_.size()); }
    int tokens() const override { return model_.tokens; }
    int channels() const override { return model_.channels; }
    SamplerPlan plan() const override;
    int frames_read() const override { return state_.prefix_frames; }
    int frames_made() const override { return state_.own_frames; }
    bool begun() const override { return begun_; }

   private:
    // After a frame that each row has read.
    void go_on();
    void read_frame(bool shared, int start, const float* tokens);
    // Floats of a frame of a row, and of the past frames of one.
    std::size_t frame_size() const { return static_cast<std::size_t>(model_.tokens) * model_.channels; }
    std::size_t past_size() const { return past_frames_ * frame_size(); }
    void remember(float* past, const float* tokens, int row) const;

    std::shared_ptr<const Sampler> sampler_;
    std::shared_ptr<const std::vector<float>> turns_;
    SamplerView model_;
    SamplerSettings settings_;
    SamplerState state_{};
    std::vector<int> group_;
    std::vector<std::uint32_t> seeds_, members_;
    std::size_t past_frames_;
    std::unique_ptr<DecoderSession> initial_, step_;
    DecoderSession* deciding_ = nullptr;  // of the next frame
    // The first segment that was started before, or -1.
    int opening_ = -1;
    bool begun_ = false;
    int item_members_ = 1, causal_members_ = 1;
    bool solo_ = false;
    std::size_t keys_values_bytes_ = 0, buffer_bytes_ = 0, shared_bytes_ = 0, own_bytes_ = 0, thread_bytes_ = 0;
    Buffer keys_values_, buffers_, work_;
    std::vector<std::atomic<int>> counters_;
};

}  // namespace enma
