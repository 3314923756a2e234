// Decoder `flow`: tokens in mask steps of random order, each by integrating a flow from noise; enma_fast/models/decoders/flow.py
// and schedule.py.
#include <cmath>
#include <mutex>
#include <numbers>

#include "core/cpu/flow_head.h"
#include "core/cpu/packer.h"
#include "core/cpu/sampler.h"
#include "core/philox.h"

namespace enma {

namespace {

// Tokens of a flow-matching head's call.
constexpr int FLOW_ROWS = 64;
// Mask step of the words that order tokens; enma_fast/sampling/noise.py.
constexpr std::uint32_t ORDER_STEP = 0xFFFFFFFFu;

struct FlowConfig {
    int width = 512, layers = 3, time_features = 256;
    bool residual = false;
};

std::vector<int> mask_schedule(int tokens, int steps) {
    std::vector<int> counts;
    int masked = tokens;
    for (int step = 1; step <= steps; ++step) {
        const double share = std::cos(std::numbers::pi * step / (2 * steps));
        const int wanted = static_cast<int>(std::floor(tokens * (share * share) + 1e-9));
        const int left = std::min(std::max(wanted, steps - step), masked - 1);
        counts.push_back(masked - left);
        masked = left;
    }
    return counts;
}

float softplus(float x) { return x > 20.0f ? x : std::log1p(std::exp(x)); }

// Times of the evaluations, by the midpoint rule, as the head sees them, and the moves after each.
struct FlowSteps {
    int count;
    std::vector<float> time, moves;
};

class FlowDecoder : public Decoder {
   public:
    FlowDecoder(const FlowConfig& config, const DecoderShape& shape, const DecoderSlot& slot);
    std::size_t bytes() const override { return moments_weights_.size() + head_->bytes(); }
    std::unique_ptr<DecoderSession> session(const SamplerView& model, const SamplerState& state,
                                            const DecoderSettings& settings) const override;

    // Those of the last settings are kept.
    std::shared_ptr<const FlowSteps> steps(int count) const;
    const FlowHeadView& head() const { return head_->view(); }
    bool residual() const { return config_.residual; }
    const LinearView& mean() const { return mean_; }
    const LinearView& scale() const { return scale_; }

   private:
    void embed(float time, float* out) const;

    FlowConfig config_;
    NumberFormat format_;
    Buffer moments_weights_;
    LinearView mean_{}, scale_{};
    std::unique_ptr<const FlowHead> head_;
    std::vector<float> time_0_, bias_0_, time_2_, bias_2_;
    mutable std::mutex mutex_;
    mutable std::shared_ptr<const FlowSteps> steps_;
};

FlowDecoder::FlowDecoder(const FlowConfig& config, const DecoderShape& shape, const DecoderSlot& slot)
    : config_(config), format_(slot.format) {
    const std::int64_t W = config.width, F = config.time_features;
    moments_weights_ = packed(slot.take, slot.prefix, slot.format, [&](Packer& pack) {
        if (!config.residual) return;
        mean_ = pack.linear("moments", shape.channels, shape.width, true, 0, 2);
        scale_ = pack.linear("moments", shape.channels, shape.width, true, 1, 2);
    });
    const std::string velocity = slot.prefix + "velocity.";
    const FlowHeadShape sizes{shape.channels, shape.width, config.width, config.layers};
    head_ = std::make_unique<const FlowHead>(sizes, slot.take, velocity, slot.format);
    const auto copied = [&](const char* name, const std::vector<std::int64_t>& sizes) {
        const float* const values = slot.take(velocity + name, sizes);
        return std::vector<float>(values, values + sizes[0] * (sizes.size() > 1 ? sizes[1] : 1));
    };
    time_0_ = copied("time.0.weight", {W, F});
    bias_0_ = copied("time.0.bias", {W});
    time_2_ = copied("time.2.weight", {W, W});
    bias_2_ = copied("time.2.bias", {W});
}

// [W] linear(silu(linear(features))) in double, rounded once.
void FlowDecoder::embed(float time, float* out) const {
    const auto apply = [](const std::vector<float>& weight, const std::vector<float>& bias,
                          const std::vector<double>& x) {
        std::vector<double> y(bias.begin(), bias.end());
        for (std::size_t i = 0; i < y.size(); ++i) {
            for (std::size_t k = 0; k < x.size(); ++k) y[i] += static_cast<double>(weight[i * x.size() + k]) * x[k];
        }
        return y;
    };
    const int half = config_.time_features / 2;
    std::vector<double> features(config_.time_features);
    for (int i = 0; i < half; ++i) {
        const double frequency = std::exp(-std::log(10000.0) * i / half);
        const double angle = 1000.0 * static_cast<double>(time) * frequency;
        features[i] = std::cos(angle);
        features[half + i] = std::sin(angle);
    }
    std::vector<double> hidden = apply(time_0_, bias_0_, features);
    for (double& x : hidden) x /= 1.0 + std::exp(-x);
    for (const double x : apply(time_2_, bias_2_, hidden)) {
        const float rounded = static_cast<float>(x);
        *out++ = is_half(format_) ? from_bf16(to_bf16(rounded)) : rounded;
    }
}

std::shared_ptr<const FlowSteps> FlowDecoder::steps(int count) const {
    const std::lock_guard lock(mutex_);
    if (steps_ != nullptr && steps_->count == count) return steps_;
    FlowSteps made{count, std::vector<float>(static_cast<std::size_t>(2 * count) * row_stride(config_.width)), {}};
    for (int i = 0; i < 2 * count; ++i) {
        embed(static_cast<float>((i / 2 + (i % 2 == 0 ? 0.0 : 0.5)) / count),
              made.time.data() + i * row_stride(config_.width));
        made.moves.push_back(static_cast<float>((i % 2 == 0 ? 0.5 : 1.0) / count));
    }
    return steps_ = std::make_shared<const FlowSteps>(std::move(made));
}

class FlowSession : public DecoderSession {
   public:
    FlowSession(const FlowDecoder& decoder, const SamplerView& model, const SamplerState& state,
                const DecoderSettings& settings)
        : decoder_(decoder),
          m_(model),
          s_(state),
          settings_(settings),
          halves_(is_half(model.format) && kernels(settings.isa).halves),
          counts_(mask_schedule(model.tokens, std::min(settings.mask_steps, model.tokens))),
          steps_(decoder.steps(settings.flow_steps)),
          head_(decoder.head()) {
        head_.evaluations = 2 * steps_->count;
        head_.moves_per_step = 2;
        head_.time = steps_->time.data();
        head_.moves = steps_->moves.data();
    }

