// The flow-matching head over the products of gemm_kernels.h; see there for what this file may not do.
#pragma once

#include "core/cpu/flow_head.h"
#include "core/cpu/gemm_kernels.h"

namespace enma {

namespace {

constexpr float NORM_EPS = 1e-6f;

ENMA_INLINE int panels_of(int width) { return (width + PANEL - 1) / PANEL; }

// Hands out parts of a piece of memory, each at a cache line.
struct Carver {
    char* memory;

    template <class T>
    __attribute__((always_inline)) T* take(ptrdiff_t count) {
        T* part = reinterpret_cast<T*>(memory);
        memory += (count * static_cast<ptrdiff_t>(sizeof(T)) + 63) / 64 * 64;
        return part;
    }
};

// Mean and 1 / sqrt(variance + eps) of each row.
template <class V>
void row_statistics(const float* y, ptrdiff_t stride, int rows, int width, float* mean, float* scale) {
    const int whole = width / V::LANES * V::LANES;
    for (int r = 0; r < rows; ++r) {
        const float* row = y + r * stride;
        typename V::Float sum = V::all(0.0f);
        for (int j = 0; j < whole; j += V::LANES) sum = V::add(sum, V::load(row + j));
        float total = V::sum(sum);
        for (int j = whole; j < width; ++j) total += row[j];
        const float center = total / static_cast<float>(width);
        const typename V::Float centers = V::all(center);
        typename V::Float square = V::all(0.0f);
        for (int j = 0; j < whole; j += V::LANES) {
            const typename V::Float d = V::subtract(V::load(row + j), centers);
            square = V::fma(d, d, square);
        }
        float squares = V::sum(square);
        for (int j = whole; j < width; ++j) squares = V::fma_one(row[j] - center, row[j] - center, squares);
        mean[r] = center;
        scale[r] = 1.0f / __builtin_sqrtf(squares / static_cast<float>(width) + NORM_EPS);
    }
}

template <class V>
ENMA_INLINE typename V::Float modulated(typename V::Float y, float mean, float inverse, typename V::Float scale,
                                        typename V::Float shift) {
    const typename V::Float normal = V::multiply(V::subtract(y, V::all(mean)), V::all(inverse));
    return V::fma(normal, V::add(V::all(1.0f), scale), shift);
}

// out = silu(condition + time), whole vectors.
template <class V, class Input>
ENMA_INLINE void modulation_input(const float* condition, const float* time, int panels, Input* out) {
    for (int j = 0; j < panels * PANEL; j += V::LANES) {
        put<V>(out + j, silu<V>(V::add(V::load(condition + j), V::load(time + j))));
    }
}

// The state of one group of rows: where its step started, where it is, and it again as the input of a product.
template <class Mode>
struct State {
    typedef typename Mode::Vector V;
    typedef typename Mode::Input Input;
    float* start;
    float* x;
    Input* input;
    ptrdiff_t stride;

    __attribute__((always_inline)) State(const FlowHeadView& head, int rows, Carver& memory)
        : stride(row_stride(head.channels)) {
        start = memory.take<float>(rows * stride);
        x = memory.take<float>(rows * stride);
        input = memory.take<Input>(rows * stride);
    }

    void load(const float* noise, int rows, int channels) {
        copy_rows(noise, NumberFormat::fp32, channels, rows, channels, x, stride);
        copy_rows(noise, NumberFormat::fp32, channels, rows, channels, input, stride);
    }

    void save(float* out, int rows, int channels) const {
        for (int r = 0; r < rows; ++r) {
            for (int j = 0; j < channels; ++j) out[static_cast<ptrdiff_t>(r) * channels + j] = x[r * stride + j];
        }
    }

    void begin_step(int rows) {
        for (ptrdiff_t i = 0; i < rows * stride; ++i) start[i] = x[i];
    }

    // x = start + h (W_out a + b)
    void move(const FlowHeadView& head, const Input* a, ptrdiff_t lda, int rows, float h, float* scratch) {
        const float* bias = head.outward.bias;
        float *const from = start, *const to = x;
        Input* const copy = input;
        const ptrdiff_t ld = stride;
        const auto finish = [=](int r, int j, typename V::Float sum) {
            const typename V::Float velocity = V::add(sum, V::load(bias + j));
            const typename V::Float value = V::fma(V::all(h), velocity, V::load(from + r * ld + j));
            V::store(to + r * ld + j, value);
            put<V>(copy + r * ld + j, value);
        };
        gemm<Mode>(a, lda, rows, head.outward, 0, panels_of(head.channels), scratch, finish);
    }
};

template <class Mode>
struct FlowHeadKernels {
    typedef typename Mode::Vector V;
    typedef typename Mode::Input Input;
    typedef typename V::Float Float;

    // out = a W^T + b
    static void store(const Input* a, ptrdiff_t lda, int rows, const LinearView& linear, int begin, int end,
                      float* scratch, float* out, ptrdiff_t ldo) {
        const float* bias = linear.bias;
        gemm<Mode>(a, lda, rows, linear, begin, end, scratch,
                   [=](int r, int j, Float sum) { V::store(out + r * ldo + j, V::add(sum, V::load(bias + j))); });
    }

