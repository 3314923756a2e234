#include "runtime/session.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <numbers>
#include <numeric>
#include <set>
#include <utility>

#include "core/philox.h"
#include "runtime/error.h"

namespace enma {

namespace {

using std::numbers::pi;

// Mask step of the words that make a trajectory's seed; enma_fast/sampling/noise.py.
constexpr std::uint32_t TRAJECTORY_STEP = 0xFFFFFFFEu;
constexpr std::int64_t MOST_FRAMES = 30'000;
constexpr std::int64_t FEWEST_OBSERVED = 3;
constexpr int MOST_THREADS = 4096;
// Tokens, the largest things that the sampler counts by an int, and frames.
constexpr std::int64_t MOST_TOKENS = 1 << 24, MOST_SEQUENCE = 1 << 16;

std::uint32_t low(std::uint64_t x) { return static_cast<std::uint32_t>(x); }
std::uint32_t high(std::uint64_t x) { return static_cast<std::uint32_t>(x >> 32); }

// enma_fast/models/schedule.py
std::vector<int> mask_schedule(int tokens, int steps) {
    std::vector<int> counts;
    int masked = tokens;
    for (int step = 1; step <= steps; ++step) {
        const double share = std::cos(pi * step / (2 * steps));
        const int wanted = static_cast<int>(std::floor(tokens * (share * share) + 1e-9));
        const int left = std::min(std::max(wanted, steps - step), masked - 1);
        counts.push_back(masked - left);
        masked = left;
    }
    return counts;
}

int flow_steps_at(const SamplingConfig& sampling, int step, int mask_steps) {
    const std::int64_t first = sampling.flow_steps;
    const std::int64_t last = sampling.last_flow_steps > 0 ? sampling.last_flow_steps : first;
    const std::int64_t intervals = std::max(mask_steps - 1, 1);
    return static_cast<int>((2 * (first * (intervals - step) + last * step) + intervals) / (2 * intervals));
}

// A frame [*grid, c] as a view shows it, or back.
void shift(const float* frame, const TokenizerConfig& tokenizer, const View& view, bool back, float* out) {
    const std::vector<std::int64_t>& amount = view.amount;
    const std::int64_t lines = tokenizer.dims() == 2 ? tokenizer.grid[0] : 1, size = tokenizer.grid.back();
    const std::int64_t across = tokenizer.dims() == 2 ? amount[0] : 0, c = tokenizer.field_channels;
    if (view.exchanged) {
        // Of a square: line i is what was column i, mirrored or not.
        const std::int64_t line = amount[back ? 1 : 0], column = amount[back ? 0 : 1];
        for (std::int64_t i = 0; i < size; ++i) {
            const float* from = frame + (column > 0 ? size - 1 - i : i) * c;
            for (std::int64_t k = 0; k < size; ++k) {
                out = std::copy_n(from + (line > 0 ? size - 1 - k : k) * size * c, c, out);
            }
        }
        return;
    }
    if (!tokenizer.has_ring()) {
        for (std::int64_t i = 0; i < lines; ++i) {
            const float* from = frame + (across > 0 ? lines - 1 - i : i) * size * c;
            if (amount.back() == 0) {
                out = std::copy_n(from, size * c, out);
                continue;
            }
            for (std::int64_t k = size - 1; k >= 0; --k) out = std::copy_n(from + k * c, c, out);
        }
        return;
    }
    const std::int64_t along = (back ? amount.back() : size - amount.back() % size) % size * c;
    for (std::int64_t i = 0; i < lines; ++i) {
        const float* from = frame + (i + (back ? across : lines - across % lines)) % lines * size * c;
        out = std::rotate_copy(from, from + along, from + size * c, out);
    }
}

// What rounding may take a coordinate beyond the ends of the domain, as a part of its length.
constexpr double AT_THE_END = 1e-6;

// Points [count, d] where a view shows them; those that it does not move are given back as they are.
const float* move(const float* points, std::int64_t count, const TokenizerConfig& tokenizer, const View& view,
                  float* out) {
    const int d = tokenizer.dims();
    const bool mirrored = !tokenizer.has_ring();
    const std::vector<std::int64_t>& amount = view.amount;
    if (!view.moves()) return points;
    for (std::int64_t i = 0; i < count * d; ++i) {
        const int axis = static_cast<int>(i % d);
        const double length = tokenizer.lengths[axis];
        if (mirrored) {
            out[i] = amount[axis] > 0 ? static_cast<float>(length) - points[i] : points[i];
            continue;
        }
        const float there = points[i] + static_cast<float>(amount[axis] * length / tokenizer.grid[axis]);
        // A sum that rounding leaves just below the end is the beginning.
        const bool around = tokenizer.periodic[axis] && there >= static_cast<float>(length * (1.0 - AT_THE_END));
        out[i] = around ? std::max(0.0f, there - static_cast<float>(length)) : there;
    }
    for (std::int64_t i = 0; view.exchanged && i < count; ++i) std::swap(out[2 * i], out[2 * i + 1]);
    return out;
}

}  // namespace

Session::Session(std::shared_ptr<const Model> model, const SessionSettings& settings, const Log& log)
    : model_(std::move(model)), settings_(settings), log_(log) {
    const SessionSettings& set = settings_;
    constexpr std::int64_t MEMBERS = std::int64_t{1} << 32;
    if (set.num_members < 1 || set.first_member < 0 || set.first_member >= MEMBERS ||
        set.num_members > MEMBERS - set.first_member) {
        fail(ENMA_INVALID_ARGUMENT, "num_members is ", set.num_members, " from first_member ", set.first_member,
             " on; at least 1 member, with numbers from 0 to 2^32 - 1, is expected");
    }
    const ModelConfig& config = model_->config();
    const std::int64_t rows = config.num_tokens() * (config.dynamics.concat ? 2 : 1);
    if (set.num_members > MOST_TOKENS / rows) {
        fail(ENMA_INVALID_ARGUMENT, "num_members is ", set.num_members, "; a session takes at most ",
             MOST_TOKENS / rows, ": use several, each with its own first_member");
    }
    if (set.num_frames < 0 || set.num_frames > MOST_FRAMES) {
        fail(ENMA_INVALID_ARGUMENT, "num_frames is ", set.num_frames, "; 0 to ", MOST_FRAMES, " is expected");
    }
    if (set.threads < 1 || set.threads > MOST_THREADS) {
        fail(ENMA_INVALID_ARGUMENT, "threads is ", set.threads, "; 0 to ", MOST_THREADS, " is expected");
    }
    if (!can_run(set.threads)) {
        fail(ENMA_NO_MEMORY, "threads is ", set.threads, "; the system lets this process start fewer: use less");
    }
    if (!std::isfinite(set.temperature)) fail(ENMA_INVALID_ARGUMENT, "temperature is not a finite number");
    views_ = views(config, set.shifts);
    seed_ =
        philox_4x32({low(set.trajectory), high(set.trajectory), TRAJECTORY_STEP, 0}, low(set.seed), high(set.seed)).w0;
    const auto shift_of = [&](std::int64_t row) { return static_cast<int>((set.first_member + row) % set.shifts); };
    std::set<int> used;
    for (std::int64_t row = 0; row < std::min<std::int64_t>(set.num_members, set.shifts); ++row)
        used.insert(shift_of(row));
    used_.assign(used.begin(), used.end());
    for (std::int64_t row = 0; row < set.num_members; ++row) {
        group_.push_back(static_cast<int>(std::lower_bound(used_.begin(), used_.end(), shift_of(row)) - used_.begin()));
    }
    const Interpolation* interpolation = model_->interpolation();
    work_each_ = std::max(model_->encoder().work_bytes(),
                          decoder_bytes() + (interpolation == nullptr ? 0 : interpolation->to_field_bytes()));
    work_ = Buffer(work_each_ * set.threads);
    pending_.resize(config.tokenizer.time_factor() * set.num_members * frame_size());
}

void Session::check_ready() const {
    if (!ready()) fail(ENMA_STATE, "nothing is observed: call enma_session_observe first");
}

std::int64_t Session::num_history() const { return model_->config().tokenizer.whole_latents(observed_.frames); }

std::int64_t Session::num_latents() const {
    return ready() ? num_history() +
                         static_cast<std::int64_t>(observed_.made.size()) / (settings_.num_members * latent_size())
                   : 0;
}

std::size_t Session::decoder_bytes() const {
    const std::size_t latents = model_->place_offsets().size() * model_->decoder().inward();
    return pages(model_->decoder().work_bytes() + latents * sizeof(float));
}

template <class Body>
void Session::share_out(std::int64_t items, const Body& body) {
    if (items == 0) return;
    std::atomic<std::int64_t> next{0};
    parallel(static_cast<int>(std::min<std::int64_t>(settings_.threads, items)), [&](int thread, int) {
        for (std::int64_t item = next++; item < items; item = next++) body(item, thread);
    });
}

// Features [count, G, *grid, F] of standardised frames as each shift sees them.
std::vector<float> Session::interpolated(const Frames& frames, std::int64_t count) {
    const Interpolation& interpolation = *model_->interpolation();
    const TokenizerConfig& tokenizer = model_->config().tokenizer;
    const std::int64_t size = frame_size(), G = num_groups(), c = tokenizer.field_channels, d = tokenizer.dims();
    const std::int64_t features = std::int64_t{model_->config().points()} * tokenizer.grid_channels();
    const bool scattered = !frames.points.empty();
    std::vector<std::int64_t> first(count);
    if (scattered) std::partial_sum(frames.rows.begin(), frames.rows.begin() + count - 1, first.begin() + 1);
    const std::int64_t most =
        scattered ? *std::max_element(frames.rows.begin(), frames.rows.begin() + count) : model_->config().points();
    const std::size_t each = interpolation.to_grid_bytes(most);
    const std::int64_t threads = std::min<std::int64_t>(settings_.threads, count * G);
    const Buffer space(each * threads);
    const std::int64_t moved_size = scattered ? most * d : size;
    std::vector<float> shifted(moved_size * threads), out(count * G * features);
    share_out(count * G, [&](std::int64_t i, int thread) {
        const std::int64_t t = i / G;
        const float *values = frames.values.data() + first[t] * c, *points = frames.points.data();
        std::int64_t rows = model_->config().points();
        float* const moved = shifted.data() + thread * moved_size;
        const View& view = views_[used_[i % G]];
        if (scattered) {
            rows = frames.rows[t];
            points += frames.shared ? 0 : first[t] * d;
            points = move(points, rows, tokenizer, view, moved);
        } else {
            shift(frames.values.data() + t * size, tokenizer, view, false, moved);
            values = moved;
            points = interpolation.regular().data();
        }
        interpolation.to_grid(values, points, rows, settings_.isa, space.data() + each * thread,
                              out.data() + i * features);
    });
    return out;
}

// Latents [latents, G, N C] of frames as each shift sees them.
std::vector<float> Session::encode(Frames frames, std::int64_t latents) {
    const TokenizerConfig& tokenizer = model_->config().tokenizer;
    const std::int64_t size = frame_size(), G = num_groups(), Z = latent_size(), c = tokenizer.field_channels;
    for (std::size_t i = 0; !tokenizer.field_mean.empty() && i < frames.values.size(); ++i) {
        frames.values[i] = (frames.values[i] - tokenizer.field_mean[i % c]) / tokenizer.field_scale[i % c];
    }
    const std::int64_t steps = (latents - 1) * tokenizer.time_factor() + 1, count = std::min(frames.count, steps);
    const bool interpolates = model_->interpolation() != nullptr;
    const std::vector<float> features = interpolates ? interpolated(frames, count) : std::vector<float>();
    const std::int64_t each = static_cast<std::int64_t>(features.size()) / (count * G);
    std::vector<float> out(latents * G * Z);
    std::vector<std::vector<float>> shifted(interpolates ? 0 : G, std::vector<float>(size));
    std::vector<StreamState> states(G, model_->encoder().state());
    struct Target {
        const Model& model;
        float* out;
        std::int64_t stride;
    };
    const Sink standardise = [](void* to, const float* frame) {
        Target& target = *static_cast<Target*>(to);
        const int C = target.model.config().tokenizer.latent_channels, row = whole_panels(C);
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
        for (std::int64_t step = 0; step < steps; ++step) {
            const std::int64_t t = std::min(step, count - 1);
            const float* frame = features.data() + (t * G + g) * each;
            if (!interpolates) {
                shift(frames.values.data() + t * size, tokenizer, views_[used_[g]], false, shifted[g].data());
                frame = shifted[g].data();
            }
            model_->encoder().push(frame, states[g], settings_.isa, work(thread), standardise, &target);
        }
    });
    return out;
}

