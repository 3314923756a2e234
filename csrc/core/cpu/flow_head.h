// All integration steps of the flow-matching head; the formula is in enma_fast/ops/flow_head.py.
//
// Legend: M rows, C token channels, D width of the condition, W width of the head, L blocks, R evaluations.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "core/cpu/packed_linear.h"
#include "core/cpu/parallel.h"

namespace enma {

struct FlowBlockView {
    LinearView shift, scale, gate;
    LinearView up, down;
};

struct FlowHeadShape {
    int channels, condition_width, width, layers;
};

// Packed weights, and the schedule of evaluations that whoever runs it gives.
struct FlowHeadView : FlowHeadShape {
    int evaluations;
    int moves_per_step;
    NumberFormat format;
    LinearView condition, inward, outward, shift, scale;
    const FlowBlockView* blocks;
    // [R][row_stride(W)], zero beyond W.
    const float* time;
    const float* moves;
};

struct FlowHeadCall {
    // [M, D], contiguous.
    const void* c;
    NumberFormat c_format;
    // [M, C], contiguous.
    const float* noise;
    float* out;
    std::int64_t rows;
};

// Rows that share the columns at a time.
constexpr int FLOW_HEAD_TOGETHER = 32;

// Bytes of work space of one thread, and of what threads that share the columns have in common, for `rows` rows.
std::size_t flow_head_own_bytes(const FlowHeadView& head, int rows);
std::size_t flow_head_shared_bytes(const FlowHeadView& head, int rows);
// True if so few rows are better served by threads that share the columns.
bool flow_head_shares_columns(const FlowHeadView& head, std::int64_t rows, int threads);

class FlowHead {
   public:
    // Of the layers condition, inward, blocks.<i>.{modulation, up, down}, modulation and outward behind `prefix`. Throws what
    // `take` throws.
    FlowHead(const FlowHeadShape& shape, const TakeParameter& take, const std::string& prefix, NumberFormat format);
    FlowHead(const FlowHead&) = delete;
    FlowHead& operator=(const FlowHead&) = delete;

    const FlowHeadView& view() const { return view_; }
    std::size_t bytes() const { return packed_.size(); }

   private:
    Buffer packed_;
    std::vector<FlowBlockView> blocks_;
    FlowHeadView view_{};
};

// By threads that share the rows, or the columns where rows are few: results do not depend on it. Throws std::bad_alloc.
void run_flow_head(const FlowHeadView& head, const FlowHeadCall& call, int threads, Isa isa);

}  // namespace enma
