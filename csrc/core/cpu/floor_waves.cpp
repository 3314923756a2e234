// Floor `waves`: a linear propagator around periodic domains, of which each wave is multiplied by its own number.
// enma_fast/models/floors/spectral.py
//
// Legend: c channels, K waves, J coefficients of a law.
#include <numbers>
#include <numeric>

#include "core/cpu/floor.h"
#include "core/cpu/small_matrix.h"
#include "core/cpu/spectrum.h"

namespace enma {

namespace {

constexpr int ORDER = 3, STEPS = 8, LOWEST = 12;
constexpr double WAVE_UNIT = 8.0, DECAY = 20.0, GROWTH = 0.05, TINY = 1e-12, RIGHT = 1e-6;
// Of other laws that are as right.
constexpr int OTHERS = 4;
constexpr double ALIKE = 0.9, APART = 1.0, TELLING = 1e-7;

using Law = std::vector<double>;

Complex bounded(Complex m) { return m / std::max(std::abs(m), 1.0); }

// The multiplier of each wave, and that of its law alone, as floats like Spectrum's.
struct Multipliers : Inferred {
    std::vector<float> views[2];  // [c, wave floats]
};

struct Waves : Multipliers {
    std::vector<std::vector<Law>> laws;                    // [c], that with the least cost first
    std::vector<std::vector<double>> odds;                 // [c], how likely these are, in units of the first
    std::vector<SmallMatrix> root;                         // [c]
    std::vector<std::vector<Complex>> multiplier, lawful;  // [c][K]
    std::vector<std::vector<double>> held, spread;         // [c][K]
    std::vector<double> residual;                          // [c]
};

// Of the frames of windows, a channel's.
struct Spectra {
    std::vector<Complex> cross;
    std::vector<double> power, after;
};

struct Fit {
    Law law;
    SmallMatrix hessian;
    double cost;
};

class WavesFloor : public Floor {
   public:
    WavesFloor(const FloorGrid& grid, const TakeFloor& take)
        : Floor(grid.values()),
          channels_(grid.channels),
          waves_{grid.axes.size() == 1 ? 1 : grid.axes.front().points, grid.axes.back().points},
          spectrum_(waves_),
          fine_(grid.axes.size() == 1 ? 2 * waves_.points : waves_.points) {
        std::vector<std::vector<int>> powers;
        const bool plane = waves_.lines > 1 || grid.axes.size() == 2;
        for (int sum = 0; sum <= ORDER; ++sum) {
            for (int a = 0; a <= (plane ? sum : 0); ++a) {
                powers.push_back(plane ? std::vector<int>{a, sum - a} : std::vector<int>{sum});
            }
        }
        J_ = static_cast<int>(powers.size());
        const int K = waves_.waves();
        for (std::size_t axis = 0; axis < grid.axes.size(); ++axis) {
            std::vector<int> unit(grid.axes.size());
            unit[axis] = 1;
            first_.push_back(static_cast<int>(std::find(powers.begin(), powers.end(), unit) - powers.begin()));
        }
        std::vector<double> size(K);
        for (int k = 0; k < K; ++k) {
            const int last = k % waves_.half(), line = k / waves_.half();
            const double around = 2 * line < waves_.lines ? line : line - waves_.lines;
            const double numbers[2] = {plane ? around : last, 1.0 * last};
            for (const std::vector<int>& power : powers) {
                double value = 1.0;
                for (std::size_t axis = 0; axis < power.size(); ++axis) {
                    value *= std::pow(numbers[axis] / WAVE_UNIT, power[axis]);
                }
                const int sum = std::accumulate(power.begin(), power.end(), 0);
                basis_.push_back(sum / 2 % 2 == 0 ? value : -value);
            }
            size[k] = last * last + (plane ? around * around : 0.0);
            count_.push_back(last == 0 || 2 * last == waves_.points ? 1.0 : 2.0);
        }
        for (const std::vector<int>& power : powers) {
            odd_.push_back(std::accumulate(power.begin(), power.end(), 0) % 2);
        }
        lowest_.resize(K);
        std::iota(lowest_.begin(), lowest_.end(), 0);
        std::stable_sort(lowest_.begin(), lowest_.end(), [&](int a, int b) { return size[a] < size[b]; });
        lowest_.resize(std::min(K, LOWEST));
        const std::int64_t c = channels_, J = J_;
        mean_ = take.values("mean", {c});
        law_mean_ = take.wide("law_mean", {c, J});
        const std::vector<double> covariance = take.wide("law_covariance", {c, J, J});
        noise_ = take.wide("noise", {})[0];
        hold_ = take.wide("hold", {2});
        inflation_ = take.wide("inflation", {2});
        typical_ = take.wide("typical", {2, c});
        for (int i = 0; i < channels_; ++i) {
            covariance_.emplace_back(J_, covariance.data() + std::ptrdiff_t{i} * J_ * J_);
            prior_.push_back(covariance_.back().inverse().times(noise_));
        }
    }

