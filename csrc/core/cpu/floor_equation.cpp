// Floor `equation`: a sum of terms whose coefficients are those of each trajectory, solved in Fourier space, or on the
// points of the grid where all terms are differences of neighbours.
// enma_fast/models/floors/equation.py, exponential.py, lattice.py
//
// Legend: c channels, J coefficients that are fitted, K waves, N pairs of frames, P terms.
#include <algorithm>
#include <array>
#include <cmath>
#include <iterator>
#include <numeric>
#include <optional>

#include "core/cpu/equation_terms.h"
#include "core/cpu/floor.h"
#include "core/cpu/lattice_steps.h"
#include "core/cpu/small_matrix.h"
#include "core/cpu/vector_kernels.h"

namespace enma {

namespace {

constexpr int MOST_CHANNELS = 3, LEAST_POINTS = 8, STEPS = 20, TURNS = 2, STARTS = 8, PAIRS = 4, SOURCE_TURNS = 3;
// Of a frame.
constexpr float MOST_STEPS = 32;
constexpr double DIFFERENCE = 1e-3, DAMPING = 1e-3, EASIER = 0.2, HARDER = 8.0, HOPELESS = 1e3, STILL = 1e-2;
constexpr double LOOSER = 1e-4, DOUBTED = 4.0, MUCH_BETTER = 0.5, BETTER = 0.8, PROMISING = 0.9, UNCLEAR = 0.2,
                 UNSURE = 0.1, NOISE = 0.1, ERRORS = 0.03, FAR_BETTER = 0.1, POWER = 0.5, MUCH = 8.0, EXACT = 1e-9,
                 ROUNDING = 1e-14, SURE = 1e-7, TELLING = 0.01, LEAST_STIFF = 1e-12, TINY = 1e-30, LOST = 1e3;
constexpr double DECAY = 60.0, NEAR = 1.0;
constexpr int SERIES = 18;

using Numbers = std::vector<double>;

// 1 / n!
constexpr std::array<double, SERIES + 3> SHARES = [] {
    std::array<double, SERIES + 3> out{1.0};
    double factorial = 1.0;
    for (int n = 1; n < SERIES + 3; ++n) out[n] = 1.0 / (factorial *= n);
    return out;
}();

// Of finite numbers.
Complex times(Complex a, Complex b) {
    return {a.real() * b.real() - a.imag() * b.imag(), a.real() * b.imag() + a.imag() * b.real()};
}

// phi_n(z) = (phi_{n-1}(z) - 1 / (n-1)!) / z for n = 1, 2, 3, and phi_0(z) = exp(z).
struct Phi {
    Complex one, two, three;

    explicit Phi(Complex z) {
        if (std::abs(z) >= NEAR) {
            one = (std::exp(z) - 1.0) / z;
            two = (one - 1.0) / z;
            three = (two - 0.5) / z;
            return;
        }
        for (int k = SERIES; k-- > 0;) {
            one = times(one, z) + SHARES[k + 1];
            two = times(two, z) + SHARES[k + 2];
            three = times(three, z) + SHARES[k + 3];
        }
    }
};

// Factors [c, K] of a step, or of a whole frame where the equation is linear: real parts, then imaginary ones. There are
// none where steps are those of a lattice.
struct Factors {
    explicit Factors(std::size_t size) {
        for (std::vector<float>* all : {&whole, &half, &inner, &first, &middle, &last}) all->resize(2 * size);
    }

