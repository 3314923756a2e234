#include "core/cpu/fourier.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numbers>

#include "core/cpu/vector_kernels.h"

namespace enma {

namespace {

// The share of a thread of the team in `count` parts.
struct Share {
    int begin, end;

    Share(int count, const Member& member)
        : begin(static_cast<int>(std::int64_t{count} * member.thread / member.threads)),
          end(static_cast<int>(std::int64_t{count} * (member.thread + 1) / member.threads)) {}
};

// Waves across lines are 0, 1, ..., -2, -1.
int signed_wave(int number, int waves) { return number <= waves / 2 ? number : number - waves; }

}  // namespace

std::vector<std::vector<float>> fourier_tables(const FourierGrid& grid) {
    const int n = grid.places, m = grid.modes, rows = grid.lines, K = grid.waves();
    std::vector<float> along(static_cast<std::size_t>(2) * m * n), places(along.size());
    std::vector<float> across(static_cast<std::size_t>(4) * K * rows), lines(across.size());
    for (int wave = 0; wave < m; ++wave) {
        // A wave and its conjugate are one wave of a real field, but for the mean.
        const double scale = (wave == 0 ? 1.0 : 2.0) / (static_cast<double>(rows) * n);
        for (int place = 0; place < n; ++place) {
            const double angle = 2 * std::numbers::pi * (std::int64_t{wave} * place % n) / n;
            along[(2 * wave) * n + place] = static_cast<float>(std::cos(angle));
            along[(2 * wave + 1) * n + place] = static_cast<float>(-std::sin(angle));
            places[(place * m + wave) * 2] = static_cast<float>(scale * std::cos(angle));
            places[(place * m + wave) * 2 + 1] = static_cast<float>(-scale * std::sin(angle));
        }
    }
    for (int number = 0; number < K; ++number) {
        const int wave = signed_wave(number, K);
        for (int line = 0; line < rows; ++line) {
            const double angle = 2 * std::numbers::pi * (std::int64_t{wave} * line % rows) / rows;
            const float c = static_cast<float>(std::cos(angle)), s = static_cast<float>(std::sin(angle));
            // (re + i im) e^(-i angle), and for the way back e^(i angle).
            float* real = across.data() + static_cast<std::size_t>(number) * 2 * rows + line;
            float* imaginary = real + static_cast<std::size_t>(K) * 2 * rows;
            real[0] = c, real[rows] = s, imaginary[0] = -s, imaginary[rows] = c;
            real = lines.data() + static_cast<std::size_t>(line) * 2 * K + number;
            imaginary = real + static_cast<std::size_t>(rows) * 2 * K;
            real[0] = c, real[K] = -s, imaginary[0] = s, imaginary[K] = c;
        }
    }
    return {along, across, lines, places};
}

std::vector<float> fourier_filter(const float* filter, const FourierGrid& grid) {
    std::vector<float> out(grid.filter_size());
    const std::ptrdiff_t square = static_cast<std::ptrdiff_t>(grid.width) * grid.width;
    const int K = grid.waves(), m = grid.modes;
    for (int part = 0; part < 2; ++part) {
        for (int number = 0; number < K; ++number) {
            for (int wave = 0; wave < m; ++wave) {
                const std::ptrdiff_t from = ((std::ptrdiff_t{part} * K + number) * m + wave) * square;
                float* to = out.data() + ((std::ptrdiff_t{wave} * K + number) * 2 + part) * square;
                std::copy_n(filter + from, square, to);
            }
        }
    }
    return out;
}

std::size_t fourier_shared(const FourierGrid& grid) { return std::size_t{2} * grid.modes * grid.lines * grid.width; }

std::size_t fourier_own(const FourierGrid& grid) { return std::size_t{4} * (grid.waves() + 1) * grid.width; }

void Fourier::to_waves(const float* places, const Member& member) const {
    const int W = grid.width, n = grid.places, rows = grid.lines, m = grid.modes;
    const std::ptrdiff_t stride = static_cast<std::ptrdiff_t>(rows) * W;
    const Share share(rows, member);
    for (int line = share.begin; line < share.end; ++line) {
        const float* from = places + static_cast<std::ptrdiff_t>(line) * n * W;
        vector_kernels(isa).row_sums({tables.along, 2 * m, n, from, W, waves + std::ptrdiff_t{line} * W, stride, W});
    }
}

void Fourier::filtered(const float* filter, const Member& member) const {
    const int W = grid.width, rows = grid.lines, m = grid.modes, K = grid.waves();
    const auto row_sums = vector_kernels(isa).row_sums;
    const std::ptrdiff_t square = static_cast<std::ptrdiff_t>(W) * W;
    float *const given = work, *const made = given + std::ptrdiff_t{2} * K * W, *const factors = made + 2 * K * W;
    const Share share(m, member);
    for (int wave = share.begin; wave < share.end; ++wave) {
        const float* from = waves + static_cast<std::ptrdiff_t>(wave) * 2 * rows * W;
        row_sums({tables.across, 2 * K, 2 * rows, from, W, given, W, W});
        for (int number = 0; number < K; ++number) {
            // (re + i im) (a + i b) as sums of the rows of a and b.
            const float *re = given + std::ptrdiff_t{number} * W, *im = re + std::ptrdiff_t{K} * W;
            for (int c = 0; c < W; ++c) {
                factors[c] = re[c], factors[W + c] = -im[c], factors[2 * W + c] = im[c], factors[3 * W + c] = re[c];
            }
            const float* matrix = filter + (std::ptrdiff_t{wave} * K + number) * 2 * square;
            row_sums({factors, 2, 2 * W, matrix, W, made + std::ptrdiff_t{number} * W, std::ptrdiff_t{K} * W, W});
        }
        for (int part = 0; part < 2; ++part) {
            row_sums({tables.lines + std::ptrdiff_t{part} * rows * 2 * K, rows, 2 * K, made, W,
                      lines + static_cast<std::ptrdiff_t>(2 * wave + part) * W, std::ptrdiff_t{2} * m * W, W});
        }
    }
}

void Fourier::to_places(int begin, int end, float* places) const {
    const int W = grid.width, n = grid.places, m = grid.modes;
    for (int first = begin; first < end;) {
        const int line = first / n, at = first % n, count = std::min(end - first, n - at);
        const float* from = lines + static_cast<std::ptrdiff_t>(line) * 2 * m * W;
        vector_kernels(isa).row_sums({tables.places + std::ptrdiff_t{at} * 2 * m, count, 2 * m, from, W,
                                      places + static_cast<std::ptrdiff_t>(first - begin) * W, W, W});
        first += count;
    }
}

}  // namespace enma
