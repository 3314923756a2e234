#include "core/cpu/physics_encoder.h"

#include <algorithm>
#include <cmath>

namespace enma {

namespace {

constexpr float EPSILON = 1e-5f;  // of the norm
constexpr double TINY = 1e-6;     // of energies
constexpr float LIMIT = 8.0f;     // numbers beyond tell no more

float silu(float x) { return x / (1.0f + std::exp(-x)); }

}  // namespace

FieldScales::FieldScales(const TakeParameter& take, const std::string& prefix, int channels, int views)
    : channels(channels) {
    const auto values = [&](const char* name, std::vector<std::int64_t> shape) {
        return TakeFloor::copy(take(prefix + name, shape), shape);
    };
    mean = values("mean", {channels});
    std = values("std", {channels});
    change = values("change", {channels});
    bend = values("bend", {channels});
    error = values("error", {channels});
    low = values("low", {channels});
    high = values("high", {channels});
    view = values("view", {channels, views});
}

void FieldScales::inputs(Past past, std::int64_t points, int row, float* out) const {
    const float *x0 = past[0], *x1 = past[1], *x2 = past[2];
    for (std::int64_t p = 0; p < points; ++p, out += row, x0 += channels, x1 += channels, x2 += channels) {
        for (int c = 0; c < channels; ++c) {
            out[c] = (x2[c] - mean[c]) / std[c];
            out[channels + c] = (x2[c] - x1[c]) / change[c];
            out[2 * channels + c] = (x2[c] - 2 * x1[c] + x0[c]) / bend[c];
        }
    }
}

std::vector<std::int64_t> window_starts(std::int64_t count) {
    const std::int64_t last = count - PAST_FRAMES, windows = std::min<std::int64_t>(MOST_WINDOWS, last + 1);
    if (last <= 0) return {last};
    std::vector<std::int64_t> out;
    for (std::int64_t w = 0; w < windows; ++w) out.push_back((2 * w * last + windows - 1) / (2 * (windows - 1)));
    return out;
}

std::vector<float> windows_of(const float* frames, std::int64_t count, std::int64_t values) {
    std::vector<float> out;
    for (const std::int64_t start : window_starts(count)) {
        for (std::int64_t t = start; t < start + PAST_FRAMES; ++t) {
            const float* const frame = frames + std::max<std::int64_t>(0, t) * values;
            out.insert(out.end(), frame, frame + values);
        }
    }
    return out;
}

PhysicsEncoder::PhysicsEncoder(const PhysicsShape& shape, const FloorGrid& grid, int features,
                               const TakeParameter& take, const std::string& prefix)
    : shape_(shape),
      grid_(grid),
      scales_(take, prefix + "scales.", grid.channels, 0),
      blocks_(grid.axes, shape.block),
      inward_(blocks_.inward(PAST_FRAMES * grid.channels)),
      features_(features) {
    const int axes = static_cast<int>(grid.axes.size()), width = 2 * shape.width + features, H = shape.hidden;
    packed_ = packed(take, prefix, NumberFormat::fp32, [&](Packer& pack) {
        const GridPacker layers{pack, axes};
        stem_ = layers.convolution("stem", shape.width, inward_);
        stack_ = layers.stack("stack", shape.layers, shape.width, 0);
        norm_weight_ = pack.numbers("norm.weight", {width});
        norm_bias_ = pack.numbers("norm.bias", {width});
        hidden_ = pack.linear("features.0", H, width);
        attention_ = pack.linear("attention", 1, H);
        first_ = pack.linear("read.0", H, H);
        last_ = pack.linear("read.2", PHYSICS_NUMBERS, H);
    });
}

std::vector<float> PhysicsEncoder::numbers(const Windows& windows, const std::vector<float>& told, Isa isa) const {
    const int W = shape_.width, row = whole_panels(W), H = shape_.hidden, width = 2 * W + features_;
    const int stem = whole_panels(inward_), widest = std::max(stem, row), places = blocks_.places();
    const int axes = static_cast<int>(grid_.axes.size()), values = grid_.values();
    const auto make = [&](Allocator& memory, float** rows) {
        *rows = memory.take<float>(static_cast<std::size_t>(places) * row);
        return GridWork(memory, axes, places, widest, widest, 1);
    };
    float* rows = nullptr;
    Allocator count(nullptr);
    make(count, &rows);
    const Buffer space(count.used());
    Allocator memory(space.data());
    const GridWork work = make(memory, &rows);
    std::fill_n(work.zeros, widest, 0.0f);
    const GridPass pass{kernels(isa), vector_kernels(isa), work, 1};
    const int inputs = PAST_FRAMES * grid_.channels;
    std::vector<float> fields(static_cast<std::size_t>(grid_.points()) * inputs), x(width);
    const auto linear = [&](const LinearView& layer, const std::vector<float>& from) {
        std::vector<float> out(whole_panels(layer.n));
        kernels(isa).linear(layer, from.data(), layer.k, 1, out.data(), static_cast<std::ptrdiff_t>(out.size()),
                            work.gemm);
        return out;
    };
    std::vector<std::vector<float>> seen;
    std::vector<double> scores;
    for (int w = 0; w < windows.count; ++w) {
        const float* const first = windows.values + static_cast<std::ptrdiff_t>(w) * PAST_FRAMES * values;
        scales_.inputs({first, first + values, first + 2 * values}, grid_.points(), inputs, fields.data());
        blocks_.gather(fields.data(), inputs, nullptr, 0, stem, work.normed);
        pass.convolve(stem_, blocks_.tiles(), work.normed, rows, row);
        pass.stack(stack_, blocks_.tiles(), nullptr, rows, W);
        std::vector<double> sums(2 * W);
        for (int place = 0; place < places; ++place) {
            for (int j = 0; j < W; ++j) {
                const double h = rows[static_cast<std::ptrdiff_t>(place) * row + j];
                sums[j] += h;
                sums[W + j] += h * h;
            }
        }
        for (int j = 0; j < W; ++j) {
            x[j] = static_cast<float>(sums[j] / places);
            x[W + j] = static_cast<float>(std::log(sums[W + j] / places + TINY));
        }
        std::copy(told.begin(), told.end(), x.begin() + 2 * W);
        double mean = 0.0, square = 0.0;
        for (const float value : x) mean += value / width;
        for (const float value : x) square += (value - mean) * (value - mean) / width;
        const double inverse = 1.0 / std::sqrt(square + EPSILON);
        std::vector<float> normed(width);
        for (int j = 0; j < width; ++j) {
            const double value = (x[j] - mean) * inverse * norm_weight_[j] + norm_bias_[j];
            normed[j] = std::clamp(static_cast<float>(value), -LIMIT, LIMIT);
        }
        std::vector<float> f = linear(hidden_, normed);
        std::transform(f.begin(), f.begin() + H, f.begin(), silu);
        scores.push_back(linear(attention_, f)[0]);
        seen.push_back(std::move(f));
    }
    const double most = *std::max_element(scores.begin(), scores.end());
    double total = 0.0;
    for (double& score : scores) total += score = std::exp(score - most);
    std::vector<float> mixed(H);
    for (int j = 0; j < H; ++j) {
        double sum = 0.0;
        for (std::size_t w = 0; w < seen.size(); ++w) sum += scores[w] / total * seen[w][j];
        mixed[j] = static_cast<float>(sum);
    }
    std::vector<float> read = linear(first_, mixed);
    std::transform(read.begin(), read.end(), read.begin(), silu);
    read = linear(last_, read);
    read.resize(PHYSICS_NUMBERS);
    return read;
}

}  // namespace enma
