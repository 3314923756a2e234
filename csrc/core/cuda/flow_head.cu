#include "core/cuda/flow_head.h"

#include <cuda_runtime.h>

#include <map>
#include <mutex>
#include <tuple>

#include "core/cuda/flow_head_steps.cuh"

namespace enma {
namespace {

const char* reason(cudaError_t error) {
    if (error == cudaSuccess) return nullptr;
    // Takes the error back, so that the caller's next check does not find it.
    cudaGetLastError();
    return cudaGetErrorString(error);
}

using Loop = void (*)(FlowLoopArguments);

template <bool REMOTE>
Loop of_tiles(int tiles) {
    return tiles == 4 ? flow_loop<4, 2, REMOTE> : tiles == 2 ? flow_loop<2, 2, REMOTE> : flow_loop<1, 2, REMOTE>;
}

// A cluster has at most 16 blocks, so that REMOTE is for heads of two chunks.
Loop loop_kernel(const FlowHeadGeometry& g) {
    if (g.remote) return of_tiles<true>(g.tiles);
    if (g.chunks == 2) return of_tiles<false>(g.tiles);
    return g.tiles == 2 ? flow_loop<2, 4, false> : flow_loop<1, 4, false>;
}

template <class Kernel>
const char* allow_shared(Kernel kernel, int64_t bytes) {
    return reason(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)));
}

struct Device {
    int index = 0;
    int multiprocessors = 0;
    int shared_limit = 0;
    int major = 0;
};

const char* current_device(Device& d) {
    cudaError_t error = cudaGetDevice(&d.index);
    const auto ask = [&](int& value, cudaDeviceAttr attribute) {
        if (error == cudaSuccess) error = cudaDeviceGetAttribute(&value, attribute, d.index);
    };
    ask(d.multiprocessors, cudaDevAttrMultiProcessorCount);
    ask(d.shared_limit, cudaDevAttrMaxSharedMemoryPerBlockOptin);
    ask(d.major, cudaDevAttrComputeCapabilityMajor);
    return reason(error);
}

// A launch configuration; not copied, since it points into itself.
struct Configuration {
    cudaLaunchConfig_t config{};
    cudaLaunchAttribute attribute{};

    Configuration(int grid_x, int grid_y, int threads, int64_t shared, cudaStream_t stream) {
        config.gridDim = dim3(static_cast<unsigned>(grid_x), static_cast<unsigned>(grid_y));
        config.blockDim = dim3(static_cast<unsigned>(threads));
        config.dynamicSmemBytes = static_cast<size_t>(shared);
        config.stream = stream;
    }
    Configuration(const Configuration&) = delete;
    Configuration& operator=(const Configuration&) = delete;

    void group(const FlowHeadGeometry& g) {
        if (g.cluster) {
            attribute.id = cudaLaunchAttributeClusterDimension;
            attribute.val.clusterDim.x = static_cast<unsigned>(g.group_blocks);
            attribute.val.clusterDim.y = 1;
            attribute.val.clusterDim.z = 1;
        } else {
            attribute.id = cudaLaunchAttributeCooperative;
            attribute.val.cooperative = 1;
        }
        config.attrs = &attribute;
        config.numAttrs = 1;
    }
};

// Clusters of this geometry that run at the same time; 0 where they cannot.
int clusters_at_once(const Device& d, const FlowHeadGeometry& g) {
    if (d.major < 9 || g.group_blocks > kFlowHeadClusterLimit) return 0;
    const Loop kernel = loop_kernel(g);
    // PTX of an older target, compiled by the driver for this GPU, has no cluster barrier.
    cudaFuncAttributes attributes{};
    if (reason(cudaFuncGetAttributes(&attributes, kernel)) != nullptr || attributes.ptxVersion < 90) return 0;
    if (g.group_blocks > 8 &&
        reason(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1)) != nullptr)
        return 0;
    FlowHeadGeometry cluster = g;
    cluster.cluster = true;
    Configuration configuration(g.group_blocks, 1, 32 * g.warps, g.shared_bytes, nullptr);
    configuration.group(cluster);
    int clusters = 0;
    if (reason(cudaOccupancyMaxActiveClusters(&clusters, kernel, &configuration.config)) != nullptr) return 0;
    return clusters;
}

