#include "core/cpu/local_head.h"

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "core/cpu/parallel.h"
#include "core/cpu/vector_kernels.h"

namespace enma {

namespace {

constexpr int KERNEL = 3;

int taps(const LatentGrid& grid) { return grid.plane ? KERNEL * KERNEL : KERNEL; }

// Floats of a row of products: whole panels.
int columns_of(int width) { return (width + PANEL - 1) / PANEL * PANEL; }

std::size_t lines_of(std::size_t floats) { return (floats * sizeof(float) + 63) / 64 * 64; }

float* take(char*& memory, std::size_t floats) {
    float* part = reinterpret_cast<float*>(memory);
    memory += lines_of(floats);
    return part;
}

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
    char* scratch;
    float *gathered, *out, *work;

    // Windows of places [begin, end) of rows of `row` floats.
    void gather(const float* from, int row, int begin, int end) const {
        float* to = gathered;
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
        kernels.linear(linear, a, linear.k, rows, to, columns_of(linear.n), scratch);
    }

    // y = norm(x) of places [begin, end)
    void normalise(const float* x, const float* weight, int begin, int end, float* y) const {
        const int W = head.width;
        const RmsNorm norm{false, false, end, W, head.epsilon, weight, 1};
        const RmsNormForward rows{{x, W}, {}, y, nullptr, nullptr};
        vectors.rms_norm.forward(norm, rows, begin, end, work);
    }
};

}  // namespace

std::vector<float> local_windows(const void* weight, int outward, int inward, bool plane, bool bf16) {
    const int count = plane ? KERNEL * KERNEL : KERNEL;
    std::vector<float> out(static_cast<std::size_t>(outward) * inward * count);
    for (int o = 0; o < outward; ++o) {
        for (int i = 0; i < inward; ++i) {
            for (int tap = 0; tap < count; ++tap) {
                const std::ptrdiff_t from = (static_cast<std::ptrdiff_t>(o) * inward + i) * count + tap;
                out[(static_cast<std::size_t>(o) * count + tap) * inward + i] = stored(weight, from, bf16);
            }
        }
    }
    return out;
}

std::size_t local_head_shared_bytes(const LocalHeadView& head) {
    const std::size_t places = head.grid.size();
    return lines_of(places * head.past * head.channels) + 3 * lines_of(places * head.width);
}

std::size_t local_head_own_bytes(const LocalHeadView& head) {
    const int row = std::max(head.width, head.past * head.channels);
    const std::size_t columns = std::max(2 * head.width, columns_of(head.channels));
    return GEMM_SCRATCH + lines_of(static_cast<std::size_t>(GEMM_ROWS) * taps(head.grid) * row) +
           lines_of(GEMM_ROWS * columns) + lines_of(GEMM_ROWS * static_cast<std::size_t>(head.width)) +
           lines_of(RMS_NORM_WORK_ROWS * padded_width(head.width));
}

void local_head(const LocalHeadView& head, Isa isa, const float* features, const float* past, float* tokens,
                const Member& member, char* shared, char* own) {
    const LatentGrid& grid = head.grid;
    const int W = head.width, C = head.channels, P = head.past, size = grid.size(), parts = grid.patch();
    const std::ptrdiff_t frame = static_cast<std::ptrdiff_t>(size) * C;
    float *frames = take(shared, frame * P), *x = take(shared, static_cast<std::size_t>(size) * W);
    float* normed[2] = {take(shared, static_cast<std::size_t>(size) * W),
                        take(shared, static_cast<std::size_t>(size) * W)};
    Pass pass{head, grid, kernels(isa), vector_kernels(isa), own, nullptr, nullptr, nullptr};
    own += GEMM_SCRATCH;
    const int row = std::max(W, P * C);
    pass.gathered = take(own, static_cast<std::size_t>(GEMM_ROWS) * taps(grid) * row);
    pass.out = take(own, static_cast<std::size_t>(GEMM_ROWS) * std::max(2 * W, columns_of(C)));
    float* gated = take(own, static_cast<std::size_t>(GEMM_ROWS) * W);
    pass.work = take(own, RMS_NORM_WORK_ROWS * padded_width(W));
    const int begin = static_cast<int>(std::int64_t{size} * member.thread / member.threads);
    const int end = static_cast<int>(std::int64_t{size} * (member.thread + 1) / member.threads);
    // Number of a place among the parts of all tokens.
    const auto part_of = [&](int place) {
        const int line = place / grid.places, at = place % grid.places, along = grid.places / grid.patch_places;
        const int token = line / grid.patch_lines * along + at / grid.patch_places;
        return token * parts + line % grid.patch_lines * grid.patch_places + at % grid.patch_places;
    };
    for (int place = begin; place < end; ++place) {
        for (int p = 0; p < P; ++p) {
            std::memcpy(frames + (static_cast<std::ptrdiff_t>(place) * P + p) * C,
                        past + p * frame + static_cast<std::ptrdiff_t>(part_of(place)) * C, C * sizeof(float));
        }
    }
    wait(member);
    Pass::by_tiles(begin, end, [&](int first, int last) {
        pass.gather(frames, P * C, first, last);
        pass.linear(head.frames, pass.gathered, last - first, x + static_cast<std::ptrdiff_t>(first) * W);
    });
    for (int place = begin; place < end; ++place) {
        const float* from = features + static_cast<std::ptrdiff_t>(part_of(place)) * W;
        float* to = x + static_cast<std::ptrdiff_t>(place) * W;
        for (int j = 0; j < W; ++j) to[j] += from[j];
    }
    for (int layer = 0; layer < head.layers; ++layer) {
        const LocalBlockView& block = head.blocks[layer];
        // Two in turns: others may still read the last one.
        float* y = normed[layer % 2];
        pass.normalise(x, block.norm, begin, end, y);
        wait(member);
        Pass::by_tiles(begin, end, [&](int first, int last) {
            pass.gather(y, W, first, last);
            pass.linear(block.gate_up, pass.gathered, last - first, pass.out);
            const Swiglu gate{false, last - first, W, pass.out, 1};
            pass.vectors.swiglu.forward(gate, gated, 0, last - first);
            pass.linear(block.down, gated, last - first, pass.out);
            float* to = x + static_cast<std::ptrdiff_t>(first) * W;
            for (std::ptrdiff_t i = 0; i < static_cast<std::ptrdiff_t>(last - first) * W; ++i) to[i] += pass.out[i];
        });
    }
    float* y = normed[head.layers % 2];
    pass.normalise(x, head.norm, begin, end, y);
    const int columns = columns_of(C);
    Pass::by_tiles(begin, end, [&](int first, int last) {
        pass.linear(head.read, y + static_cast<std::ptrdiff_t>(first) * W, last - first, pass.out);
        for (int place = first; place < last; ++place) {
            const float* before = frames + (static_cast<std::ptrdiff_t>(place) * P + P - 1) * C;
            const float* change = pass.out + static_cast<std::ptrdiff_t>(place - first) * columns;
            float* to = tokens + static_cast<std::ptrdiff_t>(part_of(place)) * C;
            for (int c = 0; c < C; ++c) to[c] = before[c] + change[c];
        }
    });
    wait(member);
}

}  // namespace enma
