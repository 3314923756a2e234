#include "core/cpu/spectrum.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace enma {

namespace {

// e^(2 pi i sign k / n) for all k.
std::vector<Complex> roots(int n, int sign) {
    std::vector<Complex> out(n);
    for (int k = 0; k < n; ++k) out[k] = std::polar(1.0, sign * 2 * std::numbers::pi * k / n);
    return out;
}

Complex times(Complex a, Complex b) {
    return {a.real() * b.real() - a.imag() * b.imag(), a.real() * b.imag() + a.imag() * b.real()};
}

// out [n] from every `step`-th of `in`; `root` are the roots of unity of n * step.
void transform(const Complex* in, int n, int step, const std::vector<Complex>& root, Complex* out) {
    if (n == 1) {
        out[0] = in[0];
        return;
    }
    int radix = 2;
    while (n % radix != 0) radix = radix * radix < n ? radix + 1 : n;
    const int part = n / radix;
    for (int r = 0; r < radix; ++r) transform(in + std::ptrdiff_t{r} * step, part, step * radix, root, out + r * part);
    std::vector<Complex> sums(radix);
    for (int k = 0; k < part; ++k) {
        for (int q = 0; q < radix; ++q) {
            sums[q] = out[k];
            for (int r = 1; r < radix; ++r) {
                const std::int64_t turn = std::int64_t{r} * (k + std::int64_t{q} * part) % n;
                sums[q] += times(out[r * part + k], root[turn * step]);
            }
        }
        for (int q = 0; q < radix; ++q) out[q * part + k] = sums[q];
    }
}

Linear table(int columns, int inputs, const auto& weight) {
    return Linear(columns, inputs, weight, [](int) { return 0.0f; });
}

}  // namespace

std::vector<Complex> waves_of(const WaveGrid& grid, const std::vector<double>& field) {
    const std::vector<Complex> along = roots(grid.points, -1), across = roots(grid.lines, -1);
    std::vector<Complex> out(grid.waves()), in(grid.points), line(std::max(grid.points, grid.lines));
    for (int x = 0; x < grid.lines; ++x) {
        std::copy_n(field.begin() + std::ptrdiff_t{x} * grid.points, grid.points, in.begin());
        transform(in.data(), grid.points, 1, along, line.data());
        std::copy_n(line.begin(), grid.half(), out.begin() + std::ptrdiff_t{x} * grid.half());
    }
    for (int k = 0; grid.lines > 1 && k < grid.half(); ++k) {
        std::vector<Complex> column(grid.lines);
        for (int x = 0; x < grid.lines; ++x) column[x] = out[x * grid.half() + k];
        transform(column.data(), grid.lines, 1, across, line.data());
        for (int x = 0; x < grid.lines; ++x) out[x * grid.half() + k] = line[x];
    }
    return out;
}

std::vector<double> field_of(const WaveGrid& grid, const std::vector<Complex>& waves, int points) {
    const std::vector<Complex> along = roots(points, 1), across = roots(grid.lines, 1);
    std::vector<Complex> all = waves, column(grid.lines), line(std::max(points, grid.lines));
    for (int k = 0; grid.lines > 1 && k < grid.half(); ++k) {
        for (int x = 0; x < grid.lines; ++x) column[x] = all[x * grid.half() + k];
        transform(column.data(), grid.lines, 1, across, line.data());
        for (int x = 0; x < grid.lines; ++x) all[x * grid.half() + k] = line[x];
    }
    std::vector<double> out;
    std::vector<Complex> in(points);
    for (int x = 0; x < grid.lines; ++x) {
        std::fill(in.begin(), in.end(), Complex());
        for (int k = 0; k < grid.half(); ++k) {
            const Complex wave = all[x * grid.half() + k];
            // Of a wave and its conjugate, which are one wave at both ends.
            if (k == 0 || 2 * k == points) {
                in[k] = wave.real();
            } else {
                in[k] = wave;
                in[points - k] = std::conj(wave);
            }
        }
        transform(in.data(), points, 1, along, line.data());
        for (int y = 0; y < points; ++y) out.push_back(line[y].real());
    }
    return out;
}

