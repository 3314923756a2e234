// Floors `vibration` and `diffusion`: linear propagators between walls. enma_fast/models/floors/stencil.py
//
// Legend: c channels, J coefficients of a law, L nodes and polynomials; P polynomials of all frames that a step reads.
#include <algorithm>
#include <cmath>
#include <numbers>

#include "core/cpu/floor.h"
#include "core/cpu/second_difference.h"
#include "core/cpu/small_matrix.h"
#include "core/cpu/vector_kernels.h"

namespace enma {

namespace {

constexpr int TERMS = 48, STEPS = 12;
constexpr double TINY = 1e-14, DECAY = 40.0, GROWTH = 0.5, LEAST_NOISE = 1e-12, ERRORS = 0.03, MUCH = 8.0;
// The largest size of an eigenvalue of one axis; and Chebyshev coefficients below this share change no value of a field.
constexpr double LARGEST = 16.0 / 3, LEAST = 1e-10;
constexpr double FIVE_POINTS[INSIDE] = {-1.0 / 12, 16.0 / 12, -30.0 / 12, 16.0 / 12, -1.0 / 12};

using Law = std::vector<double>;
using Nodes = std::vector<double>;  // [L]

struct Symbols {
    Nodes a, b;                                   // b: of second order
    std::vector<std::pair<Nodes, Nodes>> slopes;  // by each coefficient
};

struct CosSinc {
    double cos, sinc;
};

// cos(sqrt q) and sin(sqrt q) / sqrt q, and their continuation below 0.
CosSinc cos_sinc(double q) {
    const double root = std::sqrt(std::max(std::abs(q), TINY)), limited = std::min(root, 40.0);
    if (q >= 0) return {std::cos(root), std::sin(root) / root};
    return {std::cosh(limited), std::sinh(limited) / root};
}

// Coefficients of a member, and what a step multiplies by.
struct Laws : Inferred {
    std::vector<Law> law;           // [c]
    std::vector<SmallMatrix> root;  // [c]
    std::vector<double> residual;   // [c]
    std::vector<Nodes> a, b;        // [c]: Chebyshev coefficients
};

// Products of polynomials of past frames with each other and with the next frame, relative to its energy.
struct Gram {
    std::vector<double> products, moment;  // [P, P], [P]
};

struct Fit {
    Law law;
    SmallMatrix hessian;
    double cost;
};

class StencilFloor : public Floor {
   public:
    StencilFloor(const FloorGrid& grid, const TakeFloor& take, int order)
        : Floor(grid.values()), channels_(grid.channels), order_(order), J_(order == 2 ? 5 : 3) {
        const std::int64_t dims = static_cast<std::int64_t>(grid.axes.size()), c = channels_, J = J_;
        const std::vector<double> walls = take.wide("walls", {dims, WALL_ROWS, 2});
        mean_ = take.wide("mean", {c});
        law_mean_ = take.wide("law_mean", {c, J});
        const std::vector<double> covariance = take.wide("law_covariance", {c, J, J});
        noise_ = take.wide("noise", {c});
        rests_ = *take.take("rests", {}) != 0.0f;
        std::vector<std::int64_t> shape;
        for (const GridAxis& axis : grid.axes) shape.push_back(axis.points);
        shape.push_back(c);
        const std::vector<float> still = take.values("still", shape);
        for (int i = 0; i < values_; ++i) {
            if (still[i] != 0.0f) still_.push_back(i);
        }
        const double least = *std::min_element(grid.spacings.begin(), grid.spacings.end());
        double total = 0.0;
        for (const double spacing : grid.spacings) total += least / spacing * (least / spacing);
        size_ = LARGEST * total;
        for (std::size_t axis = 0; axis < grid.axes.size(); ++axis) {
            const double weight = least / grid.spacings[axis] * (least / grid.spacings[axis]) * 2 / size_;
            (axis + 1 < grid.axes.size() ? difference_.first : difference_.last) =
                along(grid.axes[axis], walls.data() + axis * WALL_ROWS * 2, weight);
        }
        if (dims == 1) difference_.first.points = 1;
        for (int l = 0; l < TERMS; ++l) {
            const double node = std::numbers::pi * (l + 0.5) / TERMS, e = size_ * (std::cos(node) - 1) / 2;
            powers_[0].push_back(1.0);
            powers_[1].push_back(e);
            powers_[2].push_back(e * e / size_);
            for (int t = 0; t < TERMS; ++t) to_terms_.push_back(std::cos(node * t) * (t == 0 ? 1.0 : 2.0) / TERMS);
        }
        for (int i = 0; i < channels_; ++i) {
            covariance_.emplace_back(J_, covariance.data() + std::ptrdiff_t{i} * J_ * J_);
            prior_.push_back(covariance_.back().inverse().times(noise_[i]));
        }
        for (int i = 0; i < (order == 2 ? 32 : 16); ++i) {
            starts_.push_back(order == 2 ? -std::pow(10.0, -2 + 4 * i / 31.0) : std::pow(10.0, -3 + 4 * i / 15.0));
        }
    }

