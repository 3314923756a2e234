#include "core/cpu/codec_points.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <numbers>
#include <numeric>

#include "core/cpu/allocator.h"
#include "core/cpu/codec_conv.h"
#include "core/cpu/vector_kernels.h"

namespace enma {

namespace {

constexpr double NORM_EPSILON = 1e-5;
// Queries of one task of attention: their sums stay in the second-level cache.
constexpr std::int64_t QUERIES = 192;

std::vector<float> softplus(const float* raw, int count) {
    std::vector<float> out(count);
    std::transform(raw, raw + count, out.begin(),
                   [](double x) { return static_cast<float>(x > 20.0 ? x : std::log1p(std::exp(x))); });
    return out;
}

// x W^T + b of rows [rows, inputs], with sums in double: the same on every instruction set.
std::vector<float> projected(const TakeParameter& take, const std::string& name, const std::vector<float>& x,
                             int inputs, int outputs) {
    const float* const weight = take(name + ".weight", {outputs, inputs});
    const float* const bias = take(name + ".bias", {outputs});
    const std::size_t rows = x.size() / inputs;
    std::vector<float> out(rows * outputs);
    for (std::size_t i = 0; i < rows; ++i) {
        for (int j = 0; j < outputs; ++j) {
            const float* const of_output = weight + static_cast<std::ptrdiff_t>(j) * inputs;
            double sum = bias[j];
            for (int k = 0; k < inputs; ++k) sum += static_cast<double>(of_output[k]) * x[i * inputs + k];
            out[i * outputs + j] = static_cast<float>(sum);
        }
    }
    return out;
}

// Rows of `width` floats become rows of whole panels.
void widen(const float* from, std::int64_t rows, int width, float* to) {
    const int row = whole_panels(width);
    for (std::int64_t i = 0; i < rows; ++i, from += width, to += row) {
        std::fill(std::copy_n(from, width, to), to + row, 0.0f);
    }
}

void narrow(const float* from, std::int64_t rows, int width, float* to) {
    for (std::int64_t i = 0; i < rows; ++i, from += whole_panels(width)) to = std::copy_n(from, width, to);
}

void apply(const Linear& linear, const float* a, std::int64_t rows, float* out, Isa isa, float* scratch) {
    const LinearView& view = linear.view();
    kernels(isa).linear(view, a, view.k, static_cast<int>(rows), out, view.n, reinterpret_cast<char*>(scratch));
}

void gelu(float* values, std::int64_t count) {
    constexpr float root = static_cast<float>(1 / std::numbers::sqrt2);
    for (std::int64_t i = 0; i < count; ++i) values[i] = 0.5f * values[i] * (1.0f + std::erf(values[i] * root));
}

void layer_norm(const float* x, std::int64_t rows, int width, const float* weight, const float* bias, float* out) {
    const int row = whole_panels(width);
    for (std::int64_t i = 0; i < rows; ++i, x += row, out += row) {
        double mean = 0.0, square = 0.0;
        for (int j = 0; j < width; ++j) mean += x[j];
        mean /= width;
        for (int j = 0; j < width; ++j) square += (x[j] - mean) * (x[j] - mean);
        const double factor = 1.0 / std::sqrt(square / width + NORM_EPSILON);
        for (int j = 0; j < width; ++j) out[j] = static_cast<float>((x[j] - mean) * factor) * weight[j] + bias[j];
        std::fill(out + width, out + row, 0.0f);
    }
}

// out += x factor
void add_product(const float* x, float factor, std::int64_t count, float* out) {
    for (std::int64_t i = 0; i < count; ++i) out[i] += x[i] * factor;
}

// Softmax over `rows` rows [rows, count], of each column by itself.
void softmax_of_rows(float* x, int rows, std::int64_t count, float* most, float* sums) {
    std::copy_n(x, count, most);
    for (int r = 1; r < rows; ++r) {
        for (std::int64_t i = 0; i < count; ++i) most[i] = std::max(most[i], x[r * count + i]);
    }
    std::fill_n(sums, count, 0.0f);
    for (int r = 0; r < rows; ++r) {
        for (std::int64_t i = 0; i < count; ++i) sums[i] += x[r * count + i] = std::exp(x[r * count + i] - most[i]);
    }
    for (int r = 0; r < rows; ++r) {
        for (std::int64_t i = 0; i < count; ++i) x[r * count + i] /= sums[i];
    }
}

// Means [K] of rows [K, count] with weights [count].
void pool(const float* weight, const float* x, int K, std::int64_t count, float* out) {
    // Several sums at a time: one waits for the addition before.
    constexpr int AT_ONCE = 4;
    double total = 0.0;
    for (std::int64_t i = 0; i < count; ++i) total += weight[i];
    for (int k = 0; k < K; k += AT_ONCE) {
        double sums[AT_ONCE] = {};
        const float* rows[AT_ONCE];
        for (int j = 0; j < AT_ONCE; ++j) rows[j] = x + std::min(k + j, K - 1) * count;
        for (std::int64_t i = 0; i < count; ++i) {
            for (int j = 0; j < AT_ONCE; ++j) sums[j] += static_cast<double>(weight[i]) * rows[j][i];
        }
        for (int j = 0; j < std::min(AT_ONCE, K - k); ++j) out[k + j] = static_cast<float>(sums[j] / (total + 1e-5));
    }
}

}  // namespace

// Work space of `to_grid`.
struct Interpolation::ToGrid {
    float *gemm, *encoded, *keys, *given, *lifted, *values, *attention, *attended, *lse, *inner, *features;
    float *normed, *hidden, *refined, *turned, *shares, *most, *sums, *slices, *qkv, *scores;

