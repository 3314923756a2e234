#include "core/cpu/analysis.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <numbers>
#include <numeric>

#include "core/cpu/dispatch.h"
#include "core/cpu/place_covariance.h"
#include "core/philox.h"

namespace enma {

namespace {

using Values = std::vector<double>;

// As in enma_fast/forecasting/analysis.py.
constexpr double NUGGET = 1e-7, LEFT_OUT = 1e-9, FIRM = 8;
constexpr std::int64_t FRAMES = 3, MOST = 3072;
// Mask step of the noise of fields that begin a trajectory; enma_fast/sampling/noise.py.
constexpr std::uint32_t FIELD_STEP = 0xFFFFFFFBu;
// So many waves of a shell say as much of its power as the statistics do.
constexpr double SHELL_FIRM = 4;

// Numbers that are multiplied and added side by side on every instruction set, so that all round alike.
constexpr int LANES = 8;
typedef double Lane __attribute__((vector_size(LANES * sizeof(double)), aligned(sizeof(double))));
constexpr int ROWS = 4, COLUMNS = 2;
// Rows that are factorised together, and numbers of a row that stay in the cache.
constexpr std::int64_t BLOCK = 64, DEPTH = 512;

constexpr std::int64_t padded(std::int64_t n) { return (n + LANES - 1) / LANES * LANES; }

// A matrix whose rows begin at whole lanes; what pads them is 0.
struct Matrix {
    Matrix(std::int64_t rows, std::int64_t columns)
        : rows(rows), columns(columns), stride(padded(columns)), values(rows * stride) {}
    double* row(std::int64_t i) { return values.data() + i * stride; }
    const double* row(std::int64_t i) const { return values.data() + i * stride; }

    std::int64_t rows, columns, stride;
    Values values;
};

#define ENMA_INLINE inline __attribute__((always_inline))

ENMA_INLINE Lane load(const double* at) {
    Lane x;
    std::memcpy(&x, at, sizeof x);
    return x;
}

// out[i ld + j] += sum_k a[i sa + k] b[j sb + k] for ROWS x COLUMNS, over whole lanes.
ENMA_INLINE void tile_body(const double* a, std::int64_t sa, const double* b, std::int64_t sb, std::int64_t length,
                           double* out, std::int64_t ld) {
    Lane sums[ROWS][COLUMNS] = {};
    for (std::int64_t k = 0; k < length; k += LANES) {
        for (int j = 0; j < COLUMNS; ++j) {
            const Lane y = load(b + j * sb + k);
            for (int i = 0; i < ROWS; ++i) sums[i][j] += load(a + i * sa + k) * y;
        }
    }
    for (int i = 0; i < ROWS; ++i) {
        for (int j = 0; j < COLUMNS; ++j) {
            double sum = 0;
            for (int lane = 0; lane < LANES; ++lane) sum += sums[i][j][lane];
            out[i * ld + j] += sum;
        }
    }
}

// y += factor x over whole lanes.
ENMA_INLINE void add_body(double factor, const double* x, std::int64_t length, double* y) {
    for (std::int64_t k = 0; k < length; k += LANES) {
        const Lane sum = load(y + k) + factor * load(x + k);
        std::memcpy(y + k, &sum, sizeof sum);
    }
}

struct Kernels {
    void (*tile)(const double*, std::int64_t, const double*, std::int64_t, std::int64_t, double*, std::int64_t);
    void (*add)(double, const double*, std::int64_t, double*);
};

#define ENMA_KERNELS(name, target)                                                                                   \
    target void tile_##name(const double* a, std::int64_t sa, const double* b, std::int64_t sb, std::int64_t length, \
                            double* out, std::int64_t ld) {                                                          \
        tile_body(a, sa, b, sb, length, out, ld);                                                                    \
    }                                                                                                                \
    target void add_##name(double factor, const double* x, std::int64_t length, double* y) {                         \
        add_body(factor, x, length, y);                                                                              \
    }

