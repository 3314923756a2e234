// What a session is made for, and its beginning: the sampler's mask and flow steps, and what was observed and made before,
// read again. observed.cpp encodes observations, forecast.cpp goes on from there.
#include "runtime/session.h"

#include <algorithm>
#include <numeric>
#include <set>
#include <utility>

#include "core/philox.h"
#include "core/error.h"

namespace enma {

namespace {

// Mask step of the words that make a trajectory's seed; enma_fast/sampling/noise.py.
constexpr std::uint32_t TRAJECTORY_STEP = 0xFFFFFFFEu;
constexpr std::int64_t MOST_FRAMES = 30'000;

std::uint32_t low(std::uint64_t x) { return static_cast<std::uint32_t>(x); }
std::uint32_t high(std::uint64_t x) { return static_cast<std::uint32_t>(x >> 32); }

}  // namespace

Session::Session(std::shared_ptr<const Model> model, const SessionSettings& settings, const Log& log)
    : model_(std::move(model)),
      settings_(settings),
      log_(log),
      known_(*model_, "known"),
      context_known_(*model_, "context_known") {
    const SessionSettings& set = settings_;
    constexpr std::int64_t MEMBERS = std::int64_t{1} << 32;
    if (set.num_members < 1 || set.first_member < 0 || set.first_member >= MEMBERS ||
        set.num_members > MEMBERS - set.first_member) {
        fail(ENMA_INVALID_ARGUMENT, "num_members is ", set.num_members, " from first_member ", set.first_member,
             " on; at least 1 member, with numbers from 0 to 2^32 - 1, is expected");
    }
    const ModelConfig& config = model_->config();
    if (set.num_frames < 0 || set.num_frames > MOST_FRAMES) {
        fail(ENMA_INVALID_ARGUMENT, "num_frames is ", set.num_frames, "; 0 to ", MOST_FRAMES, " is expected");
    }
    model_->dynamics().check(deciding());
    if (!can_run(set.threads)) {
        fail(ENMA_NO_MEMORY, "threads is ", set.threads, "; the system lets this process start fewer: use less");
    }
    if (config.is_told() && set.shifts > 1) {
        fail(ENMA_INVALID_ARGUMENT, "shifts is ", set.shifts, "; what ", config.name,
             " is told does not move with fields: leave it out");
    }
    groups_ = groups_of(set.shifts);
    seed_ =
        philox_4x32({low(set.trajectory), high(set.trajectory), TRAJECTORY_STEP, 0}, low(set.seed), high(set.seed)).w0;
    work_each_ = std::max(model_->codec().encoder().work_bytes(), decoder_bytes());
    work_ = Buffer(work_each_ * set.threads);
    pending_.resize(config.codec.time_factor * set.num_members * frame_size());
}

Groups Session::groups_of(int count) const {
    const SessionSettings& set = settings_;
    const std::vector<View> ways = views(model_->config(), set.shifts);
    Groups out;
    for (int i = 0; i < count; ++i) out.views.push_back(ways[i % ways.size()]);
    const auto number = [&](std::int64_t row) { return static_cast<int>((set.first_member + row) % count); };
    std::set<int> used;
    for (std::int64_t row = 0; row < std::min<std::int64_t>(set.num_members, count); ++row) used.insert(number(row));
    out.used.assign(used.begin(), used.end());
    for (std::int64_t row = 0; row < set.num_members; ++row) {
        const auto place = std::lower_bound(out.used.begin(), out.used.end(), number(row));
        out.group.push_back(static_cast<int>(place - out.used.begin()));
    }
    return out;
}

void Session::separate() {
    std::vector<int> used(groups_.group.size());
    for (std::size_t b = 0; b < used.size(); ++b) used[b] = groups_.used[groups_.group[b]];
    groups_.used = std::move(used);
    std::iota(groups_.group.begin(), groups_.group.end(), 0);
}

void Session::check_ready() const {
    if (!ready()) fail(ENMA_STATE, "nothing is observed: call enma_session_observe first");
}

std::int64_t Session::num_history() const { return model_->config().codec.whole_latents(observed_.frames); }

std::int64_t Session::num_latents() const {
    return ready() ? num_history() +
                         static_cast<std::int64_t>(observed_.made.size()) / (settings_.num_members * latent_size())
                   : 0;
}

std::int64_t Session::total_frames(std::int64_t observed) const {
    const ModelConfig& config = model_->config();
    if (settings_.num_frames == 0 && observed >= config.num_frames) {
        fail(ENMA_INVALID_ARGUMENT, "history has ", observed, " frames, as many as ", config.name,
             " was trained on; say how many more: num_frames");
    }
    return settings_.num_frames == 0 ? config.num_frames : observed + settings_.num_frames;
}

Session::Plan Session::plan(const Observed& observed) const {
    const ModelConfig& config = model_->config();
    Plan plan{};
    plan.total = total_frames(observed.frames);
    plan.total_latents = config.codec.latent_frames(plan.total);
    plan.context = static_cast<std::int64_t>(observed.context.size()) / (num_groups() * latent_size());
    const std::int64_t first = config.codec.whole_latents(observed.frames) + num_read(observed);
    plan.own = std::max<std::int64_t>(0, plan.total_latents - first - 1);
    plan.shared = first + 1 + (plan.context > 0 ? plan.context + 1 : 0);
    if (plan.shared + plan.own >= MOST_SEQUENCE) {
        fail(ENMA_INVALID_ARGUMENT, plan.shared + plan.own, " latent frames are too many");
    }
    return plan;
}

DecoderSettings Session::deciding() const {
    const SamplingConfig& own = model_->config().sampling;
    return {own.mask_steps,        own.flow_steps,    settings_.temperature,
            settings_.num_members, settings_.threads, settings_.isa};
}

void Session::begin(Observed observed) {
    // What is refused leaves the session as it was.
    const Plan planned = plan(observed);
    try {
        read_all(std::move(observed), planned);
    } catch (...) {
        sampling_.reset();
        throw;
    }
}

void Session::read_all(Observed observed, const Plan& planned) {
    const std::int64_t Z = latent_size(), G = num_groups(), B = settings_.num_members;
    // The old one is freed first.
    sampling_.reset();
    states_.clear();
    observed_ = std::move(observed);
    total_ = planned.total;
    total_latents_ = planned.total_latents;
    decoded_ = pending_count_ = 0;
    const std::int64_t first = num_history(), context = planned.context, read = num_read(observed_);
    std::vector<float> made;
    made.swap(observed_.made);
    observed_.made.reserve((total_latents_ - first) * B * Z);
    states_.assign(B, model_->codec().decoder().state());
    sampling_ = model_->dynamics().session({deciding(), G, planned.shared, planned.own, first + read});
    int segment = 0;
    if (context > 0) {
        sampling_->start_segment(segment++);
        if (model_->config().is_told()) sampling_->tell(observed_.context_told);
        for (std::int64_t t = 0; t < context; ++t) sampling_->read(observed_.context.data() + t * G * Z);
    }
    sampling_->start_segment(segment);
    if (model_->config().is_told() && observed_.frames > 0) sampling_->tell(observed_.told);
    for (std::int64_t t = 0; t < first; ++t) sampling_->read(observed_.history.data() + t * G * Z);
    if (read > 0) sampling_->read(made.data());
    std::vector<std::uint32_t> members(B);
    for (std::int64_t b = 0; b < B; ++b) members[b] = low(settings_.first_member + b);
    const std::vector<std::uint32_t> seeds(B, seed_);
    sampling_->begin(seeds.data(), members.data(), groups_.group.data());
    // The decoder reads a history once for all members that share it.
    std::vector<StreamState> states(G, model_->codec().decoder().state());
    share_out(G, [&](std::int64_t g, int thread) {
        for (std::int64_t t = 0; t < first; ++t) {
            decode_row(observed_.history.data() + (t * G + g) * Z, states[g], work(thread), nullptr, nullptr);
        }
    });
    for (std::int64_t b = 0; b < B; ++b) states_[b] = states[groups_.group[b]];
    decoded_ = first;
    active_.resize(B);
    std::iota(active_.begin(), active_.end(), 0);
    std::vector<float> rows;
    for (std::size_t at = 0; at < made.size(); at += B * Z) {
        drop_stopped(at / (B * Z));
        rows.clear();
        for (const int b : active_) rows.insert(rows.end(), &made[at + b * Z], &made[at + b * Z] + Z);
        if (!active_.empty() && decoded_ >= first + read && decoded_ + 1 < total_latents_) {
            sampling_->follow(rows.data());
        }
        decode(rows.data());
    }
    observed_.made.insert(observed_.made.end(), made.begin(), made.end());
    drop_stopped(num_latents() - first);
}

}  // namespace enma