Frames Session::frames_on_grid(const DLTensor* tensor, const char* name) const {
    const Array frames(tensor, name, model_->config().frames_shape({-1}), false);
    return {frames.size(0), frames.read("frame")};
}

Frames Session::frames_at_points(const enma_observations& given, const char* name) const {
    const ModelConfig& config = model_->config();
    const TokenizerConfig& tokenizer = config.tokenizer;
    const std::int64_t d = tokenizer.dims(), c = tokenizer.field_channels;
    if (!tokenizer.interpolation) {
        fail(ENMA_INVALID_ARGUMENT, name, ": the model '", config.name,
             "' has no interpolation; it works on its grid only");
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
        rows += out.rows[t];
    }
    if (given.counts != nullptr) {
        out.values = Array(given.values, what.c_str(), {rows, c}, false).read("row");
        out.points = Array(given.points, where.c_str(), {rows, d}, false).read("row");
    }
    for (std::size_t i = 0; i < out.points.size(); ++i) {
        const double length = tokenizer.lengths[i % d], beyond = AT_THE_END * length;
        if (out.points[i] < -beyond || out.points[i] > length + beyond) {
            fail(ENMA_INVALID_ARGUMENT, where, " has ", out.points[i], " in row ", i / d, "; the domain is 0 to ",
                 length, " along dimension ", i % d);
        }
        out.points[i] = std::clamp(out.points[i], 0.0f, static_cast<float>(length));
    }
    return out;
}

