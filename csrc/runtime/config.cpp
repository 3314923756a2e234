#include "runtime/config.h"

#include <algorithm>
#include <functional>
#include <numeric>

namespace enma {

namespace {

constexpr int MOST_FLOW_STEPS = 1000;

// One for each kind, in context_<kind>.cpp.
constexpr const ContextKind* CONTEXT_KINDS[] = {&causal_transformer, &physics};

void read_context(Fields fields, ContextConfig& out) {
    std::string kind;
    fields.read("kind", kind);
    for (const ContextKind* const known : CONTEXT_KINDS) {
        if (kind == known->name) out.kind = known;
    }
    if (out.kind == nullptr) fields.unsupported("kind", "'" + kind.substr(0, 40) + "'");
    out.kind->read(fields, out);
    fields.check_all_read();
}

void read_trunk(Fields fields, TrunkConfig& out) {
    bool add = false;
    out.layers = 6;
    fields.read("layers", out.layers);
    fields.choose("condition", "concat", "add", add);
    out.concat = !add;
    fields.check_all_read();
}

void read_known(Fields& fields, std::vector<KnownInput>& out) {
    fields.list("known", [&](const Json& item) {
        Fields entry = fields.inner("known", item);
        KnownInput& input = out.emplace_back();
        entry.read("name", input.name);
        entry.read("in_time", input.in_time);
        entry.read("in_space", input.in_space);
        entry.check_all_read();
        return std::none_of(out.begin(), out.end() - 1,
                            [&](const KnownInput& other) { return other.name == input.name; });
    });
}

void read_sampling(Fields fields, SamplingConfig& out) {
    fields.read("mask_steps", out.mask_steps);
    fields.read("flow_steps", out.flow_steps, 1, MOST_FLOW_STEPS);
    fields.read("temperature", out.temperature, 0.0);
    fields.read_or_null("shifts", out.shifts);
    fields.check_all_read();
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
    const auto part = [&](const char* key) {
        const Json* const found = fields.find(key);
        if (found == nullptr) fields.wrong(key, "is missing");
        return fields.inner(key, *found);
    };
    out.codec = read_codec(part("codec"));
    read_context(part("context"), out.context);
    if (const Json* trunk = fields.find_or_null("trunk")) read_trunk(fields.inner("trunk", *trunk), out.trunk);
    const std::vector<std::int64_t>&grid = out.codec.grid, &patch = out.context.patch;
    if (patch.size() != grid.size()) fields.wrong("context.patch", "one entry for each dimension is expected");
    for (std::size_t i = 0; i < grid.size(); ++i) {
        if (grid[i] / out.codec.space_factor % patch[i] != 0) {
            fields.wrong("context.patch", "does not divide the tokens of a frame");
        }
    }
    if (out.codec.latent_channels > MOST / out.patch()) {
        fields.wrong("context.patch", text("a token has more than ", MOST, " channels"));
    }
    DecoderShape shape{out.num_tokens(),  out.token_channels(),     out.context.width, out.trunk.layers > 0, true,
                       out.latent_grid(), out.codec.latent_channels};
    if (const Json* initial = fields.find_or_null("initial")) {
        out.initial = read_decoder(fields.inner("initial", *initial), shape);
    }
    shape.initial = false;
    out.step = read_decoder(part("step"), shape);
    if (const Json* sampling = fields.find("sampling"))
        read_sampling(fields.inner("sampling", *sampling), out.sampling);
    read_known(fields, out.known);
    if (out.is_told() && !out.context.kind->takes_known) {
        fields.wrong("known", text("context '", out.context.kind->name, "' takes no known inputs and no mask"));
    }
    fields.check_all_read();
    return out;
}

SamplingConfig read_sampling_config(const Json& json, const std::string& source) {
    SamplingConfig out;
    read_sampling(Fields(json, source), out);
    return out;
}

int ModelConfig::patch() const {
    return static_cast<int>(
        std::accumulate(context.patch.begin(), context.patch.end(), std::int64_t{1}, std::multiplies<>()));
}

int ModelConfig::tokens_along(int axis) const {
    return static_cast<int>(codec.grid[axis] / codec.space_factor / context.patch[axis]);
}

std::int64_t ModelConfig::context_frames(std::int64_t given) const {
    return given >= num_frames ? num_frames : (codec.whole_latents(given) - 1) * codec.time_factor + 1;
}

std::vector<std::int64_t> ModelConfig::frames_shape(std::vector<std::int64_t> before) const {
    before.insert(before.end(), codec.grid.begin(), codec.grid.end());
    before.push_back(codec.field_channels);
    return before;
}

LatentGrid ModelConfig::latent_grid() const {
    std::vector<std::int64_t> grid = codec.grid;
    for (std::int64_t& places : grid) places /= codec.space_factor;
    return enma::latent_grid(grid, context.patch, codec.periodic);
}

std::vector<std::int64_t> ModelConfig::place_offsets() const {
    const LatentGrid grid = latent_grid();
    std::vector<std::int64_t> offsets(grid.size());
    for (int place = 0; place < grid.size(); ++place) {
        offsets[place] = std::int64_t{grid.part_of(place)} * codec.latent_channels;
    }
    return offsets;
}

}  // namespace enma
