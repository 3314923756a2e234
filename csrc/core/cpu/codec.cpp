#include "core/cpu/codec.h"

#include <utility>

namespace enma {

// One for each kind; read_<kind>_codec is in codec_<kind>.cpp.
#define ENMA_CODEC_KINDS(KIND) KIND(conv) KIND(points) KIND(blocks)

#define ENMA_DECLARE(kind) MakeCodec read_##kind##_codec(Fields& fields, CodecConfig& common);
ENMA_CODEC_KINDS(ENMA_DECLARE)

CodecConfig read_codec(Fields fields) {
    CodecConfig out;
    fields.read("grid", out.grid);
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
    const auto [least, most] = std::minmax_element(out.grid.begin(), out.grid.end());
    if (*most > MOST_POINTS / (out.grid.size() == 2 ? *least : 1))
        fields.wrong("grid", text("has more than ", MOST_POINTS, " points"));
    fields.read("field_channels", out.field_channels);
    fields.read_channels("field_mean", out.field_channels, out.field_mean);
    fields.read_channels("field_scale", out.field_channels, out.field_scale);
    if (out.field_mean.empty() != out.field_scale.empty() ||
        !std::all_of(out.field_scale.begin(), out.field_scale.end(), [](float scale) { return scale > 0; })) {
        fields.wrong("field_scale", "entries above 0 are expected, beside field_mean");
    }
    fields.read("masked", out.masked);
    std::string kind;
    fields.read("kind", kind);
#define ENMA_READ(name) \
    if (kind == #name) out.make = read_##name##_codec(fields, out);
    ENMA_CODEC_KINDS(ENMA_READ)
    if (!out.make) fields.unsupported("kind", "'" + kind.substr(0, 40) + "'");
    fields.check_all_read();
    return out;
}

void check_grid(const Fields& fields, const CodecConfig& config) {
    for (const std::int64_t points : config.grid) {
        if (points % config.space_factor != 0)
            fields.wrong("grid", text("a multiple of ", config.space_factor, " is expected"));
    }
}

}  // namespace enma
