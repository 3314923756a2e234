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
