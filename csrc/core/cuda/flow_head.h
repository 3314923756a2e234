// The flow head for few rows on a GPU; see flow_head.cuh. Raw pointers and a stream, no CUDA header.
#pragma once

#include <cstdint>

#include "core/cuda/flow_head_plan.h"

namespace enma {

enum class FlowHeadGroup {
    best,     // cluster, or counter on a GPU without clusters that are large enough
    remote,   // a cluster whose blocks store into each other's shared memory, or an error; no GPU has run it yet
    cluster,  // a cluster that exchanges through L2, or an error
    counter,  // blocks of a cooperative launch, which meet at a counter in global memory, and exchange through L2
};

// How a call is cut over the current device. Returns null, or why it cannot run there.
const char* plan_flow_head_cuda(const FlowHeadSizes& sizes, FlowHeadGroup group, FlowHeadGeometry& geometry);

// Bytes of scratch memory of a call.
int64_t flow_head_cuda_scratch(const FlowHeadSizes& sizes, const FlowHeadGeometry& geometry);

// Starts the kernels on `stream` (a cudaStream_t) of the current device, and returns null or what went wrong. Nothing
// is allocated and nothing waits, so that a CUDA graph can capture it. `c` is [M][D] bf16, aligned to 16 bytes, `noise`
// and `out` are [M][C] fp32; `scratch` is aligned to 256 bytes and in use until the kernels have ended. `geometry` is
// what plan_flow_head_cuda gave for these sizes on this device.
const char* launch_flow_head_cuda(const FlowHeadSizes& sizes, const FlowHeadWeights& weights,
                                  const FlowHeadGeometry& geometry, const void* c, const float* noise, float* out,
                                  void* scratch, void* stream);

}  // namespace enma
