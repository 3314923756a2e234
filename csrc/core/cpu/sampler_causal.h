// The causal transformer of a sampler: a frame that is known, or the start of a segment, joins keys and values.
#pragma once

#include "core/cpu/sampler_block.h"

namespace enma {
namespace {

// Reads one frame for rows [begin, end): their keys and values join the cache, their output goes to h.
template <class Mode>
inline void SamplerKernels<Mode>::causal_frame(const CausalTask& task, char* shared) const {
    const int N = m.tokens, members = task.end - task.begin, rows = members * N;
    Carver carver{shared};
    float* y = carver.take<float>(rows * ld);
    Input* q = carver.take<Input>(rows * ld);
    Input* attended = carver.take<Input>(rows * ld);
    Input* hidden = carver.take<Input>(rows * ldh);
    const KeyValues& kv = task.shared ? s.prefix : s.own;
    const int frame = s.prefix_frames + (task.shared ? 0 : s.own_frames);
    const int before = task.shared ? s.prefix_frames : s.own_frames;
    const Span columns = share(panels_of(m.width), member);
    const Float zero = V::all(0.0f);
    const float* places = m.places;
    const auto place = [&](int r, int j)
                           ENMA_ALWAYS { return places == nullptr ? zero : V::load(places + r % N * ld + j); };
    if (task.start >= 0) {
        const float* start = m.start + smaller(task.start, 1) * ld;
        for (int r = 0; r < rows; ++r) {
            for (int j = columns.begin * PANEL; j < columns.end * PANEL; j += V::LANES) {
                V::store(y + r * ld + j, V::add(V::load(start + j), place(r, j)));
            }
        }
    } else {
        const ptrdiff_t ldc = row_stride(m.channels);
        const float* tokens = task.tokens + static_cast<ptrdiff_t>(task.begin) * N * m.channels;
        Input* inputs = own.a;
        for (int r = 0; r < rows; ++r) copy_token(tokens + static_cast<ptrdiff_t>(r) * m.channels, inputs + r * ldc);
        product(inputs, ldc, rows, m.embed, columns, [&](int r, int j, Float sum) ENMA_ALWAYS {
            V::store(y + r * ld + j, V::add(V::add(sum, V::load(m.embed.bias + j)), place(r, j)));
        });
    }
    wait(member);
    const ptrdiff_t half = m.head_dim / 2;
    RotaryView rotary = m.rotary;
    if (rotary.cosines != nullptr) {
        rotary.cosines += static_cast<ptrdiff_t>(frame) * N * half;
        rotary.sines += static_cast<ptrdiff_t>(frame) * N * half;
    }
    const auto same = [](int i) ENMA_ALWAYS { return static_cast<ptrdiff_t>(i); };
    for (int layer = 0; layer < m.causal_layers; ++layer) {
        const BlockView& block = m.causal[layer];
        normalise(y, rows, block.norm_1, own.a);
        project(block, own.a, rows, true, true, rotary, [&](int i) ENMA_ALWAYS {
            const int row = task.begin + i / N, token = before * N + i % N;
            return Place{q + i * ld, cached(kv, layer, row, 0, token), cached(kv, layer, row, 1, token), i % N};
        });
        for (int i = 0; i < members; ++i) {
            const int row = task.begin + i;
            const int group = task.shared ? 0 : s.group[row];
            const AttentionPart parts[2] = {
                part(cached(kv, layer, row, 0, 0), cached(kv, layer, row, 1, 0), kv.token, (before + 1) * N),
                part(cached(s.prefix, layer, group, 0, 0), cached(s.prefix, layer, group, 1, 0), s.prefix.token,
                     s.prefix_frames * N)};
            attend(q + static_cast<ptrdiff_t>(i) * N * ld, ld, N, parts, task.shared ? 1 : 2,
                   attended + static_cast<ptrdiff_t>(i) * N * ld);
        }
        wait(member);
        finish_block(block, attended, rows, y, same, y, hidden);
    }
    float* h = task.h + static_cast<ptrdiff_t>(task.begin) * N * ld;
    const Span mine = share(rows, member);
    for (int r = mine.begin; r < mine.end; ++r) {
        for (int j = 0; j < panels_of(m.width) * PANEL; j += V::LANES) {
            V::store(h + r * ld + j, V::load(y + r * ld + j));
        }
    }
    // The team's work space is written again by what comes next.
    wait(member);
}

}  // namespace
}  // namespace enma