void Session::observe(const DLTensor* history, const DLTensor* context) {
    std::optional<Frames> seen, other;
    if (history != nullptr) seen = frames_on_grid(history, "history");
    if (context != nullptr) other = frames_on_grid(context, "context");
    observe(std::move(seen), std::move(other));
}

void Session::observe_points(const enma_observations* history, const enma_observations* context) {
    std::optional<Frames> seen, other;
    if (history != nullptr) seen = frames_at_points(*history, "history");
    if (context != nullptr) other = frames_at_points(*context, "context");
    observe(std::move(seen), std::move(other));
}

void Session::observe(std::optional<Frames> history, std::optional<Frames> context) {
    const ModelConfig& config = model_->config();
    if (!history && !context) {
        fail(ENMA_INVALID_ARGUMENT, "history and context are both NULL; give one of them");
    }
    Observed observed;
    if (history) {
        observed.frames = history->count;
        if (!context && observed.frames < FEWEST_OBSERVED) {
            fail(ENMA_INVALID_ARGUMENT, "history has ", observed.frames, " frames; at least ", FEWEST_OBSERVED,
                 " are expected, or a context");
        }
        if (observed.frames >= MOST_SEQUENCE) fail(ENMA_INVALID_ARGUMENT, "history has too many frames");
        observed.history = encode(std::move(*history), config.tokenizer.whole_latents(observed.frames));
    }
    if (context) {
        const std::int64_t given = context->count, used = std::min<std::int64_t>(given, config.num_frames);
        if (used < given) {
            log_(ENMA_LOG_WARNING,
                 text("context: of its ", given, " frames the first ", used, " are used, as in training"));
        }
        context->count = used;
        observed.context = encode(std::move(*context), config.tokenizer.latent_frames(used));
    }
    begin(std::move(observed));
    if (total_ > config.num_frames) {
        log_(ENMA_LOG_WARNING,
             text("frames beyond ", config.num_frames, " were not seen in training of ", config.name));
    }
}

