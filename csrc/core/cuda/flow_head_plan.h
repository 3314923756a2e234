// How the flow head is cut over a GPU, as plain arithmetic: no CUDA header, so that it is tested without one.
//
// Legend: M rows, C token channels, D width of the condition, W width of the head, L blocks, R evaluations.
#pragma once

#include <algorithm>
#include <cstdint>

namespace enma {

struct FlowHeadSizes {
    int64_t rows;             // M
    int64_t channels;         // C
    int64_t condition_width;  // D
    int64_t width;            // W
    int64_t blocks;           // L
    int64_t evaluations;      // R
    int64_t moves_per_step;   // 1 Euler, 2 midpoint

    int64_t modulations() const { return (3 * blocks + 2) * width; }
    int64_t condition_padded() const { return (condition_width + 31) / 32 * 32; }
    int64_t inward_steps() const { return (channels + 15) / 16; }
    int64_t outward_tiles() const { return (channels + 7) / 8; }
};

// Matrices as operands of the 16x8x16 product, bf16: tile of 8 outputs, step along the inputs, lane, and what the lane
// holds. Vectors fp32. All on the device.
struct FlowHeadWeights {
    const void* condition;         // [W/8][D/32 rounded up][32] of 16 bytes
    const float* condition_bias;   // [W]
    const float* time;             // [R][W]
    const void* modulation;        // [(3L+2)W/8][W/32][32] of 16 bytes: per block shift, scale, gate; last shift, scale
    const float* modulation_bias;  // [(3L+2)W]
    const void* inward;            // [W/8][C/16 rounded up][32] of 8 bytes
    const float* inward_bias;      // [W]
    const void* blocks;            // [2L][W/8][W/32][32] of 16 bytes: up, down of each block
    const float* blocks_bias;      // [2L][W]
    const void* outward;           // [C/8 rounded up][W/32][32] of 16 bytes
    const float* outward_bias;     // [C rounded up to 8]
    const float* moves;            // [R]
};

inline constexpr int kFlowHeadMaxChannels = 64;
inline constexpr int kFlowHeadMaxWidth = 1024;
inline constexpr int kFlowHeadMaxTiles = 4;
inline constexpr int kFlowHeadMaxSubtiles = 4;
inline constexpr int kFlowHeadWarps = 8;
inline constexpr int kFlowHeadClusterLimit = 16;
// Modulations of one chunk of evaluations, which should stay in L2 until they are used.
inline constexpr int64_t kFlowHeadModulationBytes = int64_t{32} << 20;

struct FlowHeadGeometry {
    int warps = kFlowHeadWarps;
    int tiles = 0;          // tiles of 8 columns of every matrix that one block keeps
    int chunks = 0;         // pieces of 256 columns of a row, 2 or 4
    int group_blocks = 0;   // blocks that together keep all matrices
    int subtiles = 0;       // tiles of 16 rows that a group carries at once, at most
    int groups = 0;         // groups, each with rows of its own
    int rows_per_pass = 0;  // rows that a group carries at once
    int evaluations = 0;    // evaluations whose modulations are held at once
    bool cluster = false;   // a group is a cluster
    bool remote = false;    // whose blocks store activations into each other's shared memory
    int64_t shared_bytes = 0;

    // Rows for which a group has room.
    int64_t rows_at_once() const { return int64_t{remote ? 8 : 16} * subtiles; }
};

// Why the kernel cannot serve these sizes on any GPU; null: it can.
inline const char* flow_head_problem(const FlowHeadSizes& s) {
    if (s.channels < 1 || s.channels > kFlowHeadMaxChannels) return "needs 1 to 64 token channels";
    if (s.width < 64 || s.width % 64 != 0) return "needs a head width that is a multiple of 64";
    if (s.width > kFlowHeadMaxWidth) return "needs a head width of at most 1024";
    if (s.condition_width < 8 || s.condition_width % 8 != 0) return "needs a condition width that is a multiple of 8";
    if (s.condition_width > kFlowHeadMaxWidth) return "needs a condition width of at most 1024";
    if (s.blocks < 1 || s.blocks > 64) return "needs 1 to 64 blocks";
    if (s.evaluations < 1 || s.evaluations > 65536) return "needs 1 to 65536 evaluations";
    if (s.moves_per_step < 1) return "needs at least one move per step";
    if (s.rows < 0 || s.rows > (int64_t{1} << 20)) return "takes at most 2^20 rows a call";
    return nullptr;
}

// Shared memory of a block of the loop, in the order in which it lies there.
struct FlowHeadShared {
    int64_t weights;   // matrices of this block's columns
    int64_t operand;   // 16 rows of inputs [16][W + 8] bf16, or partial sums of all warps [warps][tiles][32][4] fp32;
                       // remote: twice, 8 rows each
    int64_t residual;  // y of this block's columns, fp32
    int64_t barriers;  // remote: two, ahead of what need not be aligned to 8 bytes
    int64_t state;     // x, fp32, all channels
    int64_t start;     // x at the start of the step
    int64_t bias;      // [2L][8 tiles] fp32

