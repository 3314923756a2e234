// Waves of real fields on periodic grids of one or two axes in fp32, by transforms of mixed radix.
//
// Waves [lines, kept] are those of rfftn, the first `kept` of a line. Fields lie in an order in which nothing has to be
// moved: [points, lines], the points with an even number before the others where their number is even.
#pragma once

#include <cstdint>
#include <vector>

#include "core/cpu/allocator.h"
#include "core/cpu/spectrum.h"

namespace enma {

// Real and imaginary parts, apart.
struct Planes {
    float *re, *im;

    Planes from(std::ptrdiff_t offset) const { return {re + offset, im + offset}; }
    // Waves of these are those of the inverse transform, with the parts exchanged once more.
    Planes exchanged() const { return {im, re}; }
};

// A factor of a transform's length: sums of `radix` values, of so many parts of what is left of it.
struct TransformStage {
    int radix, parts;
    const float *turns, *roots;  // [parts, radix - 1, 2] and [radix, 2]
};

struct TransformView {
    const TransformStage* stages;
    int count;
};

// Waves in sums: a factor of each and one of all.
struct WaveTerm {
    Planes factors, waves;
    float scale;
};

// By what a point and its neighbours count, those on the lines above and below, and those left and right.
struct Neighbours {
    float own, above, below, left, right;
};

// Up to three factors, and a number.
struct ScaledProduct {
    const float* factors[3];
    int count;
    float scale;
};

struct WaveKernels {
    // sum_j data[j, b] e^(-2 pi i j k / length) of data [length, batch]; in one of both, which it returns.
    Planes (*transform)(const TransformView& view, std::int64_t batch, Planes data, Planes spare);
    // Waves [kept, batch] of twice as many real points to those of complex points [half, batch], and back. `turns` are
    // those by twice as many points, [half + 1, 2]; `zeros` [batch].
    void (*joined)(const float* turns, int half, int kept, std::int64_t batch, Planes waves, const float* zeros,
                   Planes out);
    void (*parted)(const float* turns, int half, int kept, std::int64_t batch, Planes points, Planes out);
    // out [columns, rows] of values [rows, columns].
    void (*transposed)(const float* values, std::int64_t rows, std::int64_t columns, float* out);
    // out = table * waves, or i times that.
    void (*scaled)(const float* table, bool turned, std::int64_t count, Planes waves, Planes out);
    // out = sum of scale * factors * waves; may be one of them.
    void (*sum)(const WaveTerm* terms, int terms_count, std::int64_t count, Planes out);
    // out += scale * the product of so many factors.
    void (*add_product)(const float* const* factors, int factors_count, float scale, std::int64_t count, float* out);
    // Sums over neighbours around both axes of a field [lines, points], of two points or more.
    void (*neighbours)(const float* field, std::int64_t lines, std::int64_t points, const Neighbours& by, float* out);
    // out += the sum of products.
    void (*add_products)(const ScaledProduct* products, int products_count, std::int64_t count, float* out);
    // out = from + share * change; may be one of them.
    void (*moved)(const float* from, const float* change, float share, std::int64_t count, float* out);
};

// Of lines of some length.
class LineTransform {
   public:
    explicit LineTransform(int length);
    LineTransform(LineTransform&&) = default;
    TransformView view() const { return {stages_.data(), static_cast<int>(stages_.size())}; }
    // Whether what began in `data` ends there.
    bool stays() const { return stages_.size() % 2 == 0; }

   private:
    std::vector<TransformStage> stages_;
    std::vector<std::vector<float>> tables_;
};

class WaveTransform {
   public:
    WaveTransform(const WaveGrid& grid, int kept);

    // Work space of one transform: where waves come from, and what it needs besides.
    struct Work {
        Work(const WaveTransform& of, Allocator& memory);
        Planes a, b;
        float *odd, *zeros;
    };

    // The field [points, lines] of the waves in work.a, which go; times its number of points.
    void inverse(const WaveKernels& run, const Work& work, float* field) const;
    // Waves [lines, kept] of a field, which goes.
    Planes forward(const WaveKernels& run, const Work& work, float* field) const;
    int values() const { return grid_.size(); }
    // Where in a field a point is.
    int place(int line, int point) const {
        return (grid_.points % 2 == 0 ? point % 2 * half_ + point / 2 : point) * grid_.lines + line;
    }

   private:
    // The complex points of a field.
    Planes planes(const Work& work, float* field) const;

    WaveGrid grid_;
    int kept_, half_;  // half_: complex points of a line
    LineTransform across_, along_;
    std::vector<float> turns_;
};

}  // namespace enma
