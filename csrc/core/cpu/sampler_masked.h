// The masked transformer of a sampler: its input from the context and the tokens that are known, its layers, and what is
// read from the rows of the tokens that a mask step decides: conditions of the flow, or the tokens themselves (one pass).
#pragma once

#include "core/cpu/sampler_block.h"

namespace enma {
namespace {

// Context of a frame for one row, this thread's columns: to(n, j, value).
template <class Mode>
template <class To>
inline void SamplerKernels<Mode>::context(int row, const To& to) const {
    const int N = m.tokens;
    const Span columns = share(panels_of(m.width), member);
    const int group = s.group[row];
    const float* h = s.own_frames > 0 ? s.h + static_cast<ptrdiff_t>(row) * N * ld
                                      : s.group_h + static_cast<ptrdiff_t>(group) * N * ld;
    if (m.rank == 0 || (s.at_start && s.own_frames == 0)) {
        for (int n = 0; n < N; ++n) {
            for (int j = columns.begin * PANEL; j < columns.end * PANEL; j += V::LANES) {
                to(n, j, V::load(h + n * ld + j));
            }
        }
        return;
    }
    const float* anchor = s.anchor + static_cast<ptrdiff_t>(group) * N * ld;
    for (int n = 0; n < N; ++n) {
        for (int j = 0; j < panels_of(m.width) * PANEL; j += V::LANES) {
            put<V>(own.a + n * ld + j, silu<V>(V::load(h + n * ld + j)));
        }
    }
    const ptrdiff_t ldr = row_stride(m.narrow.n);
    product(own.a, ld, N, m.narrow, Span{0, panels_of(m.narrow.n)},
            [&](int r, int j, Float sum) ENMA_ALWAYS { put<V>(own.b + r * ldr + j, sum); });
    // In pieces of the columns of work space.
    for (int panel = columns.begin; panel < columns.end; panel += SAMPLER_COLUMNS / PANEL) {
        const Span piece{panel, smaller(panel + SAMPLER_COLUMNS / PANEL, columns.end)};
        by_tiles(N, [&](int begin, int end) ENMA_ALWAYS {
            float* gammas = own.gates - panel * PANEL;
            gemm<Mode>(own.b + begin * ldr, ldr, end - begin, m.gamma, piece.begin, piece.end, own.scratch,
                       [&](int r, int j, Float sum) ENMA_ALWAYS {
                           V::store(gammas + r * SAMPLER_COLUMNS + j, V::add(sum, V::load(m.gamma.bias + j)));
                       });
            gemm<Mode>(own.b + begin * ldr, ldr, end - begin, m.beta, piece.begin, piece.end, own.scratch,
                       [&](int r, int j, Float sum) ENMA_ALWAYS {
                           const Float gamma = V::load(gammas + r * SAMPLER_COLUMNS + j);
                           const Float beta = V::add(sum, V::load(m.beta.bias + j));
                           const Float at = V::load(anchor + (begin + r) * ld + j);
                           to(begin + r, j, V::fma(at, V::add(V::all(1.0f), gamma), beta));
                       });
        });
    }
}

// The masked transformer's input at the begin of a frame: nothing is known.
template <class Mode>
inline void SamplerKernels<Mode>::begin_input(const MaskTask& task) const {
    const Span columns = share(panels_of(m.width), member);
    const float* places = m.places;
    const Float zero = V::all(0.0f);
    const auto place = [&](int n, int j)
                           ENMA_ALWAYS { return places == nullptr ? zero : V::load(places + n * ld + j); };
    for (int row = task.begin; row < task.end; ++row) {
        context(row, [&](int n, int j, Float h) ENMA_ALWAYS {
            if (m.concat) {
                V::store(input_row(row, n) + j, V::add(h, place(n, j)));
            } else {
                V::store(input_row(row, n) + j, V::add(h, V::add(V::load(m.mask + j), place(n, j))));
                // The frame's token comes on top of it, so the context is needed again when the token is known.
                V::store(context_row(row, n) + j, h);
            }
        });
        if (!m.concat) continue;
        for (int n = 0; n < m.tokens; ++n) {
            float* to = input_row(row, frame_row(n));
            for (int j = columns.begin * PANEL; j < columns.end * PANEL; j += V::LANES) {
                V::store(to + j, V::add(V::load(m.mask + j), place(n, j)));
            }
        }
    }
}

// Adds the noise to the input's unknown tokens.
template <class Mode>
inline void SamplerKernels<Mode>::add_noise(const MaskTask& task) const {
    const int N = m.tokens, rows = (task.end - task.begin) * N;
    const ptrdiff_t ldc = row_stride(m.channels);
    const float* noise = s.noise + static_cast<ptrdiff_t>(task.begin) * N * m.channels;
    Input* inputs = own.a;
    for (int r = 0; r < rows; ++r) copy_token(noise + static_cast<ptrdiff_t>(r) * m.channels, inputs + r * ldc);
    product(inputs, ldc, rows, *task.noise, share(panels_of(m.width), member),
            [&](int r, int j, Float sum) ENMA_ALWAYS {
                float* to = input_row(task.begin + r / N, frame_row(r % N)) + j;
                V::store(to, V::add(V::load(to), sum));
            });
}

// Writes the tokens that the last step decided into the input.
template <class Mode>
inline void SamplerKernels<Mode>::update_input(const MaskTask& task) const {
    const int count = task.previous, members = task.end - task.begin, rows = members * count;
    const ptrdiff_t ldc = row_stride(m.channels);
    Input* inputs = own.a;
    const auto token_of = [&](int i) ENMA_ALWAYS {
        return s.order[(task.begin + i / count) * m.tokens + task.done - count + i % count];
    };
    for (int i = 0; i < rows; ++i) {
        const ptrdiff_t at = static_cast<ptrdiff_t>(task.begin + i / count) * m.tokens + token_of(i);
        copy_token(s.tokens + at * m.channels, inputs + i * ldc);
    }
    const float* places = m.places;
    product(inputs, ldc, rows, m.masked_embed, share(panels_of(m.width), member),
            [&](int r, int j, Float sum) ENMA_ALWAYS {
                const int token = token_of(r), row = task.begin + r / count;
                Float x = V::add(sum, V::load(m.masked_embed.bias + j));
                if (places != nullptr) x = V::add(x, V::load(places + token * ld + j));
                if (!m.concat) x = V::add(V::load(context_row(row, token) + j), x);
                V::store(input_row(row, frame_row(token)) + j, x);
            });
}

// Conditions of the tokens that this step decides, for rows [begin, end).
template <class Mode>
inline void SamplerKernels<Mode>::mask_step(const MaskTask& task, char* shared) const {
    const int N = m.tokens, R = m.masked_rows, members = task.end - task.begin, rows = members * R;
    const int M = task.count, chosen = members * M;
    Carver carver{shared};
    float* y = carver.take<float>(rows * ld);
    float* z = carver.take<float>(chosen * ld);
    Input* qkv = carver.take<Input>(3 * rows * ld);
    Input* attended = carver.take<Input>(rows * ld);
    Input* hidden = carver.take<Input>(rows * ldh);
    // First layer: only rows that have changed.
    int changed = rows;
    if (task.step == 0) {
        begin_input(task);
        if (task.noise != nullptr) add_noise(task);
    } else {
        update_input(task);
        changed = members * task.previous;
    }
    wait(member);
    const auto changed_row = [&](int i) ENMA_ALWAYS -> ptrdiff_t {
        if (task.step == 0) return i;
        const int row = i / task.previous, at = task.done - task.previous + i % task.previous;
        return static_cast<ptrdiff_t>(row) * R + frame_row(s.order[(task.begin + row) * N + at]);
    };
    const float* input = input_row(task.begin, 0);
    Input* first = qkv;
    if (task.first_qkv != nullptr) {
        first = reinterpret_cast<Input*>(task.first_qkv) + static_cast<ptrdiff_t>(task.begin) * R * 3 * ld;
    }
    normalise(input, changed, m.masked[0].norm_1, own.a, changed_row);
    project(m.masked[0], own.a, changed, true, true, m.masked_rotary, [&](int i) ENMA_ALWAYS {
        const ptrdiff_t r = changed_row(i);
        Input* to = first + 3 * r * ld;
        return Place{to, to + ld, to + 2 * ld, static_cast<int>(r % R)};
    });
    const auto chosen_row = [&](int i) ENMA_ALWAYS -> ptrdiff_t {
        const int row = i / M;
        return static_cast<ptrdiff_t>(row) * R + frame_row(s.order[(task.begin + row) * N + task.done + i % M]);
    };
    const auto same = [](int i) ENMA_ALWAYS { return static_cast<ptrdiff_t>(i); };
    const float* from = input;
    for (int layer = 0; layer < m.masked_layers; ++layer) {
        const BlockView& block = m.masked[layer];
        const bool last = layer == m.masked_layers - 1;
        const Input* all = layer == 0 ? first : qkv;
        if (layer > 0) {
            normalise(from, rows, block.norm_1, own.a);
            project(block, own.a, rows, !last, true, m.masked_rotary, [&](int i) ENMA_ALWAYS {
                Input* to = qkv + 3 * static_cast<ptrdiff_t>(i) * ld;
                return Place{to, to + ld, to + 2 * ld, i % R};
            });
        }
        if (last) {
            // Last layer: only the rows that are decided now. Their queries take the place of the others'.
            if (layer > 0) {
                normalise(from, chosen, block.norm_1, own.b, chosen_row);
                project(block, own.b, chosen, true, false, m.masked_rotary, [&](int i) ENMA_ALWAYS {
                    return Place{qkv + 3 * static_cast<ptrdiff_t>(i) * ld, nullptr, nullptr,
                                 static_cast<int>(chosen_row(i) % R)};
                });
            } else {
                const Span mine = heads();
                for (int i = 0; i < chosen; ++i) {
                    for (int j = mine.begin * m.head_dim; j < mine.end * m.head_dim; ++j) {
                        qkv[3 * i * ld + j] = first[3 * chosen_row(i) * ld + j];
                    }
                }
            }
        }
        const int queries = last ? M : R;
        const Input* asking = last ? qkv : all;
        for (int i = 0; i < members; ++i) {
            const Input* base = all + 3 * static_cast<ptrdiff_t>(i) * R * ld;
            const AttentionPart parts[1] = {part(base + ld, base + 2 * ld, 3 * ld, R)};
            attend(asking + 3 * static_cast<ptrdiff_t>(i) * queries * ld, 3 * ld, queries, parts, 1,
                   attended + static_cast<ptrdiff_t>(i) * queries * ld);
        }
        wait(member);
        if (last) {
            finish_block(block, attended, chosen, from, chosen_row, z, hidden);
            if (task.read != nullptr) {
                read_tokens(task, z, static_cast<ptrdiff_t>(task.begin) * M, chosen);
            } else {
                write_conditions(task, z, static_cast<ptrdiff_t>(task.begin) * M, chosen);
            }
        } else {
            finish_block(block, attended, rows, from, same, y, hidden);
            from = y;
        }
    }
    wait(member);
}

// Conditions [.., D] without gaps from the chosen rows, normalised.
template <class Mode>
inline void SamplerKernels<Mode>::write_conditions(const MaskTask& task, const float* z, ptrdiff_t at,
                                                   int count) const {
    const Span mine = share(count, member);
    Input* out = static_cast<Input*>(task.to) + at * m.width;
    for (int i = mine.begin; i < mine.end; ++i) {
        normalise(z + i * ld, 1, m.final_norm, own.b);
        for (int j = 0; j < m.width; ++j) out[static_cast<ptrdiff_t>(i) * m.width + j] = own.b[j];
    }
}

// What is read of rows [at, at + count) of the last layer; each thread takes whole rows.
template <class Mode>
inline void SamplerKernels<Mode>::read_tokens(const MaskTask& task, const float* z, ptrdiff_t at, int count) const {
    const Span mine = share(count, member);
    const LinearView& linear = *task.read;
    const int rows = mine.end - mine.begin, width = linear.n, panels = panels_of(width);
    normalise(z + mine.begin * ld, rows, m.final_norm, own.b);
    for (int panel = 0; panel < panels; panel += SAMPLER_COLUMNS / PANEL) {
        const int last = smaller(panel + SAMPLER_COLUMNS / PANEL, panels), first = panel * PANEL;
        const int columns = smaller(last * PANEL, width) - first;
        by_tiles(rows, [&](int begin, int end) ENMA_ALWAYS {
            float* read = own.gates - first;
            const float* bias = linear.bias;
            gemm<Mode>(own.b + begin * ld, ld, end - begin, linear, panel, last, own.scratch,
                       [=](int r, int j, Float sum)
                           ENMA_ALWAYS { V::store(read + r * SAMPLER_COLUMNS + j, V::add(sum, V::load(bias + j))); });
            for (int r = begin; r < end; ++r) {
                float* to = static_cast<float*>(task.to) + (at + mine.begin + r) * width + first;
                for (int c = 0; c < columns; ++c) to[c] = own.gates[(r - begin) * SAMPLER_COLUMNS + c];
            }
        });
    }
}

template <class Mode>
inline void SamplerKernels<Mode>::moments(const Moments& task, int begin, int end) const {
    const Input* c = reinterpret_cast<const Input*>(task.condition) + static_cast<ptrdiff_t>(begin) * m.width;
    const ptrdiff_t ldc = row_stride(m.channels);
    float* means = task.means + begin * ldc;
    float* scales = task.scales + begin * ldc;
    const Span all{0, panels_of(m.channels)};
    product(c, m.width, end - begin, task.mean, all, [&](int r, int j, Float sum) ENMA_ALWAYS {
        V::store(means + r * ldc + j, V::add(sum, V::load(task.mean.bias + j)));
    });
    product(c, m.width, end - begin, task.scale, all, [&](int r, int j, Float sum) ENMA_ALWAYS {
        V::store(scales + r * ldc + j, V::add(sum, V::load(task.scale.bias + j)));
    });
}

}  // namespace
}  // namespace enma
