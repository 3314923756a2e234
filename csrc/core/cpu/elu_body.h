// Values through elu, compiled once per instruction set behind lanes.h.
#pragma once

namespace {
namespace units {

// x where it is positive, else e^x - 1.
void elu(float* values, int64_t count) {
    each(count, [&](int64_t i, auto part) {
        const Floats x = load(values + i, part), negative = x > Floats{} ? Floats{} : x;
        store(values + i, x > Floats{} ? x : exp2_of(negative * all(LOG2_E)) - all(1.0f), part);
    });
}

}  // namespace units
}  // namespace
