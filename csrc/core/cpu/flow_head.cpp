#include "core/cpu/flow_head.h"

#include <algorithm>
#include <atomic>

#include "core/cpu/packer.h"

namespace enma {

namespace {

// Below this many rows a thread, threads share the columns of the same rows, so that weights are read once for all of
// them and modulations once for many evaluations; measured, docs/notes/flow-head.md.
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

FlowHead::FlowHead(const FlowHeadShape& shape, const TakeParameter& take, const std::string& prefix,
                   NumberFormat format) {
    static_cast<FlowHeadShape&>(view_) = shape;
    view_.format = format;
    const int W = shape.width;
    packed_ = packed(take, prefix, format, [&](Packer& pack) {
        // In the order of use.
        view_.condition = pack.linear("condition", W, shape.condition_width);
        view_.inward = pack.linear("inward", W, shape.channels);
        blocks_.clear();
        for (int i = 0; i < shape.layers; ++i) {
            const std::string block = "blocks." + std::to_string(i) + ".";
            FlowBlockView& view = blocks_.emplace_back();
            view.shift = pack.linear(block + "modulation", W, W, true, 0, 3);
            view.scale = pack.linear(block + "modulation", W, W, true, 1, 3);
            view.up = pack.linear(block + "up", W, W);
            view.gate = pack.linear(block + "modulation", W, W, true, 2, 3);
            view.down = pack.linear(block + "down", W, W);
        }
        view_.shift = pack.linear("modulation", W, W, true, 0, 2);
        view_.scale = pack.linear("modulation", W, W, true, 1, 2);
        view_.outward = pack.linear("outward", shape.channels, W);
    });
    view_.blocks = blocks_.data();
}

void run_flow_head(const FlowHeadView& head, const FlowHeadCall& call, int threads, Isa isa) {
    if (call.rows == 0) return;
    const Kernels& run = kernels(isa);
    threads = std::max(threads, 1);
    if (flow_head_shares_columns(head, call.rows, threads)) {
        threads = std::min(threads, (head.width + PANEL - 1) / PANEL);
        const std::int64_t tiles = (call.rows + FLOW_HEAD_TOGETHER - 1) / FLOW_HEAD_TOGETHER;
        const int most = static_cast<int>((call.rows + tiles - 1) / tiles);
        const std::size_t own = flow_head_own_bytes(head, most);
        const Scratch scratch(flow_head_shared_bytes(head, most) + own * threads);
        Barrier barrier;
        parallel(threads, [&](int thread, int group) {
            const Member member{thread, group, &barrier};
            for (std::int64_t tile = 0; tile < tiles; ++tile) {
                const std::int64_t begin = call.rows * tile / tiles, end = call.rows * (tile + 1) / tiles;
                run.flow_head_columns(head, call, begin, static_cast<int>(end - begin), member,
                                      scratch.data() + own * threads, scratch.data() + own * thread);
            }
        });
        return;
    }
    threads = static_cast<int>(std::min<std::int64_t>(threads, call.rows));
    std::int64_t tiles = (call.rows + TILE - 1) / TILE;
    if (tiles < 4 * threads) tiles = (tiles + threads - 1) / threads * threads;
    const int most = static_cast<int>((call.rows + tiles - 1) / tiles);
    const std::size_t own = flow_head_own_bytes(head, most);
    const Scratch scratch(own * threads);
    std::atomic<std::int64_t> next{0};
    parallel(threads, [&](int thread, int) {
        for (std::int64_t tile = next++; tile < tiles; tile = next++) {
            const std::int64_t begin = call.rows * tile / tiles, end = call.rows * (tile + 1) / tiles;
            run.flow_head_rows(head, call, begin, static_cast<int>(end - begin), scratch.data() + own * thread);
        }
    });
}

}  // namespace enma