    std::vector<float> whole, half, inner, first, middle, last;
    Numbers coefficients;  // of the linear terms
    bool linear = false, lattice = false, finer = false;
};

// The kernels only read of factors.
Planes planes(const std::vector<float>& all) {
    float* const re = const_cast<float*>(all.data());
    return {re, re + all.size() / 2};
}

void set(std::vector<float>& all, std::size_t i, Complex value) {
    all[i] = static_cast<float>(value.real());
    all[i + all.size() / 2] = static_cast<float>(value.imag());
}

// What a steady source adds to waves in a frame, [re or im, c, K]; none where there is no source.
using Source = std::shared_ptr<const std::vector<float>>;

using Moves = std::vector<std::vector<float>>;

struct Propagator {
    std::shared_ptr<const Factors> factors;
    std::vector<float> coefficients;  // [P]
    Source source;
};

struct Equation : Inferred {
    Numbers coefficients;  // [P] in units of the terms
    SmallMatrix root{0};   // of the covariance of those that a member draws
    double misfit = 0.0;
    Propagator propagator;
    std::shared_ptr<const Moves> moves;  // how the source moves with each of these; none where there is no source
};

// Waves of successive frames [N], each [re or im, c, K].
struct Pairs {
    int count;
    std::vector<float> before, after;
};

struct Fit {
    Numbers coefficients;
    double misfit;
    SmallMatrix curvature;  // of the misfit
    Source source;
    bool finer;
};

double mean_square(const Numbers& off) {
    double sum = 0.0;
    for (const double x : off) sum += x * x;
    return sum / static_cast<double>(off.size());
}

class EquationFloor : public Floor {
   public:
    EquationFloor(const FloorGrid& grid, const TakeFloor& take)
        : Floor(grid.values()),
          plane_(grid.axes.size() == 2),
          channels_(grid.channels),
          P_(EquationTerms::count(plane_, grid.channels)),
          active_(take.values("active", {P_})),
          lattice_(*take.take("lattice", {}) != 0.0f),
          terms_({plane_ ? grid.axes.front().points : 1, grid.axes.back().points}, plane_, grid.channels, lattice_,
                 active_),
          forced_(*take.take("forced", {}) != 0.0f),
          on_points_(points_of(terms_.grid())),
          finer_(finer_of(terms_.grid(), terms_.finer_grid())),
          steps_(static_cast<int>(std::clamp(*take.take("steps", {}), 1.0f, MOST_STEPS))),
          size_(std::size_t(channels_) * terms_.waves()),
          unit_(take.wide("unit", {P_})),
          change_(take.wide("change", {channels_})),
          mean_(take.wide("mean", {P_})),
          growth_(take.wide("growth", {channels_})),
          usual_(take.wide("usual", {2})),
          most_(take.wide("most", {2})),
          inflation_(take.wide("inflation", {2})),
          power_(take.wide("power", {2})),
          zero_(take.values("zero", {channels_})),
          noise_(*take.take_wide("noise", {})),
          counted_(std::max(noise_, NOISE * EXACT)) {
        const Numbers starts = take.wide("starts", {STARTS, P_});
        for (auto start = starts.begin(); start != starts.end(); start += P_) starts_.emplace_back(start, start + P_);
        const Numbers covariance = take.wide("covariance", {P_, P_});
        for (int j = 0; j < P_; ++j) {
            spread_.push_back(std::sqrt(covariance[j * P_ + j]));
            if (active_[j] != 0.0f) able_.push_back(j);
        }
        fitted_ = able_.size();
        SmallMatrix own(static_cast<int>(fitted_));
        for (int i = 0; i < own.n; ++i) {
            for (int j = 0; j < own.n; ++j) own.at(i, j) = covariance[able_[i] * P_ + able_[j]];
        }
        known_ = own.inverse();
        held_ = known_.times(counted_);
        // The other linear terms are a reserve.
        for (int j = 0; j < terms_.num_linear(); ++j) {
            if (active_[j] == 0.0f) able_.push_back(j);
        }
    }

    int features() const override { return static_cast<int>(P_) + 1; }
    int draws() const override { return static_cast<int>(able_.size()); }
    std::size_t work_bytes() const override {
        Allocator count(nullptr);
        Work(*this, count);
        return count.used();
    }

