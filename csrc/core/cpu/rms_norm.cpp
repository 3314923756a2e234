#include "core/cpu/rms_norm.h"

#include <algorithm>
#include <cstddef>

#include "core/cpu/parallel.h"
#include "core/cpu/vector_kernels.h"

namespace enma {

namespace {

// Fewer values are not worth waking a thread.
constexpr int64_t VALUES_PER_THREAD = 16384;
// Rows are summed in so many blocks at most, of at least so many rows: by their number alone, so that the bits of a sum
// do not depend on threads.
constexpr int64_t MAX_BLOCKS = 64, MIN_BLOCK_ROWS = 16;

int useful_threads(const RmsNorm& g, int64_t parts) {
    const int64_t most = std::min(parts, 1 + g.rows * g.width / VALUES_PER_THREAD);
    return static_cast<int>(std::clamp<int64_t>(g.threads, 1, std::max<int64_t>(most, 1)));
}

}  // namespace

void rms_norm_forward(const RmsNorm& g, const RmsNormForward& f, Isa isa) {
    const RmsNormKernels& kernels = vector_kernels(isa).rms_norm;
    const int threads = useful_threads(g, g.rows);
    const int64_t work = RMS_NORM_WORK_ROWS * padded_width(g.width);
    const Scratch scratch(sizeof(float) * static_cast<std::size_t>(threads * work));
    float* base = reinterpret_cast<float*>(scratch.data());
    parallel(threads, [&](int thread, int n) {
        kernels.forward(g, f, g.rows * thread / n, g.rows * (thread + 1) / n, base + thread * work);
    });
}

void rms_norm_backward(const RmsNorm& g, const RmsNormBackward& b, Isa isa) {
    const RmsNormKernels& kernels = vector_kernels(isa).rms_norm;
    const int64_t block_rows = std::max(MIN_BLOCK_ROWS, (g.rows + MAX_BLOCKS - 1) / MAX_BLOCKS);
    const int64_t blocks = (g.rows + block_rows - 1) / block_rows;
    const int threads = useful_threads(g, blocks);
    const int64_t padded = padded_width(g.width), work = RMS_NORM_WORK_ROWS * padded;
    const Scratch scratch(sizeof(float) * static_cast<std::size_t>(threads * work + blocks * padded));
    float* base = reinterpret_cast<float*>(scratch.data());
    float* sums = base + threads * work;
    std::fill(sums, sums + blocks * padded, 0.0f);
    parallel(threads, [&](int thread, int n) {
        for (int64_t block = thread; block < blocks; block += n) {
            const int64_t begin = block * block_rows, end = std::min(g.rows, begin + block_rows);
            kernels.backward(g, b, begin, end, base + thread * work, sums + block * padded);
        }
    });
    if (b.grad_weight == nullptr) return;
    std::fill(b.grad_weight, b.grad_weight + g.width, 0.0f);
    for (int64_t block = 0; block < blocks; ++block) {
        for (int64_t i = 0; i < g.width; ++i) b.grad_weight[i] += sums[block * padded + i];
    }
}

}  // namespace enma
