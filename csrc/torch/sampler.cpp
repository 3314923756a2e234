#include "core/cpu/sampler.h"

#include <ATen/core/Tensor.h>
#include <torch/csrc/utils/pybind.h>

#include <cmath>
#include <limits>
#include <map>
#include <memory>
#include <numeric>
#include <set>
#include <string>
#include <vector>

#include "core/cpu/dispatch.h"

namespace enma {

namespace {

using at::Tensor;

// Work space is taken for each of them.
constexpr int MOST_THREADS = 4096;

using Parameters = std::map<std::string, Tensor>;

// Parameters of a Dynamics by their plain names, all of one dtype; remembers them while they are read.
class Reader {
   public:
    explicit Reader(const Parameters& parameters) : parameters_(parameters) {
        type_ = find("temporal.embed.weight").scalar_type();
        TORCH_CHECK_VALUE(type_ == at::kFloat || type_ == at::kBFloat16, "sampler: weights are ", type_,
                          "; expected float32 or bfloat16");
    }

    bool bf16() const { return type_ == at::kBFloat16; }
    bool has(const std::string& name) const { return parameters_.count(name) != 0; }
    // Size of a matrix.
    int64_t size(const std::string& name, int dim) const {
        const Tensor& tensor = find(name);
        TORCH_CHECK_VALUE(tensor.dim() == 2, "sampler: ", name, " has shape ", tensor.sizes(), "; expected a matrix");
        return tensor.size(dim);
    }

    // Channels that a convolution reads.
    int64_t inward(const std::string& name) const {
        const Tensor& tensor = find(name);
        TORCH_CHECK_VALUE(tensor.dim() >= 3, "sampler: ", name, " has shape ", tensor.sizes(),
                          "; expected a convolution's");
        return tensor.size(1);
    }

    // Modes of a filter, [2, .., modes, inward, outward].
    int64_t modes(const std::string& name) const {
        const Tensor& tensor = find(name);
        TORCH_CHECK_VALUE(tensor.dim() >= 4, "sampler: ", name, " has shape ", tensor.sizes(), "; expected a filter's");
        return tensor.size(-3);
    }

    const void* take(const std::string& name, std::vector<int64_t> shape) const {
        const Tensor& tensor = find(name);
        TORCH_CHECK_VALUE(tensor.device().is_cpu() && tensor.scalar_type() == type_ && tensor.is_contiguous() &&
                              tensor.sizes() == c10::IntArrayRef(shape),
                          "sampler: ", name, " is ", tensor.scalar_type(), " ", tensor.sizes(), " on ", tensor.device(),
                          "; expected contiguous ", type_, " ", c10::IntArrayRef(shape), " on cpu");
        taken_.insert(name);
        return tensor.const_data_ptr();
    }

    std::vector<BlockWeights> blocks(const std::string& prefix, int64_t width, int64_t heads, int64_t hidden) const {
        std::vector<BlockWeights> found;
        for (int i = 0;; ++i) {
            const std::string name = prefix + ".blocks." + std::to_string(i) + ".";
            if (!has(name + "norm_1.weight")) break;
            BlockWeights& block = found.emplace_back();
            block.norm_1 = take(name + "norm_1.weight", {width});
            block.qkv = take(name + "attention.qkv.weight", {3 * width, width});
            block.q_norm = take(name + "attention.q_norm.weight", {width / heads});
            block.k_norm = take(name + "attention.k_norm.weight", {width / heads});
            block.out = take(name + "attention.out.weight", {width, width});
            block.norm_2 = take(name + "norm_2.weight", {width});
            block.gate_up = take(name + "mlp.gate_up.weight", {2 * hidden, width});
            block.down = take(name + "mlp.down.weight", {width, hidden});
        }
        TORCH_CHECK_VALUE(!found.empty(), "sampler: ", prefix, " has no blocks");
        return found;
    }

