#include "runtime/dynamics.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/error.h"

namespace enma {

namespace {

// Epsilon of all norms, enma_fast/models/layers.py.
constexpr float NORM_EPSILON = 1e-5f;
// Initial number of frames in the tables of rotary places.
constexpr std::int64_t TABLE_FRAMES = 64;

}  // namespace

Dynamics::Dynamics(const ModelConfig& config, Tensors& tensors, NumberFormat format) : config_(config) {
    const ContextConfig& context = config.context;
    SamplerShape shape{
        {config.num_tokens(), config.token_channels(), context.width, context.heads, MLP_RATIO * context.width,
         context.scale_shift_rank, context.layers, config.trunk.layers, config.trunk.concat, NORM_EPSILON},
        {},
        {}};
    shape.places = context.kind->places(config);
    shape.masked_turns =
        context.kind->turns(config, config.trunk.concat ? std::vector<double>{0.0, 0.5} : std::vector<double>{0.0});
    const TakeParameter take = [&](const std::string& name, const std::vector<std::int64_t>& sizes) {
        return tensors.take(name, sizes);
    };
    sampler_ = std::make_shared<const Sampler>(shape, take, format, config.initial, config.step);
    turns(TABLE_FRAMES);
}

std::shared_ptr<const std::vector<float>> Dynamics::turns(std::int64_t frames) const {
    const std::lock_guard lock(mutex_);
    if (frames <= turned_frames_) return turns_;
    turned_frames_ = turns_ == nullptr ? frames : 2 * frames;
    std::vector<double> numbers(turned_frames_);
    std::iota(numbers.begin(), numbers.end(), 0.0);
    std::vector<float> values = config_.context.kind->turns(config_, numbers);
    if (!values.empty()) turns_ = std::make_shared<const std::vector<float>>(std::move(values));
    return turns_;
}

void Dynamics::check(const DecoderSettings& set) const {
    const std::int64_t most = MOST_TOKENS / config_.masked_rows();
    if (set.rows < 1 || set.rows > most) {
        fail(ENMA_INVALID_ARGUMENT, set.rows, " members; at least 1 and at most ", most,
             " are sampled together: use several sessions, each with its own first_member");
    }
    if (set.threads < 1 || set.threads > MOST_THREADS) {
        fail(ENMA_INVALID_ARGUMENT, "threads is ", set.threads, "; 1 to ", MOST_THREADS, " is expected");
    }
    if (!std::isfinite(set.temperature)) fail(ENMA_INVALID_ARGUMENT, "temperature is not a finite number");
}

std::unique_ptr<SamplerSession> Dynamics::session(const SamplerSettings& set) const {
    check(set);
    if (set.groups < 1 || set.groups > MOST_TOKENS / config_.masked_rows()) {
        fail(ENMA_INVALID_ARGUMENT, "members of ", set.groups, " trajectories; at least 1 and fewer are expected");
    }
    if (set.prefix_frames < 1 || set.own_frames < 0 || set.first_frame < 0 || set.prefix_frames >= MOST_SEQUENCE ||
        set.own_frames >= MOST_SEQUENCE - set.prefix_frames) {
        fail(ENMA_INVALID_ARGUMENT, set.prefix_frames, " and ", set.own_frames, " latent frames, from number ",
             set.first_frame, " on; at least 1 and fewer than ", MOST_SEQUENCE, " are expected");
    }
    return std::make_unique<SamplerSession>(sampler_, turns(set.prefix_frames + set.own_frames), set);
}

}  // namespace enma
