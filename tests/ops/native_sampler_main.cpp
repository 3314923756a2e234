// Frames of small random models with every instruction set of this machine: the same bits from any number of threads
// and any division among them, numbers near those of the plain loops, no memory asked for. No Torch and no Python, so
// that sanitizers can watch.
//
// ENMA_TEST_THREADS: threads of its own in place of OpenMP's, whose barriers ThreadSanitizer cannot see, and only the
// kernels that every machine has.
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <deque>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "core/cpu/dispatch.h"
#include "core/cpu/sampler.h"

using namespace enma;

namespace {

std::mt19937 generator(0);
int failures = 0;

#ifdef ENMA_TEST_THREADS
const std::vector<std::string> ISAS = {"scalar"};
#else
const std::vector<std::string> ISAS = [] {
    std::vector<std::string> names = supported_isas();
    // Emulated code is slow; the other one differs from it by what AVX-512 and the plain kernels have too.
    std::erase(names, "emulated_avx512");
    return names;
}();
std::atomic<int> allocations{0};
#endif

struct Shape {
    int tokens, channels, width, heads, hidden, rank, layers;
    bool concat, places, rotary, residual;
    std::vector<int> counts;
    // In one pass, from the frame of this number on.
    bool one_pass = false;
    int first = 1;
    // Lines of tokens that a local head reads, each of patches of 2 places, or of 1 x 2 on a plane; 0: no local head.
    int lines = 0;
    // Of the first block of the local head, over a periodic grid; 0: a block of convolutions.
    int modes = 0;
};

// Rows, groups and frames of every session; the last frame is not fed back.
constexpr int ROWS = 5, GROUPS = 2, SHARED = 3, MADE = 3;

struct {
    int threads;
    Teams teams;
} constexpr DIVISIONS[] = {{1, Teams::one}, {2, Teams::each}, {3, Teams::one}};

// Random numbers in memory of exactly their size, in bf16 as the upper halves.
class Numbers {
   public:
    explicit Numbers(bool bf16) : bf16_(bf16) {}

    const void* draw(std::size_t n, float scale) {
        const float* full = draw_full(n, scale);
        if (!bf16_) return full;
        std::vector<std::uint16_t>& half = half_.emplace_back(n);
        for (std::size_t i = 0; i < n; ++i) {
            std::uint32_t bits;
            std::memcpy(&bits, full + i, sizeof bits);
            half[i] = static_cast<std::uint16_t>(bits >> 16);
        }
        return half.data();
    }
    // [n, k]
    const void* weight(std::size_t n, std::size_t k) { return draw(n * k, 0.7f / std::sqrt(static_cast<float>(k))); }
    const float* draw_full(std::size_t n, float scale) {
        std::normal_distribution<float> normal(0.0f, scale);
        std::vector<float>& full = full_.emplace_back(n);
        for (float& x : full) x = normal(generator);
        return full.data();
    }

