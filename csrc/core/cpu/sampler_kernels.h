// The transformers of a sampler over the products of gemm_kernels.h; see there for what this file may not do.
//
// A team of threads works on the same rows and divides columns: each takes heads of the attention and panels of every
// product, and normalises all rows for itself. A team of one does all of it, and nobody waits.
#pragma once

#include "core/cpu/flow_head_kernels.h"
#include "core/cpu/sampler.h"

namespace enma {
namespace {

struct Span {
    int begin, end;
};

// A thread's part of `count` things.
ENMA_INLINE Span share(int count, const Member& member) {
    return {static_cast<int>(static_cast<int64_t>(count) * member.thread / member.threads),
            static_cast<int>(static_cast<int64_t>(count) * (member.thread + 1) / member.threads)};
}

template <class Mode>
struct SamplerKernels {
    typedef typename Mode::Vector V;
    typedef typename Mode::Input Input;
    typedef typename V::Float Float;

    // Where row i of a product goes, and its row in the table of turns.
    struct Place {
        Input *q, *k, *v;
        int turn;
    };

    // Work space of one thread.
    struct Own {
        float* scratch;
        float* raw;
        float* gates;
        Input* a;
        Input* b;
        float* attention;
    };

    const SamplerView& m;
    const SamplerState& s;
    const Member& member;
    const ptrdiff_t ld, ldh;
    Own own;

    SamplerKernels(const SamplerView& model, const SamplerState& state, const Member& member, int rows, char* memory)
        : m(model), s(state), member(member), ld(row_stride(model.width)), ldh(row_stride(model.hidden)) {
        Carver carver{memory};
        own.scratch = carver.take<float>(GEMM_SCRATCH / sizeof(float));
        own.raw = carver.take<float>(ptrdiff_t{GEMM_ROWS} * model.head_columns);
        own.gates = carver.take<float>(ptrdiff_t{GEMM_ROWS} * SAMPLER_COLUMNS);
        own.a = carver.take<Input>(rows * model.input_stride);
        own.b = carver.take<Input>(rows * model.input_stride);
        own.attention = reinterpret_cast<float*>(carver.memory);
    }

    // body(begin, end) for rows as many at a time as `gemm` takes.
    template <class Body>
    ENMA_INLINE void by_tiles(int rows, const Body& body) {
        const int tiles = (rows + GEMM_ROWS - 1) / GEMM_ROWS;
        for (int tile = 0; tile < tiles; ++tile) {
            body(static_cast<int>(static_cast<int64_t>(rows) * tile / tiles),
                 static_cast<int>(static_cast<int64_t>(rows) * (tile + 1) / tiles));
        }
    }

    // `gemm` for any number of rows; all columns are written, those beyond the linear's as zero.
    template <class Epilogue>
    void product(const Input* a, ptrdiff_t lda, int rows, const LinearView& linear, Span panels,
                 const Epilogue& finish) const {
        by_tiles(rows, [&](int begin, int end) ENMA_ALWAYS {
            gemm<Mode>(a + begin * lda, lda, end - begin, linear, panels.begin, panels.end, own.scratch,
                       [&](int r, int j, Float sum) ENMA_ALWAYS { finish(begin + r, j, sum); });
        });
    }

    // out[i] = norm(y[which(i)]) weight
    template <class Which>
    void normalise(const float* y, int rows, const float* weight, Input* out, const Which& which) const {
        const int columns = panels_of(m.width) * PANEL;
        for (int i = 0; i < rows; ++i) {
            const float* row = y + which(i) * ld;
            Float square = V::all(0.0f);
            for (int j = 0; j < columns; j += V::LANES) square = V::fma(V::load(row + j), V::load(row + j), square);
            const float mean = V::sum(square) / static_cast<float>(m.width);
            const Float inverse = V::all(1.0f / __builtin_sqrtf(mean + m.epsilon));
            Input* to = out + i * ld;
            for (int j = 0; j < columns; j += V::LANES) {
                put<V>(to + j, V::multiply(V::multiply(V::load(row + j), inverse), V::load(weight + j)));
            }
        }
    }

    void normalise(const float* y, int rows, const float* weight, Input* out) const {
        normalise(y, rows, weight, out, [](int i) ENMA_ALWAYS { return static_cast<ptrdiff_t>(i); });
    }

