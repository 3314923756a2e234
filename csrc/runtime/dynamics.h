// Transformers, read and heads of a model with their weights packed: immutable, and shared by sessions. What a session is
// asked for is checked here, whoever asks.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "core/cpu/flow_head.h"
#include "core/cpu/sampler.h"
#include "core/number_format.h"
#include "runtime/checkpoint.h"
#include "runtime/config.h"

namespace enma {

// Work space is taken for each of them.
constexpr int MOST_THREADS = 4096;
// A sequence has fewer frames, observed or latent.
constexpr std::int64_t MOST_SEQUENCE = 1 << 16;
// Tokens that are sampled together: the largest things that the sampler counts by an int.
constexpr std::int64_t MOST_TOKENS = 1 << 24;

// Transformers with tables of rotary places for so many frames.
struct PackedSampler {
    std::unique_ptr<Sampler> sampler;
    std::int64_t frames;
};

// What one chunk of an ensemble needs memory for.
struct SamplingRequest {
    std::int64_t rows, groups;               // members, and trajectories of which they are
    std::int64_t shared_frames, own_frames;  // that groups share, with a start for each segment; that are read back
    std::int64_t first_frame;                // number of the first latent frame to make
    SamplingConfig settings;
    int threads;
    Isa isa;
    Teams teams = Teams::automatic;
};

// What a session of the sampler reads.
struct SamplingWeights {
    std::shared_ptr<const PackedSampler> transformers;
    std::vector<std::shared_ptr<const FlowHead>> heads;
};

// A session of the sampler, with what it reads.
class Sampling : private SamplingWeights, public SamplerSession {
   public:
    Sampling(SamplingWeights weights, SamplerSettings settings)
        : SamplingWeights(std::move(weights)), SamplerSession(*transformers->sampler, std::move(settings)) {}
};

class Dynamics {
   public:
    // `tensors` has to outlive it: heads of other flow steps, and tables of more frames, are packed when they are asked
    // for. Throws Error.
    Dynamics(const ModelConfig& config, Tensors& tensors, NumberFormat format);
    Dynamics(const Dynamics&) = delete;
    Dynamics& operator=(const Dynamics&) = delete;

    // Memory for a chunk. Throws Error, std::bad_alloc.
    std::unique_ptr<Sampling> sampling(const SamplingRequest& request) const;
    NumberFormat format() const { return format_; }
    // Bytes of the packed transformers.
    std::size_t bytes() const;

   private:
    class Reading;
    // For sequences of at least so many frames; packed again where the last one is for fewer.
    std::shared_ptr<const PackedSampler> sampler(std::int64_t frames) const;
    // The flow-matching heads of each mask step; they replace those of the last request.
    std::vector<std::shared_ptr<const FlowHead>> flow_heads(const SamplingConfig& settings, int mask_steps) const;
    std::shared_ptr<const FlowHead> packed_head(int steps, bool midpoint) const;
    std::vector<float> time_embeddings(const std::vector<float>& times) const;

    ModelConfig config_;
    Tensors& tensors_;
    NumberFormat format_;
    mutable std::mutex mutex_;
    mutable std::shared_ptr<const PackedSampler> sampler_;
    mutable std::map<std::pair<int, bool>, std::shared_ptr<const FlowHead>> heads_;
};

}  // namespace enma
