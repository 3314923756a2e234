// The core of frame_attention without Torch, for the sanitizers: every instruction set of this machine against the
// formula in double, in buffers that end where the data ends.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "core/cpu/frame_attention.h"

using namespace enma;

namespace {

std::mt19937 random_bits(1);

// bf16 numbers in both types, so that both have the same exact result.
struct Values {
    std::vector<float> floats;
    std::vector<uint16_t> halves;

    explicit Values(int64_t count) : floats(count), halves(count) {
        for (int64_t i = 0; i < count; ++i) {
            const float a = static_cast<float>(static_cast<double>(random_bits()) / 1073741824.0 - 2.0);
            uint32_t bits;
            std::memcpy(&bits, &a, sizeof bits);
            bits &= 0xffff0000u;
            std::memcpy(&floats[i], &bits, sizeof bits);
            halves[i] = static_cast<uint16_t>(bits >> 16);
        }
    }
    AttentionRows rows(bool bf16, int64_t H, int64_t N, int64_t K) const {
        return {bf16 ? static_cast<const void*>(halves.data()) : floats.data(), H * N * K, N * K, K};
    }
};

bool check(Isa isa, bool bf16, int64_t B, int64_t G, int64_t N, int64_t S, int64_t P, int64_t K, int threads) {
    const int64_t H = 2;
    const Values q(B * H * N * K), k(B * H * N * K), v(B * H * N * K);
    const Values cache_k(B * H * S * K), cache_v(B * H * S * K), prefix_k(G * H * P * K), prefix_v(G * H * P * K);
    std::vector<float> out(bf16 ? 0 : B * H * N * K);
    std::vector<uint16_t> out_halves(bf16 ? B * H * N * K : 0);
    FrameAttention g{};
    g.format = bf16 ? NumberFormat::bf16 : NumberFormat::fp32, g.batch = B, g.heads = H, g.tokens = N, g.head_dim = K, g.threads = threads;
    g.q = q.rows(bf16, H, N, K);
    g.parts[0] = {prefix_k.rows(bf16, H, P, K), prefix_v.rows(bf16, H, P, K), P, B / G};
    g.parts[1] = {cache_k.rows(bf16, H, S, K), cache_v.rows(bf16, H, S, K), S, 1};
    g.parts[2] = {k.rows(bf16, H, N, K), v.rows(bf16, H, N, K), N, 1};
    g.out = bf16 ? static_cast<void*>(out_halves.data()) : out.data();
    g.out_token_stride = K, g.out_head_stride = N * K, g.out_batch_stride = H * N * K;
    frame_attention(g, isa);
    double worst = 0;
    for (int64_t b = 0; b < B; ++b) {
        for (int64_t h = 0; h < H; ++h) {
            for (int64_t n = 0; n < N; ++n) {
                std::vector<const float*> keys, values;
                for (int64_t s = 0; s < P; ++s) {
                    const int64_t at = ((b / (B / G) * H + h) * P + s) * K;
                    keys.push_back(&prefix_k.floats[at]), values.push_back(&prefix_v.floats[at]);
                }
                for (int64_t s = 0; s < S; ++s) {
                    const int64_t at = ((b * H + h) * S + s) * K;
                    keys.push_back(&cache_k.floats[at]), values.push_back(&cache_v.floats[at]);
                }
                for (int64_t s = 0; s < N; ++s) {
                    const int64_t at = ((b * H + h) * N + s) * K;
                    keys.push_back(&k.floats[at]), values.push_back(&v.floats[at]);
                }
                const int64_t row = ((b * H + h) * N + n) * K;
                std::vector<double> result(K);
                double sum = 0, most = -1e300;
                std::vector<double> scores(keys.size());
                for (size_t s = 0; s < keys.size(); ++s) {
                    for (int64_t c = 0; c < K; ++c) scores[s] += double(q.floats[row + c]) * keys[s][c];
                    scores[s] /= std::sqrt(double(K));
                    most = std::fmax(most, scores[s]);
                }
                for (size_t s = 0; s < keys.size(); ++s) {
                    const double weight = std::exp(scores[s] - most);
                    sum += weight;
                    for (int64_t c = 0; c < K; ++c) result[c] += weight * values[s][c];
                }
                for (int64_t c = 0; c < K; ++c) {
                    float found = bf16 ? 0 : out[row + c];
                    if (bf16) {
                        const uint32_t bits = static_cast<uint32_t>(out_halves[row + c]) << 16;
                        std::memcpy(&found, &bits, sizeof found);
                    }
                    // Not std::fmax, which loses NaN.
                    const double error = std::fabs(found - result[c] / sum);
                    if (!(error <= worst)) worst = error;
                }
            }
        }
    }
    const bool good = worst <= (bf16 ? 5e-3 : 4e-6);
    if (!good) std::printf("bf16 %d, N %d, S %d, P %d, K %d: error %g\n", bf16, int(N), int(S), int(P), int(K), worst);
    return good;
}

}  // namespace

int main() {
    int failures = 0, count = 0;
    for (const std::string& name : supported_isas()) {
        const Isa isa = isa_by_name(name);
        for (const bool bf16 : {false, true}) {
            for (const int64_t N : {1, 5, 16, 17, 33}) {
                for (const int64_t K : {8, 9, 64, 128}) {
                    failures += !check(isa, bf16, 2, 1, N, 13, 66, K, 1);
                    failures += !check(isa, bf16, 2, 2, N, 0, 0, K, 1);
                    count += 2;
                }
            }
            failures += !check(isa, bf16, 6, 2, 16, 64, 30, 64, 3);
            failures += !check(isa, bf16, 0, 1, 4, 4, 4, 16, 2);
            count += 2;
        }
    }
    if (failures) return std::printf("%d of %d failed\n", failures, count), 1;
    std::printf("ok: %d problems\n", count);
    return 0;
}
