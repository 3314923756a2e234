// Runs the CPU kernels of csrc/core over odd sizes with every instruction set this machine has, and compares with plain
// loops in double. No Torch and no Python, so that sanitizers can watch. Returns the number of mismatches.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <algorithm>
#include <cstring>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "core/cpu/dispatch.h"
#include "core/cpu/flow_head.h"
#include "core/cpu/gemm.h"

using namespace enma;

namespace {

std::mt19937 generator(0);
int failures = 0;

// Numbers in fp32 or bf16, in memory of exactly their size.
struct Numbers {
    bool bf16;
    std::vector<float> full;
    std::vector<std::uint16_t> half;

    Numbers(std::size_t n, bool as_bf16, float scale) : bf16(as_bf16), full(n) {
        std::normal_distribution<float> normal(0.0f, scale);
        for (float& x : full) {
            x = normal(generator);
            if (!bf16) continue;
            std::uint32_t bits;
            std::memcpy(&bits, &x, sizeof bits);
            half.push_back(static_cast<std::uint16_t>(bits >> 16));
            bits &= 0xffff0000u;
            std::memcpy(&x, &bits, sizeof bits);
        }
    }
    const void* data() const { return bf16 ? static_cast<const void*>(half.data()) : full.data(); }
    double operator[](std::size_t i) const { return full[i]; }
};

double silu(double x) { return x / (1.0 + std::exp(-x)); }

using Row = std::vector<double>;

Row linear_row(const Row& x, const Numbers& weight, const Numbers& bias, std::size_t first, std::size_t n) {
    Row y(n);
    for (std::size_t i = 0; i < n; ++i) {
        y[i] = bias[first + i];
        for (std::size_t j = 0; j < x.size(); ++j) y[i] += x[j] * weight[(first + i) * x.size() + j];
    }
    return y;
}

Row modulated(const Row& y, const Row& shift, const Row& scale) {
    double mean = 0.0, square = 0.0;
    for (double v : y) mean += v / y.size();
    for (double v : y) square += (v - mean) * (v - mean) / y.size();
    Row out(y.size());
    for (std::size_t j = 0; j < y.size(); ++j) {
        out[j] = (y[j] - mean) / std::sqrt(square + 1e-6) * (1.0 + scale[j]) + shift[j];
    }
    return out;
}

void compare(const std::string& what, double ours, double exact, double tolerance) {
    if (std::abs(ours - exact) <= tolerance * (1.0 + std::abs(exact))) return;
    if (++failures <= 20) std::printf("%s: %.9g, expected %.9g\n", what.c_str(), ours, exact);
}

double tolerance_of(bool bf16_weights, const std::string& isa) {
    return bf16_weights && kernels(isa_by_name(isa)).halves ? 2e-2 : 1e-4;
}

void check_flow_head(int rows, int channels, int depth, int width, int layers, int evaluations, bool bf16) {
    const std::size_t w = width, c = channels, d = depth;
    const float scale = 0.5f / std::sqrt(static_cast<float>(width));
    const Numbers condition(w * d, bf16, scale), condition_bias(w, bf16, 0.3f), inward(w * c, bf16, 0.5f),
        inward_bias(w, bf16, 0.3f), end(2 * w * w, bf16, scale), end_bias(2 * w, bf16, 0.3f),
        outward(c * w, bf16, scale), outward_bias(c, bf16, 0.3f), time(evaluations * w, bf16, 0.5f);
    struct Block {
        Numbers modulation, modulation_bias, up, up_bias, down, down_bias;
    };
    const NumberFormat format = bf16 ? NumberFormat::bf16 : NumberFormat::fp32;
    std::vector<Block> blocks;
    blocks.reserve(layers);
    std::map<std::string, const Numbers*> named = {
        {"condition.weight", &condition}, {"condition.bias", &condition_bias}, {"inward.weight", &inward},
        {"inward.bias", &inward_bias},    {"modulation.weight", &end},         {"modulation.bias", &end_bias},
        {"outward.weight", &outward},     {"outward.bias", &outward_bias}};
    for (int i = 0; i < layers; ++i) {
        const Block& b = blocks.emplace_back(Block{Numbers(3 * w * w, bf16, scale), Numbers(3 * w, bf16, 0.3f),
                                                   Numbers(w * w, bf16, scale), Numbers(w, bf16, 0.3f),
                                                   Numbers(w * w, bf16, scale), Numbers(w, bf16, 0.3f)});
        const std::string block = "blocks." + std::to_string(i) + ".";
        named.insert({{block + "modulation.weight", &b.modulation},
                      {block + "modulation.bias", &b.modulation_bias},
                      {block + "up.weight", &b.up},
                      {block + "up.bias", &b.up_bias},
                      {block + "down.weight", &b.down},
                      {block + "down.bias", &b.down_bias}});
    }
    const TakeParameter take = [&](const std::string& name, const std::vector<std::int64_t>&) {
        return named.at(name)->full.data();
    };
    const FlowHead packed({channels, depth, width, layers}, take, "", format);
    std::vector<float> moves, times(evaluations * row_stride(width));
    for (int k = 0; k < evaluations; ++k) {
        moves.push_back(k % 2 == 0 ? 0.25f : 0.5f);
        std::copy_n(time.full.data() + k * w, w, times.data() + k * row_stride(width));
    }
    FlowHeadView head = packed.view();
    head.evaluations = evaluations;
    head.moves_per_step = 2;
    head.time = times.data();
    head.moves = moves.data();
    const Numbers conditions(rows * d, bf16, 1.0f), noise(rows * c, false, 1.0f);

    std::vector<Row> exact;
    for (int r = 0; r < rows; ++r) {
        Row input(d), x(c), start;
        for (std::size_t j = 0; j < d; ++j) input[j] = conditions[r * d + j];
        for (std::size_t j = 0; j < c; ++j) x[j] = noise[r * c + j];
        const Row embedded = linear_row(input, condition, condition_bias, 0, w);
        for (int k = 0; k < evaluations; ++k) {
            if (k % 2 == 0) start = x;
            Row m(w);
            for (std::size_t j = 0; j < w; ++j) m[j] = silu(embedded[j] + time[k * w + j]);
            Row y = linear_row(x, inward, inward_bias, 0, w);
            for (const Block& b : blocks) {
                const Row shift = linear_row(m, b.modulation, b.modulation_bias, 0, w);
                const Row factor = linear_row(m, b.modulation, b.modulation_bias, w, w);
                const Row gate = linear_row(m, b.modulation, b.modulation_bias, 2 * w, w);
                Row hidden = linear_row(modulated(y, shift, factor), b.up, b.up_bias, 0, w);
                for (double& h : hidden) h = silu(h);
                const Row change = linear_row(hidden, b.down, b.down_bias, 0, w);
                for (std::size_t j = 0; j < w; ++j) y[j] += gate[j] * change[j];
            }
            const Row shift = linear_row(m, end, end_bias, 0, w), factor = linear_row(m, end, end_bias, w, w);
            const Row velocity = linear_row(modulated(y, shift, factor), outward, outward_bias, 0, c);
            for (std::size_t j = 0; j < c; ++j) x[j] = start[j] + moves[k] * velocity[j];
        }
        exact.push_back(x);
    }
    for (const std::string& isa : supported_isas()) {
        std::vector<float> first;
        // Threads share the rows, or the columns where they have fewer than about ten rows each.
        for (int threads : {1, 3, 7}) {
            std::vector<float> out(rows * c, NAN);
            const FlowHeadCall call{conditions.data(), format, noise.full.data(), out.data(), rows};
            run_flow_head(head, call, threads, isa_by_name(isa));
            if (first.empty()) first = out;
            if (std::memcmp(first.data(), out.data(), out.size() * sizeof(float)) == 0) continue;
            ++failures;
            std::printf("flow_head %s: the division of work changes the result\n", isa.c_str());
        }
        for (int r = 0; r < rows; ++r) {
            for (int j = 0; j < channels; ++j) {
                const std::string what = "flow_head " + isa + " width " + std::to_string(width) + " at " +
                                         std::to_string(r) + ", " + std::to_string(j);
                compare(what, first[r * c + j], exact[r][j], tolerance_of(bf16, isa));
            }
        }
    }
}

}  // namespace

int main() {
    for (bool bf16 : {false, true}) {
        check_flow_head(1, 1, 1, 1, 1, 2, bf16);
        check_flow_head(2, 3, 7, 17, 0, 1, bf16);
        check_flow_head(7, 4, 19, 33, 2, 4, bf16);
        check_flow_head(53, 17, 16, 32, 1, 2, bf16);
        // More inputs than one block of the cache.
        check_flow_head(14, 5, 1027, 33, 0, 1, bf16);
        check_flow_head(3, 5, 40, 129, 1, 45, bf16);
    }
    if (failures) return std::printf("%d mismatches\n", failures), 1;
    std::printf("ok\n");
}
