// Latent frames of an ensemble, one after the other, without a call back to the caller: enma_fast/sampling/reference.py in C++.
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
#include <vector>

#include "core/cpu/flow_head.h"
#include "core/cpu/frame_attention.h"
#include "core/cpu/gemm.h"
#include "core/cpu/local_head.h"
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

struct SamplerView {
    int tokens, channels, width, heads, head_dim, hidden;
    NumberFormat format;
    bool concat, scale_shift, residual;
    bool one_pass;  // frames are decided in one pass, the first of a trajectory only by a head of its own
    float epsilon;  // of the norms
    int masked_rows;
    int head_unit;                // heads whose columns fill whole panels: what threads take
    int head_columns;             // columns of heads in work space
    std::ptrdiff_t input_stride;  // of work space for inputs of products
    // Causal transformer.
    LinearView embed;
    const float* start;   // [2, D]
    const float* places;  // [N, D] or null, of both transformers
    RotaryView rotary;    // of each frame
    int rotary_frames;
    const BlockView* causal;
    int causal_layers;
    // Scaling and shift of the context by a bottleneck.
    LinearView narrow, gamma, beta;
    // Masked transformer.
    LinearView masked_embed;
    const float* mask;         // [D]
    RotaryView masked_rotary;  // of each of the R rows
    const BlockView* masked;
    int masked_layers;
    const float* final_norm;
    // Mean and scale of a token (residual target).
    LinearView mean, scale;
    // Noise into the frame's tokens, and tokens out of it, or features for the local head (one pass).
    LinearView noise, read;
    const LocalHeadView* local;  // null without
    // The same of frame 0, whose past is noise and then zeros.
    LinearView first_read;
    const LocalHeadView* first;  // null without
};

// Weights as stored, contiguous, all bf16 or all fp32; `qkv`, `gate_up` and `moments` are fused.
struct BlockWeights {
    const void *norm_1, *qkv, *q_norm, *k_norm, *out, *norm_2, *gate_up, *down;
};

struct SamplerWeights {
    int tokens, channels, width, heads, hidden, rank;
    NumberFormat format;
    bool concat;
    const void *embed_weight, *embed_bias, *start;
    std::vector<BlockWeights> causal;
    const void *narrow, *wide_weight, *wide_bias;  // null without scaling and shift
    const void *masked_embed_weight, *masked_embed_bias, *mask;
    std::vector<BlockWeights> masked;
    const void* final_norm;
    const void *moments_weight, *moments_bias;        // null unless the target is the residual
    const void *noise, *read_weight, *read_bias;      // null unless frames are decided in one pass; the last two also
    const LocalHeadWeights* local;                    // with a local head, which is null without
    const void *first_read_weight, *first_read_bias;  // null without a head of frame 0
    const LocalHeadWeights* first;
    float epsilon;
    // fp32: [N, D], or [frames, N, K / 2] and [R, K / 2], or null.
    const float *places, *cosines, *sines, *masked_cosines, *masked_sines;
    int rotary_frames;
};

// Packed weights; immutable, so that sessions can share it.
class Sampler {
   public:
    explicit Sampler(const SamplerWeights& weights);
    Sampler(const Sampler&) = delete;
    Sampler& operator=(const Sampler&) = delete;
    const SamplerView& view() const { return view_; }
    std::size_t bytes() const { return packed_.size(); }

   private:
    Buffer packed_;
    std::vector<BlockView> causal_, masked_;
    std::vector<LocalBlockView> local_blocks_, first_blocks_;
    LocalHeadView local_{}, first_{};
    SamplerView view_{};
};

// Keys and values [layers, rows, 2, tokens, row_stride(D)], as inputs of products.
struct KeyValues {
    char* data;
    std::ptrdiff_t layer, row, value, token;  // distances in elements
};

