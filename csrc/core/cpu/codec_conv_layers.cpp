// The layers of encoder and decoder from their parameters: convolutions as products, and at the end of a decoder those
// that are linear as one of them. codec_conv.cpp passes frames through the layers.
#include <algorithm>
#include <utility>

#include "core/cpu/codec_conv.h"

namespace enma {

namespace {

using std::to_string;

// Shape of frames with every size divided by `factor`.
Shape shape_of(const ConvConfig& config, int factor) {
    const bool plane = config.dims() == 2;
    const int lines = plane ? static_cast<int>(config.grid[0]) / factor : 1;
    return {lines, static_cast<int>(config.grid.back()) / factor, plane, plane && config.periodic[0],
            config.periodic.back()};
}

// Weights [outward, inward, frames, *window] of a convolution, and what it gives: columns (group, part, channel) of a
// window of `group` neighbouring places, in `parts` lines on a plane, where channel o of part i of line l is outward
// channel (o lines + l) `parts` + i + `offset`.
struct ConvolutionSpec {
    int inward, outward, kernel, frames;
    int stride = 1, stride_time = 1;
    int parts = 1, offset = 0, channels = 0;  // channels of a part; 0: all
    bool grouped = false;
};

Convolution make_convolution(const float* weight, const float* bias, const ConvolutionSpec& s, const Shape& shape,
                             int row) {
    const int tall = shape.plane ? s.kernel : 1, lines = shape.plane ? s.parts : 1, stride = shape.plane ? s.stride : 1;
    const int channels = s.channels > 0 ? s.channels : s.outward / (s.parts * lines);
    // So many places fill a panel that would otherwise be empty.
    int group = s.grouped ? std::max(1, PANEL / (channels * s.parts)) : 1;
    while (shape.places / s.stride % group != 0) --group;
    const int width = s.grouped ? channels : whole_panels(channels);
    Convolution c{};
    c.shape = shape;
    c.inward = row;
    c.tall = tall;
    c.above = tall / 2;
    c.step_lines = stride;
    c.window = (group - 1) * s.stride + s.kernel;
    c.padding = s.kernel / 2;
    c.step = group * s.stride;
    c.frames = s.frames;
    c.stride = s.stride_time;
    c.rows = (shape.lines + stride - 1) / stride;
    c.windows = (shape.places + c.step - 1) / c.step;
    c.columns = group * s.parts * width;
    for (int line = 0; line < lines; ++line) {
        // Column (j, i, o) of a group; -1 where there is no channel.
        const auto channel = [&](int column) {
            const int o = column % width, i = column / width % s.parts;
            return o < channels ? (o * lines + line) * s.parts + i + s.offset : -1;
        };
        c.linears.emplace_back(
            c.columns, static_cast<int>(c.inputs()),
            [&](int column, int k) {
                const int from = channel(column), in = k % row, above = k / row / c.window % tall;
                const int tap = k / row % c.window - column / (width * s.parts) * s.stride;
                const int frame = k / row / c.window / tall;
                if (from < 0 || in >= s.inward || tap < 0 || tap >= s.kernel) return 0.0f;
                const std::ptrdiff_t part = (static_cast<std::ptrdiff_t>(from) * s.inward + in) * s.frames + frame;
                return weight[(part * tall + above) * s.kernel + tap];
            },
            [&](int column) { return channel(column) < 0 ? 0.0f : bias[channel(column)]; });
    }
    return c;
}

Convolution make_convolution(const TakeParameter& take, const std::string& name, const ConvolutionSpec& s,
                             const Shape& shape, int row) {
    std::vector<std::int64_t> sizes = {s.outward, s.inward, s.frames, s.kernel};
    if (shape.plane) sizes.push_back(s.kernel);
    const float* weight = take(name + ".conv.weight", sizes);
    return make_convolution(weight, take(name + ".conv.bias", {s.outward}), s, shape, row);
}

Layer make_residual(const TakeParameter& take, const std::string& name, const ConvConfig& config, const Shape& shape,
                    int width) {
    Layer layer{};
    layer.kind = Layer::Kind::residual;
    layer.channels = width;
    layer.convolution = make_convolution(take, name + ".conv", {width, width, config.kernel, config.kernel_time}, shape,
                                         whole_panels(width));
    layer.linear = read_linear(take, name + ".linear", width, width, width);
    const int hidden = std::max(16, width / 2);
    layer.gate.attend = read_linear(take, name + ".attend", width, 1, 1);
    layer.gate.narrow = read_linear(take, name + ".squeeze.0", width, hidden, hidden);
    layer.gate.widen = read_linear(take, name + ".squeeze.2", hidden, width, width);
    return layer;
}

Layer of_convolution(Convolution convolution) {
    Layer layer{};
    layer.kind = Layer::Kind::convolution;
    layer.convolution = std::move(convolution);
    return layer;
}

// Twice as many places along each dimension.
Layer make_expand_space(const TakeParameter& take, const std::string& name, const ConvConfig& config,
                        const Shape& shape, int inward, int outward) {
    ConvolutionSpec spec{inward, outward << config.dims(), config.kernel, 1};
    spec.parts = 2;
    return of_convolution(make_convolution(take, name + ".conv", spec, shape, whole_panels(inward)));
}

Layer of_linear(Linear linear) {
    Layer layer{};
    layer.kind = Layer::Kind::linear;
    layer.linear = std::move(linear);
    return layer;
}

}  // namespace

Linear read_linear(const TakeParameter& take, const std::string& name, int inward, int outward, int used) {
    const float* weight = take(name + ".weight", {outward, inward});
    const float* bias = take(name + ".bias", {outward});
    return Linear(
        whole_panels(used), whole_panels(inward),
        [&](int j, int k) {
            return j < used && k < inward ? weight[static_cast<std::ptrdiff_t>(j) * inward + k] : 0.0f;
        },
        [&](int j) { return j < used ? bias[j] : 0.0f; });
}

// `places` and `row` of the frames that come out.
void LayerStream::add(Layer layer, int places, int row) {
    const Convolution& c = layer.convolution;
    const bool convolves = layer.kind != Layer::Kind::linear;
    const std::size_t windows = convolves ? c.linears.size() * c.rows * c.windows : 0;
    memory_.push_back(memory_.empty() ? 0
                                      : memory_.back() + (layers_.back().kind == Layer::Kind::linear
                                                              ? 0
                                                              : layers_.back().convolution.remembered()));
    output_.push_back(outputs_);
    // Products write whole panels; a residual layer has one frame more, with room for the gate.
    const std::size_t own =
        std::max(static_cast<std::size_t>(places) * row, convolves ? windows * whole_panels(c.columns) : 0);
    outputs_ += layer.kind == Layer::Kind::residual ? 2 * own + 3 * static_cast<std::size_t>(row) + 3 * PANEL : own;
    if (convolves) {
        const std::size_t scores = static_cast<std::size_t>(c.shape.size()) * PANEL;
        gathered_ = std::max({gathered_, c.at_a_time() * c.inputs(), scores});
    }
    if (layer.kind == Layer::Kind::linear) layer.channels = places;
    layers_.push_back(std::move(layer));
    places_.push_back(places);
    rows_.push_back(row);
}

LayerStream LayerStream::encoder(const ConvConfig& config, const TakeParameter& take) {
    LayerStream s;
    Shape shape = shape_of(config, 1);
    int width = config.width, number = 0;
    s.inward_ = config.grid_channels;
    const ConvolutionSpec ends{config.grid_channels, width, config.kernel_ends, config.kernel_time, config.stride_ends};
    Layer first = of_convolution(make_convolution(take, "codec.conv_in", ends, shape, config.grid_channels));
    shape = shape.divided(config.stride_ends);
    s.add(std::move(first), shape.size(), whole_panels(width));
    for (const LayerKind kind : config.layers) {
        const std::string name = "codec.down." + to_string(number++);
        const int row = whole_panels(width);
        switch (kind) {
            case LayerKind::residual: s.add(make_residual(take, name, config, shape, width), shape.size(), row); break;
            case LayerKind::space: {
                const int wider = std::min(2 * width, config.max_width);
                Layer layer =
                    of_convolution(make_convolution(take, name, {width, wider, config.kernel, 1, 2}, shape, row));
                shape = shape.divided(2);
                width = wider;
                s.add(std::move(layer), shape.size(), whole_panels(width));
                break;
            }
            case LayerKind::time: {
                const ConvolutionSpec spec{width, width, 1, config.kernel_time, 1, 2};
                s.add(of_convolution(make_convolution(take, name, spec, shape, row)), shape.size(), row);
            }
        }
    }
    // Without the logarithms of the variances.
    const int C = config.latent_channels, moments = config.variational ? 2 : 1;
    s.add(of_linear(read_linear(take, "codec.to_latent", width, moments * C, C)), shape.size(), whole_panels(C));
    return s;
}

// The last `count` layers of the decoder that are all linear, and the convolution to the field.
LayerStream LayerStream::linear_end(const ConvConfig& config, const TakeParameter& take, const std::vector<int>& widths,
                                    std::size_t count, Shape shape) {
    LayerStream s;
    s.inward_ = whole_panels(widths[count]);
    for (std::size_t i = count; i-- > 0;) {
        const std::string name = "codec.up." + to_string(config.layers.size() - 1 - i);
        Layer layer = make_expand_space(take, name, config, shape, widths[i + 1], widths[i]);
        shape = shape.times(2);
        s.add(std::move(layer), shape.size(), whole_panels(widths[i]));
    }
    const int factor = config.stride_ends,
              outward = config.grid_channels * (config.dims() == 2 ? factor * factor : factor);
    ConvolutionSpec spec{config.width, outward, config.kernel_ends, config.kernel_time};
    spec.parts = factor;
    spec.grouped = true;
    const std::string name = factor == 1 ? "codec.conv_out" : "codec.conv_out.conv";
    Layer last = of_convolution(make_convolution(take, name, spec, shape, whole_panels(config.width)));
    s.add(std::move(last), shape.times(factor).size(), config.grid_channels);
    return s;
}

// Those layers of a periodic field as one convolution of the tokens, each of which gives its own `1 << count` grid points
// along each dimension; nothing where that is more work. enma_fast/models/codecs/folding.py decides likewise.
std::optional<Layer> LayerStream::folded_end(const ConvConfig& config, const TakeParameter& take,
                                             const std::vector<int>& widths, std::size_t count, const Shape& shape) {
    const bool walls = std::find(config.periodic.begin(), config.periodic.end(), false) != config.periodic.end();
    if (count == 0 || config.stride_ends > 1 || walls) return std::nullopt;
    const int dims = config.dims(), frames = config.kernel_time, c = config.grid_channels, channels = widths[count];
    const int factor = 1 << count, tall = dims == 2 ? factor : 1;
    // Reach in grid points, then through each layer in those of its own input; and the work of all layers.
    int low = -(config.kernel_ends / 2), high = factor - 1 + config.kernel_ends / 2;
    const auto power = [&](std::int64_t n) { return dims == 2 ? n * n : n; };
    std::int64_t size = shape.times(factor).size();
    std::int64_t work = size * c * (config.width * frames * power(config.kernel_ends) + 1);
    for (std::size_t i = 0; i < count; ++i) {
        // Rounded down.
        low = (low >> 1) - config.kernel / 2;
        high = (high >> 1) + config.kernel / 2;
        size /= power(2);
        work += size * (widths[i] << dims) * (widths[i + 1] * power(config.kernel) + 1);
    }
    const int radius = std::max(-low, high), kernel = 2 * radius + 1;
    if (kernel > shape.places || (dims == 2 && kernel > shape.lines)) return std::nullopt;
    if (size * c * tall * factor * channels * frames * power(kernel) >= work) return std::nullopt;

    // The weights are the answers of the layers to one number in each channel in the middle of a ring that is just long
    // enough, always by the same instruction set. The number is large, so that biases round nothing of its answer.
    constexpr float ONE = 0x1p20f, SHARE = 0x1p-20f;
    const Shape ring{dims == 2 ? kernel : 1, kernel, shape.plane, shape.ring_of_lines, shape.ring};
    const LayerStream end = linear_end(config, take, widths, count, ring);
    struct Answers {
        std::vector<float> values;
        std::size_t points;
    } answers{{}, static_cast<std::size_t>(ring.times(factor).size()) * c};
    const Sink append = [](void* to, const float* frame) {
        Answers& all = *static_cast<Answers*>(to);
        all.values.insert(all.values.end(), frame, frame + all.points);
    };
    const Buffer space(end.work_bytes());
    std::vector<float> input(static_cast<std::size_t>(ring.size()) * end.inward_);
    // [channels + 1, frames, points], the last one to zeros.
    for (int channel = 0; channel <= channels; ++channel) {
        float* const one = input.data() + static_cast<std::size_t>(ring.size() / 2) * end.inward_ + channel;
        StreamState fresh = end.state();
        for (int t = 0; t < frames; ++t) {
            if (channel < channels) *one = t == 0 ? ONE : 0.0f;
            end.push(input.data(), fresh, Isa::scalar, space.data(), append, &answers);
        }
        if (channel < channels) *one = 0.0f;
    }
    const float* const nothing = answers.values.data() + channels * frames * answers.points;
    // Point (line, place) of the token (i, j) before the middle, and channel o of the field there.
    const auto point = [&](int i, int j, int line, int place, int o) {
        const int row = (dims == 2 ? radius - i : 0) * tall + line;
        return (static_cast<std::size_t>(row) * kernel * factor + (radius - j) * factor + place) * c + o;
    };
    std::vector<float> weight, bias;
    // Of the first frames, which lack the biases of frames before them.
    std::vector<std::vector<float>> lacking(frames - 1);
    for (int k = 0; k < c * tall * factor; ++k) {
        const int place = k % factor, line = k / factor % tall, o = k / factor / tall;
        for (int channel = 0; channel < channels; ++channel) {
            for (int t = frames; t-- > 0;) {
                const std::size_t at = (static_cast<std::size_t>(channel) * frames + t) * answers.points;
                for (int i = dims == 2 ? -radius : 0; i <= (dims == 2 ? radius : 0); ++i) {
                    for (int j = -radius; j <= radius; ++j) {
                        const std::size_t p = point(i, j, line, place, o);
                        weight.push_back((answers.values[at + p] - nothing[t * answers.points + p]) * SHARE);
                    }
                }
            }
        }
        bias.push_back(nothing[(frames - 1) * answers.points + point(0, 0, line, place, o)]);
    }
    for (int t = 0; t + 1 < frames; ++t) {
        for (int line = 0; line < shape.lines * tall; ++line) {
            for (int place = 0; place < shape.places * factor; ++place) {
                for (int o = 0; o < c; ++o) {
                    const std::size_t p = point(0, 0, line % tall, place % factor, o);
                    lacking[t].push_back(nothing[t * answers.points + p] - nothing[(frames - 1) * answers.points + p]);
                }
            }
        }
    }
    ConvolutionSpec spec{channels, c * tall * factor, kernel, frames};
    spec.parts = factor;
    spec.channels = c;
    spec.grouped = true;
    Layer folded = of_convolution(make_convolution(weight.data(), bias.data(), spec, shape, end.inward_));
    folded.lacking = std::move(lacking);
    return folded;
}

LayerStream LayerStream::decoder(const ConvConfig& config, const TakeParameter& take) {
    LayerStream s;
    std::vector<int> widths = {config.width};
    for (const LayerKind kind : config.layers) {
        widths.push_back(kind == LayerKind::space ? std::min(2 * widths.back(), config.max_width) : widths.back());
    }
    Shape shape = shape_of(config, config.space_factor);
    int number = 0;
    // The first layers of the encoder mirror the last ones, which are linear up to the first that is not `space`.
    const auto others = std::find_if(config.layers.begin(), config.layers.end(),
                                     [](LayerKind kind) { return kind != LayerKind::space; });
    const std::size_t linear = others - config.layers.begin();
    s.inward_ = whole_panels(config.latent_channels);
    s.add(of_linear(read_linear(take, "codec.from_latent", config.latent_channels, widths.back(), widths.back())),
          shape.size(), whole_panels(widths.back()));
    for (std::size_t i = config.layers.size(); i-- > linear;) {
        const std::string name = "codec.up." + to_string(number++);
        const int inward = widths[i + 1], outward = widths[i], row = whole_panels(inward);
        switch (config.layers[i]) {
            case LayerKind::residual: s.add(make_residual(take, name, config, shape, inward), shape.size(), row); break;
            case LayerKind::space: {
                Layer layer = make_expand_space(take, name, config, shape, inward, outward);
                shape = shape.times(2);
                s.add(std::move(layer), shape.size(), whole_panels(outward));
                break;
            }
            case LayerKind::time: {
                ConvolutionSpec spec{inward, 2 * outward, 1, 1};
                spec.channels = outward;
                Layer layer = of_convolution(make_convolution(take, name + ".conv", spec, shape, row));
                spec.offset = outward;
                layer.kind = Layer::Kind::expand_time;
                layer.second = make_convolution(take, name + ".conv", spec, shape, row);
                s.add(std::move(layer), shape.size(), whole_panels(outward));
            }
        }
    }
    if (std::optional<Layer> folded = folded_end(config, take, widths, linear, shape)) {
        s.folded_ = true;
        s.add(std::move(*folded), shape.times(1 << linear).size(), config.grid_channels);
        return s;
    }
    LayerStream end = linear_end(config, take, widths, linear, shape);
    for (std::size_t i = 0; i < end.layers_.size(); ++i) {
        s.add(std::move(end.layers_[i]), end.places_[i], end.rows_[i]);
    }
    return s;
}

}  // namespace enma
