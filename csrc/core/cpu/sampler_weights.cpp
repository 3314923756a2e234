// The weights of both transformers and of what joins them, packed; sampler.cpp makes frames with them.
#include <algorithm>
#include <numeric>

#include "core/cpu/packer.h"
#include "core/cpu/sampler.h"

namespace enma {

namespace {

std::vector<BlockView> pack_blocks(Packer& pack, const std::string& name, int count, const SamplerView& m) {
    std::vector<BlockView> views;
    const int D = m.width, H = m.hidden;
    for (int i = 0; i < count; ++i) {
        const std::string block = name + ".blocks." + std::to_string(i) + ".";
        BlockView& view = views.emplace_back();
        view.norm_1 = pack.vector(block + "norm_1.weight", D);
        view.q = pack.linear(block + "attention.qkv", D, D, false, 0, 3);
        view.k = pack.linear(block + "attention.qkv", D, D, false, 1, 3);
        view.v = pack.linear(block + "attention.qkv", D, D, false, 2, 3);
        view.q_norm = pack.vector(block + "attention.q_norm.weight", m.head_dim);
        view.k_norm = pack.vector(block + "attention.k_norm.weight", m.head_dim);
        view.out = pack.linear(block + "attention.out", D, D, false);
        view.norm_2 = pack.vector(block + "norm_2.weight", D);
        view.gate = pack.linear(block + "mlp.gate_up", H, D, false, 0, 2);
        view.up = pack.linear(block + "mlp.gate_up", H, D, false, 1, 2);
        view.down = pack.linear(block + "mlp.down", D, H, false);
    }
    return views;
}

}  // namespace

Sampler::Sampler(const SamplerShape& s, const TakeParameter& take, NumberFormat format, const MakeDecoder& initial,
                 const MakeDecoder& step) {
    SamplerView& v = view_;
    const int D = s.width, C = s.channels, N = s.tokens;
    static_cast<SamplerSizes&>(v) = s;
    v.head_dim = D / s.heads;
    v.format = format;
    v.masked_rows = N * (s.concat ? 2 : 1);
    v.head_unit = PANEL / std::gcd(PANEL, v.head_dim);
    v.head_columns = std::max(SAMPLER_COLUMNS, v.head_unit * v.head_dim);
    v.input_stride = std::max({row_stride(D), row_stride(C), row_stride(std::max(1, s.rank))});
    packed_ = packed(take, "dynamics.", format, [&](Packer& pack) {
        v.embed = pack.linear("context.embed", D, C);
        v.start = pack.rows(pack.numbers("context.start", {2, D}).data(), 2, D);
        v.places = s.places.empty() ? nullptr : pack.rows(s.places.data(), N, D);
        causal_ = pack_blocks(pack, "context", s.causal_layers, v);
        if (s.rank > 0) {
            v.narrow = pack.linear("context.scale_shift.down", s.rank, D, false);
            v.gamma = pack.linear("context.scale_shift.up", D, s.rank, true, 0, 2);
            v.beta = pack.linear("context.scale_shift.up", D, s.rank, true, 1, 2);
        }
        if (s.masked_layers == 0) return;
        v.masked_embed = pack.linear("trunk.embed", D, C);
        v.mask = pack.vector("trunk.mask", D);
        masked_ = pack_blocks(pack, "trunk", s.masked_layers, v);
        v.final_norm = pack.vector("trunk.norm.weight", D);
        if (s.masked_turns.empty()) return;
        v.masked_rotary.cosines = pack.table(s.masked_turns);
        // The pass that only measures has no memory yet.
        if (v.masked_rotary.cosines != nullptr) {
            v.masked_rotary.sines = v.masked_rotary.cosines + s.masked_turns.size() / 2;
        }
    });
    v.causal = causal_.data();
    v.masked = masked_.data();
    if (initial) initial_ = initial({take, "dynamics.initial.", format, s.epsilon});
    step_ = step({take, "dynamics.step.", format, s.epsilon});
}

}  // namespace enma
