// The kernels of tile_convolution.h, compiled once per instruction set behind lanes.h; after swiglu_body.h.
#pragma once

namespace {
namespace tiled {

using enma::TileGrid;
using enma::TileRange;

constexpr int NUMBERS = enma::TILE_NUMBERS, POINTS = enma::TILE_POINTS, PANEL = 16;
constexpr float EPSILON = 1e-5f;

template <int AXES>
constexpr int numbers_of = AXES == 1 ? NUMBERS : NUMBERS * NUMBERS;
template <int AXES>
constexpr int points_of = AXES == 1 ? POINTS : POINTS * POINTS;

// Both maps of a line, of the vectors a[0], a[step], ..., in place; the evaluation points are 0, 1, -1, 2, -2, infinity.
template <int STEP>
ENMA_INLINE void to_numbers(Floats* a) {
    const Floats x0 = a[0], x1 = a[STEP], x2 = a[2 * STEP], x3 = a[3 * STEP], x4 = a[4 * STEP], x5 = a[5 * STEP];
    const Floats even = fma(all(-4.0f), x2, x4), odd = fma(all(-4.0f), x1, x3);
    const Floats near = x4 - x2, far = all(2.0f) * (x3 - x1);
    a[0] = fma(all(4.0f), x0, fma(all(-5.0f), x2, x4));
    a[STEP] = even + odd;
    a[2 * STEP] = even - odd;
    a[3 * STEP] = near + far;
    a[4 * STEP] = near - far;
    a[5 * STEP] = fma(all(4.0f), x1, fma(all(-5.0f), x3, x5));
}

template <int STEP>
ENMA_INLINE void to_points(Floats* a) {
    const Floats sum = a[STEP] + a[2 * STEP], off = a[STEP] - a[2 * STEP];
    const Floats sum_2 = a[3 * STEP] + a[4 * STEP], off_2 = a[3 * STEP] - a[4 * STEP];
    a[0] = a[0] + sum + sum_2;
    a[STEP] = fma(all(2.0f), off_2, off);
    a[2 * STEP] = fma(all(4.0f), sum_2, sum);
    a[3 * STEP] = fma(all(8.0f), off_2, off) + a[5 * STEP];
}

// The points of one vector of columns of a tile, point (i, j) at i * NUMBERS + j.
template <int AXES>
ENMA_INLINE void points(const float* products, int64_t step, Floats (&a)[numbers_of<AXES>]) {
#pragma GCC unroll 36
    for (int k = 0; k < numbers_of<AXES>; ++k) a[k] = load(products + k * step);
    if constexpr (AXES == 1) {
        to_points<1>(a);
    } else {
#pragma GCC unroll 6
        for (int j = 0; j < NUMBERS; ++j) to_points<NUMBERS>(a + j);
#pragma GCC unroll 4
        for (int i = 0; i < POINTS; ++i) to_points<1>(a + i * NUMBERS);
    }
}

template <int AXES>
void transform(const TileGrid& grid, TileRange tiles, const float* rows, const float* zeros, int64_t width,
               float* numbers) {
    const int64_t step = (tiles.end - tiles.begin) * width;
    for (int64_t tile = tiles.begin; tile < tiles.end; ++tile, numbers += width) {
        const int* const from = grid.from + tile % grid.tiles * numbers_of<AXES>;
        const float* const member = rows + tile / grid.tiles * grid.places * width;
        const float* places[numbers_of<AXES>];
        for (int k = 0; k < numbers_of<AXES>; ++k) places[k] = from[k] < 0 ? zeros : member + from[k] * width;
        for (int64_t c = 0; c < width; c += LANES) {
            Floats a[numbers_of<AXES>];
#pragma GCC unroll 36
            for (int k = 0; k < numbers_of<AXES>; ++k) a[k] = load(places[k] + c);
            if constexpr (AXES == 1) {
                to_numbers<1>(a);
            } else {
#pragma GCC unroll 6
                for (int j = 0; j < NUMBERS; ++j) to_numbers<NUMBERS>(a + j);
#pragma GCC unroll 6
                for (int i = 0; i < NUMBERS; ++i) to_numbers<1>(a + i * NUMBERS);
            }
#pragma GCC unroll 36
            for (int k = 0; k < numbers_of<AXES>; ++k) store(numbers + k * step + c, a[k]);
        }
    }
}

// put(place, column, vector of a point) for the points of all tiles, of members one after the other.
template <int AXES, class Put>
ENMA_INLINE void each_point(const TileGrid& grid, int64_t tile, const Put& put) {
    const int* const to = grid.to + tile % grid.tiles * points_of<AXES>;
    const int64_t first = tile / grid.tiles * grid.places;
#pragma GCC unroll 16
    for (int k = 0; k < points_of<AXES>; ++k) {
        if (to[k] >= 0) put(first + to[k], AXES == 1 ? k : k / POINTS * NUMBERS + k % POINTS);
    }
}

template <int AXES>
void gate(const TileGrid& grid, TileRange tiles, const float* products, const float* shifts, int64_t stride,
          float* rows, int64_t width) {
    const int64_t step = (tiles.end - tiles.begin) * 2 * PANEL;
    for (int64_t tile = tiles.begin; tile < tiles.end; ++tile, products += 2 * PANEL) {
        const float* const shift = shifts + tile / grid.tiles * stride;
        for (int c = 0; c < PANEL; c += LANES) {
            Floats a[numbers_of<AXES>], b[numbers_of<AXES>];
            points<AXES>(products + c, step, a);
            points<AXES>(products + PANEL + c, step, b);
            const Floats of_a = load(shift + c), of_b = load(shift + PANEL + c);
            each_point<AXES>(grid, tile, [&](int64_t place, int k) {
                const Floats x = a[k] + of_a;
                store(rows + place * width + c, x * gated::sigmoid(x) * (b[k] + of_b));
            });
        }
    }
}

template <int AXES>
void put(const TileGrid& grid, TileRange tiles, const float* products, int64_t columns, float* rows, int64_t width) {
    const int64_t step = (tiles.end - tiles.begin) * columns;
    for (int64_t tile = tiles.begin; tile < tiles.end; ++tile, products += columns) {
        for (int64_t c = 0; c < columns; c += LANES) {
            Floats a[numbers_of<AXES>];
            points<AXES>(products + c, step, a);
            each_point<AXES>(grid, tile, [&](int64_t place, int k) { store(rows + place * width + c, a[k]); });
        }
    }
}

void transform_of(const TileGrid& grid, TileRange tiles, const float* rows, const float* zeros, int64_t width,
                  float* numbers) {
    (grid.axes == 1 ? transform<1> : transform<2>)(grid, tiles, rows, zeros, width, numbers);
}

void gate_of(const TileGrid& grid, TileRange tiles, const float* products, const float* shifts, int64_t stride,
             float* rows, int64_t width) {
    (grid.axes == 1 ? gate<1> : gate<2>)(grid, tiles, products, shifts, stride, rows, width);
}

void put_of(const TileGrid& grid, TileRange tiles, const float* products, int64_t columns, float* rows, int64_t width) {
    (grid.axes == 1 ? put<1> : put<2>)(grid, tiles, products, columns, rows, width);
}

void normalise(const float* rows, const float* scale, int64_t count, int64_t width, int64_t used, float* out) {
    const float share = 1.0f / static_cast<float>(used);
    for (int64_t row = 0; row < count; ++row, rows += width, out += width) {
        Sums sum, squares;
        sweep(used, [&](int64_t i, auto part, int chain) { sum.chain[chain] += load(rows + i, part); });
        const Floats mean = all(sum.total_of_all() * share);
        sweep(used, [&](int64_t i, auto part, int chain) {
            const Floats off = only(load(rows + i, part) - mean, part);
            squares.chain[chain] = fma(off, off, squares.chain[chain]);
        });
        const Floats inverse = all(1.0f / __builtin_sqrtf(squares.total_of_all() * share + EPSILON));
        // The scale is zero beyond what is used.
        each(width, [&](int64_t i, auto part) {
            store(out + i, (load(rows + i, part) - mean) * inverse * load(scale + i, part), part);
        });
    }
}

constexpr enma::TileKernels KERNELS{&transform_of, &gate_of, &put_of, &normalise};

}  // namespace tiled
}  // namespace
