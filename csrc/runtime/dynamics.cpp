#include "runtime/dynamics.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>
#include <numeric>
#include <optional>

#include "runtime/error.h"
#include "runtime/half.h"

namespace enma {

namespace {

using std::numbers::pi;

// Epsilon of all norms, enma_fast/models/layers.py.
constexpr float NORM_EPSILON = 1e-5f;
// Initial number of frames in the tables of rotary places.
constexpr std::int64_t TABLE_FRAMES = 64;

// Cosines, then sines, [2, frames, N, K / 2] of the turn of each token; enma_fast/models/layers.py, Rotary.
std::vector<float> rotary_tables(const ModelConfig& config, const std::vector<double>& frames) {
    const int N = config.num_tokens(), dims = config.tokenizer.dims();
    const int pairs = config.dynamics.width / config.dynamics.heads / 2;
    const int each = pairs / 2 / dims, spatial = each * dims, temporal = pairs / 4;
    // Turn of each pair at each token, by its place alone.
    std::vector<double> space(static_cast<std::size_t>(N) * pairs);
    for (int axis = 0, after = N; axis < dims; ++axis) {
        const int tokens = config.tokens_along(axis);
        after /= tokens;
        const double turn = (config.tokenizer.periodic[axis] ? 2 * pi : pi) / tokens;
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
    const int N = config.num_tokens(), width = config.dynamics.width, dims = config.tokenizer.dims();
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

}  // namespace

// Weights as they are stored, for as long as something is packed from them.
class Dynamics::Reading {
   public:
    Reading(const ModelConfig& config, Tensors& tensors, NumberFormat format)
        : config_(config), tensors_(tensors), format_(format) {}

    SamplerWeights transformers();
    FlowHeadWeights flow();
    // fp32 values in the number format of the weights.
    const void* stored(const float* values, std::int64_t count) {
        if (format_ == NumberFormat::fp32) return values;
        std::vector<std::uint16_t>& narrow = narrowed_.emplace_back(count);
        std::transform(values, values + count, narrow.begin(), to_bf16);
        return narrow.data();
    }

   private:
    int hidden() const { return static_cast<int>(config_.dynamics.width * config_.dynamics.mlp_ratio); }
    const void* parameter(const std::string& name, const std::vector<std::int64_t>& shape) {
        const std::int64_t count = std::accumulate(shape.begin(), shape.end(), std::int64_t{1}, std::multiplies<>());
        return stored(tensors_.take(name, shape), count);
    }
    std::vector<BlockWeights> blocks(const std::string& prefix, int count);
    // Into `w`, and the layer of the sampler before it.
    const LocalHeadWeights& local_head(const std::string& head, const LocalConfig& config, LocalHeadWeights& w,
                                       const void*& features_weight, const void*& features_bias);

    const ModelConfig& config_;
    Tensors& tensors_;
    NumberFormat format_;
    std::vector<std::vector<std::uint16_t>> narrowed_;
    std::optional<LocalHeadWeights> local_, first_;
    std::vector<float> places_, masked_rotary_;
};

std::vector<BlockWeights> Dynamics::Reading::blocks(const std::string& prefix, int count) {
    const std::int64_t D = config_.dynamics.width, K = D / config_.dynamics.heads, H = hidden();
    std::vector<BlockWeights> found;
    for (int i = 0; i < count; ++i) {
        const std::string name = prefix + ".blocks." + std::to_string(i) + ".";
        const auto take = [&](const char* part, std::vector<std::int64_t> shape) {
            return parameter(name + part, shape);
        };
        BlockWeights block{};
        block.norm_1 = take("norm_1.weight", {D});
        block.qkv = take("attention.qkv.weight", {3 * D, D});
        block.q_norm = take("attention.q_norm.weight", {K});
        block.k_norm = take("attention.k_norm.weight", {K});
        block.out = take("attention.out.weight", {D, D});
        block.norm_2 = take("norm_2.weight", {D});
        block.gate_up = take("mlp.gate_up.weight", {2 * H, D});
        block.down = take("mlp.down.weight", {D, H});
        found.push_back(block);
    }
    return found;
}

SamplerWeights Dynamics::Reading::transformers() {
    const DynamicsConfig& dynamics = config_.dynamics;
    const std::int64_t D = dynamics.width, C = config_.token_channels(), rank = dynamics.scale_shift_rank;
    const auto take = [&](const char* name, std::vector<std::int64_t> shape) {
        return parameter(std::string("dynamics.") + name, shape);
    };
    SamplerWeights w{};
    w.tokens = config_.num_tokens();
    w.channels = static_cast<int>(C);
    w.width = dynamics.width;
    w.heads = dynamics.heads;
    w.hidden = hidden();
    w.rank = std::max(1, dynamics.scale_shift_rank);
    w.format = format_;
    w.concat = dynamics.concat;
    w.epsilon = NORM_EPSILON;
    w.embed_weight = take("temporal.embed.weight", {D, C});
    w.embed_bias = take("temporal.embed.bias", {D});
    w.start = take("temporal.start", {2, D});
    w.causal = blocks("dynamics.temporal", dynamics.temporal_layers);
    if (rank > 0) {
        w.narrow = take("temporal.scale_shift.down.weight", {rank, D});
        w.wide_weight = take("temporal.scale_shift.up.weight", {2 * D, rank});
        w.wide_bias = take("temporal.scale_shift.up.bias", {2 * D});
    }
    w.masked_embed_weight = take("spatial.embed.weight", {D, C});
    w.masked_embed_bias = take("spatial.embed.bias", {D});
    w.mask = take("spatial.mask", {D});
    w.masked = blocks("dynamics.spatial", dynamics.spatial_layers);
    w.final_norm = take("spatial.norm.weight", {D});
    if (dynamics.flow.residual && !dynamics.first) {
        w.moments_weight = take("flow.moments.weight", {2 * C, D});
        w.moments_bias = take("flow.moments.bias", {2 * C});
    }
    if (dynamics.one_pass) {
        w.noise = take("spatial.noise.weight", {D, C});
        if (dynamics.local) {
            w.local = &local_head("local.", *dynamics.local, local_.emplace(), w.read_weight, w.read_bias);
        } else {
            w.read_weight = take("read.weight", {C, D});
            w.read_bias = take("read.bias", {C});
        }
        if (dynamics.first) {
            w.first = &local_head("first.", *dynamics.first, first_.emplace(), w.first_read_weight, w.first_read_bias);
        }
    }
    if (!dynamics.rotary) {
        places_ = sincos(config_);
        w.places = places_.data();
        w.rotary_frames = std::numeric_limits<int>::max();
        return w;
    }
    masked_rotary_ = rotary_tables(config_, dynamics.concat ? std::vector<double>{0.0, 0.5} : std::vector<double>{0.0});
    w.masked_cosines = masked_rotary_.data();
    w.masked_sines = w.masked_cosines + masked_rotary_.size() / 2;
    return w;
}

const LocalHeadWeights& Dynamics::Reading::local_head(const std::string& head, const LocalConfig& config,
                                                      LocalHeadWeights& w, const void*& features_weight,
                                                      const void*& features_bias) {
    const TokenizerConfig& tokenizer = config_.tokenizer;
    const std::int64_t D = config_.dynamics.width, W = config.width, C = tokenizer.latent_channels, P = config_.patch();
    const bool plane = tokenizer.dims() == 2;
    const auto take = [&](const std::string& name, std::vector<std::int64_t> shape) {
        return parameter("dynamics." + head + name, shape);
    };
    const auto window = [&](std::int64_t outward, std::int64_t inward) {
        return plane ? std::vector<std::int64_t>{outward, inward, 3, 3} : std::vector<std::int64_t>{outward, inward, 3};
    };
    w.grid = config_.latent_grid();
    w.width = config.width;
    w.channels = tokenizer.latent_channels;
    w.past = config.past;
    w.modes = config.modes;
    w.frames = take("frames.conv.weight", window(W, config.past * C));
    for (int i = 0; i < config.layers; ++i) {
        const std::string name = "blocks." + std::to_string(i) + ".";
        LocalBlockWeights& block = w.blocks.emplace_back();
        block.norm = take(name + "norm.weight", {W});
        if (config.modes > 0 && i % FOURIER_EVERY == 0) {
            std::vector<std::int64_t> shape{2, config.modes, W, W};
            if (plane) shape.insert(shape.begin() + 1, 2 * config.modes - 1);
            block.filter = take(name + "filter", shape);
            block.gate_up = take(name + "gate_up.weight", {2 * W, W});
        } else {
            block.gate_up = take(name + "gate_up.conv.weight", window(2 * W, W));
        }
        block.down = take(name + "down.weight", {W, W});
    }
    w.norm = take("norm.weight", {W});
    w.read_weight = take("read.weight", {C, W});
    w.read_bias = take("read.bias", {C});
    features_weight = take("features.weight", {P * W, D});
    features_bias = take("features.bias", {P * W});
    return w;
}

FlowHeadWeights Dynamics::Reading::flow() {
    const FlowConfig& flow = config_.dynamics.flow;
    const std::int64_t D = config_.dynamics.width, C = config_.token_channels(), W = flow.width;
    const auto take = [&](const std::string& name, std::vector<std::int64_t> shape) {
        return parameter("dynamics.flow.velocity." + name, shape);
    };
    FlowHeadWeights w{};
    w.channels = static_cast<int>(C);
    w.condition_width = config_.dynamics.width;
    w.width = flow.width;
    w.format = format_;
    w.condition_weight = take("condition.weight", {W, D});
    w.condition_bias = take("condition.bias", {W});
    w.inward_weight = take("inward.weight", {W, C});
    w.inward_bias = take("inward.bias", {W});
    for (int i = 0; i < flow.layers; ++i) {
        const std::string name = "blocks." + std::to_string(i) + ".";
        w.blocks.push_back({take(name + "modulation.weight", {3 * W, W}), take(name + "modulation.bias", {3 * W}),
                            take(name + "up.weight", {W, W}), take(name + "up.bias", {W}),
                            take(name + "down.weight", {W, W}), take(name + "down.bias", {W})});
    }
    w.modulation_weight = take("modulation.weight", {2 * W, W});
    w.modulation_bias = take("modulation.bias", {2 * W});
    w.outward_weight = take("outward.weight", {C, W});
    w.outward_bias = take("outward.bias", {C});
    return w;
}

Dynamics::Dynamics(const ModelConfig& config, Tensors& tensors, NumberFormat format)
    : config_(config), tensors_(tensors), format_(format) {
    sampler(TABLE_FRAMES);
    if (config_.dynamics.first) return;
    // What is missing or does not fit is found now.
    Reading(config_, tensors_, NumberFormat::fp32).flow();
    time_embeddings({});
}

std::size_t Dynamics::bytes() const { return sampler(0)->sampler->bytes(); }

std::shared_ptr<const PackedSampler> Dynamics::sampler(std::int64_t frames) const {
    const std::lock_guard lock(mutex_);
    if (sampler_ != nullptr && frames <= sampler_->frames) return sampler_;
    Reading reading(config_, tensors_, format_);
    SamplerWeights w = reading.transformers();
    std::vector<float> tables;
    if (config_.dynamics.rotary) {
        const std::int64_t count = sampler_ == nullptr ? frames : 2 * frames;
        std::vector<double> numbers(count);
        std::iota(numbers.begin(), numbers.end(), 0.0);
        tables = rotary_tables(config_, numbers);
        w.cosines = tables.data();
        w.sines = w.cosines + tables.size() / 2;
        w.rotary_frames = static_cast<int>(count);
    }
    sampler_ = std::make_shared<const PackedSampler>(PackedSampler{std::make_unique<Sampler>(w), w.rotary_frames});
    return sampler_;
}

// [R, W] linear(silu(linear(features))) in double, rounded once; enma_fast/models/flow_head.py.
std::vector<float> Dynamics::time_embeddings(const std::vector<float>& times) const {
    const int F = config_.dynamics.flow.time_features, half = F / 2, W = config_.dynamics.flow.width;
    const auto apply = [](const float* weight, const float* bias, const std::vector<double>& x, int n) {
        std::vector<double> y(bias, bias + n);
        for (int i = 0; i < n; ++i) {
            for (std::size_t k = 0; k < x.size(); ++k) y[i] += static_cast<double>(weight[i * x.size() + k]) * x[k];
        }
        return y;
    };
    const auto take = [&](const char* name, std::vector<std::int64_t> shape) {
        return tensors_.take(std::string("dynamics.flow.velocity.time.") + name, shape);
    };
    const float *const weight_0 = take("0.weight", {W, F}), *const bias_0 = take("0.bias", {W});
    const float *const weight_2 = take("2.weight", {W, W}), *const bias_2 = take("2.bias", {W});
    std::vector<float> out;
    for (const float time : times) {
        std::vector<double> features(F);
        for (int i = 0; i < half; ++i) {
            const double frequency = std::exp(-std::log(10000.0) * i / half);
            const double angle = 1000.0 * static_cast<double>(time) * frequency;
            features[i] = std::cos(angle);
            features[half + i] = std::sin(angle);
        }
        std::vector<double> hidden = apply(weight_0, bias_0, features, W);
        for (double& x : hidden) x /= 1.0 + std::exp(-x);
        for (const double x : apply(weight_2, bias_2, hidden, W)) out.push_back(static_cast<float>(x));
    }
    return out;
}

std::vector<std::shared_ptr<const FlowHead>> Dynamics::flow_heads(const SamplingConfig& settings,
                                                                  int mask_steps) const {
    std::vector<std::shared_ptr<const FlowHead>> out;
    if (mask_steps == 0) return out;
    const std::lock_guard lock(mutex_);
    decltype(heads_) used;
    for (int step = 0; step < mask_steps; ++step) {
        const std::pair key{flow_steps_at(settings, step, mask_steps), settings.midpoint};
        std::shared_ptr<const FlowHead>& head = used[key];
        const auto packed = heads_.find(key);
        if (head == nullptr) head = packed != heads_.end() ? packed->second : packed_head(key.first, key.second);
        out.push_back(head);
    }
    heads_ = std::move(used);
    return out;
}

std::shared_ptr<const FlowHead> Dynamics::packed_head(int steps, bool midpoint) const {
    std::vector<float> times, moves;
    for (int step = 0; step < steps; ++step) {
        times.push_back(static_cast<float>(static_cast<double>(step) / steps));
        moves.push_back(static_cast<float>((midpoint ? 0.5 : 1.0) / steps));
        if (!midpoint) continue;
        times.push_back(static_cast<float>((step + 0.5) / steps));
        moves.push_back(static_cast<float>(1.0 / steps));
    }
    const std::vector<float> embedded = time_embeddings(times);
    Reading reading(config_, tensors_, format_);
    FlowHeadWeights w = reading.flow();
    w.evaluations = static_cast<int>(times.size());
    w.moves_per_step = midpoint ? 2 : 1;
    w.time = reading.stored(embedded.data(), static_cast<std::int64_t>(embedded.size()));
    w.moves = moves;
    return std::make_shared<const FlowHead>(w);
}

std::unique_ptr<Sampling> Dynamics::sampling(const SamplingRequest& asked) const {
    const DynamicsConfig& dynamics = config_.dynamics;
    const std::int64_t N = config_.num_tokens(), together = std::max(asked.rows, asked.groups);
    if (asked.rows < 1 || asked.groups < 1 || together > MOST_TOKENS / (N * (dynamics.concat ? 2 : 1))) {
        fail(ENMA_INVALID_ARGUMENT, asked.rows, " members of ", asked.groups, " trajectories; at least 1 and at most ",
             MOST_TOKENS / (N * (dynamics.concat ? 2 : 1)), " are sampled together");
    }
    if (asked.shared_frames < 1 || asked.own_frames < 0 || asked.first_frame < 0 ||
        asked.shared_frames >= MOST_SEQUENCE || asked.own_frames >= MOST_SEQUENCE - asked.shared_frames) {
        fail(ENMA_INVALID_ARGUMENT, asked.shared_frames, " and ", asked.own_frames, " latent frames, from number ",
             asked.first_frame, " on; at least 1 and fewer than ", MOST_SEQUENCE, " are expected");
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
    // Frames that are decided in one pass need no mask steps; frame 0 is decided so only by a head of its own.
    if (!dynamics.one_pass || (asked.first_frame == 0 && !dynamics.first)) {
        set.counts = mask_schedule(static_cast<int>(N), std::min<int>(asked.settings.mask_steps, static_cast<int>(N)));
    }
    SamplingWeights weights{sampler(asked.shared_frames + asked.own_frames),
                            flow_heads(asked.settings, static_cast<int>(set.counts.size()))};
    for (const std::shared_ptr<const FlowHead>& head : weights.heads) set.heads.push_back(head.get());
    set.temperature = static_cast<float>(asked.settings.temperature);
    set.threads = asked.threads;
    set.isa = asked.isa;
    set.teams = asked.teams;
    return std::make_unique<Sampling>(std::move(weights), std::move(set));
}

}  // namespace enma