    int views() const override { return 2; }
    int features() const override { return channels_ * (J_ + 1 + 4 * static_cast<int>(lowest_.size())); }
    int draws() const override { return channels_ * (J_ + 2 * waves_.waves() + 2); }
    std::size_t work_bytes() const override {
        return spectrum_.work_bytes() + (2 * spectrum_.wave_floats() + 2 * waves_.size() + 64) * sizeof(float);
    }

    Inference infer(const Windows& windows, Isa) const override {
        auto out = std::make_shared<Waves>();
        const int task = windows.own ? 0 : 1, K = waves_.waves();
        for (int c = 0; c < channels_; ++c) {
            const Spectra s = spectra(windows, c);
            const std::vector<double> correlation = correlation_of(s);
            const Fit fit = fitted(s, correlation, c);
            const double unexplained = misfit(s, fit.law);
            const double doubt = std::min(typical_[task * channels_ + c] / std::max(unexplained, RIGHT), 1.0);
            const double hold = hold_[task] * doubt * doubt, noise = noise_ * inflation_[task] * inflation_[task];
            const double total = std::accumulate(s.power.begin(), s.power.end(), 0.0);
            const double added = hold * (total / K) + TINY;
            std::vector<Complex> multiplier(K), lawful = multipliers(fit.law);
            std::vector<double> held(K), spread(K);
            double left = 0.0, after = 0.0;
            for (int k = 0; k < K; ++k) {
                lawful[k] = bounded(lawful[k]);
                multiplier[k] = bounded((s.cross[k] + added * lawful[k]) / (s.power[k] + added));
                held[k] = added / (s.power[k] + added);
                spread[k] = std::sqrt(noise * total / (s.power[k] + added));
                left += s.after[k] - 2 * (std::conj(s.cross[k]) * lawful[k]).real() + s.power[k] * std::norm(lawful[k]);
                after += s.after[k];
            }
            out->laws.push_back({fit.law});
            out->odds.push_back({1.0});
            if (unexplained < TELLING) add_others(s, correlation, fit, c, out->laws.back(), out->odds.back());
            out->root.push_back(fit.hessian.inverse().times(noise).root());
            out->residual.push_back(std::log(std::max(left / (after + TINY), 1e-8)));
            append(multiplier, out->views[0]);
            append(lawful, out->views[1]);
            out->multiplier.push_back(std::move(multiplier));
            out->lawful.push_back(std::move(lawful));
            out->held.push_back(std::move(held));
            out->spread.push_back(std::move(spread));
        }
        return out;
    }

