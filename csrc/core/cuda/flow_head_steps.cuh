// The launches of one call of the flow head, in order. `launch` starts a kernel: on the GPU, in tests on threads.
#pragma once

#include "core/cuda/flow_head_plan.h"
#include "core/cuda/flow_loop.cuh"

namespace enma {

struct FlowHeadTensors {
    const void* c;       // [M][D] bf16
    const float* noise;  // [M][C]
    float* out;          // [M][C]
    void* scratch;       // FlowHeadScratch::total bytes, aligned to 256
};

// Launch has condition, modulation and loop, each taking a grid, bytes of shared memory and arguments, and returning
// null or what went wrong.
template <class Launch>
const char* run_flow_head(const FlowHeadSizes& s, const FlowHeadWeights& weights, const FlowHeadTensors& t,
                          const FlowHeadGeometry& g, Launch& launch) {
    const FlowHeadScratch at(s, g);
    auto* scratch = static_cast<unsigned char*>(t.scratch);
    auto* inputs = reinterpret_cast<uint16_t*>(scratch + at.inputs);
    auto* modulation = reinterpret_cast<uint16_t*>(scratch + at.modulation);
    auto* counters = reinterpret_cast<uint32_t*>(scratch + at.counters);
    const auto up = [](int64_t n, int64_t d) { return static_cast<int>((n + d - 1) / d); };
    const int columns = 8 * flow_head::kColumnTiles * g.warps;

    FlowConditionArguments condition{};
    condition.c = static_cast<const uint4*>(t.c);
    condition.weight = static_cast<const uint4*>(weights.condition);
    condition.bias = weights.condition_bias;
    condition.time = weights.time;
    condition.out = reinterpret_cast<uint32_t*>(inputs);
    condition.counters = counters;
    condition.rows = static_cast<int>(s.rows);
    condition.inputs = static_cast<int>(s.condition_width);
    condition.inputs_padded = static_cast<int>(s.condition_padded());
    condition.width = static_cast<int>(s.width);
    condition.evaluations = static_cast<int>(s.evaluations);
    condition.groups = g.groups;
    if (const char* problem = launch.condition(up(s.width, columns), up(s.rows, 64),
                                               flow_head_rows_shared(s.condition_padded()), condition))
        return problem;

    FlowLoopArguments loop{};
    loop.weights = weights;
    loop.modulation = modulation;
    loop.x_out = t.out;
    loop.start = reinterpret_cast<float*>(scratch + at.start);
    loop.residual = reinterpret_cast<uint16_t*>(scratch + at.residual);
    loop.hidden = reinterpret_cast<uint16_t*>(scratch + at.hidden);
    loop.counters = counters;
    loop.rows = static_cast<int>(s.rows);
    loop.channels = static_cast<int>(s.channels);
    loop.width = static_cast<int>(s.width);
    loop.blocks = static_cast<int>(s.blocks);
    loop.modulations = static_cast<int>(s.modulations());
    loop.moves_per_step = static_cast<int>(s.moves_per_step);
    loop.groups = g.groups;
    loop.group_blocks = g.group_blocks;
    loop.rows_per_pass = g.rows_per_pass;
    loop.subtiles = g.subtiles;
    loop.cluster = g.cluster;

    const int evaluations = static_cast<int>(s.evaluations);
    for (int begin = 0; begin < evaluations; begin += g.evaluations) {
        const int end = std::min(begin + g.evaluations, evaluations);
        FlowModulationArguments product{};
        product.inputs = reinterpret_cast<const uint4*>(inputs + begin * s.rows * s.width);
        product.weight = static_cast<const uint4*>(weights.modulation);
        product.bias = weights.modulation_bias;
        product.out = reinterpret_cast<uint32_t*>(modulation);
        product.rows = (end - begin) * s.rows;
        product.width = static_cast<int>(s.width);
        product.outputs = static_cast<int>(s.modulations());
        if (const char* problem = launch.modulation(up(product.outputs, columns), up(product.rows, 64),
                                                    flow_head_rows_shared(s.width), product))
            return problem;
        loop.x_in = begin == 0 ? t.noise : t.out;
        loop.k_begin = begin;
        loop.k_end = end;
        if (const char* problem = launch.loop(g.groups * g.group_blocks, 1, g.shared_bytes, loop)) return problem;
    }
    return nullptr;
}

}  // namespace enma
