// Codecs: frames of a field to latent frames and back, a frame at a time. All kinds are causal, so a frame needs what they
// remember and nothing else. It has the same bits however many came before in one call, and whatever other rows are computed.
//
// A kind is a file of its own and a line in codec.cpp.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "core/cpu/dispatch.h"
#include "core/cpu/packed_linear.h"
#include "core/fields.h"

namespace enma {

// What a stream remembers of one row.
struct StreamState {
    std::vector<float> frames;
    std::vector<std::int64_t> seen;

    // As before the first frame.
    void clear() {
        std::fill(frames.begin(), frames.end(), 0.0f);
        std::fill(seen.begin(), seen.end(), 0);
    }
};

// Takes a frame that comes out; null where nobody wants it.
using Sink = void (*)(void* to, const float* frame);

// An encoder, from fields on the grid [*grid, c], or features of them, to latent frames [places][whole_panels(C)]; or a
// decoder back to fields [*grid, c].
class Stream {
   public:
    virtual ~Stream() = default;
    virtual StreamState state() const = 0;
    // Bytes of one thread.
    virtual std::size_t work_bytes() const = 0;
    // Passes a frame through; `sink` gets each frame that comes out.
    virtual void push(const float* frame, StreamState& state, Isa isa, char* work, Sink sink, void* to) const = 0;
    // True if the linear end of a decoder is one convolution.
    virtual bool folded() const { return false; }
};

// A frame as it was observed, standardised: values [count, c] at points [count, d], on the grid where these are null.
struct SeenFrame {
    const float *values, *points;
    std::int64_t count;
};

class Codec {
   public:
    virtual ~Codec() = default;
    virtual const Stream& encoder() const = 0;
    virtual const Stream& decoder() const = 0;
    // Floats that `read` makes of a frame for the encoder; 0 where the encoder takes frames on the grid as they are.
    virtual std::int64_t features() const { return 0; }
    // Bytes of work space of one call, and the call: it remembers nothing, so frames can be read side by side.
    virtual std::size_t read_bytes(std::int64_t) const { return 0; }
    virtual void read(const SeenFrame&, Isa, char*, float*) const {}
};

using MakeCodec = std::function<std::unique_ptr<const Codec>(const TakeParameter& take)>;

// What every kind has.
struct CodecConfig {
    std::vector<std::int64_t> grid = {128};
    std::vector<double> lengths = {1.0};
    std::vector<bool> periodic = {true};
    std::vector<float> field_mean, field_scale;  // of each channel; none leaves fields as they are
    // Whether fields have no values at some places, such as land; they are then 0 where they are standardised.
    bool masked = false;
    int field_channels = 1, latent_channels = 4;
    // Grid points of a latent place along each dimension, and frames of a latent frame after the first one.
    int space_factor = 1, time_factor = 1;
    MakeCodec make;

    int dims() const { return static_cast<int>(grid.size()); }
    bool has_ring() const { return std::find(periodic.begin(), periodic.end(), true) != periodic.end(); }
    // Points of a frame, and places of a latent frame.
    std::int64_t points() const { return points_over(1); }
    std::int64_t places() const { return points_over(space_factor); }
    // Latent frames that cover so many frames, and those that cover none beyond them.
    std::int64_t latent_frames(std::int64_t frames) const { return (frames - 1 + time_factor - 1) / time_factor + 1; }
    std::int64_t whole_latents(std::int64_t frames) const { return frames == 0 ? 0 : (frames - 1) / time_factor + 1; }

   private:
    std::int64_t points_over(std::int64_t factor) const {
        std::int64_t product = 1;
        for (const std::int64_t n : grid) product *= n / factor;
        return product;
    }
};

// Points of a frame.
constexpr std::int64_t MOST_POINTS = 1 << 22;

// Throws Error. The kinds' own readers set the channels and factors of `common`, whose other fields are read.
CodecConfig read_codec(Fields fields);
// For them: refuses a grid that the factor does not divide.
void check_grid(const Fields& fields, const CodecConfig& config);

}  // namespace enma
