// The kernels of point_attention, compiled once per instruction set behind lanes.h.
#pragma once

namespace {
namespace point {

using enma::PointAttention;
using enma::PointAttentionGradients;
using enma::PointAttentionRows;
using enma::PointAttentionTask;
using tiles::Matrix;
using tiles::multiply;
using tiles::Onto;
using tiles::padded;
using tiles::smaller;
using tiles::taken;
using tiles::whole_lines;

// Points of a block and query rows of a strip: the logits of a strip stay in the first-level cache.
constexpr int64_t BLOCK_P = 128;
constexpr int64_t STRIP_Q = 24;

inline const float* row_of(const PointAttentionRows& x, int64_t batch, int64_t head, int64_t row) {
    return x.data + batch * x.batch + head * x.head + row * x.row;
}

// The points of one block, as the task numbers them.
struct Block {
    const int32_t* index;
    int64_t first, count;
    int64_t operator[](int64_t i) const { return index ? index[first + i] : first + i; }
};

// to [width, BLOCK_P], zero in the lanes behind the last point.
inline void pack_columns(const PointAttentionRows& x, int64_t b, int64_t h, Block block, int64_t width, float* to) {
    const int64_t lanes = padded(block.count);
    for (int64_t p = 0; p < block.count; ++p) {
        const float* const from = row_of(x, b, h, block[p]);
        for (int64_t j = 0; j < width; ++j) to[j * BLOCK_P + p] = from[j];
    }
    for (int64_t p = block.count; p < lanes; ++p)
        for (int64_t j = 0; j < width; ++j) to[j * BLOCK_P + p] = 0.0f;
}

// A row of `width` floats, times `scale`, zero up to the next multiple of LANES.
inline void pack_row(const float* from, int64_t width, float scale, float* to) {
    for (int64_t j = 0; j < width; ++j) to[j] = from[j] * scale;
    for (int64_t j = width; j < padded(width); ++j) to[j] = 0.0f;
}

inline void pack_rows(const PointAttentionRows& x, int64_t b, int64_t h, Block block, int64_t width, float* to) {
    for (int64_t p = 0; p < block.count; ++p) pack_row(row_of(x, b, h, block[p]), width, 1.0f, to + p * padded(width));
}

// Coordinates [d, BLOCK_P] of the points of a block.
inline void pack_places(const PointAttention& g, int64_t batch, Block block, float* to) {
    const float* const from = g.point_places.data + batch * g.point_places.batch;
    for (int i = 0; i < g.dims; ++i) {
        for (int64_t p = 0; p < block.count; ++p) to[i * BLOCK_P + p] = from[block[p] * g.dims + i];
        for (int64_t p = block.count; p < padded(block.count); ++p) to[i * BLOCK_P + p] = 0.0f;
    }
}

ENMA_INLINE Floats separation(Floats at, Floats place, float period) {
    const Floats apart = at - place;
    if (period == 0.0f) return apart;
    return apart - all(period) * nearest(apart * all(1.0f / period));
}

template <int DIMS>
inline void distances(const PointAttention& g, const float* at, int64_t rows, const float* places, int64_t lanes,
                      float* to) {
    for (int64_t i = 0; i < rows; ++i)
        for (int64_t p = 0; p < lanes; p += LANES) {
            Floats square = all(0.0f);
            for (int j = 0; j < DIMS; ++j) {
                const Floats apart = separation(all(at[i * DIMS + j]), load(places + j * BLOCK_P + p), g.periods[j]);
                square = fma(apart, apart, square);
            }
            store(to + i * BLOCK_P + p, g.power == 1 ? root(square) : square);
        }
}

// to [rows, BLOCK_P] = dist(x_q, x_p)^power for query coordinates `at` [rows, d].
inline void powers(const PointAttention& g, const float* at, int64_t rows, const float* places, int64_t lanes,
                   float* to) {
    if (g.dims == 1) distances<1>(g, at, rows, places, lanes, to);
    if (g.dims == 2) distances<2>(g, at, rows, places, lanes, to);
    if (g.dims == 3) distances<3>(g, at, rows, places, lanes, to);
}

inline void scale_row(float* row, int64_t width, float factor) {
    for (int64_t j = 0; j < width; j += LANES) store(row + j, load(row + j) * all(factor));
}

inline float exp2_of_one(float x) {
    float lanes[LANES];
    store(lanes, exp2_of(all(x)));
    return lanes[0];
}

// Logits (base 2) of one row become weights; the row's maximum, sum and accumulated values follow.
inline void exponentials(float* logits, int64_t lanes, float& most, float* total, float* values, int64_t width) {
    Floats found = load(logits);
    for (int64_t p = LANES; p < lanes; p += LANES) found = maximum(found, load(logits + p));
    const float here = highest(found);
    Floats sum = load(total);
    if (here > most) {
        const float factor = exp2_of_one(most - here);
        most = here;
        sum = sum * all(factor);
        scale_row(values, width, factor);
    }
    const Floats shift = all(most);
    for (int64_t p = 0; p < lanes; p += LANES) {
        const Floats weight = exp2_of(load(logits + p) - shift);
        store(logits + p, weight);
        sum = sum + weight;
    }
    store(total, sum);
}

int64_t forward_scratch(const PointAttention& g, int64_t heads, int64_t queries) {
    const int64_t per_head = whole_lines(queries * g.head_dim) + whole_lines(g.head_dim * BLOCK_P) +
                             whole_lines(BLOCK_P * padded(g.value_dim)) + whole_lines(queries * padded(g.value_dim)) +
                             whole_lines(queries) + whole_lines(queries * LANES);
    return heads * per_head + 2 * whole_lines(STRIP_Q * BLOCK_P) + whole_lines(3 * BLOCK_P);
}

void forward(const PointAttention& g, const PointAttentionTask& task, float* scratch, float* out, float* lse) {
    const int64_t heads = task.end_head - task.first_head, queries = task.end_query - task.first_query;
    const int64_t K = g.head_dim, V = g.value_dim, width = padded(V);
    const int64_t q_size = whole_lines(queries * K), k_size = whole_lines(K * BLOCK_P);
    const int64_t v_size = whole_lines(BLOCK_P * width), sum_size = whole_lines(queries * width);
    const int64_t most_size = whole_lines(queries), total_size = whole_lines(queries * LANES);
    float* const q = taken(scratch, heads * q_size);
    float* const k = taken(scratch, heads * k_size);
    float* const v = taken(scratch, heads * v_size);
    float* const values = taken(scratch, heads * sum_size);
    float* const most = taken(scratch, heads * most_size);
    float* const totals = taken(scratch, heads * total_size);
    float* const apart = taken(scratch, STRIP_Q * BLOCK_P);
    float* const logits = taken(scratch, STRIP_Q * BLOCK_P);
    float* const places = taken(scratch, 3 * BLOCK_P);
    const float* const at = g.query_points.data + task.batch * g.query_points.batch + task.first_query * g.dims;
    const float scale = LOG2_E / __builtin_sqrtf(static_cast<float>(K));

    for (int64_t h = 0; h < heads; ++h)
        for (int64_t i = 0; i < queries; ++i) {
            const float* const from = row_of(g.q, task.batch, task.first_head + h, task.first_query + i);
            for (int64_t j = 0; j < K; ++j) q[h * q_size + i * K + j] = from[j] * scale;
        }
    for (int64_t i = 0; i < heads * sum_size; ++i) values[i] = 0.0f;
    for (int64_t i = 0; i < heads * total_size; ++i) totals[i] = 0.0f;
    for (int64_t i = 0; i < heads * most_size; ++i) most[i] = -__builtin_inff();

    for (int64_t p = 0; p < task.count; p += BLOCK_P) {
        const Block block{task.index, p, smaller(BLOCK_P, task.count - p)};
        const int64_t lanes = padded(block.count);
        pack_places(g, task.batch, block, places);
        for (int64_t h = 0; h < heads; ++h) {
            pack_columns(g.k, task.batch, task.first_head + h, block, K, k + h * k_size);
            pack_rows(g.v, task.batch, task.first_head + h, block, V, v + h * v_size);
        }
        for (int64_t i = 0; i < queries; i += STRIP_Q) {
            const int64_t rows = smaller(STRIP_Q, queries - i);
            // All heads share the distances.
            powers(g, at + i * g.dims, rows, places, lanes, apart);
            for (int64_t h = 0; h < heads; ++h) {
                multiply<Onto::BIAS>(rows, lanes, K, {q + h * q_size + i * K, K, 1}, k + h * k_size, BLOCK_P, logits,
                                     BLOCK_P, apart, -g.slopes[task.first_head + h] * LOG2_E);
                for (int64_t r = 0; r < rows; ++r) {
                    for (int64_t n = block.count; n < lanes; ++n) logits[r * BLOCK_P + n] = -__builtin_inff();
                    exponentials(logits + r * BLOCK_P, lanes, most[h * most_size + i + r],
                                 totals + h * total_size + (i + r) * LANES, values + h * sum_size + (i + r) * width,
                                 width);
                }
                multiply<Onto::SUM>(rows, width, block.count, {logits, BLOCK_P, 1}, v + h * v_size, width,
                                    values + h * sum_size + i * width, width);
            }
        }
    }

    for (int64_t h = 0; h < heads; ++h)
        for (int64_t i = 0; i < queries; ++i) {
            const int64_t row = (task.batch * g.heads + task.first_head + h) * g.queries + task.first_query + i;
            const float sum = total(load(totals + h * total_size + i * LANES));
            const float factor = task.count > 0 ? 1.0f / sum : 0.0f;
            const float* const from = values + h * sum_size + i * width;
            for (int64_t j = 0; j < V; ++j) out[row * V + j] = from[j] * factor;
            lse[row] = task.count > 0 ? LN_2 * most[h * most_size + i] + __builtin_logf(sum) : -__builtin_inff();
        }
}

constexpr int64_t BLOCK_Q = 48;

int64_t backward_scratch(const PointAttention& g) {
    const int64_t KP = padded(g.head_dim), VP = padded(g.value_dim);
    return whole_lines(g.queries * KP) * 2 + whole_lines(g.queries * VP) + whole_lines(g.queries * 3) +
           whole_lines(g.queries) + whole_lines(g.head_dim * BLOCK_P) + whole_lines(g.value_dim * BLOCK_P) +
           2 * whole_lines(BLOCK_P * KP) + whole_lines(BLOCK_P * VP) + 3 * whole_lines(BLOCK_Q * BLOCK_P) +
           2 * whole_lines(3 * BLOCK_P);
}

// Weights and the gradient of the logits of one row, in place of logits (base 2) and of the gradient of the weights.
// Returns the gradient with respect to minus the slope.
inline float row_gradients(float* logits, float* grad, const float* apart, int64_t count, int64_t lanes, float lse_2,
                           float delta) {
    Floats sum = all(0.0f);
    for (int64_t p = 0; p < lanes; p += LANES) store(logits + p, exp2_of(load(logits + p) - all(lse_2)));
    for (int64_t p = count; p < lanes; ++p) logits[p] = 0.0f;
    for (int64_t p = 0; p < lanes; p += LANES) {
        const Floats entry = load(logits + p) * (load(grad + p) - all(delta));
        store(grad + p, entry);
        sum = fma(entry, load(apart + p), sum);
    }
    return total(sum);
}

// Adds to the gradients of the coordinates: of one query, d floats, and of the points of a block, [d, BLOCK_P].
inline void place_gradients(const PointAttention& g, const float* at, const float* places, const float* grad,
                            const float* apart, float slope, int64_t lanes, float* at_grad, float* places_grad) {
    Floats sums[3] = {all(0.0f), all(0.0f), all(0.0f)};
    for (int64_t p = 0; p < lanes; p += LANES) {
        Floats factor = load(grad + p) * all(-slope);
        if (g.power == 1) {
            // At distance zero the gradient is zero.
            const Floats distance = load(apart + p), away = one_where_positive(distance);
            factor = factor * away / (distance + (all(1.0f) - away));
        } else {
            factor = factor + factor;
        }
        for (int j = 0; j < g.dims; ++j) {
            float* const to = places_grad + j * BLOCK_P + p;
            const Floats part = factor * separation(all(at[j]), load(places + j * BLOCK_P + p), g.periods[j]);
            sums[j] = sums[j] + part;
            store(to, load(to) - part);
        }
    }
    for (int j = 0; j < g.dims; ++j) at_grad[j] += total(sums[j]);
}

void zero(float* x, int64_t n) {
    for (int64_t i = 0; i < n; ++i) x[i] = 0.0f;
}

void backward(const PointAttention& g, const PointAttentionTask& task, float* scratch,
              const PointAttentionGradients& to) {
    const int64_t K = g.head_dim, V = g.value_dim, KP = padded(K), VP = padded(V), Q = g.queries, P = g.points;
    const int64_t b = task.batch, h = task.first_head, which = b * g.heads + h;
    float* const q = taken(scratch, Q * KP);
    float* const q_grad = taken(scratch, Q * KP);
    float* const out_grad = taken(scratch, Q * VP);
    float* const at_grad = taken(scratch, Q * 3);
    float* const lse_2 = taken(scratch, Q);
    float* const k_columns = taken(scratch, K * BLOCK_P);
    float* const v_columns = taken(scratch, V * BLOCK_P);
    float* const k_rows = taken(scratch, BLOCK_P * KP);
    float* const k_grad = taken(scratch, BLOCK_P * KP);
    float* const v_grad = taken(scratch, BLOCK_P * VP);
    float* const apart = taken(scratch, BLOCK_Q * BLOCK_P);
    float* const weights = taken(scratch, BLOCK_Q * BLOCK_P);
    float* const grad = taken(scratch, BLOCK_Q * BLOCK_P);
    float* const places = taken(scratch, 3 * BLOCK_P);
    float* const places_grad = taken(scratch, 3 * BLOCK_P);
    const float* const at = g.query_points.data + b * g.query_points.batch;
    const float root_k = __builtin_sqrtf(static_cast<float>(K)), scale = LOG2_E / root_k, slope = g.slopes[h];
    // One of the two is null where it has no elements.
    const bool with_places = to.query_points != nullptr || to.point_places != nullptr;

    for (int64_t i = 0; i < Q; ++i) {
        pack_row(row_of(g.q, b, h, i), K, scale, q + i * KP);
        pack_row(to.out_grad + (which * Q + i) * V, V, 1.0f, out_grad + i * VP);
        lse_2[i] = to.lse[which * Q + i] * LOG2_E;
    }
    zero(q_grad, Q * KP);
    zero(at_grad, Q * 3);
    zero(to.k + which * P * K, P * K);
    zero(to.v + which * P * V, P * V);
    if (with_places) zero(to.point_places + which * P * g.dims, P * g.dims);
    double slope_grad = 0.0;

    for (int64_t p = 0; p < task.count; p += BLOCK_P) {
        const Block block{task.index, p, smaller(BLOCK_P, task.count - p)};
        const int64_t n = block.count, lanes = padded(n);
        pack_places(g, b, block, places);
        pack_columns(g.k, b, h, block, K, k_columns);
        pack_columns(g.v, b, h, block, V, v_columns);
        pack_rows(g.k, b, h, block, K, k_rows);
        zero(k_grad, BLOCK_P * KP);
        zero(v_grad, BLOCK_P * VP);
        zero(places_grad, 3 * BLOCK_P);
        for (int64_t i = 0; i < Q; i += BLOCK_Q) {
            const int64_t rows = smaller(BLOCK_Q, Q - i);
            powers(g, at + i * g.dims, rows, places, lanes, apart);
            multiply<Onto::BIAS>(rows, lanes, K, {q + i * KP, KP, 1}, k_columns, BLOCK_P, weights, BLOCK_P, apart,
                                 -slope * LOG2_E);
            multiply<Onto::ZERO>(rows, lanes, V, {out_grad + i * VP, VP, 1}, v_columns, BLOCK_P, grad, BLOCK_P);
            float sum = 0.0f;
            for (int64_t r = 0; r < rows; ++r) {
                sum += row_gradients(weights + r * BLOCK_P, grad + r * BLOCK_P, apart + r * BLOCK_P, n, lanes,
                                     lse_2[i + r], to.delta[which * Q + i + r]);
                if (with_places)
                    place_gradients(g, at + (i + r) * g.dims, places, grad + r * BLOCK_P, apart + r * BLOCK_P, slope,
                                    lanes, at_grad + (i + r) * 3, places_grad);
            }
            slope_grad -= static_cast<double>(sum);
            multiply<Onto::SUM>(rows, KP, n, {grad, BLOCK_P, 1}, k_rows, KP, q_grad + i * KP, KP);
            multiply<Onto::SUM>(n, KP, rows, {grad, 1, BLOCK_P}, q + i * KP, KP, k_grad, KP);
            multiply<Onto::SUM>(n, VP, rows, {weights, 1, BLOCK_P}, out_grad + i * VP, VP, v_grad, VP);
        }
        for (int64_t r = 0; r < n; ++r) {
            const int64_t point = which * P + block[r];
            // The packed queries carry the scale and log2(e).
            for (int64_t j = 0; j < K; ++j) to.k[point * K + j] = k_grad[r * KP + j] * LN_2;
            for (int64_t j = 0; j < V; ++j) to.v[point * V + j] = v_grad[r * VP + j];
            if (with_places)
                for (int j = 0; j < g.dims; ++j) to.point_places[point * g.dims + j] = places_grad[j * BLOCK_P + r];
        }
    }

    for (int64_t i = 0; i < Q; ++i) {
        const int64_t row = which * Q + i;
        for (int64_t j = 0; j < K; ++j) to.q[row * K + j] = q_grad[i * KP + j] / root_k;
        if (with_places)
            for (int j = 0; j < g.dims; ++j) to.query_points[row * g.dims + j] = at_grad[i * 3 + j];
    }
    to.slopes[which] = static_cast<float>(slope_grad);
}

constexpr enma::PointAttentionKernels KERNELS{forward_scratch, forward, backward_scratch, backward};

}  // namespace point
}  // namespace
