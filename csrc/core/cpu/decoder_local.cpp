// Decoder `local`: all tokens in one pass, from features of the masked transformer and past frames by convolutions over the
// latent grid and Fourier blocks; enma_fast/models/decoders/local.py.
//
// Legend: N tokens per frame, C channels of a latent place, W width of the convolutions, P past frames.
#include "core/cpu/fourier.h"
#include "core/cpu/one_pass.h"
#include "core/cpu/packer.h"
#include "core/cpu/vector_kernels.h"

namespace enma {

namespace {

constexpr int MOST_LOCAL = 4096;
// With Fourier blocks, one of so many blocks is one, the first among them.
constexpr int FOURIER_EVERY = 3;

struct LocalConfig {
    int width = 64, layers = 4, modes = 0;  // 0: no Fourier blocks
    static constexpr int past = 3;
};

FourierGrid fourier_grid(const LatentGrid& grid, int modes, int width) {
    return {grid.lines, grid.places, modes, width};
}

// Largest number of modes of a grid; 0 where a dimension has walls.
int most_modes(const LatentGrid& grid) {
    if (!grid.ring || (grid.plane && !grid.ring_of_lines)) return 0;
    return ((grid.plane && grid.lines < grid.places ? grid.lines : grid.places) + 1) / 2;
}

// Places of a window of a convolution.
int taps(const LatentGrid& grid) { return grid.plane ? 9 : 3; }

// A block of convolutions, or with a filter a Fourier block, whose gate_up is of single places.
struct LocalBlockView {
    const float* norm;
    LinearView gate_up, down;
    const float* filter;
};

struct LocalHeadView {
    LatentGrid grid;
    int width, channels, past;
    float epsilon;
    LinearView frames;  // of windows of past frames
    const LocalBlockView* blocks;
    int layers;
    const float* norm;
    LinearView read;
    int modes;  // 0: no Fourier blocks
    FourierTables fourier;
};

// Work space: of a team, and of each of its threads.
struct Shared {
    float *frames, *x, *normed[2], *waves, *lines;

    Shared(const LocalHeadView& head, Allocator& memory) {
        const std::size_t places = head.grid.size();
        frames = memory.take<float>(places * head.past * head.channels);
        x = memory.take<float>(places * head.width);
        for (float*& part : normed) part = memory.take<float>(places * head.width);
        const std::size_t fourier = fourier_shared(fourier_grid(head.grid, head.modes, head.width));
        waves = memory.take<float>(fourier);
        lines = memory.take<float>(fourier);
    }
};

struct Own {
    char* gemm;
    float *gathered, *out, *gated, *norm, *fourier;

    Own(const LocalHeadView& head, Allocator& memory) {
        const std::size_t row = std::max(head.width, head.past * head.channels);
        gemm = memory.take<char>(GEMM_SCRATCH);
        gathered = memory.take<float>(GEMM_ROWS * taps(head.grid) * row);
        out = memory.take<float>(std::size_t{GEMM_ROWS} * std::max(2 * head.width, whole_panels(head.channels)));
        gated = memory.take<float>(std::size_t{GEMM_ROWS} * head.width);
        norm = memory.take<float>(RMS_NORM_WORK_ROWS * padded_width(head.width));
        fourier = memory.take<float>(fourier_own(fourier_grid(head.grid, head.modes, head.width)));
    }
};

// Number of the place `offset` beyond `at` of `count`, around them; -1 beyond a wall.
int neighbour(int at, int offset, int count, bool ring) {
    const int place = at + offset;
    if (0 <= place && place < count) return place;
    return ring ? (place + count) % count : -1;
}

// One member's frame, for one thread of the team.
struct Pass {
    const LocalHeadView& head;
    const LatentGrid& grid;
    const Kernels& kernels;
    const VectorKernels& vectors;
    const Own& own;