    ToGrid(const Interpolation& i, std::int64_t points, Allocator& parts) {
        const InterpolationConfig& o = i.options_;
        const std::int64_t X = i.size_;
        gemm = parts.take<float>(GEMM_SCRATCH / sizeof(float));
        encoded = parts.take<float>(points * whole_panels(i.encoded_width()));
        keys = parts.take<float>(points * whole_panels(i.inner_));
        given = parts.take<float>(points * whole_panels(i.config_.field_channels));
        lifted = parts.take<float>(points * whole_panels(o.hidden));
        values = parts.take<float>(points * whole_panels(i.inner_));
        attention = parts.take<float>(i.attention_scratch(o.head_dim));
        attended = parts.take<float>(X * i.inner_);
        lse = parts.take<float>(X * o.heads);
        inner = parts.take<float>(X * whole_panels(i.inner_));
        features = parts.take<float>(X * whole_panels(o.features));
        normed = parts.take<float>(X * whole_panels(o.features));
        hidden = parts.take<float>(X * whole_panels(4 * o.features));
        refined = parts.take<float>(X * whole_panels(o.refine_heads * o.refine_head_dim));
        turned = parts.take<float>(X * o.refine_head_dim);
        shares = parts.take<float>(X * o.slices);
        most = parts.take<float>(X);
        sums = parts.take<float>(X);
        slices = parts.take<float>(static_cast<std::int64_t>(o.slices) * o.refine_head_dim);
        qkv = parts.take<float>(static_cast<std::int64_t>(o.slices) * 3 * o.refine_head_dim);
        scores = parts.take<float>(o.slices);
    }
};

// Work space of `to_field`.
struct Interpolation::ToField {
    float *gemm, *features, *keys, *values, *attention, *attended, *lse, *rows, *hidden, *projected, *field;

