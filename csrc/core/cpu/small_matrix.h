// Symmetric matrices [n, n] of a few rows, in fp64.
#pragma once

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

namespace enma {

struct SmallMatrix {
    int n;
    std::vector<double> values;

    explicit SmallMatrix(int n) : n(n), values(static_cast<std::size_t>(n) * n) {}
    SmallMatrix(int n, const double* from) : n(n), values(from, from + static_cast<std::ptrdiff_t>(n) * n) {}
    double& at(int i, int j) { return values[static_cast<std::size_t>(i) * n + j]; }
    double at(int i, int j) const { return values[static_cast<std::size_t>(i) * n + j]; }

    std::vector<double> times(const std::vector<double>& x) const {
        std::vector<double> out(n);
        for (int i = 0; i < n; ++i) {
            for (int j = 0; j < n; ++j) out[i] += at(i, j) * x[j];
        }
        return out;
    }
    // x' A x
    double form(const std::vector<double>& x) const {
        const std::vector<double> made = times(x);
        double sum = 0.0;
        for (int i = 0; i < n; ++i) sum += x[i] * made[i];
        return sum;
    }
    // y with A y = x, by elimination with the largest pivots.
    std::vector<double> solved(std::vector<double> x) const {
        SmallMatrix a = *this;
        for (int k = 0; k < n; ++k) {
            int most = k;
            for (int i = k + 1; i < n; ++i) most = std::abs(a.at(i, k)) > std::abs(a.at(most, k)) ? i : most;
            for (int j = 0; j < n; ++j) std::swap(a.at(k, j), a.at(most, j));
            std::swap(x[k], x[most]);
            for (int i = k + 1; i < n; ++i) {
                const double factor = a.at(i, k) / a.at(k, k);
                for (int j = k; j < n; ++j) a.at(i, j) -= factor * a.at(k, j);
                x[i] -= factor * x[k];
            }
        }
        for (int k = n; k-- > 0;) {
            for (int j = k + 1; j < n; ++j) x[k] -= a.at(k, j) * x[j];
            x[k] /= a.at(k, k);
        }
        return x;
    }
    SmallMatrix inverse() const {
        SmallMatrix out(n);
        for (int j = 0; j < n; ++j) {
            std::vector<double> unit(n);
            unit[j] = 1.0;
            const std::vector<double> column = solved(std::move(unit));
            for (int i = 0; i < n; ++i) out.at(i, j) = column[i];
        }
        return out;
    }
    SmallMatrix times(double factor) const {
        SmallMatrix out = *this;
        for (double& value : out.values) value *= factor;
        return out;
    }
    // The lower triangle L with L L' = A; NaN where that is none.
    SmallMatrix root() const {
        SmallMatrix out(n);
        for (int i = 0; i < n; ++i) {
            for (int j = 0; j <= i; ++j) {
                double sum = at(i, j);
                for (int k = 0; k < j; ++k) sum -= out.at(i, k) * out.at(j, k);
                out.at(i, j) = i == j ? std::sqrt(sum) : sum / out.at(j, j);
            }
        }
        return out;
    }
    // The matrix with its eigenvectors, of which each eigenvalue is mapped; by rotations of Jacobi's.
    template <class Map>
    SmallMatrix mapped(const Map& map) const {
        constexpr int SWEEPS = 30;
        constexpr double EXACT = 1e-30;
        SmallMatrix a = *this, turn(n), out(n);
        for (int i = 0; i < n; ++i) turn.at(i, i) = 1.0;
        for (int sweep = 0; sweep < SWEEPS; ++sweep) {
            double rest = 0.0, all = 0.0;
            for (int i = 0; i < n; ++i) {
                all += a.at(i, i) * a.at(i, i);
                for (int j = 0; j < i; ++j) rest += a.at(i, j) * a.at(i, j);
            }
            if (!(rest > EXACT * all)) break;
            for (int i = 0; i < n; ++i) {
                for (int j = 0; j < i; ++j) a.rotate(turn, i, j);
            }
        }
        for (int k = 0; k < n; ++k) {
            const double value = map(a.at(k, k));
            for (int i = 0; i < n; ++i) {
                for (int j = 0; j < n; ++j) out.at(i, j) += turn.at(i, k) * value * turn.at(j, k);
            }
        }
        return out;
    }

   private:
    // Turns axes i and j until this matrix has nothing between them, and the columns of another one with them.
    void rotate(SmallMatrix& turn, int i, int j) {
        if (at(i, j) == 0.0) return;
        const double half = (at(j, j) - at(i, i)) / (2 * at(i, j));
        const double tangent = (half < 0 ? -1.0 : 1.0) / (std::abs(half) + std::sqrt(half * half + 1));
        const double c = 1 / std::sqrt(tangent * tangent + 1), s = tangent * c;
        const auto both = [&](double& x, double& y) {
            const double first = c * x - s * y;
            y = s * x + c * y;
            x = first;
        };
        for (int k = 0; k < n; ++k) both(at(k, i), at(k, j));
        for (int k = 0; k < n; ++k) both(at(i, k), at(j, k));
        at(i, j) = at(j, i) = 0.0;
        for (int k = 0; k < n; ++k) both(turn.at(k, i), turn.at(k, j));
    }
};

}  // namespace enma
