#include "core/cpu/point_attention.h"

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/cpu/parallel.h"
#include "core/cpu/vector_kernels.h"

namespace enma {

namespace {

// The valid points of each batch row, in order.
struct Valid {
    std::vector<int32_t> index;
    std::vector<int64_t> start;

    explicit Valid(const PointAttention& g) {
        if (g.valid == nullptr) return;
        start.push_back(0);
        for (int64_t b = 0; b < g.batches; ++b) {
            for (int64_t p = 0; p < g.points; ++p)
                if (g.valid[b * g.points + p]) index.push_back(static_cast<int32_t>(p));
            start.push_back(static_cast<int64_t>(index.size()));
        }
        // No null pointer for "none": that means all.
        index.push_back(0);
    }

    void place(const PointAttention& g, PointAttentionTask& task) const {
        task.index = start.empty() ? nullptr : index.data() + start[task.batch];
        task.count = start.empty() ? g.points : start[task.batch + 1] - start[task.batch];
    }
};

int64_t blocks(int64_t n, int64_t size) { return (n + size - 1) / size; }

// How many heads and queries one task has: many, since they share distances and packed keys, but the sums have to fit
// the second-level cache, and every thread should get several tasks. The result does not depend on it.
struct Grain {
    int64_t heads, queries;
};

Grain grain_of(const PointAttention& g, int threads) {
    constexpr int64_t STRIP = 24, MOST_QUERIES = 192, MOST_HEAD_WIDTH = 256, MOST_SUMS = 64 * 1024;
    const int64_t width = std::max(g.value_dim, g.head_dim);
    Grain grain{std::clamp<int64_t>(MOST_HEAD_WIDTH / width, 1, g.heads), 0};
    const int64_t fitting = MOST_SUMS / (grain.heads * width) / STRIP * STRIP;
    grain.queries = std::clamp<int64_t>(fitting, STRIP, MOST_QUERIES);
    const auto tasks = [&] { return g.batches * blocks(g.heads, grain.heads) * blocks(g.queries, grain.queries); };
    const int64_t wanted = threads > 1 ? 4 * static_cast<int64_t>(threads) : 1;
    while (tasks() < wanted && grain.queries > 2 * STRIP) grain.queries = grain.queries / 2 / STRIP * STRIP;
    while (tasks() < wanted && grain.heads > 1) grain.heads = (grain.heads + 1) / 2;
    grain.queries = std::min(grain.queries, g.queries);
    return grain;
}

// run(task, scratch) for every task, by the next thread that is free.
template <class Run>
void for_tasks(int64_t tasks, int threads, int64_t floats, Run run) {
    threads = static_cast<int>(std::min<int64_t>(threads, tasks));
    // One piece per thread, taken before the threads start: an exception must not leave a parallel region.
    std::vector<Buffer> pieces;
    for (int i = 0; i < threads; ++i) pieces.emplace_back(static_cast<std::size_t>(floats) * sizeof(float));
    std::atomic<int64_t> next{0};
    parallel(threads, [&](int thread, int) {
        float* scratch = reinterpret_cast<float*>(pieces[thread].data());
        for (int64_t task = next++; task < tasks; task = next++) run(task, scratch);
    });
}

}  // namespace

void point_attention_forward(const PointAttention& g, float* out, float* lse, Isa isa) {
    if (g.batches == 0 || g.heads == 0 || g.queries == 0) return;
    const PointAttentionKernels& kernels = vector_kernels(isa).point_attention;
    const int threads = std::max(g.threads, 1);
    const Grain grain = grain_of(g, threads);
    const Valid valid(g);
    const int64_t head_blocks = blocks(g.heads, grain.heads), query_blocks = blocks(g.queries, grain.queries);
    for_tasks(g.batches * head_blocks * query_blocks, threads, kernels.forward_scratch(g, grain.heads, grain.queries),
              [&](int64_t i, float* scratch) {
                  PointAttentionTask task{};
                  task.batch = i / (head_blocks * query_blocks);
                  task.first_head = i / query_blocks % head_blocks * grain.heads;
                  task.end_head = std::min(task.first_head + grain.heads, g.heads);
                  task.first_query = i % query_blocks * grain.queries;
                  task.end_query = std::min(task.first_query + grain.queries, g.queries);
                  valid.place(g, task);
                  kernels.forward(g, task, scratch, out, lse);
              });
}

void point_attention_backward(const PointAttention& g, const PointAttentionGradients& to, Isa isa) {
    if (g.batches == 0 || g.heads == 0) return;
    const PointAttentionKernels& kernels = vector_kernels(isa).point_attention;
    const Valid valid(g);
    for_tasks(g.batches * g.heads, std::max(g.threads, 1), kernels.backward_scratch(g), [&](int64_t i, float* scratch) {
        PointAttentionTask task{};
        task.batch = i / g.heads;
        task.first_head = i % g.heads;
        task.end_head = task.first_head + 1;
        task.end_query = g.queries;
        valid.place(g, task);
        kernels.backward(g, task, scratch, to);
    });
}

}  // namespace enma
