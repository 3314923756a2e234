// Kernels of the flow head for few rows: two products before the loop, then all evaluations in one launch.
//
//     s_k = silu(W_c c + b_c + time_k)            flow_condition, all k
//     m_k = W_m s_k + b_m                         flow_modulation, a chunk of k: shift, scale, gate of each block
//     the integration over that chunk             flow_loop
//
// flow_loop keeps the matrices of the blocks in shared memory, spread over a group of thread blocks: each has `tiles`
// tiles of 8 columns of every matrix. A group carries rows of its own through all evaluations and exchanges activations
// through L2, two barriers per block of the network. Input and output projection are small, so every thread block does
// them whole, with its own copy of the state. A row is treated alike wherever it lies: its bits depend on nothing else.
//
// Fragments follow mma.m16n8k16: lane l holds rows l/4 and l/4 + 8, columns 2 (l%4), 2 (l%4) + 1 of a result.
#pragma once

#include "core/cuda/device.cuh"
#include "core/cuda/flow_head_plan.h"
#include "core/cuda/group_barrier.cuh"

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
    kSiteUp = 10,      // hidden activations of all columns are in L2
    kSiteDown = 20,    // y of all columns is in L2
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
    uint16_t* residual;          // [groups][rows_per_pass][W] bf16
    uint16_t* hidden;
    uint32_t* counters;  // [groups][32]
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

// A fragment of 16 rows and 16 inputs that lie in shared memory, `pitch` bf16 from row to row. With a pitch of 8 more
// than a multiple of 32 the lanes meet no bank twice.
ENMA_DEVICE void load_operand(uint32_t (&a)[4], const uint16_t* rows, int pitch, int column) {
    const uint16_t* p = rows + (lane() / 4) * pitch + column + (lane() % 4) * 2;
    a[0] = *reinterpret_cast<const uint32_t*>(p);
    a[1] = *reinterpret_cast<const uint32_t*>(p + 8 * pitch);
    a[2] = *reinterpret_cast<const uint32_t*>(p + 8);
    a[3] = *reinterpret_cast<const uint32_t*>(p + 8 * pitch + 8);
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

namespace flow_head {

// Shift and scale of one row, the pieces of 8 columns of this lane: loaded ahead where there are registers for it, else
// where they are needed.
template <int CHUNKS>
struct Modulation {
    static constexpr bool kAhead = CHUNKS <= 2;
    const uint16_t* from;  // shift, then scale
    int width;
    uint4 pieces[kAhead ? 2 * CHUNKS : 1];

    ENMA_DEVICE Modulation(const uint16_t* row, int columns) : from(row), width(columns) {
        if constexpr (kAhead) {
#pragma unroll
            for (int i = 0; i < CHUNKS; ++i) {
                if ((lane() + 32 * i) * 8 >= width) continue;
                pieces[2 * i] = load(i, 0);
                pieces[2 * i + 1] = load(i, width);
            }
        }
    }
    ENMA_DEVICE uint4 load(int i, int offset) const {
        return device::load_constant(reinterpret_cast<const uint4*>(from + offset + (lane() + 32 * i) * 8));
    }
    ENMA_DEVICE uint4 shift(int i) const {
        if constexpr (kAhead) return pieces[2 * i];
        return load(i, 0);
    }
    ENMA_DEVICE uint4 scale(int i) const {
        if constexpr (kAhead) return pieces[2 * i + 1];
        return load(i, width);
    }
};

ENMA_DEVICE uint32_t modulate(float low, float high, uint32_t shift, uint32_t scale) {
    return device::pack_bf16(low * (1.0f + device::low_bf16(scale)) + device::low_bf16(shift),
                             high * (1.0f + device::high_bf16(scale)) + device::high_bf16(shift));
}

// One warp: to = norm(row) (1 + scale) + shift, in place or not. `load` gives 8 columns of the row.
template <int CHUNKS, class Load>
ENMA_DEVICE void normalise_row(uint16_t* to, Load load, const Modulation<CHUNKS>& m, int width) {
    float v[CHUNKS][8];
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < CHUNKS; ++i) {
        const int column = (lane() + 32 * i) * 8;
        if (column >= width) continue;
        const uint4 packed = load(column);
        const uint32_t words[4] = {packed.x, packed.y, packed.z, packed.w};
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            v[i][2 * j] = device::low_bf16(words[j]);
            v[i][2 * j + 1] = device::high_bf16(words[j]);
            sum += v[i][2 * j] + v[i][2 * j + 1];
        }
    }
    const float mean = device::warp_sum(sum) / static_cast<float>(width);
    float squares = 0.0f;
#pragma unroll
    for (int i = 0; i < CHUNKS; ++i) {
        if ((lane() + 32 * i) * 8 >= width) continue;
#pragma unroll
        for (int j = 0; j < 8; ++j) {
            v[i][j] -= mean;
            squares += v[i][j] * v[i][j];
        }
    }
    const float inverse = device::reciprocal_root(device::warp_sum(squares) / static_cast<float>(width) + kEpsilon);
#pragma unroll
    for (int i = 0; i < CHUNKS; ++i) {
        const int column = (lane() + 32 * i) * 8;
        if (column >= width) continue;
        const uint4 shift = m.shift(i);
        const uint4 scale = m.scale(i);
        uint4 out;
        out.x = modulate(v[i][0] * inverse, v[i][1] * inverse, shift.x, scale.x);
        out.y = modulate(v[i][2] * inverse, v[i][3] * inverse, shift.y, scale.y);
        out.z = modulate(v[i][4] * inverse, v[i][5] * inverse, shift.z, scale.z);
        out.w = modulate(v[i][6] * inverse, v[i][7] * inverse, shift.w, scale.w);
        *reinterpret_cast<uint4*>(to + column) = out;
    }
}

