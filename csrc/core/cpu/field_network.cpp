#include "core/cpu/field_network.h"

#include <algorithm>
#include <atomic>

namespace enma {

namespace {

// Tiles that weights pass by at least, where there are rows enough; measured.
constexpr int FEWEST_TILES = 32;
// Points from an edge that is not periodic at which the network is told so.
constexpr int MARKED = 2;

// A grid divided into blocks of so many points along each axis, prolonged to whole ones, which `times` divides.
std::vector<GridAxis> divided(std::vector<GridAxis> grid, int block, int times) {
    for (GridAxis& axis : grid) axis.points = (axis.points + block * times - 1) / (block * times) * times;
    return grid;
}

struct Place {
    int first, last;
};

// Where point `part` of a block is, the block at `place` of a grid with `across` blocks along its last axis.
Place in_block(int axes, int place, int across, int part, int size) {
    if (axes == 1) return {0, place * size + part};
    return {place / across * size + part / size, place % across * size + part % size};
}

}  // namespace

FieldConfig read_field_config(Fields& fields) {
    FieldConfig out;
    fields.ignore("kind");
    fields.read("block", out.block, 1, 64);
    fields.read("width", out.width, 1, 4096);
    fields.read("layers", out.layers, 0, 256);
    fields.read("middle_layers", out.middle_layers, 0, 256);
    fields.read("middle_width", out.middle_width, 1, 4096);
    fields.read("noise", out.noise, 0, 4096);
    fields.read("member", out.member, 0, 4096);
    fields.check_all_read();
    return out;
}

FieldNetwork::FieldNetwork(const FieldNetworkShape& shape, const TakeParameter& take, const std::string& prefix)
    : shape_(shape),
      fine_(divided(shape.grid, shape.config.block, shape.config.middle_layers > 0 ? 2 : 1)),
      coarse_(divided(shape.grid, 2 * shape.config.block, 1)) {
    const FieldConfig& config = shape.config;
    const int axes = static_cast<int>(shape.grid.size()), W = config.width, p = config.block;
    const int half = config.middle_layers > 0 ? (config.layers + 1) / 2 : config.layers;
    const GridAxis &first = shape.grid.front(), &last = shape.grid.back();
    const int across = divided(shape.grid, p, config.middle_layers > 0 ? 2 : 1).back().points;
    const auto near = [](const GridAxis& axis, int at) {
        return axis.edge != GridEdge::periodic && (at < MARKED || at >= axis.points - MARKED) ? 1.0f : 0.0f;
    };
    const bool marked = std::any_of(shape.grid.begin(), shape.grid.end(),
                                    [](const GridAxis& axis) { return axis.edge != GridEdge::periodic; });
    for (int place = 0; place < fine_.places(); ++place) {
        for (int q = 0; q < power(p, axes); ++q) {
            const Place at = in_block(axes, place, across, q, p);
            const int x = axes == 1 ? 0 : first.at(at.first), y = last.at(at.last);
            sources_.push_back(x < 0 || y < 0 ? -1 : x * last.points + y);
            const bool inside = (axes == 1 || at.first < first.points) && at.last < last.points;
            targets_.push_back(inside ? sources_.back() : -1);
            if (!marked) continue;
            marks_.push_back(x < 0 || y < 0 ? 0.0f : near(last, y) + (axes == 1 ? 0.0f : near(first, x)));
        }
    }
    for (int place = 0; config.middle_layers > 0 && place < coarse_.places(); ++place) {
        for (int q = 0; q < power(2, axes); ++q) {
            const Place at = in_block(axes, place, across / 2, q, 2);
            parts_.push_back(at.first * across + at.last);
        }
    }
    inward_ = power(p, axes) * (shape.inward + (marked ? 1 : 0)) + config.noise;
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
        head_ = layers.linear("head", shape.outward * power(p, axes), W);
    });
}

int FieldNetwork::together() const { return std::max(1, FEWEST_TILES / fine_.tiles()); }

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
    const int members = static_cast<int>(end - begin), axes = static_cast<int>(shape_.grid.size());
    const int W = config.width, row = whole_panels(W), stem = stem_row(), of_block = power(config.block, axes);
    const std::int64_t places = fine_.places(), count = members * places;
    Allocator taken(memory);
    const Work work(*this, taken);
    const GridPass pass{kernels(isa), vector_kernels(isa), work.layers, members};
    std::fill_n(work.layers.zeros, Work::widest(*this), 0.0f);
    // Rows of the stem: the points of blocks, marks of edges, and noise.
    float* to = work.layers.normed;
    for (std::int64_t i = 0; i < count; ++i, to += stem) {
        const std::int64_t place = i % places;
        const float* const x = call.x + (begin + i / places) * points() * shape_.inward;
        float* at = to;
        for (int q = 0; q < of_block; ++q, at += shape_.inward) {
            const int point = sources_[place * of_block + q];
            if (point < 0) {
                std::fill_n(at, shape_.inward, 0.0f);
            } else {
                std::copy_n(x + std::int64_t{point} * shape_.inward, shape_.inward, at);
            }
        }
        if (!marks_.empty()) at = std::copy_n(&marks_[place * of_block], of_block, at);
        if (call.noise != nullptr) {
            at = std::copy_n(call.noise + (begin * places + i) * config.noise, config.noise, at);
        }
        std::fill(at, to + stem, 0.0f);
    }
    pass.convolve(stem_, fine_, work.layers.normed, work.rows, row);
    const float* const condition = call.condition == nullptr ? nullptr : call.condition + begin * shape_.condition;
    pass.stack(first_, fine_, condition, work.rows, W);
    if (!middle_.empty()) level(pass, work, condition);
    pass.stack(last_, fine_, condition, work.rows, W);
    pass.normalise(work.rows, scale_, count, W, work.layers.normed);
    for (std::int64_t first = 0; first < count; first += GEMM_ROWS) {
        const std::int64_t n = std::min<std::int64_t>(GEMM_ROWS, count - first);
        pass.linear(head_, work.layers.normed + first * row, n, work.layers.out);
        for (std::int64_t i = 0; i < n; ++i) {
            const std::int64_t place = (first + i) % places, member = begin + (first + i) / places;
            for (int q = 0; q < of_block; ++q) {
                const int point = targets_[place * of_block + q];
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
