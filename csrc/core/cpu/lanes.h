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

ENMA_INLINE Floats all(float a) { return Floats{} + a; }
ENMA_INLINE Floats maximum(Floats a, Floats b) { return a > b ? a : b; }

// GCC 12 splits these two conversions in halves and masks what is masked already. The including file says what it has:
// g++ 12 reads the whole file before it acts on the pragma, so the compiler's own macros are not there yet.
#if defined(ENMA_AVX512)
ENMA_INLINE Words words_of(const Halves& halves) { return (Words)_mm512_cvtepu16_epi32((__m256i)halves); }
ENMA_INLINE Halves halves_of(Words words) { return (Halves)_mm512_cvtepi32_epi16((__m512i)words); }
#elif defined(ENMA_AVX2)
ENMA_INLINE Words words_of(const Halves& halves) { return (Words)_mm256_cvtepu16_epi32((__m128i)halves); }
ENMA_INLINE Halves halves_of(Words words) {
    const __m256i packed = _mm256_packus_epi32((__m256i)words, (__m256i)words);
    return (Halves)_mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0xd8));
}
#else
ENMA_INLINE Words words_of(const Halves& halves) { return __builtin_convertvector(halves, Words); }
ENMA_INLINE Halves halves_of(Words words) { return __builtin_convertvector(words, Halves); }
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

ENMA_INLINE void store(float* p, Floats a, All) { __builtin_memcpy(p, &a, sizeof a); }
ENMA_INLINE void store(float* p, Floats a, Part part) { __builtin_memcpy(p, &a, sizeof(float) * part.count); }

ENMA_INLINE void store(uint16_t* p, Floats a, All) {
    const Halves halves = halves_of(rounded_words(a));
    __builtin_memcpy(p, &halves, sizeof halves);
}

ENMA_INLINE void store(uint16_t* p, Floats a, Part part) {
    const Halves halves = halves_of(rounded_words(a));
    __builtin_memcpy(p, &halves, sizeof(uint16_t) * part.count);
}

// What a store in this type keeps.
ENMA_INLINE Floats rounded(const float*, Floats a) { return a; }
ENMA_INLINE Floats rounded(const uint16_t*, Floats a) { return (Floats)(rounded_words(a) << 16); }

ENMA_INLINE Floats only(Floats a, All) { return a; }
ENMA_INLINE Floats only(Floats a, Part part) {
    for (int64_t i = part.count; i < LANES; ++i) a[i] = 0.0f;
    return a;
}

// In a fixed order.
ENMA_INLINE float total(Floats a) {
    float lanes[LANES];
    store(lanes, a, All{});
    for (int64_t step = LANES / 2; step > 0; step /= 2)
        for (int64_t i = 0; i < step; ++i) lanes[i] += lanes[i + step];
    return lanes[0];
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
