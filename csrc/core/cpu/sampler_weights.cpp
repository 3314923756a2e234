// The weights of a sampler, packed for the products of gemm.h: of both transformers, of what joins them and reads the
// frame, and of a local head. sampler.cpp makes frames with them.
#include <algorithm>
#include <cstring>
#include <numeric>

#include "core/cpu/allocator.h"
#include "core/cpu/sampler.h"

namespace enma {

namespace {

// Packs weights one after the other; the first pass counts, the second packs.
class Packer {
   public:
    Packer(Allocator& memory, NumberFormat format, bool write) : memory_(memory), format_(format), write_(write) {}

    // Rows [part n, (part + 1) n) of a weight [.., k].
    LinearView linear(const void* weight, const void* bias, int part, int n, int k) {
        char* packed = memory_.take<char>(packed_bytes(n, k, format_));
        if (!write_) return {};
        const std::ptrdiff_t size = bytes_of(format_);
        const char* rows = static_cast<const char*>(weight) + size * part * n * k;
        const char* biases = bias == nullptr ? nullptr : static_cast<const char*>(bias) + size * part * n;
        pack_linear(rows, biases, n, k, format_, packed);
        return view_linear(packed, n, k, format_);
    }

    // A vector in fp32, zero beyond its end.
    const float* vector(const void* values, int n) { return rows(values, 1, n, format_); }

    const float* rows(const void* values, int count, int n, NumberFormat format) {
        const std::ptrdiff_t stride = row_stride(n);
        float* out = memory_.take<float>(count * stride);
        if (!write_) return nullptr;
        std::memset(out, 0, count * stride * sizeof(float));
        for (int i = 0; i < count; ++i) {
            for (int j = 0; j < n; ++j) {
                out[i * stride + j] = stored(values, static_cast<std::ptrdiff_t>(i) * n + j, format);
            }
        }
        return out;
    }

    // Plain fp32 numbers without gaps.
    const float* table(const float* values, std::size_t count) {
        float* out = memory_.take<float>(count);
        if (write_) std::memcpy(out, values, count * sizeof(float));
        return out;
    }