    void tell(const Inferred* inferred, const Windows& windows, float* out) const override {
        const Waves& waves = static_cast<const Waves&>(*inferred);
        for (int c = 0; c < channels_; ++c) {
            const Spectra s = spectra(windows, c);
            for (int j = 0; j < J_; ++j) {
                const double off = waves.laws[c].front()[j] - law_mean_[c * J_ + j];
                *out++ = static_cast<float>(std::clamp(off / std::sqrt(covariance_[c].at(j, j)), -4.0, 4.0));
            }
            *out++ = static_cast<float>(waves.residual[c] / 4 + 1);
            double sum = 0.0;
            for (const int k : lowest_) sum += s.power[k];
            const std::size_t n = lowest_.size();
            for (std::size_t i = 0; i < n; ++i) {
                const double power = s.power[lowest_[i]];
                const Complex gain = s.cross[lowest_[i]] / (power + 1e-3 * (sum / static_cast<double>(n)) + TINY);
                out[i] = static_cast<float>(gain.real());
                out[n + i] = static_cast<float>(gain.imag());
                out[2 * n + i] = static_cast<float>(power / (sum + TINY));
                out[3 * n + i] = static_cast<float>(std::log(power + 1e-6) / 4);
            }
            out += 4 * n;
        }
    }

    Inference draw(const Inference& inferred, const float* normals) const override {
        const Waves& waves = static_cast<const Waves&>(*inferred);
        auto out = std::make_shared<Multipliers>();
        const int K = waves_.waves();
        for (int c = 0; c < channels_; ++c, normals += J_ + 2 * K + 2) {
            const std::vector<double> moved = waves.root[c].times(Law(normals, normals + J_));
            Law law = waves.laws[c][picked(waves.odds[c], normals + J_ + 2 * K)];
            for (int j = 0; j < J_; ++j) law[j] += moved[j];
            std::vector<Complex> lawful = multipliers(law), multiplier(K);
            for (int k = 0; k < K; ++k) {
                lawful[k] = bounded(lawful[k]);
                const Complex off =
                    Complex(normals[J_ + k], normals[J_ + K + k]) * (waves.spread[c][k] / std::numbers::sqrt2);
                multiplier[k] =
                    bounded(waves.multiplier[c][k] + waves.held[c][k] * (lawful[k] - waves.lawful[c][k]) + off);
            }
            append(multiplier, out->views[0]);
            append(lawful, out->views[1]);
        }
        return out;
    }

    void step(Past past, const Inferred* inferred, Isa isa, char* memory, float* views) const override {
        const Multipliers& own = static_cast<const Multipliers&>(*inferred);
        Allocator taken(memory);
        char* const work = taken.take<char>(spectrum_.work_bytes());
        const std::size_t floats = spectrum_.wave_floats(), apart = spectrum_.apart();
        float *const waves = taken.take<float>(floats), *const moved = taken.take<float>(floats),
                     *const field = taken.take<float>(2 * waves_.size());
        const int points = waves_.size();
        for (int c = 0; c < channels_; ++c) {
            for (int i = 0; i < points; ++i) field[i] = past[PAST_FRAMES - 1][i * channels_ + c] - mean_[c];
            spectrum_.forward(field, isa, work, waves);
            std::copy_n(waves, floats, moved);
            for (int view = 0; view < 2; ++view) {
                const float* const m = own.views[view].data() + c * floats;
                for (int k = 0; k < waves_.waves(); ++k) {
                    const std::size_t re = spectrum_.place(k), im = re + apart;
                    moved[re] = waves[re] * m[re] - waves[im] * m[im];
                    moved[im] = waves[re] * m[im] + waves[im] * m[re];
                }
                spectrum_.inverse(moved, isa, work, field);
                for (int i = 0; i < points; ++i) views[(i * channels_ + c) * 2 + view] = field[i] + mean_[c];
            }
        }
    }

   private:
    void append(const std::vector<Complex>& multiplier, std::vector<float>& to) const {
        const std::size_t first = to.size();
        to.resize(first + spectrum_.wave_floats());
        for (int k = 0; k < waves_.waves(); ++k) {
            const std::size_t at = first + spectrum_.place(k);
            to[at] = static_cast<float>(multiplier[k].real());
            to[at + spectrum_.apart()] = static_cast<float>(multiplier[k].imag());
        }
    }

