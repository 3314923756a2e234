// The network of decoder `field`: gated convolutions on blocks of points. enma_fast/models/field_step.py, FieldNetwork.
#pragma once

#include <string>
#include <vector>

#include "core/cpu/grid_layers.h"
#include "core/fields.h"

namespace enma {

struct FieldConfig {
    int block = 2, width = 64, layers = 6, middle_layers = 0, middle_width = 96, noise = 2, member = 16;
};
FieldConfig read_field_config(Fields& fields);

struct FieldNetworkShape {
    FieldConfig config;
    std::vector<GridAxis> grid;  // one or two axes
    int inward, outward, condition;
};

// Of each row; contiguous.
struct FieldNetworkCall {
    const float* x;          // [rows, *grid, inward]
    const float* condition;  // [rows, Z]; null: none
    const float* noise;      // [rows, *grid / block, noise], the grid prolonged; null: zeros
    float* out;              // [rows, *grid, outward]
};

// Packed weights; immutable, so that threads can share it.
class FieldNetwork {
   public:
    // Throws Error, and what `take` throws.
    FieldNetwork(const FieldNetworkShape& shape, const TakeParameter& take, const std::string& prefix);
    const FieldNetworkShape& shape() const { return shape_; }
    int points() const { return size_of(shape_.grid); }
    // Blocks, the grid prolonged to whole ones.
    int places() const { return fine_.places(); }
    std::size_t bytes() const { return packed_.size(); }
    // Rows that pass together at most, and bytes of work space for them.
    int together() const;
    std::size_t work_bytes() const;
    // A few rows by one thread; the bits of a row depend on no other.
    void run(const FieldNetworkCall& call, std::int64_t begin, std::int64_t end, char* work, Isa isa) const;
    // All rows, shared out among threads.
    void run(const FieldNetworkCall& call, std::int64_t rows, int threads, Isa isa) const;

   private:
    struct Work;
    void level(const GridPass& pass, const Work& work, const float* condition) const;
    int stem_row() const { return whole_panels(inward_); }

    FieldNetworkShape shape_;
    GridBlocks fine_;
    GridTiles coarse_;
    int inward_;              // channels of the stem
    std::vector<int> parts_;  // places of each coarse place, [coarse, 2^axes]
    GridConvolution stem_;
    std::vector<GatedBlock> first_, middle_, last_;
    LinearView coarsen_{}, refine_{}, head_{};
    const float* scale_ = nullptr;
    Buffer packed_;
};

}  // namespace enma
