#include "runtime/format_1.h"

#include <utility>
#include <vector>

#include "core/error.h"

namespace enma {

namespace {

using Names = std::vector<std::pair<std::string, std::string>>;

bool is_text(const Json* json, const char* text) {
    return json != nullptr && json->is(Json::Kind::string) && json->string() == text;
}

bool is_null(const Json* json) { return json == nullptr || json->is(Json::Kind::null); }

// Members of `from` become members of `to`, under their new names.
void move_members(Json& from, Json& to, const Names& names) {
    for (const auto& [old, now] : names) {
        if (std::optional<Json> value = from.take(old)) to.add(now, std::move(*value));
    }
}

// A part of a config with its kind; what is no object stays as it is.
Json slot(const char* name, std::optional<Json> part) {
    Json out = std::move(part).value_or(Json());
    if (out.is(Json::Kind::null) || out.is(Json::Kind::object)) out.add("kind", Json::of(std::string(name)));
    return out;
}

// Removes a member that may only have one value, by default or in words.
template <class Holds>
void drop(Json& json, const char* key, const std::string& source, const Holds& holds) {
    const std::optional<Json> value = json.take(key);
    if (value && !value->is(Json::Kind::null) && !holds(*value)) {
        fail(ENMA_UNSUPPORTED, source, ".", key, ": has a value that libenma does not implement any more");
    }
}

// The first matching beginning of a name is replaced; others keep theirs.
NewName renamed(Names beginnings) {
    return [beginnings = std::move(beginnings)](const std::string& name) {
        for (const auto& [old, now] : beginnings) {
            if (name.compare(0, old.size(), old) == 0) return now.empty() ? now : now + name.substr(old.size());
        }
        return name;
    };
}

// Whether latent frames are the values of blocks of points and frames in another order: a network that no training changes.
bool is_blocks(const Json& tokenizer) {
    const auto number = [&](const char* key, std::int64_t otherwise) {
        const Json* const value = tokenizer.find(key);
        return value == nullptr ? otherwise : value->integer();
    };
    const Json *const layers = tokenizer.find("layers"), *const variational = tokenizer.find("variational"),
                      *const grid = tokenizer.find("grid");
    if (layers == nullptr || layers->items().size() != 1 || !is_text(&layers->items()[0], "time")) return false;
    const std::int64_t stride = number("stride_ends", 1), ends = number("kernel_ends", 7);
    if (stride < 1 || stride > 64) return false;
    const std::int64_t block = grid != nullptr && grid->items().size() == 2 ? stride * stride : stride;
    const std::int64_t values = number("latent_channels", 4);
    return variational != nullptr && variational->is(Json::Kind::boolean) && !variational->boolean() &&
           is_null(tokenizer.find("interpolation")) && values % (2 * block) == 0 &&
           values / (2 * block) == number("field_channels", 1) && number("width", 16) == values &&
           number("kernel_time", 3) >= 2 && ends - ends / 2 >= stride;
}

FromFormat1 codec_from_format_1(Json tokenizer, const std::string& source) {
    if (is_blocks(tokenizer)) {
        Json out = slot("blocks", std::nullopt);
        out.add("block", tokenizer.take("stride_ends").value_or(Json::of(std::int64_t{1})));
        move_members(tokenizer, out,
                     {{"grid", "grid"},
                      {"lengths", "lengths"},
                      {"periodic", "periodic"},
                      {"field_channels", "field_channels"},
                      {"field_mean", "field_mean"},
                      {"field_scale", "field_scale"}});
        for (const char* key : {"latent_channels", "width", "max_width", "layers", "kernel", "kernel_time",
                                "kernel_ends", "variational", "kl_weight", "interpolation"}) {
            tokenizer.take(key);
        }
        for (const auto& [key, value] : tokenizer.members()) out.add(key, value);
        return {std::move(out), renamed({{"tokenizer.", ""}})};
    }
    const NewName name = renamed({{"tokenizer.", "codec."}});
    std::optional<Json> interpolation = tokenizer.take("interpolation");
    for (const char* key : {"kernel", "kernel_time"}) tokenizer.take(key);
    if (!interpolation || interpolation->is(Json::Kind::null)) return {slot("conv", std::move(tokenizer)), name};
    const auto is = [](double only) {
        return [only](const Json& value) { return value.is(Json::Kind::number) && value.number() == only; };
    };
    drop(*interpolation, "distance_power", source + ".interpolation", is(1));
    drop(*interpolation, "max_log2_frequency", source + ".interpolation", is(4));
    // Shapes of weights tell the others.
    for (const char* key : {"hidden", "head_dim", "frequencies", "learned_slopes", "refine_depth", "refine_heads",
                            "refine_head_dim", "slices"}) {
        interpolation->take(key);
    }
    Json out = slot("points", std::move(tokenizer));
    out.add("interpolation", std::move(*interpolation));
    return {std::move(out), name};
}

Json sampling_from_format_1(Json sampling, const std::string& source) {
    drop(sampling, "method", source, [](const Json& method) { return is_text(&method, "midpoint"); });
    const Json* const steps = sampling.find("flow_steps");
    drop(sampling, "last_flow_steps", source,
         [&](const Json& last) { return steps != nullptr && last.is_integer() && last.integer() == steps->integer(); });
    return sampling;
}

}  // namespace

FromFormat1 from_format_1(Json config, const std::string& source) {
    for (const char* key : {"codec", "context", "trunk", "initial", "step"}) {
        if (config.find(key) != nullptr) fail(ENMA_UNSUPPORTED, source, ".", key, ": unknown field in format 1");
    }
    Json dynamics = config.take("dynamics").value_or(Json());
    if (!dynamics.is(Json::Kind::object) && !dynamics.is(Json::Kind::null)) {
        fail(ENMA_CHECKPOINT, source, ".dynamics: an object is expected");
    }
    auto [codec, codec_name] = codec_from_format_1(config.take("tokenizer").value_or(Json()), source + ".tokenizer");
    config.add("codec", std::move(codec));
    const std::optional<Json> decoder = dynamics.take("decoder");
    const bool one_pass = decoder && is_text(&*decoder, "one-pass");
    if (decoder && !one_pass && !is_text(&*decoder, "masked-flow")) {
        fail(ENMA_CHECKPOINT, source, ".dynamics.decoder: 'masked-flow' or 'one-pass' is expected");
    }
    const auto head = [&](const char* key) -> std::optional<Json> {
        std::optional<Json> found = dynamics.take(key);
        if (!found || found->is(Json::Kind::null)) return std::nullopt;
        if (!one_pass) fail(ENMA_CHECKPOINT, source, ".dynamics.", key, ": a decoder 'one-pass' is expected beside it");
        return found;
    };
    std::optional<Json> local = head("local");
    if (local) local->take("past");
    dynamics.take("mlp_ratio");
    const bool first = head("first").has_value();
    Json flow = slot("flow", dynamics.take("flow"));
    for (const char* key : {"likelihood_power", "draws", "time_law"}) flow.take(key);
    Names names = {{"dynamics.temporal.", "dynamics.context."},
                   {"dynamics.spatial.noise.", "dynamics.step.noise."},
                   {"dynamics.spatial.", "dynamics.trunk."},
                   {"dynamics.flow.", one_pass ? "dynamics.initial." : "dynamics.step."},
                   {"dynamics.first.", ""},
                   {"dynamics.read.", "dynamics.step.read."},
                   {"dynamics.local.", "dynamics.step."}};
    Json trunk;
    move_members(dynamics, trunk, {{"spatial_layers", "layers"}, {"condition", "condition"}});
    if (trunk.is(Json::Kind::null)) trunk.add("layers", Json::of(std::int64_t{6}));
    Json context = slot("causal-transformer", std::nullopt);
    move_members(dynamics, context, {{"temporal_layers", "layers"}});
    for (const auto& [key, value] : dynamics.members()) context.add(key, value);
    config.add("context", std::move(context));
    config.add("trunk", std::move(trunk));
    // A trained head of frame 0 was worse than a random field.
    if (one_pass) config.add("initial", first ? slot("gaussian", std::nullopt) : flow);
    config.add("step", !one_pass ? std::move(flow)
                       : local   ? slot("local", std::move(local))
                                 : slot("linear", std::nullopt));
    if (std::optional<Json> sampling = config.take("sampling")) {
        config.add("sampling", sampling_from_format_1(std::move(*sampling), source + ".sampling"));
    }
    return {std::move(config),
            [codec_name = std::move(codec_name), other = renamed(std::move(names))](const std::string& name) {
                const std::string found = codec_name(name);
                return found == name ? other(name) : found;
            }};
}

}  // namespace enma
