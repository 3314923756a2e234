// A frame on its way through the layers, and what they remember of it; codec_conv_layers.cpp makes the layers.
#include "core/cpu/codec_conv.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>

#include "core/cpu/vector_kernels.h"

namespace enma {

namespace {

// The place of a ring that `place` is, which may have gone around it more than once.
int around(int place, int places) {
    const int rest = place % places;
    return rest < 0 ? rest + places : rest;
}

// Places [first, first + count) of a line, around it or zero beyond its ends.
float* gather_line(const Shape& shape, const float* line, int first, int count, std::size_t row, float* out) {
    const int begin = std::max(first, 0), end = std::min(first + count, shape.places);
    if (begin < end) std::memcpy(out + (begin - first) * row, line + begin * row, (end - begin) * row * sizeof(float));
    for (int i = 0; i < count; ++i) {
        const int place = first + i;
        if (begin <= place && place < end) continue;
        if (shape.ring) {
            std::memcpy(out + i * row, line + around(place, shape.places) * row, row * sizeof(float));
        } else {
            std::fill_n(out + i * row, row, 0.0f);
        }
    }
    return out + count * row;
}

// Windows [begin, end) of a frame, one row of a product each, the remembered frames first.
void gather(const Convolution& c, const float* frame, const float* before, int begin, int end, float* out) {
    const std::size_t row = c.inward, size = c.shape.size() * row;
    for (int w = begin; w < end; ++w) {
        const int top = w / c.windows * c.step_lines - c.above, first = w % c.windows * c.step - c.padding;
        for (int t = 0; t < c.frames; ++t) {
            const float* from = t + 1 < c.frames ? before + t * size : frame;
            for (int i = 0; i < c.tall; ++i) {
                int line = top + i;
                if (c.shape.ring_of_lines) line = around(line, c.shape.lines);
                if (line < 0 || line >= c.shape.lines) {
                    out = std::fill_n(out, c.window * row, 0.0f);
                } else {
                    out = gather_line(c.shape, from + line * c.shape.places * row, first, c.window, row, out);
                }
            }
        }
    }
}

}  // namespace

// One frame on its way through the layers.
struct LayerStream::Run {
    const LayerStream& stream;
    StreamState& state;
    const Kernels& kernels;
    void (*elu)(float*, std::int64_t);
    char* scratch;
    float *gathered, *outputs;
    Sink sink;
    void* to;

    void linear(const Linear& linear, const float* a, std::ptrdiff_t lda, int rows, float* out) const {
        kernels.linear(linear.view(), a, lda, rows, out, whole_panels(linear.view().n), scratch);
    }

    void convolve(const Convolution& c, const float* frame, const float* before, float* out) const {
        const int count = c.rows * c.windows, lines = static_cast<int>(c.linears.size());
        const std::size_t columns = c.columns, row = whole_panels(c.columns);
        for (int begin = 0, end = 0; begin < count; begin = end) {
            const int line = lines == 1 ? 0 : begin / c.windows, past = lines == 1 ? count : (line + 1) * c.windows;
            end = std::min(begin + c.at_a_time(), past);
            const float* a = frame + static_cast<std::size_t>(begin) * c.inward;
            if (!c.by_place()) {
                gather(c, frame, before, begin, end, gathered);
                a = gathered;
            }
            for (int i = 0; i < lines; ++i) {
                const std::size_t at = static_cast<std::size_t>(line) * (lines - 1) * c.windows + i * c.windows + begin;
                linear(c.linears[i], a, static_cast<std::ptrdiff_t>(c.inputs()), end - begin, out + at * row);
            }
        }
        if (columns == row) return;
        for (int w = 1; w < count * lines; ++w) std::memmove(out + w * columns, out + w * row, columns * sizeof(float));
    }

    static void remember(const Convolution& c, const float* frame, float* before) {
        const std::size_t size = static_cast<std::size_t>(c.shape.size()) * c.inward, kept = c.remembered();
        if (kept == 0) return;
        std::memmove(before, before + size, (kept - size) * sizeof(float));
        std::memcpy(before + kept - size, frame, size * sizeof(float));
    }

    // out = x + gate(y) y with y = elu(linear(elu(y)))
    void finish_residual(const Layer& layer, const float* x, float* y, float* out) const {
        const int places = layer.convolution.shape.size();
        const std::ptrdiff_t row = whole_panels(layer.channels);
        const std::size_t size = static_cast<std::size_t>(places) * row;
        elu(y, static_cast<std::int64_t>(size));
        linear(layer.linear, y, row, places, out);
        elu(out, static_cast<std::int64_t>(size));
        float* scores = gathered;
        linear(layer.gate.attend, out, row, places, scores);
        float most = scores[0];
        for (int p = 1; p < places; ++p) most = std::max(most, scores[p * PANEL]);
        // Free from here on.
        float *pooled = y, *hidden = y + row, total = 0.0f;
        std::fill_n(pooled, row, 0.0f);
        for (int p = 0; p < places; ++p) {
            const float share = std::exp(scores[p * PANEL] - most);
            total += share;
            for (int j = 0; j < row; ++j) pooled[j] += share * out[p * row + j];
        }
        for (int j = 0; j < row; ++j) pooled[j] /= total;
        linear(layer.gate.narrow, pooled, row, 1, hidden);
        const int narrow = layer.gate.narrow.view().n;
        for (int j = 0; j < narrow; ++j) hidden[j] = hidden[j] > 0.0f ? hidden[j] : 0.1f * hidden[j];
        linear(layer.gate.widen, hidden, narrow, 1, pooled);
        for (int j = 0; j < row; ++j) pooled[j] = 1.0f / (1.0f + std::exp(-pooled[j]));
        for (int p = 0; p < places; ++p) {
            for (int j = 0; j < row; ++j) out[p * row + j] = x[p * row + j] + pooled[j] * out[p * row + j];
        }
    }

