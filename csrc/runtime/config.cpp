#include "runtime/config.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <numeric>
#include <set>

#include "core/cpu/frame_attention.h"
#include "runtime/error.h"

namespace enma {

namespace {

// Far beyond any model, and small enough that products of a few fit 64 bits; and sizes of the interpolation.
constexpr std::int64_t MOST = 1 << 20;
// Of a list, such as those of the means of all channels.
constexpr std::size_t MOST_ENTRIES = 256;
constexpr int MOST_INTERPOLATION = 4096;
constexpr int MOST_LOCAL = 4096;
constexpr int MOST_FLOW_STEPS = 1000;

// Reads the fields of one object by name; one that nobody has asked for is refused.
class Fields {
   public:
    Fields(const Json& json, std::string place) : json_(json), place_(std::move(place)) {
        if (!json.is(Json::Kind::object)) wrong("", "an object is expected");
    }

    [[noreturn]] void wrong(const std::string& key, const std::string& what) const {
        fail(ENMA_CHECKPOINT, place_, key.empty() ? "" : "." + key, ": ", what);
    }

    [[noreturn]] void unsupported(const std::string& key, const std::string& what) const {
        fail(ENMA_UNSUPPORTED, place_, ".", key, " is ", what,
             "; libenma does not implement it: use the Python package");
    }

    // Null for a key that is missing, which has its default.
    const Json* find(const std::string& key) {
        asked_.insert(key);
        return json_.find(key);
    }

    Fields inner(const std::string& key, const Json& json) const { return Fields(json, place_ + "." + key); }

    void read(const std::string& key, int& out, std::int64_t least = 1) {
        const Json* value = find(key);
        if (value == nullptr) return;
        if (!value->is_integer() || value->integer() < least || value->integer() > MOST) {
            wrong(key, text("a whole number from ", least, " to ", MOST, " is expected"));
        }
        out = static_cast<int>(value->integer());
    }

    void read_or_null(const std::string& key, int& out) {
        const Json* value = find(key);
        if (value != nullptr && !value->is(Json::Kind::null)) read(key, out);
    }

    void read(const std::string& key, double& out, double least) {
        const Json* value = find(key);
        if (value == nullptr) return;
        if (!value->is(Json::Kind::number) || value->number() < least) {
            wrong(key, text("a number of at least ", least, " is expected"));
        }
        out = value->number();
    }

    void read(const std::string& key, bool& out) {
        const Json* value = find(key);
        if (value == nullptr) return;
        if (!value->is(Json::Kind::boolean)) wrong(key, "true or false is expected");
        out = value->boolean();
    }

    void read(const std::string& key, std::string& out) {
        const Json* value = find(key);
        if (value == nullptr || !value->is(Json::Kind::string)) wrong(key, "text is expected");
        out = value->string();
    }

    // True for the second of two words.
    void choose(const std::string& key, const char* first, const char* second, bool& out) {
        const Json* value = find(key);
        if (value == nullptr) return;
        if (!value->is(Json::Kind::string) || (value->string() != first && value->string() != second)) {
            wrong(key, text("'", first, "' or '", second, "' is expected"));
        }
        out = value->string() == second;
    }

    // take(item) for each of a list; false for one that is not valid.
    template <class Take>
    void list(const std::string& key, const Take& take) {
        const Json* value = find(key);
        if (value == nullptr) return;
        if (!value->is(Json::Kind::array) || value->items().size() > MOST_ENTRIES ||
            !std::all_of(value->items().begin(), value->items().end(), take)) {
            wrong(key, "a list of valid entries is expected");
        }
    }

    void ignore(const std::string& key) { asked_.insert(key); }

    void check_all_read() const {
        for (const auto& [key, value] : json_.members()) {
            if (asked_.count(key) == 0) {
                fail(ENMA_UNSUPPORTED, place_, ".", key,
                     ": unknown field; use the libenma that belongs to this checkpoint");
            }
        }
    }