    int reads() const override { return order_; }
    int features() const override { return channels_ * (J_ + 1); }
    int draws() const override { return channels_ * J_; }
    std::size_t work_bytes() const override { return 6 * (sizeof(double) * difference_.size() + 64); }

    Inference infer(const Windows& windows, Isa isa) const override {
        auto out = std::make_shared<Laws>();
        for (int c = 0; c < channels_; ++c) {
            const Gram gram = gram_of(windows, c, vector_kernels(isa).differences);
            Fit fit = fitted(gram, prior_[c], c);
            double drawn = noise_[c];
            const double left = share(gram, fit.law), errors = ERRORS * left;
            if (errors > noise_[c]) {
                // All floors draw more where misfits are large, which the noise has counted.
                drawn = std::max(errors / std::min(std::sqrt(left / noise_[c]), MUCH), noise_[c]);
                fit = fitted(gram, prior_[c].times(errors / noise_[c]), c);
            }
            out->root.push_back(fit.hessian.inverse().times(drawn).root());
            out->residual.push_back(std::log(std::max(share(gram, fit.law), TINY)));
            out->law.push_back(fit.law);
        }
        set_terms(*out);
        return out;
    }

    void tell(const Inferred* inferred, const Windows&, float* out) const override {
        const Laws& laws = static_cast<const Laws&>(*inferred);
        for (int c = 0; c < channels_; ++c) {
            for (int j = 0; j < J_; ++j) {
                const double off = (laws.law[c][j] - law_mean_[c * J_ + j]) / std::sqrt(covariance_[c].at(j, j));
                *out++ = static_cast<float>(std::clamp(off, -4.0, 4.0));
            }
            *out++ = static_cast<float>(laws.residual[c] / 8 + 1);
        }
    }

    Inference draw(const Inference& inferred, const float* normals) const override {
        auto out = std::make_shared<Laws>(static_cast<const Laws&>(*inferred));
        for (int c = 0; c < channels_; ++c, normals += J_) {
            const Law moved = out->root[c].times(Law(normals, normals + J_));
            for (int j = 0; j < J_; ++j) out->law[c][j] += moved[j];
        }
        set_terms(*out);
        return out;
    }

    void step(Past past, const Inferred* inferred, Isa isa, char* work, float* views) const override {
        const Laws& laws = static_cast<const Laws&>(*inferred);
        const DifferenceKernels& run = vector_kernels(isa).differences;
        const std::int64_t size = difference_.size();
        Allocator memory(work);
        double* parts[6];
        for (double*& part : parts) part = memory.take<double>(size);
        for (int c = 0; c < channels_; ++c) {
            read_rows(past[PAST_FRAMES - 1], c, parts[0]);
            apply(run, parts[0], laws.a[c], parts + 2, parts[1]);
            if (order_ == 2) {
                // The product with the frame before takes the place of the last frame.
                read_rows(past[PAST_FRAMES - 2], c, parts[5]);
                for (const int i : still_) {
                    if (i % channels_ == c) parts[5][i / channels_] = parts[0][i / channels_];
                }
                apply(run, parts[5], laws.b[c], parts + 2, parts[0]);
                const double* const both[] = {parts[1], parts[0]};
                constexpr double FACTORS[] = {1.0, -1.0};
                run.sum(both, FACTORS, 2, size, parts[1]);
            }
            write_rows(parts[1], c, views);
        }
        for (const int i : still_) views[i] = past[PAST_FRAMES - 1][i];
    }

    void before(const float* first, const Inferred* inferred, Isa isa, float* out) const override {
        if (!rests_) return Floor::before(first, inferred, isa, out);
        const Laws& laws = static_cast<const Laws&>(*inferred);
        const std::int64_t size = difference_.size();
        std::vector<double> rows(size), made(size), work(3 * size);
        double* const spare[] = {work.data(), work.data() + size, work.data() + 2 * size};
        for (int c = 0; c < channels_; ++c) {
            const Symbols symbols = symbols_of(laws.law[c], 0.0, false);
            Nodes values(TERMS);
            for (int l = 0; l < TERMS; ++l) values[l] = (symbols.a[l] - rest(laws.law[c], l)) / symbols.b[l];
            read_rows(first, c, rows.data());
            apply(vector_kernels(isa).differences, rows.data(), terms(values), spare, made.data());
            write_rows(made.data(), c, out);
        }
    }

