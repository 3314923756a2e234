// The codec of a Python model, by the code that libenma runs.
#include "runtime/codec.h"

#include "python/bindings.h"
#include "python/parameters.h"
#include "python/tensor.h"

namespace enma {

namespace codec_binding {

constexpr char OP[] = "codec";

// A codec packed from the parameters of a tokenizer, by name; they are not needed afterwards.
struct PackedCodec {
    CodecConfig config;
    std::unique_ptr<const Codec> codec;
};

std::unique_ptr<PackedCodec> make_codec(const std::string& config, const py::dict& parameters) {
    Tensors tensors = tensors_of(parameters);
    const Json given = Json::parse(config, "config");
    auto packed = std::make_unique<PackedCodec>(PackedCodec{read_codec(Fields(given, "config")), nullptr});
    const py::gil_scoped_release release;
    packed->codec = packed->config.make(
        [&](const std::string& name, const std::vector<std::int64_t>& shape) { return tensors.take(name, shape); });
    tensors.check_all_taken();
    return packed;
}

void expect_rows(const Tensor& x, const char* name) {
    expect(x.dim() >= 2 && x.size(0) > 0 && x.size(1) > 0, OP, ": ", name, " has shape ", x.sizes(),
           "; expected [rows, frames, ...]");
}

// Latent frames [rows, T', places, C] of standardised fields [rows, T, *grid, c], or of values [rows, T, P, c] at points
// [rows, T, P, d].
Tensor encode(const PackedCodec& packed, const Tensor& fields, const std::optional<Tensor>& points, int threads,
              const std::string& isa) {
    const CodecConfig& config = packed.config;
    expect_rows(fields, "fields");
    const std::int64_t rows = fields.size(0), T = fields.size(1);
    std::vector<std::int64_t> shape{rows, T};
    FramesOfRows given{nullptr, nullptr, rows, T, config.points()};
    if (points) {
        expect(points->dim() == 4 && points->size(2) > 0, OP, ": points has shape ", points->sizes(),
               "; expected [rows, frames, points, dimensions]");
        given.count = points->size(2);
        given.points = static_cast<const float*>(
            checked(OP, *points, "points", {rows, T, given.count, config.dims()}, Dtype::float32));
        shape.push_back(given.count);
    } else {
        shape.insert(shape.end(), config.grid.begin(), config.grid.end());
    }
    shape.push_back(config.field_channels);
    given.values = static_cast<const float*>(checked(OP, fields, "fields", shape, Dtype::float32));
    Tensor out =
        Tensor::empty({rows, config.latent_frames(T), config.places(), config.latent_channels}, Dtype::float32, fields);
    const Isa with = isa_of(OP, isa);
    const py::gil_scoped_release release;
    encode_rows(config, *packed.codec, given, threads, with, out.data<float>());
    return out;
}

// The first `frames` standardised fields [rows, frames, *grid, c] of latent frames [rows, T', places, C].
Tensor decode(const PackedCodec& packed, const Tensor& latents, std::int64_t frames, int threads,
              const std::string& isa) {
    const CodecConfig& config = packed.config;
    expect_rows(latents, "latents");
    const std::int64_t rows = latents.size(0), T = latents.size(1);
    const void* const from =
        checked(OP, latents, "latents", {rows, T, config.places(), config.latent_channels}, Dtype::float32);
    expect(frames > 0 && frames <= T * config.time_factor, OP, ": frames is ", frames);
    std::vector<std::int64_t> shape{rows, frames};
    shape.insert(shape.end(), config.grid.begin(), config.grid.end());
    shape.push_back(config.field_channels);
    Tensor out = Tensor::empty(shape, Dtype::float32, latents);
    const Isa with = isa_of(OP, isa);
    const py::gil_scoped_release release;
    decode_rows(config, *packed.codec, static_cast<const float*>(from), rows, T, frames, threads, with,
                out.data<float>());
    return out;
}

}  // namespace codec_binding

void bind_codec(py::module_& m) {
    using namespace codec_binding;
    py::class_<PackedCodec>(m, "Codec", "Packed weights of an encoder and a decoder.")
        .def(py::init(&make_codec), arg("config"), arg("parameters"))
        .def_property_readonly("folded", [](const PackedCodec& packed) { return packed.codec->decoder().folded(); })
        .def("encode", &encode, arg("fields"), arg("points") = py::none(), arg("threads"), arg("isa") = "")
        .def("decode", &decode, arg("latents"), arg("frames"), arg("threads"), arg("isa") = "");
}

}  // namespace enma
