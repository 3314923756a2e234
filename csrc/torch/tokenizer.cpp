// The tokenizer without gradients: fields to latent frames and back, each row by one thread.

#include "core/cpu/tokenizer.h"

#include "core/cpu/interpolation.h"
#include "isa.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/csrc/utils/pybind.h>

#include <algorithm>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

namespace enma {

namespace {

using at::Tensor;

struct Tokenizer {
    TokenizerConfig config;
    Stream encoder, decoder;
    std::optional<Interpolation> interpolation;
    std::int64_t points, places;
};

using Sizes = std::map<std::string, double>;

LayerKind kind_of(const std::string& name) {
    if (name == "residual") return LayerKind::residual;
    if (name == "space") return LayerKind::space;
    TORCH_CHECK_VALUE(name == "time", "tokenizer: the layer ", name, " is not known here");
    return LayerKind::time;
}

InterpolationConfig interpolation_of(const Sizes& sizes) {
    InterpolationConfig out;
    const std::map<std::string, int*> whole = {{"features", &out.features},
                                               {"hidden", &out.hidden},
                                               {"heads", &out.heads},
                                               {"head_dim", &out.head_dim},
                                               {"frequencies", &out.frequencies},
                                               {"distance_power", &out.distance_power},
                                               {"refine_depth", &out.refine_depth},
                                               {"refine_heads", &out.refine_heads},
                                               {"refine_head_dim", &out.refine_head_dim},
                                               {"slices", &out.slices}};
    for (const auto& [name, place] : whole) *place = static_cast<int>(sizes.at(name));
    out.max_log2_frequency = sizes.at("max_log2_frequency");
    return out;
}

Tokenizer make_tokenizer(const std::map<std::string, Tensor>& parameters, std::vector<std::int64_t> grid,
                         std::vector<double> lengths, std::vector<bool> periodic, int field_channels,
                         int latent_channels, int width, int max_width, const std::vector<std::string>& layers,
                         int kernel, int kernel_time, int kernel_ends, int stride_ends, bool variational,
                         const std::optional<Sizes>& interpolation) {
    TokenizerConfig config;
    config.grid = std::move(grid);
    config.lengths = std::move(lengths);
    config.periodic = std::move(periodic);
    config.field_channels = field_channels;
    config.latent_channels = latent_channels;
    config.width = width;
    config.max_width = max_width;
    for (const std::string& name : layers) config.layers.push_back(kind_of(name));
    config.kernel = kernel;
    config.kernel_time = kernel_time;
    config.kernel_ends = kernel_ends;
    config.stride_ends = stride_ends;
    config.variational = variational;
    if (interpolation) config.interpolation = interpolation_of(*interpolation);
    std::set<std::string> taken;
    const TakeParameter take = [&](const std::string& name, const std::vector<std::int64_t>& shape) {
        const auto found = parameters.find(name.substr(std::string("tokenizer.").size()));
        TORCH_CHECK_VALUE(found != parameters.end(), "tokenizer: parameter ", name, " is missing");
        const Tensor& x = found->second;
        TORCH_CHECK_VALUE(
            x.device().is_cpu() && x.scalar_type() == at::kFloat && x.is_contiguous() && x.sizes() == shape,
            "tokenizer: parameter ", name, " is ", x.scalar_type(), x.sizes(), " on ", x.device(),
            "; expected contiguous float32 ", shape, " on the CPU");
        taken.insert(found->first);
        return x.const_data_ptr<float>();
    };
    const auto packed = [&] {
        const pybind11::gil_scoped_release release;
        std::optional<Interpolation> points;
        if (config.interpolation) points.emplace(config, take);
        return std::tuple(Stream::encoder(config, take), Stream::decoder(config, take), std::move(points));
    };
    auto [encoder, decoder, scattered] = packed();
    // One that is not read would be missing from every result.
    for (const auto& [name, value] : parameters) {
        TORCH_CHECK_VALUE(taken.count(name) > 0, "tokenizer: parameter ", name, " is not known here");
    }
    std::int64_t points = 1, places = 1;
    for (const std::int64_t n : config.grid) {
        points *= n;
        places *= n / config.space_factor();
    }
    return {std::move(config), std::move(encoder), std::move(decoder), std::move(scattered), points, places};
}

void expect_rows(const Tensor& x, const char* name, std::vector<std::int64_t> after) {
    TORCH_CHECK_VALUE(x.device().is_cpu() && x.scalar_type() == at::kFloat && x.is_contiguous(), "tokenizer: ", name,
                      " is ", x.scalar_type(), " on ", x.device(), "; expected contiguous float32 on the CPU");
    TORCH_CHECK_VALUE(x.dim() == 2 + static_cast<std::int64_t>(after.size()) && x.size(0) > 0 && x.size(1) > 0 &&
                          x.sizes().slice(2) == after,
                      "tokenizer: ", name, " has shape ", x.sizes(), "; expected [rows, frames] and ", after);
}

// body(row, state, work) for every row, by so many threads; `bytes` of work space each.
template <class Body>
void each_row(std::int64_t rows, int threads, const Stream& stream, std::size_t bytes, const Body& body) {
    threads = static_cast<int>(std::clamp<std::int64_t>(threads, 1, rows));
    const Scratch scratch(threads * bytes);
    // Nothing is allocated in the region, where nothing may be thrown.
    std::vector<StreamState> states(threads, stream.state());
    parallel(threads, [&](int thread, int n) {
        for (std::int64_t row = rows * thread / n; row < rows * (thread + 1) / n; ++row) {
            states[thread].clear();
            body(row, states[thread], scratch.data() + thread * bytes);
        }
    });
}

// What the encoder reads of a frame: values as they are, or features of values at points.
class Frames {
   public:
    // Values [rows, T, P, c] and, of points that are not those of the grid, points [rows, T, P, d], NaN for one that is
    // not there; each frame has one.
    Frames(const Tokenizer& tokenizer, const Tensor& values, const Tensor* points)
        : interpolation_(tokenizer.interpolation ? &*tokenizer.interpolation : nullptr),
          values_(values.const_data_ptr<float>()),
          points_(points == nullptr ? nullptr : points->const_data_ptr<float>()),
          count_(points == nullptr ? tokenizer.points : points->size(2)),
          channels_(tokenizer.config.field_channels),
          dims_(tokenizer.config.dims()),
          features_(interpolation_ == nullptr ? 0 : tokenizer.points * tokenizer.config.grid_channels()) {}