   private:
    // The second difference along an axis, with shares [rows, 2] of the even and of the odd kind next to walls.
    static DifferenceAxis along(const GridAxis& axis, const double* shares, double weight) {
        DifferenceAxis out{axis.points, axis.edge == GridEdge::periodic, {}, {}};
        for (int j = 0; j < INSIDE; ++j) out.inside[j] = FIVE_POINTS[j] * weight;
        for (int i = 0; i < WALL_ROWS; ++i) {
            const double even = shares[2 * i] * weight, odd = shares[2 * i + 1] * weight;
            for (int k = 0; k < INSIDE; ++k) {
                const int j = i + k - 2;
                if (j >= 0) {
                    out.wall[i][j] += (even + odd) * FIVE_POINTS[k];
                    continue;
                }
                // Even about the wall, half a point outside; odd about the point outside.
                out.wall[i][-1 - j] += even * FIVE_POINTS[k];
                if (j < -1) out.wall[i][-2 - j] -= odd * FIVE_POINTS[k];
            }
        }
        return out;
    }

    // Anomalies of a channel, and back.
    void read_rows(const float* frame, int c, double* rows) const {
        for (std::int64_t i = 0; i < difference_.size(); ++i) rows[i] = frame[i * channels_ + c] - mean_[c];
    }
    void write_rows(const double* rows, int c, float* frame) const {
        for (std::int64_t i = 0; i < difference_.size(); ++i) {
            frame[i * channels_ + c] = static_cast<float>(rows[i] + mean_[c]);
        }
    }

    // The function of 1 + A with these Chebyshev coefficients, of rows; with three fields of work space.
    void apply(const DifferenceKernels& run, const double* rows, const Nodes& coefficients, double* const* work,
               double* out) const {
        const std::int64_t size = difference_.size();
        double most = 0.0;
        for (const double value : coefficients) most = std::max(most, std::abs(value));
        int used = 1;
        for (int t = 0; t < TERMS; ++t) used = std::abs(coefficients[t]) > LEAST * most ? t + 1 : used;
        double *later = work[0], *before = work[1], *moved = work[2];
        std::fill_n(later, size, 0.0);
        std::fill_n(before, size, 0.0);
        for (int t = used; t-- > 0;) {
            run.moved(difference_, later, moved);
            const double* const fields[] = {rows, moved, before};
            const double factors[] = {coefficients[t], t > 0 ? 2.0 : 1.0, -1.0};
            run.sum(fields, factors, 3, size, t > 0 ? before : out);
            std::swap(later, before);
        }
    }

    Nodes terms(const Nodes& values) const {
        Nodes out(TERMS);
        for (int l = 0; l < TERMS; ++l) {
            for (int t = 0; t < TERMS; ++t) out[t] += values[l] * to_terms_[l * TERMS + t];
        }
        return out;
    }

    void set_terms(Laws& laws) const {
        laws.a.clear();
        laws.b.clear();
        for (const Law& law : laws.law) {
            const Symbols symbols = symbols_of(law, 0.0, false);
            laws.a.push_back(terms(symbols.a));
            laws.b.push_back(order_ == 2 ? terms(symbols.b) : Nodes());
        }
    }

    // Of laws of second order, at a node.
    double damping(const Law& law, int l) const { return law[0] + law[1] * powers_[1][l]; }
    double stiffness(const Law& law, int l) const { return law[2] + law[3] * powers_[1][l] + law[4] * powers_[2][l]; }

    // By what a step multiplies fields that are at rest.
    double rest(const Law& law, int l) const {
        const double d = std::clamp(damping(law, l), 0.0, DECAY), s = std::max(stiffness(law, l), 0.0);
        const CosSinc q = cos_sinc(s - d * d / 4);
        return std::exp(-d / 2) * (q.cos + d / 2 * q.sinc);
    }

