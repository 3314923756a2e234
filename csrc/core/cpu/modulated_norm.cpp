#include "core/cpu/modulated_norm.h"

#include <algorithm>
#include <cstddef>

#include "core/cpu/parallel.h"

namespace enma {

namespace {

// Fewer values are not worth waking a thread.
constexpr int64_t VALUES_PER_THREAD = 16384;
// Rows are summed in so many blocks at most, of at least so many rows: by their number alone, so that the bits of a sum
// do not depend on threads.
constexpr int64_t MAX_BLOCKS = 64, MIN_BLOCK_ROWS = 16;

const ModulatedNormKernels& kernels_of(Isa isa) {
    return kernels_for(
        isa, modulated_norm_portable(), modulated_norm_avx2(), modulated_norm_avx512(), modulated_norm_emulated()
    );
}

int useful_threads(const ModulatedNorm& g, int64_t parts) {
    const int64_t most = std::min(parts, 1 + g.rows * g.width / VALUES_PER_THREAD);
    return static_cast<int>(std::clamp<int64_t>(g.threads, 1, std::max<int64_t>(most, 1)));
}

}  // namespace

void modulated_norm_forward(const ModulatedNorm& g, const ModulatedNormForward& f, Isa isa) {
    const ModulatedNormKernels& kernels = kernels_of(isa);
    const int threads = useful_threads(g, g.rows);
    const int64_t work = MODULATED_NORM_WORK_ROWS * padded_width(g.width);
    const Scratch scratch(sizeof(float) * static_cast<std::size_t>(threads * work));
    float* base = reinterpret_cast<float*>(scratch.data());
    parallel(threads, [&](int thread, int n) {
        kernels.forward(g, f, g.rows * thread / n, g.rows * (thread + 1) / n, base + thread * work);
    });
}

void modulated_norm_backward(const ModulatedNorm& g, const ModulatedNormBackward& b, Isa isa) {
    const ModulatedNormKernels& kernels = kernels_of(isa);
    const int64_t block_rows = std::max(MIN_BLOCK_ROWS, (g.rows + MAX_BLOCKS - 1) / MAX_BLOCKS);
    const int64_t blocks = (g.rows + block_rows - 1) / block_rows;
    const int threads = useful_threads(g, blocks);
    const int64_t padded = padded_width(g.width);
    const int64_t work = MODULATED_NORM_WORK_ROWS * padded, sums = 4 * padded;
    const Scratch scratch(sizeof(float) * static_cast<std::size_t>(threads * work + blocks * sums));
    float* base = reinterpret_cast<float*>(scratch.data());
    float* all_sums = base + threads * work;
    std::fill(all_sums, all_sums + blocks * sums, 0.0f);
    parallel(threads, [&](int thread, int n) {
        for (int64_t block = thread; block < blocks; block += n) {
            const int64_t begin = block * block_rows, end = std::min(g.rows, begin + block_rows);
            kernels.backward(g, b, begin, end, base + thread * work, all_sums + block * sums);
        }
    });
    float* const outs[] = {b.weight_sum, b.shift_sum, b.scale_sum, b.gate_sum};
    for (int which = 0; which < 4; ++which) {
        if (outs[which] == nullptr) continue;
        std::fill(outs[which], outs[which] + g.width, 0.0f);
        for (int64_t block = 0; block < blocks; ++block) {
            const float* part = all_sums + block * sums + which * padded;
            for (int64_t i = 0; i < g.width; ++i) outs[which][i] += part[i];
        }
    }
}

}  // namespace enma
