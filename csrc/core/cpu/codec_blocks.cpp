// Codec `blocks`: a latent place holds the values of a block of points and of several frames, and nothing is lost or
// computed. Latent frame 0 holds frame 0, after zeros in place of the frames before it. enma_fast/models/codecs/blocks.py
//
// Channels of a place: (frame, field channel, point of the block).
#include "core/cpu/codec.h"

namespace enma {

namespace {

struct Blocks {
    CodecConfig config;
    int frames;
    // Where in a frame of the field the values of each place are, [places, values], and where in a latent frame.
    std::vector<std::int64_t> sources, targets;

    Blocks(const CodecConfig& config, int block, int frames) : config(config), frames(frames) {
        const std::int64_t across = config.grid.back(), c = config.field_channels, b = block;
        const std::int64_t tall = config.dims() == 2 ? b : 1, lines = config.dims() == 2 ? config.grid[0] : 1;
        for (std::int64_t line = 0; line < lines; line += tall) {
            for (std::int64_t place = 0; place < across; place += b) {
                for (std::int64_t value = 0; value < c * tall * b; ++value) {
                    const std::int64_t i = line + value / b % tall, j = place + value % b, channel = value / (tall * b);
                    targets.push_back(static_cast<std::int64_t>(sources.size()) / (c * tall * b) * row() + value);
                    sources.push_back((i * across + j) * c + channel);
                }
            }
        }
    }
    std::int64_t size() const { return static_cast<std::int64_t>(sources.size()); }
    std::int64_t values() const { return size() / config.places(); }
    std::int64_t row() const { return whole_panels(config.latent_channels); }
    // The values of a frame of the field among those of a latent frame, and back.
    void put(const float* field, int frame, float* latent) const {
        float* const to = latent + frame * values();
        for (std::size_t i = 0; i < sources.size(); ++i) to[targets[i]] = field[sources[i]];
    }
    void take(const float* latent, int frame, float* field) const {
        const float* const from = latent + frame * values();
        for (std::size_t i = 0; i < sources.size(); ++i) field[sources[i]] = from[targets[i]];
    }
};

class BlocksEncoder : public Stream {
   public:
    explicit BlocksEncoder(const Blocks& blocks) : blocks_(blocks) {}

    StreamState state() const override { return {std::vector<float>(blocks_.size() * (blocks_.frames - 1)), {0}}; }
    std::size_t work_bytes() const override { return pages(blocks_.config.places() * blocks_.row() * sizeof(float)); }

    void push(const float* frame, StreamState& state, Isa, char* work, Sink sink, void* to) const override {
        const int frames = blocks_.frames, place = static_cast<int>(state.seen[0]++ % frames);
        if (place > 0) {
            std::copy_n(frame, blocks_.size(), state.frames.data() + (place - 1) * blocks_.size());
            return;
        }
        float* const out = reinterpret_cast<float*>(work);
        std::fill_n(out, blocks_.config.places() * blocks_.row(), 0.0f);
        for (int t = 0; t < frames; ++t) {
            const float* const from = t + 1 < frames ? state.frames.data() + t * blocks_.size() : frame;
            blocks_.put(from, t, out);
        }
        if (sink != nullptr) sink(to, out);
    }

   private:
    const Blocks& blocks_;
};

class BlocksDecoder : public Stream {
   public:
    explicit BlocksDecoder(const Blocks& blocks) : blocks_(blocks) {}

    StreamState state() const override { return {{}, {0}}; }
    std::size_t work_bytes() const override { return pages(blocks_.size() * sizeof(float)); }

    void push(const float* latent, StreamState& state, Isa, char* work, Sink sink, void* to) const override {
        float* const out = reinterpret_cast<float*>(work);
        for (int t = state.seen[0]++ == 0 ? blocks_.frames - 1 : 0; t < blocks_.frames; ++t) {
            blocks_.take(latent, t, out);
            if (sink != nullptr) sink(to, out);
        }
    }

   private:
    const Blocks& blocks_;
};

class BlocksCodec : public Codec {
   public:
    BlocksCodec(const CodecConfig& config, int block, int frames) : blocks_(config, block, frames) {}
    const Stream& encoder() const override { return encoder_; }
    const Stream& decoder() const override { return decoder_; }

   private:
    Blocks blocks_;
    BlocksEncoder encoder_{blocks_};
    BlocksDecoder decoder_{blocks_};
};

}  // namespace

MakeCodec read_blocks_codec(Fields& fields, CodecConfig& common) {
    int block = 2, frames = 2;
    fields.read("block", block, 1, 64);
    fields.read("frames", frames, 1, 64);
    const std::int64_t values = std::int64_t{common.field_channels} * (common.dims() == 2 ? block * block : block);
    if (values > MOST / frames) fields.wrong("block", text("a place has more than ", MOST, " channels"));
    common.space_factor = block;
    common.time_factor = frames;
    common.latent_channels = static_cast<int>(values * frames);
    check_grid(fields, common);
    return [config = common, block, frames](const TakeParameter&) -> std::unique_ptr<const Codec> {
        return std::make_unique<const BlocksCodec>(config, block, frames);
    };
}

}  // namespace enma