    void push(std::size_t i, const float* frame) const {
        if (i == stream.layers_.size()) {
            if (sink != nullptr) sink(to, frame);
            return;
        }
        const Layer& layer = stream.layers_[i];
        const Convolution& c = layer.convolution;
        float *before = state.frames.data() + stream.memory_[i], *out = outputs + stream.output_[i];
        const std::int64_t seen = state.seen[i]++;
        switch (layer.kind) {
            case Layer::Kind::linear:
                linear(layer.linear, frame, layer.linear.view().k, layer.channels, out);
                push(i + 1, out);
                break;
            case Layer::Kind::convolution:
                if (seen % c.stride == 0) convolve(c, frame, before, out);
                if (seen < static_cast<std::int64_t>(layer.lacking.size())) {
                    const std::vector<float>& lacking = layer.lacking[seen];
                    for (std::size_t j = 0; j < lacking.size(); ++j) out[j] += lacking[j];
                }
                remember(c, frame, before);
                if (seen % c.stride == 0) push(i + 1, out);
                break;
            case Layer::Kind::residual: {
                float* y = out + static_cast<std::size_t>(c.shape.size()) * c.columns;
                convolve(c, frame, before, y);
                remember(c, frame, before);
                finish_residual(layer, frame, y, out);
                push(i + 1, out);
                break;
            }
            case Layer::Kind::expand_time:
                if (seen > 0) {
                    convolve(c, frame, nullptr, out);
                    push(i + 1, out);
                }
                convolve(layer.second, frame, nullptr, out);
                push(i + 1, out);
        }
    }
};

StreamState LayerStream::state() const {
    const std::size_t last = layers_.back().kind == Layer::Kind::linear ? 0 : layers_.back().convolution.remembered();
    return {std::vector<float>(memory_.back() + last), std::vector<std::int64_t>(layers_.size())};
}

std::size_t LayerStream::work_bytes() const { return pages(GEMM_SCRATCH + (gathered_ + outputs_) * sizeof(float)); }

void LayerStream::push(const float* frame, StreamState& state, Isa isa, char* work, Sink sink, void* to) const {
    float* gathered = reinterpret_cast<float*>(work + GEMM_SCRATCH);
    Run{*this, state, kernels(isa), vector_kernels(isa).elu, work, gathered, gathered + gathered_, sink, to}.push(
        0, frame);
}

ConvConfig read_convolutions(Fields& fields, CodecConfig& common, int grid_channels) {
    using enum LayerKind;
    static const std::map<std::string, LayerKind> known = {{"residual", residual}, {"space", space}, {"time", time}};
    ConvConfig out;
    fields.read("latent_channels", common.latent_channels);
    fields.read("width", out.width);
    fields.read("max_width", out.max_width);
    out.layers = {residual, space, residual, space, residual, space, residual, time, residual};
    if (fields.find("layers") != nullptr) out.layers.clear();
    fields.list("layers", [&](const Json& item) {
        if (!item.is(Json::Kind::string)) return false;
        const auto found = known.find(item.string());
        if (found == known.end()) fields.unsupported("layers", text("a list with '", item.string().substr(0, 40), "'"));
        out.layers.push_back(found->second);
        return true;
    });
    fields.read("kernel_ends", out.kernel_ends);
    fields.read("stride_ends", out.stride_ends, 1, 64);
    fields.read("variational", out.variational);
    fields.ignore("kl_weight");
    if (out.kernel_ends % 2 == 0) fields.wrong("kernel_ends", "an odd number is expected");
    if (out.count(space) > 16 || out.count(time) > 4) fields.wrong("layers", "too many halvings");
    // The convolution to the field gives those of so many grid points at once.
    const int together = common.dims() == 2 ? out.stride_ends * out.stride_ends : out.stride_ends;
    if (grid_channels > MOST / together) {
        fields.wrong("field_channels",
                     text("at most ", MOST / together, " is expected with stride_ends ", out.stride_ends));
    }
    const std::int64_t least = *std::min_element(common.grid.begin(), common.grid.end());
    if (out.kernel_ends > least || out.kernel_ends / 2 > least / out.stride_ends) {
        fields.wrong("kernel_ends", "kernels are larger than the grid");
    }
    common.space_factor = out.stride_ends << out.count(space);
    common.time_factor = 1 << out.count(time);
    check_grid(fields, common);
    static_cast<CodecConfig&>(out) = common;
    out.grid_channels = grid_channels;
    return out;
}

MakeCodec read_conv_codec(Fields& fields, CodecConfig& common) {
    struct Convolutions : Codec {
        Convolutions(const ConvConfig& config, const TakeParameter& take)
            : in(LayerStream::encoder(config, take)), out(LayerStream::decoder(config, take)) {}
        const Stream& encoder() const override { return in; }
        const Stream& decoder() const override { return out; }
        LayerStream in, out;
    };
    return [config = read_convolutions(fields, common, common.field_channels)](
               const TakeParameter& take) -> std::unique_ptr<const Codec> {
        return std::make_unique<const Convolutions>(config, take);
    };
}

}  // namespace enma