ENMA_KERNELS(baseline, )
#ifdef ENMA_X86_KERNELS
ENMA_KERNELS(avx2, __attribute__((target("avx2"))))
ENMA_KERNELS(avx512, __attribute__((target("avx512f"))))
#endif

const Kernels& kernels() {
    static const Kernels found = [] {
#ifdef ENMA_X86_KERNELS
        const Isa best = best_isa();
        if (best == Isa::avx512 || best == Isa::avx512_bf16) return Kernels{tile_avx512, add_avx512};
        if (best == Isa::avx2) return Kernels{tile_avx2, add_avx2};
#endif
        return Kernels{tile_baseline, add_baseline};
    }();
    return found;
}

// out[i ld + j] += a_i . b_j for rows and columns, over `length` numbers, padded with zeros to whole lanes.
void products(const double* a, std::int64_t sa, std::int64_t rows, const double* b, std::int64_t sb,
              std::int64_t columns, std::int64_t length, double* out, std::int64_t ld) {
    const Kernels& run = kernels();
    for (std::int64_t from = 0; from < length; from += DEPTH) {
        const std::int64_t depth = padded(std::min(DEPTH, length - from));
        for (std::int64_t j = 0; j < columns;) {
            const int wide = columns - j >= COLUMNS ? COLUMNS : 1;
            for (std::int64_t i = 0; i < rows;) {
                const int high = rows - i >= ROWS ? ROWS : 1;
                const double *one = a + i * sa + from, *other = b + j * sb + from;
                if (high == ROWS && wide == COLUMNS) {
                    run.tile(one, sa, other, sb, depth, out + i * ld + j, ld);
                } else {
                    // A row or a column alone stands for all of its tile.
                    double edge[ROWS * COLUMNS] = {};
                    run.tile(one, high == 1 ? 0 : sa, other, wide == 1 ? 0 : sb, depth, edge, COLUMNS);
                    for (int r = 0; r < high; ++r) {
                        for (int q = 0; q < wide; ++q) out[(i + r) * ld + j + q] += edge[r * COLUMNS + q];
                    }
                }
                i += high;
            }
            j += wide;
        }
    }
}

// The lower triangle of a covariance becomes that of its root; a pivot that rounding makes 0 becomes `least`.
void factorise(Matrix& a, double least) {
    const std::int64_t n = a.rows, ld = a.stride;
    Values sums(BLOCK * padded(BLOCK));
    for (std::int64_t k = 0; k < n; k += BLOCK) {
        const std::int64_t width = std::min(BLOCK, n - k);
        for (std::int64_t i = k; i < n; i += BLOCK) {
            const std::int64_t height = std::min(BLOCK, n - i);
            std::fill(sums.begin(), sums.end(), 0.0);
            products(a.row(i), ld, height, a.row(k), ld, width, k, sums.data(), BLOCK);
            for (std::int64_t row = i; row < i + height; ++row) {
                double* const at = a.row(row);
                for (std::int64_t j = k; j < std::min(k + width, row + 1); ++j) {
                    double value = at[j] - sums[(row - i) * BLOCK + j - k];
                    for (std::int64_t m = k; m < j; ++m) value -= at[m] * a.row(j)[m];
                    at[j] = j < row ? value / a.row(j)[j] : std::sqrt(value > 0 ? value : least);
                }
            }
        }
    }
}

