// Sums of rows with factors, compiled once per instruction set behind lanes.h.
#pragma once

namespace {
namespace sums {

using enma::RowSums;

// Rows [row, row + R) of V vectors of columns.
template <int R, int V>
ENMA_INLINE void part_of(const RowSums& g, int64_t row, int64_t column) {
    Floats made[R][V] = {};
    for (int64_t term = 0; term < g.terms; ++term) {
        Floats given[V];
        for (int v = 0; v < V; ++v) given[v] = load(g.in + term * g.in_stride + column + v * LANES);
        for (int r = 0; r < R; ++r) {
            const Floats factor = all(g.factors[(row + r) * g.terms + term]);
            for (int v = 0; v < V; ++v) made[r][v] = fma(factor, given[v], made[r][v]);
        }
    }
    for (int r = 0; r < R; ++r) {
        for (int v = 0; v < V; ++v) store(g.out + (row + r) * g.out_stride + column + v * LANES, made[r][v]);
    }
}

template <int V>
void columns_of(const RowSums& g, int64_t column) {
    constexpr int R = 4;
    int64_t row = 0;
    for (; row + R <= g.rows; row += R) part_of<R, V>(g, row, column);
    for (; row < g.rows; ++row) part_of<1, V>(g, row, column);
}

void of_rows(const RowSums& g) {
    int64_t column = 0;
    for (; column + 2 * LANES <= g.width; column += 2 * LANES) columns_of<2>(g, column);
    for (; column < g.width; column += LANES) columns_of<1>(g, column);
}

}  // namespace sums
}  // namespace
