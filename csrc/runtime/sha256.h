// SHA-256 by FIPS 180-4.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

namespace enma {

using Digest = std::array<std::uint8_t, 32>;

Digest sha256(const void* data, std::size_t size);
// 64 hexadecimal digits.
std::string hex(const Digest& digest);

}  // namespace enma
