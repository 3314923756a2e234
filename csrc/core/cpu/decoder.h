// Decoders: what decides the tokens of a latent frame. One fills the slot `initial` of a model, for frame 0 of a generated
// trajectory, and one the slot `step`, for all other frames, and for frame 0 where `initial` is empty.
//
// A kind is a file of its own and a line in decoder.cpp. decoder_linear.cpp is the shortest.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "core/cpu/allocator.h"
#include "core/cpu/gemm.h"
#include "core/cpu/latent_grid.h"
#include "core/cpu/packed_linear.h"
#include "core/fields.h"
#include "core/number_format.h"

namespace enma {

struct FieldConfig;
struct SamplerView;
struct SamplerState;

// What a decoder is made for.
struct DecoderShape {
    int tokens, channels, width;  // of a frame, of a token, of the context
    bool trunk;                   // whether there is a masked transformer
    bool initial;                 // the slot
    LatentGrid grid;              // of places, with so many channels each
    int latent_channels;
};

// Its parameters, whose names begin with `prefix`.
struct DecoderSlot {
    const TakeParameter& take;
    std::string prefix;
    NumberFormat format;
    float epsilon;  // of norms
};

struct DecoderSettings {
    int mask_steps, flow_steps;
    float temperature;  // of the noise
    std::int64_t rows;
    int threads;
    Isa isa;
};

// One thread of the region that makes a frame.
struct Region {
    Member member;                // of all threads
    Member team;                  // of those that work on the same rows
    char *common, *shared, *own;  // work space: of all threads, of the team, of this thread
    const Kernels& run;
    Isa isa;
    int rows, together;  // of the frame, and those that a team takes at a time
    std::atomic<int>* counters;

    bool solo() const { return team.threads == 1; }
    // This thread's part of `count` things.
    int begin(int count) const { return static_cast<int>(std::int64_t{count} * member.thread / member.threads); }
    int end(int count) const { return static_cast<int>(std::int64_t{count} * (member.thread + 1) / member.threads); }
    // body(begin, end) for items of at most `each` rows: claimed one by one by threads that work alone, else all of them by
    // all. Each counter, 0 when the frame begins, serves once.
    template <class Body>
    void share_out(int counter, int each, const Body& body) const {
        const int items = even_items(rows, each, solo() ? member.threads : 1);
        std::atomic<int>& next = counters[counter];
        int item = solo() ? next++ : 0;
        while (item < items) {
            body(static_cast<int>(std::int64_t{rows} * item / items),
                 static_cast<int>(std::int64_t{rows} * (item + 1) / items));
            item = solo() ? next++ : item + 1;
        }
    }
    // Pieces of at most `most` of `count` things; where each thread gets few of them, all get as many.
    static int even_items(int count, int most, int threads) {
        const int items = (count + most - 1) / most;
        return items < 4 * threads ? std::min(count, (items + threads - 1) / threads * threads) : items;
    }
};

// Bytes of work space: of one thread, and of a team.
struct WorkBytes {
    std::size_t own, shared;
};

// A decoder in one session, with the memory that it needs. Nothing is allocated while frames are made.
class DecoderSession {
   public:
    virtual ~DecoderSession() = default;
    // Takes its memory, or counts it.
    virtual void take(Allocator& memory) = 0;
    virtual WorkBytes work() const = 0;
    // Of its items, from 0 on.
    virtual int counters() const = 0;
    // Decides the tokens of the next frame of all rows; all threads of a region call it.
    virtual void decide(const Region& region) = 0;
};

// Packed weights; immutable, so that sessions can share it.
class Decoder {
   public:
    virtual ~Decoder() = default;
    virtual std::size_t bytes() const = 0;
    // Frames before the next one that it reads.
    virtual int past() const { return 0; }
    // Whether its frames are fields that are read, and it decides no tokens: then to ask for a session throws Error.
    virtual bool draws_fields() const { return false; }
    // Of one that decides in field space, for field_model.h, and not here: to ask it for a session throws Error too.
    virtual const FieldConfig* field_config() const { return nullptr; }
    // `model` and `state` outlive it.
    virtual std::unique_ptr<DecoderSession> session(const SamplerView& model, const SamplerState& state,
                                                    const DecoderSettings& settings) const = 0;
};

using MakeDecoder = std::function<std::unique_ptr<const Decoder>(const DecoderSlot& slot)>;

// Throws Error.
MakeDecoder read_decoder(Fields fields, const DecoderShape& shape);

}  // namespace enma
