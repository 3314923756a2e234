#include "runtime/config.h"

#include <algorithm>
#include <cmath>
#include <set>

#include "core/cpu/frame_attention.h"
#include "runtime/error.h"

namespace enma {

namespace {

// Far beyond any model, and small enough that products of a few fit 64 bits.
constexpr std::int64_t MOST = 1 << 20;

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
        fail(ENMA_UNSUPPORTED, place_, ".", key, " is ", what, "; libenma does not implement it: use the Python package");
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
        if (!value->is(Json::Kind::array) || value->items().size() > 64 ||
            !std::all_of(value->items().begin(), value->items().end(), take)) {
            wrong(key, "a list of valid entries is expected");
        }
    }

    void ignore(const std::string& key) { asked_.insert(key); }

    void check_all_read() const {
        for (const auto& [key, value] : json_.members()) {
            if (asked_.count(key) == 0) {
                fail(ENMA_UNSUPPORTED, place_, ".", key, ": unknown field; use the libenma that belongs to this checkpoint");
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

void read_tokenizer(Fields fields, TokenizerConfig& out) {
    read_sizes(fields, "grid", out.grid);
    if (out.grid.size() != 1) fields.unsupported("grid", text(out.grid.size(), "-dimensional"));
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
    if (out.periodic.size() != 1) fields.wrong("periodic", "one entry is expected");
    if (out.lengths.size() != 1) fields.wrong("lengths", "one entry is expected");
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
    if (fields.find("layers") != nullptr) out.layers.clear();
    fields.list("layers", [&](const Json& item) {
        const std::string& name = item.string();
        if (name != "residual" && name != "space" && name != "time") return false;
        out.layers.push_back(name == "space" ? space : name == "time" ? time : residual);
        return true;
    });
    fields.read("kernel", out.kernel);
    fields.read("kernel_time", out.kernel_time);
    fields.read("kernel_ends", out.kernel_ends);
    fields.read("variational", out.variational);
    fields.ignore("kl_weight");
    const Json* interpolation = fields.find("interpolation");
    if (interpolation != nullptr && !interpolation->is(Json::Kind::null)) {
        fields.unsupported("interpolation", "set (scattered points)");
    }
    fields.check_all_read();
    if (out.kernel % 2 == 0 || out.kernel_ends % 2 == 0) fields.wrong("kernel", "odd kernels are expected");
    if (out.kernel > out.grid[0] || out.kernel_ends > out.grid[0] || out.kernel_time > 64) {
        fields.wrong("kernel", "kernels are larger than the grid, or than 64 frames");
    }
    if (out.count(space) > 16 || out.count(time) > 4) fields.wrong("layers", "too many halvings");
    if (out.grid[0] % out.space_factor() != 0) {
        fields.wrong("grid", text("a multiple of ", out.space_factor(), " is expected"));
    }
    if (out.kernel > out.grid[0] / out.space_factor()) fields.wrong("kernel", "is larger than the number of tokens");
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

void read_dynamics(Fields fields, DynamicsConfig& out) {
    fields.read("width", out.width);
    fields.read("heads", out.heads);
    fields.read("temporal_layers", out.temporal_layers);
    fields.read("spatial_layers", out.spatial_layers);
    fields.read("mlp_ratio", out.mlp_ratio, 0.0);
    read_sizes(fields, "patch", out.patch);
    if (out.patch.size() != 1) fields.wrong("patch", "one entry is expected");
    fields.choose("positions", "sincos", "rotary", out.rotary);
    bool add = false;
    fields.choose("condition", "concat", "add", add);
    out.concat = !add;
    fields.choose("decoder", "masked-flow", "one-pass", out.one_pass);
    fields.read("scale_shift_rank", out.scale_shift_rank, 0);
    if (const Json* flow = fields.find("flow")) read_flow(fields.inner("flow", *flow), out.flow);
    fields.check_all_read();
    if (out.width % out.heads != 0 || out.width / out.heads % 4 != 0) {
        fields.wrong("width", text(out.width, " is not a multiple of 4 * heads (", out.heads, ")"));
    }
    if (out.rotary && out.width / out.heads < 8) fields.wrong("width", "rotary positions need 8 channels a head");
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
    if (std::max(out.flow_steps, out.last_flow_steps) > 4096) fields.wrong("flow_steps", "at most 4096 are expected");
}

}  // namespace

int TokenizerConfig::count(LayerKind kind) const {
    return static_cast<int>(std::count(layers.begin(), layers.end(), kind));
}

std::int64_t TokenizerConfig::latent_frames(std::int64_t frames) const {
    return (frames - 1 + time_factor() - 1) / time_factor() + 1;
}

std::int64_t TokenizerConfig::whole_latents(std::int64_t frames) const {
    return frames == 0 ? 0 : (frames - 1) / time_factor() + 1;
}

ModelConfig read_config(const Json& json, const std::string& source) {
    ModelConfig out;
    Fields fields(json, source + ": config");
    fields.read("name", out.name);
    fields.read("dataset", out.dataset);
    fields.read("num_frames", out.num_frames);
    fields.read("frame_interval", out.frame_interval, 0.0);
    using enum LayerKind;
    out.tokenizer.layers = {residual, space, residual, space, residual, space, residual, time, residual};
    if (const Json* part = fields.find("tokenizer")) read_tokenizer(fields.inner("tokenizer", *part), out.tokenizer);
    if (const Json* part = fields.find("dynamics")) read_dynamics(fields.inner("dynamics", *part), out.dynamics);
    if (const Json* part = fields.find("sampling")) read_sampling(fields.inner("sampling", *part), out.sampling);
    fields.check_all_read();
    if (out.tokenizer.grid[0] / out.tokenizer.space_factor() % out.dynamics.patch[0] != 0) {
        fields.wrong("dynamics.patch", "does not divide the tokens of a frame");
    }
    return out;
}

std::vector<int> shift_amounts(const ModelConfig& config, int shifts) {
    const int points = config.grid() / config.num_tokens();
    if (shifts > 1 && !config.tokenizer.periodic[0]) {
        fail(ENMA_INVALID_ARGUMENT, "shifts is ", shifts, "; ", config.name, " has no periodic dimension: leave it out");
    }
    if (shifts > points) {
        fail(ENMA_INVALID_ARGUMENT, "shifts is ", shifts, "; a token of ", config.name, " has ", points,
             " grid points: use no more");
    }
    std::vector<int> amounts;
    for (int s = 0; s < shifts; ++s) amounts.push_back(s * (points / shifts + 1));
    return amounts;
}

}  // namespace enma
