// The engine of a model: immutable, and shared by sessions. What a session is asked for is checked here, whoever asks.
#pragma once

#include <cstdint>
#include <memory>

#include "runtime/checkpoint.h"
#include "runtime/config.h"
#include "runtime/engine.h"

namespace enma {

// Work space is taken for each of them.
constexpr int MOST_THREADS = 4096;
// A sequence has fewer frames, observed or latent.
constexpr std::int64_t MOST_SEQUENCE = 1 << 16;
// Tokens that are sampled together: the largest things that the sampler counts by an int.
constexpr std::int64_t MOST_TOKENS = 1 << 24;

class Dynamics {
   public:
    // Throws Error.
    Dynamics(const ModelConfig& config, Tensors& tensors, NumberFormat format);
    Dynamics(const Dynamics&) = delete;
    Dynamics& operator=(const Dynamics&) = delete;

    // Throws Error for rows, threads and a temperature that no session can have.
    void check(const DecoderSettings& settings) const;
    // Memory for a chunk. Throws Error, std::bad_alloc.
    std::unique_ptr<FrameSession> session(const SamplerSettings& settings) const;
    NumberFormat format() const { return engine_->format(); }
    // Whether frame 0 of a generated trajectory is drawn as a field, and read.
    bool draws_fields() const { return engine_->draws_fields(); }
    // Bytes of the packed weights.
    std::size_t bytes() const { return engine_->bytes(); }

   private:
    ModelConfig config_;
    std::unique_ptr<const Engine> engine_;
};

}  // namespace enma
