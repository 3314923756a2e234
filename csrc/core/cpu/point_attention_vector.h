// A vector of floats in the widest registers that the including file may use. Included once per instruction set, behind
// its pragma: everything is anonymous, and no standard header is included from here. The includer says the width: g++
// reads a whole file before it obeys the pragma, so __AVX2__ is not defined here.
#pragma once

namespace {

#if ENMA_POINT_ATTENTION_WIDTH == 16
constexpr int W = 16;
using Vec = __m512;
inline Vec load(const float* p) { return _mm512_loadu_ps(p); }
inline void store(float* p, Vec a) { _mm512_storeu_ps(p, a); }
inline Vec all(float a) { return _mm512_set1_ps(a); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
// NaN in `b` stays: the instruction returns its second operand then.
inline Vec maximum(Vec a, Vec b) { return _mm512_max_ps(a, b); }
inline Vec root(Vec a) { return _mm512_sqrt_ps(a); }
inline Vec one_where_positive(Vec a) {
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(a, _mm512_setzero_ps(), _CMP_GT_OQ), _mm512_set1_ps(1.0f));
}
// 2^n for the integer n that the low bits of `shifted` hold, see exp2_of.
inline Vec power_of_two(Vec shifted) {
    const __m512i bits = _mm512_add_epi32(_mm512_castps_si512(shifted), _mm512_set1_epi32(127));
    return _mm512_castsi512_ps(_mm512_slli_epi32(bits, 23));
}
#elif ENMA_POINT_ATTENTION_WIDTH == 8
constexpr int W = 8;
using Vec = __m256;
inline Vec load(const float* p) { return _mm256_loadu_ps(p); }
inline void store(float* p, Vec a) { _mm256_storeu_ps(p, a); }
inline Vec all(float a) { return _mm256_set1_ps(a); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
inline Vec maximum(Vec a, Vec b) { return _mm256_max_ps(a, b); }
inline Vec root(Vec a) { return _mm256_sqrt_ps(a); }
inline Vec one_where_positive(Vec a) {
    return _mm256_and_ps(_mm256_cmp_ps(a, _mm256_setzero_ps(), _CMP_GT_OQ), _mm256_set1_ps(1.0f));
}
inline Vec power_of_two(Vec shifted) {
    const __m256i bits = _mm256_add_epi32(_mm256_castps_si256(shifted), _mm256_set1_epi32(127));
    return _mm256_castsi256_ps(_mm256_slli_epi32(bits, 23));
}
#else
constexpr int W = 4;
typedef float Vec __attribute__((vector_size(16)));
typedef uint32_t Bits __attribute__((vector_size(16)));
inline Vec load(const float* p) {
    Vec a;
    __builtin_memcpy(&a, p, sizeof a);
    return a;
}
inline void store(float* p, Vec a) { __builtin_memcpy(p, &a, sizeof a); }
inline Vec all(float a) { return Vec{a, a, a, a}; }
inline Vec fma(Vec a, Vec b, Vec c) { return a * b + c; }
inline Vec maximum(Vec a, Vec b) { return a > b ? a : b; }
inline Vec root(Vec a) {
    for (int i = 0; i < W; ++i) a[i] = __builtin_sqrtf(a[i]);
    return a;
}
inline Vec one_where_positive(Vec a) { return a > Vec{} ? all(1.0f) : Vec{}; }
inline Vec power_of_two(Vec shifted) {
    Bits bits;
    __builtin_memcpy(&bits, &shifted, sizeof bits);
    bits = (bits + Bits{127, 127, 127, 127}) << 23;
    Vec a;
    __builtin_memcpy(&a, &bits, sizeof a);
    return a;
}
#endif

inline float lane_sum(Vec a) {
    float lanes[W];
    store(lanes, a);
    for (int step = W / 2; step > 0; step /= 2)
        for (int i = 0; i < step; ++i) lanes[i] += lanes[i + step];
    return lanes[0];
}

inline float lane_maximum(Vec a) {
    float lanes[W];
    store(lanes, a);
    for (int step = W / 2; step > 0; step /= 2)
        for (int i = 0; i < step; ++i) lanes[i] = lanes[i] > lanes[i + step] ? lanes[i] : lanes[i + step];
    return lanes[0];
}

// 1.5 * 2^23: adding it rounds to the nearest integer, which then stands in the low bits.
constexpr float SHIFT = 12582912.0f;

inline Vec nearest(Vec a) { return (a + all(SHIFT)) - all(SHIFT); }

// 2^x for x <= 127: relative error below 1e-7, exactly 0 below -126.5, NaN for NaN. The polynomial is the minimax one
// of degree 6 for 2^f on |f| <= 1/2 (2e-9 before rounding).
inline Vec exp2_of(Vec x) {
    x = maximum(all(-127.0f), x);
    const Vec shifted = x + all(SHIFT);
    const Vec f = x - (shifted - all(SHIFT));
    Vec y = all(1.5353361959569156e-4f);
    y = fma(y, f, all(1.3398875016719103e-3f));
    y = fma(y, f, all(9.61843691766262e-3f));
    y = fma(y, f, all(5.5503323674201965e-2f));
    y = fma(y, f, all(2.4022647738456726e-1f));
    y = fma(y, f, all(6.931471824645996e-1f));
    y = fma(y, f, all(1.0f));
    return y * power_of_two(shifted);
}

}  // namespace