   private:
    bool bf16_;
    std::deque<std::vector<float>> full_;
    std::deque<std::vector<std::uint16_t>> half_;
};

FlowHeadWeights head_weights(const Shape& s, Numbers& numbers, int evaluations) {
    const std::size_t W = 24, C = s.channels;
    FlowHeadWeights w{s.channels,
                      s.width,
                      static_cast<int>(W),
                      evaluations,
                      1,
                      NumberFormat::fp32,
                      numbers.weight(W, s.width),
                      numbers.draw(W, 0.3f),
                      numbers.weight(W, C),
                      numbers.draw(W, 0.3f),
                      {},
                      numbers.weight(2 * W, W),
                      numbers.draw(2 * W, 0.3f),
                      numbers.weight(C, W),
                      numbers.draw(C, 0.3f),
                      numbers.draw(evaluations * W, 0.5f),
                      std::vector<float>(evaluations, 1.0f / evaluations)};
    w.blocks.push_back({numbers.weight(3 * W, W), numbers.draw(3 * W, 0.3f), numbers.weight(W, W),
                        numbers.draw(W, 0.3f), numbers.weight(W, W), numbers.draw(W, 0.3f)});
    return w;
}

LocalHeadWeights local_weights(const Shape& s, Numbers& numbers) {
    const bool plane = s.lines > 1;
    const std::size_t W = 16, C = s.channels / 2, past = 2, taps = plane ? 9 : 3;
    LocalHeadWeights w{};
    w.grid = {s.lines, s.tokens / s.lines * 2, plane, plane, !plane || s.modes > 0, 1, 2};
    w.modes = s.modes;
    w.width = static_cast<int>(W), w.channels = static_cast<int>(C), w.past = static_cast<int>(past);
    w.frames = numbers.weight(W, taps * past * C);
    for (int i = 0; i < 2; ++i) {
        const bool fourier = i == 0 && s.modes > 0;
        w.blocks.push_back({numbers.draw(W, 1.0f), numbers.weight(2 * W, (fourier ? 1 : taps) * W),
                            numbers.weight(W, W),
                            fourier ? numbers.weight(fourier_grid(w.grid, s.modes, W).filter_size() / W, W) : nullptr});
    }
    w.norm = numbers.draw(W, 1.0f), w.read_weight = numbers.weight(C, W), w.read_bias = numbers.draw(C, 0.3f);
    return w;
}

SamplerWeights sampler_weights(const Shape& s, Numbers& numbers, int frames, const LocalHeadWeights& local) {
    const std::size_t D = s.width, C = s.channels, N = s.tokens, K = D / s.heads, H = s.hidden;
    const auto blocks = [&] {
        std::vector<BlockWeights> made;
        for (int i = 0; i < s.layers; ++i) {
            made.push_back({numbers.draw(D, 1.0f), numbers.weight(3 * D, D), numbers.draw(K, 1.0f),
                            numbers.draw(K, 1.0f), numbers.weight(D, D), numbers.draw(D, 1.0f),
                            numbers.weight(2 * H, D), numbers.weight(D, H)});
        }
        return made;
    };
    SamplerWeights w{};
    w.tokens = s.tokens, w.channels = s.channels, w.width = s.width, w.heads = s.heads, w.hidden = s.hidden;
    w.rank = s.rank > 0 ? s.rank : 1;
    w.concat = s.concat;
    w.epsilon = 1e-5f;
    w.embed_weight = numbers.weight(D, C), w.embed_bias = numbers.draw(D, 0.3f), w.start = numbers.draw(2 * D, 1.0f);
    w.causal = blocks();
    if (s.rank > 0) {
        w.narrow = numbers.weight(s.rank, D);
        w.wide_weight = numbers.weight(2 * D, s.rank), w.wide_bias = numbers.draw(2 * D, 0.3f);
    }
    w.masked_embed_weight = numbers.weight(D, C), w.masked_embed_bias = numbers.draw(D, 0.3f);
    w.mask = numbers.draw(D, 1.0f);
    w.masked = blocks();
    w.final_norm = numbers.draw(D, 1.0f);
    if (s.residual) w.moments_weight = numbers.weight(2 * C, D), w.moments_bias = numbers.draw(2 * C, 0.3f);
    if (s.one_pass) {
        w.noise = numbers.weight(D, C);
        w.read_weight = numbers.weight(C, D), w.read_bias = numbers.draw(C, 0.3f);
    }
    if (s.lines > 0) {
        w.local = &local;
        w.read_weight = numbers.weight(2 * local.width, D), w.read_bias = numbers.draw(2 * local.width, 0.3f);
    }
    if (s.places) w.places = numbers.draw_full(N * D, 1.0f);
    w.rotary_frames = frames;
    if (s.rotary) {
        const std::size_t rows = N * (s.concat ? 2 : 1);
        w.cosines = numbers.draw_full(frames * N * K / 2, 1.0f), w.sines = numbers.draw_full(frames * N * K / 2, 1.0f);
        w.masked_cosines = numbers.draw_full(rows * K / 2, 1.0f);
        w.masked_sines = numbers.draw_full(rows * K / 2, 1.0f);
    }
    return w;
}

// A sampler, and two flow heads that the mask steps take in turn.
struct Model {
    Shape shape;
    Numbers numbers;
    FlowHeadWeights first, second;
    LocalHeadWeights local;
    SamplerWeights weights;
    FlowHead heads[2];
    Sampler sampler;

