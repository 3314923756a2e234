#include "runtime/codec.h"

#include <algorithm>
#include <cmath>

#include "core/cpu/parallel.h"
#include "runtime/error.h"

namespace enma {

namespace {

// body(row, state, work) for every row, by so many threads; `bytes` of work space each.
template <class Body>
void each_row(std::int64_t rows, int threads, const Stream& stream, std::size_t bytes, const Body& body) {
    threads = static_cast<int>(std::clamp<std::int64_t>(threads, 1, rows));
    const Scratch scratch(threads * bytes);
    // Nothing is allocated in the region, where nothing may be thrown.
    std::vector<StreamState> states(threads, stream.state());
    parallel(threads, [&](int thread, int n) {
        for (std::int64_t row = rows * thread / n; row < rows * (thread + 1) / n; ++row) {
            states[thread].clear();
            body(row, states[thread], scratch.data() + thread * bytes);
        }
    });
}

}  // namespace

// What the encoder reads of a frame: values as they are, or features of values at points.
class Codec::Reader {
   public:
    Reader(const Codec& codec, const FramesOfRows& given)
        : interpolation_(codec.interpolation()),
          values_(given.values),
          points_(given.points),
          count_(given.points == nullptr ? codec.config().points() : given.count),
          channels_(codec.config().field_channels),
          dims_(codec.config().dims()),
          features_(interpolation_ == nullptr ? 0 : codec.config().points() * codec.config().grid_channels()) {}

    // Bytes of one thread.
    std::size_t work_bytes() const {
        if (interpolation_ == nullptr) return 0;
        const std::size_t given = points_ == nullptr ? 0 : pages(count_ * (channels_ + dims_) * sizeof(float));
        return pages(features_ * sizeof(float)) + given + interpolation_->to_grid_bytes(count_);
    }

    // Frame `number` of all rows: [points of the grid, channels that the encoder sees]; it may lie in `work`.
    const float* read(std::int64_t number, Isa isa, char* work) const {
        const float* const values = values_ + number * count_ * channels_;
        if (interpolation_ == nullptr) return values;
        float* const out = reinterpret_cast<float*>(work);
        work += pages(features_ * sizeof(float));
        if (points_ == nullptr) {
            interpolation_->to_grid(values, interpolation_->regular().data(), count_, isa, work, out);
            return out;
        }
        float *const there = reinterpret_cast<float*>(work), *const seen = there + count_ * dims_;
        work += pages(count_ * (channels_ + dims_) * sizeof(float));
        const float* const points = points_ + number * count_ * dims_;
        std::int64_t found = 0;
        for (std::int64_t p = 0; p < count_; ++p) {
            if (std::any_of(points + p * dims_, points + (p + 1) * dims_, [](float x) { return std::isnan(x); }))
                continue;
            std::copy_n(points + p * dims_, dims_, there + found * dims_);
            std::copy_n(values + p * channels_, channels_, seen + found * channels_);
            ++found;
        }
        interpolation_->to_grid(seen, there, found, isa, work, out);
        return out;
    }

   private:
    const Interpolation* interpolation_;
    const float *values_, *points_;
    std::int64_t count_, channels_, dims_, features_;
};

Codec::Codec(const TokenizerConfig& config, Tensors& tensors) : config_(config) {
    const TakeParameter take = [&](const std::string& name, const std::vector<std::int64_t>& shape) {
        return tensors.take(name, shape);
    };
    encoder_.emplace(Stream::encoder(config_, take));
    decoder_.emplace(Stream::decoder(config_, take));
    if (config_.interpolation) interpolation_.emplace(config_, take);
}

void Codec::encode(const FramesOfRows& given, int threads, Isa isa, float* out) const {
    if (given.points != nullptr && !interpolation_) {
        fail(ENMA_INVALID_ARGUMENT, "points: the model has no interpolation, and works on its grid only");
    }
    struct Target {
        float* out;
        std::int64_t places, channels;
    };
    const Sink keep = [](void* place, const float* made) {
        Target& target = *static_cast<Target*>(place);
        for (std::int64_t i = 0; i < target.places; ++i, made += whole_panels(static_cast<int>(target.channels))) {
            target.out = std::copy_n(made, target.channels, target.out);
        }
    };
    const std::int64_t T = given.frames, latents = config_.latent_frames(T), places = config_.places(),
                       C = config_.latent_channels, steps = (latents - 1) * config_.time_factor() + 1;
    const Reader frames(*this, given);
    const Stream& stream = *encoder_;
    const std::size_t bytes = stream.work_bytes() + frames.work_bytes();
    each_row(given.rows, threads, stream, bytes, [&](std::int64_t row, StreamState& state, char* work) {
        Target target{out + row * latents * places * C, places, C};
        const float* read = nullptr;
        for (std::int64_t t = 0; t < steps; ++t) {
            if (t < T) read = frames.read(row * T + t, isa, work + stream.work_bytes());
            stream.push(read, state, isa, work, keep, &target);
        }
    });
}

void Codec::decode(const float* latents, std::int64_t rows, std::int64_t count, std::int64_t frames, int threads,
                   Isa isa, float* out) const {
    const std::int64_t most = (count - 1) * config_.time_factor() + 1;
    if (frames < 1 || frames > most) {
        fail(ENMA_INVALID_ARGUMENT, "frames is ", frames, "; ", count, " latent frames give 1 to ", most);
    }
    struct Target {
        float *out, *end;
        std::int64_t size;
        const Interpolation* interpolation;
        Isa isa;
        char* work;
    };
    const Sink keep = [](void* place, const float* made) {
        Target& target = *static_cast<Target*>(place);
        if (target.out == target.end) return;
        if (target.interpolation != nullptr) made = target.interpolation->to_field(made, target.isa, target.work);
        target.out = std::copy_n(made, target.size, target.out);
    };
    const std::int64_t size = config_.points() * config_.field_channels, places = config_.places(),
                       C = config_.latent_channels;
    const Stream& stream = *decoder_;
    const int row_of_place = stream.inward();
    const std::size_t before = stream.work_bytes() + pages(places * row_of_place * sizeof(float));
    const std::size_t bytes = before + (interpolation_ ? interpolation_->to_field_bytes() : 0);
    each_row(rows, threads, stream, bytes, [&](std::int64_t row, StreamState& state, char* work) {
        float* const begin = out + row * frames * size;
        Target target{begin, begin + frames * size, size, interpolation(), isa, work + before};
        float* const input = reinterpret_cast<float*>(work + stream.work_bytes());
        std::fill_n(input, places * row_of_place, 0.0f);
        for (std::int64_t t = 0; t < count && target.out < target.end; ++t) {
            const float* latent = latents + (row * count + t) * places * C;
            for (std::int64_t i = 0; i < places; ++i, latent += C) std::copy_n(latent, C, input + i * row_of_place);
            stream.push(input, state, isa, work, keep, &target);
        }
    });
}

}  // namespace enma