    // Values of a and b at the nodes, and their derivatives, with so much growth in a step, as a logarithm.
    Symbols symbols_of(const Law& law, double growth, bool derived) const {
        Symbols out{Nodes(TERMS), Nodes(order_ == 2 ? TERMS : 0), {}};
        Nodes a_d(TERMS), b_d(TERMS), a_s(TERMS);
        for (int l = 0; l < TERMS; ++l) {
            if (order_ == 1) {
                const double c = law[0] + law[1] * powers_[1][l] + law[2] * powers_[2][l];
                out.a[l] = std::exp(std::clamp(c, -DECAY, growth));
                a_d[l] = c <= growth ? out.a[l] : 0.0;
                continue;
            }
            const double free_d = damping(law, l), free_s = stiffness(law, l);
            const double d = std::clamp(free_d, -growth, DECAY), s = std::max(free_s, -growth);
            const double half = std::exp(-d / 2);
            const CosSinc q = cos_sinc(s - d * d / 4);
            out.a[l] = 2 * half * q.cos;
            out.b[l] = std::exp(-d);
            a_d[l] = free_d >= -growth ? -out.a[l] / 2 + half * q.sinc * d / 2 : 0.0;
            b_d[l] = free_d >= -growth ? -out.b[l] : 0.0;
            a_s[l] = free_s >= -growth ? -half * q.sinc : 0.0;
        }
        const auto times = [](const Nodes& x, const Nodes& power) {
            Nodes made(TERMS);
            for (int l = 0; l < TERMS; ++l) made[l] = x[l] * power[l];
            return made;
        };
        const Nodes none(TERMS);
        for (int j = 0; derived && j < J_; ++j) {
            if (order_ == 1) {
                out.slopes.emplace_back(times(a_d, powers_[j]), Nodes());
            } else if (j < 2) {
                out.slopes.emplace_back(times(a_d, powers_[j]), times(b_d, powers_[j]));
            } else {
                out.slopes.emplace_back(times(a_s, powers_[j - 2]), none);
            }
        }
        return out;
    }

    // Chebyshev coefficients of a and of b, side by side.
    std::vector<double> both_terms(const Nodes& a, const Nodes& b) const {
        std::vector<double> out = terms(a);
        if (order_ == 1) return out;
        const Nodes others = terms(b);
        out.insert(out.end(), others.begin(), others.end());
        return out;
    }

    Gram gram_of(const Windows& windows, int c, const DifferenceKernels& run) const {
        const std::int64_t size = difference_.size();
        const int P = order_ * TERMS, steps = PAST_FRAMES - order_;
        Gram out{std::vector<double>(static_cast<std::size_t>(P) * P), std::vector<double>(P)};
        std::vector<double> basis(P * size), next(size), moved(size);
        double energy = 0.0;
        for (int w = 0; w < windows.count * steps; ++w) {
            const float* const first =
                windows.values + static_cast<std::ptrdiff_t>(w / steps * PAST_FRAMES + w % steps) * values_;
            for (int p = 0; p < order_; ++p) {
                // The last frame comes first; the one before is taken away.
                double* const rows = basis.data() + p * TERMS * size;
                read_rows(first + static_cast<std::ptrdiff_t>(order_ - 1 - p) * values_, c, rows);
                for (std::int64_t i = 0; p == 1 && i < size; ++i) rows[i] = -rows[i];
                run.moved(difference_, rows, rows + size);
                for (int t = 2; t < TERMS; ++t) {
                    run.moved(difference_, rows + (t - 1) * size, moved.data());
                    const double* const fields[] = {moved.data(), rows + (t - 2) * size};
                    constexpr double FACTORS[] = {2.0, -1.0};
                    run.sum(fields, FACTORS, 2, size, rows + t * size);
                }
            }
            read_rows(first + static_cast<std::ptrdiff_t>(order_) * values_, c, next.data());
            energy += run.product(next.data(), next.data(), size);
            for (int p = 0; p < P; ++p) {
                out.moment[p] += run.product(basis.data() + p * size, next.data(), size);
                for (int q = 0; q <= p; ++q) {
                    out.products[p * P + q] += run.product(basis.data() + p * size, basis.data() + q * size, size);
                }
            }
        }
        energy = std::max(energy, TINY);
        for (int p = 0; p < P; ++p) {
            out.moment[p] /= energy;
            for (int q = 0; q <= p; ++q) out.products[q * P + p] = out.products[p * P + q] /= energy;
        }
        return out;
    }

    static std::vector<double> moved_by(const Gram& gram, const std::vector<double>& x) {
        const std::size_t P = gram.moment.size();
        std::vector<double> out(P);
        for (std::size_t p = 0; p < P; ++p) {
            for (std::size_t q = 0; q < P; ++q) out[p] += gram.products[p * P + q] * x[q];
        }
        return out;
    }

