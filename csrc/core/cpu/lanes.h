// Vectors of ENMA_LANES floats in the compiler's own vector types; uint16_t in memory is bf16. Included once per
// instruction set, behind its pragma: everything is anonymous, and no standard header is included from here.
#pragma once

// Everything is inlined, so no vector is ever passed.
#pragma GCC diagnostic ignored "-Wpsabi"

namespace {

typedef float Floats __attribute__((vector_size(4 * ENMA_LANES)));
typedef uint32_t Words __attribute__((vector_size(4 * ENMA_LANES)));
typedef uint16_t Halves __attribute__((vector_size(2 * ENMA_LANES)));

constexpr int64_t LANES = ENMA_LANES;
#define ENMA_INLINE inline __attribute__((always_inline))

// How much of a vector lies in memory: all of it, or the first `count` lanes, the others reading as zero.
struct All {};
struct Part {
    int64_t count;
};

// A vector or a number of any width, from and to numbers of any kind.
template <class T, class Number>
ENMA_INLINE T read_as(const Number* p) {
    T a;
    __builtin_memcpy(&a, p, sizeof a);
    return a;
}
template <class T, class Number>
ENMA_INLINE void write_as(Number* p, T a) {
    __builtin_memcpy(p, &a, sizeof a);
}

// Subtracting zero costs nothing and keeps the sign of a zero; adding it would do neither.
ENMA_INLINE Floats all(float a) { return a - Floats{}; }

// The including file says what it has: g++ 12 reads the whole file before it acts on the pragma, so the compiler's own
// macros are not there yet. GCC 12 splits conversions to and from Halves, masks what is masked already, and compares and
// selects where one instruction takes the maximum. `maximum` is b where a or b is NaN.
#if defined(ENMA_AVX512)
ENMA_INLINE Words words_of(const Halves& halves) { return (Words)_mm512_cvtepu16_epi32((__m256i)halves); }
ENMA_INLINE Halves halves_of(Words words) { return (Halves)_mm512_cvtepi32_epi16((__m512i)words); }
ENMA_INLINE Floats maximum(Floats a, Floats b) { return (Floats)_mm512_max_ps((__m512)a, (__m512)b); }
ENMA_INLINE Floats fma(Floats a, Floats b, Floats c) {
    return (Floats)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
}
ENMA_INLINE Floats root(Floats a) { return (Floats)_mm512_sqrt_ps((__m512)a); }
#elif defined(ENMA_AVX2)
ENMA_INLINE Words words_of(const Halves& halves) { return (Words)_mm256_cvtepu16_epi32((__m128i)halves); }
ENMA_INLINE Halves halves_of(Words words) {
    const __m256i packed = _mm256_packus_epi32((__m256i)words, (__m256i)words);
    return (Halves)_mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0xd8));
}
ENMA_INLINE Floats maximum(Floats a, Floats b) { return (Floats)_mm256_max_ps((__m256)a, (__m256)b); }
ENMA_INLINE Floats fma(Floats a, Floats b, Floats c) {
    return (Floats)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
}
ENMA_INLINE Floats root(Floats a) { return (Floats)_mm256_sqrt_ps((__m256)a); }
#else
ENMA_INLINE Words words_of(const Halves& halves) { return __builtin_convertvector(halves, Words); }
ENMA_INLINE Halves halves_of(Words words) { return __builtin_convertvector(words, Halves); }
ENMA_INLINE Floats maximum(Floats a, Floats b) { return a > b ? a : b; }
ENMA_INLINE Floats fma(Floats a, Floats b, Floats c) { return a * b + c; }
ENMA_INLINE Floats root(Floats a) {
    for (int64_t i = 0; i < LANES; ++i) a[i] = __builtin_sqrtf(a[i]);
    return a;
}
#endif

ENMA_INLINE Floats widened(const Halves& halves) { return (Floats)(words_of(halves) << 16); }

// To nearest, ties to even; NaN stays one.
ENMA_INLINE Words rounded_words(Floats a) {
    const Words words = (Words)a;
    const Words quiet = Words{} + 0x7fc0u;
    return a == a ? (words + 0x7fffu + ((words >> 16) & 1u)) >> 16 : quiet;
}

ENMA_INLINE Floats load(const float* p, All) {
    Floats a;
    __builtin_memcpy(&a, p, sizeof a);
    return a;
}

ENMA_INLINE Floats load(const uint16_t* p, All) {
    Halves halves;
    __builtin_memcpy(&halves, p, sizeof halves);
    return widened(halves);
}

ENMA_INLINE Floats load(const float* p, Part part) {
    Floats a{};
    __builtin_memcpy(&a, p, sizeof(float) * part.count);
    return a;
}

ENMA_INLINE Floats load(const uint16_t* p, Part part) {
    Halves halves{};
    __builtin_memcpy(&halves, p, sizeof(uint16_t) * part.count);
    return widened(halves);
}

ENMA_INLINE Floats load(const float* p) { return load(p, All{}); }

ENMA_INLINE void store(float* p, Floats a, All) { __builtin_memcpy(p, &a, sizeof a); }
ENMA_INLINE void store(float* p, Floats a) { store(p, a, All{}); }
ENMA_INLINE void store(float* p, Floats a, Part part) { __builtin_memcpy(p, &a, sizeof(float) * part.count); }

ENMA_INLINE void store(uint16_t* p, Floats a, All) {
    const Halves halves = halves_of(rounded_words(a));
    __builtin_memcpy(p, &halves, sizeof halves);
}

