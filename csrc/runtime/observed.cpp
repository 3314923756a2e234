// Observed frames: read and checked, on the grid or at scattered points, and encoded as each shift sees them.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "core/error.h"
#include "runtime/session.h"

namespace enma {

namespace {

constexpr std::int64_t FEWEST_OBSERVED = 3;
// As in enma_fast/forecasting/encoding.py and analysis.py.
constexpr int FEWEST_DRAWN = 16;
constexpr double MOST_SIZE = 8.0;
constexpr std::int64_t MOST_TOGETHER = 1 << 14;
constexpr std::uint32_t HISTORY_STEP = 0xFFFFFFFDu, CONTEXT_STEP = 0xFFFFFFFCu;

// Of each channel; none where there is no error.
std::vector<double> errors_of(const enma_observations& given, const Model& model, const char* name) {
    if (given.errors == nullptr && given.num_errors == 0) return {};
    if (given.errors == nullptr) fail(ENMA_INVALID_ARGUMENT, name, ".errors is NULL; num_errors is ", given.num_errors);
    const std::int64_t count = given.num_errors, c = model.config().codec.field_channels;
    if (count != 1 && count != c) {
        fail(ENMA_INVALID_ARGUMENT, name, ".num_errors is ", count, "; 1 or ", c, " is expected");
    }
    std::vector<double> out(given.errors, given.errors + count);
    if (!std::all_of(out.begin(), out.end(), [](double x) { return x >= 0 && std::isfinite(x); })) {
        fail(ENMA_INVALID_ARGUMENT, name, ".errors holds a number that is below 0 or not finite");
    }
    if (std::all_of(out.begin(), out.end(), [](double x) { return x == 0; })) return {};
    if (model.codec().features() > 0) {
        fail(ENMA_INVALID_ARGUMENT, name, ".errors: are those of a model without an interpolation; leave them out");
    }
    out.resize(c, out[0]);
    return out;
}

}  // namespace

// What the codec reads of standardised frames as each shift sees them, [count, G, features].
std::vector<float> Session::features(const Frames& frames, std::int64_t count) {
    const Codec& reader = model_->codec();
    const CodecConfig& codec = model_->config().codec;
    const std::int64_t size = frame_size(), G = num_groups(), c = codec.field_channels, d = codec.dims();
    const std::int64_t each_frame = reader.features();
    const bool scattered = !frames.points.empty();
    std::vector<std::int64_t> first(count);
    if (scattered) std::partial_sum(frames.rows.begin(), frames.rows.begin() + count - 1, first.begin() + 1);
    const std::int64_t most =
        scattered ? *std::max_element(frames.rows.begin(), frames.rows.begin() + count) : model_->config().points();
    const std::size_t each = reader.read_bytes(most);
    const std::int64_t threads = std::min<std::int64_t>(settings_.threads, count * G);
    const Buffer space(each * threads);
    const std::int64_t moved_size = scattered ? most * d : size;
    std::vector<float> shifted(moved_size * threads), out(count * G * each_frame);
    share_out(count * G, [&](std::int64_t i, int thread) {
        const std::int64_t t = i / G;
        const float *values = frames.values.data() + first[t] * c, *points = frames.points.data();
        std::int64_t rows = model_->config().points();
        float* const moved = shifted.data() + thread * moved_size;
        const View& view = groups_.views[groups_.used[i % G]];
        if (scattered) {
            rows = frames.rows[t];
            points += frames.shared ? 0 : first[t] * d;
            points = move(points, rows, codec, view, moved);
        } else {
            shift(frames.values.data() + t * size, codec, view, false, moved);
            values = moved;
            points = nullptr;
        }
        reader.read({values, points, rows}, settings_.isa, space.data() + each * thread, out.data() + i * each_frame);
    });
    return out;
}

int Session::num_drawn() const {
    const int shifts = std::max(1, settings_.shifts);
    return (FEWEST_DRAWN + shifts - 1) / shifts * shifts;
}

std::vector<float> Session::drawn(const Frames& frames, std::uint32_t step) const {
    const char* const name = step == HISTORY_STEP ? "history" : "context";
    FieldDraws draws{seed_, step, {}};
    draws.numbers.assign(groups_.used.begin(), groups_.used.end());
    const ScatteredFrames seen{frames.values.data(), frames.points.data(), frames.rows, frames.shared};
    std::vector<float> out(num_groups() * frames.count * frame_size());
    const double size = analyse(*model_->covariance(), seen, frames.errors, &draws, out.data());
    if (!std::isfinite(size) || !std::all_of(out.begin(), out.end(), [](float x) { return std::isfinite(x); })) {
        fail(ENMA_INVALID_ARGUMENT, name, ": no field of finite values fits the values; check their unit");
    }
    if (size > MOST_SIZE) {
        log_(ENMA_LOG_WARNING, text(name, ": the values are no fields such as ", model_->config().name,
                                    " was trained on, by a factor of up to ", size,
                                    ": check unit and coordinates, and give the error that the values have (errors)"));
    }
    return out;
}

// Latents [latents, G, N C] of frames as each shift sees them.
std::vector<float> Session::encode(Frames frames, std::int64_t latents, std::uint32_t step) {
    const CodecConfig& codec = model_->config().codec;
    const std::int64_t size = frame_size(), G = num_groups(), Z = latent_size(), c = codec.field_channels;
    // Each group has fields of its own, or all have those that were observed.
    if (!frames.points.empty() && model_->covariance() != nullptr) {
        frames.values = drawn(frames, step);
        frames.of_groups = true;
    }
    for (std::size_t i = 0; !codec.field_mean.empty() && i < frames.values.size(); ++i) {
        frames.values[i] = (frames.values[i] - codec.field_mean[i % c]) / codec.field_scale[i % c];
    }
    const std::vector<float>& mask = model_->mask();
    for (std::size_t i = 0; !mask.empty() && i < frames.values.size(); ++i) frames.values[i] *= mask[i % mask.size()];
    const std::int64_t steps = (latents - 1) * codec.time_factor + 1, count = std::min(frames.count, steps);
    const std::int64_t each = model_->codec().features();
    const bool reads = each > 0;
    const std::vector<float> features = reads ? this->features(frames, count) : std::vector<float>();
    std::vector<float> out(latents * G * Z);
    std::vector<std::vector<float>> shifted(reads ? 0 : G, std::vector<float>(size));
    std::vector<StreamState> states(G, model_->codec().encoder().state());
    struct Target {
        const Model& model;
        float* out;
        std::int64_t stride;
    };
    const Sink standardise = [](void* to, const float* frame) {
        Target& target = *static_cast<Target*>(to);
        const int C = target.model.config().codec.latent_channels, row = whole_panels(C);
        for (const std::int64_t place : target.model.place_offsets()) {
            for (int i = 0; i < C; ++i) {
                target.out[place + i] = (frame[i] - target.model.latent_mean()[i]) / target.model.latent_std()[i];
            }
            frame += row;
        }
        target.out += target.stride;
    };
    share_out(G, [&](std::int64_t g, int thread) {
        Target target{*model_, out.data() + g * Z, G * Z};
        // The last latent frame may lack frames of its own: they repeat the last one.
        for (std::int64_t i = 0; i < steps; ++i) {
            const std::int64_t t = std::min(i, count - 1);
            const float* frame = features.data() + (t * G + g) * each;
            if (!reads) {
                const std::int64_t place = frames.of_groups ? g * frames.count + t : t;
                shift(frames.values.data() + place * size, codec, groups_.views[groups_.used[g]], false,
                      shifted[g].data());
                frame = shifted[g].data();
            }
            model_->codec().encoder().push(frame, states[g], settings_.isa, work(thread), standardise, &target);
        }
    });
    return out;
}

std::vector<float> Session::first_latents(const float* first) {
    const FieldCovariance* const covariance = model_->covariance();
    if (covariance == nullptr) {
        fail(ENMA_CHECKPOINT, model_->config().name, ": its checkpoint has no covariance, of which frame 0 is drawn");
    }
    const std::int64_t size = frame_size();
    Frames drawn;
    drawn.count = 1;
    drawn.of_groups = true;
    drawn.values.resize(settings_.num_members * size);
    share_out(settings_.num_members, [&](std::int64_t b, int) {
        draw_field(*covariance, first, seed_, static_cast<std::uint32_t>(settings_.first_member + b),
                   drawn.values.data() + b * size);
    });
    return encode(std::move(drawn), 1, 0);
}

Frames Session::frames_on_grid(const DLTensor* tensor, const char* name) const {
    const Array frames(tensor, name, model_->config().frames_shape({-1}), false);
    return {frames.size(0), frames.read("frame", model_->mask())};
}

Frames Session::frames_at_points(const enma_observations& given, const char* name) const {
    const ModelConfig& config = model_->config();
    const CodecConfig& codec = config.codec;
    const std::int64_t d = codec.dims(), c = codec.field_channels;
    if (!model_->reads_points()) {
        fail(ENMA_INVALID_ARGUMENT, name, ": the model '", config.name,
             "' has no interpolation, and its checkpoint no covariance; it works on its grid only");
    }
    const std::string where = text(name, ".points"), what = text(name, ".values");
    Frames out;
    if (given.counts == nullptr) {
        const Array points(given.points, where.c_str(), {-1, d}, false);
        const Array values(given.values, what.c_str(), {-1, points.size(0), c}, false);
        out = {values.size(0), values.read("frame"), points.read("row"), {}, true};
        if (given.num_frames != 0 && given.num_frames != out.count) {
            fail(ENMA_INVALID_ARGUMENT, name, ".num_frames is ", given.num_frames, "; values has ", out.count);
        }
        out.rows.assign(out.count, points.size(0));
    } else {
        if (given.num_frames < 1 || given.num_frames >= MOST_SEQUENCE) {
            fail(ENMA_INVALID_ARGUMENT, name, ".num_frames is ", given.num_frames, "; 1 to ", MOST_SEQUENCE - 1,
                 " is expected beside counts");
        }
        out.count = given.num_frames;
        out.rows.assign(given.counts, given.counts + given.num_frames);
    }
    std::int64_t rows = 0;
    for (std::int64_t t = 0; t < out.count; ++t) {
        if (out.rows[t] < 1 || out.rows[t] > MOST_POINTS) {
            fail(ENMA_INVALID_ARGUMENT, name, ": frame ", t, " has ", out.rows[t], " points; 1 to ", MOST_POINTS,
                 " are expected");
        }
        if (model_->codec().features() == 0 && out.rows[t] > MOST_TOGETHER) {
            fail(ENMA_INVALID_ARGUMENT, name, ": frame ", t, " has ", out.rows[t], " points; at most ", MOST_TOGETHER,
                 " are estimated from together: give some of them");
        }
        rows += out.rows[t];
    }
    if (given.counts != nullptr) {
        out.values = Array(given.values, what.c_str(), {rows, c}, false).read("row");
        out.points = Array(given.points, where.c_str(), {rows, d}, false).read("row");
    }
    out.errors = errors_of(given, *model_, name);
    for (std::size_t i = 0; i < out.points.size(); ++i) {
        const double length = codec.lengths[i % d], beyond = AT_THE_END * length;
        if (out.points[i] < -beyond || out.points[i] > length + beyond) {
            fail(ENMA_INVALID_ARGUMENT, where, " has ", out.points[i], " in row ", i / d, "; the domain is 0 to ",
                 length, " along dimension ", i % d);
        }
        out.points[i] = std::clamp(out.points[i], 0.0f, static_cast<float>(length));
    }
    return out;
}

void Session::known(const char* name, const DLTensor* values, const DLTensor* context_values) {
    if (name == nullptr) fail(ENMA_INVALID_ARGUMENT, "name is NULL");
    if (values == nullptr && context_values == nullptr) {
        fail(ENMA_INVALID_ARGUMENT, "known: ", std::string(name).substr(0, 80),
             " has neither values nor context_values; give one of them");
    }
    if (values != nullptr) known_.give(name, values);
    if (context_values != nullptr) context_known_.give(name, context_values);
}

void Session::observe(const DLTensor* history, const DLTensor* context) {
    std::optional<Frames> seen, other;
    if (history != nullptr) seen = frames_on_grid(history, "history");
    if (context != nullptr) other = frames_on_grid(context, "context");
    in_groups(settings_.shifts, [&] { observe(std::move(seen), std::move(other)); });
}

void Session::observe_points(const enma_observations* history, const enma_observations* context) {
    std::optional<Frames> seen, other;
    if (history != nullptr) seen = frames_at_points(*history, "history");
    if (context != nullptr) other = frames_at_points(*context, "context");
    const bool draws = model_->covariance() != nullptr;
    in_groups(draws ? num_drawn() : settings_.shifts, [&] { observe(std::move(seen), std::move(other)); });
}

void Session::observe(std::optional<Frames> history, std::optional<Frames> context) {
    const ModelConfig& config = model_->config();
    if (!history && !context) {
        fail(ENMA_INVALID_ARGUMENT, "history and context are both NULL; give one of them");
    }
    Observed observed;
    std::vector<float> context_first;
    if (history) {
        observed.frames = history->count;
        if (!context && observed.frames < FEWEST_OBSERVED) {
            fail(ENMA_INVALID_ARGUMENT, "history has ", observed.frames, " frames; at least ", FEWEST_OBSERVED,
                 " are expected, or a context");
        }
        if (observed.frames >= MOST_SEQUENCE) fail(ENMA_INVALID_ARGUMENT, "history has too many frames");
        observed.told = known_.told(total_frames(observed.frames));
        const std::int64_t latents = config.codec.whole_latents(observed.frames);
        observed.history = encode(std::move(*history), latents, HISTORY_STEP);
    }
    if (context) {
        const std::int64_t given = context->count, used = config.context_frames(given);
        if (used < given) {
            log_(ENMA_LOG_WARNING,
                 text("context: of its ", given, " frames the first ", used, " are used, as in training"));
        }
        const int least = config.shortest_context > 0 ? config.shortest_context : config.num_frames;
        if (given < least) {
            log_(ENMA_LOG_WARNING,
                 text("context: has ", given, given == 1 ? " frame; " : " frames; ", config.name,
                      " was trained on contexts of at least ", least, ", and may forecast far worse from fewer"));
        }
        observed.context_told = context_known_.told(used);
        context->count = used;
        if (!context->rows.empty()) context->rows.resize(used);
        if (context->points.empty())
            context_first.assign(context->values.begin(), context->values.begin() + frame_size());
        observed.context = encode(std::move(*context), config.codec.latent_frames(used), CONTEXT_STEP);
    }
    if (num_read(observed) > 0) {
        // Each member goes on from a field of its own, after the context as its group sees it.
        const std::int64_t Z = latent_size(), G = num_groups(), B = settings_.num_members;
        std::vector<float> each;
        for (std::size_t at = 0; at < observed.context.size(); at += G * Z) {
            for (std::int64_t b = 0; b < B; ++b) {
                const float* const from = observed.context.data() + at + groups_.group[b] * Z;
                each.insert(each.end(), from, from + Z);
            }
        }
        observed.context = std::move(each);
        separate();
        observed.made = first_latents(context_first.empty() ? nullptr : context_first.data());
    }
    begin(std::move(observed));
    known_.clear();
    context_known_.clear();
    if (total_ > config.num_frames) {
        log_(ENMA_LOG_WARNING,
             text("frames beyond ", config.num_frames, " were not seen in training of ", config.name));
    }
}

}  // namespace enma