   private:
    Allocator& memory_;
    NumberFormat format_;
    bool write_;
};

std::vector<BlockView> pack_blocks(Packer& pack, const std::vector<BlockWeights>& blocks, int width, int heads,
                                   int hidden) {
    std::vector<BlockView> views;
    for (const BlockWeights& block : blocks) {
        BlockView& view = views.emplace_back();
        view.norm_1 = pack.vector(block.norm_1, width);
        view.q = pack.linear(block.qkv, nullptr, 0, width, width);
        view.k = pack.linear(block.qkv, nullptr, 1, width, width);
        view.v = pack.linear(block.qkv, nullptr, 2, width, width);
        view.q_norm = pack.vector(block.q_norm, width / heads);
        view.k_norm = pack.vector(block.k_norm, width / heads);
        view.out = pack.linear(block.out, nullptr, 0, width, width);
        view.norm_2 = pack.vector(block.norm_2, width);
        view.gate = pack.linear(block.gate_up, nullptr, 0, hidden, width);
        view.up = pack.linear(block.gate_up, nullptr, 1, hidden, width);
        view.down = pack.linear(block.down, nullptr, 0, width, hidden);
    }
    return views;
}

// The products of a local head are fp32 whatever the weights are.
LocalHeadView pack_local(Allocator& memory, const LocalHeadWeights& w, NumberFormat format, float epsilon, bool write,
                         std::vector<LocalBlockView>& blocks) {
    Packer exact(memory, NumberFormat::fp32, write), given(memory, format, write);
    const int W = w.width;
    const auto convolution = [&](const void* weight, int outward, int inward) {
        std::vector<float> windows;
        if (write) windows = local_windows(weight, outward, inward, w.grid.taps(), format);
        return exact.linear(windows.data(), nullptr, 0, outward, w.grid.taps() * inward);
    };
    const auto linear = [&](const void* weight, const void* bias, int outward) {
        std::vector<float> widened(static_cast<std::size_t>(outward) * (W + 1));
        for (int i = 0; write && i < outward * W; ++i) widened[i] = stored(weight, i, format);
        float* biases = widened.data() + static_cast<std::size_t>(outward) * W;
        for (int i = 0; write && bias != nullptr && i < outward; ++i) biases[i] = stored(bias, i, format);
        return exact.linear(widened.data(), biases, 0, outward, W);
    };
    LocalHeadView view{};
    view.grid = w.grid;
    view.width = W;
    view.channels = w.channels;
    view.past = w.past;
    view.epsilon = epsilon;
    view.frames = convolution(w.frames, W, w.past * w.channels);
    view.modes = w.modes;
    const FourierGrid grid = fourier_grid(w.grid, w.modes, W);
    if (w.modes > 0) {
        const std::vector<std::vector<float>> tables = fourier_tables(grid);
        const auto table = [&](int i) { return exact.table(tables[i].data(), tables[i].size()); };
        view.fourier.along = table(0);
        view.fourier.across = table(1);
        view.fourier.lines = table(2);
        view.fourier.places = table(3);
    }
    const auto filter = [&](const void* weight) {
        std::vector<float> values;
        if (write) values = fourier_filter(weight, grid, format);
        return exact.table(values.data(), grid.filter_size());
    };
    blocks.clear();
    for (const LocalBlockWeights& block : w.blocks) {
        LocalBlockView& made = blocks.emplace_back();
        made.norm = given.vector(block.norm, W);
        made.gate_up =
            block.filter == nullptr ? convolution(block.gate_up, 2 * W, W) : linear(block.gate_up, nullptr, 2 * W);
        made.down = linear(block.down, nullptr, W);
        made.filter = block.filter == nullptr ? nullptr : filter(block.filter);
    }
    view.blocks = blocks.data();
    view.layers = static_cast<int>(blocks.size());
    view.norm = given.vector(w.norm, W);
    view.read = linear(w.read_weight, w.read_bias, w.channels);
    return view;
}

}  // namespace

Sampler::Sampler(const SamplerWeights& w) {
    SamplerView& v = view_;
    v.tokens = w.tokens;
    v.channels = w.channels;
    v.width = w.width;
    v.heads = w.heads;
    v.head_dim = w.width / w.heads;
    v.hidden = w.hidden;
    v.format = w.format;
    v.concat = w.concat;
    v.scale_shift = w.narrow != nullptr;
    v.residual = w.moments_weight != nullptr;
    v.one_pass = w.read_weight != nullptr;
    v.epsilon = w.epsilon;
    v.masked_rows = w.tokens * (w.concat ? 2 : 1);
    v.head_unit = PANEL / std::gcd(PANEL, v.head_dim);
    v.head_columns = std::max(SAMPLER_COLUMNS, v.head_unit * v.head_dim);
    v.input_stride = std::max({row_stride(w.width), row_stride(w.channels), row_stride(w.rank)});
    v.rotary_frames = w.rotary_frames;
    const int D = w.width, C = w.channels, N = w.tokens, half = v.head_dim / 2;
    const auto fill = [&](bool write) {
        Allocator memory(write ? packed_.data() : nullptr);
        Packer pack(memory, w.format, write);
        // In the order of use.
        v.embed = pack.linear(w.embed_weight, w.embed_bias, 0, D, C);
        v.start = pack.rows(w.start, 2, D, w.format);
        v.places = w.places == nullptr ? nullptr : pack.rows(w.places, N, D, NumberFormat::fp32);
        causal_ = pack_blocks(pack, w.causal, D, w.heads, w.hidden);
        if (v.scale_shift) {
            v.narrow = pack.linear(w.narrow, nullptr, 0, w.rank, D);
            v.gamma = pack.linear(w.wide_weight, w.wide_bias, 0, D, w.rank);
            v.beta = pack.linear(w.wide_weight, w.wide_bias, 1, D, w.rank);
        }
        v.masked_embed = pack.linear(w.masked_embed_weight, w.masked_embed_bias, 0, D, C);
        v.mask = pack.vector(w.mask, D);
        masked_ = pack_blocks(pack, w.masked, D, w.heads, w.hidden);
        v.final_norm = pack.vector(w.final_norm, D);
        if (v.residual) {
            v.mean = pack.linear(w.moments_weight, w.moments_bias, 0, C, D);
            v.scale = pack.linear(w.moments_weight, w.moments_bias, 1, C, D);
        }
        if (v.one_pass) {
            v.noise = pack.linear(w.noise, nullptr, 0, D, C);
            const auto columns = [](const LocalHeadWeights& head) { return head.width * head.grid.patch(); };
            v.read = pack.linear(w.read_weight, w.read_bias, 0, w.local == nullptr ? C : columns(*w.local), D);
            if (w.first != nullptr) {
                v.first_read = pack.linear(w.first_read_weight, w.first_read_bias, 0, columns(*w.first), D);
            }
        }
        if (w.local != nullptr) local_ = pack_local(memory, *w.local, w.format, w.epsilon, write, local_blocks_);
        if (w.first != nullptr) first_ = pack_local(memory, *w.first, w.format, w.epsilon, write, first_blocks_);
        const auto table = [&](const float* values, std::size_t rows) {
            return values == nullptr ? nullptr : pack.table(values, rows * half);
        };
        const std::size_t rows = static_cast<std::size_t>(w.rotary_frames) * N;
        v.rotary = {table(w.cosines, rows), table(w.sines, rows)};
        v.masked_rotary = {table(w.masked_cosines, v.masked_rows), table(w.masked_sines, v.masked_rows)};
        return memory.used();
    };
    packed_ = Buffer(fill(false));
    fill(true);
    v.causal = causal_.data();
    v.causal_layers = static_cast<int>(causal_.size());
    v.masked = masked_.data();
    v.masked_layers = static_cast<int>(masked_.size());
    v.local = w.local == nullptr ? nullptr : &local_;
    v.first = w.first == nullptr ? nullptr : &first_;
}

}  // namespace enma
