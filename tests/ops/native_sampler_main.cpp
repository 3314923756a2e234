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
#include <map>
#include <memory>
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
const std::vector<std::string> ISAS = supported_isas();
std::atomic<int> allocations{0};
#endif

struct Shape {
    int tokens, channels, width, heads, hidden, rank, layers;
    bool concat, places, rotary;
    // Of frames after the first, and of frame 0, as a config has them; mask steps of a flow.
    std::string step, initial = "";
    int mask_steps = 1;
    // Number of the first frame that is made.
    int first = 1;
    // Lines of tokens, each of patches of 2 places, or of 1 x 2 on a plane, which is periodic or not.
    int lines = 1;
    bool ring = false;
};

// Rows, groups and frames of every session; the last frame is not fed back.
constexpr int ROWS = 5, GROUPS = 2, SHARED = 3, MADE = 3;

// Alone, each with members of its own, and all of them on the same members.
constexpr int THREADS[] = {1, ROWS, 3};

// Parameters of any name and shape, in memory of exactly their size.
class Numbers {
   public:
    const float* take(const std::string& name, const std::vector<std::int64_t>& sizes) {
        std::vector<float>& found = given_[name];
        if (!found.empty()) return found.data();
        const bool weight = name.ends_with(".weight") && sizes.size() > 1;
        std::size_t count = 1, inward = 1;
        for (const std::int64_t n : sizes) count *= n;
        for (std::size_t i = 1; i < sizes.size(); ++i) inward *= sizes[i];
        // A filter is [2, .., W, W].
        if (name.ends_with("filter")) inward = sizes.back();
        const bool sums = weight || name.ends_with("filter");
        std::normal_distribution<float> normal(0.0f, sums ? 0.7f / std::sqrt(static_cast<float>(inward)) : 0.5f);
        found.resize(count);
        for (float& x : found) x = normal(generator);
        return found.data();
    }

   private:
    std::map<std::string, std::vector<float>> given_;
};

std::vector<float> drawn(std::size_t count) {
    std::normal_distribution<float> normal;
    std::vector<float> out(count);
    for (float& x : out) x = normal(generator);
    return out;
}

MakeDecoder decoder(const std::string& config, const DecoderShape& shape) {
    if (config.empty()) return {};
    return read_decoder(Fields(Json::parse(config, "decoder"), "decoder"), shape);
}

struct Model {
    Shape shape;
    Numbers numbers;
    std::shared_ptr<const std::vector<float>> turns;
    std::shared_ptr<const Sampler> sampler;

    Model(const Shape& s, bool bf16, int frames) : shape(s) {
        const std::size_t turned = s.rotary ? s.width / s.heads / 2 : 0;
        const std::size_t rows = static_cast<std::size_t>(s.tokens) * (s.concat ? 2 : 1);
        const SamplerShape sizes{
            {s.tokens, s.channels, s.width, s.heads, s.hidden, s.rank, s.layers, s.layers, s.concat, 1e-5f},
            drawn(s.places ? s.tokens * s.width : 0),
            drawn(2 * rows * turned)};
        if (turned > 0) {
            turns = std::make_shared<const std::vector<float>>(
                drawn(2 * static_cast<std::size_t>(frames) * s.tokens * turned));
        }
        const bool plane = s.lines > 1;
        DecoderShape of{s.tokens,      s.channels,
                        s.width,       true,
                        true,          {s.lines, s.tokens / s.lines * 2, plane, plane && s.ring, s.ring, 1, 2},
                        s.channels / 2};
        const MakeDecoder initial = decoder(s.initial, of);
        of.initial = false;
        const TakeParameter take = [this](const std::string& name, const std::vector<std::int64_t>& shape) {
            return numbers.take(name, shape);
        };
        sampler = std::make_shared<const Sampler>(sizes, take, bf16 ? NumberFormat::bf16 : NumberFormat::fp32, initial,
                                                  decoder(s.step, of));
    }

    std::unique_ptr<SamplerSession> session(int own_frames, int threads, Isa isa) const {
        const SamplerSettings settings{
            {shape.mask_steps, 2, 0.7f, ROWS, threads, isa}, GROUPS, SHARED, own_frames, shape.first};
        return std::make_unique<SamplerSession>(sampler, turns, settings);
    }
};

void prepare(SamplerSession& session, const std::vector<float>& history) {
    const std::uint32_t seeds[ROWS] = {1, 1, 2, 2, 2}, members[ROWS] = {0, 1, 0, 1, 7};
    const int groups[ROWS] = {1, 0, 0, 1, 1};
    session.reset();
    session.start_segment(0);
    session.start_segment(1);
    session.read(history.data());
    session.begin(seeds, members, groups);
}

