// The flow head's loop; see flow_head.cuh.
#pragma once

#include "core/cuda/flow_head.cuh"
#include "core/cuda/group_barrier.cuh"

namespace enma {

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
//
// REMOTE: y and the hidden activations have a mailbox each, where they are the operand of the next product and then its
// partial sums. A block stores into y of the others when it has all hidden activations, and each thread sends its own
// after it has read the sums that lie where y will come: so nobody writes what is still read, and likewise the other
// way round.
template <int TILES, int CHUNKS, bool REMOTE>
struct Loop {
    using RowModulation = Modulation<CHUNKS>;
    static constexpr int kHalves = REMOTE ? 1 : 2;  // of the 16 rows of a product
    static constexpr int kPairs = 32 * kHalves;     // of results in a tile

    const FlowLoopArguments& p;
    Group group;
    // Shared memory.
    uint4* weights;     // [2L][TILES][W/32][32]
    uint16_t* operand;  // [8 kHalves][W + 8], or partial sums
    Pair* residual;     // [subtiles][TILES kPairs]
    float* state;       // [8 kHalves subtiles][C]
    float* start;
    float* bias;  // [2L][8 TILES]
    Mailbox y, hidden;
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
        y.rows = operand;
        hidden.rows = operand + operand_bytes / 4;
        memory += operand_bytes;
        residual = reinterpret_cast<Pair*>(memory);
        memory += 8 * kPairs * p.subtiles * TILES;
        y.barrier = reinterpret_cast<uint64_t*>(memory);
        hidden.barrier = y.barrier + 1;
        y.phase = hidden.phase = 0;
        if (REMOTE) memory += 16;
        state = reinterpret_cast<float*>(memory);
        memory += 32 * kHalves * p.subtiles * p.channels;
        start = reinterpret_cast<float*>(memory);
        memory += 32 * kHalves * p.subtiles * p.channels;
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
    ENMA_DEVICE uint32_t exchanged_bytes() const { return static_cast<uint32_t>(2 * count * p.width); }

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
                const bool inside = j % 2 < kHalves && row < rows_of(subtile);
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
            for (int half = 0; half < kHalves; ++half) {
                const Pair v{acc[2 * half] + bias_x, acc[2 * half + 1] + bias_y};
                const int row = lane() / 4 + 8 * half;
                *reinterpret_cast<uint32_t*>(operand + row * pitch() + column) = device::pack_bf16(v.x, v.y);
                if (mine < 0 || mine >= TILES) continue;
                residual[(subtile * TILES + mine) * kPairs + lane() * kHalves + half] = v;
            }
        }
        device::sync_block<kSiteInward>();
    }

    // Operand of a product: norm(y) (1 + scale) + shift, from what lies there. `early` is the modulation of this warp's
    // first row of the pass.
    ENMA_DEVICE void normalise_here(int k, int subtile, int offset, const RowModulation& early) {
#pragma unroll 1
        for (int row = warp(); row < rows_of(subtile); row += warps()) {
            RowModulation m = early;
            if (16 * subtile + row != warp()) m = RowModulation(modulation_of(k, 16 * subtile + row) + offset, p.width);
            uint16_t* at = operand + row * pitch();
            normalise_row(at, [&](int column) { return *reinterpret_cast<const uint4*>(at + column); }, m, p.width);
        }
        device::sync_block<kSiteOperand>();
    }

    // Likewise from L2.
    ENMA_DEVICE void normalise_exchanged(int k, int subtile, int offset, const RowModulation& early) {
#pragma unroll 1
        for (int row = warp(); row < rows_of(subtile); row += warps()) {
            const int of_pass = 16 * subtile + row;
            RowModulation m = early;
            if (of_pass != warp()) m = RowModulation(modulation_of(k, of_pass) + offset, p.width);
            const auto* from = reinterpret_cast<const uint4*>(residual_all + static_cast<int64_t>(of_pass) * p.width);
            const auto load = [&](int column) { return device::load_exchanged(from + column / 8); };
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
            load_operand<kHalves>(a[0], operand, pitch(), 32 * pair);
            load_operand<kHalves>(a[1], operand, pitch(), 32 * pair + 16);
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
#pragma unroll
            for (int t = 0; t < TILES; ++t) {
                if (t >= tiles) continue;
                Pair* to = reinterpret_cast<Pair*>(operand) + ((warp() * TILES + t) * 32 + lane()) * kHalves;
                if constexpr (REMOTE) {
                    *to = Pair{acc[t][0], acc[t][1]};
                } else {
                    *reinterpret_cast<Quad*>(to) = Quad{acc[t][0], acc[t][1], acc[t][2], acc[t][3]};
                }
            }
        }
        device::sync_block<kSitePartial>();
    }

    // use(i, row of the subtile, column, sum over the warps) for every pair of results in `tiles` tiles and `rows`
    // rows; the four lanes that have eight neighbours do so together.
    template <class Use>
    ENMA_DEVICE void for_each_sum(int tiles, int rows, Use use) const {
        const auto* partial = reinterpret_cast<const Pair*>(operand);
        for (int i = device::thread(); i < kPairs * tiles; i += device::threads()) {
            const int of_lane = i % kPairs / kHalves;
            const int row = of_lane / 4 + 8 * (i % kHalves);
            // REMOTE: who sends nothing must not read here, since nothing would say that it has.
            if (row >= rows) continue;
            Pair sum = partial[i];
            for (int w = 1; w < warps_used; ++w) {
                const Pair more = partial[w * kPairs * TILES + i];
                sum.x += more.x;
                sum.y += more.y;
            }
            use(i, row, i / kPairs * 8 + (of_lane % 4) * 2, sum);
        }
    }

    // The operand, of so many rows, times this block's columns of one matrix.
    template <class Use>
    ENMA_DEVICE void multiply_own(int matrix, int rows, Use use) {
        float acc[TILES][4] = {};
        const uint4* b = weights + matrix * TILES * p.width;
        multiply(acc, TILES, [&](int i) { return b[i]; });
        device::sync_block<kSiteProduct>();
        put_partial(acc, TILES);
        for_each_sum(TILES, rows, use);
        // REMOTE: what is written there next comes from blocks that have had all sums of this one.
        if (!REMOTE) device::sync_block<kSiteNext>();
    }

    ENMA_DEVICE void put_exchanged(const Mailbox& box, uint16_t* all, int of_pass, int column, Pair value) const {
        column += 8 * first_tile();
        const uint32_t pair = device::pack_bf16(value.x, value.y);
        if constexpr (REMOTE) {
            post(box, of_pass * pitch() + column, pair, group.rank, group.blocks);
        } else {
            *reinterpret_cast<uint32_t*>(all + static_cast<int64_t>(of_pass) * p.width + column) = pair;
        }
    }

    // hidden = silu(W_up operand + b_up)
    ENMA_DEVICE void up(int subtile, int block) {
        const float* b = bias + 16 * TILES * block;
        multiply_own(2 * block, rows_of(subtile), [&](int, int row, int column, Pair v) {
            v = {device::silu(v.x + b[column]), device::silu(v.y + b[column + 1])};
            put_exchanged(hidden, hidden_all, 16 * subtile + row, column, v);
        });
    }

    // y += gate (W_down hidden + b_down)
    ENMA_DEVICE void down(int k, int subtile, int block) {
        const float* b = bias + 16 * TILES * block + 8 * TILES;
        const int gate_offset = (3 * block + 2) * p.width + 8 * first_tile();
        multiply_own(2 * block + 1, rows_of(subtile), [&](int i, int row, int column, Pair v) {
            const uint16_t* gates = modulation_of(k, 16 * subtile + row) + gate_offset + column;
            const uint32_t gate = device::load_constant(reinterpret_cast<const uint32_t*>(gates));
            Pair& own = residual[subtile * TILES * kPairs + i];
            own.x += device::low_bf16(gate) * (v.x + b[column]);
            own.y += device::high_bf16(gate) * (v.y + b[column + 1]);
            put_exchanged(y, residual_all, 16 * subtile + row, column, own);
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
            for_each_sum(in_batch, rows_of(subtile), [&](int, int row, int column, Pair v) {
                column += 8 * batch;
                v.x += device::load_constant(p.weights.outward_bias + column);
                v.y += device::load_constant(p.weights.outward_bias + column + 1);
                move(k, 16 * subtile + row, column, v.x);
                move(k, 16 * subtile + row, column + 1, v.y);
            });
            device::sync_block<kSiteNext>();
        }
    }

    // y of all columns, normalised, as the operand of what follows.
    ENMA_DEVICE void take_y(int k, int subtile, int offset, const RowModulation& early) {
        if constexpr (REMOTE) {
            normalise_here(k, subtile, offset, early);
        } else {
            normalise_exchanged(k, subtile, offset, early);
        }
    }

    ENMA_DEVICE void wait_for_y() {
        if constexpr (REMOTE) {
            collect<kSiteDown>(y, exchanged_bytes());
            operand = y.rows;
        } else {
            sync_group<kSiteDown>(group);
        }
    }

    ENMA_DEVICE void wait_for_hidden() {
        if constexpr (REMOTE) {
            collect<kSiteUp>(hidden, exchanged_bytes());
            operand = hidden.rows;
        } else {
            sync_group<kSiteUp>(group);
        }
    }

    ENMA_DEVICE void evaluate(int k, int subtiles) {
#pragma unroll 1
        for (int block = 0; block < p.blocks; ++block) {
            const int offset = 3 * block * p.width;
            const RowModulation early = load_early(k, offset);
            if (block == 0) {
#pragma unroll 1
                for (int t = 0; t < subtiles; ++t) {
                    inward(t);
                    normalise_here(k, t, offset, early);
                    up(t, block);
                }
            } else {
                wait_for_y();
#pragma unroll 1
                for (int t = 0; t < subtiles; ++t) {
                    take_y(k, t, offset, early);
                    up(t, block);
                }
            }
            wait_for_hidden();
#pragma unroll 1
            for (int t = 0; t < subtiles; ++t) {
                if constexpr (!REMOTE) load_hidden(t);
                down(k, t, block);
            }
        }
        const RowModulation early = load_early(k, 3 * p.blocks * p.width);
        wait_for_y();
#pragma unroll 1
        for (int t = 0; t < subtiles; ++t) {
            take_y(k, t, 3 * p.blocks * p.width, early);
            outward(k, t);
        }
    }

    ENMA_DEVICE void run() {
        if constexpr (REMOTE) {
            if (device::thread() == 0) {
                device::init_barrier(y.barrier);
                device::init_barrier(hidden.barrier);
            }
            device::arrive_at_cluster();
        }
        load_weights();
        if constexpr (REMOTE) device::wait_for_cluster<kSiteBegin>();
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
template <int TILES, int CHUNKS, bool REMOTE>
ENMA_KERNEL(32 * kFlowHeadWarps)
flow_loop(const ENMA_PARAMETER FlowLoopArguments p) {
    flow_head::Loop<TILES, CHUNKS, REMOTE>(p, device::shared_memory()).run();
}

}  // namespace enma
