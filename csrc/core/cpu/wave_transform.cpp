#include "core/cpu/wave_transform.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace enma {

namespace {

void add_turn(std::vector<float>& to, std::int64_t k, std::int64_t n) {
    const Complex turn = std::polar(1.0, -2 * std::numbers::pi * static_cast<double>(k % n) / static_cast<double>(n));
    to.push_back(static_cast<float>(turn.real()));
    to.push_back(static_cast<float>(turn.imag()));
}

}  // namespace

LineTransform::LineTransform(int length) {
    for (int left = length; left > 1;) {
        int radix = 4;
        if (left % radix != 0) {
            radix = 2;
            while (left % radix != 0) ++radix;
        }
        std::vector<float> turns, roots;
        for (std::int64_t p = 0; p < left / radix; ++p) {
            for (std::int64_t k = 1; k < radix; ++k) add_turn(turns, p * k, left);
        }
        for (std::int64_t k = 0; k < radix; ++k) add_turn(roots, k, radix);
        left /= radix;
        tables_.push_back(std::move(turns));
        tables_.push_back(std::move(roots));
        stages_.push_back({radix, left, tables_.rbegin()[1].data(), tables_.back().data()});
    }
}

WaveTransform::WaveTransform(const WaveGrid& grid, int kept)
    : grid_(grid),
      kept_(kept),
      half_(grid.points % 2 == 0 ? grid.points / 2 : grid.points),
      across_(grid.lines),
      along_(half_) {
    for (int k = 0; k <= half_; ++k) {
        // Of the inverse transform.
        add_turn(turns_, grid.points - k % grid.points, grid.points);
    }
}

WaveTransform::Work::Work(const WaveTransform& of, Allocator& memory) {
    const WaveGrid& grid = of.grid_;
    const bool odd_points = grid.points % 2 != 0;
    const std::size_t size = std::size_t(grid.lines) * (odd_points ? grid.points : grid.half());
    for (Planes* planes : {&a, &b}) *planes = {memory.take<float>(size), memory.take<float>(size)};
    odd = odd_points ? memory.take<float>(size) : nullptr;
    zeros = memory.take<float>(grid.lines);
    if (zeros != nullptr) std::fill_n(zeros, grid.lines, 0.0f);
}

Planes WaveTransform::planes(const Work& work, float* field) const {
    if (grid_.points % 2 != 0) return {field, work.odd};
    return {field, field + std::ptrdiff_t{half_} * grid_.lines};
}

void WaveTransform::inverse(const WaveKernels& run, const Work& work, float* field) const {
    const int lines = grid_.lines;
    Planes in = work.a, free = work.b;
    if (lines > 1) {
        const Planes made = run.transform(across_.view(), kept_, in.exchanged(), free.exchanged()).exchanged();
        const Planes other = made.re == work.a.re ? work.b : work.a;
        run.transposed(made.re, lines, kept_, other.re);
        run.transposed(made.im, lines, kept_, other.im);
        in = other;
        free = made;
    }
    const Planes out = planes(work, field), begin = along_.stays() ? out : free, spare = along_.stays() ? free : out;
    if (grid_.points % 2 == 0) {
        run.joined(turns_.data(), half_, kept_, lines, in, work.zeros, begin);
    } else {
        for (int k = 0; k < grid_.points; ++k) {
            // The second half are conjugates of the first.
            const bool first = 2 * k < grid_.points;
            const Planes from = in.from(std::ptrdiff_t{first ? k : grid_.points - k} * lines);
            const Planes to = begin.from(std::ptrdiff_t{k} * lines);
            for (int x = 0; x < lines; ++x) {
                to.re[x] = from.re[x];
                to.im[x] = k == 0 ? 0.0f : first ? from.im[x] : -from.im[x];
            }
        }
    }
    run.transform(along_.view(), lines, begin.exchanged(), spare.exchanged());
}

Planes WaveTransform::forward(const WaveKernels& run, const Work& work, float* field) const {
    const int lines = grid_.lines;
    const Planes points = planes(work, field);
    if (grid_.points % 2 != 0) std::fill_n(points.im, grid_.size(), 0.0f);
    Planes made = run.transform(along_.view(), lines, points, work.a);
    if (grid_.points % 2 == 0) {
        run.parted(turns_.data(), half_, kept_, lines, made, work.b);
        made = work.b;
    }
    if (lines == 1) return made;
    const Planes other = made.re == work.a.re ? work.b : work.a;
    run.transposed(made.re, kept_, lines, other.re);
    run.transposed(made.im, kept_, lines, other.im);
    return run.transform(across_.view(), kept_, other, other.re == work.a.re ? work.b : work.a);
}

}  // namespace enma
