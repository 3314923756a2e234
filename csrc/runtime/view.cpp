#include "runtime/view.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "core/error.h"

namespace enma {

bool View::moves() const {
    return exchanged || std::any_of(amount.begin(), amount.end(), [](std::int64_t a) { return a != 0; });
}

std::vector<View> views(const ModelConfig& config, int shifts) {
    const CodecConfig& codec = config.codec;
    const View still{std::vector<std::int64_t>(codec.dims())};
    if (shifts <= 1) return std::vector<View>(shifts, still);
    if (!codec.has_ring()) {
        const bool square = codec.dims() == 2 && codec.grid[0] == codec.grid[1] &&
                            codec.lengths[0] == codec.lengths[1] && config.tokens_along(0) == config.tokens_along(1);
        const int mirrors = 1 << codec.dims(), ways = square ? 2 * mirrors : mirrors;
        if (shifts > ways) {
            fail(ENMA_INVALID_ARGUMENT, "shifts is ", shifts, "; a field of ", config.name,
                 ", between walls, is seen as it is, mirrored and, on a square, with its dimensions exchanged, in ",
                 ways, " ways: use no more");
        }
        std::vector<View> seen(shifts, still);
        for (int s = 0; s < shifts; ++s) {
            for (int axis = 0; axis < codec.dims(); ++axis) seen[s].amount[axis] = s >> axis & 1;
            seen[s].exchanged = s >= mirrors;
        }
        return seen;
    }
    const auto points = [&](int axis) { return codec.grid[axis] / config.tokens_along(axis); };
    for (int axis = 0; axis < codec.dims(); ++axis) {
        if (!codec.periodic[axis] || shifts <= points(axis)) continue;
        fail(ENMA_INVALID_ARGUMENT, "shifts is ", shifts, "; a token of ", config.name, " has ", points(axis),
             " grid points: use no more");
    }
    std::vector<View> seen(shifts, still);
    for (int axis = 0; axis < codec.dims(); ++axis) {
        if (!codec.periodic[axis]) continue;
        const std::int64_t around = points(axis);
        std::int64_t step = around / shifts + 1;
        while (around / std::gcd(step, around) < shifts) ++step;
        for (int s = 0; s < shifts; ++s) seen[s].amount[axis] = s * step;
    }
    return seen;
}

void shift(const float* frame, const CodecConfig& codec, const View& view, bool back, float* out) {
    const std::vector<std::int64_t>& amount = view.amount;
    const std::int64_t lines = codec.dims() == 2 ? codec.grid[0] : 1, size = codec.grid.back();
    const std::int64_t across = codec.dims() == 2 ? amount[0] : 0, c = codec.field_channels;
    if (view.exchanged) {
        // Of a square: line i is what was column i, mirrored or not.
        const std::int64_t line = amount[back ? 1 : 0], column = amount[back ? 0 : 1];
        for (std::int64_t i = 0; i < size; ++i) {
            const float* from = frame + (column > 0 ? size - 1 - i : i) * c;
            for (std::int64_t k = 0; k < size; ++k) {
                out = std::copy_n(from + (line > 0 ? size - 1 - k : k) * size * c, c, out);
            }
        }
        return;
    }
    if (!codec.has_ring()) {
        for (std::int64_t i = 0; i < lines; ++i) {
            const float* from = frame + (across > 0 ? lines - 1 - i : i) * size * c;
            if (amount.back() == 0) {
                out = std::copy_n(from, size * c, out);
                continue;
            }
            for (std::int64_t k = size - 1; k >= 0; --k) out = std::copy_n(from + k * c, c, out);
        }
        return;
    }
    const std::int64_t along = (back ? amount.back() : size - amount.back() % size) % size * c;
    for (std::int64_t i = 0; i < lines; ++i) {
        const float* from = frame + (i + (back ? across : lines - across % lines)) % lines * size * c;
        out = std::rotate_copy(from, from + along, from + size * c, out);
    }
}

const float* move(const float* points, std::int64_t count, const CodecConfig& codec, const View& view, float* out) {
    const int d = codec.dims();
    const bool mirrored = !codec.has_ring();
    const std::vector<std::int64_t>& amount = view.amount;
    if (!view.moves()) return points;
    for (std::int64_t i = 0; i < count * d; ++i) {
        const int axis = static_cast<int>(i % d);
        const double length = codec.lengths[axis];
        if (mirrored) {
            out[i] = amount[axis] > 0 ? static_cast<float>(length) - points[i] : points[i];
            continue;
        }
        const float there = points[i] + static_cast<float>(amount[axis] * length / codec.grid[axis]);
        // A sum that rounding leaves just below the end is the beginning.
        const bool around = codec.periodic[axis] && there >= static_cast<float>(length * (1.0 - AT_THE_END));
        out[i] = around ? std::max(0.0f, there - static_cast<float>(length)) : there;
    }
    for (std::int64_t i = 0; view.exchanged && i < count; ++i) std::swap(out[2 * i], out[2 * i + 1]);
    return out;
}

}  // namespace enma
