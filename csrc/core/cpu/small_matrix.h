// Square matrices [n, n] of a few rows, in fp64.
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
    // Y with A Y = X.
    SmallMatrix solved(const SmallMatrix& x) const {
        SmallMatrix out(n);
        for (int j = 0; j < n; ++j) {
            std::vector<double> column(n);
            for (int i = 0; i < n; ++i) column[i] = x.at(i, j);
            column = solved(std::move(column));
            for (int i = 0; i < n; ++i) out.at(i, j) = column[i];
        }
        return out;
    }
    SmallMatrix inverse() const {
        SmallMatrix unit(n);
        for (int i = 0; i < n; ++i) unit.at(i, i) = 1.0;
        return solved(unit);
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
};

}  // namespace enma
