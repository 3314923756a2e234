// Transformers and decoders of a model with their weights packed: immutable, and shared by sessions. What a session is asked
// for is checked here, whoever asks.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

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

// Cosines, then sines, of the turns of each token of so many frames.
struct Turns {
    std::int64_t frames;
    std::vector<float> values;
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
struct SamplerTables {
    std::shared_ptr<const Sampler> sampler;
    std::shared_ptr<const Turns> turns;
};

// A session of the sampler, with what it reads.
class Sampling : private SamplerTables, public SamplerSession {
   public:
    Sampling(SamplerTables tables, const SamplerSettings& settings)
        : SamplerTables(std::move(tables)), SamplerSession(*sampler, turns ? &turns->values : nullptr, settings) {}
};

class Dynamics {
   public:
    // Throws Error.
    Dynamics(const ModelConfig& config, Tensors& tensors, NumberFormat format);
    Dynamics(const Dynamics&) = delete;
    Dynamics& operator=(const Dynamics&) = delete;

    // Memory for a chunk. Throws Error, std::bad_alloc.
    std::unique_ptr<Sampling> sampling(const SamplingRequest& request) const;
    NumberFormat format() const { return sampler_->view().format; }
    // Whether frame 0 of a generated trajectory is drawn as a field, and read.
    bool draws_fields() const { return sampler_->draws_fields(); }
    // Bytes of the packed weights.
    std::size_t bytes() const { return sampler_->bytes(); }

   private:
    // Of at least so many frames; null where places are not turned.
    std::shared_ptr<const Turns> turns(std::int64_t frames) const;

    ModelConfig config_;
    std::shared_ptr<const Sampler> sampler_;
    mutable std::mutex mutex_;
    mutable std::shared_ptr<const Turns> turns_;
};

}  // namespace enma
