// Decoder `field`: the config of field models, which decide frames without a transformer; field_model.cpp decides them.
#include "core/cpu/field_network.h"
#include "core/cpu/sampler.h"

namespace enma {

namespace {

struct FieldDecoder : Decoder {
    explicit FieldDecoder(const FieldConfig& config) : config(config) {}
    std::size_t bytes() const override { return 0; }
    const FieldConfig* field_config() const override { return &config; }
    std::unique_ptr<DecoderSession> session(const SamplerView&, const SamplerState&,
                                            const DecoderSettings&) const override {
        fail(ENMA_UNSUPPORTED, "step of kind 'field' reads context 'physics'");
    }

    FieldConfig config;
};

}  // namespace

FieldConfig read_field_config(Fields& fields) {
    FieldConfig out;
    fields.read("block", out.block, 1, 64);
    fields.read("width", out.width, 1, 4096);
    fields.read("layers", out.layers, 0, 256);
    fields.read("middle_layers", out.middle_layers, 0, 256);
    fields.read("middle_width", out.middle_width, 1, 4096);
    fields.read("noise", out.noise, 0, 4096);
    fields.read("member", out.member, 0, 4096);
    return out;
}

MakeDecoder read_field_decoder(Fields& fields, const DecoderShape& shape) {
    if (shape.initial) fields.wrong("kind", "'field' continues known frames");
    return [config = read_field_config(fields)](const DecoderSlot&) -> std::unique_ptr<const Decoder> {
        return std::make_unique<const FieldDecoder>(config);
    };
}

}  // namespace enma
