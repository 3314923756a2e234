// Convolutions by three weights along each axis of a grid, of tiles: six numbers along an axis give four points.
//
// Winograd's F(4, 3) along each axis (Lavin and Gray, 2016, arXiv 1509.09308): 6 products for 4 points of a line in place
// of 12, and 36 for 16 points of a plane in place of 144. `transform` gives the numbers of tiles, matrix products with
// transformed weights follow for each of them, and `gate` or `add` makes points again.
#pragma once

#include <cstdint>

namespace enma {

constexpr int TILE_POINTS = 4, TILE_NUMBERS = 6;

// The tiles of a grid of one or two axes. Rows of channels are those of its places, of members one after the other, and
// have whole panels.
struct TileGrid {
    int axes, tiles, places;
    // Places of each tile, [tiles, numbers]; -1: zeros.
    const int* from;
    // Places of its points, [tiles, points]; -1: beyond the grid.
    const int* to;
};

// Tiles [begin, end) of those of all members.
struct TileRange {
    std::int64_t begin, end;
};

struct TileKernels {
    // numbers [6^axes, tiles, width] of rows [.., width]; `zeros` has as many.
    void (*transform)(const TileGrid& grid, TileRange tiles, const float* rows, const float* zeros, std::int64_t width,
                      float* numbers);
    // silu(a + shift) (b + shift) of products [6^axes, tiles, 2 panels], a and b, to one panel of rows [.., width];
    // shifts [members, 2 panels] are `stride` apart.
    void (*gate)(const TileGrid& grid, TileRange tiles, const float* products, const float* shifts, std::int64_t stride,
                 float* rows, std::int64_t width);
    // The points of products [6^axes, tiles, columns] to as many columns of rows [.., width].
    void (*put)(const TileGrid& grid, TileRange tiles, const float* products, std::int64_t columns, float* rows,
                std::int64_t width);
    // Rows [count, width], of which `used` columns count: mean 0, variance 1, times a scale; zeros beyond.
    void (*normalise)(const float* rows, const float* scale, std::int64_t count, std::int64_t width, std::int64_t used,
                      float* out);
};

}  // namespace enma