    // Bytes of one thread.
    std::size_t work_bytes() const {
        if (interpolation_ == nullptr) return 0;
        const std::size_t given = points_ == nullptr ? 0 : pages(count_ * (channels_ + dims_) * sizeof(float));
        return pages(features_ * sizeof(float)) + given + interpolation_->to_grid_bytes(count_);
    }

    // Frame `number` of all rows: [points of the grid, channels that the encoder sees]; it may lie in `work`.
    const float* read(std::int64_t number, Isa isa, char* work) const {
        const float* const values = values_ + number * count_ * channels_;
        if (interpolation_ == nullptr) return values;
        float* const out = reinterpret_cast<float*>(work);
        work += pages(features_ * sizeof(float));
        if (points_ == nullptr) {
            interpolation_->to_grid(values, interpolation_->regular().data(), count_, isa, work, out);
            return out;
        }
        float *const there = reinterpret_cast<float*>(work), *const seen = there + count_ * dims_;
        work += pages(count_ * (channels_ + dims_) * sizeof(float));
        const float* const points = points_ + number * count_ * dims_;
        std::int64_t found = 0;
        for (std::int64_t p = 0; p < count_; ++p) {
            if (std::any_of(points + p * dims_, points + (p + 1) * dims_, [](float x) { return std::isnan(x); }))
                continue;
            std::copy_n(points + p * dims_, dims_, there + found * dims_);
            std::copy_n(values + p * channels_, channels_, seen + found * channels_);
            ++found;
        }
        interpolation_->to_grid(seen, there, found, isa, work, out);
        return out;
    }

