// The kernels of second_difference.h, compiled once per instruction set behind lanes.h.
#pragma once

namespace {
namespace differences {

using enma::Difference;
using enma::DifferenceAxis;

typedef double Doubles __attribute__((vector_size(4 * ENMA_LANES)));
constexpr int64_t WIDE = LANES / 2;

// body(offset, vector or number) along [begin, end).
template <class Body>
ENMA_INLINE void each_of(int64_t begin, int64_t end, Body body) {
    int64_t i = begin;
    for (; i + WIDE <= end; i += WIDE) body(i, Doubles{});
    for (; i < end; ++i) body(i, 0.0);
}

// visit(neighbour, weight) for what row `i` of an axis reads.
template <class Visit>
ENMA_INLINE void reached(const DifferenceAxis& axis, int64_t i, const Visit& visit) {
    const int64_t n = axis.points, from_end = n - 1 - i;
    if (!axis.ring && (i < enma::WALL_ROWS || from_end < enma::WALL_ROWS)) {
        const bool near = i < enma::WALL_ROWS;
        for (int64_t j = 0; j < enma::WALL_REACH; ++j) {
            visit(near ? j : n - 1 - j, axis.wall[near ? i : from_end][j]);
        }
        return;
    }
    for (int64_t j = 0; j < enma::INSIDE; ++j) {
        int64_t at = i + j - 2;
        at = at < 0 ? at + n : at >= n ? at - n : at;
        visit(at, axis.inside[j]);
    }
}

void moved(const Difference& d, const double* rows, double* out) {
    const int64_t n = d.last.points;
    const double* const w = d.last.inside;
    for (int64_t line = 0; line < d.first.points; ++line) {
        const double* const in = rows + line * n;
        double* const to = out + line * n;
        for (int64_t side = 0; side < 2; ++side) {
            for (int64_t k = 0; k < enma::WALL_ROWS; ++k) {
                const int64_t i = side == 0 ? k : n - 1 - k;
                double sum = in[i];
                reached(d.last, i, [&](int64_t at, double weight) { sum += weight * in[at]; });
                to[i] = sum;
            }
        }
        each_of(enma::WALL_ROWS, n - enma::WALL_ROWS, [&](int64_t i, auto one) {
            typedef decltype(one) T;
            T sum = read_as<T>(in + i);
#pragma GCC unroll 5
            for (int64_t j = 0; j < enma::INSIDE; ++j) sum += w[j] * read_as<T>(in + i + j - 2);
            write_as(to + i, sum);
        });
        if (d.first.points == 1) continue;
        reached(d.first, line, [&](int64_t at, double weight) {
            const double* const other = rows + at * n;
            each_of(0, n, [&](int64_t i, auto one) {
                typedef decltype(one) T;
                write_as(to + i, read_as<T>(to + i) + weight * read_as<T>(other + i));
            });
        });
    }
}

void sum(const double* const* fields, const double* factors, int count, int64_t size, double* out) {
    each_of(0, size, [&](int64_t i, auto one) {
        typedef decltype(one) T;
        T made = factors[0] * read_as<T>(fields[0] + i);
        for (int k = 1; k < count; ++k) made += factors[k] * read_as<T>(fields[k] + i);
        write_as(out + i, made);
    });
}

double product(const double* a, const double* b, int64_t size) {
    Doubles sums{};
    double rest = 0.0;
    int64_t i = 0;
    for (; i + WIDE <= size; i += WIDE) sums += read_as<Doubles>(a + i) * read_as<Doubles>(b + i);
    for (; i < size; ++i) rest += a[i] * b[i];
    for (int64_t j = 0; j < WIDE; ++j) rest += sums[j];
    return rest;
}

constexpr enma::DifferenceKernels KERNELS{&moved, &sum, &product};

}  // namespace differences
}  // namespace
