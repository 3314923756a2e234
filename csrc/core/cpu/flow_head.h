// All integration steps of the flow-matching head; the formula is in enma_fast/ops/flow_head.py.
//
// Legend: M rows, C token channels, D width of the condition, W width of the head, L blocks, R evaluations.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/cpu/gemm.h"
#include "core/cpu/parallel.h"

namespace enma {

struct FlowBlockView {
    LinearView shift, scale, gate;
    LinearView up, down;
};

struct FlowHeadView {
    int channels;
    int condition_width;
    int width;
    int layers;
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

// Weights as stored, contiguous, all bf16 or all fp32.
struct FlowBlockWeights {
    const void *modulation_weight, *modulation_bias, *up_weight, *up_bias, *down_weight, *down_bias;
};

struct FlowHeadWeights {
    int channels, condition_width, width, evaluations, moves_per_step;
    NumberFormat format;
    const void *condition_weight, *condition_bias, *inward_weight, *inward_bias;
    std::vector<FlowBlockWeights> blocks;
    const void *modulation_weight, *modulation_bias, *outward_weight, *outward_bias;
    // [R, W]
    const void* time;
    std::vector<float> moves;
};

// How the work is divided; `automatic` picks by the number of rows. Results do not depend on it.
enum class Division { automatic, rows, columns };

// Rows that share the columns at a time.
constexpr int FLOW_HEAD_TOGETHER = 32;

// Bytes of work space of one thread, and of what threads that share the columns have in common, for `rows` rows.
std::size_t flow_head_own_bytes(const FlowHeadView& head, int rows);
std::size_t flow_head_shared_bytes(const FlowHeadView& head, int rows);
// True if so few rows are better served by threads that share the columns.
bool flow_head_shares_columns(const FlowHeadView& head, std::int64_t rows, int threads);

class FlowHead {
   public:
    explicit FlowHead(const FlowHeadWeights& weights);
    FlowHead(const FlowHead&) = delete;
    FlowHead& operator=(const FlowHead&) = delete;

    // Throws std::bad_alloc.
    void run(const FlowHeadCall& call, int threads, Isa isa, Division division = Division::automatic) const;

    const FlowHeadView& view() const { return view_; }
    std::size_t bytes() const { return packed_.size(); }

   private:
    Buffer packed_;
    std::vector<FlowBlockView> blocks_;
    std::vector<float> moves_;
    FlowHeadView view_;
};

}  // namespace enma
