// Sums of rows with factors, of fp32.
#pragma once

#include <cstddef>
#include <cstdint>

namespace enma {

// out [rows, width] = factors [rows, terms] in [terms, width], in the order of the terms. The width has whole panels.
struct RowSums {
    const float* factors;
    std::int64_t rows, terms;
    const float* in;
    std::ptrdiff_t in_stride;
    float* out;
    std::ptrdiff_t out_stride;
    std::int64_t width;
};

}  // namespace enma
