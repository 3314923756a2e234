// Matrix products over packed weights, for the vector type `Vector` that the including file defines behind its target
// pragma. Everything here has internal linkage and calls nothing inline of a standard header: the linker keeps one copy
// of such a function and might take the one of this file for the whole program.
//
// Every sum over k is taken in the order of k by one accumulator, whatever the tiling, so a row's result depends neither
// on the other rows nor on the number of threads. No product feeds a sum except through `fma`, so the compiler has
// nothing to contract.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "core/cpu/gemm.h"

#define ENMA_INLINE __attribute__((always_inline)) static inline
#define ENMA_ALWAYS __attribute__((always_inline))

namespace enma {
namespace {

typedef uint16_t Half;

ENMA_INLINE int smaller(int a, int b) { return a < b ? a : b; }

ENMA_INLINE float widened(Half a) {
    const uint32_t bits = static_cast<uint32_t>(a) << 16;
    float value;
    __builtin_memcpy(&value, &bits, sizeof value);
    return value;
}

ENMA_INLINE Half rounded(float a) {
    uint32_t bits;
    __builtin_memcpy(&bits, &a, sizeof bits);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fc0;
    return static_cast<Half>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// How weights are stored and multiplied; STEP inputs make one word. First fp32 weights.
template <class V>
struct Full {
    typedef V Vector;
    typedef float Input;
    typedef float Weight;
    static constexpr int STEP = 1;
    static constexpr bool WIDENS = false;
};

// bf16 weights, widened exactly; inputs stay fp32.
template <class V>
struct Widened {
    typedef V Vector;
    typedef float Input;
    typedef uint32_t Weight;
    static constexpr int STEP = 2;
    static constexpr bool WIDENS = true;
};

// bf16 weights and inputs, products of pairs.
template <class V>
struct Paired {
    typedef V Vector;
    typedef Half Input;
    typedef uint32_t Weight;
    static constexpr int STEP = 2;
    static constexpr bool WIDENS = false;
};

template <class Mode>
constexpr bool is_paired = sizeof(typename Mode::Input) == 2;

// f(0), f(1) ... f(N - 1), unrolled before anything is optimised: only then do arrays live in registers. ENMA_SMALL
// keeps the loop, where code should rather be small and soon compiled.
template <int N, int I = 0, class F>
ENMA_INLINE void repeat(const F& f) {
#ifdef ENMA_SMALL
    for (int i = 0; i < N; ++i) f(i);
#else
    if constexpr (I < N) {
        f(I);
        repeat<N, I + 1>(f);
    }
#endif
}

// sum[r][p] += a[r][0] weight(p), one column of inputs.
template <class V, int ROWS, int PARTS, class Load>
ENMA_INLINE void accumulate(const float* a, ptrdiff_t lda, typename V::Float (&sum)[ROWS][PARTS], const Load& weight) {
    // Beside the sums, three registers have to do.
    if constexpr (ROWS <= 2) {
        typename V::Float x[ROWS];
        repeat<ROWS>([&](int r) ENMA_ALWAYS { x[r] = V::broadcast(a + r * lda); });
        repeat<PARTS>([&](int p) ENMA_ALWAYS {
            const typename V::Float b = weight(p);
            repeat<ROWS>([&](int r) ENMA_ALWAYS { sum[r][p] = V::accumulate(sum[r][p], x[r], b); });
        });
    } else {
        constexpr int TOGETHER = PARTS < 2 ? PARTS : 2;
        repeat<PARTS / TOGETHER>([&](int q) ENMA_ALWAYS {
            typename V::Float b[TOGETHER];
            repeat<TOGETHER>([&](int p) ENMA_ALWAYS { b[p] = weight(q * TOGETHER + p); });
            repeat<ROWS>([&](int r) ENMA_ALWAYS {
                const typename V::Float x = V::broadcast(a + r * lda);
                repeat<TOGETHER>([&](int p) ENMA_ALWAYS {
                    sum[r][q * TOGETHER + p] = V::accumulate(sum[r][q * TOGETHER + p], x, b[p]);
                });
            });
        });
    }
}

// Weights that are needed soon, from `line` on; each step of a product asks for `step` bytes of them.
struct Ahead {
    const char* line;
    ptrdiff_t step;
};

// c[r][16 p + j] = (first ? 0 : c) + sum_k a[r][k] w[p][k][j]
template <class Mode, int ROWS, int SPAN>
void product(const typename Mode::Input* a, ptrdiff_t lda, const typename Mode::Weight* w, ptrdiff_t ldw, int k,
             float* c, ptrdiff_t ldc, bool first, Ahead ahead) {
    typedef typename Mode::Vector V;
    constexpr int PARTS = SPAN * PANEL / V::LANES;
    constexpr int PER_PANEL = PANEL / V::LANES;
    const auto at = [&](int p) ENMA_ALWAYS { return w + (p / PER_PANEL) * ldw + (p % PER_PANEL) * V::LANES; };
    typename V::Float sum[ROWS][PARTS];
    repeat<ROWS>([&](int r) ENMA_ALWAYS { repeat<PARTS>([&](int p) ENMA_ALWAYS { sum[r][p] = V::all(0.0f); }); });
    if (!first) {
        repeat<ROWS>([&](int r) ENMA_ALWAYS {
            repeat<PARTS>([&](int p) ENMA_ALWAYS { sum[r][p] = V::load(c + r * ldc + p * V::LANES); });
        });
    }
    if constexpr (is_paired<Mode>) {
        for (int i = 0; i < (k + 1) / 2; ++i) {
            __builtin_prefetch(ahead.line + i * ahead.step, 0, 2);
            typename V::Pair b[PARTS];
            repeat<PARTS>([&](int p) ENMA_ALWAYS { b[p] = V::load_pairs(at(p)); });
            repeat<ROWS>([&](int r) ENMA_ALWAYS {
                const typename V::Pair x = V::all_pairs(a + r * lda + 2 * i);
                repeat<PARTS>([&](int p) ENMA_ALWAYS { sum[r][p] = V::dot(sum[r][p], x, b[p]); });
            });
            w += PANEL;
        }
    } else if constexpr (Mode::WIDENS) {
        const auto even = [&](int p) ENMA_ALWAYS { return V::template widen<false>(at(p)); };
        const auto odd = [&](int p) ENMA_ALWAYS { return V::template widen<true>(at(p)); };
        for (int i = 0; i < k / 2; ++i) {
            __builtin_prefetch(ahead.line + i * ahead.step, 0, 2);
            accumulate<V, ROWS, PARTS>(a + 2 * i, lda, sum, even);
            accumulate<V, ROWS, PARTS>(a + 2 * i + 1, lda, sum, odd);
            w += PANEL;
        }
    } else {
        const auto load = [&](int p) ENMA_ALWAYS { return V::load(at(p)); };
        for (int i = 0; i < k; ++i) {
            __builtin_prefetch(ahead.line + i * ahead.step, 0, 2);
            accumulate<V, ROWS, PARTS>(a + i, lda, sum, load);
            w += PANEL;
        }
    }
    repeat<ROWS>([&](int r) ENMA_ALWAYS {
        repeat<PARTS>([&](int p) ENMA_ALWAYS { V::store(c + r * ldc + p * V::LANES, sum[r][p]); });
    });
    if constexpr (Mode::WIDENS) {
        // Apart from the loop, for the sake of its registers.
        if (k % 2 == 0) return;
        for (int r = 0; r < ROWS; ++r) {
            for (int p = 0; p < PARTS; ++p) {
                float* out = c + r * ldc + p * V::LANES;
                V::store(out, V::fma(V::all(a[r * lda + k - 1]), V::template widen<false>(at(p)), V::load(out)));
            }
        }
    }
}

// `product` for 1 to ROWS rows and 1, 2, 4 or 8 panels, as far as the accumulators fit the registers.
template <class Mode, int ROWS = Mode::Vector::MAX_ROWS, int SPAN = MAX_SPAN>
void any_product(int rows, int span, const typename Mode::Input* a, ptrdiff_t lda, const typename Mode::Weight* w,
                 ptrdiff_t ldw, int k, float* c, ptrdiff_t ldc, bool first, Ahead ahead) {
    typedef typename Mode::Vector V;
    if constexpr (SPAN > 1 && SPAN * PANEL / V::LANES > V::ACCUMULATORS) {
        any_product<Mode, ROWS, SPAN / 2>(rows, span, a, lda, w, ldw, k, c, ldc, first, ahead);
    } else if (SPAN > 1 && span < SPAN) {
        if constexpr (SPAN > 1) any_product<Mode, ROWS, SPAN / 2>(rows, span, a, lda, w, ldw, k, c, ldc, first, ahead);
    } else if constexpr (ROWS > 1 && SPAN > 1 && ROWS * SPAN * PANEL / V::LANES > V::ACCUMULATORS) {
        any_product<Mode, ROWS - 1, SPAN>(rows, span, a, lda, w, ldw, k, c, ldc, first, ahead);
    } else if (rows == ROWS) {
        product<Mode, ROWS, SPAN>(a, lda, w, ldw, k, c, ldc, first, ahead);
    } else if constexpr (ROWS > 1) {
        any_product<Mode, ROWS - 1, SPAN>(rows, span, a, lda, w, ldw, k, c, ldc, first, ahead);
    }
}

// Whether two panels at a time, with the next two on their way, keep the arithmetic busy: where a panel is one vector,
// and from four rows on; measured, docs/notes/packed-products.md.
template <class V>
ENMA_INLINE bool in_pairs(int rows) {
    return V::LANES == PANEL && rows > 3;
}

// Panels that one call should span for this many rows.
template <class V>
ENMA_INLINE int span_for(int rows, int panels) {
    int span = in_pairs<V>(rows) ? 2 : MAX_SPAN;
    while (span > 1 && (span > panels || rows * span * PANEL / V::LANES > V::ACCUMULATORS)) span /= 2;
    return span;
}

// Words of a panel, and where panel `panel` begins.
template <class Mode>
ENMA_INLINE ptrdiff_t panel_size_of(const LinearView& linear) {
    return static_cast<ptrdiff_t>((linear.k + Mode::STEP - 1) / Mode::STEP) * PANEL;
}

template <class Mode>
ENMA_INLINE const typename Mode::Weight* panel_of(const LinearView& linear, int panel) {
    return static_cast<const typename Mode::Weight*>(linear.weight) + panel * panel_size_of<Mode>(linear);
}

// Passes a [rows, k] times panels [begin, end) to the epilogue: finish(row, column, sums of V::LANES columns). From 1 to
// GEMM_ROWS rows; `scratch` has GEMM_SCRATCH bytes. `next` are the weights of the product after this one, where they do
// not follow in memory: a product's first panels come from far away as a rule.
template <class Mode, class Epilogue>
void gemm(const typename Mode::Input* a, ptrdiff_t lda, int rows, const LinearView& linear, int begin, int end,
          float* scratch, const Epilogue& finish, const typename Mode::Weight* next = nullptr) {
    typedef typename Mode::Vector V;
    typedef typename Mode::Weight Weight;
    const int k = linear.k;
    const ptrdiff_t panel_size = panel_size_of<Mode>(linear);
    const int row_blocks = (rows + V::MAX_ROWS - 1) / V::MAX_ROWS;
    // One block of rows reads each weight once: nothing to keep in the cache.
    const int block_k = row_blocks == 1 ? k : BLOCK_K;
    for (int panel = begin; panel < end;) {
        const int span = span_for<V>(smaller(rows, V::MAX_ROWS), end - panel);
        const Weight* weights = panel_of<Mode>(linear, panel);
        const ptrdiff_t ldc = span * PANEL;
        const bool ends = panel + span == end, more = !ends || next != nullptr || end * PANEL >= linear.n;
        for (int from = 0; from < k; from += block_k) {
            const int depth = smaller(block_k, k - from);
            const ptrdiff_t lines = (depth + Mode::STEP - 1) / Mode::STEP;
            const Weight* block = weights + static_cast<ptrdiff_t>(from / Mode::STEP) * PANEL;
            const bool leaves = ends && next != nullptr && from + depth == k;
            const Weight* soon = leaves ? next : block + lines * PANEL + (span - 1) * panel_size;
            const ptrdiff_t step = more && (row_blocks > 1 || in_pairs<V>(rows)) ? 64 * span / row_blocks : 0;
            for (int i = 0, row = 0; i < row_blocks; ++i) {
                const int count = rows / row_blocks + (i < rows % row_blocks);
                const typename Mode::Input* x = a + row * lda + from;
                float* sums = scratch + row * ldc;
                any_product<Mode>(count, span, x, lda, block, panel_size, depth, sums, ldc, from == 0,
                                  {reinterpret_cast<const char*>(soon) + i * lines * step, step});
                if (from + depth == k) {
                    for (int r = row; r < row + count; ++r) {
                        for (int j = 0; j < span * PANEL; j += V::LANES) {
                            finish(r, panel * PANEL + j, V::load(scratch + r * ldc + j));
                        }
                    }
                }
                row += count;
            }
        }
        panel += span;
    }
}

// e^x within 1.2 ulp for |x| < 87; beyond it saturates at 2^+-127. NaN stays.
template <class V>
ENMA_INLINE typename V::Float exponential(typename V::Float x) {
    x = V::maximum(V::all(-87.0f), V::minimum(V::all(88.0f), x));
    // The low bits of `shifted` are the nearest integer of x / ln 2.
    const typename V::Float magic = V::all(12582912.0f);
    const typename V::Float shifted = V::fma(x, V::all(1.44269504f), magic);
    const typename V::Float n = V::subtract(shifted, magic);
    typename V::Float r = V::fma(n, V::all(-0.693359375f), x);
    r = V::fma(n, V::all(2.12194440e-4f), r);
    typename V::Float p = V::all(1.9875691500e-4f);
    p = V::fma(p, r, V::all(1.3981999507e-3f));
    p = V::fma(p, r, V::all(8.3334519073e-3f));
    p = V::fma(p, r, V::all(4.1665795894e-2f));
    p = V::fma(p, r, V::all(1.6666665459e-1f));
    p = V::fma(p, r, V::all(5.0000001201e-1f));
    p = V::fma(V::multiply(p, r), r, r);
    return V::scale_by_power(V::add(p, V::all(1.0f)), shifted);
}

// x / (1 + e^-x)
template <class V>
ENMA_INLINE typename V::Float silu(typename V::Float x) {
    const typename V::Float e = exponential<V>(V::subtract(V::all(0.0f), x));
    return V::divide(x, V::add(V::all(1.0f), e));
}

// For instruction sets that cannot round a vector to bf16.
template <class V>
ENMA_INLINE void store_rounded(Half* out, typename V::Float value) {
    float lanes[V::LANES];
    V::store(lanes, value);
    for (int j = 0; j < V::LANES; ++j) out[j] = rounded(lanes[j]);
}

template <class V>
ENMA_INLINE void put(float* out, typename V::Float value) {
    V::store(out, value);
}

template <class V>
ENMA_INLINE void put(Half* out, typename V::Float value) {
    V::store_half(out, value);
}

ENMA_INLINE void put_one(float* out, float value) { *out = value; }
ENMA_INLINE void put_one(Half* out, float value) { *out = rounded(value); }

// Rows of fp32 or bf16 in memory as inputs of a product, zero from `width` up to `out_stride`.
template <class Input>
void copy_rows(const void* from, NumberFormat format, ptrdiff_t stride, int rows, int width, Input* out,
               ptrdiff_t out_stride) {
    for (int r = 0; r < rows; ++r) {
        Input* row = out + r * out_stride;
        if (is_half(format)) {
            const Half* x = static_cast<const Half*>(from) + r * stride;
            for (int j = 0; j < width; ++j) put_one(row + j, widened(x[j]));
        } else {
            const float* x = static_cast<const float*>(from) + r * stride;
            for (int j = 0; j < width; ++j) put_one(row + j, x[j]);
        }
        for (ptrdiff_t j = width; j < out_stride; ++j) put_one(row + j, 0.0f);
    }
}

}  // namespace
}  // namespace enma