Spectrum::Spectrum(const WaveGrid& grid) : grid_(grid), columns_(whole_panels(2 * grid.half())) {
    const int half = grid.half(), n = grid.points, lines = grid.lines;
    const std::vector<Complex> along = roots(n, 1), across = roots(lines, 1);
    const auto turn = [](const std::vector<Complex>& root, int a, int b) {
        return root[std::int64_t{a} * b % static_cast<std::int64_t>(root.size())];
    };
    along_ = table(columns_, n, [&](int j, int x) {
        if (j >= 2 * half) return 0.0f;
        const Complex root = turn(along, j % half, x);
        return static_cast<float>(j < half ? root.real() : -root.imag());
    });
    back_along_ = table(whole_panels(n), columns_, [&](int x, int j) {
        if (j >= 2 * half || x >= n) return 0.0f;
        const int k = j % half;
        const double share = (k == 0 || 2 * k == n ? 1.0 : 2.0) / (static_cast<double>(n) * lines);
        const Complex root = turn(along, k, x);
        return static_cast<float>(share * (j < half ? root.real() : -root.imag()));
    });
    if (lines == 1) return;
    // Columns of lines, real parts and then imaginary ones, multiplied by e^(-+ 2 pi i k x / n).
    const auto complex = [&](double sign) {
        return table(whole_panels(2 * lines), 2 * lines, [&, sign](int j, int i) {
            if (j >= 2 * lines) return 0.0f;
            const Complex root = turn(across, j % lines, i % lines);
            const bool imaginary = j >= lines, from_imaginary = i >= lines;
            const double sine = sign * root.imag();
            return static_cast<float>(imaginary == from_imaginary ? root.real() : from_imaginary ? -sine : sine);
        });
    };
    across_ = complex(-1.0);
    back_across_ = complex(1.0);
}

// Lines of waves or points, columns of lines, and either.
struct Spectrum::Parts {
    Parts(const Spectrum& s, Allocator& memory) {
        const std::size_t lines = s.grid_.lines, half = s.grid_.half(), wide = whole_panels(2 * s.grid_.lines);
        const std::size_t along_size = lines * std::max(s.columns_, whole_panels(s.grid_.points));
        gemm = memory.take<char>(GEMM_SCRATCH);
        along = memory.take<float>(along_size);
        columns = memory.take<float>(half * wide);
        made = memory.take<float>(std::max(half * wide, along_size));
    }
    char* gemm;
    float *along, *columns, *made;
};

std::size_t Spectrum::work_bytes() const {
    Allocator count(nullptr);
    Parts(*this, count);
    return count.used();
}

std::size_t Spectrum::place(int wave) const {
    if (grid_.lines == 1) return wave;
    return static_cast<std::size_t>(wave % grid_.half()) * 2 * grid_.lines + wave / grid_.half();
}

void Spectrum::forward(const float* field, Isa isa, char* work, float* waves) const {
    const int lines = grid_.lines, half = grid_.half(), wide = whole_panels(2 * lines);
    const Kernels& run = kernels(isa);
    Allocator memory(work);
    const Parts at(*this, memory);
    if (lines == 1) {
        run.linear(along_.view(), field, grid_.points, 1, waves, columns_, at.gemm);
        return;
    }
    run.linear(along_.view(), field, grid_.points, lines, at.along, columns_, at.gemm);
    for (int k = 0; k < half; ++k) {
        for (int x = 0; x < lines; ++x) {
            at.columns[k * 2 * lines + x] = at.along[x * columns_ + k];
            at.columns[k * 2 * lines + lines + x] = at.along[x * columns_ + half + k];
        }
    }
    run.linear(across_.view(), at.columns, 2 * lines, half, at.made, wide, at.gemm);
    for (int k = 0; k < half; ++k) std::copy_n(at.made + k * wide, 2 * lines, waves + k * 2 * lines);
}

void Spectrum::inverse(const float* waves, Isa isa, char* work, float* field) const {
    const int lines = grid_.lines, half = grid_.half(), wide = whole_panels(2 * lines), n = grid_.points;
    const Kernels& run = kernels(isa);
    Allocator memory(work);
    const Parts at(*this, memory);
    const float* from = waves;
    if (lines > 1) {
        run.linear(back_across_.view(), waves, 2 * lines, half, at.columns, wide, at.gemm);
        std::fill_n(at.along, static_cast<std::ptrdiff_t>(lines) * columns_, 0.0f);
        for (int k = 0; k < half; ++k) {
            for (int x = 0; x < lines; ++x) {
                at.along[x * columns_ + k] = at.columns[k * wide + x];
                at.along[x * columns_ + half + k] = at.columns[k * wide + lines + x];
            }
        }
        from = at.along;
    }
    run.linear(back_along_.view(), from, columns_, lines, at.made, whole_panels(n), at.gemm);
    for (int x = 0; x < lines; ++x) std::copy_n(at.made + x * whole_panels(n), n, field + std::ptrdiff_t{x} * n);
}

}  // namespace enma