Session::Plan Session::plan(const Observed& observed) const {
    const ModelConfig& config = model_->config();
    if (settings_.num_frames == 0 && observed.frames >= config.num_frames) {
        fail(ENMA_INVALID_ARGUMENT, "history has ", observed.frames, " frames, as many as ", config.name,
             " was trained on; say how many more: num_frames");
    }
    Plan plan{};
    plan.total = settings_.num_frames == 0 ? config.num_frames : observed.frames + settings_.num_frames;
    plan.total_latents = config.tokenizer.latent_frames(plan.total);
    plan.context = static_cast<std::int64_t>(observed.context.size()) / (num_groups() * latent_size());
    const std::int64_t first = config.tokenizer.whole_latents(observed.frames);
    plan.own = std::max<std::int64_t>(0, plan.total_latents - first - 1);
    plan.shared = first + 1 + (plan.context > 0 ? plan.context + 1 : 0);
    if (plan.shared + plan.own >= MOST_SEQUENCE) {
        fail(ENMA_INVALID_ARGUMENT, plan.shared + plan.own, " latent frames are too many");
    }
    return plan;
}

void Session::make_sampler_session(std::int64_t shared, std::int64_t own) {
    const ModelConfig& config = model_->config();
    const std::int64_t first = num_history();
    packed_ = model_->sampler(shared + own);
    SamplerSettings set{};
    set.rows = static_cast<int>(settings_.num_members);
    set.groups = static_cast<int>(num_groups());
    set.prefix_frames = static_cast<int>(shared);
    set.own_frames = static_cast<int>(own);
    // Frames that are decided in one pass need no mask steps; frame 0 never is.
    if (!config.dynamics.one_pass || first == 0) {
        set.counts = mask_schedule(config.num_tokens(), std::min(config.sampling.mask_steps, config.num_tokens()));
    }
    heads_.clear();
    const int steps = static_cast<int>(set.counts.size());
    for (int step = 0; step < steps; ++step) {
        heads_.push_back(model_->flow_head(flow_steps_at(config.sampling, step, steps)));
        set.heads.push_back(heads_.back().get());
    }
    set.temperature = settings_.temperature;
    set.threads = settings_.threads;
    set.isa = settings_.isa;
    set.teams = Teams::automatic;
    sampler_session_ = std::make_unique<SamplerSession>(*packed_->sampler, std::move(set));
}

