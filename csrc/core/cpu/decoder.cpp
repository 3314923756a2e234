#include "core/cpu/decoder.h"

namespace enma {

// One for each kind; read_<kind>_decoder is in decoder_<kind>.cpp.
#define ENMA_DECODER_KINDS(KIND) KIND(field) KIND(flow) KIND(gaussian) KIND(linear) KIND(local)

#define ENMA_DECLARE(kind) MakeDecoder read_##kind##_decoder(Fields& fields, const DecoderShape& shape);
ENMA_DECODER_KINDS(ENMA_DECLARE)

MakeDecoder read_decoder(Fields fields, const DecoderShape& shape) {
    std::string kind;
    fields.read("kind", kind);
    MakeDecoder made;
#define ENMA_READ(name) \
    if (kind == #name) made = read_##name##_decoder(fields, shape);
    ENMA_DECODER_KINDS(ENMA_READ)
    if (!made) fields.unsupported("kind", "'" + kind.substr(0, 40) + "'");
    fields.check_all_read();
    return made;
}

}  // namespace enma
