// Encoder and decoder of the tokenizer (enma_fast/models/tokenizer.py), a frame at a time: every layer is causal, so a
// frame needs what the layers remember and nothing else. A frame has the same bits however many came before in one
// call, and whatever other rows are computed.
//
// A frame is [lines][places][row] floats, with one line unless the field is on a plane; a row has its channels and zeros
// up to whole panels.
#pragma once

#include <algorithm>
#include <optional>
#include <string>
#include <vector>

#include "core/cpu/packed_linear.h"
#include "core/cpu/tokenizer_config.h"

namespace enma {

// Frames of a layer: lines of places. A field on a line has one of them, which is not periodic.
struct Shape {
    int lines, places;
    bool plane, ring_of_lines, ring;

    int size() const { return lines * places; }
    Shape divided(int factor) const {
        return {plane ? lines / factor : 1, places / factor, plane, ring_of_lines, ring};
    }
    Shape times(int factor) const { return {plane ? lines * factor : 1, places * factor, plane, ring_of_lines, ring}; }
};

// A causal convolution as products: each row of one is the window of `group` neighbouring places of a line.
struct Convolution {
    std::vector<Linear> linears;  // one for each line that a line of windows gives
    Shape shape;                  // of a frame that comes in
    int inward;                   // floats of its rows
    // Lines of a window, before the first one, and between windows; likewise places.
    int tall, above, step_lines;
    int window, padding, step;
    int frames, stride;          // frames of a window, and between windows
    int rows, windows, columns;  // lines of windows, windows of a line, and floats that each gives

    std::size_t remembered() const { return static_cast<std::size_t>(frames - 1) * shape.size() * inward; }
    std::size_t inputs() const { return static_cast<std::size_t>(frames) * tall * window * inward; }
    // Each place by itself: windows need not be gathered.
    bool by_place() const { return tall * window * frames == 1 && step_lines == 1 && step == 1; }
    // Windows of one product; those of several lines if each gives one line.
    int at_a_time() const { return std::min(linears.size() == 1 ? rows * windows : windows, GEMM_ROWS); }
};

struct Gate {
    Linear attend, narrow, widen;
};

struct Layer {
    enum class Kind { convolution, residual, expand_time, linear } kind;
    Convolution convolution;  // of all but linear
    Convolution second;       // expand_time: the second frame
    Linear linear;            // residual, linear
    Gate gate;                // residual
    int channels;
    // convolution: what is added to each of the first frames, [places][row].
    std::vector<std::vector<float>> lacking;
};

// Frames that the layers remember of one row.
struct StreamState {
    std::vector<float> frames;
    std::vector<std::int64_t> seen;

    // As before the first frame.
    void clear() {
        std::fill(frames.begin(), frames.end(), 0.0f);
        std::fill(seen.begin(), seen.end(), 0);
    }
};

// Takes a frame that comes out: [places][row].
using Sink = void (*)(void* to, const float* frame);

class Stream {
   public:
    // From fields, or features of the interpolation, [*grid, c] to the mean of latents [tokens, whole_panels(C)]; and back.
    static Stream encoder(const TokenizerConfig& config, const TakeParameter& take);
    static Stream decoder(const TokenizerConfig& config, const TakeParameter& take);

    StreamState state() const;
    // Bytes of one thread.
    std::size_t work_bytes() const;
    // Passes a frame through all layers; `sink` gets what comes out.
    void push(const float* frame, StreamState& state, Isa isa, char* work, Sink sink, void* to) const;

    // Floats of a row that comes in, and of one that comes out.
    int inward() const { return inward_; }
    int outward() const { return outward_; }
    // True if the linear end of a decoder is one convolution.
    bool folded() const { return folded_; }

   private:
    struct Run;
    void add(Layer layer, int places, int row);
    static Stream linear_end(const TokenizerConfig& config, const TakeParameter& take, const std::vector<int>& widths,
                             std::size_t count, Shape shape);
    static std::optional<Layer> folded_end(const TokenizerConfig& config, const TakeParameter& take,
                                           const std::vector<int>& widths, std::size_t count, const Shape& shape);
    Stream() = default;

    std::vector<Layer> layers_;
    // Where a layer's memory and output begin.
    std::vector<std::size_t> memory_, output_;
    // Places of the frames that a layer gives, and floats of their rows.
    std::vector<int> places_, rows_;
    int inward_ = 0, outward_ = 0;
    bool folded_ = false;
    std::size_t outputs_ = 0, gathered_ = 0;
};

}  // namespace enma
