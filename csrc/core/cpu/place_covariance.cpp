// The waves of a frequency k have, at the places x and y, the products
//
//   2 cos kx cos ky + 2 sin kx sin ky = 2 cos k(x - y)      around a ring
//   2 cos kx cos ky = cos k(x - y) + cos k(x + y)           between walls,
//
// and half of the latter for waves that are 1 or -1 at all points of the grid.
#include "core/cpu/place_covariance.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numbers>

#include "core/cpu/dispatch.h"

namespace enma {

namespace {

using Values = std::vector<double>;

// Polynomials through so many entries, `BEFORE` of them before the place. With so many entries in half of the shortest
// wave they are exact to 3e-9 of its power.
constexpr int NODES = 8, BEFORE = 3;
constexpr std::int64_t OVER = 16, LEAST = 256;

typedef double Lane __attribute__((vector_size(NODES * sizeof(double)), aligned(sizeof(double))));
#define ENMA_INLINE inline __attribute__((always_inline))

// Coefficients [power, node] of the polynomials that are 1 at one node and 0 at the others.
constexpr std::array<std::array<double, NODES>, NODES> POLYNOMIALS = [] {
    std::array<std::array<double, NODES>, NODES> out{};
    for (int node = 0; node < NODES; ++node) {
        std::array<double, NODES> product{1.0};
        double scale = 1.0;
        for (int other = 0; other < NODES; ++other) {
            if (other == node) continue;
            for (int power = NODES; power-- > 0;) {
                product[power] = (power > 0 ? product[power - 1] : 0.0) - (other - BEFORE) * product[power];
            }
            scale *= node - other;
        }
        for (int power = 0; power < NODES; ++power) out[power][node] = product[power] / scale;
    }
    return out;
}();

ENMA_INLINE Lane load(const double* at) {
    Lane x;
    std::memcpy(&x, at, sizeof x);
    return x;
}

// First of the entries of an axis that are read for a place beyond 0, in either direction, and what each counts.
ENMA_INLINE std::int64_t entries_at(double place, std::int64_t half, Lane& shares) {
    const double whole = static_cast<double>(2 * half);
    double x = place < 0 ? -place : place;
    x -= whole * static_cast<double>(static_cast<std::int64_t>(x / whole));
    if (x > static_cast<double>(half)) x = whole - x;
    std::int64_t first = static_cast<std::int64_t>(x);
    if (first > half - 1) first = half - 1;
    const double beyond = x - static_cast<double>(first);
    shares = load(POLYNOMIALS[NODES - 1].data());
    for (int power = NODES - 1; power-- > 0;) shares = shares * beyond + load(POLYNOMIALS[power].data());
    return first;
}

struct Reading {
    const double* values;
    std::int64_t stride, half[2];
    double sign[2];  // -1 of differences
    double per_unit[2];
};

ENMA_INLINE void add_body(const Reading& of, const Place& one, const Place* others, std::int64_t count, double* out) {
    for (std::int64_t j = 0; j < count; ++j) {
        Lane first, last, sum = {};
        const std::int64_t row = entries_at((one.at[0] + of.sign[0] * others[j].at[0]) * of.per_unit[0], of.half[0],
                                            first),
                           column = entries_at((one.at[1] + of.sign[1] * others[j].at[1]) * of.per_unit[1], of.half[1],
                                               last);
        const double* at = of.values + row * of.stride + column;
        for (int node = 0; node < NODES; ++node, at += of.stride) sum += first[node] * load(at);
        sum *= last;
        for (int node = 0; node < NODES; ++node) out[j] += sum[node];
    }
}

using Add = void (*)(const Reading&, const Place&, const Place*, std::int64_t, double*);

#define ENMA_KERNEL(name, target)                                                                                   \
    target void add_##name(const Reading& of, const Place& one, const Place* others, std::int64_t n, double* out) { \
        add_body(of, one, others, n, out);                                                                          \
    }

ENMA_KERNEL(baseline, )
#ifdef ENMA_X86_KERNELS
ENMA_KERNEL(avx2, __attribute__((target("avx2"))))
ENMA_KERNEL(avx512, __attribute__((target("avx512f"))))
#endif

Add kernel() {
#ifdef ENMA_X86_KERNELS
    const Isa best = best_isa();
    if (best == Isa::avx512 || best == Isa::avx512_bf16) return add_avx512;
    if (best == Isa::avx2) return add_avx2;
#endif
    return add_baseline;
}

// How often the cosine of a difference, or of a sum, counts in the products of the waves of a frequency.
double share_of(const PlaceCovariance::Axis& axis, std::int64_t k, bool sum) {
    if (!axis.ring) return k == 0 || k == axis.points - 1 ? 0.5 : 1.0;
    if (k > 0 && 2 * k == axis.points) return 0.5;
    return sum ? 0.0 : k == 0 ? 1.0 : 2.0;
}

// Entries [f, steps + NODES] of cosines from before 0 to beyond half a turn.
Values cosines(std::int64_t frequencies, std::int64_t steps) {
    Values turn(2 * steps), out;
    for (std::int64_t i = 0; i < 2 * steps; ++i) {
        turn[i] = std::cos(std::numbers::pi * static_cast<double>(i) / static_cast<double>(steps));
    }
    for (std::int64_t k = 0; k < frequencies; ++k) {
        for (std::int64_t i = 0; i < steps + NODES; ++i) out.push_back(turn[k * std::abs(i - BEFORE) % (2 * steps)]);
    }
    return out;
}

}  // namespace

