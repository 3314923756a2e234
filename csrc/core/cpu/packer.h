// Parameters of a model, packed one after the other in the order of use: products ask for what follows in memory.
#pragma once

#include <cstring>
#include <string>
#include <vector>

#include "core/cpu/allocator.h"
#include "core/cpu/packed_linear.h"
#include "core/half.h"

namespace enma {

// Parameters are named from `prefix` on, and rounded to the number format. The first pass counts, the second packs.
class Packer {
   public:
    Packer(const TakeParameter& take, std::string prefix, NumberFormat format, Allocator& memory, bool write)
        : take_(take), prefix_(std::move(prefix)), format_(format), memory_(memory), write_(write) {}

    // Part `part` of `parts` of a fused weight [parts n, k], and of its bias.
    LinearView linear(const std::string& name, int n, int k, bool has_bias = true, int part = 0, int parts = 1) {
        const std::ptrdiff_t first = static_cast<std::ptrdiff_t>(part) * n;
        const float* const weight = take_(prefix_ + name + ".weight", {parts * n, k}) + first * k;
        const float* const bias = has_bias ? take_(prefix_ + name + ".bias", {parts * n}) + first : nullptr;
        return linear(weight, bias, n, k, format_);
    }

    // The same of numbers that are not rounded any more.
    LinearView linear(const float* weight, const float* bias, int n, int k, NumberFormat format) {
        char* const packed = memory_.take<char>(packed_bytes(n, k, format));
        if (!write_) return {};
        if (is_half(format)) {
            const std::vector<std::uint16_t> narrow = narrowed(weight, static_cast<std::size_t>(n) * k);
            const std::vector<std::uint16_t> biases = narrowed(bias, bias == nullptr ? 0 : n);
            pack_linear(narrow.data(), bias == nullptr ? nullptr : biases.data(), n, k, format, packed);
        } else {
            pack_linear(weight, bias, n, k, format, packed);
        }
        return view_linear(packed, n, k, format);
    }

    // A vector in fp32, zero beyond its end; and rows of them.
    const float* vector(const std::string& name, int n) { return rows(numbers(name, {n}).data(), 1, n); }

    const float* rows(const float* values, int count, int n) {
        const std::ptrdiff_t stride = row_stride(n);
        float* out = memory_.take<float>(count * stride);
        if (!write_) return nullptr;
        std::memset(out, 0, count * stride * sizeof(float));
        for (int i = 0; i < count; ++i) std::memcpy(out + i * stride, values + i * n, n * sizeof(float));
        return out;
    }

    // Plain fp32 numbers without gaps.
    const float* table(const std::vector<float>& values) {
        float* out = memory_.take<float>(values.size());
        if (write_) std::memcpy(out, values.data(), values.size() * sizeof(float));
        return out;
    }

    // A parameter in fp32, rounded to the number format.
    std::vector<float> numbers(const std::string& name, const std::vector<std::int64_t>& shape) const {
        std::size_t count = 1;
        for (const std::int64_t n : shape) count *= n;
        const float* const values = take_(prefix_ + name, shape);
        std::vector<float> out(values, values + count);
        if (is_half(format_)) {
            for (float& x : out) x = from_bf16(to_bf16(x));
        }
        return out;
    }

    // False while it counts.
    bool writes() const { return write_; }

   private:
    static std::vector<std::uint16_t> narrowed(const float* values, std::size_t count) {
        std::vector<std::uint16_t> out(count);
        for (std::size_t i = 0; i < count; ++i) out[i] = to_bf16(values[i]);
        return out;
    }

    const TakeParameter& take_;
    std::string prefix_;
    NumberFormat format_;
    Allocator& memory_;
    bool write_;
};

// One buffer of all that fill(packer) packs.
template <class Fill>
Buffer packed(const TakeParameter& take, const std::string& prefix, NumberFormat format, const Fill& fill) {
    Allocator count(nullptr);
    Packer counting(take, prefix, format, count, false);
    fill(counting);
    Buffer out(count.used());
    Allocator memory(out.data());
    Packer packing(take, prefix, format, memory, true);
    fill(packing);
    return out;
}

}  // namespace enma