    // out = turned(norm(x) weight), one head
    void turn(const float* x, const float* weight, const RotaryView& rotary, int place, Input* out) const {
        const int dim = m.head_dim, half = dim / 2;
        float square = 0.0f;
        if (dim % V::LANES == 0) {
            Float squares = V::all(0.0f);
            for (int j = 0; j < dim; j += V::LANES) squares = V::fma(V::load(x + j), V::load(x + j), squares);
            square = V::sum(squares);
        } else {
            for (int j = 0; j < dim; ++j) square = V::fma_one(x[j], x[j], square);
        }
        const float inverse = 1.0f / __builtin_sqrtf(square / static_cast<float>(dim) + m.epsilon);
        if (rotary.cosines == nullptr) {
            if (dim % V::LANES == 0) {
                for (int j = 0; j < dim; j += V::LANES) {
                    put<V>(out + j, V::multiply(V::multiply(V::load(x + j), V::all(inverse)), V::load(weight + j)));
                }
            } else {
                for (int j = 0; j < dim; ++j) put_one(out + j, x[j] * inverse * weight[j]);
            }
            return;
        }
        const float* cosines = rotary.cosines + static_cast<ptrdiff_t>(place) * half;
        const float* sines = rotary.sines + static_cast<ptrdiff_t>(place) * half;
        if (half % V::LANES == 0) {
            for (int j = 0; j < half; j += V::LANES) {
                const Float a = V::multiply(V::multiply(V::load(x + j), V::all(inverse)), V::load(weight + j));
                const Float b =
                    V::multiply(V::multiply(V::load(x + half + j), V::all(inverse)), V::load(weight + half + j));
                const Float cosine = V::load(cosines + j), sine = V::load(sines + j);
                const Float minus = V::subtract(V::all(0.0f), b);
                put<V>(out + j, V::fma(minus, sine, V::multiply(a, cosine)));
                put<V>(out + half + j, V::fma(b, cosine, V::multiply(a, sine)));
            }
            return;
        }
        for (int j = 0; j < half; ++j) {
            const float a = x[j] * inverse * weight[j], b = x[half + j] * inverse * weight[half + j];
            put_one(out + j, V::fma_one(a, cosines[j], -(b * sines[j])));
            put_one(out + half + j, V::fma_one(a, sines[j], b * cosines[j]));
        }
    }

    Span heads() const {
        const int unit = m.head_unit, units = (m.heads + unit - 1) / unit;
        const Span part = share(units, member);
        return {smaller(part.begin * unit, m.heads), smaller(part.end * unit, m.heads)};
    }

    // Queries, or keys and values, of this thread's heads.
    template <class At>
    void project(const BlockView& block, const Input* a, int rows, bool queries, bool keys, const RotaryView& rotary,
                 const At& at) const {
        const Span mine = heads();
        const int dim = m.head_dim;
        // As many heads at a time as work space has columns, in whole panels.
        const int unit = m.head_columns / (m.head_unit * dim) * m.head_unit;
        const ptrdiff_t ldr = m.head_columns;
        for (int head = mine.begin; head < mine.end; head += unit) {
            const int last = smaller(head + unit, mine.end);
            const int first = head * dim;
            const Span panels{first / PANEL, panels_of(last * dim)};
            by_tiles(rows, [&](int begin, int end) ENMA_ALWAYS {
                const int count = end - begin;
                const Input* x = a + begin * ld;
                const auto turned = [&](const LinearView& linear, const float* weight, bool is_query) ENMA_ALWAYS {
                    float* raw = own.raw;
                    gemm<Mode>(x, ld, count, linear, panels.begin, panels.end, own.scratch,
                               [=](int r, int j, Float sum) ENMA_ALWAYS { V::store(raw + r * ldr + j - first, sum); });
                    for (int r = 0; r < count; ++r) {
                        const Place place = at(begin + r);
                        Input* to = is_query ? place.q : place.k;
                        for (int h = head; h < last; ++h) {
                            turn(raw + r * ldr + (h - head) * dim, weight, rotary, place.turn, to + h * dim);
                        }
                    }
                };
                if (queries) turned(block.q, block.q_norm, true);
                if (!keys) return;
                turned(block.k, block.k_norm, false);
                gemm<Mode>(x, ld, count, block.v, panels.begin, panels.end, own.scratch,
                           [&](int r, int j, Float sum) ENMA_ALWAYS { put<V>(at(begin + r).v + j, sum); });
            });
        }
    }