    // Windows of places [begin, end) of rows of `row` floats.
    void gather(const float* from, int row, int begin, int end) const {
        float* to = own.gathered;
        const int across = grid.plane ? 1 : 0;
        for (int place = begin; place < end; ++place) {
            for (int line = -across; line <= across; ++line) {
                const int x = neighbour(place / grid.places, line, grid.lines, grid.ring_of_lines);
                for (int tap = -1; tap <= 1; ++tap, to += row) {
                    const int y = neighbour(place % grid.places, tap, grid.places, grid.ring);
                    if (x < 0 || y < 0) {
                        std::fill_n(to, row, 0.0f);
                    } else {
                        std::memcpy(to, from + static_cast<std::ptrdiff_t>(x * grid.places + y) * row,
                                    row * sizeof(float));
                    }
                }
            }
        }
    }

    // body(begin, end) for places as many at a time as a product takes.
    template <class Body>
    static void by_tiles(int begin, int end, const Body& body) {
        for (int first = begin; first < end; first += GEMM_ROWS) body(first, std::min(first + GEMM_ROWS, end));
    }

    void linear(const LinearView& linear, const float* a, int rows, float* to) const {
        kernels.linear(linear, a, linear.k, rows, to, whole_panels(linear.n), own.gemm);
    }

    // y = norm(x) of places [begin, end)
    void normalise(const float* x, const float* weight, int begin, int end, float* y) const {
        const int W = head.width;
        const RmsNorm norm{end, W, head.epsilon, weight, 1};
        const RmsNormForward rows{{x, W}, {}, y, nullptr, nullptr};
        vectors.rms_norm.forward(norm, rows, begin, end, own.norm);
    }
};

// tokens [N, patch C] of one member, from features [N, patch W] and past frames [P, N, patch C], by a team of threads
// that divides the places. The bits depend on neither the team nor other members.
void local_head(const LocalHeadView& head, Isa isa, const float* features, const float* past, float* tokens,
                const Member& member, char* shared, char* own) {
    const LatentGrid& grid = head.grid;
    const int W = head.width, C = head.channels, P = head.past, size = grid.size();
    const std::ptrdiff_t frame = static_cast<std::ptrdiff_t>(size) * C;
    Allocator team(shared), alone(own);
    const Shared common(head, team);
    const Own mine(head, alone);
    float *const frames = common.frames, *const x = common.x;
    const Pass pass{head, grid, kernels(isa), vector_kernels(isa), mine};
    const int begin = static_cast<int>(std::int64_t{size} * member.thread / member.threads);
    const int end = static_cast<int>(std::int64_t{size} * (member.thread + 1) / member.threads);
    for (int place = begin; place < end; ++place) {
        for (int p = 0; p < P; ++p) {
            std::memcpy(frames + (static_cast<std::ptrdiff_t>(place) * P + p) * C,
                        past + p * frame + static_cast<std::ptrdiff_t>(grid.part_of(place)) * C, C * sizeof(float));
        }
    }
    wait(member);
    Pass::by_tiles(begin, end, [&](int first, int last) {
        pass.gather(frames, P * C, first, last);
        pass.linear(head.frames, mine.gathered, last - first, x + static_cast<std::ptrdiff_t>(first) * W);
    });
    for (int place = begin; place < end; ++place) {
        const float* from = features + static_cast<std::ptrdiff_t>(grid.part_of(place)) * W;
        float* to = x + static_cast<std::ptrdiff_t>(place) * W;
        for (int j = 0; j < W; ++j) to[j] += from[j];
    }
    const Fourier fourier{
        fourier_grid(grid, head.modes, W), head.fourier, isa, common.waves, common.lines, mine.fourier};
    for (int layer = 0; layer < head.layers; ++layer) {
        const LocalBlockView& block = head.blocks[layer];
        // Two in turns: others may still read the last one.
        float* y = common.normed[layer % 2];
        pass.normalise(x, block.norm, begin, end, y);
        wait(member);
        if (block.filter != nullptr) {
            fourier.to_waves(y, member);
            wait(member);
            fourier.filtered(block.filter, member);
            wait(member);
        }
        Pass::by_tiles(begin, end, [&](int first, int last) {
            if (block.filter != nullptr) {
                pass.linear(block.gate_up, y + static_cast<std::ptrdiff_t>(first) * W, last - first, mine.out);
                fourier.to_places(first, last, mine.gated);
                for (int row = 0; row < last - first; ++row) {
                    float* up = mine.out + (std::ptrdiff_t{2} * row + 1) * W;
                    for (int j = 0; j < W; ++j) up[j] += mine.gated[std::ptrdiff_t{row} * W + j];
                }
            } else {
                pass.gather(y, W, first, last);
                pass.linear(block.gate_up, mine.gathered, last - first, mine.out);
            }
            const Swiglu gate{NumberFormat::fp32, last - first, W, mine.out, 1};
            pass.vectors.swiglu.forward(gate, mine.gated, 0, last - first);
            pass.linear(block.down, mine.gated, last - first, mine.out);
            float* to = x + static_cast<std::ptrdiff_t>(first) * W;
            for (std::ptrdiff_t i = 0; i < static_cast<std::ptrdiff_t>(last - first) * W; ++i) to[i] += mine.out[i];
        });
    }
    float* y = common.normed[head.layers % 2];
    pass.normalise(x, head.norm, begin, end, y);
    const int columns = whole_panels(C);
    Pass::by_tiles(begin, end, [&](int first, int last) {
        pass.linear(head.read, y + static_cast<std::ptrdiff_t>(first) * W, last - first, mine.out);
        for (int place = first; place < last; ++place) {
            const float* before = frames + (static_cast<std::ptrdiff_t>(place) * P + P - 1) * C;
            const float* change = mine.out + static_cast<std::ptrdiff_t>(place - first) * columns;
            float* to = tokens + static_cast<std::ptrdiff_t>(grid.part_of(place)) * C;
            for (int c = 0; c < C; ++c) to[c] = before[c] + change[c];
        }
    });
    wait(member);
}

struct LocalDecoder : Decoder {
    LocalDecoder(const LocalConfig& config, const DecoderShape& shape, const DecoderSlot& slot);
    std::size_t bytes() const override { return weights.size(); }
    int past() const override { return head.past; }
    std::unique_ptr<DecoderSession> session(const SamplerView& model, const SamplerState& state,
                                            const DecoderSettings& settings) const override;

