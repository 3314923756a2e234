// The compiled kernels of AMX against the emulated ones, to the bit, also on a processor without AMX
// (amx_instructions.h). It has to have AVX-512 BF16, which the kernels use beside tiles.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

#include "core/cpu/dispatch.h"
#include "core/cpu/flow_head.h"

#include "amx_instructions.h"

using namespace enma;

namespace {

std::mt19937 generator(0);
int failures = 0;

std::vector<std::uint16_t> halves(std::size_t n, float scale) {
    std::normal_distribution<float> normal(0.0f, scale);
    std::vector<std::uint16_t> out(n);
    for (std::uint16_t& half : out) {
        const float x = normal(generator);
        std::uint32_t bits;
        std::memcpy(&bits, &x, sizeof bits);
        half = static_cast<std::uint16_t>(bits >> 16);
    }
    return out;
}

// A flow head of random bf16 weights: by the kernels, by the emulated ones, and its rows one at a time. Where it is
// `tiny`, the products of its input layer are below normal numbers, which tiles take for zero. The next layer multiplies
// by 2^120, so a kernel that kept them would give other results.
void check(int rows, int channels, int depth, int width, bool tiny = false) {
    const std::size_t w = width, c = channels, d = depth;
    const float scale = 0.5f / static_cast<float>(width);
    const auto condition = halves(w * d, 0.1f), inward = halves(w * c, tiny ? 0x1p-76f : 0.5f),
               end = halves(2 * w * w, scale), outward = halves(c * w, 0.2f),
               bias = halves(3 * w + c, tiny ? 0.0f : 0.3f), time = halves(2 * w, 0.5f),
               up = halves(w * w, tiny ? 0x1p120f : 4 * scale), down = halves(w * w, 4 * scale);
    auto modulation = halves(3 * w * w, scale);
    if (tiny) std::fill_n(modulation.begin(), w * w, std::uint16_t{0});
    FlowHeadWeights weights{channels,         depth,          width,         2,           2,  true,
                            condition.data(), bias.data(),    inward.data(), bias.data(), {}, end.data(),
                            bias.data(),      outward.data(), bias.data(),   time.data(), {}};
    weights.blocks.push_back({modulation.data(), bias.data(), up.data(), bias.data(), down.data(), bias.data()});
    weights.moves = {0.25f, 0.5f};
    const FlowHead head(weights);
    const auto conditions = halves(rows * d, 1.0f);
    std::vector<float> noise(rows * c);
    for (float& x : noise) x = std::normal_distribution<float>(0.0f, tiny ? 0x1p-60f : 1.0f)(generator);
    std::vector<float> expected(rows * c);
    head.run({conditions.data(), true, noise.data(), expected.data(), rows}, 1, Isa::emulated_avx512_amx,
             Division::rows);
    const auto same = [&](const float* out, int row, int count, const char* what) {
        if (amx::configured) ++failures, std::printf("tiles are still configured\n");
        if (std::memcmp(out, expected.data() + row * c, count * c * sizeof(float)) == 0) return;
        ++failures;
        std::printf("%d rows, width %d, row %d: %s differ from the emulated kernels\n", rows, width, row, what);
    };
    for (const Division division : {Division::rows, Division::columns}) {
        std::vector<float> out(rows * c);
        head.run({conditions.data(), true, noise.data(), out.data(), rows}, 1, Isa::avx512_amx, division);
        same(out.data(), 0, rows, division == Division::rows ? "rows" : "columns");
    }
    for (int row = 0; row < rows; row += 7) {
        std::vector<float> out(c);
        head.run({conditions.data() + row * d, true, noise.data() + row * c, out.data(), 1}, 1, Isa::avx512_amx,
                 Division::columns);
        same(out.data(), row, 1, "rows alone");
    }
}

}  // namespace

int main() {
    const bool real = isa_supported(Isa::avx512_amx);
    if (!real) amx::carry_out();
    // Widths with and without a whole number of tiles and of panels; one, two and more tiles of rows, whole or not.
    for (const int width : {16, 33, 64, 96, 130}) {
        for (const int rows : {1, 3, 16, 17, 33, 45, 64}) check(rows, 4, 40, width);
    }
    check(5, 4, 40, 64, true);
    if (!real && amx::executed < 1000) return std::printf("too few tile instructions were executed\n"), 1;
    if (failures) return std::printf("%d mismatches\n", failures), 1;
    std::printf("ok: %s\n", real ? "by this processor" : "by the handler");
}