    Spectra spectra(const Windows& windows, int c) const {
        const int K = waves_.waves(), points = waves_.size();
        Spectra out{std::vector<Complex>(K), std::vector<double>(K), std::vector<double>(K)};
        std::vector<double> field(points);
        for (int w = 0; w < windows.count; ++w) {
            std::vector<Complex> before, after;
            for (int t = 0; t < PAST_FRAMES; ++t) {
                const float* const frame =
                    windows.values + (static_cast<std::ptrdiff_t>(w) * PAST_FRAMES + t) * values_;
                for (int i = 0; i < points; ++i) field[i] = frame[i * channels_ + c] - mean_[c];
                after = waves_of(waves_, field);
                for (Complex& wave : after) wave /= std::sqrt(static_cast<double>(points));
                for (int k = 0; t > 0 && k < K; ++k) {
                    out.cross[k] += std::conj(before[k]) * after[k] * count_[k];
                    out.power[k] += std::norm(before[k]) * count_[k];
                    out.after[k] += std::norm(after[k]) * count_[k];
                }
                before = std::move(after);
            }
        }
        return out;
    }

    std::vector<Complex> multipliers(const Law& law) const {
        std::vector<Complex> out(waves_.waves());
        for (std::size_t k = 0; k < out.size(); ++k) {
            double parts[2] = {};
            for (int j = 0; j < J_; ++j) parts[odd_[j]] += law[j] * basis_[k * J_ + j];
            out[k] = std::polar(std::exp(std::clamp(parts[0], -DECAY, GROWTH)), parts[1]);
        }
        return out;
    }

    // Share of the energy that a law's step gets wrong, beyond what any multiplier does.
    double misfit(const Spectra& s, const Law& law) const {
        const std::vector<Complex> m = multipliers(law);
        double off = 0.0, total = 0.0;
        for (std::size_t k = 0; k < m.size(); ++k) {
            off += s.power[k] * std::norm(s.cross[k] / (s.power[k] + TINY) - bounded(m[k]));
            total += s.power[k];
        }
        return off / (total + TINY);
    }

    // Which of laws with these odds a member has. Evenly, whatever multiplies normals; the first where that is 0.
    static std::size_t picked(const std::vector<double>& odds, const float* normals) {
        const double even =
            std::atan2(std::abs(double{normals[0]}), std::abs(double{normals[1]})) * 2 / std::numbers::pi;
        const double total = std::accumulate(odds.begin(), odds.end(), 0.0);
        std::size_t which = 0;
        for (double before = odds[0]; which + 1 < odds.size() && even > before / total;) before += odds[++which];
        return which;
    }

    Law mean_of(int c) const {
        return {law_mean_.begin() + std::ptrdiff_t{c} * J_, law_mean_.begin() + std::ptrdiff_t{c + 1} * J_};
    }

    // Gauss-Newton steps from two starts.
    Fit fitted(const Spectra& s, const std::vector<double>& correlation, int c) const {
        const auto place = std::max_element(correlation.begin(), correlation.end()) - correlation.begin();
        Fit first = descended(s, mean_of(c), c), second = descended(s, carried(static_cast<int>(place), c), c);
        return second.cost < first.cost ? second : first;
    }

    // Laws that are right too, where frames correlate about as much at other displacements.
    void add_others(const Spectra& s, const std::vector<double>& correlation, const Fit& fit, int c,
                    std::vector<Law>& laws, std::vector<double>& odds) const {
        const double most = *std::max_element(correlation.begin(), correlation.end());
        const int last = fine_, lines = static_cast<int>(correlation.size()) / last;
        std::vector<std::pair<double, int>> near;
        for (int place = 0; place < last * lines; ++place) {
            const int line = place / last, point = place % last;
            const auto at = [&](int up, int along) {
                return correlation[(line + up + lines) % lines * last + (point + along + last) % last];
            };
            const double here = correlation[place];
            const bool above = lines == 1 || (here > at(-1, 0) && here >= at(1, 0));
            if (!(above && here >= ALIKE * most && here > at(0, -1) && here >= at(0, 1))) continue;
            const Law there = carried(place, c);
            double size = 0.0;
            for (const int j : first_) {
                size += std::pow(there[j] - law_mean_[c * J_ + j], 2) / covariance_[c].at(j, j);
            }
            near.emplace_back(size, place);
        }
        if (near.size() < 2) return;
        std::sort(near.begin(), near.end());
        near.resize(std::min<std::size_t>(near.size(), OTHERS));
        for (const auto& [size, place] : near) {
            Fit other = descended(s, carried(place, c), c);
            if (!(misfit(s, other.law) < TELLING && fit.hessian.form(minus(other.law, fit.law)) > APART)) continue;
            odds.push_back(std::exp((fit.cost - other.cost) / (2 * noise_)));
            laws.push_back(std::move(other.law));
        }
    }