void Session::begin(Observed observed) {
    // What is refused leaves the session as it was.
    const Plan planned = plan(observed);
    try {
        read_all(std::move(observed), planned);
    } catch (...) {
        sampler_session_.reset();
        throw;
    }
}

void Session::read_all(Observed observed, const Plan& planned) {
    const std::int64_t Z = latent_size(), G = num_groups(), B = settings_.num_members;
    // The old one is freed first.
    sampler_session_.reset();
    states_.clear();
    observed_ = std::move(observed);
    total_ = planned.total;
    total_latents_ = planned.total_latents;
    decoded_ = pending_count_ = 0;
    const std::int64_t first = num_history(), context = planned.context;
    std::vector<float> made;
    made.swap(observed_.made);
    observed_.made.reserve((total_latents_ - first) * B * Z);
    states_.assign(B, model_->decoder().state());
    make_sampler_session(planned.shared, planned.own);
    int segment = 0;
    if (context > 0) {
        sampler_session_->start_segment(segment++);
        for (std::int64_t t = 0; t < context; ++t) sampler_session_->read(observed_.context.data() + t * G * Z);
    }
    sampler_session_->start_segment(segment);
    for (std::int64_t t = 0; t < first; ++t) sampler_session_->read(observed_.history.data() + t * G * Z);
    std::vector<std::uint32_t> members(B);
    for (std::int64_t b = 0; b < B; ++b) members[b] = low(settings_.first_member + b);
    const std::vector<std::uint32_t> seeds(B, seed_);
    sampler_session_->begin(seeds.data(), members.data(), group_.data(), static_cast<int>(first));
    // The decoder reads a history once for all members that share it.
    std::vector<StreamState> states(G, model_->decoder().state());
    share_out(G, [&](std::int64_t g, int thread) {
        const Sink nowhere = [](void*, const float*) {};
        for (std::int64_t t = 0; t < first; ++t) {
            decode_row(observed_.history.data() + (t * G + g) * Z, states[g], work(thread), nowhere, nullptr);
        }
    });
    for (std::int64_t b = 0; b < B; ++b) states_[b] = states[group_[b]];
    decoded_ = first;
    active_.resize(B);
    std::iota(active_.begin(), active_.end(), 0);
    std::vector<float> rows;
    for (std::size_t at = 0; at < made.size(); at += B * Z) {
        drop_stopped(at / (B * Z));
        rows.clear();
        for (const int b : active_) rows.insert(rows.end(), &made[at + b * Z], &made[at + b * Z] + Z);
        if (!active_.empty() && decoded_ + 1 < total_latents_) sampler_session_->follow(rows.data());
        decode(rows.data());
    }
    observed_.made.insert(observed_.made.end(), made.begin(), made.end());
    drop_stopped(num_latents() - first);
}

