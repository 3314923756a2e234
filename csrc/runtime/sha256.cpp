#include "runtime/sha256.h"

#include <bit>
#include <cstring>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(ENMA_PORTABLE)
#include <cpuid.h>
#include <immintrin.h>
#define ENMA_SHA_INSTRUCTIONS 1
#endif

namespace enma {

namespace {

constexpr std::uint32_t K[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

std::uint32_t big_endian(const std::uint8_t* p) {
    return std::uint32_t{p[0]} << 24 | std::uint32_t{p[1]} << 16 | std::uint32_t{p[2]} << 8 | p[3];
}

void block_plain(std::uint32_t (&h)[8], const std::uint8_t* p) {
    std::uint32_t w[64];
    for (int i = 0; i < 16; ++i) w[i] = big_endian(p + 4 * i);
    for (int i = 16; i < 64; ++i) {
        const std::uint32_t a = w[i - 15], b = w[i - 2];
        w[i] = w[i - 16] + (std::rotr(a, 7) ^ std::rotr(a, 18) ^ a >> 3) + w[i - 7] +
               (std::rotr(b, 17) ^ std::rotr(b, 19) ^ b >> 10);
    }
    std::uint32_t s[8];
    std::memcpy(s, h, sizeof s);
    for (int i = 0; i < 64; i += 8) {
        // The eight words change their places in a circle, so that none is moved.
        for (int j = 0; j < 8; ++j) {
            const auto at = [&](int k) -> std::uint32_t& { return s[(k - j) & 7]; };
            const std::uint32_t e = at(4), a = at(0);
            const std::uint32_t t1 = at(7) + (std::rotr(e, 6) ^ std::rotr(e, 11) ^ std::rotr(e, 25)) +
                                     (at(6) ^ (e & (at(5) ^ at(6)))) + K[i + j] + w[i + j];
            at(3) += t1;
            at(7) =
                t1 + (std::rotr(a, 2) ^ std::rotr(a, 13) ^ std::rotr(a, 22)) + ((a & at(1)) | (at(2) & (a | at(1))));
        }
    }
    for (int i = 0; i < 8; ++i) h[i] += s[i];
}

#ifdef ENMA_SHA_INSTRUCTIONS
bool has_sha_instructions() {
    unsigned a, b, c, d;
    return __builtin_cpu_supports("sse4.1") && __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b >> 29 & 1) != 0;
}

// The same by the processor's instructions for it, which keep the state as (a, b, e, f) and (c, d, g, h).
__attribute__((target("sha,sse4.1,ssse3"))) void block_sha(std::uint32_t (&h)[8], const std::uint8_t* p) {
    const __m128i swap = _mm_set_epi64x(0x0c0d0e0f08090a0b, 0x0405060700010203);
    const __m128i abef_before =
        _mm_set_epi32(static_cast<int>(h[0]), static_cast<int>(h[1]), static_cast<int>(h[4]), static_cast<int>(h[5]));
    const __m128i cdgh_before =
        _mm_set_epi32(static_cast<int>(h[2]), static_cast<int>(h[3]), static_cast<int>(h[6]), static_cast<int>(h[7]));
    __m128i abef = abef_before, cdgh = cdgh_before, w[4];
    for (int i = 0; i < 4; ++i) {
        w[i] = _mm_shuffle_epi8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 16 * i)), swap);
    }
    for (int i = 0; i < 16; ++i) {
        const __m128i now = w[i % 4];
        const __m128i keyed = _mm_add_epi32(now, _mm_loadu_si128(reinterpret_cast<const __m128i*>(K + 4 * i)));
        cdgh = _mm_sha256rnds2_epu32(cdgh, abef, keyed);
        abef = _mm_sha256rnds2_epu32(abef, cdgh, _mm_shuffle_epi32(keyed, 0x0E));
        // Four words that are needed four steps later.
        const __m128i next = w[(i + 1) % 4], second = w[(i + 2) % 4], third = w[(i + 3) % 4];
        const __m128i sum = _mm_add_epi32(_mm_sha256msg1_epu32(now, next), _mm_alignr_epi8(third, second, 4));
        w[i % 4] = _mm_sha256msg2_epu32(sum, third);
    }
    alignas(16) std::uint32_t words[8];
    _mm_store_si128(reinterpret_cast<__m128i*>(words), _mm_add_epi32(abef, abef_before));
    _mm_store_si128(reinterpret_cast<__m128i*>(words + 4), _mm_add_epi32(cdgh, cdgh_before));
    // The highest word of a register is its first.
    const int place[8] = {3, 2, 7, 6, 1, 0, 5, 4};
    for (int i = 0; i < 8; ++i) h[i] = words[place[i]];
}
#endif

using Block = void (*)(std::uint32_t (&h)[8], const std::uint8_t* p);

Block best_block() {
#ifdef ENMA_SHA_INSTRUCTIONS
    if (has_sha_instructions()) return block_sha;
#endif
    return block_plain;
}

}  // namespace

Digest sha256(const void* data, std::size_t size) {
    std::uint32_t h[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                          0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    const std::uint8_t* bytes = static_cast<const std::uint8_t*>(data);
    static const Block block = best_block();
    const std::size_t whole = size / 64 * 64;
    for (std::size_t i = 0; i < whole; i += 64) block(h, bytes + i);
    std::uint8_t last[128] = {};
    const std::size_t rest = size - whole;
    if (rest > 0) std::memcpy(last, bytes + whole, rest);
    last[rest] = 0x80;
    const std::size_t end = rest < 56 ? 64 : 128;
    const std::uint64_t bits = static_cast<std::uint64_t>(size) * 8;
    for (int i = 0; i < 8; ++i) last[end - 1 - i] = static_cast<std::uint8_t>(bits >> (8 * i));
    for (std::size_t i = 0; i < end; i += 64) block(h, last + i);
    Digest digest;
    for (int i = 0; i < 32; ++i) digest[i] = static_cast<std::uint8_t>(h[i / 4] >> (24 - 8 * (i % 4)));
    return digest;
}

std::string hex(const Digest& digest) {
    std::string out;
    for (const std::uint8_t byte : digest) {
        out += "0123456789abcdef"[byte >> 4];
        out += "0123456789abcdef"[byte & 15];
    }
    return out;
}

}  // namespace enma
