#include "core/cpu/grid_layers.h"

#include <algorithm>
#include <array>
#include <numeric>

namespace enma {

namespace {

// Weights of the numbers of a tile, from the three of a convolution.
constexpr std::array<std::array<double, 3>, TILE_NUMBERS> OF_WEIGHTS = {{{1.0 / 4, 0, 0},
                                                                         {-1.0 / 6, -1.0 / 6, -1.0 / 6},
                                                                         {-1.0 / 6, 1.0 / 6, -1.0 / 6},
                                                                         {1.0 / 24, 1.0 / 12, 1.0 / 6},
                                                                         {1.0 / 24, -1.0 / 12, 1.0 / 6},
                                                                         {0, 0, 1}}};

// Weight of number `number` of a tile, from the 3^axes of a convolution.
double of_weights(const float* weights, int axes, int number) {
    double sum = 0.0;
    for (int k = 0; k < power(3, axes); ++k) {
        double factor = OF_WEIGHTS[number % TILE_NUMBERS][k % 3];
        if (axes == 2) factor *= OF_WEIGHTS[number / TILE_NUMBERS][k / 3];
        sum += factor * weights[k];
    }
    return sum;
}

// Points from an edge that is not periodic at which networks are told so.
constexpr int MARKED = 2;

std::vector<GridAxis> divided(std::vector<GridAxis> grid, int block, int times) {
    for (GridAxis& axis : grid) axis.points = (axis.points + block * times - 1) / (block * times) * times;
    return grid;
}

// body(first, count) for rows as many at a time as a product takes.
template <class Body>
void by_rows(std::int64_t rows, const Body& body) {
    for (std::int64_t first = 0; first < rows; first += GEMM_ROWS) {
        body(first, std::min<std::int64_t>(GEMM_ROWS, rows - first));
    }
}

}  // namespace

int GridAxis::at(int place) const {
    switch (edge) {
        case GridEdge::periodic: return (place % points + points) % points;
        case GridEdge::open: return std::clamp(place, 0, points - 1);
        default: return 0 <= place && place < points ? place : -1;
    }
}

int size_of(const std::vector<GridAxis>& axes) {
    int size = 1;
    for (const GridAxis& axis : axes) size *= axis.points;
    return size;
}

GridTiles::GridTiles(const std::vector<GridAxis>& axes) : axes_(static_cast<int>(axes.size())), places_(size_of(axes)) {
    const auto tiles_of = [](const GridAxis& axis) { return (axis.points + TILE_POINTS - 1) / TILE_POINTS; };
    for (const GridAxis& axis : axes) tiles_ *= tiles_of(axis);
    const GridAxis &first = axes.front(), &last = axes.back();
    // The place of `i` numbers or points along each axis after the first of a tile; only of the grid, or beyond it too.
    const auto place = [&](int tile, int i, int count, int before, bool inside) {
        const auto along = [&](const GridAxis& axis, int number, int k) {
            const int at = number * TILE_POINTS + k - before;
            // Nothing that counts reads further than one place beyond an edge.
            return at > axis.points || (inside && at == axis.points) ? -1 : axis.at(at);
        };
        const int y = along(last, tile % tiles_of(last), i % count);
        if (axes_ == 1) return y;
        const int x = along(first, tile / tiles_of(last), i / count);
        return x < 0 || y < 0 ? -1 : x * last.points + y;
    };
    for (int tile = 0; tile < tiles_; ++tile) {
        for (int i = 0; i < power(TILE_NUMBERS, axes_); ++i) from_.push_back(place(tile, i, TILE_NUMBERS, 1, false));
        for (int i = 0; i < power(TILE_POINTS, axes_); ++i) to_.push_back(place(tile, i, TILE_POINTS, 0, true));
    }
}

GridPlace in_block(int axes, int place, int across, int part, int size) {
    if (axes == 1) return {0, place * size + part};
    return {place / across * size + part / size, place % across * size + part % size};
}

GridBlocks::GridBlocks(const std::vector<GridAxis>& grid, int block, int times)
    : across_(divided(grid, block, times).back().points),
      points_(power(block, static_cast<int>(grid.size()))),
      tiles_(divided(grid, block, times)) {
    const int axes = static_cast<int>(grid.size());
    const GridAxis &first = grid.front(), &last = grid.back();
    const auto near = [](const GridAxis& axis, int at) {
        return axis.edge != GridEdge::periodic && (at < MARKED || at >= axis.points - MARKED) ? 1.0f : 0.0f;
    };
    const bool marked =
        std::any_of(grid.begin(), grid.end(), [](const GridAxis& axis) { return axis.edge != GridEdge::periodic; });
    for (int place = 0; place < places(); ++place) {
        for (int part = 0; part < points_; ++part) {
            const GridPlace at = in_block(axes, place, across_, part, block);
            const int x = axes == 1 ? 0 : first.at(at.first), y = last.at(at.last);
            sources_.push_back(x < 0 || y < 0 ? -1 : x * last.points + y);
            const bool inside = (axes == 1 || at.first < first.points) && at.last < last.points;
            targets_.push_back(inside ? sources_.back() : -1);
            if (!marked) continue;
            marks_.push_back(x < 0 || y < 0 ? 0.0f : near(last, y) + (axes == 1 ? 0.0f : near(first, x)));
        }
    }
}

void GridBlocks::gather(const float* x, int channels, const float* noise, int n, int row, float* out) const {
    for (std::int64_t place = 0; place < places(); ++place, out += row) {
        float* at = out;
        for (int part = 0; part < points_; ++part, at += channels) {
            const int point = sources_[place * points_ + part];
            if (point < 0) {
                std::fill_n(at, channels, 0.0f);
            } else {
                std::copy_n(x + std::int64_t{point} * channels, channels, at);
            }
        }
        if (!marks_.empty()) at = std::copy_n(&marks_[place * points_], points_, at);
        if (noise != nullptr) at = std::copy_n(noise + place * n, n, at);
        std::fill(at, out + row, 0.0f);
    }
}

LinearView GridPacker::linear(const std::string& name, int outward, int inward, int parts_out, int parts_in) const {
    const std::vector<float> given = pack.numbers(name + ".weight", {parts_out * outward, parts_in * inward});
    const int n = whole_panels(outward), k = whole_panels(inward);
    std::vector<float> weight(static_cast<std::size_t>(parts_out) * n * parts_in * k);
    for (int o = 0; o < parts_out * outward; ++o) {
        for (int i = 0; i < parts_in * inward; ++i) {
            const std::size_t row = o / outward * n + o % outward, column = i / inward * k + i % inward;
            weight[row * parts_in * k + column] = given[static_cast<std::size_t>(o) * parts_in * inward + i];
        }
    }
    return pack.linear(weight.data(), nullptr, parts_out * n, parts_in * k, NumberFormat::fp32);
}

// `columns` are the numbers of its outputs, -1 for zeros.
GridConvolution GridPacker::convolution(const std::string& name, const std::vector<int>& columns, int outward,
                                        int inward) const {
    std::vector<std::int64_t> shape(2 + axes, 3);
    shape[0] = outward;
    shape[1] = inward;
    const std::vector<float> given = pack.numbers(name + ".weight", shape);
    const int k = whole_panels(inward), taps = power(3, axes);
    GridConvolution out{k, {}};
    std::vector<float> weight(static_cast<std::size_t>(TILE_COLUMNS) * k);
    for (std::size_t first = 0; first < columns.size(); first += TILE_COLUMNS) {
        const int n = static_cast<int>(std::min<std::size_t>(TILE_COLUMNS, columns.size() - first));
        for (int number = 0; number < power(TILE_NUMBERS, axes); ++number) {
            for (int j = 0; pack.writes() && j < n; ++j) {
                float* const row = weight.data() + static_cast<std::size_t>(j) * k;
                const int o = columns[first + j];
                for (int i = 0; i < inward; ++i) {
                    const std::size_t at = (static_cast<std::size_t>(std::max(o, 0)) * inward + i) * taps;
                    row[i] = o < 0 ? 0.0f : static_cast<float>(of_weights(&given[at], axes, number));
                }
            }
            out.products.push_back(pack.linear(weight.data(), nullptr, n, k, NumberFormat::fp32));
        }
    }
    return out;
}

GridConvolution GridPacker::convolution(const std::string& name, int outward, int inward) const {
    std::vector<int> columns(whole_panels(outward), -1);
    std::iota(columns.begin(), columns.begin() + outward, 0);
    return convolution(name, columns, outward, inward);
}

GatedBlock GridPacker::block(const std::string& name, int width, int condition) const {
    // Panels of gates, each before the panel that they multiply.
    std::vector<int> columns(2 * whole_panels(width), -1);
    for (int j = 0; j < width; ++j) {
        columns[j / PANEL * TILE_COLUMNS + j % PANEL] = j;
        columns[j / PANEL * TILE_COLUMNS + PANEL + j % PANEL] = width + j;
    }
    GatedBlock out{};
    const std::vector<float> scale = padded(pack.numbers(name + "scale", {width}));
    out.scale = pack.table(scale);
    out.gate_up = convolution(name + "gate_up", columns, 2 * width, width);
    out.down = linear(name + "down", width, width);
    out.shifted = condition > 0;
    if (!out.shifted) return out;
    const std::vector<float> weight = pack.numbers(name + "shift.weight", {2 * width, condition}),
                             bias = pack.numbers(name + "shift.bias", {2 * width});
    std::vector<float> weights(columns.size() * condition), biases(columns.size());
    for (std::size_t j = 0; j < columns.size(); ++j) {
        if (columns[j] < 0) continue;
        std::copy_n(weight.data() + static_cast<std::size_t>(columns[j]) * condition, condition,
                    weights.data() + j * condition);
        biases[j] = bias[columns[j]];
    }
    out.shift =
        pack.linear(weights.data(), biases.data(), static_cast<int>(columns.size()), condition, NumberFormat::fp32);
    return out;
}

std::vector<GatedBlock> GridPacker::stack(const std::string& name, int layers, int width, int condition) const {
    std::vector<GatedBlock> out;
    for (int i = 0; i < layers; ++i) {
        out.push_back(block(name + ".blocks." + std::to_string(i) + ".", width, condition));
    }
    return out;
}

std::vector<float> GridPacker::padded(std::vector<float> values) {
    values.resize(whole_panels(static_cast<int>(values.size())));
    return values;
}

GridWork::GridWork(Allocator& memory, int axes, std::int64_t places, int widest, int columns, int members) {
    const std::size_t numbers_of_tile = power(TILE_NUMBERS, axes);
    gemm = memory.take<char>(GEMM_SCRATCH);
    zeros = memory.take<float>(widest);
    numbers = memory.take<float>(numbers_of_tile * TILES * widest);
    products = memory.take<float>(numbers_of_tile * TILES * TILE_COLUMNS);
    normed = memory.take<float>(places * widest);
    gated = memory.take<float>(places * widest);
    out = memory.take<float>(static_cast<std::size_t>(GEMM_ROWS) * columns);
    shifts = memory.take<float>(static_cast<std::size_t>(members) * 2 * widest);
}

// finish(first column, columns, tiles) for the products of each part of the tiles and of the columns.
template <class Finish>
void GridPass::products(const GridConvolution& layer, const GridTiles& grid, const float* rows,
                        const Finish& finish) const {
    const TileGrid view = grid.view();
    const int of_tile = power(TILE_NUMBERS, view.axes);
    const std::int64_t tiles = std::int64_t{members} * grid.tiles(), parts = (tiles + TILES - 1) / TILES;
    for (std::int64_t part = 0; part < parts; ++part) {
        const TileRange range{tiles * part / parts, tiles * (part + 1) / parts};
        const std::int64_t count = range.end - range.begin;
        vectors.tiles.transform(view, range, rows, work.zeros, layer.inward, work.numbers);
        int column = 0;
        for (std::size_t i = 0; i < layer.products.size(); i += of_tile) {
            const int n = layer.products[i].n;
            for (int k = 0; k < of_tile; ++k) {
                linear(layer.products[i + k], work.numbers + k * count * layer.inward, count,
                       work.products + k * count * n);
            }
            finish(column, n, range);
            column += n;
        }
    }
}

void GridPass::convolve(const GridConvolution& layer, const GridTiles& grid, const float* rows, float* out,
                        int width) const {
    products(layer, grid, rows, [&](int column, int columns, TileRange range) {
        vectors.tiles.put(grid.view(), range, work.products, columns, out + column, width);
    });
}

void GridPass::normalise(const float* rows, const float* scale, std::int64_t count, int width, float* out) const {
    vectors.tiles.normalise(rows, scale, count, whole_panels(width), width, out);
}

void GridPass::stack(const std::vector<GatedBlock>& blocks, const GridTiles& grid, const float* conditions, float* rows,
                     int width) const {
    const int row = whole_panels(width);
    const std::int64_t count = std::int64_t{members} * grid.places();
    for (const GatedBlock& block : blocks) {
        if (block.shifted && conditions != nullptr) {
            linear(block.shift, conditions, members, work.shifts);
        } else {
            std::fill_n(work.shifts, members * 2 * row, 0.0f);
        }
        normalise(rows, block.scale, count, width, work.normed);
        products(block.gate_up, grid, work.normed, [&](int column, int, TileRange range) {
            vectors.tiles.gate(grid.view(), range, work.products, work.shifts + column, 2 * row,
                               work.gated + column / 2, row);
        });
        by_rows(count, [&](std::int64_t first, std::int64_t n) {
            linear(block.down, work.gated + first * row, n, work.out);
            float* const to = rows + first * row;
            for (std::int64_t i = 0; i < n * row; ++i) to[i] += work.out[i];
        });
    }
}

}  // namespace enma
