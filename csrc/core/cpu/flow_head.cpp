#include "core/cpu/flow_head.h"

#include <algorithm>
#include <atomic>
#include <cstring>

namespace enma {

namespace {

// Below this many rows a thread, threads share the columns of the same rows, so that weights are read once for all of
// them and modulations once for many evaluations; measured, docs/experiments.md.
constexpr int ROWS_ALONE_FULL = 12;
constexpr int ROWS_ALONE_BF16 = 8;

}  // namespace

// Inputs of products take at most the size of a float.
std::size_t flow_head_own_bytes(const FlowHeadView& head, int rows) {
    const std::ptrdiff_t widest = std::max(row_stride(head.width), row_stride(head.condition_width));
    const std::size_t floats = 6 * row_stride(head.width) + widest + 3 * row_stride(head.channels) + 2;
    return pages(GEMM_SCRATCH + (rows + 16) * floats * sizeof(float));
}

std::size_t flow_head_shared_bytes(const FlowHeadView& head, int rows) {
    const int together = std::min(head.evaluations, GEMM_ROWS / rows);
    const std::size_t lines = 4 * rows + static_cast<std::size_t>(together) * rows * (3 * head.layers + 3);
    return pages((lines + 16) * row_stride(head.width) * sizeof(float));
}

bool flow_head_shares_columns(const FlowHeadView& head, std::int64_t rows, int threads) {
    return rows < (is_half(head.format) ? ROWS_ALONE_BF16 : ROWS_ALONE_FULL) * std::int64_t{threads};
}

void wait(const Member& member) {
    if (member.threads > 1) member.barrier->wait(member.threads);
}

FlowHead::FlowHead(const FlowHeadWeights& weights) {
    const int w = weights.width, layers = static_cast<int>(weights.blocks.size());
    const NumberFormat format = weights.format;
    const std::size_t square = packed_bytes(w, w, format);
    const std::size_t condition = packed_bytes(w, weights.condition_width, format);
    const std::size_t inward = packed_bytes(w, weights.channels, format);
    const std::size_t outward = packed_bytes(weights.channels, w, format);
    const std::size_t time = static_cast<std::size_t>(weights.evaluations) * row_stride(w) * sizeof(float);
    packed_ = Buffer(condition + inward + outward + (5 * layers + 2) * square + time);
    char* free = packed_.data();

    const auto pack = [&](const void* weight, const void* bias, int part, int n, int k) {
        const std::ptrdiff_t size = bytes_of(format);
        const char* rows = static_cast<const char*>(weight) + static_cast<std::ptrdiff_t>(part) * n * k * size;
        const char* biases = static_cast<const char*>(bias) + static_cast<std::ptrdiff_t>(part) * n * size;
        char* packed = free;
        free += packed_bytes(n, k, format);
        pack_linear(rows, biases, n, k, format, packed);
        return view_linear(packed, n, k, format);
    };

    view_.channels = weights.channels;
    view_.condition_width = weights.condition_width;
    view_.width = w;
    view_.layers = layers;
    view_.evaluations = weights.evaluations;
    view_.moves_per_step = weights.moves_per_step;
    view_.format = format;
    view_.condition = pack(weights.condition_weight, weights.condition_bias, 0, w, weights.condition_width);
    view_.inward = pack(weights.inward_weight, weights.inward_bias, 0, w, weights.channels);
    // In the order of use: products ask for what follows in memory.
    for (const FlowBlockWeights& block : weights.blocks) {
        FlowBlockView& view = blocks_.emplace_back();
        view.shift = pack(block.modulation_weight, block.modulation_bias, 0, w, w);
        view.scale = pack(block.modulation_weight, block.modulation_bias, 1, w, w);
        view.up = pack(block.up_weight, block.up_bias, 0, w, w);
        view.gate = pack(block.modulation_weight, block.modulation_bias, 2, w, w);
        view.down = pack(block.down_weight, block.down_bias, 0, w, w);
    }
    view_.shift = pack(weights.modulation_weight, weights.modulation_bias, 0, w, w);
    view_.scale = pack(weights.modulation_weight, weights.modulation_bias, 1, w, w);
    view_.outward = pack(weights.outward_weight, weights.outward_bias, 0, weights.channels, w);
    view_.blocks = blocks_.data();
    float* times = reinterpret_cast<float*>(free);
    std::memset(times, 0, time);
    for (int k = 0; k < weights.evaluations; ++k) {
        for (int j = 0; j < w; ++j) {
            times[k * row_stride(w) + j] = stored(weights.time, static_cast<std::ptrdiff_t>(k) * w + j, format);
        }
    }
    view_.time = times;
    moves_ = weights.moves;
    view_.moves = moves_.data();
}

void FlowHead::run(const FlowHeadCall& call, int threads, Isa isa, Division division) const {
    if (call.rows == 0) return;
    const Kernels& run = kernels(isa);
    threads = std::max(threads, 1);
    if (division == Division::automatic) {
        division = flow_head_shares_columns(view_, call.rows, threads) ? Division::columns : Division::rows;
    }
    if (division == Division::columns) {
        threads = std::min(threads, (view_.width + PANEL - 1) / PANEL);
        const std::int64_t tiles = (call.rows + FLOW_HEAD_TOGETHER - 1) / FLOW_HEAD_TOGETHER;
        const int most = static_cast<int>((call.rows + tiles - 1) / tiles);
        const std::size_t own = flow_head_own_bytes(view_, most);
        const Scratch scratch(flow_head_shared_bytes(view_, most) + own * threads);
        Barrier barrier;
        parallel(threads, [&](int thread, int group) {
            const Member member{thread, group, &barrier};
            for (std::int64_t tile = 0; tile < tiles; ++tile) {
                const std::int64_t begin = call.rows * tile / tiles, end = call.rows * (tile + 1) / tiles;
                run.flow_head_columns(view_, call, begin, static_cast<int>(end - begin), member,
                                      scratch.data() + own * threads, scratch.data() + own * thread);
            }
        });
        return;
    }
    threads = static_cast<int>(std::min<std::int64_t>(threads, call.rows));
    std::int64_t tiles = (call.rows + TILE - 1) / TILE;
    if (tiles < 4 * threads) tiles = (tiles + threads - 1) / threads * threads;
    const int most = static_cast<int>((call.rows + tiles - 1) / tiles);
    const std::size_t own = flow_head_own_bytes(view_, most);
    const Scratch scratch(own * threads);
    std::atomic<std::int64_t> next{0};
    parallel(threads, [&](int thread, int) {
        for (std::int64_t tile = next++; tile < tiles; tile = next++) {
            const std::int64_t begin = call.rows * tile / tiles, end = call.rows * (tile + 1) / tiles;
            run.flow_head_rows(view_, call, begin, static_cast<int>(end - begin), scratch.data() + own * thread);
        }
    });
}

}  // namespace enma