    Inference infer(const Windows& windows, Isa isa) const override {
        const WaveKernels& run = vector_kernels(isa).waves;
        const Buffer space(work_bytes());
        Allocator taken(space.data());
        const Work work(*this, taken);
        const Pairs pairs = pairs_of(run, windows, work);
        const std::vector<int> active(able_.begin(), able_.begin() + static_cast<std::ptrdiff_t>(fitted_)),
            reserve(able_.begin() + static_cast<std::ptrdiff_t>(fitted_), able_.end());
        const int task = windows.own ? 0 : 1;
        const double doubted = std::max(DOUBTED * most_[task], SURE);
        const Numbers start = start_of(run, pairs, work);
        Fit fit = fitted(run, pairs, start, active, held_, false, work);
        SmallMatrix root(draws());
        const auto cost = [&](const Fit& of) { return of.misfit + held_.form(away(of.coefficients, active)); };
        const auto set_root = [&](const std::vector<int>& terms, const SmallMatrix& own) {
            std::fill(root.values.begin(), root.values.end(), 0.0);
            std::vector<int> places;
            for (const int j : terms) places.push_back(place_of(j));
            for (int i = 0; i < own.n; ++i) {
                for (int j = 0; j < own.n; ++j) root.at(places[i], places[j]) = own.at(i, j);
            }
        };
        set_root(active, root_of(fit, active, task));
        // Slopes of the fit with all terms; none until they are asked for.
        std::optional<std::pair<SmallMatrix, Numbers>> slopes;
        const auto promises = [&](const std::vector<int>& terms, const SmallMatrix& held) {
            if (fit.misfit < UNCLEAR) return true;
            if (!slopes) {
                slopes.emplace(SmallMatrix(draws()), Numbers(draws()));
                const Propagator by = propagator(fit.coefficients, fit.source, false, nullptr);
                add_slopes(run, pairs, fit.coefficients, by, off(run, pairs, by, work), able_, slopes->first,
                           slopes->second, work);
            }
            SmallMatrix curvature(held.n), stiff = held;
            Numbers slope(held.n), down = held.times(away(fit.coefficients, terms));
            for (int i = 0; i < held.n; ++i) {
                const int place = place_of(terms[i]);
                slope[i] = slopes->second[place];
                down[i] = slope[i] - down[i];
                for (int j = 0; j < held.n; ++j) {
                    curvature.at(i, j) = slopes->first.at(place, place_of(terms[j]));
                    stiff.at(i, j) += curvature.at(i, j);
                }
                stiff.at(i, i) += LEAST_STIFF * stiff.at(i, i) + TINY;
            }
            const Numbers step = stiff.solved(down);
            double left = fit.misfit + curvature.form(step);
            for (int i = 0; i < held.n; ++i) left -= 2 * step[i] * slope[i];
            return left < PROMISING * cost(fit);
        };
        // With other terms too, held less, or on the finer grid; what is better is kept.
        const auto again = [&](const Numbers& from, const std::vector<int>& others, double looser, bool finer) {
            std::vector<int> terms = active;
            terms.insert(terms.end(), others.begin(), others.end());
            const SmallMatrix held = wider(static_cast<int>(terms.size()), looser);
            if (!finer && !promises(terms, held)) return;
            Fit found = fitted(run, pairs, from, terms, held, finer, work);
            if (!(cost(found) < (finer ? BETTER : MUCH_BETTER) * cost(fit))) return;
            fit = std::move(found);
            slopes.reset();
            set_root(terms, root_of(fit, terms, task));
        };
        // What a finer grid leaves is of waves that frames do not hold.
        const auto in_doubt = [&] { return !fit.finer && cost(fit) > doubted; };
        if (finer_ && in_doubt()) again(fit.coefficients, {}, 1.0, true);
        if (in_doubt()) {
            // One more term explains most of what is new; all of them would fit anything.
            again(start, {}, LOOSER, false);
            for (const int j : reserve) again(start, {j}, 1.0, false);
        }
        double looser = 1.0;
        for (int turn = 0; turn < TURNS && in_doubt(); ++turn) {
            looser *= LOOSER;
            again(fit.coefficients, reserve, looser, false);
        }
        if (fit.misfit > doubted && !fit.finer) {
            // Frames have errors, unless what training data say of coefficients leaves far more unexplained.
            const double noise = ERRORS * fit.misfit;
            Fit held = fitted(run, pairs, start, active, known_.times(noise), false, work);
            if (!(fit.misfit < FAR_BETTER * held.misfit)) {
                fit = std::move(held);
                // All floors draw more where misfits are large, which the noise has counted.
                const double more = std::sqrt(std::min(std::sqrt(fit.misfit / std::max(usual_[task], ROUNDING)), MUCH));
                set_root(active, covering(fit, active, noise, noise).times(1 / more));
            }
        }
        auto out = std::make_shared<Equation>();
        out->root = root;
        out->misfit = fit.misfit;
        out->propagator = propagator(fit.coefficients, fit.source, fit.finer, nullptr);
        if (forced_) out->moves = std::make_shared<const Moves>(moves_of(run, pairs, fit, work));
        out->coefficients = std::move(fit.coefficients);
        return out;
    }

    void tell(const Inferred* inferred, const Windows&, float* out) const override {
        const Equation& own = static_cast<const Equation&>(*inferred);
        for (int j = 0; j < P_; ++j) {
            const double away = active_[j] == 0.0f ? 0.0 : (own.coefficients[j] - mean_[j]) / spread_[j];
            *out++ = static_cast<float>(std::clamp(away, -4.0, 4.0));
        }
        *out = static_cast<float>(std::log(std::max(own.misfit, EXACT)) / 4 + 1);
    }

    Inference draw(const Inference& inferred, const float* normals) const override {
        auto out = std::make_shared<Equation>(static_cast<const Equation&>(*inferred));
        const Numbers moved = out->root.times(Numbers(normals, normals + able_.size()));
        for (std::size_t i = 0; i < able_.size(); ++i) out->coefficients[able_[i]] += moved[i];
        Source source = out->propagator.source;
        if (forced_) {
            auto own = std::make_shared<std::vector<float>>(*source);
            for (std::size_t j = 0; j < able_.size(); ++j) {
                for (std::size_t i = 0; i < own->size(); ++i) (*own)[i] += (*out->moves)[j][i] * float(moved[j]);
            }
            source = std::move(own);
        }
        out->propagator = propagator(out->coefficients, source, out->propagator.factors->finer, nullptr);
        return out;
    }

