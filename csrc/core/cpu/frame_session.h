// Latent frames of an ensemble, one after the other, whatever decides them: enma_fast/sampling/reference.py in C++.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/cpu/decoder.h"
#include "core/cpu/drivers.h"
#include "core/error.h"

namespace enma {

// Bytes
struct SamplerPlan {
    std::size_t weights, keys_values, buffers, work;
};

// What one chunk of an ensemble needs memory for.
struct SamplerSettings : DecoderSettings {
    std::int64_t groups;                     // trajectories, of which the rows are members
    std::int64_t prefix_frames, own_frames;  // that groups share, with a start for each segment; that are read back
    std::int64_t first_frame;                // number of the first latent frame to make
};

// One chunk of an ensemble: G groups that share history and context, B rows, N tokens of C channels.
class FrameSession {
   public:
    virtual ~FrameSession() = default;
    // Forgets everything that it was given.
    virtual void reset() = 0;
    // Reads the start of a segment, then latent frames [G, N, C] of it.
    virtual void start_segment(int segment) = 0;
    virtual void read(const float* tokens) = 0;
    // What is told of the trajectories of the segment that was started last. Throws Error.
    virtual void tell(Told) { fail(ENMA_INVALID_ARGUMENT, "the model is told nothing beside its fields"); }
    // Keeps what was read: more of it comes next, or `begin`, of `count` rows, `most_rows` or fewer.
    virtual void reopen(std::int64_t count, std::int64_t first_frame) = 0;
    // Keys of the noise of each row, and its group. Throws Error where what was read is not enough.
    virtual void begin(const std::uint32_t* seeds, const std::uint32_t* members, const int* groups) = 0;
    // Decides the next latent frame [B, N, C] and, unless it is the last one, reads it.
    virtual void frame(float* out, bool last) = 0;
    // Reads a latent frame [B, N, C] in place of deciding it: that of another session, or one that was saved.
    virtual void follow(const float* tokens) = 0;
    // Goes on with `count` of the rows alone, at least one, given in ascending order; they keep their bits.
    virtual void keep(const int* rows, int count) = 0;

    virtual const SamplerSettings& settings() const = 0;
    virtual std::int64_t most_rows() const = 0;
    virtual int tokens() const = 0;
    virtual int channels() const = 0;
    virtual SamplerPlan plan() const = 0;
    // Starts of segments among them.
    virtual int frames_read() const = 0;
    virtual int frames_made() const = 0;
    // Between `begin` and the last frame.
    virtual bool begun() const = 0;
};

}  // namespace enma
