// The kernels of wave_transform.h, compiled once per instruction set behind lanes.h.
#pragma once

namespace {
namespace waves {

using enma::Planes;
using enma::TransformStage;

typedef float Fours __attribute__((vector_size(16)));

// body(offset, vector or number) for so many.
template <class Body>
ENMA_INLINE void each_of(int64_t count, Body body) {
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) body(i, Floats{});
    for (; i + 4 <= count; i += 4) body(i, Fours{});
    for (; i < count; ++i) body(i, 0.0f);
}

template <class T>
struct Wave {
    T re, im;

    ENMA_INLINE Wave operator+(Wave b) const { return {re + b.re, im + b.im}; }
    ENMA_INLINE Wave operator-(Wave b) const { return {re - b.re, im - b.im}; }
    ENMA_INLINE Wave operator*(float scale) const { return {re * scale, im * scale}; }
    // By a number (c, s).
    ENMA_INLINE Wave turned(float c, float s) const { return {re * c - im * s, re * s + im * c}; }
    // -i times it.
    ENMA_INLINE Wave back() const { return {im, -re}; }
};

template <class T>
ENMA_INLINE Wave<T> read(Planes at, int64_t i) {
    return {read_as<T>(at.re + i), read_as<T>(at.im + i)};
}

template <class T>
ENMA_INLINE void write(Planes at, int64_t i, Wave<T> a) {
    write_as(at.re + i, a.re);
    write_as(at.im + i, a.im);
}

template <class T>
ENMA_INLINE void sums(Wave<T> (&a)[2]) {
    const Wave<T> b = a[1];
    a[1] = a[0] - b;
    a[0] = a[0] + b;
}

template <class T>
ENMA_INLINE void sums(Wave<T> (&a)[3]) {
    constexpr float SINE = 0.86602540378443864676f;
    const Wave<T> both = a[1] + a[2], off = (a[1] - a[2]).back() * SINE, middle = a[0] - both * 0.5f;
    a[0] = a[0] + both;
    a[1] = middle + off;
    a[2] = middle - off;
}

template <class T>
ENMA_INLINE void sums(Wave<T> (&a)[4]) {
    const Wave<T> even = a[0] + a[2], off = a[0] - a[2], odd = a[1] + a[3], side = (a[1] - a[3]).back();
    a[0] = even + odd;
    a[1] = off + side;
    a[2] = even - odd;
    a[3] = off - side;
}

template <class T>
ENMA_INLINE void sums(Wave<T> (&a)[5]) {
    constexpr float COS1 = 0.30901699437494742410f, COS2 = -0.80901699437494742410f, SIN1 = 0.95105651629515357212f,
                    SIN2 = 0.58778525229247312917f;
    const Wave<T> outer = a[1] + a[4], inner = a[2] + a[3], far = a[1] - a[4], near = a[2] - a[3], first = a[0];
    const Wave<T> m1 = first + outer * COS1 + inner * COS2, m2 = first + outer * COS2 + inner * COS1;
    const Wave<T> n1 = (far * SIN1 + near * SIN2).back(), n2 = (far * SIN2 - near * SIN1).back();
    a[0] = first + outer + inner;
    a[1] = m1 + n1;
    a[2] = m2 + n2;
    a[3] = m2 - n2;
    a[4] = m1 - n1;
}

// Of `run` values side by side.
template <int RADIX>
ENMA_INLINE void stage(const TransformStage& s, int64_t run, Planes in, Planes out) {
    const int64_t parts = s.parts;
    for (int64_t p = 0; p < parts; ++p) {
        const float* const turns = s.turns + p * (RADIX - 1) * 2;
        const Planes from = in.from(p * run), to = out.from(p * RADIX * run);
        each_of(run, [&](int64_t i, auto one) {
            typedef decltype(one) T;
            Wave<T> a[RADIX];
#pragma GCC unroll 5
            for (int64_t j = 0; j < RADIX; ++j) a[j] = read<T>(from, i + j * parts * run);
            sums(a);
            write(to, i, a[0]);
#pragma GCC unroll 5
            for (int64_t k = 1; k < RADIX; ++k) {
                write(to, i + k * run, a[k].turned(turns[2 * k - 2], turns[2 * k - 1]));
            }
        });
    }
}

void any_stage(const TransformStage& s, int64_t run, Planes in, Planes out) {
    const int64_t parts = s.parts, radix = s.radix;
    for (int64_t p = 0; p < parts; ++p) {
        for (int64_t k = 0; k < radix; ++k) {
            const float* const turn = s.turns + (p * (radix - 1) + k - 1) * 2;
            each_of(run, [&](int64_t i, auto one) {
                typedef decltype(one) T;
                Wave<T> made = read<T>(in, i + p * run);
                for (int64_t j = 1, place = k; j < radix; ++j) {
                    made = made +
                           read<T>(in, i + (p + j * parts) * run).turned(s.roots[2 * place], s.roots[2 * place + 1]);
                    place += k;
                    place = place >= radix ? place - radix : place;
                }
                write(out, i + (p * radix + k) * run, k == 0 ? made : made.turned(turn[0], turn[1]));
            });
        }
    }
}

Planes transform(const enma::TransformView& view, int64_t batch, Planes data, Planes spare) {
    int64_t run = batch;
    for (int i = 0; i < view.count; ++i) {
        const TransformStage& s = view.stages[i];
        switch (s.radix) {
            case 2: stage<2>(s, run, data, spare); break;
            case 3: stage<3>(s, run, data, spare); break;
            case 4: stage<4>(s, run, data, spare); break;
            case 5: stage<5>(s, run, data, spare); break;
            default: any_stage(s, run, data, spare);
        }
        run *= s.radix;
        const Planes made = spare;
        spare = data;
        data = made;
    }
    return data;
}

void joined(const float* turns, int half, int kept, int64_t batch, Planes in, const float* zeros, Planes out) {
    const Planes none{const_cast<float*>(zeros), const_cast<float*>(zeros)};
    for (int64_t k = 0; k < half; ++k) {
        const Planes low = k < kept ? in.from(k * batch) : none;
        const Planes high = half - k < kept ? in.from((half - k) * batch) : none;
        const float c = turns[2 * k], s = turns[2 * k + 1];
        each_of(batch, [&](int64_t i, auto one) {
            typedef decltype(one) T;
            const Wave<T> a = read<T>(low, i), b = read<T>(high, i);
            if (k == 0) {
                // A field has no imaginary parts of its mean and of its highest wave.
                write(out, i, Wave<T>{a.re + b.re, a.re - b.re});
                return;
            }
            const Wave<T> even{a.re + b.re, a.im - b.im}, odd = Wave<T>{a.re - b.re, a.im + b.im}.turned(c, s);
            write(out, i + k * batch, Wave<T>{even.re - odd.im, even.im + odd.re});
        });
    }
}

void parted(const float* turns, int half, int kept, int64_t batch, Planes in, Planes out) {
    for (int64_t k = 0; k < kept; ++k) {
        const Planes low = in.from((k == half ? 0 : k) * batch), high = in.from((k == 0 ? 0 : half - k) * batch);
        const float c = 0.5f * turns[2 * k], s = -0.5f * turns[2 * k + 1];
        each_of(batch, [&](int64_t i, auto one) {
            typedef decltype(one) T;
            const Wave<T> a = read<T>(low, i), b = read<T>(high, i);
            const Wave<T> even{a.re + b.re, a.im - b.im}, odd = Wave<T>{a.im + b.im, b.re - a.re}.turned(c, s);
            write(out, i + k * batch, even * 0.5f + odd);
        });
    }
}

void transposed(const float* values, int64_t rows, int64_t columns, float* out) {
    int64_t r = 0;
    for (; r + LANES <= rows; r += LANES) {
        int64_t c = 0;
        for (; c + LANES <= columns; c += LANES) {
            Floats block[LANES];
            for (int64_t i = 0; i < LANES; ++i) block[i] = load(values + (r + i) * columns + c);
            transpose(block);
            for (int64_t i = 0; i < LANES; ++i) store(out + (c + i) * rows + r, block[i]);
        }
        for (; c < columns; ++c) {
            for (int64_t i = r; i < r + LANES; ++i) out[c * rows + i] = values[i * columns + c];
        }
    }
    for (; r < rows; ++r) {
        for (int64_t c = 0; c < columns; ++c) out[c * rows + r] = values[r * columns + c];
    }
}

void scaled(const float* table, bool turned, int64_t count, Planes in, Planes out) {
    each_of(count, [&](int64_t i, auto one) {
        typedef decltype(one) T;
        const T t = read_as<T>(table + i);
        const Wave<T> a = read<T>(in, i);
        write(out, i, turned ? Wave<T>{-t * a.im, t * a.re} : Wave<T>{t * a.re, t * a.im});
    });
}

void sum(const enma::WaveTerm* terms, int terms_count, int64_t count, Planes out) {
    each_of(count, [&](int64_t i, auto one) {
        typedef decltype(one) T;
        Wave<T> made{};
        for (int k = 0; k < terms_count; ++k) {
            const Wave<T> a = read<T>(terms[k].factors, i), b = read<T>(terms[k].waves, i);
            made = made + Wave<T>{a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re} * terms[k].scale;
        }
        write(out, i, made);
    });
}

void add_product(const float* const* factors, int factors_count, float scale, int64_t count, float* out) {
    each_of(count, [&](int64_t i, auto one) {
        typedef decltype(one) T;
        T made = T{} + scale;
        for (int k = 0; k < factors_count; ++k) made *= read_as<T>(factors[k] + i);
        write_as(out + i, read_as<T>(out + i) + made);
    });
}

void neighbours(const float* field, int64_t lines, int64_t points, const enma::Neighbours& by, float* out) {
    for (int64_t line = 0; line < lines; ++line) {
        const float *const row = field + line * points, *const above = field + (line + lines - 1) % lines * points,
                           *const below = field + (line + 1) % lines * points;
        float* const to = out + line * points;
        const auto put = [&](int64_t i, const float* left, const float* right, auto one) {
            typedef decltype(one) T;
            const T across = read_as<T>(above + i) * by.above + read_as<T>(below + i) * by.below;
            const T along = read_as<T>(left) * by.left + read_as<T>(right) * by.right;
            write_as(to + i, read_as<T>(row + i) * by.own + across + along);
        };
        // What lies beyond the ends of a line inside is of others, and stands there until the ends are put.
        const int64_t last = points - 1, begin = line > 0 && line + 1 < lines ? 0 : 1;
        each_of(points - 2 * begin,
                [&](int64_t i, auto one) { put(begin + i, row + begin + i - 1, row + begin + i + 1, one); });
        put(0, row + last, row + 1, 0.0f);
        put(last, row + last - 1, row, 0.0f);
    }
}

// Several vectors at a time, for as many of which products are looked at once.
template <int VECTORS, class T>
ENMA_INLINE void products_of(const enma::ScaledProduct* products, int products_count, int64_t i, float* out) {
    constexpr int64_t WIDTH = sizeof(T) / sizeof(float);
    T sums[VECTORS];
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) sums[v] = read_as<T>(out + i + v * WIDTH);
    for (int k = 0; k < products_count; ++k) {
        const enma::ScaledProduct& product = products[k];
        T made[VECTORS];
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v) made[v] = T{} + product.scale;
        for (int j = 0; j < product.count; ++j) {
#pragma GCC unroll 4
            for (int v = 0; v < VECTORS; ++v) made[v] *= read_as<T>(product.factors[j] + i + v * WIDTH);
        }
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v) sums[v] += made[v];
    }
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) write_as(out + i + v * WIDTH, sums[v]);
}

void add_products(const enma::ScaledProduct* products, int products_count, int64_t count, float* out) {
    int64_t i = 0;
    for (; i + 4 * LANES <= count; i += 4 * LANES) products_of<4, Floats>(products, products_count, i, out);
    for (; i < count; ++i) products_of<1, float>(products, products_count, i, out);
}

void moved(const float* from, const float* change, float share, int64_t count, float* out) {
    each_of(count, [&](int64_t i, auto one) {
        typedef decltype(one) T;
        write_as(out + i, read_as<T>(from + i) + read_as<T>(change + i) * share);
    });
}

constexpr enma::WaveKernels KERNELS{&transform, &joined,      &parted,     &transposed,   &scaled,
                                    &sum,       &add_product, &neighbours, &add_products, &moved};

}  // namespace waves
}  // namespace
