// The kernels, compiled once per instruction set behind lanes.h. A lane is a query: keys and values are read as they
// lie, a channel at a time into all lanes, and the softmax needs no sum across lanes.
#pragma once

namespace {
namespace frame {

using enma::AttentionPart;
using enma::AttentionRows;
using enma::FrameAttention;

// Rows of a tile that bf16 keys and values are widened into.
constexpr int64_t TILE = 64;

template <class T>
ENMA_INLINE const T* row_of(const AttentionRows& rows, int64_t b, int64_t h, int64_t n) {
    return static_cast<const T*>(rows.data) + b * rows.batch_stride + h * rows.head_stride + n * rows.token_stride;
}

// Rows [begin, begin + count) in fp32: in place if they are, else widened into `tile`.
struct Tile {
    const float* data;
    int64_t stride;
};

ENMA_INLINE Tile tile_of(const float* rows, int64_t stride, int64_t, int64_t, float*) { return {rows, stride}; }

ENMA_INLINE Tile tile_of(const uint16_t* rows, int64_t stride, int64_t count, int64_t head_dim, float* tile) {
    for (int64_t j = 0; j < count; ++j) {
        each(head_dim, [&](int64_t i, auto part) {
            store(tile + j * enma::MAX_HEAD_DIM + i, load(rows + j * stride + i, part), part);
        });
    }
    return {tile, enma::MAX_HEAD_DIM};
}

// scores[j, query] = sum over channels of q[channel, query] keys[j, channel] for KEYS keys; `most` is their maximum.
template <int VECTORS, int KEYS>
ENMA_INLINE void score(const float* q, Tile keys, int64_t head_dim, float* scores, Floats* most) {
    constexpr int64_t QUERIES = VECTORS * LANES;
    Floats sum[KEYS][VECTORS]{};
    for (int64_t c = 0; c < head_dim; ++c) {
        Floats qs[VECTORS];
        for (int v = 0; v < VECTORS; ++v) qs[v] = load(q + c * QUERIES + v * LANES, All{});
#pragma GCC unroll 16
        for (int j = 0; j < KEYS; ++j) {
            const Floats key = all(keys.data[j * keys.stride + c]);
            for (int v = 0; v < VECTORS; ++v) sum[j][v] = fma(qs[v], key, sum[j][v]);
        }
    }
#pragma GCC unroll 16
    for (int j = 0; j < KEYS; ++j) {
        for (int v = 0; v < VECTORS; ++v) {
            store(scores + j * QUERIES + v * LANES, sum[j][v], All{});
            most[v] = maximum(most[v], sum[j][v]);
        }
    }
}

// out[channel, query] += sum over keys of weights[j, query] values[j, channel] for CHANNELS channels from `first` on.
template <int VECTORS, int CHANNELS>
ENMA_INLINE void gather(const float* weights, Tile values, int64_t count, int64_t first, float* out) {
    constexpr int64_t QUERIES = VECTORS * LANES;
    Floats sum[CHANNELS][VECTORS];
#pragma GCC unroll 16
    for (int c = 0; c < CHANNELS; ++c) {
        for (int v = 0; v < VECTORS; ++v) sum[c][v] = load(out + (first + c) * QUERIES + v * LANES, All{});
    }
    for (int64_t j = 0; j < count; ++j) {
        Floats w[VECTORS];
        for (int v = 0; v < VECTORS; ++v) w[v] = load(weights + j * QUERIES + v * LANES, All{});
        const float* value = values.data + j * values.stride + first;
#pragma GCC unroll 16
        for (int c = 0; c < CHANNELS; ++c) {
            for (int v = 0; v < VECTORS; ++v) sum[c][v] = fma(w[v], all(value[c]), sum[c][v]);
        }
    }
#pragma GCC unroll 16
    for (int c = 0; c < CHANNELS; ++c) {
        for (int v = 0; v < VECTORS; ++v) store(out + (first + c) * QUERIES + v * LANES, sum[c][v], All{});
    }
}

template <class T, int VECTORS>
void attend(const FrameAttention& g, int64_t b, int64_t h, int64_t first, float* work) {
    constexpr int64_t QUERIES = VECTORS * LANES;
    constexpr int KEYS = 12 / VECTORS, CHANNELS = 8 / VECTORS;
    const int64_t K = g.head_dim, count = g.tokens - first < QUERIES ? g.tokens - first : QUERIES;
    float* q = work;
    float* out = q + enma::MAX_QUERIES * enma::MAX_HEAD_DIM;
    float* tile = out + enma::MAX_QUERIES * enma::MAX_HEAD_DIM;
    float* weights = tile + TILE * enma::MAX_HEAD_DIM;
    // In units of log 2.
    const float scale = 1.4426950408889634f / __builtin_sqrtf(static_cast<float>(K));
    for (int64_t n = 0; n < QUERIES; ++n) {
        const Tile from = n < count ? tile_of(row_of<T>(g.q, b, h, first + n), 0, 1, K, tile) : Tile{nullptr, 0};
        for (int64_t c = 0; c < K; ++c) q[c * QUERIES + n] = n < count ? from.data[c] * scale : 0.0f;
    }
    Floats most[VECTORS];
    for (int v = 0; v < VECTORS; ++v) most[v] = all(-__builtin_inff());
    int64_t keys = 0;
    for (const AttentionPart& part : g.parts) {
        for (int64_t begin = 0; begin < part.count; begin += TILE) {
            const int64_t rows = part.count - begin < TILE ? part.count - begin : TILE;
            const T* data = row_of<T>(part.k, b / part.rows_per_batch, h, begin);
            const Tile all_keys = tile_of(data, part.k.token_stride, rows, K, tile);
            int64_t j = 0;
            const auto at = [&] { return Tile{all_keys.data + j * all_keys.stride, all_keys.stride}; };
            for (; j + KEYS <= rows; j += KEYS) {
                score<VECTORS, KEYS>(q, at(), K, weights + (keys + j) * QUERIES, most);
            }
            for (; j + 4 <= rows; j += 4) score<VECTORS, 4>(q, at(), K, weights + (keys + j) * QUERIES, most);
            for (; j < rows; ++j) score<VECTORS, 1>(q, at(), K, weights + (keys + j) * QUERIES, most);
            keys += rows;
        }
    }
    Floats sum[VECTORS]{};
    for (int64_t j = 0; j < keys; ++j) {
        for (int v = 0; v < VECTORS; ++v) {
            float* p = weights + j * QUERIES + v * LANES;
            const Floats w = exp2_of(load(p, All{}) - most[v]);
            store(p, w, All{});
            sum[v] += w;
        }
    }
    __builtin_memset(out, 0, sizeof(float) * K * QUERIES);
    keys = 0;
    for (const AttentionPart& part : g.parts) {
        for (int64_t begin = 0; begin < part.count; begin += TILE) {
            const int64_t rows = part.count - begin < TILE ? part.count - begin : TILE;
            const T* data = row_of<T>(part.v, b / part.rows_per_batch, h, begin);
            const Tile values = tile_of(data, part.v.token_stride, rows, K, tile);
            int64_t c = 0;
            for (; c + CHANNELS <= K; c += CHANNELS) {
                gather<VECTORS, CHANNELS>(weights + keys * QUERIES, values, rows, c, out);
            }
            for (; c < K; ++c) gather<VECTORS, 1>(weights + keys * QUERIES, values, rows, c, out);
            keys += rows;
        }
    }
    for (int64_t c = 0; c < K; ++c) {
        for (int v = 0; v < VECTORS; ++v) {
            float* p = out + c * QUERIES + v * LANES;
            store(p, load(p, All{}) / sum[v], All{});
        }
    }
    T* to = static_cast<T*>(g.out) + b * g.out_batch_stride + h * g.out_head_stride + first * g.out_token_stride;
    for (int64_t n = 0; n < count; ++n) {
        for (int64_t c = 0; c < K; ++c) tile[c] = out[c * QUERIES + n];
        each(K, [&](int64_t i, auto part) { store(to + n * g.out_token_stride + i, load(tile + i, part), part); });
    }
}

// One vector of queries where that holds a frame, else two.
int64_t queries_of(int64_t tokens) { return tokens <= LANES ? LANES : 2 * LANES; }

void attend_of(const FrameAttention& g, int64_t b, int64_t h, int64_t first, float* work) {
    if (is_half(g.format)) {
        (g.tokens <= LANES ? attend<uint16_t, 1> : attend<uint16_t, 2>)(g, b, h, first, work);
    } else {
        (g.tokens <= LANES ? attend<float, 1> : attend<float, 2>)(g, b, h, first, work);
    }
}

constexpr enma::FrameAttentionKernels KERNELS{&queries_of, &attend_of};

}  // namespace frame
}  // namespace
