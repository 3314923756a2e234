// The table of functions by which a Python library hands its arrays to C without a copy: DLPack 1.3,
// `__dlpack_c_exchange_api__` of its array type. Laid out as DLPack's header has it; enma.h has DLTensor.
#pragma once

#include <cstdint>

#include "enma/enma.h"

namespace enma {

struct DlpackVersion {
    std::uint32_t major, minor;
};

struct ManagedTensor {
    DlpackVersion version;
    void* context;
    void (*deleter)(ManagedTensor* self);
    std::uint64_t flags;
    DLTensor tensor;
};

struct ExchangeApi {
    DlpackVersion version;
    const ExchangeApi* previous;
    // An array of the shape, type and device of `like`. Needs no lock of the interpreter.
    int (*allocate)(DLTensor* like, ManagedTensor** out, void* context,
                    void (*failed)(void* context, const char* kind, const char* message));
    int (*managed_from_python)(void* object, ManagedTensor** out);
    // Takes the array over.
    int (*to_python)(ManagedTensor* tensor, void** object);
    // What a Python array holds, as long as that lives and keeps its size.
    int (*from_python)(void* object, DLTensor* out);
    // The stream on which the library works on a device now.
    int (*current_stream)(DLDeviceType type, std::int32_t device, void** stream);
};

}  // namespace enma
