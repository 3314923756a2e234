// Codec `conv`, causal convolutions over space and time: enma_fast/models/codecs/conv.py.
//
// A frame is [lines][places][row] floats, with one line unless the field is on a plane; a row has its channels and zeros
// up to whole panels.
#pragma once

#include <algorithm>
#include <optional>
#include <string>
#include <vector>

#include "core/cpu/codec.h"
#include "core/cpu/packed_linear.h"

namespace enma {

enum class LayerKind { residual, space, time };

struct ConvConfig : CodecConfig {
    // Channels on the grid: of the field, or of features of it.
    int grid_channels = 1;
    int width = 16, max_width = 128;
    std::vector<LayerKind> layers;
    static constexpr int kernel = 3, kernel_time = 3;
    int kernel_ends = 7, stride_ends = 1;
    bool variational = true;

    int count(LayerKind kind) const { return static_cast<int>(std::count(layers.begin(), layers.end(), kind)); }
};

// Sets the channels and factors of `common`.
ConvConfig read_convolutions(Fields& fields, CodecConfig& common, int grid_channels);

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

class LayerStream : public Stream {
   public:
    static LayerStream encoder(const ConvConfig& config, const TakeParameter& take);
    static LayerStream decoder(const ConvConfig& config, const TakeParameter& take);

    StreamState state() const override;
    std::size_t work_bytes() const override;
    void push(const float* frame, StreamState& state, Isa isa, char* work, Sink sink, void* to) const override;
    bool folded() const override { return folded_; }

   private:
    struct Run;
    void add(Layer layer, int places, int row);
    static LayerStream linear_end(const ConvConfig& config, const TakeParameter& take, const std::vector<int>& widths,
                                  std::size_t count, Shape shape);
    static std::optional<Layer> folded_end(const ConvConfig& config, const TakeParameter& take,
                                           const std::vector<int>& widths, std::size_t count, const Shape& shape);
    LayerStream() = default;

    std::vector<Layer> layers_;
    // Where a layer's memory and output begin.
    std::vector<std::size_t> memory_, output_;
    // Places of the frames that a layer gives, and floats of their rows.
    std::vector<int> places_, rows_;
    int inward_ = 0;
    bool folded_ = false;
    std::size_t outputs_ = 0, gathered_ = 0;
};

}  // namespace enma
