// Context `causal-transformer`: its config, and the places of tokens that both transformers see; the layers are the
// sampler's own. enma_fast/models/contexts/causal_transformer.py
#include <cmath>
#include <numbers>

#include "core/cpu/frame_attention.h"
#include "runtime/config.h"

namespace enma {

namespace {

using std::numbers::pi;

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

}  // namespace

const ContextKind causal_transformer{"causal-transformer", read, sincos, turns};

}  // namespace enma