// The share of one thread block in the integration of its group's rows.
template <int TILES, int CHUNKS>
struct Loop {
    using RowModulation = Modulation<CHUNKS>;

    const FlowLoopArguments& p;
    Group group;
    // Shared memory.
    uint4* weights;     // [2L][TILES][W/32][32]
    uint16_t* operand;  // [16][W + 8], or partial sums
    Pair* residual;     // [subtiles][TILES 64]
    float* state;       // [16 subtiles][C]
    float* start;
    float* bias;  // [2L][8 TILES]
    // Global memory of the group.
    uint16_t* residual_all;
    uint16_t* hidden_all;
    // This pass.
    int64_t first;
    int count;
    int pairs_begin, pairs_end, warps_used;

    ENMA_DEVICE Loop(const FlowLoopArguments& arguments, unsigned char* memory) : p(arguments) {
        const int index = device::block_x() / p.group_blocks;
        group = {p.counters + 32 * index, p.group_blocks, device::block_x() % p.group_blocks, p.cluster};
        const int partial = 512 * warps() * TILES;
        const int operand_bytes = 32 * (p.width + 8) > partial ? 32 * (p.width + 8) : partial;
        weights = reinterpret_cast<uint4*>(memory);
        memory += 32 * p.blocks * TILES * p.width;
        operand = reinterpret_cast<uint16_t*>(memory);
        memory += operand_bytes;
        residual = reinterpret_cast<Pair*>(memory);
        memory += 512 * p.subtiles * TILES;
        state = reinterpret_cast<float*>(memory);
        memory += 64 * p.subtiles * p.channels;
        start = reinterpret_cast<float*>(memory);
        memory += 64 * p.subtiles * p.channels;
        bias = reinterpret_cast<float*>(memory);
        const int64_t exchanged = static_cast<int64_t>(index) * p.rows_per_pass * p.width;
        residual_all = p.residual + exchanged;
        hidden_all = p.hidden + exchanged;
        const int pairs = p.width / 32;
        const int share = (pairs + warps() - 1) / warps();
        warps_used = (pairs + share - 1) / share;
        pairs_begin = warp() * share < pairs ? warp() * share : pairs;
        pairs_end = pairs_begin + share < pairs ? pairs_begin + share : pairs;
    }

    ENMA_DEVICE int first_tile() const { return group.rank * TILES; }
    ENMA_DEVICE int pitch() const { return p.width + 8; }
    ENMA_DEVICE int rows_of(int subtile) const { return count - 16 * subtile < 16 ? count - 16 * subtile : 16; }

    ENMA_DEVICE const uint16_t* modulation_of(int k, int row) const {
        return p.modulation + ((k - p.k_begin) * static_cast<int64_t>(p.rows) + first + row) * p.modulations;
    }