    void step(Past past, const Inferred* inferred, Isa isa, char* memory, float* views) const override {
        const WaveKernels& run = vector_kernels(isa).waves;
        const float* const last = past[PAST_FRAMES - 1];
        Allocator taken(memory);
        const Work work(*this, taken);
        waves_of(run, last, work);
        advance(run, static_cast<const Equation&>(*inferred).propagator, work);
        terms_.frame_of(run, work.own.waves, work.terms, views);
        for (int i = 0; i < values_; ++i) views[i] += zero_[i % channels_];
        if (!std::all_of(views, views + values_, [](float x) { return std::isfinite(x); })) {
            std::copy_n(last, values_, views);
        }
    }

   private:
    // Waves of a frame, and of the stages of a step.
    struct Stages {
        void take(Allocator& memory, std::size_t size) {
            for (Planes* each : {&waves, &middle, &n[0], &n[1], &n[2], &n[3]}) {
                *each = {memory.take<float>(size), memory.take<float>(size)};
            }
        }
        Planes waves, middle, n[4];
    };

    struct Work {
        Work(const EquationFloor& of, Allocator& memory) : terms(memory.take<char>(of.terms_.work_bytes())) {
            own.take(memory, of.size_);
            if (of.finer_) {
                finer.take(memory, std::size_t(of.channels_) * of.finer_->waves());
                finer_terms = memory.take<char>(of.finer_->work_bytes());
            }
            if (!of.on_points_) return;
            lattice = memory.take<char>(of.on_points_->work_bytes());
            for (float** each : {&frame, &fields}) *each = memory.take<float>(of.values_);
        }
        char *terms, *finer_terms = nullptr, *lattice = nullptr;
        Stages own, finer{};
        float *frame = nullptr, *fields = nullptr;
    };

    // work.own.waves of a frame, less what is 0 to the terms.
    void waves_of(const WaveKernels& run, const float* frame, const Work& work) const {
        terms_.waves_of(run, frame, work.terms, work.own.waves);
        for (int c = 0; c < channels_; ++c) {
            work.own.waves.re[std::size_t(c) * terms_.waves()] -= zero_[c] * static_cast<float>(values_ / channels_);
        }
    }

    // Factors of another propagator are kept where they are the same.
    Propagator propagator(const Numbers& coefficients, const Source& source, bool finer, const Propagator* like) const {
        Propagator out;
        out.source = source;
        const Numbers own = in_fields(coefficients);
        out.coefficients.assign(own.begin(), own.end());
        const bool linear = source == nullptr && !terms_.changes(out.coefficients);
        Numbers of_linear(own.begin(), own.begin() + terms_.num_linear());
        if (like != nullptr && like->factors->linear == linear && like->factors->finer == finer &&
            like->factors->coefficients == of_linear) {
            out.factors = like->factors;
            return out;
        }
        const EquationTerms& terms = finer ? *finer_ : terms_;
        const std::vector<Complex> rates = terms.rates(own);
        const bool lattice = on_points_ && !linear && stable(rates);
        auto factors = std::make_shared<Factors>(lattice ? 0 : rates.size());
        for (std::size_t i = 0; i < rates.size() && !lattice; ++i) {
            const Complex frame = bounded(rates[i], growth_[i / terms.waves()]);
            if (linear) {
                set(factors->whole, i, std::exp(frame));
                continue;
            }
            const double share = 1.0 / steps(finer);
            const Complex z = frame * share;
            const Phi phi(z);
            set(factors->whole, i, std::exp(z));
            set(factors->half, i, std::exp(z / 2.0));
            set(factors->inner, i, Phi(z / 2.0).one * (share / 2));
            set(factors->first, i, (phi.one - 3.0 * phi.two + 4.0 * phi.three) * share);
            set(factors->middle, i, 2.0 * (phi.two - 2.0 * phi.three) * share);
            set(factors->last, i, (4.0 * phi.three - phi.two) * share);
        }
        factors->coefficients = std::move(of_linear);
        factors->linear = linear;
        factors->lattice = lattice;
        factors->finer = finer;
        out.factors = std::move(factors);
        return out;
    }

    // Coefficients of fields, not in units of the terms.
    Numbers in_fields(Numbers coefficients) const {
        for (int j = 0; j < P_; ++j) coefficients[j] /= unit_[j];
        return coefficients;
    }

    static Complex bounded(Complex rate, double growth) {
        return {std::min(std::max(rate.real(), -DECAY), growth), rate.imag()};
    }

    std::optional<LatticeSteps> points_of(const WaveGrid& grid) const {
        if (!lattice_ || forced_) return std::nullopt;
        LatticeSteps made(grid, plane_, channels_, active_);
        return made.local() ? std::optional(std::move(made)) : std::nullopt;
    }

