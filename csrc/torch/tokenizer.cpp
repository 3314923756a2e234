// The tokenizer without gradients: fields to latent frames and back, each row by one thread.

#include "core/cpu/tokenizer.h"

#include "isa.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/csrc/utils/pybind.h>

#include <algorithm>
#include <map>
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
    std::int64_t points, places;
};

LayerKind kind_of(const std::string& name) {
    if (name == "residual") return LayerKind::residual;
    if (name == "space") return LayerKind::space;
    TORCH_CHECK_VALUE(name == "time", "tokenizer: the layer ", name, " is not known here");
    return LayerKind::time;
}

Tokenizer make_tokenizer(const std::map<std::string, Tensor>& parameters, std::vector<std::int64_t> grid,
                         std::vector<bool> periodic, int field_channels, int latent_channels, int width, int max_width,
                         const std::vector<std::string>& layers, int kernel, int kernel_time, int kernel_ends,
                         int stride_ends, bool variational) {
    TokenizerConfig config;
    config.grid = std::move(grid);
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
        return std::pair(Stream::encoder(config, take), Stream::decoder(config, take));
    };
    auto [encoder, decoder] = packed();
    // One that is not read would be missing from every result.
    for (const auto& [name, value] : parameters) {
        TORCH_CHECK_VALUE(taken.count(name) > 0, "tokenizer: parameter ", name, " is not known here");
    }
    std::int64_t points = 1, places = 1;
    for (const std::int64_t n : config.grid) {
        points *= n;
        places *= n / config.space_factor();
    }
    return {std::move(config), std::move(encoder), std::move(decoder), points, places};
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

// Latent frames [rows, T', places, C] of standardised fields [rows, T, *grid, c].
Tensor encode(const Tokenizer& tokenizer, const Tensor& fields, int threads, const std::string& isa_name) {
    const TokenizerConfig& config = tokenizer.config;
    std::vector<std::int64_t> frame = config.grid;
    frame.push_back(config.field_channels);
    expect_rows(fields, "fields", frame);
    const Isa isa = isa_of("tokenizer", isa_name);
    const std::int64_t rows = fields.size(0), T = fields.size(1), latents = config.latent_frames(T);
    const std::int64_t steps = (latents - 1) * config.time_factor() + 1,
                       size = tokenizer.points * config.field_channels;
    const std::int64_t C = config.latent_channels;
    Tensor out = at::empty({rows, latents, tokenizer.places, C}, fields.options());
    const float* const from = fields.const_data_ptr<float>();
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
    each_row(rows, threads, stream, stream.work_bytes(), [&](std::int64_t row, StreamState& state, char* work) {
        Target target{to + row * latents * tokenizer.places * C, tokenizer.places, C};
        // The last latent frame may lack frames of its own: they repeat the last one.
        for (std::int64_t t = 0; t < steps; ++t) {
            stream.push(from + (row * T + std::min(t, T - 1)) * size, state, isa, work, keep, &target);
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
    };
    const Sink keep = [](void* place, const float* made) {
        Target& target = *static_cast<Target*>(place);
        if (target.out < target.end) target.out = std::copy_n(made, target.size, target.out);
    };
    const Stream& stream = tokenizer.decoder;
    const int row_of_place = stream.inward();
    const std::size_t input_bytes = pages(tokenizer.places * row_of_place * sizeof(float));
    const pybind11::gil_scoped_release release;
    const std::size_t bytes = stream.work_bytes() + input_bytes;
    each_row(rows, threads, stream, bytes, [&](std::int64_t row, StreamState& state, char* work) {
        float* const begin = to + row * frames * size;
        Target target{begin, begin + frames * size, size};
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
        .def(py::init(&make_tokenizer), py::arg("parameters"), py::arg("grid"), py::arg("periodic"),
             py::arg("field_channels"), py::arg("latent_channels"), py::arg("width"), py::arg("max_width"),
             py::arg("layers"), py::arg("kernel"), py::arg("kernel_time"), py::arg("kernel_ends"),
             py::arg("stride_ends"), py::arg("variational"))
        .def_property_readonly("folded", [](const Tokenizer& tokenizer) { return tokenizer.decoder.folded(); })
        .def("encode", &encode, py::arg("fields"), py::arg("threads"), py::arg("isa") = "")
        .def("decode", &decode, py::arg("latents"), py::arg("frames"), py::arg("threads"), py::arg("isa") = "");
}

}  // namespace enma
