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

MakeDecoder read_field_decoder(Fields& fields, const DecoderShape& shape) {
    if (shape.initial) fields.wrong("kind", "'field' continues known frames");
    return [config = read_field_config(fields)](const DecoderSlot&) -> std::unique_ptr<const Decoder> {
        return std::make_unique<const FieldDecoder>(config);
    };
}

}  // namespace enma