    std::optional<EquationTerms> finer_of(const WaveGrid& own, const WaveGrid& finer) const {
        if (lattice_ || forced_) return std::nullopt;
        const auto spacing = [](int points, int more) { return static_cast<double>(points) / more; };
        return EquationTerms(finer, plane_, channels_, false, active_,
                             {spacing(own.lines, finer.lines), spacing(own.points, finer.points)});
    }

    int steps(bool finer) const { return finer ? 2 * steps_ : steps_; }

    // Whether no wave grows faster than it may, and steps of a lattice are stable.
    bool stable(const std::vector<Complex>& rates) const {
        for (std::size_t i = 0; i < size_; ++i) {
            if (!(rates[i].real() <= growth_[i / terms_.waves()]) || !LatticeSteps::stable(rates[i], steps_)) {
                return false;
            }
        }
        return true;
    }

    // work.own.waves a frame later, by steps on the points of the grid.
    void advance_points(const WaveKernels& run, const Propagator& by, const Work& work) const {
        const int points = values_ / channels_;
        terms_.frame_of(run, work.own.waves, work.terms, work.frame);
        for (int i = 0; i < values_; ++i) work.fields[i % channels_ * points + i / channels_] = work.frame[i];
        on_points_->advance(run, by.coefficients.data(), steps_, work.lattice, work.fields);
        for (int i = 0; i < values_; ++i) work.frame[i] = work.fields[i % channels_ * points + i / channels_];
        terms_.waves_of(run, work.frame, work.terms, work.own.waves);
    }

    // work.own.waves a frame later: exponential Runge-Kutta steps of fourth order, if not those of a lattice.
    void advance(const WaveKernels& run, const Propagator& by, const Work& work) const {
        const Factors& f = *by.factors;
        if (f.lattice) return advance_points(run, by, work);
        if (!f.finer) return take_steps(run, by, terms_, work.own, work.terms);
        terms_.on_finer(work.own.waves, work.finer.waves);
        take_steps(run, by, *finer_, work.finer, work.finer_terms);
        terms_.on_coarser(work.finer.waves, work.own.waves);
    }

    // Waves a frame later.
    void take_steps(const WaveKernels& run, const Propagator& by, const EquationTerms& terms, const Stages& on,
                    char* memory) const {
        const Factors& f = *by.factors;
        const std::size_t size = std::size_t(channels_) * terms.waves();
        const auto count = static_cast<std::int64_t>(size);
        const Planes whole = planes(f.whole), half = planes(f.half), inner = planes(f.inner);
        if (f.linear) {
            const WaveTerm all[] = {{whole, on.waves, 1.0f}};
            run.sum(all, 1, count, on.waves);
            return;
        }
        const Planes* const n = on.n;
        const auto change = [&](Planes of, Planes out) {
            terms.change(run, of, by.coefficients.data(), memory, out);
            for (std::size_t i = 0; by.source != nullptr && i < size; ++i) {
                out.re[i] += (*by.source)[i];
                out.im[i] += (*by.source)[size + i];
            }
        };
        for (int step = 0; step < steps(f.finer); ++step) {
            change(on.waves, n[0]);
            const WaveTerm to_first[] = {{half, on.waves, 1.0f}, {inner, n[0], 1.0f}};
            run.sum(to_first, 2, count, on.middle);
            change(on.middle, n[1]);
            // The later ones take the place of what is not yet known.
            const WaveTerm to_second[] = {{half, on.waves, 1.0f}, {inner, n[1], 1.0f}};
            run.sum(to_second, 2, count, n[3]);
            change(n[3], n[2]);
            const WaveTerm to_third[] = {{half, on.middle, 1.0f}, {inner, n[2], 2.0f}, {inner, n[0], -1.0f}};
            run.sum(to_third, 3, count, on.middle);
            change(on.middle, n[3]);
            const WaveTerm to_end[] = {{whole, on.waves, 1.0f},
                                       {planes(f.first), n[0], 1.0f},
                                       {planes(f.middle), n[1], 1.0f},
                                       {planes(f.middle), n[2], 1.0f},
                                       {planes(f.last), n[3], 1.0f}};
            run.sum(to_end, 5, count, on.waves);
        }
    }

    // A few pairs of those between which most changes.
    Pairs pairs_of(const WaveKernels& run, const Windows& windows, const Work& work) const {
        const auto first_of = [&](int pair) {
            const int frame = pair / (PAST_FRAMES - 1) * PAST_FRAMES + pair % (PAST_FRAMES - 1);
            return windows.values + std::ptrdiff_t{frame} * values_;
        };
        Numbers change;
        for (int pair = 0; pair < windows.count * (PAST_FRAMES - 1); ++pair) {
            const float* const before = first_of(pair);
            double sum = 0.0;
            for (int i = 0; i < values_; ++i) sum += std::pow(double{before[values_ + i] - before[i]}, 2);
            change.push_back(sum);
        }
        const std::vector<int> chosen = telling(change);
        Pairs out{static_cast<int>(chosen.size()), {}, {}};
        for (const int pair : chosen) {
            for (std::vector<float>* to : {&out.before, &out.after}) {
                waves_of(run, first_of(pair) + (to == &out.before ? 0 : values_), work);
                to->insert(to->end(), work.own.waves.re, work.own.waves.re + size_);
                to->insert(to->end(), work.own.waves.im, work.own.waves.im + size_);
            }
        }
        return out;
    }