    // Share of the energy that a law leaves unexplained.
    double share(const Gram& gram, const Law& law) const {
        const Symbols symbols = symbols_of(law, GROWTH, false);
        const std::vector<double> x = both_terms(symbols.a, symbols.b), moved = moved_by(gram, x);
        double made = 1.0;
        for (std::size_t p = 0; p < x.size(); ++p) made += x[p] * (moved[p] - 2 * gram.moment[p]);
        return std::max(made, 0.0);
    }

    double cost(const Gram& gram, const Law& law, const Law& mean, const SmallMatrix& prior) const {
        Law away(J_);
        for (int j = 0; j < J_; ++j) away[j] = law[j] - mean[j];
        return share(gram, law) + prior.form(away);
    }

    // From the two best of many starts.
    Fit fitted(const Gram& gram, const SmallMatrix& prior, int c) const {
        const Law mean(law_mean_.begin() + std::ptrdiff_t{c} * J_, law_mean_.begin() + std::ptrdiff_t{c + 1} * J_);
        std::vector<std::pair<double, Law>> starts{{cost(gram, mean, mean, prior), mean}};
        for (const double value : starts_) {
            Law law = mean;
            law[J_ - 2] = value;
            starts.emplace_back(cost(gram, law, mean, prior), std::move(law));
        }
        std::stable_sort(starts.begin(), starts.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
        Fit first = descended(gram, starts[0].second, mean, prior),
            second = descended(gram, starts[1].second, mean, prior);
        return second.cost < first.cost ? second : first;
    }

    // After Levenberg-Marquardt steps.
    Fit descended(const Gram& gram, Law law, const Law& mean, const SmallMatrix& prior) const {
        SmallMatrix hessian = prior;
        double least = cost(gram, law, mean, prior), damping = 1e-4;
        for (int step = 0; step < STEPS; ++step) {
            const Symbols symbols = symbols_of(law, GROWTH, true);
            const std::vector<double> x = both_terms(symbols.a, symbols.b), moved = moved_by(gram, x);
            Law away(J_);
            for (int j = 0; j < J_; ++j) away[j] = mean[j] - law[j];
            Law slope = prior.times(away);
            hessian = prior;
            std::vector<std::vector<double>> by;
            for (const auto& [a, b] : symbols.slopes) by.push_back(both_terms(a, b));
            for (int j = 0; j < J_; ++j) {
                const std::vector<double> through = moved_by(gram, by[j]);
                for (std::size_t p = 0; p < x.size(); ++p) {
                    slope[j] += by[j][p] * (gram.moment[p] - moved[p]);
                    for (int i = 0; i < J_; ++i) hessian.at(i, j) += by[i][p] * through[p];
                }
            }
            SmallMatrix held = hessian;
            for (int j = 0; j < J_; ++j) held.at(j, j) += damping * (hessian.at(j, j) + LEAST_NOISE);
            Law next = held.solved(std::move(slope));
            for (int j = 0; j < J_; ++j) next[j] += law[j];
            const double made = cost(gram, next, mean, prior);
            const bool better = made < least;
            if (better) {
                law = std::move(next);
                least = made;
            }
            damping = std::clamp(better ? damping / 10 : damping * 10, 1e-12, 1e6);
        }
        return {std::move(law), std::move(hessian), least};
    }

    int channels_, order_, J_;
    Difference difference_{};
    double size_ = 0.0;
    bool rests_ = false;
    std::vector<int> still_;  // values that never move
    std::vector<double> mean_, law_mean_, noise_, starts_;
    std::vector<SmallMatrix> covariance_, prior_;
    Nodes powers_[3];
    std::vector<double> to_terms_;  // [L nodes, L polynomials]
};

// Five points or more along each axis.
std::unique_ptr<const Floor> make_stencil(const FloorGrid& grid, const TakeFloor& take, int order) {
    for (const GridAxis& axis : grid.axes) {
        if (axis.points < INSIDE) return nullptr;
    }
    return std::make_unique<const StencilFloor>(grid, take, order);
}

}  // namespace

std::unique_ptr<const Floor> make_vibration_floor(const FloorGrid& grid, const TakeFloor& take) {
    return make_stencil(grid, take, 2);
}

std::unique_ptr<const Floor> make_diffusion_floor(const FloorGrid& grid, const TakeFloor& take) {
    return make_stencil(grid, take, 1);
}

}  // namespace enma
