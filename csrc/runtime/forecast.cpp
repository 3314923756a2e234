// The next frames of a session: made by the sampler, decoded where each member sees them, and given out; and members that
// are stopped on the way.
#include <algorithm>
#include <limits>
#include <utility>

#include "core/error.h"
#include "runtime/session.h"

namespace enma {

std::size_t Session::decoder_bytes() const {
    const std::size_t latents = model_->place_offsets().size() * whole_panels(model_->config().codec.latent_channels);
    return pages(model_->codec().decoder().work_bytes() + latents * sizeof(float));
}

void Session::decode_row(const float* latents, StreamState& state, char* work, Sink sink, void* to) const {
    const int C = model_->config().codec.latent_channels, row = whole_panels(model_->config().codec.latent_channels);
    // Behind the work space of the layers.
    float* const input = reinterpret_cast<float*>(work + model_->codec().decoder().work_bytes());
    std::fill_n(input, static_cast<std::int64_t>(model_->place_offsets().size()) * row, 0.0f);
    float* to_place = input;
    for (const std::int64_t place : model_->place_offsets()) {
        for (int i = 0; i < C; ++i) {
            to_place[i] = latents[place + i] * model_->latent_std()[i] + model_->latent_mean()[i];
        }
        to_place += row;
    }
    model_->codec().decoder().push(input, state, settings_.isa, work, sink, to);
}

void Session::decode(const float* latents) {
    const std::int64_t factor = model_->config().codec.time_factor, size = frame_size(), B = settings_.num_members;
    struct Target {
        float* out;
        std::int64_t stride, size;
        const View& view;
        const CodecConfig& codec;
        const std::vector<float>& mask;
    };
    // In units of the field, and where the trajectory is, without the shift of its member. On land is nothing.
    const Sink moved_back = [](void* to, const float* frame) {
        Target& target = *static_cast<Target*>(to);
        shift(frame, target.codec, target.view, true, target.out);
        const std::vector<float>&mean = target.codec.field_mean, &scale = target.codec.field_scale;
        for (std::size_t i = 0; !mean.empty() && i < static_cast<std::size_t>(target.size); ++i) {
            target.out[i] = target.out[i] * scale[i % scale.size()] + mean[i % mean.size()];
        }
        for (std::size_t i = 0; i < target.mask.size(); ++i) {
            if (target.mask[i] == 0) target.out[i] = std::numeric_limits<float>::quiet_NaN();
        }
        target.out += target.stride;
    };
    share_out(static_cast<std::int64_t>(active_.size()), [&](std::int64_t i, int thread) {
        const int b = active_[i];
        Target target{pending_.data() + b * size, B * size,      size, groups_.views[groups_.used[groups_.group[b]]],
                      model_->config().codec,     model_->mask()};
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
    if (!active_.empty()) sampling_->frame(made, decoded_ + 1 == total_latents_);
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
    return frames == 0 ? 0 : model_->config().codec.latent_frames(observed_.frames + frames) - num_history();
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
        sampling_->keep(places.data(), static_cast<int>(places.size()));
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
                out.write(b, t, observed_.history.data() + (t * G + groups_.group[b]) * Z);
            } else {
                const bool made =
                    observed_.kept.empty() || observed_.kept[b] == GOES_ON || t - first < made_until(observed_.kept[b]);
                out.write(b, t, made ? observed_.made.data() + ((t - first) * B + b) * Z : missing.data());
            }
        }
    }
}

}  // namespace enma
