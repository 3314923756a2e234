// Kernels of the flow head for few rows: two products before the loop, then all evaluations in one launch.
//
//     s_k = silu(W_c c + b_c + time_k)            flow_condition, all k
//     m_k = W_m s_k + b_m                         flow_modulation, a chunk of k: shift, scale, gate of each block
//     the integration over that chunk             flow_loop
//
// flow_loop keeps the matrices of the blocks in shared memory, spread over a group of thread blocks: each has `tiles`
// tiles of 8 columns of every matrix. A group carries rows of its own through all evaluations and exchanges activations
// twice per block of the network: through L2, with a barrier of the group each time, or, where a group is a cluster, by
// stores into the shared memory of every block, 8 rows at once, which counts the bytes that arrive (REMOTE).
// Input and output projection are small, so every thread block does them whole, with its own copy of the state. A row
// is treated alike wherever it lies: its bits depend on nothing else.
//
// Fragments follow mma.m16n8k16: lane l holds rows l/4 and l/4 + 8, columns 2 (l%4), 2 (l%4) + 1 of a result.
#pragma once

#include "core/cuda/device.cuh"
#include "core/cuda/flow_head_plan.h"

namespace enma {

// Places where threads wait for each other; a group's barrier takes two numbers.
enum FlowHeadSite : int {
    kSiteRows = 1,     // input rows are in shared memory
    kSitePass = 2,     // weights and state are in shared memory
    kSiteInward = 3,   // y of all columns is in shared memory
    kSiteOperand = 4,  // the operand of a product is in shared memory
    kSiteProduct = 5,  // the operand has been read, partial sums may take its place
    kSitePartial = 6,  // partial sums of all warps are in shared memory
    kSiteNext = 7,     // partial sums have been read, the state is written
    kSiteBegin = 8,    // the barriers of all blocks of the cluster can count
    kSiteUp = 10,      // hidden activations of all columns are here
    kSiteDown = 20,    // y of all columns is here
};

struct FlowConditionArguments {
    const uint4* c;  // [M][D] bf16
    const uint4* weight;
    const float* bias;
    const float* time;
    uint32_t* out;  // [R][M][W] bf16
    uint32_t* counters;
    int rows, inputs, inputs_padded, width, evaluations, groups;
};

struct FlowModulationArguments {
    const uint4* inputs;  // [rows][W] bf16
    const uint4* weight;
    const float* bias;
    uint32_t* out;  // [rows][N] bf16
    int64_t rows;
    int width, outputs;
};

struct FlowLoopArguments {
    FlowHeadWeights weights;
    const uint16_t* modulation;  // [k_end - k_begin][M][(3L+2)W] bf16
    const float* x_in;           // [M][C]
    float* x_out;                // [M][C], may be x_in
    float* start;                // [M][C]
    uint16_t* residual;          // [groups][rows_per_pass][W] bf16, not used by REMOTE
    uint16_t* hidden;
    uint32_t* counters;  // [groups][32], likewise
    int rows, channels, width, blocks, modulations;
    int k_begin, k_end, moves_per_step;
    int groups, group_blocks, rows_per_pass, subtiles;
    bool cluster;
};

namespace flow_head {

inline constexpr float kEpsilon = 1e-6f;
inline constexpr int kInwardSteps = kFlowHeadMaxChannels / 16;
inline constexpr int kOutwardTiles = kFlowHeadMaxChannels / 8;
inline constexpr int kRowTiles = 4;     // of 16 rows, in the products before the loop
inline constexpr int kColumnTiles = 2;  // of 8 columns per warp, likewise

struct Pair {
    float x, y;
};

struct alignas(16) Quad {
    float x, y, z, w;
};

ENMA_DEVICE int lane() { return device::thread() % 32; }
ENMA_DEVICE int warp() { return device::thread() / 32; }
ENMA_DEVICE int warps() { return device::threads() / 32; }

// A fragment of 8 HALVES rows, zeros below them, and 16 inputs that lie in shared memory, `pitch` bf16 from row to row.
// With a pitch of 8 more than a multiple of 32 the lanes meet no bank twice.
template <int HALVES = 2>
ENMA_DEVICE void load_operand(uint32_t (&a)[4], const uint16_t* rows, int pitch, int column) {
    const uint16_t* p = rows + (lane() / 4) * pitch + column + (lane() % 4) * 2;
    a[0] = *reinterpret_cast<const uint32_t*>(p);
    a[1] = HALVES == 2 ? *reinterpret_cast<const uint32_t*>(p + 8 * pitch) : 0;
    a[2] = *reinterpret_cast<const uint32_t*>(p + 8);
    a[3] = HALVES == 2 ? *reinterpret_cast<const uint32_t*>(p + 8 * pitch + 8) : 0;
}

// 64 rows of [rows][inputs] bf16 into shared memory; zero beyond the last row and the last input.
ENMA_DEVICE void load_rows(uint16_t* to, const uint4* from, int64_t first, int64_t rows, int inputs, int padded) {
    const int pieces = inputs / 8;
    const int pieces_padded = padded / 8;
    for (int i = device::thread(); i < 16 * kRowTiles * pieces_padded; i += device::threads()) {
        const int row = i / pieces_padded;
        const int piece = i % pieces_padded;
        uint4 value{0, 0, 0, 0};
        if (first + row < rows && piece < pieces) value = device::load_constant(from + (first + row) * pieces + piece);
        *reinterpret_cast<uint4*>(to + row * (padded + 8) + piece * 8) = value;
    }
    device::sync_block<kSiteRows>();
}

// acc = rows of this block times the columns of this warp; weights come from L2, each read once per block.
ENMA_DEVICE void multiply_rows(float (&acc)[kRowTiles][kColumnTiles][4], const uint16_t* rows, const uint4* weight,
                               int tile, int padded, int row_tiles) {
    const int pairs = padded / 32;
#pragma unroll 4
    for (int pair = 0; pair < pairs; ++pair) {
        uint4 b[kColumnTiles];
#pragma unroll
        for (int n = 0; n < kColumnTiles; ++n) {
            b[n] = device::load_constant(weight + (static_cast<int64_t>(tile + n) * pairs + pair) * 32 + lane());
        }
#pragma unroll
        for (int m = 0; m < kRowTiles; ++m) {
            if (m >= row_tiles) continue;
            uint32_t a[2][4];
            load_operand(a[0], rows + 16 * m * (padded + 8), padded + 8, 32 * pair);
            load_operand(a[1], rows + 16 * m * (padded + 8), padded + 8, 32 * pair + 16);
#pragma unroll
            for (int n = 0; n < kColumnTiles; ++n) {
                device::mma_16x8x16(acc[m][n], a[0], b[n].x, b[n].y);
                device::mma_16x8x16(acc[m][n], a[1], b[n].z, b[n].w);
            }
        }
    }
}

// store(row, column, two neighbours) for every result of `acc` inside [rows][outputs].
template <class Store>
ENMA_DEVICE void for_each_result(const float (&acc)[kRowTiles][kColumnTiles][4], int64_t first, int64_t rows, int tile,
                                 Store store) {
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int64_t row = first + 16 * m + 8 * half + lane() / 4;
            if (row >= rows) continue;
#pragma unroll
            for (int n = 0; n < kColumnTiles; ++n) {
                store(row, (tile + n) * 8 + (lane() % 4) * 2, Pair{acc[m][n][2 * half], acc[m][n][2 * half + 1]});
            }
        }
    }
}