    Model(const Shape& s, bool bf16, int frames)
        : shape(s),
          numbers(bf16),
          first(head_weights(s, numbers, 3)),
          second(head_weights(s, numbers, 1)),
          local(s.lines > 0 ? local_weights(s, numbers) : LocalHeadWeights{}),
          weights(sampler_weights(s, numbers, frames, local)),
          heads{FlowHead(of_type(first, bf16)), FlowHead(of_type(second, bf16))},
          sampler(of_type(weights, bf16)) {}

    template <class Weights>
    static const Weights& of_type(Weights& weights, bool bf16) {
        weights.format = bf16 ? NumberFormat::bf16 : NumberFormat::fp32;
        return weights;
    }
    SamplerSettings settings(int own_frames, int threads, Isa isa, Teams teams) const {
        std::vector<const FlowHead*> taken;
        for (std::size_t i = 0; i < shape.counts.size(); ++i) taken.push_back(&heads[i % 2]);
        return {ROWS, GROUPS, SHARED, own_frames, shape.counts, taken, 0.7f, threads, isa, teams};
    }
};

void prepare(SamplerSession& session, const std::vector<float>& history, int first) {
    const std::uint32_t seeds[ROWS] = {1, 1, 2, 2, 2}, members[ROWS] = {0, 1, 0, 1, 7};
    const int groups[ROWS] = {1, 0, 0, 1, 1};
    session.reset();
    session.start_segment(0);
    session.start_segment(1);
    session.read(history.data());
    session.begin(seeds, members, groups, first);
}

std::vector<float> frames_of(SamplerSession& session, const std::vector<float>& history, int number) {
    const std::size_t size = static_cast<std::size_t>(ROWS) * session.model().tokens * session.model().channels;
    std::vector<float> all;
    prepare(session, history, number);
    for (int t = 0; t < MADE; ++t) {
        std::vector<float> frame(size, NAN);
        session.frame(frame.data(), t + 1 == MADE);
        all.insert(all.end(), frame.begin(), frame.end());
    }
    return all;
}

void check(const Shape& shape, bool bf16) {
    const Model model(shape, bf16, SHARED + MADE);
    std::vector<float> history(static_cast<std::size_t>(GROUPS) * shape.tokens * shape.channels), plain;
    std::normal_distribution<float> normal;
    for (float& x : history) x = normal(generator);
    for (const std::string& isa : ISAS) {
        const std::string what = isa + (bf16 ? ", bf16, " : ", fp32, ") + std::to_string(shape.tokens) + " tokens of " +
                                 std::to_string(shape.channels) + ", width " + std::to_string(shape.width);
        std::vector<float> first;
        // Emulated vectors take ten times as long; the real ones, of the same template, show that divisions agree.
        const bool emulated = isa.find("emulated") != std::string::npos;
        for (const auto& division : DIVISIONS) {
            if (emulated && division.teams != Teams::each) continue;
            SamplerSession session(model.sampler,
                                   model.settings(MADE - 1, division.threads, isa_by_name(isa), division.teams));
            const std::vector<float> frames = frames_of(session, history, shape.first);
            if (first.empty()) first = frames;
            if (std::memcmp(first.data(), frames.data(), frames.size() * sizeof(float)) == 0) continue;
            ++failures;
            std::printf("%s: %d threads change the result\n", what.c_str(), division.threads);
        }
        if (plain.empty()) plain = first;
        // Rounding of the inputs to bf16 is an error of 2^-9 in each of some ten products.
        const double allowed = bf16 && kernels(isa_by_name(isa)).halves ? 0.1 : 1e-3;
        double most = 0.0, worst = 0.0;
        // Differences grow from frame to frame; these are of the first.
        for (std::size_t i = 0; i < first.size() / MADE; ++i) {
            most = std::fmax(most, std::fabs(plain[i]));
            const double error = std::fabs(first[i] - plain[i]);
            worst = error <= worst ? worst : error;
        }
        bool finite = true;
        for (float x : first) finite = finite && std::isfinite(x);
        if (!finite || !(worst <= allowed * most)) {
            ++failures;
            std::printf("%s: error %g beside %g, or not finite\n", what.c_str(), worst, most);
        }
    }
}

#ifdef ENMA_TEST_THREADS
void check_allocations(const Shape&) {}
#else
// 100 frames after the first one, which starts the threads.
void check_allocations(const Shape& shape) {
    constexpr int FRAMES = 101;
    const Model model(shape, true, SHARED + FRAMES);
    const std::vector<float> history(static_cast<std::size_t>(GROUPS) * shape.tokens * shape.channels, 0.5f);
    std::vector<float> out(static_cast<std::size_t>(ROWS) * shape.tokens * shape.channels);
    for (Teams teams : {Teams::one, Teams::each}) {
        for (int threads : {1, 3}) {
            const int before = allocations;
            SamplerSession session(model.sampler, model.settings(FRAMES, threads, best_isa(), teams));
            if (allocations == before) ++failures, std::printf("allocations are not counted\n");
            prepare(session, history, shape.first);
            session.frame(out.data(), false);
            const int counted = allocations;
            for (int t = 1; t < FRAMES; ++t) session.frame(out.data(), false);
            if (allocations == counted) continue;
            ++failures;
            std::printf("%d threads: %d allocations in 100 frames\n", threads, allocations - counted);
        }
    }
}
#endif

}  // namespace