    // out = softmax(q keys^T / sqrt(K)) values for this thread's heads of one member; parts as they lie.
    void attend(const Input* q, ptrdiff_t q_token, int queries, const AttentionPart* parts, int count,
                Input* out) const {
        const AttentionPart none = part(nullptr, nullptr, 0, 0);
        const FrameAttention g{is_paired<Mode>,
                               1,
                               m.heads,
                               queries,
                               m.head_dim,
                               {q, 0, m.head_dim, q_token},
                               {parts[0], count > 1 ? parts[1] : none, none},
                               out,
                               0,
                               m.head_dim,
                               ld,
                               1};
        const Span mine = heads();
        const int step = static_cast<int>(s.attention->queries(queries));
        for (int h = mine.begin; h < mine.end; ++h) {
            for (int first = 0; first < queries; first += step) s.attention->attend(g, 0, h, first, own.attention);
        }
    }

    AttentionPart part(const Input* k, const Input* v, ptrdiff_t token, int count) const {
        return {{k, 0, m.head_dim, token}, {v, 0, m.head_dim, token}, count, 1};
    }

    // y[i] = from[which(i)] + a W^T, then y += mlp(norm(y)); rows of a are complete.
    template <class Which>
    void finish_block(const BlockView& block, const Input* attended, int rows, const float* from, const Which& which,
                      float* y, Input* hidden) const {
        const Span columns = share(panels_of(m.width), member);
        product(attended, ld, rows, block.out, columns, [&](int r, int j, Float sum) ENMA_ALWAYS {
            V::store(y + r * ld + j, V::add(V::load(from + which(r) * ld + j), sum));
        });
        wait(member);
        normalise(y, rows, block.norm_2, own.a);
        const Span mine = share(panels_of(m.hidden), member);
        for (int panel = mine.begin; panel < mine.end; panel += SAMPLER_COLUMNS / PANEL) {
            const int last = smaller(panel + SAMPLER_COLUMNS / PANEL, mine.end);
            by_tiles(rows, [&](int begin, int end) ENMA_ALWAYS {
                float* gates = own.gates - panel * PANEL;
                Input* to = hidden + begin * ldh;
                const ptrdiff_t ldo = ldh;
                gemm<Mode>(own.a + begin * ld, ld, end - begin, block.gate, panel, last, own.scratch,
                           [=](int r, int j, Float sum)
                               ENMA_ALWAYS { V::store(gates + r * SAMPLER_COLUMNS + j, silu<V>(sum)); });
                gemm<Mode>(own.a + begin * ld, ld, end - begin, block.up, panel, last, own.scratch,
                           [=](int r, int j, Float sum) ENMA_ALWAYS {
                               put<V>(to + r * ldo + j, V::multiply(V::load(gates + r * SAMPLER_COLUMNS + j), sum));
                           });
            });
        }
        wait(member);
        product(hidden, ldh, rows, block.down, columns, [&](int r, int j, Float sum) ENMA_ALWAYS {
            V::store(y + r * ld + j, V::add(V::load(y + r * ld + j), sum));
        });
        wait(member);
    }

    // Tokens as inputs of a product.
    void copy_token(const float* token, Input* out) const {
        const int columns = panels_of(m.channels) * PANEL;
        for (int j = 0; j < columns; ++j) put_one(out + j, j < m.channels ? token[j] : 0.0f);
    }

    Input* cached(const KeyValues& kv, int layer, int row, int value, int token) const {
        return reinterpret_cast<Input*>(kv.data) + layer * kv.layer + row * kv.row + value * kv.value +
               token * kv.token;
    }