// Each row of `seen` becomes the weights of its observations, by the root of their covariance.
void solve(const Matrix& root, Matrix& seen) {
    const std::int64_t n = root.rows;
    const Kernels& run = kernels();
    Values sums(seen.rows);
    for (std::int64_t i = 0; i < n; ++i) {
        const std::int64_t whole = i / LANES * LANES;
        std::fill(sums.begin(), sums.end(), 0.0);
        products(seen.row(0), seen.stride, seen.rows, root.row(i), 0, 1, whole, sums.data(), 1);
        for (std::int64_t r = 0; r < seen.rows; ++r) {
            double value = seen.row(r)[i] - sums[r];
            for (std::int64_t k = whole; k < i; ++k) value -= root.row(i)[k] * seen.row(r)[k];
            seen.row(r)[i] = value / root.row(i)[i];
        }
    }
    for (std::int64_t i = n - 1; i >= 0; --i) {
        const std::int64_t whole = i / LANES * LANES;
        for (std::int64_t r = 0; r < seen.rows; ++r) {
            double* const at = seen.row(r);
            at[i] /= root.row(i)[i];
            run.add(-at[i], root.row(i), whole, at);
            for (std::int64_t k = whole; k < i; ++k) at[k] -= at[i] * root.row(i)[k];
        }
    }
}

// Frequency of each wave of a dimension: cosines, then sines around a ring.
std::int64_t frequency(std::int64_t wave, std::int64_t n, bool ring) {
    return ring && wave > n / 2 ? wave - n / 2 : wave;
}

// Entry of the statistics of a wave, without its channel.
std::int64_t entry_of(const FieldCovariance& of, std::int64_t wave) {
    const std::int64_t last = of.dims() - 1, n = of.grid[last];
    const std::int64_t entry = frequency(wave % n, n, of.periodic[last]);
    if (last == 0) return entry;
    return entry + frequency(wave / n, of.grid[0], of.periodic[0]) * (of.periodic[last] ? n / 2 + 1 : n);
}

// Values [n] of the waves of a dimension at a place.
void waves_at(double x, std::int64_t n, double length, bool ring, double* out) {
    const double turn = (ring ? 2 : 1) * std::numbers::pi / length * x;
    for (std::int64_t wave = 0; wave < n; ++wave) {
        const std::int64_t k = frequency(wave, n, ring);
        const bool alone = k == 0 || (ring ? 2 * k == n : k == n - 1), sine = ring && wave > n / 2;
        const double angle = turn * static_cast<double>(k);
        out[wave] = (sine ? std::sin(angle) : std::cos(angle)) * (alone ? 1.0 : std::numbers::sqrt2);
    }
}

// The waves of a channel that matter, with their statistics.
struct Channel {
    Channel(const FieldCovariance& covariance, int channel);
    // Values [rows, M] at points [rows, d].
    Matrix waves(const float* points, std::int64_t rows) const;
    // Covariance of the amplitudes of each wave so many frames apart.
    Values shared(std::int64_t apart) const;
    // That of the field at two places so many frames apart.
    const PlaceCovariance& between(std::int64_t apart) const;
    // Normals of waves or of observations, one for each number, of a draw.
    void normals(const FieldDraws& draws, std::uint32_t number, std::uint32_t frame, const std::int64_t* tokens,
                 std::int64_t count, double* out) const;

    const FieldCovariance& of;
    int channel;
    double total = 0;
    std::vector<std::int64_t> kept;
    Values power, correlation;
    mutable std::map<std::int64_t, PlaceCovariance> tables;
};

Channel::Channel(const FieldCovariance& covariance, int channel) : of(covariance), channel(channel) {
    const std::int64_t points = of.points();
    Values every(points), lasting(points);
    for (std::int64_t wave = 0; wave < points; ++wave) {
        const std::int64_t entry = entry_of(of, wave);
        const double deviation = of.deviation[entry * of.channels + channel];
        every[wave] = deviation * deviation;
        lasting[wave] = of.correlation[entry * of.channels + channel];
    }
    std::vector<std::int64_t> order(points);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](auto i, auto j) { return every[i] > every[j]; });
    for (const std::int64_t wave : order) total += every[wave];
    double left = total;
    for (const std::int64_t wave : order) {
        // A channel that never varies is its mean, whatever is observed.
        if (total == 0 || (!kept.empty() && left <= LEFT_OUT * total)) break;
        kept.push_back(wave);
        power.push_back(every[wave]);
        correlation.push_back(lasting[wave]);
        left -= every[wave];
    }
}

