// Philox-4x32-10 and the normals made of its words, for C++ and CUDA; enma_fast/ops/philox_normal.py has the layout.
#pragma once

#include <cmath>
#include <cstdint>

#ifdef __CUDACC__
#define ENMA_HOST_DEVICE __host__ __device__ inline
#else
#define ENMA_HOST_DEVICE inline
#endif

namespace enma {

struct PhiloxWords {
    std::uint32_t w0, w1, w2, w3;
};

struct NormalPair {
    float first, second;
};

// Ten rounds on counter (c0, c1, c2, c3) under key (k0, k1).
ENMA_HOST_DEVICE PhiloxWords philox_4x32(PhiloxWords c, std::uint32_t k0, std::uint32_t k1) {
    for (int round = 0; round < 10; ++round) {
        const std::uint64_t p0 = std::uint64_t{0xD2511F53u} * c.w0;
        const std::uint64_t p1 = std::uint64_t{0xCD9E8D57u} * c.w2;
        c = {static_cast<std::uint32_t>(p1 >> 32) ^ c.w1 ^ k0, static_cast<std::uint32_t>(p1),
             static_cast<std::uint32_t>(p0 >> 32) ^ c.w3 ^ k1, static_cast<std::uint32_t>(p0)};
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return c;
}

// In the open interval (0, 1), exact in float32 as in float64.
ENMA_HOST_DEVICE double philox_uniform(std::uint32_t word) { return (static_cast<double>(word >> 9) + 0.5) * 0x1p-23; }

// Two normals of two words, evaluated in float64 and rounded once.
ENMA_HOST_DEVICE NormalPair philox_normal_pair(std::uint32_t w0, std::uint32_t w1) {
    const double radius = std::sqrt(-2.0 * std::log(philox_uniform(w0)));
    const double angle = 6.283185307179586 * philox_uniform(w1);
    return {static_cast<float>(radius * std::cos(angle)), static_cast<float>(radius * std::sin(angle))};
}

// Normals of the `channels` of one token; `counter.w0` is the first block of four.
ENMA_HOST_DEVICE void philox_token_normals(PhiloxWords counter, std::uint32_t k0, std::uint32_t k1, int channels,
                                           float* out) {
    for (int c = 0; c < channels; c += 4, ++counter.w0) {
        const PhiloxWords w = philox_4x32(counter, k0, k1);
        const NormalPair low = philox_normal_pair(w.w0, w.w1), high = philox_normal_pair(w.w2, w.w3);
        const float block[4] = {low.first, low.second, high.first, high.second};
        for (int j = 0; j < 4 && c + j < channels; ++j) out[c + j] = block[j];
    }
}

}  // namespace enma