#ifdef ENMA_TEST_THREADS
namespace enma {
const Kernels kernels_avx2{}, kernels_avx512{}, kernels_avx512_bf16{};
}
// The linker gives it the calls of enma::detail::parallel.
extern "C" void __wrap__ZN4enma6detail8parallelEiPFvPviiES1_(int threads, void (*body)(void*, int, int), void* data) {
    std::vector<std::thread> others;
    for (int i = 1; i < threads; ++i) others.emplace_back(body, data, i, threads);
    body(data, 0, threads);
    for (std::thread& other : others) other.join();
}
#else
// AddressSanitizer calls it at every allocation of the process.
extern "C" int __sanitizer_install_malloc_and_free_hooks(void (*)(const volatile void*, std::size_t),
                                                         void (*)(const volatile void*));
#endif

int main(int argc, char** argv) {
    // Of its two parts, frames and allocations, the one that is named, or both.
    const std::string only = argc > 1 ? argv[1] : "";
#ifndef ENMA_TEST_THREADS
    __sanitizer_install_malloc_and_free_hooks([](const volatile void*, std::size_t) { ++allocations; },
                                              [](const volatile void*) {});
#endif
    // Head dims 4, 16 and 20; more columns than a piece of a product; one layer, which is first and last; one pass
    // with and without a frame 0 in mask steps, with more channels than a piece, and by a local head on a
    // line and on a plane, with and without a Fourier block.
    const Shape shapes[] = {
        {5, 3, 20, 5, 27, 3, 2, true, true, false, false, {2, 1, 2}},
        {16, 4, 64, 4, 96, 0, 2, false, false, true, true, {3, 7, 6}},
        {1, 17, 40, 2, 130, 5, 2, true, false, true, true, {1}},
        {5, 2, 140, 7, 200, 0, 1, false, true, false, false, {4, 1}},
        {16, 5, 80, 4, 33, 24, 3, true, false, true, false, {16}},
        {5, 3, 20, 5, 27, 3, 2, true, true, false, false, {}, true},
        {16, 4, 64, 4, 96, 0, 2, false, false, true, true, {3, 7, 6}, true, 0},
        {3, 150, 40, 2, 50, 0, 1, true, false, true, false, {}, true},
        {5, 6, 20, 5, 27, 0, 2, false, false, true, false, {}, true, 1, 1},
        {12, 4, 40, 2, 50, 3, 1, true, true, false, true, {5, 7}, true, 0, 3},
        {5, 6, 20, 5, 27, 0, 2, false, false, true, false, {}, true, 1, 1, 4},
        {12, 4, 40, 2, 50, 3, 1, true, true, false, true, {}, true, 1, 3, 2},
    };
    if (only != "allocations") {
        for (const Shape& shape : shapes) {
            for (bool bf16 : {false, true}) check(shape, bf16);
        }
    }
    if (only != "frames") {
        for (int i : {0, 1, 5, 6, 9, 11}) check_allocations(shapes[i]);
    }
    if (failures != 0) return std::printf("%d failures\n", failures), 1;
    std::printf("ok\n");
    return 0;
}