    Buffer weights;
    LinearView noise, features;
    std::vector<LocalBlockView> blocks;
    LocalHeadView head{};
};

LocalDecoder::LocalDecoder(const LocalConfig& config, const DecoderShape& shape, const DecoderSlot& slot) {
    const int W = config.width, C = shape.latent_channels, D = shape.width, count = taps(shape.grid);
    head.grid = shape.grid;
    head.width = W;
    head.channels = C;
    head.past = config.past;
    head.epsilon = slot.epsilon;
    head.modes = config.modes;
    const FourierGrid grid = fourier_grid(shape.grid, config.modes, W);
    weights = packed(slot.take, slot.prefix, slot.format, [&](Packer& pack) {
        // The products of the convolutions are fp32 whatever the weights are; their windows are (line, place, inward).
        const auto exact = [&](const std::vector<float>& weight, const float* bias, int outward, int inward) {
            return pack.linear(weight.data(), bias, outward, inward, NumberFormat::fp32);
        };
        const auto convolution = [&](const std::string& name, int outward, int inward) {
            std::vector<std::int64_t> sizes{outward, inward, 3};
            if (shape.grid.plane) sizes.push_back(3);
            const std::vector<float> given = pack.numbers(name + ".conv.weight", sizes);
            std::vector<float> windows(given.size());
            for (int o = 0; o < outward; ++o) {
                for (int i = 0; i < inward; ++i) {
                    for (int tap = 0; tap < count; ++tap) {
                        windows[(static_cast<std::size_t>(o) * count + tap) * inward + i] =
                            given[(static_cast<std::size_t>(o) * inward + i) * count + tap];
                    }
                }
            }
            return exact(windows, nullptr, outward, count * inward);
        };
        const auto linear = [&](const std::string& name, int outward) {
            return exact(pack.numbers(name + ".weight", {outward, W}), nullptr, outward, W);
        };
        noise = pack.linear("noise", D, shape.channels, false);
        features = pack.linear("features", W * shape.grid.patch(), D);
        head.frames = convolution("frames", W, config.past * C);
        if (config.modes > 0) {
            const std::vector<std::vector<float>> tables = fourier_tables(grid);
            head.fourier = {pack.table(tables[0]), pack.table(tables[1]), pack.table(tables[2]), pack.table(tables[3])};
        }
        blocks.clear();
        for (int i = 0; i < config.layers; ++i) {
            const std::string name = "blocks." + std::to_string(i) + ".";
            LocalBlockView& block = blocks.emplace_back();
            block.norm = pack.vector(name + "norm.weight", W);
            const bool fourier = config.modes > 0 && i % FOURIER_EVERY == 0;
            block.gate_up = fourier ? linear(name + "gate_up", 2 * W) : convolution(name + "gate_up", 2 * W, W);
            block.down = linear(name + "down", W);
            if (!fourier) continue;
            std::vector<std::int64_t> sizes{2, config.modes, W, W};
            if (shape.grid.plane) sizes.insert(sizes.begin() + 1, 2 * config.modes - 1);
            block.filter = pack.table(fourier_filter(pack.numbers(name + "filter", sizes).data(), grid));
        }
        head.norm = pack.vector("norm.weight", W);
        head.read = exact(pack.numbers("read.weight", {C, W}), pack.numbers("read.bias", {C}).data(), C, W);
    });
    head.blocks = blocks.data();
    head.layers = config.layers;
}

struct LocalSession : DecoderSession {
    LocalSession(const LocalDecoder& decoder, const SamplerView& model, const SamplerState& state,
                 const DecoderSettings& settings)
        : decoder(decoder), model(model), state(state), settings(settings) {}