Matrix Channel::waves(const float* points, std::int64_t rows) const {
    const int d = of.dims();
    const std::int64_t M = static_cast<std::int64_t>(kept.size()), n = of.grid[d - 1];
    Matrix out(rows, M);
    Values first(of.grid[0]), last(n);
    for (std::int64_t p = 0; p < rows; ++p) {
        for (int axis = 0; axis < d; ++axis) {
            Values& to = axis == 0 ? first : last;
            waves_at(points[p * d + axis], of.grid[axis], of.lengths[axis], of.periodic[axis], to.data());
        }
        double* const at = out.row(p);
        for (std::int64_t m = 0; m < M; ++m) at[m] = d == 1 ? first[kept[m]] : first[kept[m] / n] * last[kept[m] % n];
    }
    return out;
}

Values Channel::shared(std::int64_t apart) const {
    Values out(power);
    for (std::size_t m = 0; m < out.size(); ++m) out[m] *= std::pow(correlation[m], static_cast<double>(apart * apart));
    return out;
}

const PlaceCovariance& Channel::between(std::int64_t apart) const {
    const auto found = tables.find(apart);
    if (found != tables.end()) return found->second;
    const auto axis = [&](int i) { return PlaceCovariance::Axis{of.grid[i], of.lengths[i], of.periodic[i]}; };
    const int last = of.dims() - 1;
    const Values amplitudes = shared(apart);
    Values by_entry(of.entries() / of.channels);
    for (std::size_t m = 0; m < kept.size(); ++m) by_entry[entry_of(of, kept[m])] = amplitudes[m];
    const PlaceCovariance::Axis none{1, 1.0, true};
    return tables.try_emplace(apart, std::array{last == 0 ? none : axis(0), axis(last)}, by_entry).first->second;
}

void Channel::normals(const FieldDraws& draws, std::uint32_t number, std::uint32_t frame, const std::int64_t* tokens,
                      std::int64_t count, double* out) const {
    std::vector<float> each(of.channels);
    for (std::int64_t i = 0; i < count; ++i) {
        const std::uint32_t token = static_cast<std::uint32_t>(tokens == nullptr ? i : tokens[i]);
        philox_token_normals({0, token, draws.step, frame}, draws.seed, number, of.channels, each.data());
        out[i] = each[channel];
    }
}

// Frames that are estimated from the same ones.
struct Window {
    std::int64_t first, count;
    std::vector<std::int64_t> targets;
};

// Which frames are estimated from which: from themselves, and neighbours in time.
std::vector<Window> windows(const std::vector<std::int64_t>& rows) {
    const std::int64_t frames = static_cast<std::int64_t>(rows.size());
    std::map<std::pair<std::int64_t, std::int64_t>, std::vector<std::int64_t>> found;
    for (std::int64_t t = 0; t < frames; ++t) {
        std::int64_t first = std::max<std::int64_t>(0, std::min(t - FRAMES / 2, frames - FRAMES));
        std::int64_t count = std::min(FRAMES, frames - first);
        if (std::accumulate(rows.begin() + first, rows.begin() + first + count, std::int64_t{0}) > MOST) {
            first = t;
            count = 1;
        }
        found[{first, count}].push_back(t);
    }
    std::vector<Window> out;
    for (auto& [span, targets] : found) out.push_back({span.first, span.second, std::move(targets)});
    return out;
}

void add_places(const float* points, std::int64_t rows, int dims, std::vector<Place>& out) {
    for (; rows-- > 0; points += dims) out.push_back({{dims == 1 ? 0.0 : points[0], points[dims - 1]}});
}