    ENMA_DEVICE void load_weights() {
        const int per_matrix = TILES * p.width;  // pieces of 16 bytes
        const auto* from = static_cast<const uint4*>(p.weights.blocks) + int64_t{group.rank} * per_matrix;
        for (int matrix = 0; matrix < 2 * p.blocks; ++matrix) {
            for (int i = device::thread(); i < per_matrix; i += device::threads()) {
                device::copy_async(weights + matrix * per_matrix + i, from + i);
            }
            from += int64_t{p.width} * (p.width / 8);
        }
        for (int i = device::thread(); i < 16 * TILES * p.blocks; i += device::threads()) {
            const int column = 8 * first_tile() + i % (8 * TILES);
            bias[i] = device::load_constant(p.weights.blocks_bias + (i / (8 * TILES)) * p.width + column);
        }
        device::copy_wait();
    }

    ENMA_DEVICE void load_state() {
        for (int i = device::thread(); i < count * p.channels; i += device::threads()) {
            state[i] = p.x_in[first * p.channels + i];
            start[i] = p.k_begin % p.moves_per_step == 0 ? state[i] : p.start[first * p.channels + i];
        }
        device::sync_block<kSitePass>();
    }

    ENMA_DEVICE void store_state() const {
        if (group.rank != 0) return;
        for (int i = device::thread(); i < count * p.channels; i += device::threads()) {
            p.x_out[first * p.channels + i] = state[i];
            p.start[first * p.channels + i] = start[i];
        }
    }

