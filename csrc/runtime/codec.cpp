#include "runtime/codec.h"

#include <algorithm>
#include <cmath>

#include "core/cpu/parallel.h"
#include "core/error.h"

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

// The points of a frame that are there, and their values, one after the other in `work`.
SeenFrame without_missing(const float* values, const float* points, std::int64_t count, int channels, int dims,
                          float* work) {
    float *const there = work, *const seen = work + count * dims;
    std::int64_t found = 0;
    for (std::int64_t p = 0; p < count; ++p) {
        if (std::any_of(points + p * dims, points + (p + 1) * dims, [](float x) { return std::isnan(x); })) continue;
        std::copy_n(points + p * dims, dims, there + found * dims);
        std::copy_n(values + p * channels, channels, seen + found * channels);
        ++found;
    }
    return {seen, there, found};
}

}  // namespace

void encode_rows(const CodecConfig& config, const Codec& codec, const FramesOfRows& given, int threads, Isa isa,
                 float* out) {
    if (given.points != nullptr && codec.features() == 0) {
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
    const std::int64_t T = given.frames, latents = config.latent_frames(T), places = config.places(),
                       C = config.latent_channels, steps = (latents - 1) * config.time_factor + 1;
    const std::int64_t count = given.points == nullptr ? config.points() : given.count;
    const Stream& stream = codec.encoder();
    // After the stream's own: features, points that are there, and what reads them.
    const std::size_t features = pages(codec.features() * sizeof(float));
    const std::size_t there =
        given.points == nullptr ? 0 : pages(count * (config.field_channels + config.dims()) * sizeof(float));
    const std::size_t before = stream.work_bytes(), bytes = before + features + there + codec.read_bytes(count);
    each_row(given.rows, threads, stream, bytes, [&](std::int64_t row, StreamState& state, char* work) {
        Target target{out + row * latents * places * C, places, C};
        const float* read = nullptr;
        for (std::int64_t t = 0; t < steps; ++t) {
            if (t < T) {
                const std::int64_t number = row * T + t;
                read = given.values + number * count * config.field_channels;
                if (codec.features() > 0) {
                    SeenFrame seen{read, nullptr, count};
                    if (given.points != nullptr) {
                        seen = without_missing(read, given.points + number * count * config.dims(), count,
                                               config.field_channels, config.dims(),
                                               reinterpret_cast<float*>(work + before + features));
                    }
                    float* const made = reinterpret_cast<float*>(work + before);
                    codec.read(seen, isa, work + before + features + there, made);
                    read = made;
                }
            }
            stream.push(read, state, isa, work, keep, &target);
        }
    });
}

void decode_rows(const CodecConfig& config, const Codec& codec, const float* latents, std::int64_t rows,
                 std::int64_t count, std::int64_t frames, int threads, Isa isa, float* out) {
    const std::int64_t most = (count - 1) * config.time_factor + 1;
    if (frames < 1 || frames > most) {
        fail(ENMA_INVALID_ARGUMENT, "frames is ", frames, "; ", count, " latent frames give 1 to ", most);
    }
    struct Target {
        float *out, *end;
        std::int64_t size;
    };
    const Sink keep = [](void* place, const float* made) {
        Target& target = *static_cast<Target*>(place);
        if (target.out != target.end) target.out = std::copy_n(made, target.size, target.out);
    };
    const std::int64_t size = config.points() * config.field_channels, places = config.places(),
                       C = config.latent_channels;
    const Stream& stream = codec.decoder();
    const int row_of_place = whole_panels(config.latent_channels);
    const std::size_t bytes = stream.work_bytes() + pages(places * row_of_place * sizeof(float));
    each_row(rows, threads, stream, bytes, [&](std::int64_t row, StreamState& state, char* work) {
        float* const begin = out + row * frames * size;
        Target target{begin, begin + frames * size, size};
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
