// Layers on grids of one or two axes, channels last, with an edge of its own kind at each axis:
// enma_fast/models/grid_layers.py. Rows are those of the places of several members, in whole panels of channels.
#pragma once

#include <string>
#include <vector>

#include "core/cpu/gemm.h"
#include "core/cpu/packer.h"
#include "core/cpu/tile_convolution.h"
#include "core/cpu/vector_kernels.h"

namespace enma {

enum class GridEdge { periodic, wall, open };

struct GridAxis {
    int points;
    GridEdge edge;

    // The point whose value stands at `place`, which may lie beyond both ends; -1: zero.
    int at(int place) const;
};

// Places of a grid.
int size_of(const std::vector<GridAxis>& axes);
// a to the power of the axes.
constexpr int power(int a, int axes) { return axes == 1 ? a : a * a; }

// Tables of the tiles of a grid.
class GridTiles {
   public:
    explicit GridTiles(const std::vector<GridAxis>& axes);
    TileGrid view() const { return {axes_, tiles_, places_, from_.data(), to_.data()}; }
    int tiles() const { return tiles_; }
    int places() const { return places_; }

   private:
    int axes_, tiles_ = 1, places_;
    std::vector<int> from_, to_;
};

// A grid in blocks of so many points along each axis, prolonged to whole ones, whose number `times` divides. The points of a
// block are the channels of a place, then marks of edges that are not periodic.
class GridBlocks {
   public:
    GridBlocks(const std::vector<GridAxis>& grid, int block, int times = 1);
    const GridTiles& tiles() const { return tiles_; }
    int places() const { return tiles_.places(); }
    // Along the last axis.
    int across() const { return across_; }
    int points_of_block() const { return points_; }
    // Channels of a place, of so many of a point.
    int inward(int channels) const { return points_ * (channels + (marks_.empty() ? 0 : 1)); }
    // Rows [places, row] of fields [*grid, channels], with noise [places, n] after them, null for none; zeros beyond.
    void gather(const float* x, int channels, const float* noise, int n, int row, float* out) const;
    // The point of a place, -1: beyond the grid.
    int point(std::int64_t place, int part) const { return targets_[place * points_ + part]; }

   private:
    int across_, points_;
    GridTiles tiles_;
    // Of each point of a block, [places, points]: the point of the grid whose values go in, -1 for zeros, and that whose
    // values come out, -1 for none; and marks, or none.
    std::vector<int> sources_, targets_;
    std::vector<float> marks_;
};

// Where point `part` of a block is, the block at `place` of a grid with `across` blocks along its last axis.
struct GridPlace {
    int first, last;
};
GridPlace in_block(int axes, int place, int across, int part, int size);

// Tiles that pass through the products of a convolution at a time.
constexpr int TILES = 48;
// Columns of one product: of a gated block a panel of gates and the panel that they multiply.
constexpr int TILE_COLUMNS = 2 * PANEL;

// A convolution: for each group of columns, weights of each of the numbers of a tile.
struct GridConvolution {
    int inward;  // in whole panels
    std::vector<LinearView> products;
};

struct GatedBlock {
    const float* scale;
    GridConvolution gate_up;
    LinearView down, shift;
    bool shifted;
};

// What packs layers of a grid of so many axes.
struct GridPacker {
    Packer& pack;
    int axes;

    // The layer `name`, [outward, inward] without a bias, whose parts of inputs and outputs fill whole panels each.
    LinearView linear(const std::string& name, int outward, int inward, int parts_out = 1, int parts_in = 1) const;
    GridConvolution convolution(const std::string& name, int outward, int inward) const;
    // A vector with zeros up to whole panels.
    static std::vector<float> padded(std::vector<float> values);
    // `condition`: numbers that shift its gates; 0: none do.
    GatedBlock block(const std::string& name, int width, int condition) const;
    std::vector<GatedBlock> stack(const std::string& name, int layers, int width, int condition) const;

   private:
    GridConvolution convolution(const std::string& name, const std::vector<int>& columns, int outward,
                                int inward) const;
};

// Work space of the layers of some members; taken twice, first to count.
struct GridWork {
    char* gemm;
    float *zeros, *numbers, *products, *normed, *gated, *out, *shifts;

    // For so many places of all members, in rows of at most `widest`, and products of at most `columns`.
    GridWork(Allocator& memory, int axes, std::int64_t places, int widest, int columns, int members);
};

// Members that pass through layers together, in the work space of one thread.
struct GridPass {
    const Kernels& kernels;
    const VectorKernels& vectors;
    const GridWork& work;
    int members;

    // out [rows, n]
    void linear(const LinearView& linear, const float* a, std::int64_t rows, float* out) const {
        kernels.linear(linear, a, linear.k, static_cast<int>(rows), out, linear.n, work.gemm);
    }
    // rows [members * places, inward] to out [.., width].
    void convolve(const GridConvolution& layer, const GridTiles& grid, const float* rows, float* out, int width) const;
    // In place; conditions [members, Z] or null.
    void stack(const std::vector<GatedBlock>& blocks, const GridTiles& grid, const float* conditions, float* rows,
               int width) const;
    void normalise(const float* rows, const float* scale, std::int64_t count, int width, float* out) const;

   private:
    template <class Finish>
    void products(const GridConvolution& layer, const GridTiles& grid, const float* rows, const Finish& finish) const;
};

}  // namespace enma