    ToField(const Interpolation& i, Allocator& parts) {
        const InterpolationConfig& o = i.options_;
        const std::int64_t X = i.size_;
        gemm = parts.take<float>(GEMM_SCRATCH / sizeof(float));
        features = parts.take<float>(X * whole_panels(o.features));
        keys = parts.take<float>(X * whole_panels(i.inner_));
        values = parts.take<float>(X * whole_panels(o.features));
        attention = parts.take<float>(i.attention_scratch(o.features / o.heads));
        attended = parts.take<float>(X * o.features);
        lse = parts.take<float>(X * o.heads);
        rows = parts.take<float>(X * whole_panels(o.features));
        hidden = parts.take<float>(X * whole_panels(o.hidden));
        projected = parts.take<float>(X * whole_panels(i.config_.field_channels));
        field = parts.take<float>(X * i.config_.field_channels);
    }
};

Interpolation::Interpolation(const CodecConfig& config, const InterpolationConfig& options, const TakeParameter& take)
    : config_(config), options_(options), inner_(options_.heads * options_.head_dim) {
    const InterpolationConfig& o = options_;
    const std::int64_t d = config.dims(), c = config.field_channels;
    const std::string name = "codec.interpolation.";
    size_ = 1;
    for (const std::int64_t points : config.grid) size_ *= points;
    for (std::int64_t x = 0; x < size_; ++x) {
        std::int64_t after = size_, rest = x;
        for (int axis = 0; axis < d; ++axis) {
            after /= config.grid[axis];
            const std::int64_t cells = config.periodic[axis] ? config.grid[axis] : config.grid[axis] - 1;
            const double spacing = config.lengths[axis] / static_cast<double>(std::max<std::int64_t>(cells, 1));
            regular_.push_back(static_cast<float>(static_cast<double>(rest / after) * spacing));
            rest %= after;
        }
    }
    const int n = o.frequencies;
    const float most = static_cast<float>(o.max_log2_frequency), step = most / static_cast<float>(n - 1);
    for (int i = 0; i < n; ++i) {
        const float exponent = i < n / 2 ? step * static_cast<float>(i) : most - step * static_cast<float>(n - 1 - i);
        bands_.push_back(static_cast<float>(std::numbers::pi) * std::exp2(exponent));
    }
    // What `take` gives may not outlive this.
    const auto copied = [&](const std::string& part, const std::vector<std::int64_t>& shape) {
        const float* const values = take(name + part, shape);
        return std::vector<float>(
            values, values + std::accumulate(shape.begin(), shape.end(), std::int64_t{1}, std::multiplies<>()));
    };
    grid_ = copied("grid", {size_, d});
    const float* const latents = take(name + "latents", {size_, o.hidden});
    slopes_in_ = softplus(take(name + "slopes_in", {o.heads}), o.heads);
    slopes_out_ = softplus(take(name + "slopes_out", {o.heads}), o.heads);
    queries_in_ = projected(take, name + "in_q", {latents, latents + size_ * o.hidden}, o.hidden, inner_);
    std::vector<float> encoded(size_ * encoded_width());
    for (std::int64_t x = 0; x < size_; ++x) encode(&regular_[x * d], &encoded[x * encoded_width()]);
    queries_out_ = projected(take, name + "out_q", encoded, encoded_width(), inner_);
    const auto linear = [&](const std::string& part, int inward, int outward) {
        return read_linear(take, name + part, inward, outward, outward);
    };
    lift_ = linear("lift", static_cast<int>(c), o.hidden);
    in_k_ = linear("in_k", encoded_width(), inner_);
    in_v_ = linear("in_v", o.hidden, inner_);
    in_out_ = linear("in_out", inner_, o.features);
    out_k_ = linear("out_k", o.features, inner_);
    out_v_ = linear("out_v", o.features, o.features);
    out_out_ = linear("out_out", o.features, o.hidden);
    project_ = linear("project.1", o.hidden, static_cast<int>(c));
    const std::int64_t F = o.features, K = o.refine_head_dim, S = o.slices;
    for (int i = 0; i < o.refine_depth; ++i) {
        const std::string block = "refine." + std::to_string(i) + ".";
        const auto own = [&](const char* part, const std::vector<std::int64_t>& shape) {
            return copied(block + part, shape);
        };
        const int inner = o.refine_heads * o.refine_head_dim;
        refine_.push_back({own("norm_1.weight", {F}), own("norm_1.bias", {F}), own("norm_2.weight", {F}),
                           own("norm_2.bias", {F}), own("assign.weight", {S, K}), own("assign.bias", {S}),
                           own("temperature", {o.refine_heads, 1, 1}), own("qkv.weight", {3 * K, K}),
                           linear(block + "values", o.features, inner), linear(block + "out", inner, o.features),
                           linear(block + "mlp.0", o.features, 4 * o.features),
                           linear(block + "mlp.2", 4 * o.features, o.features)});
    }
}

std::size_t Interpolation::to_grid_bytes(std::int64_t points) const {
    Allocator parts(nullptr);
    ToGrid(*this, points, parts);
    return pages(parts.used());
}

std::size_t Interpolation::to_field_bytes() const {
    Allocator parts(nullptr);
    ToField(*this, parts);
    return pages(parts.used());
}

// Sines, then cosines, of the coordinate along each dimension, scaled to [-1, 1], at every band.
void Interpolation::encode(const float* point, float* out) const {
    for (int axis = 0; axis < config_.dims(); ++axis) {
        const float place = 2.0f * point[axis] / static_cast<float>(config_.lengths[axis]) - 1.0f;
        for (const float band : bands_) *out++ = std::sin(place * band);
        for (const float band : bands_) *out++ = std::cos(place * band);
    }
}

// From all grid points at `query_points`, with queries [X, H K], to points whose keys and values are rows of whole panels.
PointAttention Interpolation::attention(const float* queries, const float* query_points, const float* keys,
                                        const float* points, std::int64_t count, const float* values, int value_dim,
                                        const float* slopes) const {
    const int K = options_.head_dim, H = options_.heads;
    PointAttention g{};
    g.batches = 1;
    g.heads = H;
    g.queries = size_;
    g.points = count;
    g.head_dim = K;
    g.value_dim = value_dim;
    g.dims = config_.dims();
    g.power = 1;
    for (int axis = 0; axis < g.dims; ++axis) {
        g.periods[axis] = config_.periodic[axis] ? static_cast<float>(config_.lengths[axis]) : 0.0f;
    }
    g.q = {queries, 0, K, inner_};
    g.k = {keys, 0, K, whole_panels(inner_)};
    g.v = {values, 0, value_dim, whole_panels(H * value_dim)};
    g.query_points = {query_points, 0};
    g.point_places = {points, 0};
    g.slopes = slopes;
    g.threads = 1;
    return g;
}

std::int64_t Interpolation::attention_scratch(int value_dim) const {
    const PointAttention g = attention(nullptr, nullptr, nullptr, nullptr, 1, nullptr, value_dim, nullptr);
    const auto floats = [&](Isa isa) {
        return vector_kernels(isa).point_attention.forward_scratch(g, g.heads, std::min(QUERIES, size_));
    };
    // Vectors of different widths pad differently, and a call may name any instruction set.
    std::int64_t most = floats(Isa::scalar);
    for (const Isa isa : {Isa::avx2, Isa::avx512}) {
        if (isa_supported(isa)) most = std::max(most, floats(isa));
    }
    return most;
}

// Rows [X, whole panels of H V] of what the queries find.
void Interpolation::attend(const PointAttention& g, Isa isa, float* scratch, float* out, float* lse,
                           float* rows) const {
    PointAttentionTask task{};
    task.end_head = g.heads;
    task.count = g.points;
    for (std::int64_t first = 0; first < g.queries; first += QUERIES) {
        task.first_query = first;
        task.end_query = std::min(first + QUERIES, g.queries);
        vector_kernels(isa).point_attention.forward(g, task, scratch, out, lse);
    }
    const std::int64_t width = g.heads * g.value_dim, row = whole_panels(static_cast<int>(width));
    for (std::int64_t q = 0; q < g.queries; ++q) {
        float* to = rows + q * row;
        for (std::int64_t h = 0; h < g.heads; ++h) {
            to = std::copy_n(out + (h * g.queries + q) * g.value_dim, g.value_dim, to);
        }
        std::fill(to, rows + (q + 1) * row, 0.0f);
    }
}

// Grid points are pooled to a few slices, slices attend to each other, and grid points read them back.
void Interpolation::refine(const Refinement& block, const ToGrid& w, Isa isa) const {
    const InterpolationConfig& o = options_;
    const int S = o.slices, K = o.refine_head_dim, row = whole_panels(o.refine_heads * K);
    const std::int64_t floats = size_ * whole_panels(o.features);
    layer_norm(w.features, size_, o.features, block.norm_1_weight.data(), block.norm_1_bias.data(), w.normed);
    apply(block.values, w.normed, size_, w.refined, isa, w.gemm);
    for (int h = 0; h < o.refine_heads; ++h) {
        float* const values = w.refined + h * K;
        // Dimensions, and slices, are rows of grid points here.
        for (std::int64_t x = 0; x < size_; ++x) {
            for (int k = 0; k < K; ++k) w.turned[k * size_ + x] = values[x * row + k];
        }
        const float temperature = std::clamp(block.temperature[h], 0.1f, 5.0f);
        for (int s = 0; s < S; ++s) {
            float* const share = w.shares + s * size_;
            std::fill_n(share, size_, block.assign_bias[s]);
            for (int k = 0; k < K; ++k) add_product(w.turned + k * size_, block.assign_weight[s * K + k], size_, share);
            for (std::int64_t x = 0; x < size_; ++x) share[x] /= temperature;
        }
        softmax_of_rows(w.shares, S, size_, w.most, w.sums);
        for (int s = 0; s < S; ++s) {
            pool(w.shares + s * size_, w.turned, K, size_, w.slices + s * K);
            for (int j = 0; j < 3 * K; ++j) {
                float sum = 0.0f;
                for (int k = 0; k < K; ++k) sum += block.qkv[j * K + k] * w.slices[s * K + k];
                w.qkv[s * 3 * K + j] = sum;
            }
        }
        const float scale = 1.0f / std::sqrt(static_cast<float>(K));
        for (int s = 0; s < S; ++s) {
            const float* const query = w.qkv + s * 3 * K;
            for (int other = 0; other < S; ++other) {
                const float* const key = w.qkv + other * 3 * K + K;
                float sum = 0.0f;
                for (int k = 0; k < K; ++k) sum += query[k] * key[k];
                w.scores[other] = sum * scale;
            }
            softmax_of_rows(w.scores, S, 1, w.most, w.sums);
            for (int k = 0; k < K; ++k) {
                float sum = 0.0f;
                for (int other = 0; other < S; ++other) sum += w.scores[other] * w.qkv[other * 3 * K + 2 * K + k];
                w.slices[s * K + k] = sum;
            }
        }
        for (int k = 0; k < K; ++k) {
            float* const read = w.turned + k * size_;
            std::fill_n(read, size_, 0.0f);
            for (int s = 0; s < S; ++s) add_product(w.shares + s * size_, w.slices[s * K + k], size_, read);
            for (std::int64_t x = 0; x < size_; ++x) values[x * row + k] = read[x];
        }
    }
    const auto add = [&](const Linear& linear, const float* a) {
        apply(linear, a, size_, w.normed, isa, w.gemm);
        for (std::int64_t i = 0; i < floats; ++i) w.features[i] += w.normed[i];
    };
    add(block.out, w.refined);
    layer_norm(w.features, size_, o.features, block.norm_2_weight.data(), block.norm_2_bias.data(), w.normed);
    apply(block.widen, w.normed, size_, w.hidden, isa, w.gemm);
    gelu(w.hidden, size_ * whole_panels(4 * o.features));
    add(block.narrow, w.hidden);
}

void Interpolation::to_grid(const float* values, const float* points, std::int64_t count, Isa isa, char* work,
                            float* out) const {
    Allocator parts(work);
    const ToGrid w(*this, count, parts);
    const int width = whole_panels(encoded_width());
    for (std::int64_t p = 0; p < count; ++p) {
        encode(points + p * config_.dims(), w.encoded + p * width);
        std::fill(w.encoded + p * width + encoded_width(), w.encoded + (p + 1) * width, 0.0f);
    }
    apply(in_k_, w.encoded, count, w.keys, isa, w.gemm);
    widen(values, count, config_.field_channels, w.given);
    apply(lift_, w.given, count, w.lifted, isa, w.gemm);
    apply(in_v_, w.lifted, count, w.values, isa, w.gemm);
    attend(attention(queries_in_.data(), grid_.data(), w.keys, points, count, w.values, options_.head_dim,
                     slopes_in_.data()),
           isa, w.attention, w.attended, w.lse, w.inner);
    apply(in_out_, w.inner, size_, w.features, isa, w.gemm);
    for (const Refinement& block : refine_) refine(block, w, isa);
    narrow(w.features, size_, options_.features, out);
}

const float* Interpolation::to_field(const float* features, Isa isa, char* work) const {
    Allocator parts(work);
    const ToField w(*this, parts);
    widen(features, size_, options_.features, w.features);
    apply(out_k_, w.features, size_, w.keys, isa, w.gemm);
    apply(out_v_, w.features, size_, w.values, isa, w.gemm);
    attend(attention(queries_out_.data(), regular_.data(), w.keys, grid_.data(), size_, w.values,
                     options_.features / options_.heads, slopes_out_.data()),
           isa, w.attention, w.attended, w.lse, w.rows);
    apply(out_out_, w.rows, size_, w.hidden, isa, w.gemm);
    gelu(w.hidden, size_ * whole_panels(options_.hidden));
    apply(project_, w.hidden, size_, w.projected, isa, w.gemm);
    narrow(w.projected, size_, config_.field_channels, w.field);
    return w.field;
}

namespace {

constexpr int MOST_INTERPOLATION = 4096;

InterpolationConfig read_interpolation(Fields fields) {
    InterpolationConfig out;
    fields.read("features", out.features, 1, MOST_INTERPOLATION);
    fields.read("heads", out.heads, 1, MOST_INTERPOLATION);
    // Those of the weights count; these are where they began.
    std::size_t slopes = 4;
    if (const Json* given = fields.find("slopes")) slopes = given->items().size();
    fields.list("slopes", [](const Json& item) { return item.is(Json::Kind::number) && item.number() > 0; });
    fields.check_all_read();
    if (slopes != static_cast<std::size_t>(out.heads)) fields.wrong("slopes", "one entry for each head is expected");
    if (out.features % out.heads != 0)
        fields.wrong("features", text("a multiple of heads (", out.heads, ") is expected"));
    return out;
}

// The decoder of the convolutions, and what comes out of it as the field.
class FieldStream : public Stream {
   public:
    FieldStream(const ConvConfig& config, const Interpolation& interpolation, const TakeParameter& take)
        : layers_(LayerStream::decoder(config, take)), interpolation_(interpolation) {}
    StreamState state() const override { return layers_.state(); }
    std::size_t work_bytes() const override { return layers_.work_bytes() + interpolation_.to_field_bytes(); }
    bool folded() const override { return layers_.folded(); }