int counted_groups_at_once(const Device& d, const FlowHeadGeometry& g) {
    int blocks = 0;
    if (reason(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, loop_kernel(g), 32 * g.warps,
                                                             static_cast<size_t>(g.shared_bytes))) != nullptr)
        return 0;
    return blocks * d.multiprocessors / g.group_blocks;
}

struct Room {
    int clusters = 0;
    int counted = 0;
};

// Asked once per device and geometry: the answers cost microseconds.
const char* room_on(const Device& d, const FlowHeadGeometry& g, Room& room) {
    static std::mutex mutex;
    static std::map<std::tuple<int, int, int, int, int64_t, bool>, Room> known;
    const std::lock_guard<std::mutex> lock(mutex);
    const auto key = std::make_tuple(d.index, g.tiles, g.chunks, g.group_blocks, g.shared_bytes, g.remote);
    const auto found = known.find(key);
    if (found == known.end()) {
        // The whole limit, so that no later geometry lowers what an earlier one asked for.
        if (const char* problem = allow_shared(loop_kernel(g), d.shared_limit)) return problem;
        if (const char* problem = allow_shared(flow_condition, d.shared_limit)) return problem;
        if (const char* problem = allow_shared(flow_modulation, d.shared_limit)) return problem;
        room = {clusters_at_once(d, g), counted_groups_at_once(d, g)};
        known.emplace(key, room);
        return nullptr;
    }
    room = found->second;
    return nullptr;
}

struct Launch {
    const FlowHeadGeometry& geometry;
    cudaStream_t stream;

    const char* condition(int grid_x, int grid_y, int64_t shared, const FlowConditionArguments& arguments) const {
        const Configuration c(grid_x, grid_y, 32 * geometry.warps, shared, stream);
        return reason(cudaLaunchKernelEx(&c.config, flow_condition, arguments));
    }
    const char* modulation(int grid_x, int grid_y, int64_t shared, const FlowModulationArguments& arguments) const {
        const Configuration c(grid_x, grid_y, 32 * geometry.warps, shared, stream);
        return reason(cudaLaunchKernelEx(&c.config, flow_modulation, arguments));
    }
    const char* loop(int grid_x, int grid_y, int64_t shared, const FlowLoopArguments& arguments) const {
        Configuration c(grid_x, grid_y, 32 * geometry.warps, shared, stream);
        c.group(geometry);
        return reason(cudaLaunchKernelEx(&c.config, loop_kernel(geometry), arguments));
    }
};

}  // namespace

const char* plan_flow_head_cuda(const FlowHeadSizes& sizes, FlowHeadGroup group, FlowHeadGeometry& geometry) {
    Device device;
    if (const char* problem = current_device(device)) return problem;
    if (device.major < 8) return "needs compute capability 8.0 or newer";
    geometry = FlowHeadGeometry{};
    const bool remote = group == FlowHeadGroup::remote;
    if (const char* problem = cut_weights(sizes, device.shared_limit, remote, geometry)) return problem;
    Room room;
    if (const char* problem = room_on(device, geometry, room)) return problem;
    geometry.cluster = remote || group == FlowHeadGroup::cluster || (group == FlowHeadGroup::best && room.clusters > 0);
    const int groups = geometry.cluster ? room.clusters : room.counted;
    return spread_rows(sizes, groups, kFlowHeadModulationBytes, geometry);
}

int64_t flow_head_cuda_scratch(const FlowHeadSizes& sizes, const FlowHeadGeometry& geometry) {
    return FlowHeadScratch(sizes, geometry).total;
}

const char* launch_flow_head_cuda(const FlowHeadSizes& sizes, const FlowHeadWeights& weights,
                                  const FlowHeadGeometry& geometry, const void* c, const float* noise, float* out,
                                  void* scratch, void* stream) {
    if (sizes.rows == 0) return nullptr;
    Launch launch{geometry, static_cast<cudaStream_t>(stream)};
    return run_flow_head(sizes, weights, FlowHeadTensors{c, noise, out, scratch}, geometry, launch);
}

}  // namespace enma
