#include "runtime/dynamics.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <numeric>

#include "core/error.h"

namespace enma {

namespace {

using std::numbers::pi;

// Epsilon of all norms, enma_fast/models/layers.py.
constexpr float NORM_EPSILON = 1e-5f;
// Initial number of frames in the tables of rotary places.
constexpr std::int64_t TABLE_FRAMES = 64;

// Cosines, then sines, [2, frames, N, K / 2] of the turn of each token; enma_fast/models/layers.py, Rotary.
std::vector<float> rotary_tables(const ModelConfig& config, const std::vector<double>& frames) {
    const int N = config.num_tokens(), dims = config.codec.dims();
    const int pairs = config.context.width / config.context.heads / 2;
    const int each = pairs / 2 / dims, spatial = each * dims, temporal = pairs / 4;
    // Turn of each pair at each token, by its place alone.
    std::vector<double> space(static_cast<std::size_t>(N) * pairs);
    for (int axis = 0, after = N; axis < dims; ++axis) {
        const int tokens = config.tokens_along(axis);
        after /= tokens;
        const double turn = (config.codec.periodic[axis] ? 2 * pi : pi) / tokens;
        for (int n = 0; n < N; ++n) {
            for (int i = 0; i < each; ++i) space[n * pairs + axis * each + i] = n / after % tokens * turn * (i + 1);
        }
    }
    std::vector<double> rates(pairs);
    const float step = temporal > 1 ? 1.0f / static_cast<float>(temporal - 1) : 0.0f;
    for (int i = 0; i < temporal; ++i) {
        const bool early = i < temporal / 2;
        const float exponent =
            early || temporal == 1 ? step * static_cast<float>(i) : 1.0f - step * static_cast<float>(temporal - 1 - i);
        rates[spatial + i] = static_cast<float>(std::pow(32.0, -static_cast<double>(exponent)));
    }
    std::vector<float> cosines, sines;
    cosines.reserve(2 * frames.size() * N * pairs);
    for (const double frame : frames) {
        for (int n = 0; n < N; ++n) {
            for (int i = 0; i < pairs; ++i) {
                const double angle = frame * rates[i] + space[n * pairs + i];
                cosines.push_back(static_cast<float>(std::cos(angle)));
                sines.push_back(static_cast<float>(std::sin(angle)));
            }
        }
    }
    cosines.insert(cosines.end(), sines.begin(), sines.end());
    return cosines;
}

// Fixed embeddings of places [N, width]; enma_fast/models/layers.py, sincos.
std::vector<float> sincos(const ModelConfig& config) {
    const int N = config.num_tokens(), width = config.context.width, dims = config.codec.dims();
    const int half = width / dims / 2;
    std::vector<float> table(static_cast<std::size_t>(N) * width);
    for (int axis = 0, after = N; axis < dims; ++axis) {
        const int tokens = config.tokens_along(axis);
        after /= tokens;
        for (int n = 0; n < N; ++n) {
            float* row = table.data() + static_cast<std::size_t>(n) * width + 2 * half * axis;
            for (int i = 0; i < half; ++i) {
                const double angle = n / after % tokens * std::pow(10000.0, -static_cast<double>(i) / half);
                row[i] = static_cast<float>(std::sin(angle));
                row[half + i] = static_cast<float>(std::cos(angle));
            }
        }
    }
    return table;
}

}  // namespace

Dynamics::Dynamics(const ModelConfig& config, Tensors& tensors, NumberFormat format) : config_(config) {
    const ContextConfig& context = config.context;
    SamplerShape shape{};
    shape.tokens = config.num_tokens();
    shape.channels = config.token_channels();
    shape.width = context.width;
    shape.heads = context.heads;
    shape.hidden = MLP_RATIO * context.width;
    shape.rank = context.scale_shift_rank;
    shape.causal_layers = context.layers;
    shape.masked_layers = config.trunk.layers;
    shape.concat = config.trunk.concat;
    shape.epsilon = NORM_EPSILON;
    if (context.rotary) {
        shape.masked_turns =
            rotary_tables(config, config.trunk.concat ? std::vector<double>{0.0, 0.5} : std::vector<double>{0.0});
    } else {
        shape.places = sincos(config);
    }
    const TakeParameter take = [&](const std::string& name, const std::vector<std::int64_t>& sizes) {
        return tensors.take(name, sizes);
    };
    sampler_ = std::make_shared<const Sampler>(shape, take, format, config.initial, config.step);
    turns(TABLE_FRAMES);
}

std::shared_ptr<const Turns> Dynamics::turns(std::int64_t frames) const {
    const std::lock_guard lock(mutex_);
    if (!config_.context.rotary || (turns_ != nullptr && frames <= turns_->frames)) return turns_;
    const std::int64_t count = turns_ == nullptr ? frames : 2 * frames;
    std::vector<double> numbers(count);
    std::iota(numbers.begin(), numbers.end(), 0.0);
    return turns_ = std::make_shared<const Turns>(Turns{count, rotary_tables(config_, numbers)});
}

std::unique_ptr<Sampling> Dynamics::sampling(const SamplingRequest& asked) const {
    const std::int64_t most = MOST_TOKENS / config_.masked_rows();
    if (asked.rows < 1 || asked.groups < 1 || std::max(asked.rows, asked.groups) > most) {
        fail(ENMA_INVALID_ARGUMENT, asked.rows, " members of ", asked.groups, " trajectories; at least 1 and at most ",
             most, " are sampled together");
    }
    if (asked.shared_frames < 1 || asked.own_frames < 0 || asked.first_frame < 0 ||
        asked.shared_frames >= MOST_SEQUENCE || asked.own_frames >= MOST_SEQUENCE - asked.shared_frames) {
        fail(ENMA_INVALID_ARGUMENT, asked.shared_frames, " and ", asked.own_frames, " latent frames, from number ",
             asked.first_frame, " on; at least 1 and fewer than ", MOST_SEQUENCE, " are expected");
    }
    if (asked.first_frame == 0 && draws_fields()) {
        fail(ENMA_INVALID_ARGUMENT, "frame 0 of this model is drawn as a field; read it, and go on from frame 1");
    }
    if (asked.threads < 1 || asked.threads > MOST_THREADS) {
        fail(ENMA_INVALID_ARGUMENT, "threads is ", asked.threads, "; 1 to ", MOST_THREADS, " is expected");
    }
    if (!std::isfinite(asked.settings.temperature)) {
        fail(ENMA_INVALID_ARGUMENT, "temperature is not a finite number");
    }
    SamplerSettings set{};
    set.rows = static_cast<int>(asked.rows);
    set.groups = static_cast<int>(asked.groups);
    set.prefix_frames = static_cast<int>(asked.shared_frames);
    set.own_frames = static_cast<int>(asked.own_frames);
    set.first_frame = static_cast<int>(asked.first_frame);
    set.mask_steps = asked.settings.mask_steps;
    set.flow_steps = asked.settings.flow_steps;
    set.temperature = static_cast<float>(asked.settings.temperature);
    set.threads = asked.threads;
    set.isa = asked.isa;
    set.teams = asked.teams;
    return std::make_unique<Sampling>(SamplerTables{sampler_, turns(asked.shared_frames + asked.own_frames)}, set);
}

}  // namespace enma