// Memory of a session; kernels read and write it.
struct SamplerState {
    const int* group;  // [B]
    int prefix_frames, own_frames;
    KeyValues prefix, own;
    float* group_h;            // [G, N, D] raw output of the causal transformer after the shared frames
    float* anchor;             // [G, N, D] its output at the start of the last segment
    float* opening;            // [N, D] the same of a first segment
    float* h;                  // [B, N, D] after an own frame
    float* tokens;             // [B, N, C]
    float* features;           // [B, N, columns of `read` or `first_read`] for a local head
    float* start;              // [B, 2, N, C] what a head of its own makes frame 0 from
    float *group_past, *past;  // [G, P, N, C] and [B, P, N, C] before the next frame, for a local head
    int* order;                // [B, N]
    float* input;              // [B, R, D] input of the masked transformer
    char* first_qkv;           // [B, R, 3, D] of its first layer, unless every frame is decided in one pass
    char* condition;           // [B M, D] without gaps
    float* context;            // [B, N, D], where context and frame are added
    float* noise;              // [B M, C]; [B, N, C] in one pass
    float* drawn;              // [B M, C] what the flow made of it
    float* means;              // [B M, row_stride(C)] mean and raw scale of the residual target
    float* scales;
    const FrameAttentionKernels* attention;
};

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
    int step;       // of this frame
    bool first;     // no frame of the target trajectory is known
    int done;       // tokens decided before
    int previous;   // of these, in the last step
    int count;      // to decide now
    bool one_pass;  // all tokens at once, from noise, without a flow head
    // What the last layer gives in one pass, and where: tokens, or features for a local head.
    const LinearView* read;
    float* to;
};

// Columns of one piece of a fused product; its intermediate results stay in the second-level cache.
constexpr int SAMPLER_COLUMNS = 128;

// Bytes
struct SamplerPlan {
    std::size_t weights, keys_values, buffers, work;
};

// How the threads divide a frame; `automatic` picks by the number of rows. Results do not depend on it.
enum class Teams { automatic, one, each };

struct SamplerSettings {
    int rows, groups;
    int prefix_frames, own_frames;       // capacity: shared frames with a start frame for each segment; fed-back frames
    std::vector<int> counts;             // tokens of each mask step; none where every frame is decided in one pass
    std::vector<const FlowHead*> heads;  // of each mask step
    float temperature;
    int threads;
    Isa isa;
    Teams teams;
};

// One chunk of an ensemble. Everything is allocated here; nothing is while frames are made.
class SamplerSession {
   public:
    // Throws std::bad_alloc.
    SamplerSession(const Sampler& sampler, SamplerSettings settings);
    SamplerSession(const SamplerSession&) = delete;
    SamplerSession& operator=(const SamplerSession&) = delete;

    // Forgets everything that it was given.
    void reset();
    // Reads the start of a segment, then latent frames [G, N, C] of it.
    void start_segment(int segment);
    void read(const float* tokens);
    // Keys of the noise of each row, and its group; `first_frame` is the number of the next latent frame.
    void begin(const std::uint32_t* seeds, const std::uint32_t* members, const int* groups, int first_frame);
    // Decides the next latent frame [B, N, C] and, unless it is the last one, reads it.
    void frame(float* out, bool last);
    // Reads a latent frame [B, N, C] in place of deciding it: that of another session, or one that was saved.
    void follow(const float* tokens);
    // Goes on with `count` of the rows alone, at least one, given in ascending order; they keep their bits.
    void keep(const int* rows, int count);

    const SamplerSettings& settings() const { return settings_; }
    // Whether frame 0 can be decided: in mask steps, or by a head of its own.
    bool can_begin() const { return !settings_.counts.empty() || model_->first != nullptr; }
    const SamplerView& model() const { return *model_; }
    SamplerPlan plan() const;
    int frames_read() const { return state_.prefix_frames; }
    int frames_made() const { return state_.own_frames; }
    // Between `begin` and the last frame.
    bool begun() const { return begun_; }

   private:
    struct Region;
    void read_frame(bool shared, int start, const float* tokens);
    void draw_noise(int row, int step, int done, int count);
    void order_row(int row, std::uint64_t* keys);
    void decide(const Region& region, int step, int done, int count);
    void decide_rows(int begin, int end, int done, int count);
    void begin_pass(int row);
    // Floats of the past frames of a row, none without a local head.
    std::size_t past_size() const;
    void remember(float* past, const float* tokens, int row) const;

    const SamplerView* model_;
    std::size_t weight_bytes_;
    SamplerSettings settings_;
    SamplerState state_{};
    std::vector<int> group_;
    std::vector<std::uint32_t> seeds_, members_;
    int frame_ = 0;
    // The first segment that was started before, or -1.
    int opening_ = -1;
    bool begun_ = false;
    int item_members_ = 1, causal_members_ = 1;
    bool solo_ = false;
    std::size_t keys_values_bytes_ = 0, buffer_bytes_ = 0, shared_bytes_ = 0, own_bytes_ = 0, thread_bytes_ = 0;
    Buffer keys_values_, buffers_, work_;
    std::vector<std::atomic<int>> counters_;
    std::vector<std::uint64_t> keys_;
};

}  // namespace enma
