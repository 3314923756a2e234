// Arrays of the caller: DLPack tensors in and out.
#pragma once

#include <cstdint>
#include <vector>

#include "enma/enma.h"

namespace enma {

// A checked tensor: fp32 or fp64 on the CPU, any strides.
class Array {
   public:
    // Throws Error (ENMA_INVALID_ARGUMENT) that begins with `name`; `shape` has -1 for any size of at least 1. An array
    // to be written may not have two entries in one place.
    Array(const DLTensor* tensor, const char* name, const std::vector<std::int64_t>& shape, bool written);

    std::int64_t size(int axis) const { return shape_[axis]; }
    // All values in row-major order as fp32.
    std::vector<float> numbers() const;
    // The same; one that is not finite, or NetCDF's fill value, is refused, with the place of its `entry` along the first
    // axis. Where a mask, which repeats, is 0, nothing is read, and 0 is given.
    std::vector<float> read(const char* entry, const std::vector<float>& mask = {}) const;
    // The values themselves, fp32 without gaps in row-major order; others are refused.
    const float* contiguous() const;
    // The same of fp64; null for fp32.
    const double* wide() const;
    // All values in row-major order, and likewise those of entry (i, j) of the first two axes.
    void write(const float* values) const { write_from(0, 0, values); }
    void write(std::int64_t i, std::int64_t j, const float* values) const;

   private:
    template <class Visit>
    void each(int axis, std::int64_t at, const Visit& visit) const;
    void put(std::int64_t at, float value) const;
    void write_from(int axis, std::int64_t at, const float* values) const;

    const char* name_;
    char* data_;
    bool wide_;
    int compact_ = 0;  // axes from this one on are one piece of memory
    std::vector<std::int64_t> shape_, strides_;
};

}  // namespace enma