    void take(Allocator& memory) override {
        const std::size_t B = settings_.rows, most = *std::max_element(counts_.begin(), counts_.end());
        const std::size_t input = halves_ ? 2 : 4, C = m_.channels;
        keys_ = memory.take<std::uint64_t>(static_cast<std::size_t>(settings_.threads) * m_.tokens);
        first_qkv_ = memory.take<char>(B * m_.masked_rows * 3 * row_stride(m_.width) * input);
        condition_ = memory.take<char>(B * most * m_.width * input);
        drawn_ = memory.take<float>(B * most * C);
        moments_ = {decoder_.mean(), decoder_.scale(), condition_, nullptr, nullptr};
        if (!decoder_.residual()) return;
        moments_.means = memory.take<float>(B * most * row_stride(m_.channels));
        moments_.scales = memory.take<float>(B * most * row_stride(m_.channels));
    }

    WorkBytes work() const override {
        return {flow_head_own_bytes(head_, FLOW_ROWS), flow_head_shared_bytes(head_, FLOW_HEAD_TOGETHER)};
    }
    int counters() const override { return 2 * static_cast<int>(counts_.size()); }

    void decide(const Region& region) override {
        std::uint64_t* const keys = keys_ + static_cast<std::ptrdiff_t>(region.member.thread) * m_.tokens;
        for (int row = region.begin(region.rows); row < region.end(region.rows); ++row) order_row(row, keys);
        wait(region.member);
        int done = 0, previous = 0;
        for (int step = 0; step < static_cast<int>(counts_.size()); ++step) {
            const int count = counts_[step];
            region.share_out(2 * step, region.together, [&](int begin, int end) {
                const MaskTask task{begin, end, step, done, previous, count, nullptr, first_qkv_, nullptr, condition_};
                region.run.mask_step(m_, s_, task, region.team, region.shared, region.own);
            });
            wait(region.member);
            decide_tokens(region, step, done, count);
            wait(region.member);
            done += count;
            previous = count;
        }
    }

   private:
    void order_row(int row, std::uint64_t* keys) const;
    void decide_tokens(const Region& region, int step, int done, int count) const;
    void write_tokens(int begin, int end, int done, int count) const;

