// Products over bf16 weights by the tile registers of AMX, or what stands in for them as `Tiles` of a vector type: eight
// registers of 16 rows of 64 bytes, and an instruction that multiplies two of them onto a third.
//
// A panel of weights is a column of tiles as it lies, 16 pairs of inputs each. Sums stay in their registers for all of
// k; each tile, in the order of k, adds what the first and what the second inputs of its pairs give, summed apart. So a
// row's result depends neither on the other rows nor on the number of threads.
#pragma once

#include "core/cpu/gemm_kernels.h"

namespace enma {
namespace {

// Pairs of inputs of one instruction, and rows of one register.
constexpr int TILE_PAIRS = 16;
constexpr int TILE_ROWS = 16;
// Registers: sums from 0 on, then inputs, then weights.
constexpr int TILE_SUMS = 4;
constexpr int TILE_INPUTS = 4;
constexpr int TILE_WEIGHTS = 6;

// The last 1 to 15 pairs of rows and of weights, filled up with zeros to whole tiles.
struct TileEnds {
    alignas(64) Half inputs[2][TILE_ROWS][2 * TILE_PAIRS];
    alignas(64) uint32_t weights[TILE_SUMS][TILE_PAIRS][PANEL];
};

// Registers have numbers, so what would be loops over them are templates. Sum p is that of the first tile of rows with
// panel p, sum SPAN + p that of the second.
template <class T, int COUNT>
ENMA_INLINE void zero_sums() {
    T::template zero<COUNT - 1>();
    if constexpr (COUNT > 1) zero_sums<T, COUNT - 1>();
}

template <class T, int TALL, int SPAN, int P = 0>
ENMA_INLINE void multiply_panels(const uint32_t* w, ptrdiff_t ldw) {
    // In turn, so that one is loaded while the other is multiplied.
    constexpr int WEIGHTS = TILE_WEIGHTS + P % 2;
    T::template load<WEIGHTS>(w + P * ldw, PANEL * sizeof *w);
    T::template multiply<P, TILE_INPUTS, WEIGHTS>();
    if constexpr (TALL == 2) T::template multiply<SPAN + P, TILE_INPUTS + 1, WEIGHTS>();
    if constexpr (P + 1 < SPAN) multiply_panels<T, TALL, SPAN, P + 1>(w, ldw);
}

template <class T, int TALL, int SPAN, int P = 0>
ENMA_INLINE void store_sums(float* const (&c)[2], ptrdiff_t ldc) {
    T::template store<P>(c[0] + P * PANEL, ldc * sizeof(float));
    if constexpr (TALL == 2) T::template store<SPAN + P>(c[1] + P * PANEL, ldc * sizeof(float));
    if constexpr (P + 1 < SPAN) store_sums<T, TALL, SPAN, P + 1>(c, ldc);
}

// c[i][r][16 p + j] = sum_k a[i][r][k] w[p][k][j] for the `height` rows r of each of TALL tiles i, and SPAN panels p.
template <class T, int TALL, int SPAN>
void tiled_product(const Half* const (&a)[2], ptrdiff_t lda, int height, const uint32_t* w, ptrdiff_t ldw, int pairs,
                   float* const (&c)[2], ptrdiff_t ldc) {
    static_assert(TALL <= 2 && TALL * SPAN <= TILE_SUMS);
    const int whole = pairs / TILE_PAIRS * TILE_PAIRS, left = pairs - whole;
    TileEnds ends;
    // Before any tile is in use: functions that are called may use them too.
    if (left > 0) {
        __builtin_memset(ends.inputs, 0, TALL * sizeof ends.inputs[0]);
        __builtin_memset(ends.weights, 0, SPAN * sizeof ends.weights[0]);
        for (int i = 0; i < TALL; ++i) {
            for (int r = 0; r < height; ++r) {
                __builtin_memcpy(ends.inputs[i][r], a[i] + r * lda + 2 * whole, 2 * sizeof(Half) * left);
            }
        }
        for (int p = 0; p < SPAN; ++p) {
            __builtin_memcpy(ends.weights[p], w + p * ldw + whole * PANEL, PANEL * sizeof *w * left);
        }
    }
    zero_sums<T, TALL * SPAN>();
    for (int from = 0; from < whole; from += TILE_PAIRS) {
        T::template load<TILE_INPUTS>(a[0] + 2 * from, lda * sizeof(Half));
        if constexpr (TALL == 2) T::template load<TILE_INPUTS + 1>(a[1] + 2 * from, lda * sizeof(Half));
        multiply_panels<T, TALL, SPAN>(w + from * PANEL, ldw);
    }
    if (left > 0) {
        T::template load<TILE_INPUTS>(ends.inputs[0], sizeof ends.inputs[0][0]);
        if constexpr (TALL == 2) T::template load<TILE_INPUTS + 1>(ends.inputs[1], sizeof ends.inputs[1][0]);
        multiply_panels<T, TALL, SPAN>(ends.weights[0][0], TILE_PAIRS * PANEL);
    }
    store_sums<T, TALL, SPAN>(c, ldc);
}

template <class Mode, class Epilogue>
    requires(Mode::TILES)
void gemm(const Half* a, ptrdiff_t lda, int rows, const LinearView& linear, int begin, int end, float* scratch,
          const Epilogue& finish, const uint32_t*) {
    typedef typename Mode::Vector V;
    typedef typename V::Tiles T;
    const int pairs = (linear.k + 1) / 2, height = smaller(TILE_ROWS, rows);
    const ptrdiff_t panel_size = panel_size_of<Mode>(linear);
    T::configure(height);
    for (int panel = begin, span; panel < end; panel += span) {
        const int left = end - panel;
        // One tile of rows by four panels, or two by two: the sums of one do not wait for each other.
        span = rows <= TILE_ROWS && left >= 4 ? 4 : left >= 2 ? 2 : 1;
        const uint32_t* w = panel_of<Mode>(linear, panel);
        const ptrdiff_t ldc = span * PANEL;
        for (int row = 0; row < rows; row += 2 * TILE_ROWS) {
            const bool tall = row + TILE_ROWS < rows;
            // The last tile begins earlier where it would not be whole: some rows are made twice, with the same bits.
            const int first = smaller(row, rows - height), second = smaller(row + TILE_ROWS, rows - height);
            const Half* const x[2] = {a + first * lda, a + second * lda};
            float* const sums[2] = {scratch + first * ldc, scratch + second * ldc};
            const auto product = tall        ? span == 2 ? tiled_product<T, 2, 2> : tiled_product<T, 2, 1>
                                 : span == 4 ? tiled_product<T, 1, 4>
                                 : span == 2 ? tiled_product<T, 1, 2>
                                             : tiled_product<T, 1, 1>;
            product(x, lda, height, w, panel_size, pairs, sums, ldc);
        }
        for (int r = 0; r < rows; ++r) {
            for (int j = 0; j < span * PANEL; j += V::LANES) {
                finish(r, panel * PANEL + j, V::load(scratch + r * ldc + j));
            }
        }
    }
    T::release();
}

}  // namespace
}  // namespace enma