   private:
    const Interpolation* interpolation_;
    const float *values_, *points_;
    std::int64_t count_, channels_, dims_, features_;
};

// Latent frames [rows, T', places, C] of standardised fields [rows, T, *grid, c], or of values [rows, T, P, c] at points
// [rows, T, P, d].
Tensor encode(const Tokenizer& tokenizer, const Tensor& fields, const std::optional<Tensor>& points, int threads,
              const std::string& isa_name) {
    const TokenizerConfig& config = tokenizer.config;
    std::vector<std::int64_t> frame = config.grid;
    if (points) {
        TORCH_CHECK_VALUE(tokenizer.interpolation, "tokenizer: points without an interpolation");
        TORCH_CHECK_VALUE(points->dim() == 4 && points->size(2) > 0, "tokenizer: points has shape ", points->sizes(),
                          "; expected [rows, frames, points, dimensions]");
        expect_rows(*points, "points", {points->size(2), config.dims()});
        frame = {points->size(2)};
    }
    frame.push_back(config.field_channels);
    expect_rows(fields, "fields", frame);
    TORCH_CHECK_VALUE(!points || points->sizes().slice(0, 2) == fields.sizes().slice(0, 2),
                      "tokenizer: points has shape ", points->sizes(), ", fields ", fields.sizes());
    const Isa isa = isa_of("tokenizer", isa_name);
    const std::int64_t rows = fields.size(0), T = fields.size(1), latents = config.latent_frames(T);
    const std::int64_t steps = (latents - 1) * config.time_factor() + 1, C = config.latent_channels;
    const Frames frames(tokenizer, fields, points ? &*points : nullptr);
    Tensor out = at::empty({rows, latents, tokenizer.places, C}, fields.options());
    float* const to = out.mutable_data_ptr<float>();
    struct Target {
        float* out;
        std::int64_t places, channels;
    };
    const Sink keep = [](void* place, const float* made) {
        Target& target = *static_cast<Target*>(place);
        for (std::int64_t i = 0; i < target.places; ++i, made += whole_panels(static_cast<int>(target.channels))) {
            target.out = std::copy_n(made, target.channels, target.out);
        }
    };
    const pybind11::gil_scoped_release release;
    const Stream& stream = tokenizer.encoder;
    const std::size_t bytes = stream.work_bytes() + frames.work_bytes();
    each_row(rows, threads, stream, bytes, [&](std::int64_t row, StreamState& state, char* work) {
        Target target{to + row * latents * tokenizer.places * C, tokenizer.places, C};
        const float* read = nullptr;
        for (std::int64_t t = 0; t < steps; ++t) {
            // The last latent frame may lack frames of its own: they repeat the last one.
            if (t < T) read = frames.read(row * T + t, isa, work + stream.work_bytes());
            stream.push(read, state, isa, work, keep, &target);
        }
    });
    return out;
}

// The first `frames` standardised fields [rows, frames, *grid, c] of latent frames [rows, T', places, C].
Tensor decode(const Tokenizer& tokenizer, const Tensor& latents, std::int64_t frames, int threads,
              const std::string& isa_name) {
    const TokenizerConfig& config = tokenizer.config;
    expect_rows(latents, "latents", {tokenizer.places, config.latent_channels});
    const Isa isa = isa_of("tokenizer", isa_name);
    const std::int64_t rows = latents.size(0), T = latents.size(1), C = config.latent_channels;
    const std::int64_t most = (T - 1) * config.time_factor() + 1, size = tokenizer.points * config.field_channels;
    TORCH_CHECK_VALUE(1 <= frames && frames <= most, "tokenizer: frames is ", frames, "; ", T,
                      " latent frames give 1 to ", most);
    std::vector<std::int64_t> shape = {rows, frames};
    shape.insert(shape.end(), config.grid.begin(), config.grid.end());
    shape.push_back(config.field_channels);
    Tensor out = at::empty(shape, latents.options());
    const float* const from = latents.const_data_ptr<float>();
    float* const to = out.mutable_data_ptr<float>();
    struct Target {
        float *out, *end;
        std::int64_t size;
        const Interpolation* interpolation;
        Isa isa;
        char* work;
    };
    const Sink keep = [](void* place, const float* made) {
        Target& target = *static_cast<Target*>(place);
        if (target.out == target.end) return;
        if (target.interpolation != nullptr) made = target.interpolation->to_field(made, target.isa, target.work);
        target.out = std::copy_n(made, target.size, target.out);
    };
    const Stream& stream = tokenizer.decoder;
    const Interpolation* const interpolation = tokenizer.interpolation ? &*tokenizer.interpolation : nullptr;
    const int row_of_place = stream.inward();
    const std::size_t input_bytes = pages(tokenizer.places * row_of_place * sizeof(float));
    const pybind11::gil_scoped_release release;
    const std::size_t before = stream.work_bytes() + input_bytes;
    const std::size_t bytes = before + (interpolation == nullptr ? 0 : interpolation->to_field_bytes());
    each_row(rows, threads, stream, bytes, [&](std::int64_t row, StreamState& state, char* work) {
        float* const begin = to + row * frames * size;
        Target target{begin, begin + frames * size, size, interpolation, isa, work + before};
        float* const input = reinterpret_cast<float*>(work + stream.work_bytes());
        std::fill_n(input, tokenizer.places * row_of_place, 0.0f);
        for (std::int64_t t = 0; t < T && target.out < target.end; ++t) {
            const float* latent = from + (row * T + t) * tokenizer.places * C;
            for (std::int64_t i = 0; i < tokenizer.places; ++i, latent += C) {
                std::copy_n(latent, C, input + i * row_of_place);
            }
            stream.push(input, state, isa, work, keep, &target);
        }
    });
    return out;
}

}  // namespace

void bind_tokenizer(pybind11::module_& m) {
    namespace py = pybind11;
    py::class_<Tokenizer>(m, "Tokenizer", "Packed weights of an encoder and a decoder.")
        .def(py::init(&make_tokenizer), py::arg("parameters"), py::arg("grid"), py::arg("lengths"), py::arg("periodic"),
             py::arg("field_channels"), py::arg("latent_channels"), py::arg("width"), py::arg("max_width"),
             py::arg("layers"), py::arg("kernel"), py::arg("kernel_time"), py::arg("kernel_ends"),
             py::arg("stride_ends"), py::arg("variational"), py::arg("interpolation"))
        .def_property_readonly("folded", [](const Tokenizer& tokenizer) { return tokenizer.decoder.folded(); })
        .def("encode", &encode, py::arg("fields"), py::arg("points") = py::none(), py::arg("threads"),
             py::arg("isa") = "")
        .def("decode", &decode, py::arg("latents"), py::arg("frames"), py::arg("threads"), py::arg("isa") = "");
}

}  // namespace enma
