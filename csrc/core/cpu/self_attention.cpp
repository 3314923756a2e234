#include "core/cpu/self_attention.h"

#include <algorithm>
#include <cstddef>

#include "core/cpu/parallel.h"
#include "core/cpu/vector_kernels.h"

namespace enma {

namespace {

// Fewer products are not worth waking a thread.
constexpr int64_t PRODUCTS_PER_THREAD = 400000;

int useful_threads(const SelfAttention& g) {
    const int64_t tasks = g.batch * g.heads;
    const int64_t products = 2 * tasks * g.tokens * (g.past + g.tokens) * g.head_dim;
    return static_cast<int>(std::clamp<int64_t>(g.threads, 1, std::min(tasks, 1 + products / PRODUCTS_PER_THREAD)));
}

// task(row of the batch, head, number of the task, work space of the thread)
template <class Task>
void each_head(const SelfAttention& g, float* work, int64_t size, int threads, Task task) {
    const int64_t tasks = g.batch * g.heads;
    parallel(threads, [&](int thread, int n) {
        for (int64_t i = tasks * thread / n; i < tasks * (thread + 1) / n; ++i) {
            task(i / g.heads, i % g.heads, i, work + thread * size);
        }
    });
}

}  // namespace

void self_attention_forward(const SelfAttention& g, const SelfAttentionForward& f, Isa isa) {
    if (g.batch * g.heads == 0) return;
    const SelfAttentionKernels& kernels = vector_kernels(isa).self_attention;
    const int threads = useful_threads(g);
    const int64_t size = kernels.forward_work(g);
    const Scratch scratch(sizeof(float) * static_cast<std::size_t>(threads * size));
    each_head(g, reinterpret_cast<float*>(scratch.data()), size, threads,
              [&](int64_t b, int64_t h, int64_t, float* work) { kernels.forward(g, f, b, h, work); });
}

void self_attention_backward(const SelfAttention& g, const SelfAttentionBackward& b, Isa isa) {
    const int64_t width = 2 * g.head_dim, tasks = g.batch * g.heads;
    std::fill(b.grad_weights, b.grad_weights + width, 0.0f);
    if (tasks == 0) return;
    const SelfAttentionKernels& kernels = vector_kernels(isa).self_attention;
    const int threads = useful_threads(g);
    const int64_t size = kernels.backward_work(g);
    const Scratch scratch(sizeof(float) * static_cast<std::size_t>(threads * size + tasks * width));
    float* work = reinterpret_cast<float*>(scratch.data());
    // One sum for each task, so that the bits do not depend on threads.
    float* sums = work + threads * size;
    std::fill(sums, sums + tasks * width, 0.0f);
    each_head(g, work, size, threads, [&](int64_t row, int64_t head, int64_t task, float* own) {
        kernels.backward(g, b, row, head, sums + task * width, own);
    });
    for (int64_t task = 0; task < tasks; ++task) {
        for (int64_t i = 0; i < width; ++i) b.grad_weights[i] += sums[task * width + i];
    }
}

}  // namespace enma