// Root of the covariance of observations at places of frames one after the other, each with what it has of its own.
Matrix root_of(const Channel& channel, const std::vector<Place>& places, const std::vector<std::int64_t>& frame_of,
               double own) {
    const std::int64_t P = static_cast<std::int64_t>(places.size());
    Matrix covariance(P, P);
    for (std::int64_t from = 0; from < P;) {
        std::int64_t end = from;
        while (end < P && frame_of[end] == frame_of[from]) ++end;
        for (std::int64_t row = from; row < P;) {
            const std::int64_t frame = frame_of[row];
            const PlaceCovariance& table = channel.between(frame - frame_of[from]);
            for (; row < P && frame_of[row] == frame; ++row) {
                table.between(places[row], places.data() + from, std::min(end, row + 1) - from,
                              covariance.row(row) + from);
            }
        }
        from = end;
    }
    for (std::int64_t i = 0; i < P; ++i) covariance.row(i)[i] += own;
    factorise(covariance, own);
    return covariance;
}

// Adds weights [N, P] times waves [P, M], of some of the observations, to out [N, M].
void add_waves(const Matrix& weights, const Matrix& waves, std::int64_t first, std::int64_t last, Matrix& out) {
    const Kernels& run = kernels();
    for (std::int64_t p = first; p < last; ++p) {
        for (std::int64_t r = 0; r < weights.rows; ++r)
            run.add(weights.row(r)[p], waves.row(p), out.stride, out.row(r));
    }
}

// Values [n, n] of the waves of each dimension at the points of the grid.
std::vector<Values> waves_on_axes(const FieldCovariance& of) {
    std::vector<Values> out;
    for (int axis = 0; axis < of.dims(); ++axis) {
        const std::int64_t n = of.grid[axis];
        const bool ring = of.periodic[axis];
        const double spacing = of.lengths[axis] / static_cast<double>(ring ? n : std::max<std::int64_t>(1, n - 1));
        Values& values = out.emplace_back(n * n);
        for (std::int64_t x = 0; x < n; ++x) {
            waves_at(static_cast<double>(x) * spacing, n, of.lengths[axis], ring, values.data() + x * n);
        }
    }
    return out;
}

// transform(axis, values, line) for every line [n] along every dimension of a field, in place: [n0, n1] of a plane.
template <class Transform>
void along_axes(const FieldCovariance& of, Values& field, const Transform& transform) {
    Values line, made;
    std::int64_t inner = 1;
    for (int axis = of.dims() - 1; axis >= 0; --axis) {
        const std::int64_t n = of.grid[axis], outer = of.points() / (n * inner);
        line.resize(n);
        made.resize(n);
        for (std::int64_t o = 0; o < outer; ++o) {
            for (std::int64_t i = 0; i < inner; ++i) {
                double* const at = field.data() + o * n * inner + i;
                for (std::int64_t x = 0; x < n; ++x) line[x] = at[x * inner];
                transform(axis, line, made);
                for (std::int64_t x = 0; x < n; ++x) at[x * inner] = made[x];
            }
        }
        inner *= n;
    }
}

// Values on the grid of amplitudes of all waves.
void to_grid(const FieldCovariance& of, const std::vector<Values>& on_axes, Values& field) {
    along_axes(of, field, [&](int axis, const Values& line, Values& made) {
        const std::size_t n = line.size();
        for (std::size_t x = 0; x < n; ++x) {
            made[x] = 0;
            for (std::size_t wave = 0; wave < n; ++wave) made[x] += on_axes[axis][x * n + wave] * line[wave];
        }
    });
}

// And back. Waves between walls are orthogonal where the points at both ends count half.
void to_waves(const FieldCovariance& of, const std::vector<Values>& on_axes, Values& field) {
    along_axes(of, field, [&](int axis, const Values& line, Values& made) {
        const std::size_t n = line.size();
        const bool walls = !of.periodic[axis] && n > 1;
        std::fill(made.begin(), made.end(), 0.0);
        for (std::size_t x = 0; x < n; ++x) {
            const double value = (walls && (x == 0 || x == n - 1) ? 0.5 : 1.0) * line[x];
            for (std::size_t wave = 0; wave < n; ++wave) made[wave] += on_axes[axis][x * n + wave] * value;
        }
        for (double& amplitude : made) amplitude /= static_cast<double>(walls ? n - 1 : n);
    });
}

