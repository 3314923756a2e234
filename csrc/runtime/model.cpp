#include "runtime/model.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>

#include "runtime/error.h"
#include "runtime/view.h"

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

}  // namespace

Model::Model(const std::string& folder)
    : checkpoint_(folder), config_(read_config(checkpoint_.config(), checkpoint_.config_path())) {
    Tensors& tensors = checkpoint_.tensors();
    const TokenizerConfig& tokenizer = config_.tokenizer;
    views(config_, config_.sampling.shifts);
    place_offsets_ = config_.place_offsets();
    const TakeParameter take = [&](const std::string& name, const std::vector<std::int64_t>& shape) {
        return tensors.take(name, shape);
    };
    encoder_ = std::make_unique<Stream>(Stream::encoder(tokenizer, take));
    decoder_ = std::make_unique<Stream>(Stream::decoder(tokenizer, take));
    if (tokenizer.interpolation) interpolation_ = std::make_unique<Interpolation>(tokenizer, take);
    latent_mean_ = tensors.take("latent_mean", {tokenizer.latent_channels});
    latent_std_ = tensors.take("latent_std", {tokenizer.latent_channels});
    read_covariance();
    read_dynamics();
    if (!config_.dynamics.first) flow_ = read_flow();
    tensors.check_all_taken();
    sampler(TABLE_FRAMES);
}

void Model::read_covariance() {
    Tensors* const tensors = checkpoint_.covariance();
    if (tensors == nullptr || interpolation_ != nullptr) return;
    const TokenizerConfig& tokenizer = config_.tokenizer;
    FieldCovariance& found = covariance_.emplace();
    found.grid = tokenizer.grid;
    found.lengths = tokenizer.lengths;
    found.periodic = tokenizer.periodic;
    found.channels = tokenizer.field_channels;
    std::vector<std::int64_t> shape;
    for (int axis = 0; axis < tokenizer.dims(); ++axis) {
        shape.push_back(tokenizer.periodic[axis] ? tokenizer.grid[axis] / 2 + 1 : tokenizer.grid[axis]);
    }
    shape.push_back(found.channels);
    const auto take = [&](const char* name, const std::vector<std::int64_t>& expected, std::int64_t count) {
        const float* const values = tensors->take(name, expected);
        return std::vector<double>(values, values + count);
    };
    found.mean = take("mean", {found.channels}, found.channels);
    found.deviation = take("deviation", shape, found.entries());
    found.correlation = take("correlation", shape, found.entries());
    tensors->check_all_taken();
    const auto within = [](const std::vector<double>& values, double most) {
        return std::all_of(values.begin(), values.end(), [most](double x) { return x >= 0 && x <= most; });
    };
    if (!within(found.deviation, std::numeric_limits<float>::max()) || !within(found.correlation, 1)) {
        fail(ENMA_CHECKPOINT, "covariance.safetensors of ", config_.name,
             ": deviation is below 0, or a correlation not between 0 and 1; copy the checkpoint again");
    }
}

