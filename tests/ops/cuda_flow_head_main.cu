// The flow head's CUDA kernels alone, for compute-sanitizer: no PyTorch, every array an allocation of its own.
//
//     flow_head_check
//
// Runs a small head with all ways in which thread blocks hand activations on, and compares what they give. Exit status
// 1 if they differ or are not finite, 0 with a word where this GPU has no such clusters.
#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>
#include <vector>

#include "core/cuda/flow_head.h"

namespace {

void must(cudaError_t status, const char* what) {
    if (status == cudaSuccess) return;
    std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(status));
    std::exit(1);
}

// Exactly as long as the data, so that a step over its end is seen.
template <class T>
class Array {
public:
    explicit Array(const std::vector<T>& values) : bytes_(values.size() * sizeof(T)) {
        must(cudaMalloc(&data_, bytes_), "cudaMalloc");
        must(cudaMemcpy(data_, values.data(), bytes_, cudaMemcpyHostToDevice), "cudaMemcpy");
    }
    ~Array() { cudaFree(data_); }
    Array(const Array&) = delete;
    Array& operator=(const Array&) = delete;
    T* get() const { return static_cast<T*>(data_); }
    std::vector<T> host() const {
        std::vector<T> values(bytes_ / sizeof(T));
        must(cudaMemcpy(values.data(), data_, bytes_, cudaMemcpyDeviceToHost), "cudaMemcpy");
        return values;
    }

private:
    void* data_ = nullptr;
    size_t bytes_;
};

// Numbers between -scale and scale, the same every time.
class Numbers {
public:
    std::vector<float> floats(int64_t count, float scale) {
        std::vector<float> values(static_cast<size_t>(count));
        for (float& value : values) {
            state_ = state_ * 6364136223846793005ULL + 1442695040888963407ULL;
            value = scale * (static_cast<float>(state_ >> 40) / static_cast<float>(1 << 23) - 1.0F);
        }
        return values;
    }
    // bf16 by its upper bits.
    std::vector<uint16_t> halves(int64_t count, float scale) {
        std::vector<uint16_t> values;
        for (const float value : floats(count, scale)) {
            uint32_t bits;
            std::memcpy(&bits, &value, sizeof bits);
            values.push_back(static_cast<uint16_t>(bits >> 16));
        }
        return values;
    }

private:
    uint64_t state_ = 1;
};

}  // namespace

int main() {
    const enma::FlowHeadSizes s{.rows = 19, .channels = 5, .condition_width = 72, .width = 128, .blocks = 2,
                                .evaluations = 4, .moves_per_step = 2};
    Numbers numbers;
    const float small = 0.1F;
    const Array<uint16_t> condition(numbers.halves(s.width * s.condition_padded(), small));
    const Array<float> condition_bias(numbers.floats(s.width, small)), time(numbers.floats(s.evaluations * s.width, 1));
    const Array<uint16_t> modulation(numbers.halves(s.modulations() * s.width, small));
    const Array<float> modulation_bias(numbers.floats(s.modulations(), small));
    const Array<uint16_t> inward(numbers.halves(s.width * 16 * s.inward_steps(), small));
    const Array<float> inward_bias(numbers.floats(s.width, small));
    const Array<uint16_t> blocks(numbers.halves(2 * s.blocks * s.width * s.width, small));
    const Array<float> blocks_bias(numbers.floats(2 * s.blocks * s.width, small));
    const Array<uint16_t> outward(numbers.halves(8 * s.outward_tiles() * s.width, small));
    const Array<float> outward_bias(numbers.floats(8 * s.outward_tiles(), small));
    const Array<float> moves(std::vector<float>{0.25F, 0.5F, 0.25F, 0.5F});
    const enma::FlowHeadWeights weights{
        condition.get(), condition_bias.get(), time.get(), modulation.get(), modulation_bias.get(), inward.get(),
        inward_bias.get(), blocks.get(), blocks_bias.get(), outward.get(), outward_bias.get(), moves.get()};
    const Array<uint16_t> c(numbers.halves(s.rows * s.condition_width, 1));
    const Array<float> noise(numbers.floats(s.rows * s.channels, 1));

    using Group = enma::FlowHeadGroup;
    std::vector<float> first;
    for (const auto& [group, name] : {std::pair{Group::counter, "counter"}, std::pair{Group::cluster, "cluster"},
                                      std::pair{Group::remote, "remote"}}) {
        enma::FlowHeadGeometry geometry;
        if (const char* problem = enma::plan_flow_head_cuda(s, group, geometry)) {
            std::fprintf(stderr, "%s: %s\n", name, problem);
            if (group == Group::counter) return 1;
            continue;
        }
        // As planned, and all rows by one group, which takes several passes, and several launches.
        for (const bool squeezed : {false, true}) {
            if (squeezed) enma::spread_rows(s, 1, 1, geometry);
            const Array<unsigned char> scratch(
                std::vector<unsigned char>(static_cast<size_t>(enma::flow_head_cuda_scratch(s, geometry)), 0xff));
            const Array<float> out(std::vector<float>(static_cast<size_t>(s.rows * s.channels), NAN));
            if (const char* problem = enma::launch_flow_head_cuda(
                    s, weights, geometry, c.get(), noise.get(), out.get(), scratch.get(), nullptr)) {
                std::fprintf(stderr, "launch: %s\n", problem);
                return 1;
            }
            must(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
            const std::vector<float> found = out.host();
            if (first.empty()) first = found;
            for (size_t i = 0; i < found.size(); ++i) {
                if (!std::isfinite(found[i])) {
                    std::fprintf(stderr, "%s: not finite\n", name);
                    return 1;
                }
                // The bits of a row do not depend on how it is computed.
                if (found[i] != first[i]) {
                    std::fprintf(stderr, "%s: value %zu is %g, by counter %g\n", name, i, found[i], first[i]);
                    return 1;
                }
            }
        }
        std::printf("%s: ok\n", name);
    }
    return 0;
}