    // A parameter that nobody asked for would be missing from every result.
    void check_all_taken() const {
        for (const auto& [name, tensor] : parameters_) {
            TORCH_CHECK_VALUE(taken_.count(name) != 0, "sampler: parameter ", name,
                              " is not known here; sample with backend 'reference'");
        }
    }

   private:
    const Tensor& find(const std::string& name) const {
        const auto at = parameters_.find(name);
        TORCH_CHECK_VALUE(at != parameters_.end(), "sampler: parameter ", name, " is missing");
        return at->second;
    }

    const Parameters& parameters_;
    mutable std::set<std::string> taken_;
    at::ScalarType type_;
};

// Latent grid and patch of the tokens, [lines,] places.
struct GridOptions {
    std::vector<int64_t> grid, patch;
    std::vector<bool> periodic;
};

LatentGrid checked_grid(const GridOptions& options, int64_t tokens) {
    const std::vector<int64_t>&grid = options.grid, &patch = options.patch;
    const size_t dims = grid.size();
    TORCH_CHECK_VALUE((dims == 1 || dims == 2) && patch.size() == dims && options.periodic.size() == dims,
                      "sampler: a local head takes grid, patch and periodic of 1 or 2 dimensions");
    int64_t found = 1;
    for (size_t i = 0; i < dims; ++i) {
        TORCH_CHECK_VALUE(grid[i] > 0 && patch[i] > 0 && grid[i] % patch[i] == 0, "sampler: patch ", patch[i],
                          " does not divide the grid ", grid[i]);
        found *= grid[i] / patch[i];
    }
    TORCH_CHECK_VALUE(found == tokens, "sampler: a latent grid of ", found, " tokens; expected ", tokens);
    return latent_grid(grid, patch, options.periodic);
}

// A local head of a model, if it has one of this name: "local.", or "first." of frame 0.
std::optional<LocalHeadWeights> local_head_of(const Reader& read, const std::string& head, int64_t channels,
                                              int64_t tokens, const GridOptions& options) {
    if (!read.has(head + "features.weight")) return std::nullopt;
    LocalHeadWeights w{};
    w.grid = checked_grid(options, tokens);
    const int64_t patch = w.grid.patch(), W = read.size(head + "read.weight", 1),
                  C = read.size(head + "read.weight", 0);
    TORCH_CHECK_VALUE(local_width_fits(static_cast<int>(W)), "sampler: a local head has width ", W,
                      "; expected a multiple of ", PANEL);
    TORCH_CHECK_VALUE(patch * C == channels, "sampler: a token has ", channels, " channels; expected ", patch * C);
    const auto window = [&](int64_t outward, int64_t inward) {
        std::vector<int64_t> shape{outward, inward, 3};
        if (w.grid.plane) shape.push_back(3);
        return shape;
    };
    const int64_t inward = read.inward(head + "frames.conv.weight");
    TORCH_CHECK_VALUE(inward >= C && inward % C == 0, "sampler: a local head reads ", inward,
                      " channels of past frames");
    w.width = static_cast<int>(W);
    w.channels = static_cast<int>(C);
    w.past = static_cast<int>(inward / C);
    w.frames = read.take(head + "frames.conv.weight", window(W, inward));
    for (int i = 0;; ++i) {
        const std::string name = head + "blocks." + std::to_string(i) + ".";
        if (!read.has(name + "norm.weight")) break;
        LocalBlockWeights& block = w.blocks.emplace_back();
        block.norm = read.take(name + "norm.weight", {W});
        if (read.has(name + "filter")) {
            const int64_t modes = read.modes(name + "filter");
            TORCH_CHECK_VALUE(modes > 0 && modes <= most_modes(w.grid) && (w.modes == 0 || modes == w.modes),
                              "sampler: ", name, "filter has ", modes, " modes; expected those of the others, at most ",
                              most_modes(w.grid));
            w.modes = static_cast<int>(modes);
            std::vector<int64_t> shape{2, modes, W, W};
            if (w.grid.plane) shape.insert(shape.begin() + 1, 2 * modes - 1);
            block.filter = read.take(name + "filter", shape);
            block.gate_up = read.take(name + "gate_up.weight", {2 * W, W});
        } else {
            block.gate_up = read.take(name + "gate_up.conv.weight", window(2 * W, W));
        }
        block.down = read.take(name + "down.weight", {W, W});
    }
    w.norm = read.take(head + "norm.weight", {W});
    w.read_weight = read.take(head + "read.weight", {C, W});
    w.read_bias = read.take(head + "read.bias", {C});
    return w;
}

// An fp32 table, or null.
const float* table_of(const std::optional<Tensor>& table, const char* name, std::vector<int64_t> shape) {
    if (!table) return nullptr;
    TORCH_CHECK_VALUE(table->device().is_cpu() && table->scalar_type() == at::kFloat && table->is_contiguous() &&
                          table->sizes() == c10::IntArrayRef(shape),
                      "sampler: ", name, " has shape ", table->sizes(), "; expected contiguous float32 ",
                      c10::IntArrayRef(shape));
    return table->const_data_ptr<float>();
}

std::unique_ptr<Sampler> make_sampler(const Parameters& parameters, int64_t tokens, int64_t heads, bool concat,
                                      float epsilon, const std::optional<Tensor>& places,
                                      const std::optional<Tensor>& rotary, const std::optional<Tensor>& masked_rotary,
                                      std::vector<int64_t> grid, std::vector<int64_t> patch,
                                      std::vector<bool> periodic) {
    const Reader read(parameters);
    const int64_t width = read.size("temporal.embed.weight", 0), channels = read.size("temporal.embed.weight", 1);
    const int64_t hidden = read.size("temporal.blocks.0.mlp.down.weight", 1);
    TORCH_CHECK_VALUE(tokens > 0 && heads > 0 && width % heads == 0 && (width / heads) % 4 == 0, "sampler: ", tokens,
                      " tokens, width ", width, " and ", heads, " heads; expected a head dim that 4 divides");
    TORCH_CHECK_VALUE(width / heads <= MAX_HEAD_DIM, "sampler: head dim is ", width / heads, "; expected at most ",
                      MAX_HEAD_DIM);
    SamplerWeights w{};
    w.tokens = static_cast<int>(tokens);
    w.channels = static_cast<int>(channels);
    w.width = static_cast<int>(width);
    w.heads = static_cast<int>(heads);
    w.hidden = static_cast<int>(hidden);
    w.bf16 = read.bf16();
    w.concat = concat;
    w.epsilon = epsilon;
    w.embed_weight = read.take("temporal.embed.weight", {width, channels});
    w.embed_bias = read.take("temporal.embed.bias", {width});
    w.start = read.take("temporal.start", {2, width});
    w.causal = read.blocks("temporal", width, heads, hidden);
    w.rank = 1;
    if (read.has("temporal.scale_shift.down.weight")) {
        const int64_t rank = read.size("temporal.scale_shift.down.weight", 0);
        w.rank = static_cast<int>(rank);
        w.narrow = read.take("temporal.scale_shift.down.weight", {rank, width});
        w.wide_weight = read.take("temporal.scale_shift.up.weight", {2 * width, rank});
        w.wide_bias = read.take("temporal.scale_shift.up.bias", {2 * width});
    }
    w.masked_embed_weight = read.take("spatial.embed.weight", {width, channels});
    w.masked_embed_bias = read.take("spatial.embed.bias", {width});
    w.mask = read.take("spatial.mask", {width});
    w.masked = read.blocks("spatial", width, heads, hidden);
    w.final_norm = read.take("spatial.norm.weight", {width});
    if (read.has("flow.moments.weight")) {
        w.moments_weight = read.take("flow.moments.weight", {2 * channels, width});
        w.moments_bias = read.take("flow.moments.bias", {2 * channels});
    }
    if (read.has("read.weight")) {
        w.noise = read.take("spatial.noise.weight", {width, channels});
        w.read_weight = read.take("read.weight", {channels, width});
        w.read_bias = read.take("read.bias", {channels});
    }
    const GridOptions places_of_latents{std::move(grid), std::move(patch), std::move(periodic)};
    const std::optional<LocalHeadWeights> local = local_head_of(read, "local.", channels, tokens, places_of_latents);
    if (local) {
        w.local = &*local;
        w.noise = read.take("spatial.noise.weight", {width, channels});
        const int64_t features = int64_t{local->width} * local->grid.patch();
        w.read_weight = read.take("local.features.weight", {features, width});
        w.read_bias = read.take("local.features.bias", {features});
    }
    const std::optional<LocalHeadWeights> first = local_head_of(read, "first.", channels, tokens, places_of_latents);
    if (first) {
        TORCH_CHECK_VALUE(w.read_weight != nullptr && first->past == NOISE_PAST,
                          "sampler: a head of frame 0 is of one-pass models, and reads ", NOISE_PAST, " past frames");
        w.first = &*first;
        const int64_t features = int64_t{first->width} * first->grid.patch();
        w.first_read_weight = read.take("first.features.weight", {features, width});
        w.first_read_bias = read.take("first.features.bias", {features});
    }
    read.check_all_taken();
    w.places = table_of(places, "places", {tokens, width});
    const int64_t half = width / heads / 2;
    TORCH_CHECK_VALUE(!rotary || rotary->dim() == 3, "sampler: rotary has shape ", rotary->sizes(),
                      "; expected [2, frames tokens, ", half, "]");
    w.rotary_frames = rotary ? static_cast<int>(rotary->size(1) / tokens) : std::numeric_limits<int>::max();
    if (rotary) {
        w.cosines = table_of(rotary, "rotary", {2, w.rotary_frames * tokens, half});
        w.sines = w.cosines + w.rotary_frames * tokens * half;
    }
    if (masked_rotary) {
        const int64_t rows = tokens * (concat ? 2 : 1);
        w.masked_cosines = table_of(masked_rotary, "masked_rotary", {2, rows, half});
        w.masked_sines = w.masked_cosines + rows * half;
    }
    pybind11::gil_scoped_release release;
    return std::make_unique<Sampler>(w);
}

// A session, and the Python objects that it reads.
std::unique_ptr<SamplerSession> make_session(const Sampler& sampler, int rows, int groups, int prefix_frames,
                                             int own_frames, std::vector<int> counts, const pybind11::tuple& given,
                                             float temperature, int threads, const std::string& isa,
                                             const std::string& teams) {
    const SamplerView& m = sampler.view();
    TORCH_CHECK_VALUE(rows > 0 && groups > 0 && prefix_frames > 0 && own_frames >= 0 && threads > 0 &&
                          threads <= MOST_THREADS && std::isfinite(temperature),
                      "sampler: ", rows, " rows, ", groups, " groups, ", prefix_frames, " and ", own_frames,
                      " frames, ", threads, " threads, temperature ", temperature);
    // A tuple, which nobody can empty while the session lives.
    std::vector<const FlowHead*> heads;
    for (const pybind11::handle& head : given) {
        TORCH_CHECK_VALUE(!head.is_none(), "sampler: a flow head is None");
        heads.push_back(head.cast<const FlowHead*>());
    }
    // Tokens, the largest things counted by an int, and frames.
    TORCH_CHECK_VALUE(
        int64_t{std::max(rows, groups)} * m.masked_rows <= 1 << 24 && int64_t{prefix_frames} + own_frames < 1 << 16,
        "sampler: ", rows, " rows of ", m.masked_rows, " tokens are too many at a time");
    TORCH_CHECK_VALUE(prefix_frames + own_frames <= m.rotary_frames, "sampler: tables hold ", m.rotary_frames,
                      " frames; ", prefix_frames + own_frames, " are asked for");
    // Only frames that are all decided in one pass do without mask steps.
    const int64_t decided = std::accumulate(counts.begin(), counts.end(), int64_t{0});
    TORCH_CHECK_VALUE(counts.size() == heads.size() &&
                          std::all_of(counts.begin(), counts.end(), [](int n) { return n > 0; }) &&
                          (decided == m.tokens || (counts.empty() && m.one_pass)),
                      "sampler: mask steps do not decide ", m.tokens, " tokens, or have not one head each");
    for (const FlowHead* head : heads) {
        const FlowHeadView& view = head->view();
        TORCH_CHECK_VALUE(view.channels == m.channels && view.condition_width == m.width && view.bf16 == m.bf16,
                          "sampler: a flow head does not fit the transformers");
    }
    TORCH_CHECK_VALUE(teams.empty() || teams == "one" || teams == "each", "sampler: teams is '", teams,
                      "'; expected 'one' or 'each'");
    const Teams chosen = teams.empty() ? Teams::automatic : teams == "one" ? Teams::one : Teams::each;
    pybind11::gil_scoped_release release;
    return std::make_unique<SamplerSession>(
        sampler, SamplerSettings{rows, groups, prefix_frames, own_frames, std::move(counts), heads, temperature,
                                 threads, isa_by_name(isa), chosen});
}

void read_frame(SamplerSession& session, const Tensor& z) {
    const SamplerView& m = session.model();
    const SamplerSettings& set = session.settings();
    TORCH_CHECK_VALUE(z.device().is_cpu() && z.scalar_type() == at::kFloat && z.is_contiguous() &&
                          z.sizes() == c10::IntArrayRef({set.groups, m.tokens, m.channels}),
                      "sampler: frame is ", z.scalar_type(), " ", z.sizes(), "; expected contiguous float32 [",
                      set.groups, ", ", m.tokens, ", ", m.channels, "]");
    TORCH_CHECK_VALUE(0 < session.frames_read() && session.frames_read() < set.prefix_frames,
                      "sampler: ", session.frames_read(), " of ", set.prefix_frames, " shared frames are read");
    pybind11::gil_scoped_release release;
    session.read(z.const_data_ptr<float>());
}

void start_segment(SamplerSession& session, int segment) {
    TORCH_CHECK_VALUE(segment == 0 || segment == 1, "sampler: segment is ", segment, "; expected 0 or 1");
    TORCH_CHECK_VALUE(session.frames_read() < session.settings().prefix_frames, "sampler: all ",
                      session.settings().prefix_frames, " shared frames are read");
    pybind11::gil_scoped_release release;
    session.start_segment(segment);
}

void begin(SamplerSession& session, const Tensor& seeds, const Tensor& members, const Tensor& groups, int64_t first) {
    const SamplerSettings& set = session.settings();
    for (const Tensor* t : {&seeds, &members, &groups}) {
        TORCH_CHECK_VALUE(t->device().is_cpu() && t->scalar_type() == at::kLong && t->is_contiguous() &&
                              t->dim() == 1 && t->size(0) == set.rows,
                          "sampler: seeds, members and groups are int64 [", set.rows, "]");
    }
    TORCH_CHECK_VALUE(session.frames_read() == set.prefix_frames, "sampler: ", session.frames_read(), " of ",
                      set.prefix_frames, " shared frames are read");
    TORCH_CHECK_VALUE(first >= 0 && first < 1 << 24, "sampler: first frame is ", first);
    TORCH_CHECK_VALUE(first > 0 || session.can_begin(), "sampler: frame 0 takes mask steps, and there are none");
    std::vector<std::uint32_t> seed(set.rows), member(set.rows);
    std::vector<int> group(set.rows);
    for (int i = 0; i < set.rows; ++i) {
        seed[i] = static_cast<std::uint32_t>(seeds.const_data_ptr<int64_t>()[i]);
        member[i] = static_cast<std::uint32_t>(members.const_data_ptr<int64_t>()[i]);
        const int64_t g = groups.const_data_ptr<int64_t>()[i];
        TORCH_CHECK_VALUE(0 <= g && g < set.groups, "sampler: group is ", g, "; there are ", set.groups);
        group[i] = static_cast<int>(g);
    }
    session.begin(seed.data(), member.data(), group.data(), static_cast<int>(first));
}

// The next frame [B, N, C], or the next frames [T, B, N, C].
void frame(SamplerSession& session, const Tensor& out, bool last) {
    const SamplerView& m = session.model();
    const SamplerSettings& set = session.settings();
    const c10::IntArrayRef sizes = out.sizes();
    const int64_t frames = out.dim() == 4 ? sizes[0] : 1;
    TORCH_CHECK_VALUE(out.device().is_cpu() && out.scalar_type() == at::kFloat && out.is_contiguous() && frames > 0 &&
                          sizes.slice(out.dim() == 4) == c10::IntArrayRef({set.rows, m.tokens, m.channels}),
                      "sampler: out is ", out.scalar_type(), " ", sizes, "; expected contiguous float32 [", set.rows,
                      ", ", m.tokens, ", ", m.channels, "], or several of them");
    TORCH_CHECK_VALUE(session.begun(), "sampler: no frame is left to make; call begin first");
    const int64_t kept = session.frames_made() + frames - (last ? 1 : 0);
    TORCH_CHECK_VALUE(session.frames_read() == set.prefix_frames && kept <= set.own_frames,
                      "sampler: ", session.frames_made(), " of ", set.own_frames, " frames are made");
    float* to = out.mutable_data_ptr<float>();
    for (int64_t t = 0; t < frames; ++t) {
        if (t > 0 && PyErr_CheckSignals() != 0) throw pybind11::error_already_set();
        pybind11::gil_scoped_release release;
        session.frame(to + t * (out.numel() / frames), last && t + 1 == frames);
    }
}

}  // namespace

void bind_sampler(pybind11::module_& m) {
    namespace py = pybind11;
    py::class_<Sampler>(m, "Sampler", "Packed weights of the transformers, shared by sessions.")
        .def(py::init(&make_sampler), py::arg("parameters"), py::arg("tokens"), py::arg("heads"), py::arg("concat"),
             py::arg("epsilon"), py::arg("places"), py::arg("rotary"), py::arg("masked_rotary"), py::arg("grid"),
             py::arg("patch"), py::arg("periodic"))
        .def_property_readonly("bytes", &Sampler::bytes);
    py::class_<SamplerSession>(m, "SamplerSession", "One chunk of an ensemble, with all the memory it needs.")
        .def(py::init(&make_session), py::arg("sampler"), py::arg("rows"), py::arg("groups"), py::arg("prefix_frames"),
             py::arg("own_frames"), py::arg("counts"), py::arg("heads"), py::arg("temperature"), py::arg("threads"),
             py::arg("isa") = "", py::arg("teams") = "", py::keep_alive<1, 2>(), py::keep_alive<1, 8>())
        .def("reset", &SamplerSession::reset)
        .def("start_segment", &start_segment, py::arg("segment"))
        .def("read", &read_frame, py::arg("z"))
        .def("begin", &begin, py::arg("seeds"), py::arg("members"), py::arg("groups"), py::arg("first_frame"))
        .def("frame", &frame, py::arg("out"), py::arg("last"))
        .def("plan", [](const SamplerSession& session) {
            const SamplerPlan plan = session.plan();
            py::dict bytes;
            bytes["weights"] = plan.weights;
            bytes["keys_values"] = plan.keys_values;
            bytes["buffers"] = plan.buffers;
            bytes["work"] = plan.work;
            return bytes;
        });
}

}  // namespace enma
