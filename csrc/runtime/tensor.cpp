#include "runtime/tensor.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <string>
#include <utility>

#include "core/error.h"

namespace enma {

namespace {

// NetCDF's default fill value of floats.
constexpr float FILL = 9.969209968386869e36f;
// Floats of one array; far beyond any memory.
constexpr std::int64_t MOST = std::int64_t{1} << 48;

// Sizes in brackets; of an expected shape, in which -1 stands for any size, with `any`.
std::string shape_text(const std::int64_t* sizes, int count, bool any = false) {
    std::string out = "[";
    for (int i = 0; i < count; ++i) {
        out += (i == 0 ? "" : ", ") + (any && sizes[i] < 0 ? std::string("any") : std::to_string(sizes[i]));
    }
    return out + "]";
}

// True if the axes, from the shortest stride to the longest, step over one another.
bool apart(const std::vector<std::int64_t>& shape, const std::vector<std::int64_t>& strides) {
    std::vector<std::pair<std::int64_t, std::int64_t>> axes;
    for (std::size_t i = 0; i < shape.size(); ++i) {
        if (shape[i] > 1) axes.emplace_back(std::abs(strides[i]), shape[i]);
    }
    std::sort(axes.begin(), axes.end());
    std::int64_t reach = 0;
    for (const auto& [stride, size] : axes) {
        if (stride <= reach) return false;
        reach += stride * (size - 1);
    }
    return true;
}

}  // namespace

Array::Array(const DLTensor* t, const char* name, const std::vector<std::int64_t>& shape, bool written) : name_(name) {
    const int axes = static_cast<int>(shape.size());
    if (t == nullptr) fail(ENMA_INVALID_ARGUMENT, name, " is NULL");
    if (t->device.device_type != kDLCPU) {
        fail(ENMA_INVALID_ARGUMENT, name, " is on device type ", static_cast<int>(t->device.device_type), "; the CPU (",
             static_cast<int>(kDLCPU), ") is expected");
    }
    if (t->dtype.code != kDLFloat || (t->dtype.bits != 32 && t->dtype.bits != 64) || t->dtype.lanes != 1) {
        fail(ENMA_INVALID_ARGUMENT, name, " has type code ", int{t->dtype.code}, ", ", int{t->dtype.bits}, " bits and ",
             t->dtype.lanes, " lanes; fp32 or fp64 is expected");
    }
    if (t->ndim != axes || (t->shape == nullptr && axes > 0)) {
        fail(ENMA_INVALID_ARGUMENT, name, " has ", t->ndim, " axes; ", shape_text(shape.data(), axes, true),
             " is expected");
    }
    std::int64_t count = 1;
    for (int i = 0; i < axes; ++i) {
        const std::int64_t size = t->shape[i];
        if (size < 1 || (shape[i] >= 0 && size != shape[i]) || size > MOST / count) {
            fail(ENMA_INVALID_ARGUMENT, name, " has shape ", shape_text(t->shape, axes), "; ",
                 shape_text(shape.data(), axes, true), " is expected");
        }
        count *= size;
    }
    shape_.assign(t->shape, t->shape + axes);
    strides_.resize(axes, 1);
    if (t->strides != nullptr) {
        strides_.assign(t->strides, t->strides + axes);
        for (int i = 0; i < axes; ++i) {
            if (strides_[i] > MOST / shape_[i] || strides_[i] < -MOST / shape_[i]) {
                fail(ENMA_INVALID_ARGUMENT, name, " has stride ", strides_[i], " at axis ", i);
            }
        }
    } else {
        for (int i = axes - 2; i >= 0; --i) strides_[i] = strides_[i + 1] * shape_[i + 1];
    }
    compact_ = axes;
    for (std::int64_t size = 1; compact_ > 0 && (shape_[compact_ - 1] == 1 || strides_[compact_ - 1] == size);
         size *= shape_[--compact_]) {
    }
    if (written && !apart(shape_, strides_)) {
        fail(ENMA_INVALID_ARGUMENT, name, " has strides ", shape_text(strides_.data(), axes),
             " at which two entries share memory");
    }
    if (t->data == nullptr) fail(ENMA_INVALID_ARGUMENT, name, " has no data");
    wide_ = t->dtype.bits == 64;
    data_ = static_cast<char*>(t->data) + t->byte_offset;
    if (reinterpret_cast<std::uintptr_t>(data_) % (wide_ ? alignof(double) : alignof(float)) != 0) {
        fail(ENMA_INVALID_ARGUMENT, name, " is not aligned to its type");
    }
}

template <class Visit>
void Array::each(int axis, std::int64_t at, const Visit& visit) const {
    if (axis == static_cast<int>(shape_.size())) {
        visit(at);
        return;
    }
    for (std::int64_t i = 0; i < shape_[axis]; ++i) each(axis + 1, at + i * strides_[axis], visit);
}

std::vector<float> Array::numbers() const {
    std::vector<float> out;
    out.reserve(std::accumulate(shape_.begin(), shape_.end(), std::int64_t{1}, std::multiplies<>()));
    each(0, 0, [&](std::int64_t at) {
        out.push_back(wide_ ? static_cast<float>(reinterpret_cast<const double*>(data_)[at])
                            : reinterpret_cast<const float*>(data_)[at]);
    });
    return out;
}

std::vector<float> Array::read(const char* entry, const std::vector<float>& mask) const {
    std::vector<float> out = numbers();
    for (std::size_t i = 0; i < out.size(); ++i) {
        if (!mask.empty() && mask[i % mask.size()] == 0) out[i] = 0.0f;
        if (std::isfinite(out[i]) && out[i] != FILL) continue;
        fail(ENMA_INVALID_ARGUMENT, name_, " holds a value that is ",
             std::isfinite(out[i]) ? "the number of a missing one" : "not finite", ", first in ", entry, " ",
             i / (out.size() / shape_[0]));
    }
    return out;
}

const float* Array::contiguous() const {
    if (wide_ || compact_ > 0) fail(ENMA_INVALID_ARGUMENT, name_, " is not contiguous fp32");
    return reinterpret_cast<const float*>(data_);
}

const double* Array::wide() const {
    if (!wide_) return nullptr;
    if (compact_ > 0) fail(ENMA_INVALID_ARGUMENT, name_, " is not contiguous");
    return reinterpret_cast<const double*>(data_);
}

void Array::put(std::int64_t at, float value) const {
    if (wide_) {
        reinterpret_cast<double*>(data_)[at] = value;
    } else {
        reinterpret_cast<float*>(data_)[at] = value;
    }
}

void Array::write_from(int axis, std::int64_t at, const float* values) const {
    if (axis >= compact_ && !wide_) {
        const std::int64_t count =
            std::accumulate(shape_.begin() + axis, shape_.end(), std::int64_t{1}, std::multiplies<>());
        std::memcpy(reinterpret_cast<float*>(data_) + at, values, count * sizeof(float));
        return;
    }
    each(axis, at, [&](std::int64_t place) { put(place, *values++); });
}

void Array::write(std::int64_t i, std::int64_t j, const float* values) const {
    write_from(2, i * strides_[0] + j * strides_[1], values);
}

}  // namespace enma
