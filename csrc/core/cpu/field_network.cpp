#include "core/cpu/field_network.h"

#include <algorithm>
#include <atomic>

namespace enma {

namespace {

// Tiles that weights pass by at least, where there are rows enough; measured.
constexpr int FEWEST_TILES = 32;

}  // namespace

FieldNetwork::FieldNetwork(const FieldNetworkShape& shape, const TakeParameter& take, const std::string& prefix)
    : shape_(shape),
      fine_(shape.grid, shape.config.block, shape.config.middle_layers > 0 ? 2 : 1),
      coarse_(GridBlocks(shape.grid, 2 * shape.config.block).tiles()),
      inward_(fine_.inward(shape.inward) + shape.config.noise) {
    const FieldConfig& config = shape.config;
    const int axes = static_cast<int>(shape.grid.size()), W = config.width, across = fine_.across();
    const int half = config.middle_layers > 0 ? (config.layers + 1) / 2 : config.layers;
    for (int place = 0; config.middle_layers > 0 && place < coarse_.places(); ++place) {
        for (int q = 0; q < power(2, axes); ++q) {
            const GridPlace at = in_block(axes, place, across / 2, q, 2);
            parts_.push_back(at.first * across + at.last);
        }
    }
    packed_ = packed(take, prefix, NumberFormat::fp32, [&](Packer& pack) {
        const GridPacker layers{pack, axes};
        stem_ = layers.convolution("stem", W, inward_);
        first_ = layers.stack("first", half, W, shape.condition);
        if (config.middle_layers > 0) {
            coarsen_ = layers.linear("coarsen", config.middle_width, W, 1, power(2, axes));
            middle_ = layers.stack("middle", config.middle_layers, config.middle_width, shape.condition);
            refine_ = layers.linear("refine", W, config.middle_width, power(2, axes), 1);
        }
        last_ = layers.stack("last", config.layers - half, W, shape.condition);
        scale_ = pack.table(GridPacker::padded(pack.numbers("scale", {W})));
        head_ = layers.linear("head", shape.outward * fine_.points_of_block(), W);
    });
}

int FieldNetwork::together() const { return std::max(1, FEWEST_TILES / fine_.tiles().tiles()); }

struct FieldNetwork::Work {
    Work(const FieldNetwork& network, Allocator& memory)
        : rows(memory.take<float>(fine(network) * whole_panels(network.shape_.config.width))),
          coarse(memory.take<float>(std::size_t{1} * network.together() * network.coarse_.places() * middle(network))),
          layers(memory, static_cast<int>(network.shape_.grid.size()), fine(network), widest(network),
                 std::max({network.head_.n, network.coarsen_.k, network.refine_.n, widest(network)}),
                 network.together()) {}

    static std::size_t fine(const FieldNetwork& network) {
        return static_cast<std::size_t>(network.together()) * network.fine_.places();
    }
    static int middle(const FieldNetwork& network) {
        return network.middle_.empty() ? 0 : whole_panels(network.shape_.config.middle_width);
    }
    static int widest(const FieldNetwork& network) {
        return std::max({network.stem_row(), whole_panels(network.shape_.config.width), middle(network)});
    }