void Session::decode_row(const float* latents, StreamState& state, char* work, Sink sink, void* to) const {
    const int C = model_->config().tokenizer.latent_channels, row = model_->decoder().inward();
    // Behind the work space of the layers.
    float* const input = reinterpret_cast<float*>(work + model_->decoder().work_bytes());
    std::fill_n(input, static_cast<std::int64_t>(model_->place_offsets().size()) * row, 0.0f);
    float* to_place = input;
    for (const std::int64_t place : model_->place_offsets()) {
        for (int i = 0; i < C; ++i) {
            to_place[i] = latents[place + i] * model_->latent_std()[i] + model_->latent_mean()[i];
        }
        to_place += row;
    }
    model_->decoder().push(input, state, settings_.isa, work, sink, to);
}

void Session::decode(const float* latents) {
    const std::int64_t factor = model_->config().tokenizer.time_factor(), size = frame_size(),
                       B = settings_.num_members;
    struct Target {
        float* out;
        std::int64_t stride, size;
        const View& view;
        const TokenizerConfig& tokenizer;
        const Interpolation* interpolation;
        Isa isa;
        char* work;
    };
    // In units of the field, and where the trajectory is, without the shift of its member.
    const Sink moved_back = [](void* to, const float* frame) {
        Target& target = *static_cast<Target*>(to);
        if (target.interpolation != nullptr) frame = target.interpolation->to_field(frame, target.isa, target.work);
        shift(frame, target.tokenizer, target.view, true, target.out);
        const std::vector<float>&mean = target.tokenizer.field_mean, &scale = target.tokenizer.field_scale;
        for (std::size_t i = 0; !mean.empty() && i < static_cast<std::size_t>(target.size); ++i) {
            target.out[i] = target.out[i] * scale[i % scale.size()] + mean[i % mean.size()];
        }
        target.out += target.stride;
    };
    share_out(static_cast<std::int64_t>(active_.size()), [&](std::int64_t i, int thread) {
        const int b = active_[i];
        Target target{pending_.data() + b * size,
                      B * size,
                      size,
                      views_[used_[group_[b]]],
                      model_->config().tokenizer,
                      model_->interpolation(),
                      settings_.isa,
                      work(thread) + decoder_bytes()};
        decode_row(latents + i * latent_size(), states_[b], work(thread), moved_back, &target);
    });
    pending_first_ = decoded_ == 0 ? 0 : (decoded_ - 1) * factor + 1;
    pending_count_ = decoded_ == 0 ? 1 : factor;
    ++decoded_;
}

void Session::advance() {
    const std::int64_t Z = latent_size();
    const std::size_t at = observed_.made.size();
    observed_.made.resize(at + settings_.num_members * Z);
    float* made = observed_.made.data() + at;
    if (!active_.empty()) sampler_session_->frame(made, decoded_ + 1 == total_latents_);
    decode(made);
    // Each to the place of its member, from the last one on; members that were stopped have zeros.
    for (std::size_t i = active_.size(); i-- > 0;) {
        const std::int64_t b = active_[i];
        if (b != static_cast<std::int64_t>(i)) std::copy_n(made + i * Z, Z, made + b * Z);
    }
    std::size_t next = 0;
    for (std::int64_t b = 0; b < settings_.num_members; ++b) {
        if (next < active_.size() && active_[next] == b) {
            ++next;
        } else {
            std::fill_n(made + b * Z, Z, 0.0f);
        }
    }
}

