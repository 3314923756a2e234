// Classical Runge-Kutta steps of an equation whose derivatives are differences of neighbours, on the points of the grid:
// enma_fast/models/floors/lattice.py
#pragma once

#include <cstdint>
#include <vector>

#include "core/cpu/equation_terms.h"

namespace enma {

class LatticeSteps {
   public:
    // `active` as of EquationTerms.
    LatticeSteps(const WaveGrid& grid, bool plane, int channels, const std::vector<float>& active);

    // Whether points change by their neighbours alone; there are no steps of others.
    bool local() const { return local_; }
    // Whether as many steps of a frame are stable where a wave changes by so much.
    static bool stable(Complex rate, int steps);
    std::size_t work_bytes() const;
    // Fields [c, points] a frame later, in place, by all coefficients.
    void advance(const WaveKernels& run, const float* coefficients, int steps, char* work, float* fields) const;

   private:
    // What differences make of another value; the first values are the fields.
    struct Derived {
        std::size_t from;
        Neighbours by;
    };
    struct Used {
        int term, channel;
        float sign;
        std::vector<std::size_t> values;
    };
    struct Work;

    void use(int term, int channel, const Product& product);
    std::size_t value(const Factor& factor);
    Neighbours differences(Operator by) const;
    void rate(const WaveKernels& run, const float* fields, const float* coefficients, const Work& work) const;
    std::size_t size() const { return grid_.size(); }

    WaveGrid grid_;
    std::size_t channels_;
    bool plane_, local_ = true;
    std::array<Operator, LINEAR_TERMS> linear_;
    std::vector<Factor> factors_;  // of each value
    std::vector<Derived> derived_;
    std::vector<Used> used_;
};

}  // namespace enma
