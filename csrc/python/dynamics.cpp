// The sampler of a Python model, by the code that libenma runs.
#include "runtime/dynamics.h"

#include "python/bindings.h"
#include "python/parameters.h"
#include "python/tensor.h"

namespace enma {

namespace dynamics_binding {

constexpr char OP[] = "sampler";

std::unique_ptr<Dynamics> make_dynamics(const std::string& config, const py::dict& parameters,
                                        const std::string& format) {
    Tensors tensors = tensors_of(parameters);
    const NumberFormat chosen = format_of(format);
    const ModelConfig read = read_config(Json::parse(config, "config"), "config");
    const py::gil_scoped_release release;
    auto dynamics = std::make_unique<Dynamics>(read, tensors, chosen);
    tensors.check_all_taken();
    return dynamics;
}

std::unique_ptr<FrameSession> make_session(const Dynamics& dynamics, std::int64_t rows, std::int64_t groups,
                                           std::int64_t prefix_frames, std::int64_t own_frames,
                                           std::int64_t first_frame, const std::string& settings, int threads,
                                           const std::string& isa) {
    const SamplingConfig read = read_sampling_config(Json::parse(settings, "settings"), "settings");
    const SamplerSettings asked{
        {read.mask_steps, read.flow_steps, static_cast<float>(read.temperature), rows, threads, isa_of(OP, isa)},
        groups,
        prefix_frames,
        own_frames,
        first_frame};
    const py::gil_scoped_release release;
    return dynamics.session(asked);
}

void start_segment(FrameSession& session, int segment) {
    expect(segment == 0 || segment == 1, OP, ": segment is ", segment, "; expected 0 or 1");
    expect(!session.begun() && session.frames_read() < session.settings().prefix_frames, OP, ": all ",
           session.settings().prefix_frames, " shared frames are read");
    session.start_segment(segment);
}

// A latent frame [G, N, C] that groups share.
void read_frame(FrameSession& session, const Tensor& z) {
    const SamplerSettings& set = session.settings();
    const void* const values =
        checked(OP, z, "frame", {set.groups, session.tokens(), session.channels()}, Dtype::float32);
    expect(!session.begun() && 0 < session.frames_read() && session.frames_read() < set.prefix_frames, OP, ": ",
           session.frames_read(), " of ", set.prefix_frames, " shared frames are read");
    session.read(static_cast<const float*>(values));
}

// Drivers [G or 1, T or 1, points or 1] of the segment, and where fields have values [points, c].
void tell(FrameSession& session, const std::vector<Tensor>& drivers, const std::optional<Tensor>& mask) {
    Told told;
    const auto values = [](const Tensor& x, const char* name, const std::vector<std::int64_t>& shape) {
        const float* const from = static_cast<const float*>(checked(OP, x, name, shape, Dtype::float32));
        return std::vector<float>(from, from + x.numel());
    };
    for (const Tensor& x : drivers) {
        expect(x.dim() == 3, OP, ": a driver has shape ", x.sizes(), "; expected [groups, frames, points]");
        const std::vector<std::int64_t> shape{x.size(0), x.size(1), x.size(2)};
        told.drivers.push_back({shape[0], shape[1], shape[2], values(x, "driver", shape)});
    }
    if (mask) {
        expect(mask->dim() == 2, OP, ": mask has shape ", mask->sizes(), "; expected [points, channels]");
        told.mask = values(*mask, "mask", {mask->size(0), mask->size(1)});
    }
    expect(session.frames_read() > 0, OP, ": no segment is started");
    session.tell(std::move(told));
}

void reopen(FrameSession& session, std::int64_t rows, std::int64_t first_frame) {
    expect(0 < rows && rows <= session.most_rows(), OP, ": ", rows, " of ", session.most_rows(), " rows");
    expect(first_frame >= 0, OP, ": first_frame is ", first_frame);
    session.reopen(rows, first_frame);
}

void begin(FrameSession& session, const Tensor& seeds, const Tensor& members, const Tensor& groups) {
    const SamplerSettings& set = session.settings();
    const auto numbers = [&](const Tensor& x, const char* name) {
        return static_cast<const std::int64_t*>(checked(OP, x, name, {set.rows}, Dtype::int64));
    };
    const std::int64_t *const seed = numbers(seeds, "seeds"), *const member = numbers(members, "members"),
                              *const of = numbers(groups, "groups");
    expect(session.frames_read() > 0, OP, ": 0 of ", set.prefix_frames, " shared frames are read");
    expect(std::all_of(of, of + set.rows, [&](std::int64_t g) { return 0 <= g && g < set.groups; }), OP,
           ": groups has a number that is not below ", set.groups);
    const std::vector<std::uint32_t> seed_words(seed, seed + set.rows), member_words(member, member + set.rows);
    const std::vector<int> group(of, of + set.rows);
    session.begin(seed_words.data(), member_words.data(), group.data());
}

// A frame [B, N, C] that was made before.
void follow(FrameSession& session, const Tensor& z) {
    const SamplerSettings& set = session.settings();
    const void* const values =
        checked(OP, z, "frame", {set.rows, session.tokens(), session.channels()}, Dtype::float32);
    expect(session.begun() && session.frames_made() < set.own_frames, OP, ": ", session.frames_made(), " of ",
           set.own_frames, " frames are made");
    session.follow(static_cast<const float*>(values));
}

// The next frame [B, N, C], or the next frames [T, B, N, C].
void frame(FrameSession& session, const Tensor& out, bool last) {
    const SamplerSettings& set = session.settings();
    std::vector<std::int64_t> shape{set.rows, session.tokens(), session.channels()};
    const std::int64_t frames = out.dim() == 4 ? out.size(0) : 1, each = shape[0] * shape[1] * shape[2];
    if (out.dim() == 4) shape.insert(shape.begin(), frames);
    float* const to = static_cast<float*>(checked(OP, out, "out", shape, Dtype::float32));
    expect(frames > 0, OP, ": out has no frame");
    expect(session.begun(), OP, ": no frame is left to make; call begin first");
    const std::int64_t kept = session.frames_made() + frames - (last ? 1 : 0);
    expect(kept <= set.own_frames, OP, ": ", session.frames_made(), " of ", set.own_frames, " frames are made");
    for (std::int64_t t = 0; t < frames; ++t) {
        if (t > 0 && PyErr_CheckSignals() != 0) throw py::error_already_set();
        const py::gil_scoped_release release;
        session.frame(to + t * each, last && t + 1 == frames);
    }
}

py::dict plan(const FrameSession& session) {
    const SamplerPlan plan = session.plan();
    py::dict bytes;
    bytes["weights"] = plan.weights;
    bytes["keys_values"] = plan.keys_values;
    bytes["buffers"] = plan.buffers;
    bytes["work"] = plan.work;
    return bytes;
}

}  // namespace dynamics_binding

void bind_dynamics(py::module_& m) {
    using namespace dynamics_binding;
    py::class_<Dynamics>(m, "Dynamics", "Packed weights of the transformers and decoders, shared by sessions.")
        .def(py::init(&make_dynamics), arg("config"), arg("parameters"), arg("format"))
        .def("session", &make_session, arg("rows"), arg("groups"), arg("prefix_frames"), arg("own_frames"),
             arg("first_frame"), arg("settings"), arg("threads"), arg("isa") = "")
        .def_property_readonly("bytes", &Dynamics::bytes);
    py::class_<FrameSession>(m, "SamplerSession", "One chunk of an ensemble, with all the memory it needs.")
        .def("reset", &FrameSession::reset)
        .def("start_segment", &start_segment, arg("segment"), without_lock())
        .def("read", &read_frame, arg("z"), without_lock())
        .def("tell", &tell, arg("drivers"), arg("mask") = py::none(), without_lock())
        .def("reopen", &reopen, arg("rows"), arg("first_frame"))
        .def("begin", &begin, arg("seeds"), arg("members"), arg("groups"), without_lock())
        .def("follow", &follow, arg("z"), without_lock())
        .def("frame", &frame, arg("out"), arg("last"))
        .def("plan", &plan);
}

}  // namespace enma