// The next frame [members, frame], which counts as given out.
const float* Session::next_frame() {
    const std::int64_t number = observed_.frames + observed_.done;
    while (pending_count_ == 0 || number >= pending_first_ + pending_count_) advance();
    for (std::int64_t b = 0; b < settings_.num_members; ++b) {
        if (has(b, observed_.done)) continue;
        const float missing = std::numeric_limits<float>::quiet_NaN();
        std::fill_n(pending_.data() + ((number - pending_first_) * settings_.num_members + b) * frame_size(),
                    frame_size(), missing);
    }
    ++observed_.done;
    return pending_.data() + (number - pending_first_) * settings_.num_members * frame_size();
}

bool Session::has(std::int64_t member, std::int64_t frame) const {
    return observed_.kept.empty() || observed_.kept[member] == GOES_ON || frame < observed_.kept[member];
}

std::int64_t Session::made_until(std::int64_t frames) const {
    return frames == 0 ? 0 : model_->config().tokenizer.latent_frames(observed_.frames + frames) - num_history();
}

void Session::drop_stopped(std::int64_t made) {
    if (observed_.kept.empty()) return;
    std::vector<int> places, rows;
    for (std::size_t i = 0; i < active_.size(); ++i) {
        const int b = active_[i];
        if (observed_.kept[b] == GOES_ON || made_until(observed_.kept[b]) > made) {
            places.push_back(static_cast<int>(i));
            rows.push_back(b);
        } else {
            states_[b] = {};
        }
    }
    if (!places.empty() && places.size() < active_.size()) {
        sampler_session_->keep(places.data(), static_cast<int>(places.size()));
    }
    active_ = std::move(rows);
}

void Session::stop(const std::uint8_t* members, std::size_t count) {
    check_ready();
    if (count != static_cast<std::size_t>(settings_.num_members)) {
        fail(ENMA_INVALID_ARGUMENT, "members has ", count, " entries; the session has ", settings_.num_members,
             " members");
    }
    std::vector<std::int64_t> kept = observed_.kept;
    kept.resize(count, GOES_ON);
    for (std::size_t b = 0; b < count; ++b) {
        if (members[b] != 0 && kept[b] == GOES_ON) kept[b] = done();
    }
    observed_.kept = std::move(kept);
    drop_stopped(num_latents() - num_history());
}

void Session::step(const DLTensor* frame) {
    check_ready();
    if (done() == total())
        fail(ENMA_STATE, "all ", total(), " frames were given out; observe again, or ask for more frames");
    const ModelConfig& config = model_->config();
    const Array out(frame, "frame", config.frames_shape({settings_.num_members}), true);
    out.write(next_frame());
}

void Session::forecast(const DLTensor* frames) {
    check_ready();
    const std::int64_t left = total() - done();
    if (left == 0) fail(ENMA_STATE, "all ", total(), " frames were given out; observe again, or ask for more frames");
    const ModelConfig& config = model_->config();
    const Array out(frames, "frames", config.frames_shape({settings_.num_members, left}), true);
    for (std::int64_t t = 0; t < left; ++t) {
        const float* values = next_frame();
        for (std::int64_t b = 0; b < settings_.num_members; ++b) out.write(b, t, values + b * frame_size());
    }
}

void Session::latents(const DLTensor* tensor) const {
    check_ready();
    const ModelConfig& config = model_->config();
    const std::int64_t B = settings_.num_members, G = num_groups(), Z = latent_size(), first = num_history();
    const Array out(tensor, "latents", {B, num_latents(), config.num_tokens(), config.token_channels()}, true);
    const std::vector<float> missing(Z, std::numeric_limits<float>::quiet_NaN());
    for (std::int64_t b = 0; b < B; ++b) {
        for (std::int64_t t = 0; t < num_latents(); ++t) {
            if (t < first) {
                out.write(b, t, observed_.history.data() + (t * G + group_[b]) * Z);
            } else {
                const bool made =
                    observed_.kept.empty() || observed_.kept[b] == GOES_ON || t - first < made_until(observed_.kept[b]);
                out.write(b, t, made ? observed_.made.data() + ((t - first) * B + b) * Z : missing.data());
            }
        }
    }
}

}  // namespace enma
