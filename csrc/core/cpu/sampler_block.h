// What both transformers of a sampler are made of, over the products of gemm_kernels.h; see there for what this file may
// not do: products of any number of rows, norms, heads that are turned and attend, and the end of a block.
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
    typedef typename Mode::Weight Weight;
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
    void product(const Input* a, ptrdiff_t lda, int rows, const LinearView& linear, Span panels, const Epilogue& finish,
                 const Weight* next = nullptr) const {
        by_tiles(rows, [&](int begin, int end) ENMA_ALWAYS {
            gemm<Mode>(
                a + begin * lda, lda, end - begin, linear, panels.begin, panels.end, own.scratch,
                [&](int r, int j, Float sum) ENMA_ALWAYS { finish(begin + r, j, sum); }, next);
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
            const Weight* after = last < mine.end ? panel_of<Mode>(queries ? block.q : block.k, panels.end)
                                                  : panel_of<Mode>(block.out, share(panels_of(m.width), member).begin);
            by_tiles(rows, [&](int begin, int end) ENMA_ALWAYS {
                const int count = end - begin;
                const Input* x = a + begin * ld;
                const auto turned = [&](const LinearView& linear, const float* weight, bool is_query,
                                        const Weight* next) ENMA_ALWAYS {
                    float* raw = own.raw;
                    gemm<Mode>(
                        x, ld, count, linear, panels.begin, panels.end, own.scratch,
                        [=](int r, int j, Float sum) ENMA_ALWAYS { V::store(raw + r * ldr + j - first, sum); }, next);
                    for (int r = 0; r < count; ++r) {
                        const Place place = at(begin + r);
                        Input* to = is_query ? place.q : place.k;
                        for (int h = head; h < last; ++h) {
                            turn(raw + r * ldr + (h - head) * dim, weight, rotary, place.turn, to + h * dim);
                        }
                    }
                };
                const Weight* k = panel_of<Mode>(block.k, panels.begin);
                if (queries) turned(block.q, block.q_norm, true, keys ? k : after);
                if (!keys) return;
                turned(block.k, block.k_norm, false, panel_of<Mode>(block.v, panels.begin));
                gemm<Mode>(
                    x, ld, count, block.v, panels.begin, panels.end, own.scratch,
                    [&](int r, int j, Float sum) ENMA_ALWAYS { put<V>(at(begin + r).v + j, sum); }, after);
            });
        }
    }

    // out = softmax(q keys^T / sqrt(K)) values for this thread's heads of one member; parts as they lie.
    void attend(const Input* q, ptrdiff_t q_token, int queries, const AttentionPart* parts, int count,
                Input* out) const {
        const AttentionPart none = part(nullptr, nullptr, 0, 0);
        const FrameAttention g{is_paired<Mode> ? NumberFormat::bf16 : NumberFormat::fp32,
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
        const Span columns = share(panels_of(m.width), member), mine = share(panels_of(m.hidden), member);
        const auto added = [&](int r, int j, Float sum) ENMA_ALWAYS {
            V::store(y + r * ld + j, V::add(V::load(from + which(r) * ld + j), sum));
        };
        product(attended, ld, rows, block.out, columns, added, panel_of<Mode>(block.gate, mine.begin));
        wait(member);
        normalise(y, rows, block.norm_2, own.a);
        for (int panel = mine.begin; panel < mine.end; panel += SAMPLER_COLUMNS / PANEL) {
            const int last = smaller(panel + SAMPLER_COLUMNS / PANEL, mine.end);
            const Weight* after =
                last < mine.end ? panel_of<Mode>(block.gate, last) : panel_of<Mode>(block.down, columns.begin);
            by_tiles(rows, [&](int begin, int end) ENMA_ALWAYS {
                float* gates = own.gates - panel * PANEL;
                Input* to = hidden + begin * ldh;
                const ptrdiff_t ldo = ldh;
                gemm<Mode>(
                    own.a + begin * ld, ld, end - begin, block.gate, panel, last, own.scratch,
                    [=](int r, int j, Float sum)
                        ENMA_ALWAYS { V::store(gates + r * SAMPLER_COLUMNS + j, silu<V>(sum)); },
                    panel_of<Mode>(block.up, panel));
                gemm<Mode>(
                    own.a + begin * ld, ld, end - begin, block.up, panel, last, own.scratch,
                    [=](int r, int j, Float sum) ENMA_ALWAYS {
                        put<V>(to + r * ldo + j, V::multiply(V::load(gates + r * SAMPLER_COLUMNS + j), sum));
                    },
                    after);
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

    // Row of the masked transformer's input that token `token` of the frame has.
    int frame_row(int token) const { return (m.concat ? m.tokens : 0) + token; }

    float* input_row(int row, int r) const { return s.input + (static_cast<ptrdiff_t>(row) * m.masked_rows + r) * ld; }

    float* context_row(int row, int n) const { return s.context + (static_cast<ptrdiff_t>(row) * m.tokens + n) * ld; }

    // Defined elsewhere, and inline there as all above are, so that the compiler treats them alike. In sampler_causal.h:
    void causal_frame(const CausalTask& task, char* shared) const;

    // In sampler_masked.h:
    template <class To>
    void context(int row, const To& to) const;
    void begin_input(const MaskTask& task) const;
    void add_noise(const MaskTask& task) const;
    void update_input(const MaskTask& task) const;
    void mask_step(const MaskTask& task, char* shared) const;
    void write_conditions(const MaskTask& task, const float* z, ptrdiff_t at, int count) const;
    void read_tokens(const MaskTask& task, const float* z, ptrdiff_t at, int count) const;
    void moments(const Moments& task, int begin, int end) const;
};

}  // namespace
}  // namespace enma