    // out = silu(a W^T + b)
    static void activate(const Input* a, ptrdiff_t lda, int rows, const LinearView& linear, int begin, int end,
                         float* scratch, Input* out, ptrdiff_t ldo) {
        const float* bias = linear.bias;
        gemm<Mode>(a, lda, rows, linear, begin, end, scratch, [=](int r, int j, Float sum) {
            put<V>(out + r * ldo + j, silu<V>(V::add(sum, V::load(bias + j))));
        });
    }

    // y += gate (a W^T + b)
    static void add_gated(const Input* a, ptrdiff_t lda, int rows, const LinearView& linear, int begin, int end,
                          float* scratch, const float* gate, ptrdiff_t ldg, float* y, ptrdiff_t ldy) {
        const float* bias = linear.bias;
        gemm<Mode>(a, lda, rows, linear, begin, end, scratch, [=](int r, int j, Float sum) {
            const Float change = V::add(sum, V::load(bias + j));
            V::store(y + r * ldy + j, V::fma(V::load(gate + r * ldg + j), change, V::load(y + r * ldy + j)));
        });
    }

    // out = norm(y) (1 + scale) + shift with scale = m W_scale^T + b, shift likewise; `shifts` is work space.
    static void modulate(const Input* m, ptrdiff_t stride, int rows, int width, const LinearView& shift,
                         const LinearView& scale, float* scratch, const float* y, float* shifts, const float* mean,
                         const float* inverse, Input* out) {
        const int panels = panels_of(width);
        store(m, stride, rows, shift, 0, panels, scratch, shifts, stride);
        const float* bias = scale.bias;
        gemm<Mode>(m, stride, rows, scale, 0, panels, scratch, [=](int r, int j, Float sum) {
            const Float factor = V::add(sum, V::load(bias + j));
            const ptrdiff_t at = r * stride + j;
            put<V>(out + at, modulated<V>(V::load(y + at), mean[r], inverse[r], factor, V::load(shifts + at)));
        });
    }

    static void by_rows(const FlowHeadView& head, const FlowHeadCall& call, int64_t row, int rows, char* memory) {
        const int width = head.width, panels = panels_of(width);
        const ptrdiff_t stride = row_stride(width), c_stride = row_stride(head.condition_width);
        float* scratch = reinterpret_cast<float*>(memory);
        Carver carver{memory + GEMM_SCRATCH};
        State<Mode> state(head, rows, carver);
        float* mean = carver.take<float>(rows);
        float* inverse = carver.take<float>(rows);
        float* condition = carver.take<float>(rows * stride);
        float* y = carver.take<float>(rows * stride);
        float* gate = carver.take<float>(rows * stride);
        Input* m = carver.take<Input>(rows * stride);
        Input* hidden = carver.take<Input>(rows * stride);
        Input* a = carver.take<Input>(rows * (c_stride > stride ? c_stride : stride));

        const char* c = static_cast<const char*>(call.c) + row * head.condition_width * bytes_of(call.c_format);
        copy_rows(c, call.c_format, head.condition_width, rows, head.condition_width, a, c_stride);
        store(a, c_stride, rows, head.condition, 0, panels, scratch, condition, stride);
        state.load(call.noise + row * head.channels, rows, head.channels);
        for (int k = 0; k < head.evaluations; ++k) {
            if (k % head.moves_per_step == 0) state.begin_step(rows);
            for (int r = 0; r < rows; ++r) {
                modulation_input<V>(condition + r * stride, head.time + k * stride, panels, m + r * stride);
            }
            store(state.input, state.stride, rows, head.inward, 0, panels, scratch, y, stride);
            for (int i = 0; i < head.layers; ++i) {
                const FlowBlockView& block = head.blocks[i];
                row_statistics<V>(y, stride, rows, width, mean, inverse);
                modulate(m, stride, rows, width, block.shift, block.scale, scratch, y, gate, mean, inverse, a);
                activate(a, stride, rows, block.up, 0, panels, scratch, hidden, stride);
                store(m, stride, rows, block.gate, 0, panels, scratch, gate, stride);
                add_gated(hidden, stride, rows, block.down, 0, panels, scratch, gate, stride, y, stride);
            }
            row_statistics<V>(y, stride, rows, width, mean, inverse);
            modulate(m, stride, rows, width, head.shift, head.scale, scratch, y, gate, mean, inverse, a);
            state.move(head, a, stride, rows, head.moves[k], scratch);
        }
        state.save(call.out + row * head.channels, rows, head.channels);
    }

    // out = norm(y) (1 + scale) + shift for all columns
    static void modulate_stored(const float* y, ptrdiff_t stride, int rows, int width, const float* shift,
                                const float* scale, ptrdiff_t ldm, float* mean, float* inverse, Input* out) {
        row_statistics<V>(y, stride, rows, width, mean, inverse);
        for (int r = 0; r < rows; ++r) {
            for (int j = 0; j < panels_of(width) * PANEL; j += V::LANES) {
                const ptrdiff_t at = r * stride + j, modulation = r * ldm + j;
                put<V>(out + at, modulated<V>(V::load(y + at), mean[r], inverse[r], V::load(scale + modulation),
                                              V::load(shift + modulation)));
            }
        }
    }