   private:
    const Json& json_;
    std::string place_;
    std::set<std::string> asked_;
};

void read_sizes(Fields& fields, const std::string& key, std::vector<std::int64_t>& out) {
    if (fields.find(key) == nullptr) return;
    out.clear();
    fields.list(key, [&](const Json& item) {
        out.push_back(item.integer());
        return item.is_integer() && item.integer() >= 1 && item.integer() <= MOST;
    });
}

// One number for each channel, or null.
void read_channels(Fields& fields, const std::string& key, int channels, std::vector<float>& out) {
    const Json* value = fields.find(key);
    if (value == nullptr || value->is(Json::Kind::null)) return;
    fields.list(key, [&](const Json& item) {
        out.push_back(static_cast<float>(item.number()));
        return item.is(Json::Kind::number) && std::isfinite(out.back());
    });
    if (out.size() != static_cast<std::size_t>(channels)) fields.wrong(key, "one entry for each channel is expected");
}

void read_layers(Fields& fields, std::vector<LayerKind>& out) {
    static const std::map<std::string, LayerKind> known = {
        {"residual", LayerKind::residual}, {"space", LayerKind::space}, {"time", LayerKind::time}};
    if (fields.find("layers") == nullptr) return;
    out.clear();
    fields.list("layers", [&](const Json& item) {
        if (!item.is(Json::Kind::string)) return false;
        const auto found = known.find(item.string());
        if (found == known.end()) fields.unsupported("layers", text("a list with '", item.string().substr(0, 40), "'"));
        out.push_back(found->second);
        return true;
    });
}

void read_interpolation(Fields fields, InterpolationConfig& out) {
    fields.read("features", out.features);
    fields.read("hidden", out.hidden);
    fields.read("heads", out.heads);
    fields.read("head_dim", out.head_dim);
    fields.read("frequencies", out.frequencies);
    fields.read("max_log2_frequency", out.max_log2_frequency, 0.0);
    // Those of the weights count; these are where they began.
    std::size_t slopes = 4;
    if (const Json* given = fields.find("slopes")) slopes = given->items().size();
    fields.list("slopes", [](const Json& item) { return item.is(Json::Kind::number) && item.number() > 0; });
    fields.ignore("learned_slopes");
    fields.read("distance_power", out.distance_power);
    fields.read("refine_depth", out.refine_depth, 0);
    fields.read("refine_heads", out.refine_heads);
    fields.read("refine_head_dim", out.refine_head_dim);
    fields.read("slices", out.slices);
    fields.check_all_read();
    for (const auto& [key, value] :
         {std::pair("features", out.features), std::pair("hidden", out.hidden), std::pair("heads", out.heads),
          std::pair("head_dim", out.head_dim), std::pair("frequencies", out.frequencies),
          std::pair("refine_depth", out.refine_depth), std::pair("refine_heads", out.refine_heads),
          std::pair("refine_head_dim", out.refine_head_dim), std::pair("slices", out.slices)}) {
        if (value > MOST_INTERPOLATION) fields.wrong(key, text("at most ", MOST_INTERPOLATION, " is expected"));
    }
    if (slopes != static_cast<std::size_t>(out.heads)) fields.wrong("slopes", "one entry for each head is expected");
    if (out.features % out.heads != 0)
        fields.wrong("features", text("a multiple of heads (", out.heads, ") is expected"));
    if (out.distance_power > 2) fields.wrong("distance_power", "1 or 2 is expected");
}

void read_tokenizer(Fields fields, TokenizerConfig& out) {
    read_sizes(fields, "grid", out.grid);
    if (out.grid.size() != 1 && out.grid.size() != 2) fields.unsupported("grid", text(out.grid.size(), "-dimensional"));
    if (fields.find("periodic") != nullptr) out.periodic.clear();
    fields.list("periodic", [&](const Json& item) {
        out.periodic.push_back(item.boolean());
        return item.is(Json::Kind::boolean);
    });
    if (fields.find("lengths") != nullptr) out.lengths.clear();
    fields.list("lengths", [&](const Json& item) {
        out.lengths.push_back(item.number());
        return item.is(Json::Kind::number) && item.number() > 0;
    });
    for (const auto& [key, size] :
         {std::pair("periodic", out.periodic.size()), std::pair("lengths", out.lengths.size())}) {
        if (size != out.grid.size()) fields.wrong(key, "one entry for each dimension is expected");
    }
    fields.read("field_channels", out.field_channels);
    read_channels(fields, "field_mean", out.field_channels, out.field_mean);
    read_channels(fields, "field_scale", out.field_channels, out.field_scale);
    if (out.field_mean.empty() != out.field_scale.empty() ||
        !std::all_of(out.field_scale.begin(), out.field_scale.end(), [](float scale) { return scale > 0; })) {
        fields.wrong("field_scale", "entries above 0 are expected, beside field_mean");
    }
    fields.read("latent_channels", out.latent_channels);
    fields.read("width", out.width);
    fields.read("max_width", out.max_width);
    using enum LayerKind;
    out.layers = {residual, space, residual, space, residual, space, residual, time, residual};
    read_layers(fields, out.layers);
    fields.read("kernel", out.kernel);
    fields.read("kernel_time", out.kernel_time);
    fields.read("kernel_ends", out.kernel_ends);
    fields.read("stride_ends", out.stride_ends);
    fields.read("variational", out.variational);
    fields.ignore("kl_weight");
    const Json* interpolation = fields.find("interpolation");
    if (interpolation != nullptr && !interpolation->is(Json::Kind::null)) {
        read_interpolation(fields.inner("interpolation", *interpolation), out.interpolation.emplace());
    }
    fields.check_all_read();
    if (out.kernel % 2 == 0 || out.kernel_ends % 2 == 0) fields.wrong("kernel", "odd kernels are expected");
    if (out.count(space) > 16 || out.count(time) > 4) fields.wrong("layers", "too many halvings");
    if (out.stride_ends > 64) fields.wrong("stride_ends", "at most 64 is expected");
    // The convolution to the field gives those of so many grid points at once.
    const int together = out.grid.size() == 2 ? out.stride_ends * out.stride_ends : out.stride_ends;
    if (out.grid_channels() > MOST / together) {
        fields.wrong(out.interpolation ? "interpolation.features" : "field_channels",
                     text("at most ", MOST / together, " is expected with stride_ends ", out.stride_ends));
    }
    const auto [least, most] = std::minmax_element(out.grid.begin(), out.grid.end());
    if (*most > MOST_POINTS / (out.grid.size() == 2 ? *least : 1))
        fields.wrong("grid", text("has more than ", MOST_POINTS, " points"));
    if (out.kernel_ends > *least || out.kernel_ends / 2 > *least / out.stride_ends || out.kernel_time > 64) {
        fields.wrong("kernel", "kernels are larger than the grid, or than 64 frames");
    }
    for (const std::int64_t points : out.grid) {
        if (points % out.space_factor() != 0)
            fields.wrong("grid", text("a multiple of ", out.space_factor(), " is expected"));
    }
    if (out.kernel / 2 > *least / out.space_factor()) fields.wrong("kernel", "reaches around all tokens");
}

void read_flow(Fields fields, FlowConfig& out) {
    fields.read("width", out.width);
    fields.read("layers", out.layers);
    fields.read("time_features", out.time_features, 2);
    fields.choose("target", "data", "residual", out.residual);
    for (const char* key : {"likelihood_power", "draws", "time_law"}) fields.ignore(key);
    fields.check_all_read();
    if (out.time_features % 2 != 0) fields.wrong("time_features", "an even number is expected");
}

// A local head; that of frame 0 has Fourier blocks, and noise as its past.
void read_local(Fields fields, LocalConfig& out, bool first) {
    fields.read("width", out.width);
    fields.read("layers", out.layers);
    if (first) {
        fields.read("modes", out.modes);
        out.past = NOISE_PAST;
    } else {
        fields.read("past", out.past);
        fields.read_or_null("modes", out.modes);
    }
    fields.check_all_read();
    if (!local_width_fits(out.width) || out.width > MOST_LOCAL) {
        fields.wrong("width", text("a multiple of ", PANEL, " up to ", MOST_LOCAL, " is expected"));
    }
    if (out.past > MOST_LOCAL) fields.wrong("past", text("at most ", MOST_LOCAL, " is expected"));
}

void read_dynamics(Fields fields, DynamicsConfig& out) {
    fields.read("width", out.width);
    fields.read("heads", out.heads);
    fields.read("temporal_layers", out.temporal_layers);
    fields.read("spatial_layers", out.spatial_layers);
    fields.read("mlp_ratio", out.mlp_ratio, 0.0);
    read_sizes(fields, "patch", out.patch);
    fields.choose("positions", "sincos", "rotary", out.rotary);
    bool add = false;
    fields.choose("condition", "concat", "add", add);
    out.concat = !add;
    fields.choose("decoder", "masked-flow", "one-pass", out.one_pass);
    fields.read("scale_shift_rank", out.scale_shift_rank, 0);
    for (const bool first : {false, true}) {
        const char* const name = first ? "first" : "local";
        const Json* head = fields.find(name);
        if (head == nullptr || head->is(Json::Kind::null)) continue;
        read_local(fields.inner(name, *head), (first ? out.first : out.local).emplace(), first);
        if (!out.one_pass) fields.wrong(name, "a decoder 'one-pass' is expected beside it");
    }
    if (const Json* flow = fields.find("flow")) read_flow(fields.inner("flow", *flow), out.flow);
    fields.check_all_read();
    if (out.width % out.heads != 0 || out.width / out.heads % 4 != 0) {
        fields.wrong("width", text(out.width, " is not a multiple of 4 * heads (", out.heads, ")"));
    }
    const int least = 8 * static_cast<int>(out.patch.size());
    if (out.rotary && out.width / out.heads < least) {
        fields.wrong("width", text("rotary positions need ", least, " channels a head"));
    }
    if (out.width / out.heads > MAX_HEAD_DIM) {
        fields.unsupported("heads", text("so few that a head has more than ", MAX_HEAD_DIM, " channels"));
    }
    if (out.mlp_ratio * out.width < 1 || out.mlp_ratio * out.width > static_cast<double>(MOST)) {
        fields.wrong("mlp_ratio", "the hidden layer has no valid width");
    }
}

void read_sampling(Fields fields, SamplingConfig& out) {
    fields.read("mask_steps", out.mask_steps);
    fields.read("flow_steps", out.flow_steps);
    fields.read_or_null("last_flow_steps", out.last_flow_steps);
    bool euler = false;
    fields.choose("method", "midpoint", "euler", euler);
    out.midpoint = !euler;
    fields.read("temperature", out.temperature, 0.0);
    fields.read_or_null("shifts", out.shifts);
    fields.check_all_read();
    if (std::max(out.flow_steps, out.last_flow_steps) > MOST_FLOW_STEPS) {
        fields.wrong("flow_steps", text("at most ", MOST_FLOW_STEPS, " are expected"));
    }
}

}  // namespace

ModelConfig read_config(const Json& json, const std::string& source) {
    ModelConfig out;
    Fields fields(json, source + ": config");
    fields.read("name", out.name);
    fields.read("dataset", out.dataset);
    fields.read("num_frames", out.num_frames);
    fields.read_or_null("shortest_context", out.shortest_context);
    if (out.shortest_context > out.num_frames) {
        fields.wrong("shortest_context", text("at most num_frames=", out.num_frames, " can be"));
    }
    fields.read("frame_interval", out.frame_interval, 0.0);
    if (const Json* part = fields.find("tokenizer")) read_tokenizer(fields.inner("tokenizer", *part), out.tokenizer);
    if (const Json* part = fields.find("dynamics")) read_dynamics(fields.inner("dynamics", *part), out.dynamics);
    if (const Json* part = fields.find("sampling")) read_sampling(fields.inner("sampling", *part), out.sampling);
    fields.check_all_read();
    const std::vector<std::int64_t>&grid = out.tokenizer.grid, &patch = out.dynamics.patch;
    if (patch.size() != grid.size()) fields.wrong("dynamics.patch", "one entry for each dimension is expected");
    for (std::size_t i = 0; i < grid.size(); ++i) {
        if (grid[i] / out.tokenizer.space_factor() % patch[i] != 0) {
            fields.wrong("dynamics.patch", "does not divide the tokens of a frame");
        }
    }
    for (const auto& [name, head] :
         {std::pair("local", &out.dynamics.local), std::pair("first", &out.dynamics.first)}) {
        if (*head && (*head)->modes > most_modes(out.latent_grid())) {
            fields.wrong(text("dynamics.", name, ".modes"), text("at most ", most_modes(out.latent_grid()), " can be"));
        }
    }
    if (out.tokenizer.latent_channels > MOST / out.patch()) {
        fields.wrong("dynamics.patch", text("a token has more than ", MOST, " channels"));
    }
    return out;
}

TokenizerConfig read_tokenizer_config(const Json& json, const std::string& source) {
    TokenizerConfig out;
    read_tokenizer(Fields(json, source), out);
    return out;
}

SamplingConfig read_sampling_config(const Json& json, const std::string& source) {
    SamplingConfig out;
    read_sampling(Fields(json, source), out);
    return out;
}

int ModelConfig::points() const { return static_cast<int>(tokenizer.points()); }

int ModelConfig::patch() const {
    return static_cast<int>(
        std::accumulate(dynamics.patch.begin(), dynamics.patch.end(), std::int64_t{1}, std::multiplies<>()));
}

int ModelConfig::tokens_along(int axis) const {
    return static_cast<int>(tokenizer.grid[axis] / tokenizer.space_factor() / dynamics.patch[axis]);
}

std::int64_t ModelConfig::context_frames(std::int64_t given) const {
    return given >= num_frames ? num_frames : (tokenizer.whole_latents(given) - 1) * tokenizer.time_factor() + 1;
}

std::vector<std::int64_t> ModelConfig::frames_shape(std::vector<std::int64_t> before) const {
    before.insert(before.end(), tokenizer.grid.begin(), tokenizer.grid.end());
    before.push_back(tokenizer.field_channels);
    return before;
}

LatentGrid ModelConfig::latent_grid() const {
    std::vector<std::int64_t> grid = tokenizer.grid;
    for (std::int64_t& places : grid) places /= tokenizer.space_factor();
    return enma::latent_grid(grid, dynamics.patch, tokenizer.periodic);
}

std::vector<std::int64_t> ModelConfig::place_offsets() const {
    const LatentGrid grid = latent_grid();
    std::vector<std::int64_t> offsets(grid.size());
    for (int place = 0; place < grid.size(); ++place) {
        offsets[place] = std::int64_t{grid.part_of(place)} * tokenizer.latent_channels;
    }
    return offsets;
}

}  // namespace enma
