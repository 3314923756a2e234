// What makes latent frames behind a kind of context: its weights packed, immutable, and shared by sessions.
#pragma once

#include <cstddef>
#include <memory>

#include "core/cpu/frame_session.h"
#include "core/number_format.h"

namespace enma {

class Engine {
   public:
    virtual ~Engine() = default;
    // Memory for a chunk. Throws Error, std::bad_alloc.
    virtual std::unique_ptr<FrameSession> session(const SamplerSettings& settings) const = 0;
    virtual NumberFormat format() const = 0;
    // Whether frame 0 of a generated trajectory is drawn as a field, and read.
    virtual bool draws_fields() const = 0;
    // Bytes of the packed weights.
    virtual std::size_t bytes() const = 0;
};

}  // namespace enma