    // Some of the pairs that have a share of the greatest change, evenly spread, or those with the greatest.
    static std::vector<int> telling(const Numbers& change) {
        std::vector<int> all(change.size()), some;
        std::iota(all.begin(), all.end(), 0);
        const double least = TELLING * *std::max_element(change.begin(), change.end());
        std::copy_if(all.begin(), all.end(), std::back_inserter(some), [&](int i) { return change[i] >= least; });
        if (some.size() < PAIRS) {
            std::stable_sort(all.begin(), all.end(), [&](int i, int j) { return change[i] > change[j]; });
            all.resize(std::min<std::size_t>(all.size(), PAIRS));
            std::sort(all.begin(), all.end());
            return all;
        }
        std::vector<int> out;
        for (int i = 0; i < PAIRS; ++i) out.push_back(some[std::lround(i * (some.size() - 1.0) / (PAIRS - 1))]);
        return out;
    }

    // work.own.waves that the forecast of the later frame of pair n lacks.
    void forecast_lacks(const WaveKernels& run, const Pairs& pairs, std::size_t n, const Propagator& by,
                        const Work& work) const {
        const float *const before = pairs.before.data() + 2 * n * size_, *const after =
                                                                             pairs.after.data() + 2 * n * size_;
        std::copy_n(before, size_, work.own.waves.re);
        std::copy_n(before + size_, size_, work.own.waves.im);
        advance(run, by, work);
        for (std::size_t i = 0; i < size_; ++i) {
            work.own.waves.re[i] = after[i] - work.own.waves.re[i];
            work.own.waves.im[i] = after[size_ + i] - work.own.waves.im[i];
        }
    }

    // What forecasts of the later frames of pairs lack, in units of a frame's change, [N, *x, c].
    // Where there is a source what they lack alike is its, and left out.
    Numbers off(const WaveKernels& run, const Pairs& pairs, const Propagator& by, const Work& work) const {
        Numbers out;
        std::vector<float> frame(values_);
        for (std::size_t n = 0; n < std::size_t(pairs.count); ++n) {
            forecast_lacks(run, pairs, n, by, work);
            terms_.keep_long(run, work.own.waves);
            terms_.frame_of(run, work.own.waves, work.terms, frame.data());
            for (int i = 0; i < values_; ++i) {
                const double value = frame[i] / change_[i % channels_];
                out.push_back(std::isnan(value) ? LOST : std::clamp(value, -LOST, LOST));
            }
        }
        if (!forced_) return out;
        // Unbiased: a mean is left out.
        const double N = pairs.count, more = std::sqrt(N / std::max(N - 1, 1.0));
        for (int i = 0; i < values_; ++i) {
            double mean = 0.0;
            for (int n = 0; n < pairs.count; ++n) mean += out[std::size_t(n) * values_ + i] / N;
            for (int n = 0; n < pairs.count; ++n) {
                double& value = out[std::size_t(n) * values_ + i];
                value = std::abs(value) < LOST ? (value - mean) * more : LOST;
            }
        }
        return out;
    }

    // The steady source of pairs, none where the equation has none; in so many turns from another one.
    Source source_of(const WaveKernels& run, const Pairs& pairs, const Numbers& coefficients, Source start, int turns,
                     const Work& work) const {
        if (!forced_) return nullptr;
        if (start == nullptr) start = std::make_shared<std::vector<float>>(2 * size_);
        const std::vector<Complex> rates = terms_.rates(in_fields(coefficients));
        Propagator by = propagator(coefficients, start, false, nullptr);
        for (int turn = 0; turn < turns; ++turn) {
            std::vector<Complex> sum(size_);
            bool found = true;
            for (std::size_t n = 0; n < std::size_t(pairs.count); ++n) {
                forecast_lacks(run, pairs, n, by, work);
                for (std::size_t i = 0; i < size_; ++i) {
                    const Complex lacks(work.own.waves.re[i], work.own.waves.im[i]);
                    found = found && std::abs(lacks) < LOST * values_;
                    sum[i] += lacks;
                }
            }
            if (!found) break;
            auto next = std::make_shared<std::vector<float>>(*by.source);
            for (std::size_t i = 0; i < size_; ++i) {
                const Complex more =
                    sum[i] / static_cast<double>(pairs.count) / Phi(bounded(rates[i], growth_[i / terms_.waves()])).one;
                (*next)[i] += static_cast<float>(more.real());
                (*next)[size_ + i] += static_cast<float>(more.imag());
            }
            by.source = std::move(next);
        }
        return by.source;
    }