ENMA_DEVICE int count_row_tiles(int64_t first, int64_t rows) {
    const int64_t tiles = (rows - first + 15) / 16;
    return tiles < kRowTiles ? static_cast<int>(tiles) : kRowTiles;
}

}  // namespace flow_head

// Grid: (W / (16 warps) rounded up, M / 64 rounded up). Also brings the counters of the loop to zero.
ENMA_KERNEL(32 * kFlowHeadWarps) flow_condition(const ENMA_PARAMETER FlowConditionArguments p) {
    using namespace flow_head;
    auto* rows = reinterpret_cast<uint16_t*>(device::shared_memory());
    const int64_t first = int64_t{64} * device::block_y();
    if (device::block_x() == 0 && device::block_y() == 0) {
        for (int i = device::thread(); i < p.groups; i += device::threads()) p.counters[32 * i] = 0;
    }
    load_rows(rows, p.c, first, p.rows, p.inputs, p.inputs_padded);
    const int tile = (device::block_x() * warps() + warp()) * kColumnTiles;
    if (tile * 8 >= p.width) return;
    float acc[kRowTiles][kColumnTiles][4] = {};
    multiply_rows(acc, rows, p.weight, tile, p.inputs_padded, count_row_tiles(first, p.rows));
    for (int k = 0; k < p.evaluations; ++k) {
        for_each_result(acc, first, p.rows, tile, [&](int64_t row, int column, Pair y) {
            const float* time = p.time + static_cast<int64_t>(k) * p.width + column;
            y.x += device::load_constant(p.bias + column) + device::load_constant(time);
            y.y += device::load_constant(p.bias + column + 1) + device::load_constant(time + 1);
            p.out[((static_cast<int64_t>(k) * p.rows + row) * p.width + column) / 2] =
                device::pack_bf16(device::silu(y.x), device::silu(y.y));
        });
    }
}

// Grid: (N / (16 warps) rounded up, rows / 64 rounded up), rows = evaluations of the chunk x M.
ENMA_KERNEL(32 * kFlowHeadWarps) flow_modulation(const ENMA_PARAMETER FlowModulationArguments p) {
    using namespace flow_head;
    auto* rows = reinterpret_cast<uint16_t*>(device::shared_memory());
    const int64_t first = int64_t{64} * device::block_y();
    load_rows(rows, p.inputs, first, p.rows, p.width, p.width);
    const int tile = (device::block_x() * warps() + warp()) * kColumnTiles;
    if (tile * 8 >= p.outputs) return;
    float acc[kRowTiles][kColumnTiles][4] = {};
    multiply_rows(acc, rows, p.weight, tile, p.width, count_row_tiles(first, p.rows));
    for_each_result(acc, first, p.rows, tile, [&](int64_t row, int column, Pair y) {
        p.out[(row * p.outputs + column) / 2] = device::pack_bf16(y.x + device::load_constant(p.bias + column),
                                                                  y.y + device::load_constant(p.bias + column + 1));
    });
}

}  // namespace enma
