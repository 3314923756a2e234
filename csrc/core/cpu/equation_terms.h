// Terms that an equation of fields on periodic grids may have: enma_fast/models/floors/terms.py
#pragma once

#include <array>
#include <cstdint>
#include <numbers>
#include <utility>
#include <vector>

#include "core/cpu/allocator.h"
#include "core/cpu/spectrum.h"
#include "core/cpu/wave_transform.h"

namespace enma {

// What a factor is of its channel: itself, its Laplacian, its derivatives, and those of the potential whose Laplacian is
// minus the channel; of linear terms alone, the Laplacian of the Laplacian and its derivative.
enum class Operator {
    none,
    laplacian,
    first,
    last,
    potential_first,
    potential_last,
    laplacian_twice,
    last_of_laplacian
};

using Factor = std::pair<int, Operator>;

struct Product {
    float sign;
    std::vector<Factor> factors;
};

// Products that are added to the change of a channel.
struct Term {
    int channel;
    std::vector<Product> products;
};

// What the linear terms of a channel are, in the order of their coefficients; then the terms that are not linear, or
// couple channels.
constexpr int LINEAR_TERMS = 5;
std::array<Operator, LINEAR_TERMS> linear_operators(bool plane);
std::vector<Term> other_terms(bool plane, int channels);

// Radians per point of a unit of wave numbers.
constexpr double WAVE = std::numbers::pi / 8;

class EquationTerms {
   public:
    // `active` [P] of all terms; of no other one that is not linear is a coefficient ever other than 0.
    // `spacings` of lines and of points, in those of the data.
    EquationTerms(const WaveGrid& grid, bool plane, int channels, bool lattice, const std::vector<float>& active,
                  std::array<double, 2> spacings = {1, 1});

    static std::int64_t count(bool plane, int channels);
    int num_linear() const { return channels_ * LINEAR_TERMS; }
    int waves() const { return grid_.waves(); }
    const WaveGrid& grid() const { return grid_; }
    // On which products are taken.
    const WaveGrid& finer_grid() const { return fine_grid_; }
    // Waves [c, K] among those of the finer grid, and back.
    void on_finer(Planes waves, Planes out) const;
    void on_coarser(Planes waves, Planes out) const;
    std::size_t work_bytes() const;

    // Rates [c][K] of waves under the linear terms.
    std::vector<Complex> rates(const std::vector<double>& coefficients) const;
    // Waves [c, K] of a frame [*x, c], and back.
    void waves_of(const WaveKernels& run, const float* frame, char* work, Planes waves) const;
    void frame_of(const WaveKernels& run, Planes waves, char* work, float* frame) const;
    // The part of waves by which an equation is told; in place.
    void keep_long(const WaveKernels& run, Planes waves) const;
    // What the other terms add to waves [c, K], by all coefficients.
    void change(const WaveKernels& run, Planes waves, const float* coefficients, char* work, Planes out) const;
    // Whether one of these is not 0.
    bool changes(const std::vector<float>& coefficients) const;

   private:
    // The symbol of a factor, real or imaginary.
    struct Symbol {
        std::vector<float> table;  // [K]
        bool turned;
    };
    struct Used {
        int term, channel;
        std::vector<std::pair<float, std::vector<int>>> products;  // sign, places of factors
    };
    struct Work;

    // body(place of a wave, that among those of the finer grid, its share of that one: 0 where it has no phase there).
    template <class Body>
    void each_wave(Body body) const;

    WaveGrid grid_, fine_grid_;
    int channels_;
    std::array<Operator, LINEAR_TERMS> operators_;  // of the linear terms
    WaveTransform coarse_, fine_;
    std::vector<std::vector<double>> linear_;  // [terms][K], imaginary where their symbols are turned
    std::vector<Symbol> symbols_;              // of operators
    std::vector<float> coarser_, long_;
    std::vector<Factor> factors_;
    std::vector<Used> used_;
};

}  // namespace enma