    void push(const float* frame, StreamState& state, Isa isa, char* work, Sink sink, void* to) const override {
        struct Through {
            const Interpolation& interpolation;
            Isa isa;
            char* work;
            Sink sink;
            void* to;
        } through{interpolation_, isa, work + layers_.work_bytes(), sink, to};
        const Sink to_field = [](void* place, const float* made) {
            const Through& through = *static_cast<Through*>(place);
            through.sink(through.to, through.interpolation.to_field(made, through.isa, through.work));
        };
        layers_.push(frame, state, isa, work, sink == nullptr ? nullptr : to_field, &through);
    }

   private:
    LayerStream layers_;
    const Interpolation& interpolation_;
};

class PointsCodec : public Codec {
   public:
    PointsCodec(const ConvConfig& config, const InterpolationConfig& options, const TakeParameter& take)
        : features_(config.points() * config.grid_channels),
          interpolation_(config, options, take),
          encoder_(LayerStream::encoder(config, take)),
          decoder_(config, interpolation_, take) {}
    const Stream& encoder() const override { return encoder_; }
    const Stream& decoder() const override { return decoder_; }
    std::int64_t features() const override { return features_; }
    std::size_t read_bytes(std::int64_t points) const override { return interpolation_.to_grid_bytes(points); }

    void read(const SeenFrame& seen, Isa isa, char* work, float* out) const override {
        const float* const points = seen.points == nullptr ? interpolation_.regular().data() : seen.points;
        interpolation_.to_grid(seen.values, points, seen.count, isa, work, out);
    }

   private:
    std::int64_t features_;
    Interpolation interpolation_;
    LayerStream encoder_;
    FieldStream decoder_;
};

}  // namespace

MakeCodec read_points_codec(Fields& fields, CodecConfig& common) {
    const Json* const part = fields.find("interpolation");
    if (part == nullptr) fields.wrong("interpolation", "an object is expected");
    const InterpolationConfig options = read_interpolation(fields.inner("interpolation", *part));
    return [config = read_convolutions(fields, common, options.features),
            options](const TakeParameter& take) -> std::unique_ptr<const Codec> {
        return std::make_unique<const PointsCodec>(config, options, take);
    };
}

}  // namespace enma