// Number of the shell of each wave: its wave number, in units of the smallest one.
std::vector<std::size_t> shells(const FieldCovariance& of) {
    const auto turns = [&](int axis) { return (of.periodic[axis] ? 2.0 : 1.0) / of.lengths[axis]; };
    double least = turns(0);
    for (int axis = 1; axis < of.dims(); ++axis) least = std::min(least, turns(axis));
    std::vector<std::size_t> out(of.points());
    for (std::int64_t wave = 0; wave < of.points(); ++wave) {
        double square = 0;
        std::int64_t after = of.points(), rest = wave;
        for (int axis = 0; axis < of.dims(); ++axis) {
            after /= of.grid[axis];
            const double k =
                static_cast<double>(frequency(rest / after, of.grid[axis], of.periodic[axis])) * turns(axis);
            square += k * k;
            rest %= after;
        }
        out[wave] = static_cast<std::size_t>(std::sqrt(square) / least + 0.5);
    }
    return out;
}

// What is estimated of a channel: [L] of amplitudes [1 + S, M], of what is seen and of draws; how many times as large as
// their statistics observations are, [L], and how many they are.
struct Estimate {
    std::vector<Matrix> amplitudes;
    Values size, count;
};

// Observations of a frame, less the mean.
void values_of(const Channel& channel, const ScatteredFrames& frames, std::int64_t first, std::int64_t rows,
               double* out) {
    const int c = channel.of.channels, i = channel.channel;
    for (std::int64_t p = 0; p < rows; ++p) out[p] = frames.values[(first + p) * c + i] - channel.of.mean[i];
}

double size_of(const double* seen, const double* weights, std::int64_t count) {
    double sum = 0;
    for (std::int64_t p = 0; p < count; ++p) sum += seen[p] * weights[p];
    // What is not a number stays so.
    return std::sqrt(sum < 0 ? 0 : sum / static_cast<double>(count));
}

// Each frame from its own values, where all are seen at the same points.
Estimate from_same_points(const Channel& channel, const ScatteredFrames& frames, const Matrix& prior, double own) {
    const std::int64_t L = static_cast<std::int64_t>(frames.rows.size()), P = frames.rows[0];
    const std::int64_t M = static_cast<std::int64_t>(channel.kept.size()), S = prior.rows;
    const Matrix waves = channel.waves(frames.points, P);
    Matrix seen(L + S, P);
    for (std::int64_t t = 0; t < L; ++t) values_of(channel, frames, t * P, P, seen.row(t));
    products(prior.values.data(), prior.stride, S, waves.values.data(), waves.stride, P, M, seen.row(L), seen.stride);
    Matrix weights = seen;
    std::vector<Place> places;
    add_places(frames.points, P, channel.of.dims(), places);
    solve(root_of(channel, places, std::vector<std::int64_t>(P), own), weights);
    Matrix all(L + S, M);
    add_waves(weights, waves, 0, P, all);
    Estimate out{std::vector<Matrix>(L, Matrix(1 + S, M)), Values(L), Values(L, static_cast<double>(P))};
    for (std::int64_t t = 0; t < L; ++t) {
        out.size[t] = size_of(seen.row(t), weights.row(t), P);
        for (std::int64_t r = 0; r <= S; ++r) {
            const double* const from = all.row(r == 0 ? t : L + r - 1);
            for (std::int64_t m = 0; m < M; ++m) out.amplitudes[t].row(r)[m] = from[m] * channel.power[m];
        }
    }
    return out;
}