std::vector<float> frames_of(SamplerSession& session, const std::vector<float>& history) {
    const std::size_t size = static_cast<std::size_t>(ROWS) * session.tokens() * session.channels();
    std::vector<float> all;
    prepare(session, history);
    for (int t = 0; t < MADE; ++t) {
        std::vector<float> frame(size, NAN);
        session.frame(frame.data(), t + 1 == MADE);
        all.insert(all.end(), frame.begin(), frame.end());
    }
    return all;
}

void check(const Shape& shape, bool bf16) {
    const Model model(shape, bf16, SHARED + MADE);
    const std::vector<float> history = drawn(static_cast<std::size_t>(GROUPS) * shape.tokens * shape.channels);
    std::vector<float> plain;
    for (const std::string& isa : ISAS) {
        const std::string what = isa + (bf16 ? ", bf16, " : ", fp32, ") + std::to_string(shape.tokens) + " tokens of " +
                                 std::to_string(shape.channels) + ", width " + std::to_string(shape.width);
        std::vector<float> first;
        for (const int threads : THREADS) {
            const std::unique_ptr<SamplerSession> session = model.session(MADE - 1, threads, isa_by_name(isa));
            const std::vector<float> frames = frames_of(*session, history);
            if (first.empty()) first = frames;
            if (std::memcmp(first.data(), frames.data(), frames.size() * sizeof(float)) == 0) continue;
            ++failures;
            std::printf("%s: %d threads change the result\n", what.c_str(), threads);
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
// 100 frames after the first one, which starts the threads; fewer by several threads, which wait for each other.
void check_allocations(const Shape& shape) {
    constexpr int FRAMES = 101, FEW = 13;
    const Model model(shape, true, SHARED + FRAMES);
    const std::vector<float> history(static_cast<std::size_t>(GROUPS) * shape.tokens * shape.channels, 0.5f);
    std::vector<float> out(static_cast<std::size_t>(ROWS) * shape.tokens * shape.channels);
    for (const int threads : THREADS) {
        const int before = allocations;
        const std::unique_ptr<SamplerSession> made = model.session(FRAMES, threads, best_isa());
        SamplerSession& session = *made;
        if (allocations == before) ++failures, std::printf("allocations are not counted\n");
        prepare(session, history);
        session.frame(out.data(), false);
        const int counted = allocations;
        const int frames = threads == 1 ? FRAMES : FEW;
        for (int t = 1; t < frames; ++t) session.frame(out.data(), false);
        if (allocations == counted) continue;
        ++failures;
        std::printf("%d threads: %d allocations in %d frames\n", threads, allocations - counted, frames - 1);
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
    const std::string flow = R"({"kind": "flow", "width": 24, "layers": 1, "time_features": 8})";
    const std::string residual =
        R"({"kind": "flow", "width": 24, "layers": 1, "time_features": 8, "target": "residual"})";
    const std::string linear = R"({"kind": "linear"})";
    const std::string local = R"({"kind": "local", "width": 16, "layers": 2})";
    const auto waves = [](const char* modes) {
        return R"({"kind": "local", "width": 16, "layers": 2, "modes": )" + std::string(modes) + "}";
    };
    const Shape shapes[] = {
        {5, 3, 20, 5, 27, 3, 2, true, true, false, flow, "", 3},
        {16, 4, 64, 4, 96, 0, 2, false, false, true, residual, "", 3},
        {1, 17, 40, 2, 130, 5, 2, true, false, true, residual, "", 1},
        {5, 2, 140, 7, 200, 0, 1, false, true, false, flow, "", 2},
        {16, 5, 80, 4, 33, 24, 3, true, false, true, flow, "", 1},
        {5, 3, 20, 5, 27, 3, 2, true, true, false, linear},
        {16, 4, 64, 4, 96, 0, 2, false, false, true, linear, residual, 3, 0},
        {3, 150, 40, 2, 50, 0, 1, true, false, true, linear},
        {5, 6, 20, 5, 27, 0, 2, false, false, true, local},
        {12, 4, 40, 2, 50, 3, 1, true, true, false, local, residual, 2, 0, 3},
        {5, 6, 20, 5, 27, 0, 2, false, false, true, waves("4"), "", 1, 1, 1, true},
        {12, 4, 40, 2, 50, 3, 1, true, true, false, waves("2"), "", 1, 1, 3, true},
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