    void take(Allocator& memory) override {
        const std::size_t tokens = static_cast<std::size_t>(settings.rows) * model.tokens;
        features = memory.take<float>(tokens * decoder.features.n);
    }
    WorkBytes work() const override {
        Allocator team(nullptr), alone(nullptr);
        Shared(decoder.head, team);
        Own(decoder.head, alone);
        return {alone.used(), team.used()};
    }
    int counters() const override { return 1; }

    void decide(const Region& region) override {
        const auto convolve = [&](int begin, int end) {
            for (int row = begin; row < end; ++row) {
                const std::ptrdiff_t tokens = static_cast<std::ptrdiff_t>(row) * model.tokens;
                local_head(decoder.head, region.isa, features + tokens * decoder.features.n,
                           state.past + tokens * decoder.head.past * model.channels,
                           state.tokens + tokens * model.channels, region.team, region.shared, region.own);
            }
        };
        decide_in_one_pass(region, model, state, decoder.noise, decoder.features, settings.temperature, features,
                           convolve);
    }

    const LocalDecoder& decoder;
    const SamplerView& model;
    const SamplerState& state;
    DecoderSettings settings;
    float* features = nullptr;  // [B, N, patch W]
};

std::unique_ptr<DecoderSession> LocalDecoder::session(const SamplerView& model, const SamplerState& state,
                                                      const DecoderSettings& settings) const {
    return std::make_unique<LocalSession>(*this, model, state, settings);
}

}  // namespace

MakeDecoder read_local_decoder(Fields& fields, const DecoderShape& shape) {
    LocalConfig config;
    if (!shape.trunk || shape.initial) fields.wrong("kind", "\'local\' needs a trunk, and frames before its own");
    fields.read("width", config.width, 1, MOST_LOCAL);
    fields.read("layers", config.layers);
    fields.read_or_null("modes", config.modes);
    if (std::int64_t{config.past} * shape.latent_channels > MOST ||
        std::int64_t{config.width} * shape.grid.patch() > MOST) {
        fields.wrong("width", text("a convolution or a token has more than ", MOST, " channels"));
    }
    // Products of whole panels of columns.
    if (config.width % PANEL != 0) {
        fields.wrong("width", text("a multiple of ", PANEL, " up to ", MOST_LOCAL, " is expected"));
    }
    if (config.modes > most_modes(shape.grid))
        fields.wrong("modes", text("at most ", most_modes(shape.grid), " can be"));
    return [config, shape](const DecoderSlot& slot) -> std::unique_ptr<const Decoder> {
        return std::make_unique<const LocalDecoder>(config, shape, slot);
    };
}

}  // namespace enma