    FlowHeadShared(const FlowHeadSizes& s, int warps, int tiles, int subtiles, bool remote) {
        weights = 2 * s.blocks * tiles * s.width * 16;
        operand = std::max<int64_t>(32 * (s.width + 8), int64_t{512} * warps * tiles);
        residual = int64_t{512} * subtiles * tiles / (remote ? 2 : 1);
        barriers = remote ? 16 : 0;
        state = 64 * subtiles * s.channels / (remote ? 2 : 1);
        start = state;
        bias = 64 * s.blocks * tiles;
    }
    int64_t total() const { return weights + operand + residual + barriers + state + start + bias; }
};

// Shared memory of a block of the products before the loop: 64 rows of inputs.
inline int64_t flow_head_rows_shared(int64_t padded_inputs) { return 64 * (padded_inputs + 8) * 2; }

// Fewest blocks per group, then most rows at once, that the shared memory of a block allows. With `remote` blocks store
// into each other's shared memory, which holds 8 rows at once; the group is then a cluster.
inline const char* cut_weights(const FlowHeadSizes& s, int64_t shared_limit, bool remote, FlowHeadGeometry& g) {
    if (const char* problem = flow_head_problem(s)) return problem;
    if (flow_head_rows_shared(std::max(s.condition_padded(), s.width)) > shared_limit)
        return "the shared memory of this GPU is too small for 64 rows of inputs";
    g.chunks = s.width <= 512 ? 2 : 4;
    g.remote = remote;
    for (int tiles = g.chunks == 2 ? kFlowHeadMaxTiles : 2; tiles >= 1; tiles /= 2) {
        for (int subtiles = remote ? 1 : kFlowHeadMaxSubtiles; subtiles >= 1; subtiles /= 2) {
            const int64_t bytes = FlowHeadShared(s, g.warps, tiles, subtiles, remote).total();
            if (bytes > shared_limit) continue;
            g.tiles = tiles;
            g.subtiles = subtiles;
            g.group_blocks = static_cast<int>(s.width / 8 / tiles);
            g.shared_bytes = bytes;
            g.cluster = remote;
            if (remote && g.group_blocks > kFlowHeadClusterLimit) return "needs more blocks than a cluster has";
            if (remote && g.group_blocks < 2) return "needs one block only";
            return nullptr;
        }
    }
    return "the weights of the blocks do not fit into the shared memory of this GPU";
}

// Rows over the groups that can run at the same time, and evaluations over chunks.
inline const char* spread_rows(const FlowHeadSizes& s, int64_t groups_at_once, int64_t modulation_bytes,
                               FlowHeadGeometry& g) {
    if (groups_at_once < 1) return "this GPU cannot run enough blocks at the same time to hold the weights";
    const int64_t rows = std::max<int64_t>(s.rows, 1);
    g.groups = static_cast<int>(std::min(groups_at_once, rows));
    const int64_t most = g.rows_at_once() * g.groups;
    const int64_t passes = (rows + most - 1) / most;
    g.rows_per_pass = static_cast<int>((rows + passes * g.groups - 1) / (passes * g.groups));
    const int64_t bytes_per_evaluation = rows * s.modulations() * 2;
    g.evaluations = static_cast<int>(std::clamp<int64_t>(modulation_bytes / bytes_per_evaluation, 1, s.evaluations));
    return nullptr;
}

// Scratch memory of one call; offsets in bytes from a base aligned to 256.
struct FlowHeadScratch {
    int64_t inputs;      // silu(condition + time) [R][M][W] bf16
    int64_t modulation;  // [chunk][M][(3L+2)W] bf16
    int64_t residual;    // y that the blocks of a group exchange [groups][rows_per_pass][W] bf16
    int64_t hidden;      // likewise
    int64_t start;       // x at the start of the step, between chunks [M][C] fp32
    int64_t counters;    // [groups][32]
    int64_t total;

    FlowHeadScratch(const FlowHeadSizes& s, const FlowHeadGeometry& g) {
        int64_t end = 0;
        const auto take = [&end](int64_t bytes) {
            const int64_t begin = end;
            end += (bytes + 255) / 256 * 256;
            return begin;
        };
        inputs = take(s.evaluations * s.rows * s.width * 2);
        modulation = take(g.evaluations * s.rows * s.modulations() * 2);
        residual = take(int64_t{g.groups} * g.rows_per_pass * s.width * 2);
        hidden = take(int64_t{g.groups} * g.rows_per_pass * s.width * 2);
        start = take(s.rows * s.channels * 4);
        counters = take(int64_t{g.groups} * 128);
        total = end;
    }
};

}  // namespace enma
