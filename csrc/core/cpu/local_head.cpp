#include "core/cpu/local_head.h"

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "core/cpu/allocator.h"
#include "core/cpu/parallel.h"
#include "core/cpu/vector_kernels.h"

namespace enma {

namespace {

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
        gathered = memory.take<float>(GEMM_ROWS * head.grid.taps() * row);
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
        const RmsNorm norm{NumberFormat::fp32, NumberFormat::fp32, end, W, head.epsilon, weight, 1};
        const RmsNormForward rows{{x, W}, {}, y, nullptr, nullptr};
        vectors.rms_norm.forward(norm, rows, begin, end, own.norm);
    }
};

}  // namespace

std::vector<float> local_windows(const void* weight, int outward, int inward, int count, NumberFormat format) {
    std::vector<float> out(static_cast<std::size_t>(outward) * inward * count);
    for (int o = 0; o < outward; ++o) {
        for (int i = 0; i < inward; ++i) {
            for (int tap = 0; tap < count; ++tap) {
                const std::ptrdiff_t from = (static_cast<std::ptrdiff_t>(o) * inward + i) * count + tap;
                out[(static_cast<std::size_t>(o) * count + tap) * inward + i] = stored(weight, from, format);
            }
        }
    }
    return out;
}

LatentGrid latent_grid(const std::vector<std::int64_t>& grid, const std::vector<std::int64_t>& patch,
                       const std::vector<bool>& periodic) {
    const bool plane = grid.size() == 2;
    const auto first = [&](const std::vector<std::int64_t>& sizes) { return plane ? static_cast<int>(sizes[0]) : 1; };
    return {first(grid),  static_cast<int>(grid.back()), plane, plane && periodic[0], periodic.back(),
            first(patch), static_cast<int>(patch.back())};
}

std::size_t local_head_shared_bytes(const LocalHeadView& head) {
    Allocator count(nullptr);
    Shared(head, count);
    return count.used();
}

std::size_t local_head_own_bytes(const LocalHeadView& head) {
    Allocator count(nullptr);
    Own(head, count);
    return count.used();
}

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

}  // namespace enma