// The same where each frame has points of its own, or values have errors, which neighbours in time reduce.
Estimate from_own_points(const Channel& channel, const ScatteredFrames& frames, const Matrix& prior,
                         const FieldDraws* draws, double error, double own) {
    const std::int64_t L = static_cast<std::int64_t>(frames.rows.size()), S = prior.rows, d = channel.of.dims();
    const std::int64_t M = static_cast<std::int64_t>(channel.kept.size());
    std::vector<std::int64_t> begins(L + 1);
    std::partial_sum(frames.rows.begin(), frames.rows.end(), begins.begin() + 1);
    Estimate out{std::vector<Matrix>(L, Matrix(1 + S, M)), Values(L), Values(L)};
    for (const Window& window : windows(frames.rows)) {
        const std::int64_t from = begins[window.first], P = begins[window.first + window.count] - from;
        Matrix waves(P, M), seen(1 + S, P);
        std::vector<std::int64_t> frame_of;
        std::vector<Place> places;
        for (std::int64_t t = window.first; t < window.first + window.count; ++t) {
            const std::int64_t rows = frames.rows[t], at = begins[t] - from;
            frame_of.insert(frame_of.end(), rows, t);
            const float* const points = frames.points + (frames.shared ? 0 : begins[t] * d);
            add_places(points, rows, channel.of.dims(), places);
            const Matrix part = channel.waves(points, rows);
            std::copy_n(part.values.data(), rows * part.stride, waves.row(at));
            values_of(channel, frames, begins[t], rows, seen.row(0) + at);
            if (S == 0) continue;
            products(prior.values.data(), prior.stride, S, part.values.data(), part.stride, rows, M, seen.row(1) + at,
                     seen.stride);
            Values noise(error > 0 ? rows : 0);
            for (std::int64_t s = 0; error > 0 && s < S; ++s) {
                const std::uint32_t frame = static_cast<std::uint32_t>(1 + t);
                channel.normals(*draws, draws->numbers[s], frame, nullptr, rows, noise.data());
                for (std::int64_t p = 0; p < rows; ++p) seen.row(1 + s)[at + p] += error * noise[p];
            }
        }
        Matrix weights = seen;
        solve(root_of(channel, places, frame_of, own), weights);
        for (std::int64_t t = window.first; t < window.first + window.count; ++t) {
            Matrix sum(1 + S, M);
            add_waves(weights, waves, begins[t] - from, begins[t + 1] - from, sum);
            for (const std::int64_t target : window.targets) {
                const Values shared = channel.shared(t - target);
                for (std::int64_t r = 0; r <= S; ++r) {
                    for (std::int64_t m = 0; m < M; ++m) {
                        out.amplitudes[target].row(r)[m] += sum.row(r)[m] * shared[m];
                    }
                }
            }
        }
        for (const std::int64_t target : window.targets) {
            out.size[target] = size_of(seen.row(0), weights.row(0), P);
            out.count[target] = static_cast<double>(P);
        }
    }
    return out;
}

}  // namespace

std::int64_t FieldCovariance::points() const {
    return std::accumulate(grid.begin(), grid.end(), std::int64_t{1}, std::multiplies<>());
}

std::int64_t FieldCovariance::entries() const {
    std::int64_t count = channels;
    for (int axis = 0; axis < dims(); ++axis) count *= periodic[axis] ? grid[axis] / 2 + 1 : grid[axis];
    return count;
}