std::vector<BlockWeights> Model::blocks(const std::string& prefix, int count) {
    Tensors& tensors = checkpoint_.tensors();
    const std::int64_t D = config_.dynamics.width, K = D / config_.dynamics.heads, H = weights_.hidden;
    std::vector<BlockWeights> found;
    for (int i = 0; i < count; ++i) {
        const std::string name = prefix + ".blocks." + std::to_string(i) + ".";
        const auto take = [&](const char* part, std::vector<std::int64_t> shape) {
            return tensors.take(name + part, shape);
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

void Model::read_dynamics() {
    Tensors& tensors = checkpoint_.tensors();
    const DynamicsConfig& dynamics = config_.dynamics;
    const std::int64_t D = dynamics.width, C = config_.token_channels(), rank = dynamics.scale_shift_rank;
    const auto take = [&](const char* name, std::vector<std::int64_t> shape) {
        return tensors.take(std::string("dynamics.") + name, shape);
    };
    SamplerWeights& w = weights_;
    w.tokens = config_.num_tokens();
    w.channels = static_cast<int>(C);
    w.width = dynamics.width;
    w.heads = dynamics.heads;
    w.hidden = static_cast<int>(dynamics.width * dynamics.mlp_ratio);
    w.rank = std::max(1, dynamics.scale_shift_rank);
    w.bf16 = false;
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
            w.local = &read_local_head("local.", *dynamics.local, local_.emplace(), w.read_weight, w.read_bias);
        } else {
            w.read_weight = take("read.weight", {C, D});
            w.read_bias = take("read.bias", {C});
        }
        if (dynamics.first) {
            w.first =
                &read_local_head("first.", *dynamics.first, first_.emplace(), w.first_read_weight, w.first_read_bias);
        }
    }
    if (!dynamics.rotary) {
        places_ = sincos(config_);
        w.places = places_.data();
        w.rotary_frames = std::numeric_limits<int>::max();
        return;
    }
    masked_rotary_ = rotary_tables(config_, dynamics.concat ? std::vector<double>{0.0, 0.5} : std::vector<double>{0.0});
    w.masked_cosines = masked_rotary_.data();
    w.masked_sines = w.masked_cosines + masked_rotary_.size() / 2;
}

const LocalHeadWeights& Model::read_local_head(const std::string& head, const LocalConfig& config, LocalHeadWeights& w,
                                               const void*& features_weight, const void*& features_bias) {
    Tensors& tensors = checkpoint_.tensors();
    const TokenizerConfig& tokenizer = config_.tokenizer;
    const std::int64_t D = config_.dynamics.width, W = config.width, C = tokenizer.latent_channels, P = config_.patch();
    const bool plane = tokenizer.dims() == 2;
    const auto take = [&](const std::string& name, std::vector<std::int64_t> shape) {
        return tensors.take("dynamics." + head + name, shape);
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

FlowHeadWeights Model::read_flow() {
    Tensors& tensors = checkpoint_.tensors();
    const FlowConfig& flow = config_.dynamics.flow;
    const std::int64_t D = config_.dynamics.width, C = config_.token_channels(), W = flow.width, F = flow.time_features;
    const auto take = [&](const std::string& name, std::vector<std::int64_t> shape) {
        return tensors.take("dynamics.flow.velocity." + name, shape);
    };
    FlowHeadWeights w{};
    w.channels = static_cast<int>(C);
    w.condition_width = config_.dynamics.width;
    w.width = flow.width;
    w.bf16 = false;
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
    time_0_weight_ = take("time.0.weight", {W, F});
    time_0_bias_ = take("time.0.bias", {W});
    time_2_weight_ = take("time.2.weight", {W, W});
    time_2_bias_ = take("time.2.bias", {W});
    return w;
}

std::shared_ptr<const PackedSampler> Model::sampler(std::int64_t frames) const {
    const std::lock_guard lock(mutex_);
    if (sampler_ != nullptr && frames <= sampler_->frames) return sampler_;
    SamplerWeights w = weights_;
    std::vector<float> tables;
    if (config_.dynamics.rotary) {
        const std::int64_t count = sampler_ == nullptr ? frames : 2 * frames;
        std::vector<double> numbers(count);
        for (std::int64_t i = 0; i < count; ++i) numbers[i] = static_cast<double>(i);
        tables = rotary_tables(config_, numbers);
        w.cosines = tables.data();
        w.sines = w.cosines + tables.size() / 2;
        w.rotary_frames = static_cast<int>(count);
    }
    sampler_ = std::make_shared<const PackedSampler>(PackedSampler{std::make_unique<Sampler>(w), w.rotary_frames});
    return sampler_;
}

// [R, W] linear(silu(linear(features))) in double, rounded once; enma_fast/models/flow_head.py.
std::vector<float> Model::time_embeddings(const std::vector<float>& times) const {
    const int F = config_.dynamics.flow.time_features, half = F / 2, W = config_.dynamics.flow.width;
    const auto apply = [](const float* weight, const float* bias, const std::vector<double>& x, int n) {
        std::vector<double> y(bias, bias + n);
        for (int i = 0; i < n; ++i) {
            for (std::size_t k = 0; k < x.size(); ++k) y[i] += static_cast<double>(weight[i * x.size() + k]) * x[k];
        }
        return y;
    };
    std::vector<float> out;
    for (const float time : times) {
        std::vector<double> features(F);
        for (int i = 0; i < half; ++i) {
            const double frequency = std::exp(-std::log(10000.0) * i / half);
            const double angle = 1000.0 * static_cast<double>(time) * frequency;
            features[i] = std::cos(angle);
            features[half + i] = std::sin(angle);
        }
        std::vector<double> hidden = apply(time_0_weight_, time_0_bias_, features, W);
        for (double& x : hidden) x /= 1.0 + std::exp(-x);
        for (const double x : apply(time_2_weight_, time_2_bias_, hidden, W)) out.push_back(static_cast<float>(x));
    }
    return out;
}

std::shared_ptr<const FlowHead> Model::flow_head(int steps) const {
    const std::lock_guard lock(mutex_);
    std::shared_ptr<const FlowHead>& head = heads_[steps];
    if (head != nullptr) return head;
    std::vector<float> times, moves;
    for (int step = 0; step < steps; ++step) {
        times.push_back(static_cast<float>(static_cast<double>(step) / steps));
        moves.push_back(static_cast<float>((config_.sampling.midpoint ? 0.5 : 1.0) / steps));
        if (!config_.sampling.midpoint) continue;
        times.push_back(static_cast<float>((step + 0.5) / steps));
        moves.push_back(static_cast<float>(1.0 / steps));
    }
    const std::vector<float> embedded = time_embeddings(times);
    FlowHeadWeights w = flow_;
    w.evaluations = static_cast<int>(times.size());
    w.moves_per_step = config_.sampling.midpoint ? 2 : 1;
    w.time = embedded.data();
    w.moves = moves;
    head = std::make_shared<const FlowHead>(w);
    return head;
}

}  // namespace enma
