// The flow head's kernels on CPU threads: reads a problem from a file, writes the result to another.
//
//     flow_head IN OUT WARPS SHARED_LIMIT GROUPS CLUSTER MODULATION_BYTES CHUNKS SKIPPED_SITE
//
// CLUSTER: 0 groups meet at a counter, 1 they are clusters, 2 and store into each other's shared memory.
// Prints how the problem is cut, and does no more than that if OUT is "-". CHUNKS 4 takes the kernel for wide heads.
// IN: seven int64 (FlowHeadSizes), then the arrays of FlowHeadWeights, c and noise, each after its length in bytes.
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <string>

#include "core/cuda/flow_head_steps.cuh"

namespace {

// Exactly as long as the data: the address sanitizer sees the first byte beyond.
struct Array {
    unsigned char* data = nullptr;
    explicit Array(int64_t bytes)
        : data(static_cast<unsigned char*>(::operator new(static_cast<size_t>(bytes), std::align_val_t(256)))) {
        std::memset(data, 0xff, static_cast<size_t>(bytes));
    }
    ~Array() { ::operator delete(data, std::align_val_t(256)); }
    Array(const Array&) = delete;
    Array& operator=(const Array&) = delete;
};

struct Launch {
    const enma::FlowHeadGeometry& g;

    const char* condition(int x, int y, int64_t shared, const enma::FlowConditionArguments& p) const {
        enma::shim::launch(x, y, 32 * g.warps, shared, 1, [&] { enma::flow_condition(p); });
        return nullptr;
    }
    const char* modulation(int x, int y, int64_t shared, const enma::FlowModulationArguments& p) const {
        enma::shim::launch(x, y, 32 * g.warps, shared, 1, [&] { enma::flow_modulation(p); });
        return nullptr;
    }
    const char* loop(int x, int y, int64_t shared, const enma::FlowLoopArguments& p) const {
        enma::shim::launch(x, y, 32 * g.warps, shared, g.group_blocks, [&] {
            if (g.remote) {
                of_tiles<true>(p);
            } else if (g.chunks == 4) {
                g.tiles == 2 ? enma::flow_loop<2, 4, false>(p) : enma::flow_loop<1, 4, false>(p);
            } else {
                of_tiles<false>(p);
            }
        });
        return nullptr;
    }
    template <bool REMOTE>
    void of_tiles(const enma::FlowLoopArguments& p) const {
        if (g.tiles == 4) {
            enma::flow_loop<4, 2, REMOTE>(p);
        } else {
            g.tiles == 2 ? enma::flow_loop<2, 2, REMOTE>(p) : enma::flow_loop<1, 2, REMOTE>(p);
        }
    }
};

int fail(const char* problem) {
    std::fprintf(stderr, "%s\n", problem);
    return 2;
}

}  // namespace

int main(int count, char** arguments) {
    if (count != 10) return fail("IN OUT WARPS SHARED_LIMIT GROUPS CLUSTER MODULATION_BYTES CHUNKS SKIPPED_SITE");
    const int skipped = std::atoi(arguments[9]);
#ifdef ENMA_TEST_SKIP_BARRIER
    enma::shim::skipped_site = skipped;
#else
    if (skipped != 0) return fail("built without ENMA_TEST_SKIP_BARRIER");
#endif
    std::ifstream in(arguments[1], std::ios::binary);
    enma::FlowHeadSizes sizes{};
    in.read(reinterpret_cast<char*>(&sizes), sizeof(sizes));
    enma::FlowHeadGeometry geometry;
    geometry.warps = std::atoi(arguments[3]);
    const int cluster = std::atoi(arguments[6]);
    if (const char* problem = enma::cut_weights(sizes, std::atoll(arguments[4]), cluster == 2, geometry))
        return fail(problem);
    geometry.cluster = cluster != 0;
    if (const char* problem = enma::spread_rows(sizes, std::atoi(arguments[5]), std::atoll(arguments[7]), geometry))
        return fail(problem);
    geometry.chunks = std::max(geometry.chunks, std::atoi(arguments[8]));
    if (geometry.chunks == 4 && geometry.tiles == 4) return fail("no kernel for 4 tiles of 4 chunks");
    std::printf(
        "tiles=%d blocks=%d subtiles=%d groups=%d rows=%d evaluations=%d shared=%d\n", geometry.tiles,
        geometry.group_blocks, geometry.subtiles, geometry.groups, geometry.rows_per_pass, geometry.evaluations,
        static_cast<int>(geometry.shared_bytes));
    if (std::string(arguments[2]) == "-") return 0;

    std::vector<std::unique_ptr<Array>> arrays;
    for (int i = 0; i < 14; ++i) {
        int64_t bytes = 0;
        in.read(reinterpret_cast<char*>(&bytes), sizeof(bytes));
        arrays.push_back(std::make_unique<Array>(bytes));
        in.read(reinterpret_cast<char*>(arrays.back()->data), bytes);
    }
    if (!in) return fail("the input is too short");
    const auto floats = [&](size_t i) { return reinterpret_cast<const float*>(arrays[i]->data); };
    const enma::FlowHeadWeights weights{
        arrays[0]->data, floats(1), floats(2), arrays[3]->data, floats(4), arrays[5]->data, floats(6),
        arrays[7]->data, floats(8), arrays[9]->data, floats(10), floats(11)};

    const Array scratch(enma::FlowHeadScratch(sizes, geometry).total);
    const int64_t out_bytes = sizes.rows * sizes.channels * 4;
    const Array out(out_bytes);
    const enma::FlowHeadTensors tensors{
        arrays[12]->data, floats(13), reinterpret_cast<float*>(out.data), scratch.data};
    Launch launch{geometry};
    if (const char* problem = enma::run_flow_head(sizes, weights, tensors, geometry, launch)) return fail(problem);
    std::ofstream(arguments[2], std::ios::binary).write(reinterpret_cast<const char*>(out.data), out_bytes);
    return 0;
}