double analyse(const FieldCovariance& covariance, const ScatteredFrames& seen, const std::vector<double>& errors,
               const FieldDraws* draws, float* out) {
    const std::int64_t L = static_cast<std::int64_t>(seen.rows.size()), X = covariance.points();
    const std::int64_t S = draws == nullptr ? 0 : static_cast<std::int64_t>(draws->numbers.size());
    const int c = covariance.channels;
    const std::vector<Values> on_axes = waves_on_axes(covariance);
    double largest = 0;
    Values field(X);
    for (int i = 0; i < c; ++i) {
        const Channel channel(covariance, i);
        const std::int64_t M = static_cast<std::int64_t>(channel.kept.size());
        const double error = errors.empty() ? 0.0 : errors[i];
        // Any number will do where nothing varies.
        const double own = (channel.total > 0 ? NUGGET * channel.total : 1.0) + error * error;
        Matrix prior(S, M);
        for (std::int64_t s = 0; s < S; ++s) {
            channel.normals(*draws, draws->numbers[s], 0, channel.kept.data(), M, prior.row(s));
            for (std::int64_t m = 0; m < M; ++m) prior.row(s)[m] *= std::sqrt(channel.power[m]);
        }
        const Estimate found = seen.shared && error == 0 ? from_same_points(channel, seen, prior, own)
                                                         : from_own_points(channel, seen, prior, draws, error, own);
        for (std::int64_t t = 0; t < L; ++t) {
            const double size = found.size[t], count = found.count[t];
            if (size > largest || std::isnan(size)) largest = size;
            // A few observations say little of the size.
            const double drawn = std::sqrt((FIRM + count * size * size) / (FIRM + count));
            const Matrix& amplitudes = found.amplitudes[t];
            for (std::int64_t s = 0; s < std::max<std::int64_t>(1, S); ++s) {
                std::fill(field.begin(), field.end(), 0.0);
                for (std::int64_t m = 0; m < M; ++m) {
                    double amplitude = amplitudes.row(0)[m];
                    if (S > 0) amplitude += drawn * (prior.row(s)[m] - amplitudes.row(1 + s)[m]);
                    field[channel.kept[m]] = amplitude;
                }
                to_grid(covariance, on_axes, field);
                for (std::int64_t x = 0; x < X; ++x) {
                    out[((s * L + t) * X + x) * c + i] = static_cast<float>(covariance.mean[i] + field[x]);
                }
            }
        }
    }
    return largest;
}

void draw_field(const FieldCovariance& covariance, const float* first, std::uint32_t seed, std::uint32_t number,
                float* out) {
    const std::int64_t X = covariance.points(), c = covariance.channels;
    const std::vector<Values> on_axes = waves_on_axes(covariance);
    const std::vector<std::size_t> shell = shells(covariance);
    const std::size_t count = *std::max_element(shell.begin(), shell.end()) + 1;
    std::vector<float> normals(X * c);
    for (std::int64_t wave = 0; wave < X; ++wave) {
        philox_token_normals({0, static_cast<std::uint32_t>(wave), FIELD_STEP, 0}, seed, number, static_cast<int>(c),
                             normals.data() + wave * c);
    }
    Values power(X), field(X);
    for (std::int64_t i = 0; i < c; ++i) {
        for (std::int64_t wave = 0; wave < X; ++wave) {
            const double deviation = covariance.deviation[entry_of(covariance, wave) * c + i];
            power[wave] = deviation * deviation;
        }
        if (first != nullptr) {
            Values waves(count), own(count), prior(count);
            double all_own = 0, all_prior = 0;
            for (std::int64_t x = 0; x < X; ++x) field[x] = first[x * c + i] - covariance.mean[i];
            to_waves(covariance, on_axes, field);
            for (std::int64_t wave = 0; wave < X; ++wave) {
                const double square = field[wave] * field[wave];
                waves[shell[wave]] += 1;
                own[shell[wave]] += square;
                prior[shell[wave]] += power[wave];
                all_own += square;
                all_prior += power[wave];
            }
            // Logarithm of how many times as large as the statistics have it a power is.
            constexpr double TINY = std::numeric_limits<double>::min();
            const auto gain = [&](double seen, double expected) {
                return std::log(std::max(seen, TINY) / std::max(expected, TINY));
            };
            const double whole = gain(all_own, all_prior);
            for (std::int64_t wave = 0; wave < X; ++wave) {
                const std::size_t s = shell[wave];
                power[wave] *=
                    std::exp((waves[s] * gain(own[s], prior[s]) + SHELL_FIRM * whole) / (waves[s] + SHELL_FIRM));
            }
        }
        for (std::int64_t wave = 0; wave < X; ++wave) field[wave] = std::sqrt(power[wave]) * normals[wave * c + i];
        to_grid(covariance, on_axes, field);
        for (std::int64_t x = 0; x < X; ++x) out[x * c + i] = static_cast<float>(field[x] + covariance.mean[i]);
    }
}

}  // namespace enma