    const FlowDecoder& decoder_;
    const SamplerView& m_;
    const SamplerState& s_;
    DecoderSettings settings_;
    bool halves_;
    std::vector<int> counts_;  // tokens of each mask step
    std::shared_ptr<const FlowSteps> steps_;
    FlowHeadView head_;
    std::uint64_t* keys_ = nullptr;
    char *first_qkv_ = nullptr, *condition_ = nullptr;
    float* drawn_ = nullptr;  // [B M, C] what the flow made of the noise
    Moments moments_{};
};

void FlowSession::order_row(int row, std::uint64_t* keys) const {
    const int N = m_.tokens;
    for (int n = 0; n < N; ++n) {
        const PhiloxWords counter{0, static_cast<std::uint32_t>(n), ORDER_STEP, static_cast<std::uint32_t>(s_.frame)};
        const std::uint64_t word = philox_4x32(counter, s_.seeds[row], s_.members[row]).w0;
        // Equal words stay in the order of their index.
        keys[n] = word << 32 | static_cast<std::uint32_t>(n);
    }
    std::sort(keys, keys + N);
    for (int n = 0; n < N; ++n) s_.order[row * N + n] = static_cast<int>(keys[n] & 0xFFFFFFFFu);
}

// Tokens from what the flow made of the noise of conditions [begin, end).
void FlowSession::write_tokens(int begin, int end, int done, int count) const {
    const int N = m_.tokens, C = m_.channels;
    const float shift = std::log(std::exp(1.0f) - 1.0f);
    const std::ptrdiff_t ldc = row_stride(C);
    for (int i = begin; i < end; ++i) {
        const int row = i / count, token = s_.order[row * N + done + i % count];
        float* to = s_.tokens + (static_cast<std::ptrdiff_t>(row) * N + token) * C;
        for (int c = 0; c < C; ++c) {
            float z = drawn_[static_cast<std::ptrdiff_t>(i) * C + c];
            if (decoder_.residual()) {
                const float scale = softplus(moments_.scales[i * ldc + c] + shift) + 1e-3f;
                z = moments_.means[i * ldc + c] + scale * z;
            }
            to[c] = z;
        }
    }
}

// The flow-matching head for the tokens of a mask step, whatever rows they belong to.
void FlowSession::decide_tokens(const Region& region, int step, int done, int count) const {
    const int total = region.rows * count;
    const FlowHeadCall call{condition_, halves_ ? NumberFormat::bf16 : NumberFormat::fp32, s_.noise, drawn_, total};
    const Member& member = region.member;
    const auto draw = [&](int begin, int end) {
        for (int row = begin; row < end; ++row) draw_noise(m_, s_, row, step, done, count, settings_.temperature);
    };
    const auto finish = [&](int begin, int end) {
        if (decoder_.residual() && begin < end) region.run.moments(m_, s_, moments_, begin, end, region.own);
        write_tokens(begin, end, done, count);
    };
    if (flow_head_shares_columns(head_, total, member.threads)) {
        const int begin = region.begin(region.rows), end = region.end(region.rows);
        draw(begin, end);
        wait(member);
        for (int row = 0; row < total; row += FLOW_HEAD_TOGETHER) {
            region.run.flow_head_columns(head_, call, row, std::min(FLOW_HEAD_TOGETHER, total - row), member,
                                         region.common, region.own);
        }
        finish(begin * count, end * count);
        return;
    }
    // Whole members at a time, so that their noise is drawn once.
    const int items = Region::even_items(region.rows, std::max(1, FLOW_ROWS / count), member.threads);
    std::atomic<int>& next = region.counters[2 * step + 1];
    for (int item = next++; item < items; item = next++) {
        const int first = static_cast<int>(std::int64_t{region.rows} * item / items);
        const int last = static_cast<int>(std::int64_t{region.rows} * (item + 1) / items);
        draw(first, last);
        for (int row = first * count; row < last * count; row += FLOW_ROWS) {
            region.run.flow_head_rows(head_, call, row, std::min(FLOW_ROWS, last * count - row), region.own);
        }
        finish(first * count, last * count);
    }
}

std::unique_ptr<DecoderSession> FlowDecoder::session(const SamplerView& model, const SamplerState& state,
                                                     const DecoderSettings& settings) const {
    return std::make_unique<FlowSession>(*this, model, state, settings);
}

}  // namespace

MakeDecoder read_flow_decoder(Fields& fields, const DecoderShape& shape) {
    FlowConfig config;
    if (!shape.trunk) fields.wrong("kind", "'flow' needs a trunk");
    fields.read("width", config.width);
    fields.read("layers", config.layers);
    fields.read("time_features", config.time_features, 2);
    fields.choose("target", "data", "residual", config.residual);
    if (config.time_features % 2 != 0) fields.wrong("time_features", "an even number is expected");
    return [config, shape](const DecoderSlot& slot) -> std::unique_ptr<const Decoder> {
        return std::make_unique<const FlowDecoder>(config, shape, slot);
    };
}

}  // namespace enma