    float *rows, *coarse;
    GridWork layers;
};

std::size_t FieldNetwork::work_bytes() const {
    Allocator count(nullptr);
    Work(*this, count);
    return pages(count.used());
}

void FieldNetwork::run(const FieldNetworkCall& call, std::int64_t begin, std::int64_t end, char* memory,
                       Isa isa) const {
    const FieldConfig& config = shape_.config;
    const int members = static_cast<int>(end - begin), of_block = fine_.points_of_block();
    const int W = config.width, row = whole_panels(W), stem = stem_row();
    const std::int64_t places = fine_.places(), count = members * places;
    Allocator taken(memory);
    const Work work(*this, taken);
    const GridPass pass{kernels(isa), vector_kernels(isa), work.layers, members};
    std::fill_n(work.layers.zeros, Work::widest(*this), 0.0f);
    for (std::int64_t i = 0; i < members; ++i) {
        const float* const noise = call.noise == nullptr ? nullptr : call.noise + (begin + i) * places * config.noise;
        fine_.gather(call.x + (begin + i) * points() * shape_.inward, shape_.inward, noise, config.noise, stem,
                     work.layers.normed + i * places * stem);
    }
    pass.convolve(stem_, fine_.tiles(), work.layers.normed, work.rows, row);
    const float* const condition = call.condition == nullptr ? nullptr : call.condition + begin * shape_.condition;
    pass.stack(first_, fine_.tiles(), condition, work.rows, W);
    if (!middle_.empty()) level(pass, work, condition);
    pass.stack(last_, fine_.tiles(), condition, work.rows, W);
    pass.normalise(work.rows, scale_, count, W, work.layers.normed);
    for (std::int64_t first = 0; first < count; first += GEMM_ROWS) {
        const std::int64_t n = std::min<std::int64_t>(GEMM_ROWS, count - first);
        pass.linear(head_, work.layers.normed + first * row, n, work.layers.out);
        for (std::int64_t i = 0; i < n; ++i) {
            const std::int64_t place = (first + i) % places, member = begin + (first + i) / places;
            for (int q = 0; q < of_block; ++q) {
                const int point = fine_.point(place, q);
                if (point < 0) continue;
                std::copy_n(work.layers.out + i * head_.n + q * shape_.outward, shape_.outward,
                            call.out + (member * points() + point) * shape_.outward);
            }
        }
    }
}

// Half as many places along each axis, and back, added to the rows.
void FieldNetwork::level(const GridPass& pass, const Work& work, const float* condition) const {
    const int row = whole_panels(shape_.config.width), middle = Work::middle(*this);
    const int parts = power(2, static_cast<int>(shape_.grid.size()));
    const std::int64_t places = coarse_.places(), count = pass.members * places;
    const auto part = [&](std::int64_t i, int q) {
        return work.rows + (i / places * fine_.places() + parts_[i % places * parts + q]) * row;
    };
    for (std::int64_t first = 0; first < count; first += GEMM_ROWS) {
        const std::int64_t n = std::min<std::int64_t>(GEMM_ROWS, count - first);
        for (std::int64_t i = 0; i < n; ++i) {
            for (int q = 0; q < parts; ++q) {
                std::copy_n(part(first + i, q), row, work.layers.out + i * coarsen_.k + q * row);
            }
        }
        pass.linear(coarsen_, work.layers.out, n, work.coarse + first * middle);
    }
    pass.stack(middle_, coarse_, condition, work.coarse, shape_.config.middle_width);
    for (std::int64_t first = 0; first < count; first += GEMM_ROWS) {
        const std::int64_t n = std::min<std::int64_t>(GEMM_ROWS, count - first);
        pass.linear(refine_, work.coarse + first * middle, n, work.layers.out);
        for (std::int64_t i = 0; i < n; ++i) {
            for (int q = 0; q < parts; ++q) {
                float* const to = part(first + i, q);
                const float* const from = work.layers.out + i * refine_.n + q * row;
                for (int j = 0; j < row; ++j) to[j] += from[j];
            }
        }
    }
}

void FieldNetwork::run(const FieldNetworkCall& call, std::int64_t rows, int threads, Isa isa) const {
    const std::int64_t each = together(), items = (rows + each - 1) / each;
    const std::size_t bytes = work_bytes();
    const int used = static_cast<int>(std::clamp<std::int64_t>(items, 1, threads));
    const Scratch scratch(bytes * used);
    std::atomic<std::int64_t> next{0};
    parallel(used, [&](int thread, int) {
        for (std::int64_t item = next++; item < items; item = next++) {
            run(call, item * each, std::min(item * each + each, rows), scratch.data() + thread * bytes, isa);
        }
    });
}

}  // namespace enma