    // Reads one frame for rows [begin, end): their keys and values join the cache, their output goes to h.
    void causal_frame(const CausalTask& task, char* shared) const {
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
            for (int r = 0; r < rows; ++r)
                copy_token(tokens + static_cast<ptrdiff_t>(r) * m.channels, inputs + r * ldc);
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

    // Row of the masked transformer's input that token `token` of the frame has.
    int frame_row(int token) const { return (m.concat ? m.tokens : 0) + token; }

    float* input_row(int row, int r) const { return s.input + (static_cast<ptrdiff_t>(row) * m.masked_rows + r) * ld; }

    // Context of a frame for one row, this thread's columns: to(n, j, value).
    template <class To>
    void context(const MaskTask& task, int row, const To& to) const {
        const int N = m.tokens;
        const Span columns = share(panels_of(m.width), member);
        const int group = s.group[row];
        const float* h = s.own_frames > 0 ? s.h + static_cast<ptrdiff_t>(row) * N * ld
                                          : s.group_h + static_cast<ptrdiff_t>(group) * N * ld;
        if (!m.scale_shift || task.first) {
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
    void begin_input(const MaskTask& task) const {
        const Span columns = share(panels_of(m.width), member);
        const float* places = m.places;
        const Float zero = V::all(0.0f);
        const auto place = [&](int n, int j)
                               ENMA_ALWAYS { return places == nullptr ? zero : V::load(places + n * ld + j); };
        for (int row = task.begin; row < task.end; ++row) {
            context(task, row, [&](int n, int j, Float h) ENMA_ALWAYS {
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
    void add_noise(const MaskTask& task) const {
        const int N = m.tokens, rows = (task.end - task.begin) * N;
        const ptrdiff_t ldc = row_stride(m.channels);
        const float* noise = s.noise + static_cast<ptrdiff_t>(task.begin) * N * m.channels;
        Input* inputs = own.a;
        for (int r = 0; r < rows; ++r) copy_token(noise + static_cast<ptrdiff_t>(r) * m.channels, inputs + r * ldc);
        product(inputs, ldc, rows, m.noise, share(panels_of(m.width), member),
                [&](int r, int j, Float sum) ENMA_ALWAYS {
                    float* to = input_row(task.begin + r / N, frame_row(r % N)) + j;
                    V::store(to, V::add(V::load(to), sum));
                });
    }

    float* context_row(int row, int n) const { return s.context + (static_cast<ptrdiff_t>(row) * m.tokens + n) * ld; }

    // Writes the tokens that the last step decided into the input.
    void update_input(const MaskTask& task) const {
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
    void mask_step(const MaskTask& task, char* shared) const {
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
            if (task.one_pass) add_noise(task);
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
        // In one pass no later step needs it.
        Input* kept = reinterpret_cast<Input*>(s.first_qkv) + static_cast<ptrdiff_t>(task.begin) * R * 3 * ld;
        Input* first = task.one_pass ? qkv : kept;
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
                if (task.one_pass) {
                    read_tokens(z, static_cast<ptrdiff_t>(task.begin) * M, chosen);
                } else {
                    write_conditions(z, static_cast<ptrdiff_t>(task.begin) * M, chosen);
                }
            } else {
                finish_block(block, attended, rows, from, same, y, hidden);
                from = y;
            }
        }
        wait(member);
    }

    // Conditions [.., D] without gaps from the chosen rows, normalised.
    void write_conditions(const float* z, ptrdiff_t at, int count) const {
        const Span mine = share(count, member);
        Input* out = reinterpret_cast<Input*>(s.condition) + at * m.width;
        for (int i = mine.begin; i < mine.end; ++i) {
            normalise(z + i * ld, 1, m.final_norm, own.b);
            for (int j = 0; j < m.width; ++j) out[static_cast<ptrdiff_t>(i) * m.width + j] = own.b[j];
        }
    }

    // Tokens [at, at + count) of the frame, or features for the local head, read from the rows of the last layer; each
    // thread takes whole rows.
    void read_tokens(const float* z, ptrdiff_t at, int count) const {
        const Span mine = share(count, member);
        const int rows = mine.end - mine.begin, width = m.read.n, panels = panels_of(width);
        normalise(z + mine.begin * ld, rows, m.final_norm, own.b);
        for (int panel = 0; panel < panels; panel += SAMPLER_COLUMNS / PANEL) {
            const int last = smaller(panel + SAMPLER_COLUMNS / PANEL, panels), first = panel * PANEL;
            const int columns = smaller(last * PANEL, width) - first;
            by_tiles(rows, [&](int begin, int end) ENMA_ALWAYS {
                float* read = own.gates - first;
                gemm<Mode>(own.b + begin * ld, ld, end - begin, m.read, panel, last, own.scratch,
                           [=, this](int r, int j, Float sum) ENMA_ALWAYS {
                               V::store(read + r * SAMPLER_COLUMNS + j, V::add(sum, V::load(m.read.bias + j)));
                           });
                for (int r = begin; r < end; ++r) {
                    float* to = s.read + (at + mine.begin + r) * width + first;
                    for (int c = 0; c < columns; ++c) to[c] = own.gates[(r - begin) * SAMPLER_COLUMNS + c];
                }
            });
        }
    }

    void moments(int begin, int end) const {
        const Input* c = reinterpret_cast<const Input*>(s.condition) + static_cast<ptrdiff_t>(begin) * m.width;
        const ptrdiff_t ldc = row_stride(m.channels);
        float* means = s.means + begin * ldc;
        float* scales = s.scales + begin * ldc;
        const Span all{0, panels_of(m.channels)};
        product(c, m.width, end - begin, m.mean, all, [&](int r, int j, Float sum) ENMA_ALWAYS {
            V::store(means + r * ldc + j, V::add(sum, V::load(m.mean.bias + j)));
        });
        product(c, m.width, end - begin, m.scale, all, [&](int r, int j, Float sum) ENMA_ALWAYS {
            V::store(scales + r * ldc + j, V::add(sum, V::load(m.scale.bias + j)));
        });
    }
};

template <class Mode>
void causal_of(const SamplerView& model, const SamplerState& state, const CausalTask& task, const Member& member,
               char* shared, char* memory) {
    const int rows = (task.end - task.begin) * model.tokens;
    SamplerKernels<Mode>(model, state, member, rows, memory).causal_frame(task, shared);
}

template <class Mode>
void masked_of(const SamplerView& model, const SamplerState& state, const MaskTask& task, const Member& member,
               char* shared, char* memory) {
    const int rows = (task.end - task.begin) * model.masked_rows;
    SamplerKernels<Mode>(model, state, member, rows, memory).mask_step(task, shared);
}

template <class Vector, template <class> class HalfMode>
void causal_frame(const SamplerView& model, const SamplerState& state, const CausalTask& task, const Member& member,
                  char* shared, char* memory) {
    (model.bf16 ? causal_of<HalfMode<Vector>> : causal_of<Full<Vector>>)(model, state, task, member, shared, memory);
}

template <class Vector, template <class> class HalfMode>
void mask_step(const SamplerView& model, const SamplerState& state, const MaskTask& task, const Member& member,
               char* shared, char* memory) {
    (model.bf16 ? masked_of<HalfMode<Vector>> : masked_of<Full<Vector>>)(model, state, task, member, shared, memory);
}

template <class Vector, template <class> class HalfMode>
void moments(const SamplerView& model, const SamplerState& state, int begin, int end, char* memory) {
    const Member alone{0, 1, nullptr};
    if (model.bf16) {
        SamplerKernels<HalfMode<Vector>>(model, state, alone, 0, memory).moments(begin, end);
    } else {
        SamplerKernels<Full<Vector>>(model, state, alone, 0, memory).moments(begin, end);
    }
}

template <class V>
void linear_rows(const LinearView& linear, const float* a, ptrdiff_t lda, int rows, float* out, ptrdiff_t ldo,
                 char* scratch) {
    const float* bias = linear.bias;
    for (int row = 0; row < rows; row += GEMM_ROWS) {
        float* to = out + row * ldo;
        gemm<Full<V>>(a + row * lda, lda, smaller(GEMM_ROWS, rows - row), linear, 0, panels_of(linear.n),
                      reinterpret_cast<float*>(scratch), [=](int r, int j, typename V::Float sum) ENMA_ALWAYS {
                          V::store(to + r * ldo + j, V::add(sum, V::load(bias + j)));
                      });
    }
}

// All kernels of an instruction set.
template <class Vector, template <class> class HalfMode>
constexpr Kernels kernels_with() {
    return {flow_head_rows<Vector, HalfMode>, flow_head_columns<Vector, HalfMode>, causal_frame<Vector, HalfMode>,
            mask_step<Vector, HalfMode>,      moments<Vector, HalfMode>,           linear_rows<Vector>,
            is_paired<HalfMode<Vector>>};
}

}  // namespace
}  // namespace enma