ENMA_INLINE void store(uint16_t* p, Floats a, Part part) {
    const Halves halves = halves_of(rounded_words(a));
    __builtin_memcpy(p, &halves, sizeof(uint16_t) * part.count);
}

// The value that a store in this type keeps.
ENMA_INLINE Floats rounded(const float*, Floats a) { return a; }
ENMA_INLINE Floats rounded(const uint16_t*, Floats a) { return (Floats)(rounded_words(a) << 16); }

ENMA_INLINE Floats only(Floats a, All) { return a; }
ENMA_INLINE Floats only(Floats a, Part part) {
    for (int64_t i = part.count; i < LANES; ++i) a[i] = 0.0f;
    return a;
}

// In a fixed order: half of the lanes onto the other half, until one is left.
#if defined(ENMA_AVX512)
ENMA_INLINE float total(Floats a) { return _mm512_reduce_add_ps((__m512)a); }
ENMA_INLINE float highest(Floats a) { return _mm512_reduce_max_ps((__m512)a); }
#else
ENMA_INLINE float total(Floats a) {
    float lanes[LANES];
    store(lanes, a, All{});
    for (int64_t step = LANES / 2; step > 0; step /= 2)
        for (int64_t i = 0; i < step; ++i) lanes[i] += lanes[i + step];
    return lanes[0];
}

ENMA_INLINE float highest(Floats a) {
    float lanes[LANES];
    store(lanes, a);
    for (int64_t step = LANES / 2; step > 0; step /= 2)
        for (int64_t i = 0; i < step; ++i) lanes[i] = lanes[i] > lanes[i + step] ? lanes[i] : lanes[i + step];
    return lanes[0];
}
#endif

// Lane j of vector i becomes lane i of vector j.
ENMA_INLINE void transpose(Floats (&rows)[LANES]) {
#if defined(ENMA_AVX512)
    // Blocks of 8 lanes change places, then of 4, of 2 and of 1.
#pragma GCC unroll 4
    for (int64_t step = LANES / 2; step > 0; step /= 2) {
        Words low{}, high{};
        for (uint32_t i = 0; i < LANES; ++i) {
            low[i] = i & step ? i - step + LANES : i;
            high[i] = low[i] + step;
        }
#pragma GCC unroll 16
        for (int64_t i = 0; i < LANES; ++i) {
            if (i & step) continue;
            const __m512 a = (__m512)rows[i], b = (__m512)rows[i + step];
            rows[i] = (Floats)_mm512_permutex2var_ps(a, (__m512i)low, b);
            rows[i + step] = (Floats)_mm512_permutex2var_ps(a, (__m512i)high, b);
        }
    }
#else
    for (int64_t i = 0; i < LANES; ++i) {
        for (int64_t j = 0; j < i; ++j) {
            const float kept = rows[i][j];
            rows[i][j] = rows[j][i];
            rows[j][i] = kept;
        }
    }
#endif
}

ENMA_INLINE Floats one_where_positive(Floats a) { return a > Floats{} ? all(1.0f) : Floats{}; }

// 1.5 * 2^23: adding it rounds to the nearest integer, which then stands in the low bits.
constexpr float SHIFT = 12582912.0f;

ENMA_INLINE Floats nearest(Floats a) { return (a + all(SHIFT)) - all(SHIFT); }

constexpr float LOG2_E = 1.44269504088896340736f;
constexpr float LN_2 = 0.69314718055994530942f;

// 2^x for x <= 127: relative error below 1e-7, exactly 0 below -126.5, NaN for NaN. The polynomial is the minimax one
// of degree 6 for 2^f on |f| <= 1/2 (2e-9 before rounding).
ENMA_INLINE Floats exp2_of(Floats x) {
    x = maximum(all(-127.0f), x);
    const Floats shifted = x + all(SHIFT);
    const Floats f = x - (shifted - all(SHIFT));
    Floats y = all(1.5353361959569156e-4f);
    y = fma(y, f, all(1.3398875016719103e-3f));
    y = fma(y, f, all(9.61843691766262e-3f));
    y = fma(y, f, all(5.5503323674201965e-2f));
    y = fma(y, f, all(2.4022647738456726e-1f));
    y = fma(y, f, all(6.931471824645996e-1f));
    y = fma(y, f, all(1.0f));
    return y * (Floats)(((Words)shifted + 127u) << 23);
}

// body(offset, All or Part, chain) along a row; `chain` tells apart four sums that do not wait for each other.
template <class Body>
ENMA_INLINE void sweep(int64_t width, Body body) {
    int64_t i = 0;
    for (; i + 4 * LANES <= width; i += 4 * LANES) {
#pragma GCC unroll 4
        for (int chain = 0; chain < 4; ++chain) body(i + chain * LANES, All{}, chain);
    }
    for (; i + LANES <= width; i += LANES) body(i, All{}, 0);
    if (i < width) body(i, Part{width - i}, 0);
}

// body(offset, All or Part) along a row.
template <class Body>
ENMA_INLINE void each(int64_t width, Body body) {
    int64_t i = 0;
    for (; i + LANES <= width; i += LANES) body(i, All{});
    if (i < width) body(i, Part{width - i});
}

// Four such sums.
struct Sums {
    Floats chain[4]{};
    ENMA_INLINE float total_of_all() const { return total((chain[0] + chain[1]) + (chain[2] + chain[3])); }
};

}  // namespace
