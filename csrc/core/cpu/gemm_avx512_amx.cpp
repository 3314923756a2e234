// AVX-512 with BF16, and AMX: bf16 products by tiles of 16 rows, all else as without. Headers with inline functions come
// before the target pragma, see gemm_kernels.h.
#include "core/cpu/sampler.h"

#ifdef ENMA_X86_KERNELS

#include <immintrin.h>

#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma")

#include "core/cpu/sampler_kernels.h"
#include "core/cpu/gemm_amx.h"
#include "core/cpu/gemm_avx512_bf16_vector.h"

namespace enma {
namespace {

// Instructions by name and not by intrinsics, which do not say that they read memory.
struct AmxTiles {
    // Sums and inputs of `rows` rows, weights of 16.
    ENMA_INLINE void configure(int rows) {
        struct {
            uint8_t palette, start_row, reserved[14];
            uint16_t row_bytes[16];
            uint8_t rows[16];
        } tiles = {};
        static_assert(sizeof tiles == 64);
        tiles.palette = 1;
        for (int i = 0; i < 8; ++i) {
            tiles.row_bytes[i] = 64;
            tiles.rows[i] = static_cast<uint8_t>(i < TILE_WEIGHTS ? rows : TILE_PAIRS);
        }
        asm volatile("ldtilecfg %0" : : "m"(tiles) : "memory");
    }
    template <int TILE>
    ENMA_INLINE void zero() {
        asm volatile("tilezero %%tmm%c0" : : "i"(TILE));
    }
    template <int TILE>
    ENMA_INLINE void load(const void* from, ptrdiff_t row_bytes) {
        asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(row_bytes), "i"(TILE) : "memory");
    }
    template <int SUM, int INPUTS, int WEIGHTS>
    ENMA_INLINE void multiply() {
        asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(SUM), "i"(INPUTS), "i"(WEIGHTS));
    }
    template <int TILE>
    ENMA_INLINE void store(float* to, ptrdiff_t row_bytes) {
        asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(row_bytes), "i"(TILE) : "memory");
    }
    ENMA_INLINE void release() { asm volatile("tilerelease"); }
};

struct Vector : Avx512Bf16 {
    typedef AmxTiles Tiles;
};

}  // namespace

const Kernels kernels_avx512_amx = kernels_with<Vector, Tiled>();

}  // namespace enma

#endif
