#include "core/cpu/equation_terms.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "core/cpu/vector_kernels.h"

namespace enma {

namespace {

// What counts as the highest wave; from which share of the highest wave on waves count less, and how sharply.
constexpr double NYQUIST = 1e-9, SHORT = 0.5;
constexpr int SHARPNESS = 8;

// Points on which products of waves of so many are free of aliases.
int finer(int points) { return 3 * points / 2 + 3 * points / 2 % 2; }

WaveGrid fine_grid(const WaveGrid& grid, bool plane, bool lattice) {
    if (lattice) return grid;
    return {plane ? finer(grid.lines) : 1, finer(grid.points)};
}

}  // namespace

std::array<Operator, LINEAR_TERMS> linear_operators(bool plane) {
    if (plane) {
        return {Operator::none, Operator::first, Operator::last, Operator::laplacian, Operator::laplacian_twice};
    }
    return {Operator::none, Operator::last, Operator::laplacian, Operator::last_of_laplacian,
            Operator::laplacian_twice};
}

std::vector<Term> other_terms(bool plane, int channels) {
    std::vector<Operator> slopes{Operator::last};
    if (plane) slopes = {Operator::first, Operator::last};
    std::vector<Term> out;
    for (int c = 0; c < channels; ++c) {
        out.push_back({c, {{1, {}}}});
        for (int d = 0; d < channels; ++d) {
            if (d == c) continue;
            out.push_back({c, {{1, {{d, Operator::none}}}}});
            out.push_back({c, {{1, {{d, Operator::laplacian}}}}});
            for (const Operator slope : slopes) out.push_back({c, {{1, {{d, slope}}}}});
        }
        const auto plain = [](int channel) { return Factor{channel, Operator::none}; };
        for (int i = 0; i < channels; ++i) {
            for (int j = i; j < channels; ++j) out.push_back({c, {{1, {plain(i), plain(j)}}}});
        }
        for (int i = 0; i < channels; ++i) {
            for (int j = i; j < channels; ++j) {
                for (int k = j; k < channels; ++k) out.push_back({c, {{1, {plain(i), plain(j), plain(k)}}}});
            }
        }
        for (int i = 0; i < channels; ++i) {
            for (int j = 0; j < channels; ++j) {
                for (const Operator slope : slopes) out.push_back({c, {{1, {plain(i), {j, slope}}}}});
                if (!plane) continue;
                // What a flow carries whose vorticity is channel i.
                out.push_back({c,
                               {{1, {{i, Operator::potential_last}, {j, Operator::first}}},
                                {-1, {{i, Operator::potential_first}, {j, Operator::last}}}}});
            }
        }
    }
    return out;
}

std::int64_t EquationTerms::count(bool plane, int channels) {
    return channels * LINEAR_TERMS + static_cast<std::int64_t>(other_terms(plane, channels).size());
}

EquationTerms::EquationTerms(const WaveGrid& grid, bool plane, int channels, bool lattice,
                             const std::vector<float>& active, std::array<double, 2> spacings)
    : grid_(grid),
      fine_grid_(fine_grid(grid, plane, lattice)),
      channels_(channels),
      operators_(linear_operators(plane)),
      coarse_(grid, grid.half()),
      fine_(fine_grid_, grid.half()) {
    const int K = grid.waves();
    linear_.assign(LINEAR_TERMS, std::vector<double>(K));
    for (const bool turned : {false, false, true, true, true, true, false, true}) {
        symbols_.push_back({std::vector<float>(K), turned});
    }
    for (int k = 0; k < K; ++k) {
        const int line = k / grid.half(), last = k % grid.half();
        const double around = 2 * line < grid.lines ? line : line - grid.lines;
        const double numbers[2] = {2 * std::numbers::pi * around / grid.lines,
                                   2 * std::numbers::pi * last / grid.points};
        double slopes[2], second = 0.0, size = 0.0;
        bool told = true;
        for (int axis = plane ? 0 : 1; axis < 2; ++axis) {
            const double a = numbers[axis], of_data = a / spacings[axis];
            const bool highest = std::abs(a) > std::numbers::pi - NYQUIST;
            slopes[axis] = (lattice ? std::sin(a) : highest ? 0.0 : of_data) / WAVE;
            second += lattice ? 2 - 2 * std::cos(a) : of_data * of_data;
            size += a * a;
            told = told && !highest;
        }
        second /= WAVE * WAVE;
        const double inverse = second > 0 ? 1 / std::max(second, NYQUIST) : 0.0;
        // The highest wave of an even grid has no derivative, and no phase that products could tell.
        const double share = (lattice || told ? 1.0 : 0.0) / grid.size();
        const double first = plane ? slopes[0] : 0.0;
        const double symbols[] = {
            1.0, -second, first, slopes[1], inverse * first, inverse * slopes[1], second * second, -slopes[1] * second};
        for (std::size_t i = 0; i < symbols_.size(); ++i) symbols_[i].table[k] = static_cast<float>(symbols[i] * share);
        for (int j = 0; j < LINEAR_TERMS; ++j) linear_[j][k] = symbols[static_cast<std::size_t>(operators_[j])];
        coarser_.push_back(lattice ? 1.0f : told ? static_cast<float>(grid.size()) / fine_grid_.size() : 0.0f);
        const double high = std::sqrt(size) / (SHORT * std::numbers::pi);
        long_.push_back(static_cast<float>(lattice ? 1.0 : 1 / (1 + std::pow(high, SHARPNESS))));
    }
    const std::vector<Term> terms = other_terms(plane, channels);
    for (const Term& term : terms) {
        const int j = num_linear() + static_cast<int>(&term - terms.data());
        if (active[j] == 0.0f) continue;
        Used used{j, term.channel, {}};
        for (const Product& product : term.products) {
            std::vector<int> places;
            for (const Factor& factor : product.factors) {
                const auto found = std::find(factors_.begin(), factors_.end(), factor);
                places.push_back(static_cast<int>(found - factors_.begin()));
                if (found == factors_.end()) factors_.push_back(factor);
            }
            used.products.emplace_back(product.sign, std::move(places));
        }
        used_.push_back(std::move(used));
    }
}

struct EquationTerms::Work {
    Work(const EquationTerms& of, Allocator& memory) : coarse(of.coarse_, memory), fine(of.fine_, memory) {
        const std::size_t size = of.fine_.values();
        made = memory.take<float>(size);
        factors = memory.take<float>(size * of.factors_.size());
    }
    WaveTransform::Work coarse, fine;
    float *made, *factors;  // [points], [factors, points] of the grid where products are taken
};

std::size_t EquationTerms::work_bytes() const {
    Allocator count(nullptr);
    Work(*this, count);
    return count.used();
}

std::vector<Complex> EquationTerms::rates(const std::vector<double>& coefficients) const {
    const std::ptrdiff_t K = waves();
    std::vector<Complex> out;
    for (int c = 0; c < channels_; ++c) {
        for (std::ptrdiff_t k = 0; k < K; ++k) {
            double parts[2] = {};
            for (int j = 0; j < LINEAR_TERMS; ++j) {
                const bool turned = symbols_[static_cast<std::size_t>(operators_[j])].turned;
                parts[turned] += coefficients[c * LINEAR_TERMS + j] * linear_[j][k];
            }
            out.emplace_back(parts[0], parts[1]);
        }
    }
    return out;
}

void EquationTerms::waves_of(const WaveKernels& run, const float* frame, char* memory, Planes waves) const {
    Allocator taken(memory);
    const Work work(*this, taken);
    for (int c = 0; c < channels_; ++c) {
        for (int line = 0; line < grid_.lines; ++line) {
            const float* const row = frame + std::ptrdiff_t{line} * grid_.points * channels_ + c;
            for (int i = 0; i < grid_.points; ++i) work.made[coarse_.place(line, i)] = row[i * channels_];
        }
        const Planes made = coarse_.forward(run, work.coarse, work.made),
                     to = waves.from(std::ptrdiff_t{c} * this->waves());
        std::copy_n(made.re, this->waves(), to.re);
        std::copy_n(made.im, this->waves(), to.im);
    }
}

void EquationTerms::frame_of(const WaveKernels& run, Planes waves, char* memory, float* frame) const {
    Allocator taken(memory);
    const Work work(*this, taken);
    const float share = 1.0f / static_cast<float>(grid_.size());
    for (int c = 0; c < channels_; ++c) {
        const Planes from = waves.from(std::ptrdiff_t{c} * this->waves());
        std::copy_n(from.re, this->waves(), work.coarse.a.re);
        std::copy_n(from.im, this->waves(), work.coarse.a.im);
        coarse_.inverse(run, work.coarse, work.made);
        for (int line = 0; line < grid_.lines; ++line) {
            float* const row = frame + std::ptrdiff_t{line} * grid_.points * channels_ + c;
            for (int i = 0; i < grid_.points; ++i) row[i * channels_] = work.made[coarse_.place(line, i)] * share;
        }
    }
}

template <class Body>
void EquationTerms::each_wave(Body body) const {
    const int half = grid_.half(), far = fine_grid_.lines - grid_.lines;
    for (int c = 0; c < channels_; ++c) {
        for (int k = 0; k < waves(); ++k) {
            const int line = k / half, last = k % half, among = 2 * line < grid_.lines ? line : line + far;
            const int place = c * waves() + k;
            body(place, (c * fine_grid_.lines + among) * fine_grid_.half() + last, coarser_[k]);
        }
    }
}

void EquationTerms::on_finer(Planes waves, Planes out) const {
    const float gain = static_cast<float>(fine_grid_.size()) / static_cast<float>(grid_.size());
    std::fill_n(out.re, channels_ * fine_grid_.waves(), 0.0f);
    std::fill_n(out.im, channels_ * fine_grid_.waves(), 0.0f);
    each_wave([&](int own, int among, float share) {
        if (share == 0.0f) return;
        out.re[among] = waves.re[own] * gain;
        out.im[among] = waves.im[own] * gain;
    });
}

void EquationTerms::on_coarser(Planes waves, Planes out) const {
    each_wave([&](int own, int among, float share) {
        out.re[own] = waves.re[among] * share;
        out.im[own] = waves.im[among] * share;
    });
}

void EquationTerms::keep_long(const WaveKernels& run, Planes waves) const {
    for (int c = 0; c < channels_; ++c) {
        const Planes own = waves.from(std::ptrdiff_t{c} * this->waves());
        run.scaled(long_.data(), false, this->waves(), own, own);
    }
}

bool EquationTerms::changes(const std::vector<float>& coefficients) const {
    return std::any_of(used_.begin(), used_.end(), [&](const Used& used) { return coefficients[used.term] != 0.0f; });
}

void EquationTerms::change(const WaveKernels& run, Planes waves, const float* coefficients, char* memory,
                           Planes out) const {
    Allocator taken(memory);
    const Work work(*this, taken);
    const std::ptrdiff_t half = grid_.half(), size = fine_.values();
    // Lines of waves up to the highest, and those below zero, which end the finer grid too.
    const std::ptrdiff_t above = (grid_.lines + 1) / 2 * half, all = this->waves();
    const std::ptrdiff_t below = fine_grid_.lines * half - (all - above);
    for (std::size_t f = 0; f < factors_.size(); ++f) {
        const Symbol& symbol = symbols_[static_cast<std::size_t>(factors_[f].second)];
        const Planes from = waves.from(factors_[f].first * all), to = work.fine.a;
        run.scaled(symbol.table.data(), symbol.turned, above, from, to);
        run.scaled(symbol.table.data() + above, symbol.turned, all - above, from.from(above), to.from(below));
        std::fill_n(to.re + above, below - above, 0.0f);
        std::fill_n(to.im + above, below - above, 0.0f);
        fine_.inverse(run, work.fine, work.factors + f * size);
    }
    for (int c = 0; c < channels_; ++c) {
        std::fill_n(work.made, size, 0.0f);
        bool any = false;
        for (const Used& used : used_) {
            if (used.channel != c || coefficients[used.term] == 0.0f) continue;
            any = true;
            for (const auto& [sign, places] : used.products) {
                const float* factors[3];
                for (std::size_t i = 0; i < places.size(); ++i) factors[i] = work.factors + places[i] * size;
                run.add_product(factors, static_cast<int>(places.size()), sign * coefficients[used.term], size,
                                work.made);
            }
        }
        const Planes to = out.from(c * all);
        if (!any) {
            std::fill_n(to.re, all, 0.0f);
            std::fill_n(to.im, all, 0.0f);
            continue;
        }
        const Planes made = fine_.forward(run, work.fine, work.made);
        run.scaled(coarser_.data(), false, above, made, to);
        run.scaled(coarser_.data() + above, false, all - above, made.from(below), to.from(above));
    }
}

}  // namespace enma
