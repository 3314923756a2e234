// Decoder `gaussian`: frame 0 as a random field, which whoever begins a trajectory draws (core/cpu/analysis.h), encodes and
// reads; enma_fast/models/decoders/gaussian.py.
#include "core/cpu/decoder.h"

namespace enma {

namespace {

struct GaussianDecoder : Decoder {
    std::size_t bytes() const override { return 0; }
    bool draws_fields() const override { return true; }
    std::unique_ptr<DecoderSession> session(const SamplerView&, const SamplerState&,
                                            const DecoderSettings&) const override {
        fail(ENMA_INVALID_ARGUMENT, "frame 0 of this model is drawn as a field; read it, and go on from frame 1");
    }
};

}  // namespace

MakeDecoder read_gaussian_decoder(Fields& fields, const DecoderShape& shape) {
    if (!shape.initial) fields.wrong("kind", "'gaussian' draws frame 0 alone");
    return [](const DecoderSlot&) -> std::unique_ptr<const Decoder> { return std::make_unique<GaussianDecoder>(); };
}

}  // namespace enma