    static Law minus(Law a, const Law& b) {
        for (std::size_t j = 0; j < a.size(); ++j) a[j] -= b[j];
        return a;
    }

    Fit descended(const Spectra& s, Law law, int c) const {
        const Law mean = mean_of(c);
        const double total = std::accumulate(s.power.begin(), s.power.end(), 0.0);
        const SmallMatrix& prior = prior_[c];
        SmallMatrix hessian(J_);
        for (int step = 0; step < STEPS; ++step) {
            const std::vector<Complex> m = multipliers(law);
            Law slope = prior.times(minus(mean, law));
            hessian = prior;
            for (std::size_t k = 0; k < m.size(); ++k) {
                Complex off = s.cross[k] / (s.power[k] + TINY) / (m[k] + TINY) - 1.0;
                if (std::abs(off) > 1) off /= std::abs(off) + TINY;
                const double sized = s.power[k] / (total + TINY) * std::norm(m[k]);
                const double* const basis = basis_.data() + k * J_;
                for (int i = 0; i < J_; ++i) {
                    slope[i] += basis[i] * sized * (odd_[i] ? off.imag() : off.real());
                    for (int j = 0; j < J_; ++j) {
                        if (odd_[i] == odd_[j]) hessian.at(i, j) += basis[i] * sized * basis[j];
                    }
                }
            }
            const Law moved = hessian.solved(std::move(slope));
            for (int j = 0; j < J_; ++j) law[j] += moved[j];
        }
        const double cost = misfit(s, law) + prior.form(minus(law, mean));
        return {std::move(law), std::move(hessian), cost};
    }

    // Of successive frames, on twice as many points of a line.
    std::vector<double> correlation_of(const Spectra& s) const {
        std::vector<Complex> cross(s.cross.size());
        for (std::size_t k = 0; k < cross.size(); ++k) cross[k] = s.cross[k] / count_[k];
        return field_of(waves_, cross, fine_);
    }

    // The mean with the displacement of a place of the correlation.
    Law carried(int place, int c) const {
        Law law = mean_of(c);
        for (std::size_t axis = first_.size(); axis-- > 0;) {
            const int n = axis + 1 == first_.size() ? fine_ : waves_.lines, shift = place % n;
            place /= n;
            law[first_[axis]] =
                -2 * std::numbers::pi * (shift > n / 2 ? shift - n : shift) / static_cast<double>(n) * WAVE_UNIT;
        }
        return law;
    }

    int channels_, J_ = 0;
    WaveGrid waves_;
    Spectrum spectrum_;
    int fine_;  // points of a line of the correlation
    std::vector<int> first_, odd_, lowest_;
    std::vector<double> basis_, count_;  // [K, J], [K]
    std::vector<float> mean_;
    std::vector<double> law_mean_, hold_, inflation_, typical_;
    std::vector<SmallMatrix> covariance_, prior_;
    double noise_ = 0.0;
};

}  // namespace

std::unique_ptr<const Floor> make_waves_floor(const FloorGrid& grid, const TakeFloor& take) {
    for (const GridAxis& axis : grid.axes) {
        if (axis.edge != GridEdge::periodic) return nullptr;
    }
    return std::make_unique<const WavesFloor>(grid, take);
}

}  // namespace enma