    // How the source of a fit moves with each coefficient that a member draws.
    Moves moves_of(const WaveKernels& run, const Pairs& pairs, const Fit& fit, const Work& work) const {
        const Source here = source_of(run, pairs, fit.coefficients, fit.source, 1, work);
        Moves out;
        for (const int j : able_) {
            Numbers moved = fit.coefficients;
            moved[j] += DIFFERENCE;
            const Source there = source_of(run, pairs, moved, fit.source, 1, work);
            std::vector<float>& move = out.emplace_back(*there);
            const auto apart = static_cast<float>(DIFFERENCE);
            for (std::size_t i = 0; i < move.size(); ++i) move[i] = (move[i] - (*here)[i]) / apart;
        }
        return out;
    }

    // The mean coefficients, or those of a training trajectory that forecast pairs better.
    const Numbers& start_of(const WaveKernels& run, const Pairs& pairs, const Work& work) const {
        const Numbers* best = &mean_;
        const Source none = source_of(run, pairs, mean_, nullptr, 0, work);
        double least = mean_square(off(run, pairs, propagator(mean_, none, false, nullptr), work));
        for (const Numbers& start : starts_) {
            const double misfit = mean_square(off(run, pairs, propagator(start, none, false, nullptr), work));
            if (!(misfit < least)) continue;
            best = &start;
            least = misfit;
        }
        return *best;
    }

    // A fit of coefficients, and of the source with these.
    Fit fitted(const WaveKernels& run, const Pairs& pairs, const Numbers& start, const std::vector<int>& active,
               const SmallMatrix& held, bool finer, const Work& work) const {
        Source source = source_of(run, pairs, start, nullptr, SOURCE_TURNS, work);
        Fit out = fitted_with(run, pairs, start, source, active, held, finer, work);
        for (int turn = 0; forced_ && turn < SOURCE_TURNS; ++turn) {
            source = source_of(run, pairs, out.coefficients, source, 1, work);
            out = fitted_with(run, pairs, out.coefficients, source, active, held, finer, work);
        }
        return out;
    }

    // Damped Gauss-Newton steps on the misfit plus (c - mean)' held (c - mean), with a source as it is.
    Fit fitted_with(const WaveKernels& run, const Pairs& pairs, const Numbers& start, const Source& source,
                    const std::vector<int>& active, const SmallMatrix& held, bool finer, const Work& work) const {
        const int J = held.n;
        Fit out{start, 0.0, SmallMatrix(J), source, finer};
        SmallMatrix stiff = held;
        Propagator by = propagator(start, source, finer, nullptr);
        Numbers lacking = off(run, pairs, by, work), slope(J);
        out.misfit = mean_square(lacking);
        double damping = DAMPING;
        bool fresh = true;
        const auto cost = [&](double misfit, const Numbers& coefficients) {
            return misfit + held.form(away(coefficients, active));
        };
        for (int step = 0; step < STEPS; ++step) {
            if (fresh) {
                slope = held.times(away(out.coefficients, active));
                for (double& x : slope) x = -x;
                out.curvature = SmallMatrix(J);
                add_slopes(run, pairs, out.coefficients, by, lacking, active, out.curvature, slope, work);
                stiff = out.curvature;
                for (std::size_t i = 0; i < stiff.values.size(); ++i) stiff.values[i] += held.values[i];
            }
            SmallMatrix damped = stiff;
            double least = 0.0;
            for (int j = 0; j < J; ++j) least += LEAST_STIFF * stiff.at(j, j) / J;
            for (int j = 0; j < J; ++j) damped.at(j, j) += damping * stiff.at(j, j) + (least + TINY);
            Numbers moved = out.coefficients;
            const Numbers by_how_much = damped.solved(slope);
            for (int j = 0; j < J; ++j) moved[active[j]] += by_how_much[j];
            Propagator next = propagator(moved, source, finer, &by);
            Numbers next_lacking = off(run, pairs, next, work);
            const double next_misfit = mean_square(next_lacking), before = cost(out.misfit, out.coefficients),
                         after = cost(next_misfit, moved);
            fresh = after < before;
            damping *= fresh ? EASIER : HARDER;
            if (!fresh && damping >= HOPELESS) break;
            if (!fresh) continue;
            out.coefficients = std::move(moved);
            out.misfit = next_misfit;
            lacking = std::move(next_lacking);
            by = std::move(next);
            if (!(before - after > STILL * before + EXACT)) break;
        }
        return out;
    }

    int place_of(int term) const {
        return static_cast<int>(std::find(able_.begin(), able_.end(), term) - able_.begin());
    }

