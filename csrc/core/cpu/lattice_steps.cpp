#include "core/cpu/lattice_steps.h"

#include <algorithm>
#include <cmath>

namespace enma {

namespace {

// Most that a linear term may change a wave in a step: such steps are stable up to 2.78.
constexpr double STABLE = 2.5;

}  // namespace

bool LatticeSteps::stable(Complex rate, int steps) { return std::abs(rate) <= STABLE * steps; }

LatticeSteps::LatticeSteps(const WaveGrid& grid, bool plane, int channels, const std::vector<float>& active)
    : grid_(grid), channels_(channels), plane_(plane), linear_(linear_operators(plane)) {
    for (int c = 0; c < channels; ++c) factors_.push_back({c, Operator::none});
    int term = 0;
    for (int c = 0; c < channels; ++c) {
        for (const Operator by : linear_) {
            if (by >= Operator::laplacian_twice) use(term, c, {1, {{c, by}}});
            ++term;
        }
    }
    for (const Term& other : other_terms(plane, channels)) {
        if (active[term] != 0.0f) {
            for (const Product& product : other.products) use(term, other.channel, product);
        }
        ++term;
    }
}

void LatticeSteps::use(int term, int channel, const Product& product) {
    Used used{term, channel, product.sign, {}};
    for (const Factor& factor : product.factors) used.values.push_back(value(factor));
    used_.push_back(std::move(used));
}

std::size_t LatticeSteps::value(const Factor& factor) {
    const auto known = std::find(factors_.begin(), factors_.end(), factor);
    if (known != factors_.end()) return known - factors_.begin();
    const auto [channel, by] = factor;
    std::size_t from = channel;
    switch (by) {
        case Operator::potential_first:
        case Operator::potential_last: local_ = false; return from;
        case Operator::laplacian_twice:
        case Operator::last_of_laplacian: from = value({channel, Operator::laplacian}); break;
        default: break;
    }
    factors_.push_back(factor);
    derived_.push_back({from, differences(by)});
    return factors_.size() - 1;
}

Neighbours LatticeSteps::differences(Operator by) const {
    const auto share = static_cast<float>(1 / WAVE), square = share * share, slope = share / 2;
    if (by == Operator::none) return {1, 0, 0, 0, 0};
    if (by == Operator::first) return {0, -slope, slope, 0, 0};
    if (by == Operator::last || by == Operator::last_of_laplacian) return {0, 0, 0, -slope, slope};
    const float across = plane_ ? square : 0.0f;
    return {-2 * (across + square), across, across, square, square};
}

struct LatticeSteps::Work {
    Work(const LatticeSteps& of, Allocator& memory) {
        const std::size_t all = of.channels_ * of.size();
        for (float** each : {&change, &middle, &sum}) *each = memory.take<float>(all);
        derived = memory.take<float>(of.derived_.size() * of.size());
        linear = memory.take<Neighbours>(of.channels_);
        needed = memory.take<bool>(of.factors_.size());
        products = memory.take<ScaledProduct>(of.used_.size());
    }
    float *change, *middle, *sum;  // [c, points]
    float* derived;                // [derived, points]
    Neighbours* linear;            // of channels
    bool* needed;                  // [values]
    ScaledProduct* products;       // of a channel
};

std::size_t LatticeSteps::work_bytes() const {
    Allocator count(nullptr);
    Work(*this, count);
    return count.used();
}

void LatticeSteps::advance(const WaveKernels& run, const float* coefficients, int steps, char* memory,
                           float* fields) const {
    Allocator taken(memory);
    const Work work(*this, taken);
    const std::size_t all = channels_ * size();
    const float* coefficient = coefficients;
    for (std::size_t c = 0; c < channels_; ++c) {
        Neighbours& sum = work.linear[c] = {};
        for (const Operator by : linear_) {
            const float scale = *coefficient++;
            if (by >= Operator::laplacian_twice) continue;
            const Neighbours own = differences(by);
            sum.own += scale * own.own;
            sum.above += scale * own.above;
            sum.below += scale * own.below;
            sum.left += scale * own.left;
            sum.right += scale * own.right;
        }
    }
    std::fill_n(work.needed, factors_.size(), false);
    for (const Used& used : used_) {
        if (coefficients[used.term] == 0.0f) continue;
        for (const std::size_t value : used.values) work.needed[value] = true;
    }
    for (std::size_t i = derived_.size(); i-- > 0;) {
        if (work.needed[channels_ + i]) work.needed[derived_[i].from] = true;
    }
    const auto count = static_cast<std::int64_t>(all);
    const float step = 1.0f / static_cast<float>(steps);
    // Shares of a change with which the next one is found, and of all of them in a step.
    const float next[] = {step / 2, step / 2, step}, total[] = {step / 6, step / 3, step / 3, step / 6};
    for (int i = 0; i < steps; ++i) {
        for (int stage = 0; stage < 4; ++stage) {
            rate(run, stage == 0 ? fields : work.middle, coefficients, work);
            run.moved(stage == 0 ? fields : work.sum, work.change, total[stage], count, work.sum);
            if (stage < 3) run.moved(fields, work.change, next[stage], count, work.middle);
        }
        std::copy_n(work.sum, all, fields);
    }
}

void LatticeSteps::rate(const WaveKernels& run, const float* fields, const float* coefficients,
                        const Work& work) const {
    const auto at = [&](std::size_t value) {
        return value < channels_ ? fields + value * size() : work.derived + (value - channels_) * size();
    };
    for (std::size_t i = 0; i < derived_.size(); ++i) {
        if (!work.needed[channels_ + i]) continue;
        run.neighbours(at(derived_[i].from), grid_.lines, grid_.points, derived_[i].by, work.derived + i * size());
    }
    for (std::size_t c = 0; c < channels_; ++c) {
        float* const out = work.change + c * size();
        run.neighbours(fields + c * size(), grid_.lines, grid_.points, work.linear[c], out);
        int count = 0;
        for (const Used& used : used_) {
            if (std::size_t(used.channel) != c || coefficients[used.term] == 0.0f) continue;
            ScaledProduct& product = work.products[count++];
            product.count = static_cast<int>(used.values.size());
            product.scale = used.sign * coefficients[used.term];
            std::transform(used.values.begin(), used.values.end(), product.factors, at);
        }
        run.add_products(work.products, count, static_cast<std::int64_t>(size()), out);
    }
}

}  // namespace enma
