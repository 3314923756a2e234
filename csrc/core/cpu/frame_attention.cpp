#include "core/cpu/frame_attention.h"

#include <algorithm>
#include <cstddef>

#include "core/cpu/parallel.h"
#include "core/cpu/vector_kernels.h"

namespace enma {

namespace {

// Fewer products are not worth waking a thread.
constexpr int64_t PRODUCTS_PER_THREAD = 400000;

}  // namespace

void frame_attention(const FrameAttention& g, Isa isa) {
    if (g.batch * g.heads * g.tokens == 0) return;
    const FrameAttentionKernels& kernels = vector_kernels(isa).frame_attention;
    const int64_t queries = kernels.queries(g.tokens);
    const int64_t blocks = (g.tokens + queries - 1) / queries;
    const int64_t tasks = g.batch * g.heads * blocks;
    const int64_t products = 2 * g.batch * g.heads * g.tokens * frame_attention_keys(g) * g.head_dim;
    const int64_t most = std::min(tasks, 1 + products / PRODUCTS_PER_THREAD);
    const int threads = static_cast<int>(std::clamp<int64_t>(g.threads, 1, most));
    const int64_t work = frame_attention_work(frame_attention_keys(g));
    const Scratch scratch(sizeof(float) * static_cast<std::size_t>(threads * work));
    float* base = reinterpret_cast<float*>(scratch.data());
    parallel(threads, [&](int thread, int n) {
        for (int64_t task = tasks * thread / n; task < tasks * (thread + 1) / n; ++task) {
            const int64_t row = task / blocks;
            kernels.attend(g, row / g.heads, row % g.heads, task % blocks * queries, base + thread * work);
        }
    });
}

}  // namespace enma
