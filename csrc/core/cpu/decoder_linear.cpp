// Decoder `linear`: all tokens in one pass, linear in the output of the masked transformer.
#include "core/cpu/one_pass.h"
#include "core/cpu/packer.h"

namespace enma {

namespace {

struct LinearDecoder : Decoder {
    LinearDecoder(const DecoderShape& shape, const DecoderSlot& slot) {
        weights = packed(slot.take, slot.prefix, slot.format, [&](Packer& pack) {
            noise = pack.linear("noise", shape.width, shape.channels, false);
            read = pack.linear("read", shape.channels, shape.width);
        });
    }
    std::size_t bytes() const override { return weights.size(); }
    std::unique_ptr<DecoderSession> session(const SamplerView& model, const SamplerState& state,
                                            const DecoderSettings& settings) const override;

    Buffer weights;
    LinearView noise, read;
};

struct LinearSession : DecoderSession {
    LinearSession(const LinearDecoder& decoder, const SamplerView& model, const SamplerState& state, float temperature)
        : decoder(decoder), model(model), state(state), temperature(temperature) {}
    void take(Allocator&) override {}
    WorkBytes work() const override { return {0, 0}; }
    int counters() const override { return 1; }
    void decide(const Region& region) override {
        decide_in_one_pass(region, model, state, decoder.noise, decoder.read, temperature, state.tokens,
                           [](int, int) {});
    }

    const LinearDecoder& decoder;
    const SamplerView& model;
    const SamplerState& state;
    float temperature;
};

std::unique_ptr<DecoderSession> LinearDecoder::session(const SamplerView& model, const SamplerState& state,
                                                       const DecoderSettings& settings) const {
    return std::make_unique<LinearSession>(*this, model, state, settings.temperature);
}

}  // namespace

MakeDecoder read_linear_decoder(Fields& fields, const DecoderShape& shape) {
    if (!shape.trunk) fields.wrong("kind", "'linear' needs a trunk");
    return [shape](const DecoderSlot& slot) -> std::unique_ptr<const Decoder> {
        return std::make_unique<const LinearDecoder>(shape, slot);
    };
}

}  // namespace enma
