// Products of matrices as they lie, small enough for the caches, behind lanes.h.
#pragma once

namespace {
namespace tiles {

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t padded(int64_t n) { return (n + LANES - 1) / LANES * LANES; }
// Sizes of scratch are multiples of a cache line.
inline int64_t whole_lines(int64_t n) { return (n + 15) / 16 * 16; }

inline float* taken(float*& scratch, int64_t n) {
    float* const start = scratch;
    scratch += whole_lines(n);
    return start;
}

struct Matrix {
    const float* data;
    int64_t row, column;
};

enum class Onto { ZERO, SUM, BIAS };

template <int R, int C, Onto ONTO>
inline void tile(int64_t depth, const float* a, int64_t a_row, int64_t a_column, const float* b, int64_t ldb, float* c,
                 int64_t ldc, const float* bias, float slope) {
    Floats sum[R][C];
#pragma GCC unroll 6
    for (int i = 0; i < R; ++i)
#pragma GCC unroll 2
        for (int j = 0; j < C; ++j) sum[i][j] = ONTO == Onto::SUM ? load(c + i * ldc + j * LANES) : all(0.0f);
    for (int64_t l = 0; l < depth; ++l) {
        Floats column[C];
#pragma GCC unroll 2
        for (int j = 0; j < C; ++j) column[j] = load(b + l * ldb + j * LANES);
#pragma GCC unroll 6
        for (int i = 0; i < R; ++i) {
            const Floats entry = all(a[i * a_row + l * a_column]);
#pragma GCC unroll 2
            for (int j = 0; j < C; ++j) sum[i][j] = fma(entry, column[j], sum[i][j]);
        }
    }
#pragma GCC unroll 6
    for (int i = 0; i < R; ++i)
#pragma GCC unroll 2
        for (int j = 0; j < C; ++j) {
            // The bias comes last: on top of a large one the products would lose their digits.
            if (ONTO == Onto::BIAS) sum[i][j] = fma(all(slope), load(bias + i * ldc + j * LANES), sum[i][j]);
            store(c + i * ldc + j * LANES, sum[i][j]);
        }
}

template <int C, Onto ONTO>
inline void panel(int64_t rows, int64_t depth, Matrix a, const float* b, int64_t ldb, float* c, int64_t ldc,
                  const float* bias, float slope) {
    int64_t i = 0;
    for (; i + 6 <= rows; i += 6)
        tile<6, C, ONTO>(depth, a.data + i * a.row, a.row, a.column, b, ldb, c + i * ldc, ldc, bias + i * ldc, slope);
    const float* const rest = a.data + i * a.row;
    c += i * ldc;
    bias += i * ldc;
    switch (rows - i) {
        case 5: tile<5, C, ONTO>(depth, rest, a.row, a.column, b, ldb, c, ldc, bias, slope); break;
        case 4: tile<4, C, ONTO>(depth, rest, a.row, a.column, b, ldb, c, ldc, bias, slope); break;
        case 3: tile<3, C, ONTO>(depth, rest, a.row, a.column, b, ldb, c, ldc, bias, slope); break;
        case 2: tile<2, C, ONTO>(depth, rest, a.row, a.column, b, ldb, c, ldc, bias, slope); break;
        case 1: tile<1, C, ONTO>(depth, rest, a.row, a.column, b, ldb, c, ldc, bias, slope); break;
        default: break;
    }
}

// c [rows, columns] = a [rows, depth] b [depth, columns], onto 0, c, or slope * bias (laid out as c); columns is a
// multiple of LANES. The order of sums within a row does not depend on the number of rows.
template <Onto ONTO>
void multiply(int64_t rows, int64_t columns, int64_t depth, Matrix a, const float* b, int64_t ldb, float* c,
              int64_t ldc, const float* bias = nullptr, float slope = 0.0f) {
    if (bias == nullptr) bias = c;
    int64_t j = 0;
    for (; j + 2 * LANES <= columns; j += 2 * LANES)
        panel<2, ONTO>(rows, depth, a, b + j, ldb, c + j, ldc, bias + j, slope);
    if (j < columns) panel<1, ONTO>(rows, depth, a, b + j, ldb, c + j, ldc, bias + j, slope);
}

// to [width, lanes] from rows [count, stride], zero in the lanes behind the last row.
inline void transposed(const float* rows, int64_t stride, int64_t count, int64_t width, int64_t lanes, float* to) {
    for (int64_t p = 0; p < lanes; p += LANES) {
        each(width, [&](int64_t i, auto part) {
            Floats block[LANES];
#pragma GCC unroll 16
            for (int64_t r = 0; r < LANES; ++r) {
                block[r] = p + r < count ? load(rows + (p + r) * stride + i, part) : Floats{};
            }
            transpose(block);
            const int64_t used = smaller(LANES, width - i);
#pragma GCC unroll 16
            for (int64_t c = 0; c < LANES; ++c) {
                if (c < used) store(to + (i + c) * lanes + p, block[c]);
            }
        });
    }
}

}  // namespace tiles
}  // namespace
