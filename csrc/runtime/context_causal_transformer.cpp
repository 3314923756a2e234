// Context `causal-transformer`: its config, the places of tokens that both transformers see, and the engine; the layers are
// the sampler's own. enma_fast/models/contexts/causal_transformer.py
#include <cmath>
#include <mutex>
#include <numbers>
#include <numeric>

#include "core/cpu/sampler.h"
#include "runtime/checkpoint.h"
#include "runtime/config.h"
#include "runtime/engine.h"

namespace enma {

namespace {

using std::numbers::pi;

// Epsilon of all norms, enma_fast/models/layers.py.
constexpr float NORM_EPSILON = 1e-5f;
// Initial number of frames in the tables of rotary places.
constexpr std::int64_t TABLE_FRAMES = 64;

void read(Fields& fields, ContextConfig& out) {
    fields.read("width", out.width, 1, MOST / MLP_RATIO);
    fields.read("heads", out.heads);
    fields.read("layers", out.layers);
    fields.read("patch", out.patch);
    fields.choose("positions", "sincos", "rotary", out.rotary);
    fields.read("scale_shift_rank", out.scale_shift_rank, 0);
    if (out.width % out.heads != 0 || out.width / out.heads % 4 != 0) {
        fields.wrong("width", text(out.width, " is not a multiple of 4 * heads (", out.heads, ")"));
    }
    const int least = 8 * static_cast<int>(out.patch.size());
    if (out.rotary && out.width / out.heads < least) {
        fields.wrong("width", text("rotary positions need ", least, " channels a head"));
    }
    if (out.width / out.heads > MAX_HEAD_DIM) {
        fields.unsupported("heads", text("so few that a head has more than ", MAX_HEAD_DIM, " channels"));
    }
}

// Cosines, then sines, [2, frames, N, K / 2] of the turn of each token; enma_fast/models/layers.py, Rotary.
std::vector<float> turns(const ModelConfig& config, const std::vector<double>& frames) {
    if (!config.context.rotary) return {};
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
    if (config.context.rotary) return {};
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

class Transformers : public Engine {
   public:
    Transformers(const ModelConfig& config, Tensors& tensors, NumberFormat format) : config_(config) {
        const ContextConfig& context = config.context;
        SamplerShape shape{
            {config.num_tokens(), config.token_channels(), context.width, context.heads, MLP_RATIO * context.width,
             context.scale_shift_rank, context.layers, config.trunk.layers, config.trunk.concat, NORM_EPSILON},
            {},
            {}};
        shape.places = sincos(config);
        shape.masked_turns =
            turns(config, config.trunk.concat ? std::vector<double>{0.0, 0.5} : std::vector<double>{0.0});
        const TakeParameter take = [&](const std::string& name, const std::vector<std::int64_t>& sizes) {
            return tensors.take(name, sizes);
        };
        sampler_ = std::make_shared<const Sampler>(shape, take, format, config.initial, config.step);
        table(TABLE_FRAMES);
    }
    std::unique_ptr<FrameSession> session(const SamplerSettings& set) const override {
        return std::make_unique<SamplerSession>(sampler_, table(set.prefix_frames + set.own_frames), set);
    }
    NumberFormat format() const override { return sampler_->view().format; }
    bool draws_fields() const override { return sampler_->initial().draws_fields(); }
    std::size_t bytes() const override { return sampler_->bytes(); }

   private:
    // The turns of each token of at least so many frames; null where places are not turned.
    std::shared_ptr<const std::vector<float>> table(std::int64_t frames) const {
        const std::lock_guard lock(mutex_);
        if (frames <= turned_frames_) return turns_;
        turned_frames_ = turns_ == nullptr ? frames : 2 * frames;
        std::vector<double> numbers(turned_frames_);
        std::iota(numbers.begin(), numbers.end(), 0.0);
        std::vector<float> values = turns(config_, numbers);
        if (!values.empty()) turns_ = std::make_shared<const std::vector<float>>(std::move(values));
        return turns_;
    }

    ModelConfig config_;
    std::shared_ptr<const Sampler> sampler_;
    mutable std::mutex mutex_;
    mutable std::shared_ptr<const std::vector<float>> turns_;
    mutable std::int64_t turned_frames_ = 0;
};

std::unique_ptr<const Engine> engine(const ModelConfig& config, Tensors& tensors, NumberFormat format) {
    return std::make_unique<const Transformers>(config, tensors, format);
}

}  // namespace

const ContextKind causal_transformer{"causal-transformer", read, engine};

}  // namespace enma