    // y = W_in x + b_in, all columns to the operand in bf16, the own ones also to the residual in fp32.
    ENMA_DEVICE void inward(int subtile) {
        const int steps = (p.channels + 15) / 16;
        uint32_t a[kInwardSteps][4];
#pragma unroll
        for (int s = 0; s < kInwardSteps; ++s) {
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                const int row = lane() / 4 + 8 * (j % 2);
                const int column = 16 * s + (lane() % 4) * 2 + 8 * (j / 2);
                const float* x = state + (16 * subtile + row) * p.channels + column;
                const bool inside = row < rows_of(subtile);
                a[s][j] = device::pack_bf16(inside && column < p.channels ? x[0] : 0.0f,
                                            inside && column + 1 < p.channels ? x[1] : 0.0f);
            }
        }
        const auto* weight = static_cast<const uint2*>(p.weights.inward);
#pragma unroll 4
        for (int tile = warp(); tile < p.width / 8; tile += warps()) {
            float acc[4] = {};
#pragma unroll
            for (int s = 0; s < kInwardSteps; ++s) {
                if (s >= steps) continue;
                const uint2 b = device::load_constant(weight + (tile * steps + s) * 32 + lane());
                device::mma_16x8x16(acc, a[s], b.x, b.y);
            }
            const int column = tile * 8 + (lane() % 4) * 2;
            const float bias_x = device::load_constant(p.weights.inward_bias + column);
            const float bias_y = device::load_constant(p.weights.inward_bias + column + 1);
            const int mine = tile - first_tile();
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const Pair y{acc[2 * half] + bias_x, acc[2 * half + 1] + bias_y};
                const int row = lane() / 4 + 8 * half;
                *reinterpret_cast<uint32_t*>(operand + row * pitch() + column) = device::pack_bf16(y.x, y.y);
                if (0 <= mine && mine < TILES) residual[(subtile * TILES + mine) * 64 + lane() * 2 + half] = y;
            }
        }
        device::sync_block<kSiteInward>();
    }

    // Operand of a product: norm(y) (1 + scale) + shift, from what `inward` left there.
    ENMA_DEVICE void normalise_own(int k, int subtile) {
#pragma unroll 1
        for (int row = warp(); row < rows_of(subtile); row += warps()) {
            const RowModulation m(modulation_of(k, 16 * subtile + row), p.width);
            uint16_t* y = operand + row * pitch();
            normalise_row(y, [&](int column) { return *reinterpret_cast<const uint4*>(y + column); }, m, p.width);
        }
        device::sync_block<kSiteOperand>();
    }

    // Likewise from L2. `early` is the modulation of this warp's first row of the pass.
    ENMA_DEVICE void normalise_exchanged(int k, int subtile, int offset, const RowModulation& early) {
#pragma unroll 1
        for (int row = warp(); row < rows_of(subtile); row += warps()) {
            const int of_pass = 16 * subtile + row;
            RowModulation m = early;
            if (of_pass != warp()) m = RowModulation(modulation_of(k, of_pass) + offset, p.width);
            const auto* y = reinterpret_cast<const uint4*>(residual_all + static_cast<int64_t>(of_pass) * p.width);
            const auto load = [&](int column) { return device::load_exchanged(y + column / 8); };
            normalise_row(operand + row * pitch(), load, m, p.width);
        }
        device::sync_block<kSiteOperand>();
    }

    // Does not depend on other blocks: before a barrier, so that its latency is hidden behind it.
    ENMA_DEVICE RowModulation load_early(int k, int offset) const {
        // Row 0 where this warp has none.
        return RowModulation(modulation_of(k, warp() < count ? warp() : 0) + offset, p.width);
    }

    ENMA_DEVICE void load_hidden(int subtile) {
        const int pieces = p.width / 8;
        const auto* h = reinterpret_cast<const uint4*>(hidden_all + static_cast<int64_t>(16 * subtile) * p.width);
#pragma unroll 4
        for (int i = device::thread(); i < rows_of(subtile) * pieces; i += device::threads()) {
            uint16_t* to = operand + (i / pieces) * pitch() + (i % pieces) * 8;
            *reinterpret_cast<uint4*>(to) = device::load_exchanged(h + i);
        }
        device::sync_block<kSiteOperand>();
    }

    // acc += operand times `tiles` tiles of columns, over this warp's share of the inputs.
    template <int MOST, class Load>
    ENMA_DEVICE void multiply(float (&acc)[MOST][4], int tiles, Load load) const {
        const int pairs = p.width / 32;
#pragma unroll(MOST > kFlowHeadMaxTiles ? 1 : 2)
        for (int pair = pairs_begin; pair < pairs_end; ++pair) {
            uint32_t a[2][4];
            load_operand(a[0], operand, pitch(), 32 * pair);
            load_operand(a[1], operand, pitch(), 32 * pair + 16);
#pragma unroll
            for (int t = 0; t < MOST; ++t) {
                if (t >= tiles) continue;
                const uint4 b = load((t * pairs + pair) * 32 + lane());
                device::mma_16x8x16(acc[t], a[0], b.x, b.y);
                device::mma_16x8x16(acc[t], a[1], b.z, b.w);
            }
        }
    }

    // The first `tiles` of `acc` to the partial sums.
    ENMA_DEVICE void put_partial(const float (*acc)[4], int tiles) {
        if (warp() < warps_used) {
            auto* to = reinterpret_cast<uint4*>(operand) + warp() * TILES * 32 + lane();
#pragma unroll
            for (int t = 0; t < TILES; ++t) {
                if (t >= tiles) continue;
                *reinterpret_cast<Quad*>(to + 32 * t) = Quad{acc[t][0], acc[t][1], acc[t][2], acc[t][3]};
            }
        }
        device::sync_block<kSitePartial>();
    }

    // use(i, row in the subtile, column, sum over the warps) for every pair of results in `tiles` tiles.
    template <class Use>
    ENMA_DEVICE void for_each_sum(int tiles, Use use) const {
        const auto* partial = reinterpret_cast<const Pair*>(operand);
        for (int i = device::thread(); i < 64 * tiles; i += device::threads()) {
            Pair sum = partial[i];
            for (int w = 1; w < warps_used; ++w) {
                const Pair more = partial[w * 64 * TILES + i];
                sum.x += more.x;
                sum.y += more.y;
            }
            const int of_lane = i % 64 / 2;
            use(i, of_lane / 4 + 8 * (i % 2), i / 64 * 8 + (of_lane % 4) * 2, sum);
        }
        device::sync_block<kSiteNext>();
    }

    // The operand times this block's columns of one matrix.
    template <class Use>
    ENMA_DEVICE void multiply_own(int matrix, Use use) {
        float acc[TILES][4] = {};
        const uint4* b = weights + matrix * TILES * p.width;
        multiply(acc, TILES, [&](int i) { return b[i]; });
        device::sync_block<kSiteProduct>();
        put_partial(acc, TILES);
        for_each_sum(TILES, use);
    }

    ENMA_DEVICE void put_exchanged(uint16_t* all, int of_pass, int column, Pair value) const {
        const int64_t at = static_cast<int64_t>(of_pass) * p.width + 8 * first_tile() + column;
        *reinterpret_cast<uint32_t*>(all + at) = device::pack_bf16(value.x, value.y);
    }

    // hidden = silu(W_up operand + b_up)
    ENMA_DEVICE void up(int subtile, int block) {
        const float* b = bias + 16 * TILES * block;
        multiply_own(2 * block, [&](int, int row, int column, Pair y) {
            if (row >= rows_of(subtile)) return;
            y = {device::silu(y.x + b[column]), device::silu(y.y + b[column + 1])};
            put_exchanged(hidden_all, 16 * subtile + row, column, y);
        });
    }

    // y += gate (W_down hidden + b_down)
    ENMA_DEVICE void down(int k, int subtile, int block) {
        const float* b = bias + 16 * TILES * block + 8 * TILES;
        const int gate_offset = (3 * block + 2) * p.width + 8 * first_tile();
        multiply_own(2 * block + 1, [&](int i, int row, int column, Pair v) {
            if (row >= rows_of(subtile)) return;
            const uint16_t* gates = modulation_of(k, 16 * subtile + row) + gate_offset + column;
            const uint32_t gate = device::load_constant(reinterpret_cast<const uint32_t*>(gates));
            Pair& y = residual[subtile * TILES * 64 + i];
            y.x += device::low_bf16(gate) * (v.x + b[column]);
            y.y += device::high_bf16(gate) * (v.y + b[column + 1]);
            put_exchanged(residual_all, 16 * subtile + row, column, y);
        });
    }

    ENMA_DEVICE void move(int k, int row, int column, float velocity) {
        if (column >= p.channels) return;
        const int i = row * p.channels + column;
        if (k % p.moves_per_step == 0) start[i] = state[i];
        state[i] = start[i] + device::load_constant(p.weights.moves + k) * velocity;
    }

    // x = start + h (W_out operand + b_out), all channels.
    ENMA_DEVICE void outward(int k, int subtile) {
        const int tiles = (p.channels + 7) / 8;
        float acc[kOutwardTiles][4] = {};
        const auto* b = static_cast<const uint4*>(p.weights.outward);
        multiply(acc, tiles, [&](int i) { return device::load_constant(b + i); });
        device::sync_block<kSiteProduct>();
#pragma unroll
        for (int batch = 0; batch < kOutwardTiles; batch += TILES) {
            if (batch >= tiles) continue;
            const int in_batch = tiles - batch < TILES ? tiles - batch : TILES;
            put_partial(acc + batch, in_batch);
            for_each_sum(in_batch, [&](int, int row, int column, Pair v) {
                if (row >= rows_of(subtile)) return;
                column += 8 * batch;
                v.x += device::load_constant(p.weights.outward_bias + column);
                v.y += device::load_constant(p.weights.outward_bias + column + 1);
                move(k, 16 * subtile + row, column, v.x);
                move(k, 16 * subtile + row, column + 1, v.y);
            });
        }
    }

    ENMA_DEVICE void evaluate(int k, int subtiles) {
#pragma unroll 1
        for (int block = 0; block < p.blocks; ++block) {
            const int offset = 3 * block * p.width;
            if (block == 0) {
#pragma unroll 1
                for (int t = 0; t < subtiles; ++t) {
                    inward(t);
                    normalise_own(k, t);
                    up(t, block);
                }
            } else {
                const RowModulation early = load_early(k, offset);
                sync_group<kSiteDown>(group);
#pragma unroll 1
                for (int t = 0; t < subtiles; ++t) {
                    normalise_exchanged(k, t, offset, early);
                    up(t, block);
                }
            }
            sync_group<kSiteUp>(group);
#pragma unroll 1
            for (int t = 0; t < subtiles; ++t) {
                load_hidden(t);
                down(k, t, block);
            }
        }
        const RowModulation early = load_early(k, 3 * p.blocks * p.width);
        sync_group<kSiteDown>(group);
#pragma unroll 1
        for (int t = 0; t < subtiles; ++t) {
            normalise_exchanged(k, t, 3 * p.blocks * p.width, early);
            outward(k, t);
        }
    }

    ENMA_DEVICE void run() {
        load_weights();
        const int index = device::block_x() / p.group_blocks;
        for (first = static_cast<int64_t>(index) * p.rows_per_pass; first < p.rows;
             first += static_cast<int64_t>(p.groups) * p.rows_per_pass) {
            count = p.rows - first < p.rows_per_pass ? static_cast<int>(p.rows - first) : p.rows_per_pass;
            load_state();
#pragma unroll 1
            for (int k = p.k_begin; k < p.k_end; ++k) evaluate(k, (count + 15) / 16);
            store_state();
        }
    }
};

}  // namespace flow_head

// W <= 256 CHUNKS. Grid: groups x group_blocks, all running at the same time; with clusters, a cluster is a group.
template <int TILES, int CHUNKS>
ENMA_KERNEL(32 * kFlowHeadWarps)
flow_loop(const ENMA_PARAMETER FlowLoopArguments p) {
    flow_head::Loop<TILES, CHUNKS>(p, device::shared_memory()).run();
}

}  // namespace enma