    // From the mean.
    Numbers away(const Numbers& coefficients, const std::vector<int>& terms) const {
        Numbers out;
        for (const int j : terms) out.push_back(coefficients[j] - mean_[j]);
        return out;
    }

    // Adds products of how forecasts move with each coefficient, with each other and with what they lack.
    void add_slopes(const WaveKernels& run, const Pairs& pairs, const Numbers& coefficients, const Propagator& by,
                    const Numbers& lacking, const std::vector<int>& active, SmallMatrix& curvature, Numbers& slope,
                    const Work& work) const {
        std::vector<Numbers> columns;
        const auto count = static_cast<double>(lacking.size());
        for (std::size_t j = 0; j < active.size(); ++j) {
            Numbers moved = coefficients;
            moved[active[j]] += DIFFERENCE;
            Numbers column = off(run, pairs, propagator(moved, by.source, by.factors->finer, &by), work);
            double product = 0.0;
            for (std::size_t i = 0; i < column.size(); ++i) {
                column[i] = (lacking[i] - column[i]) / DIFFERENCE;
                product += column[i] * lacking[i];
            }
            slope[j] += product / count;
            columns.push_back(std::move(column));
            for (std::size_t k = 0; k <= j; ++k) {
                double sum = 0.0;
                for (std::size_t i = 0; i < lacking.size(); ++i) sum += columns[j][i] * columns[k][i];
                curvature.at(static_cast<int>(j), static_cast<int>(k)) += sum / count;
                if (k < j) curvature.at(static_cast<int>(k), static_cast<int>(j)) += sum / count;
            }
        }
    }

    // A root of the covariance of the fit of these terms, the active ones first.
    SmallMatrix root_of(const Fit& fit, const std::vector<int>& terms, int task) const {
        const double usual = std::max(usual_[task], ROUNDING),
                     counts = std::clamp(fit.misfit, usual, MUCH * std::max(most_[task], usual)) / usual;
        // Draws spread more than the noise says, but no more than what is known of the terms.
        const double more = inflation_[task] * std::pow(counts, power_[task]),
                     noise = noise_ * std::pow(std::max(fit.misfit, ROUNDING) / usual, POWER) * more * more;
        return covering(fit, terms, noise, std::max(noise, counted_));
    }

    // The same of a fit that counts as much noise as there is, or more.
    SmallMatrix covering(const Fit& fit, const std::vector<int>& terms, double noise, double counted) const {
        SmallMatrix precision = fit.curvature.times(1 / counted), off = precision.times(noise / counted);
        const auto hold = [&](int i, int j, double held) {
            precision.at(i, j) += held;
            off.at(i, j) += held;
        };
        for (int i = 0; i < off.n; ++i) {
            for (int j = 0; j < known_.n && i < known_.n; ++j) hold(i, j, known_.at(i, j));
            const double unsure = UNSURE * fit.coefficients[terms[i]];
            if (i >= known_.n) hold(i, i, 1 / std::max(unsure * unsure, EXACT));
            off.at(i, i) *= 1 + LEAST_STIFF;
        }
        return precision.solved(off.root());
    }

    // What holds so many terms, the active ones first, by so much less.
    SmallMatrix wider(int count, double looser) const {
        SmallMatrix out(count);
        for (int i = 0; i < count; ++i) {
            out.at(i, i) = looser * counted_;
            for (int j = 0; j < held_.n && i < held_.n; ++j) out.at(i, j) = looser * held_.at(i, j);
        }
        return out;
    }

    bool plane_;
    int channels_;
    std::int64_t P_;
    std::vector<float> active_;
    bool lattice_;  // whether derivatives are differences of neighbours
    EquationTerms terms_;
    bool forced_;
    std::optional<LatticeSteps> on_points_;  // none where derivatives or terms are others
    std::optional<EquationTerms> finer_;     // half as many points again along each axis; none where they are of no use
    int steps_;
    std::size_t size_;  // c K
    std::vector<Numbers> starts_;
    Numbers unit_, change_, mean_, growth_, usual_, most_, inflation_, power_, spread_;
    std::vector<float> zero_;
    double noise_, counted_;
    std::vector<int> able_;  // active terms, then the others that a trajectory may have
    std::size_t fitted_ = 0;
    SmallMatrix known_{0}, held_{0};
};

}  // namespace

std::unique_ptr<const Floor> make_equation_floor(const FloorGrid& grid, const TakeFloor& take) {
    if (grid.channels > MOST_CHANNELS) return nullptr;
    for (const GridAxis& axis : grid.axes) {
        if (axis.edge != GridEdge::periodic || axis.points < LEAST_POINTS) return nullptr;
    }
    return std::make_unique<const EquationFloor>(grid, take);
}

}  // namespace enma