PlaceCovariance::PlaceCovariance(const std::array<Axis, 2>& axes, const std::vector<double>& power) {
    const std::int64_t columns = axes[1].frequencies();
    std::int64_t used[2] = {1, 1};  // frequencies that have power
    for (std::int64_t i = 0; i < axes[0].frequencies() * columns; ++i) {
        if (power[i] == 0) continue;
        used[0] = std::max(used[0], i / columns + 1);
        used[1] = std::max(used[1], i % columns + 1);
    }
    Values waves[2];
    for (int axis = 0; axis < 2; ++axis) {
        const std::int64_t steps = used[axis] == 1 ? 1 : std::max(OVER * (used[axis] - 1), LEAST);
        axes_[axis] = {steps, static_cast<double>(steps) * (axes[axis].ring ? 2 : 1) / axes[axis].length,
                       axes[axis].ring};
        waves[axis] = cosines(used[axis], steps);
    }
    const std::int64_t rows = axes_[0].count + NODES;
    stride_ = axes_[1].count + NODES;
    for (const bool first : {false, true}) {
        for (const bool last : {false, true}) {
            if (&table(first, last) != &tables_[2 * first + last]) continue;
            Values inner(used[0] * stride_);
            bool any = false;
            for (std::int64_t i = 0; i < used[0]; ++i) {
                for (std::int64_t j = 0; j < used[1]; ++j) {
                    const double own =
                        power[i * columns + j] * share_of(axes[0], i, first) * share_of(axes[1], j, last);
                    any = any || own != 0;
                    for (std::int64_t y = 0; y < stride_ && own != 0; ++y) {
                        inner[i * stride_ + y] += own * waves[1][j * stride_ + y];
                    }
                }
            }
            if (!any) continue;
            Values& values = tables_[2 * first + last];
            values.resize(rows * stride_);
            for (std::int64_t x = 0; x < rows; ++x) {
                for (std::int64_t i = 0; i < used[0]; ++i) {
                    const double wave = waves[0][i * rows + x];
                    for (std::int64_t y = 0; y < stride_; ++y) values[x * stride_ + y] += wave * inner[i * stride_ + y];
                }
            }
        }
    }
}

const std::vector<double>& PlaceCovariance::table(bool first, bool last) const {
    return tables_[2 * (first && axes_[0].ring) + (last && axes_[1].ring)];
}

void PlaceCovariance::between(const Place& one, const Place* others, std::int64_t count, double* out) const {
    std::fill_n(out, count, 0.0);
    for (const bool first : {false, true}) {
        for (const bool last : {false, true}) {
            const Values& values = table(first, last);
            if (values.empty()) continue;
            const Reading of{values.data(),
                             stride_,
                             {axes_[0].count, axes_[1].count},
                             {first ? 1.0 : -1.0, last ? 1.0 : -1.0},
                             {axes_[0].per_unit, axes_[1].per_unit}};
            kernel()(of, one, others, count, out);
        }
    }
}

}  // namespace enma