    static void by_columns(const FlowHeadView& head, const FlowHeadCall& call, int64_t row, int rows,
                           const Member& member, char* shared, char* memory) {
        const int width = head.width, panels = panels_of(width);
        const int begin = static_cast<int>(static_cast<int64_t>(panels) * member.thread / member.threads);
        const int end = static_cast<int>(static_cast<int64_t>(panels) * (member.thread + 1) / member.threads);
        const ptrdiff_t stride = row_stride(width), c_stride = row_stride(head.condition_width);
        const int products = 3 * head.layers + 2;
        const ptrdiff_t ldm = products * stride;
        const int together = smaller(head.evaluations, GEMM_ROWS / rows);

        Carver common{shared};
        float* condition = common.take<float>(rows * stride);
        // By turns, so that nobody writes the next one while another still reads the last.
        float* ys[2] = {common.take<float>(rows * stride), common.take<float>(rows * stride)};
        Input* hidden = common.take<Input>(rows * stride);
        Input* m = common.take<Input>(together * rows * stride);
        float* modulations = common.take<float>(together * rows * ldm);

        float* scratch = reinterpret_cast<float*>(memory);
        Carver own{memory + GEMM_SCRATCH};
        State<Mode> state(head, rows, own);
        float* mean = own.take<float>(rows);
        float* inverse = own.take<float>(rows);
        Input* a = own.take<Input>(rows * (c_stride > stride ? c_stride : stride));

        const char* c = static_cast<const char*>(call.c) + row * head.condition_width * bytes_of(call.c_format);
        copy_rows(c, call.c_format, head.condition_width, rows, head.condition_width, a, c_stride);
        store(a, c_stride, rows, head.condition, begin, end, scratch, condition, stride);
        state.load(call.noise + row * head.channels, rows, head.channels);
        wait(member);
        for (int first = 0; first < head.evaluations; first += together) {
            const int count = smaller(together, head.evaluations - first);
            for (int i = member.thread; i < count * rows; i += member.threads) {
                const float* time = head.time + (first + i / rows) * stride;
                modulation_input<V>(condition + i % rows * stride, time, panels, m + i * stride);
            }
            wait(member);
            for (int i = 0; i < products; ++i) {
                store(m, stride, count * rows, modulation(head, i), begin, end, scratch, modulations + i * stride, ldm);
            }
            wait(member);
            for (int k = first; k < first + count; ++k) {
                const float* modulated = modulations + (k - first) * rows * ldm;
                float* y = ys[k % 2];
                if (k % head.moves_per_step == 0) state.begin_step(rows);
                store(state.input, state.stride, rows, head.inward, begin, end, scratch, y, stride);
                wait(member);
                for (int i = 0; i < head.layers; ++i) {
                    const FlowBlockView& block = head.blocks[i];
                    const float* shift = modulated + 3 * i * stride;
                    modulate_stored(y, stride, rows, width, shift, shift + stride, ldm, mean, inverse, a);
                    activate(a, stride, rows, block.up, begin, end, scratch, hidden, stride);
                    wait(member);
                    add_gated(hidden, stride, rows, block.down, begin, end, scratch, shift + 2 * stride, ldm, y,
                              stride);
                    wait(member);
                }
                const float* shift = modulated + 3 * head.layers * stride;
                modulate_stored(y, stride, rows, width, shift, shift + stride, ldm, mean, inverse, a);
                state.move(head, a, stride, rows, head.moves[k], scratch);
            }
        }
        if (member.thread == 0) state.save(call.out + row * head.channels, rows, head.channels);
        // The next rows use the same memory.
        wait(member);
    }

    // Shift, scale and gate of each block, then shift and scale of the end.
    static const LinearView& modulation(const FlowHeadView& head, int i) {
        if (i == 3 * head.layers) return head.shift;
        if (i == 3 * head.layers + 1) return head.scale;
        const FlowBlockView& block = head.blocks[i / 3];
        return i % 3 == 0 ? block.shift : i % 3 == 1 ? block.scale : block.gate;
    }
};

template <class Vector, template <class> class HalfMode>
void flow_head_rows(const FlowHeadView& head, const FlowHeadCall& call, int64_t row, int rows, char* memory) {
    if (is_half(head.format)) {
        FlowHeadKernels<HalfMode<Vector>>::by_rows(head, call, row, rows, memory);
    } else {
        FlowHeadKernels<Full<Vector>>::by_rows(head, call, row, rows, memory);
    }
}

template <class Vector, template <class> class HalfMode>
void flow_head_columns(const FlowHeadView& head, const FlowHeadCall& call, int64_t row, int rows, const Member& member,
                       char* shared, char* memory) {
    if (is_half(head.format)) {
        FlowHeadKernels<HalfMode<Vector>>::by_columns(head, call, row, rows, member, shared, memory);
    } else {
        FlowHeadKernels<Full<Vector>>::by_columns(head, call, row, rows, member, shared, memory);
    }
}

}  // namespace
}  // namespace enma
