// The kernels of self_attention, compiled once per instruction set behind lanes.h and tiles.h.
#pragma once

namespace {
namespace projected {

using enma::SelfAttention;
using enma::SelfAttentionBackward;
using enma::SelfAttentionForward;
using tiles::multiply;
using tiles::Onto;
using tiles::padded;
using tiles::smaller;
using tiles::taken;
using tiles::transposed;
using tiles::whole_lines;

// Queries at a time: their scores stay in the first-level cache.
constexpr int64_t STRIP = 32;

// One row of the batch and one head of the problem.
template <class T>
struct Head {
    const SelfAttention& g;
    int64_t b, h;
    int64_t K = g.head_dim, keys = g.past + g.tokens;
    // Rows of work space, and of scores.
    int64_t width = padded(K), lanes = padded(keys);
    float scale = 1.0f / __builtin_sqrtf(static_cast<float>(K));

    // Offset of a token in [batch, tokens, heads, head_dim], and of queries (0), keys (1) or values (2) in qkv.
    int64_t token(int64_t i) const { return ((b * g.tokens + i) * g.heads + h) * K; }
    int64_t part(int64_t i, int which) const { return (((b * g.tokens + i) * 3 + which) * g.heads + h) * K; }
    const T* row(int64_t i, int which) const { return static_cast<const T*>(g.qkv) + part(i, which); }
    // Offset of row j of `count` in [batch, heads, count, head_dim].
    int64_t key(int64_t j, int64_t count) const { return ((b * g.heads + h) * count + j) * K; }
    // Keys that token i sees.
    int64_t seen(int64_t i) const { return g.past + smaller(g.tokens, (i / g.frame + 1) * g.frame); }
    const float* cosines(int64_t i) const { return g.cosines == nullptr ? nullptr : g.cosines + i * (K / 2); }
    const float* sines(int64_t i) const { return g.cosines == nullptr ? nullptr : g.sines + i * (K / 2); }
};

template <class T>
ENMA_INLINE float inverse_root(const T* x, int64_t K, float eps) {
    Floats sum{};
    each(K, [&](int64_t i, auto part) {
        const Floats a = load(x + i, part);
        sum = fma(a, a, sum);
    });
    return 1.0f / __builtin_sqrtf(total(sum) / static_cast<float>(K) + eps);
}

// y = scale rotate(norm(x)) of one row.
template <class T>
ENMA_INLINE void turn(const T* x, int64_t K, const float* weight, float eps, const float* cosines, const float* sines,
                      float scale, float* y) {
    const Floats by = all(inverse_root(x, K, eps) * scale);
    const auto normed = [&](int64_t i, auto part) { return load(x + i, part) * by * load(weight + i, part); };
    if (cosines == nullptr) {
        each(K, [&](int64_t i, auto part) { store(y + i, normed(i, part), part); });
        return;
    }
    const int64_t half = K / 2;
    each(half, [&](int64_t i, auto part) {
        const Floats a = normed(i, part), b = normed(half + i, part);
        const Floats c = load(cosines + i, part), s = load(sines + i, part);
        store(y + i, a * c - b * s, part);
        store(y + half + i, a * s + b * c, part);
    });
}

// The gradient of x from that of y at scale 1, which is overwritten; `weights` takes that of the weight.
template <class T>
ENMA_INLINE void turn_back(const T* x, int64_t K, const float* weight, float eps, const float* cosines,
                           const float* sines, float* grad, T* grad_x, float* weights) {
    if (cosines != nullptr) {
        const int64_t half = K / 2;
        each(half, [&](int64_t i, auto part) {
            const Floats a = load(grad + i, part), b = load(grad + half + i, part);
            const Floats c = load(cosines + i, part), s = load(sines + i, part);
            store(grad + i, a * c + b * s, part);
            store(grad + half + i, b * c - a * s, part);
        });
    }
    const float rstd = inverse_root(x, K, eps);
    Floats along{};
    each(K, [&](int64_t i, auto part) {
        const Floats n = load(x + i, part) * rstd, of_y = load(grad + i, part), a = of_y * load(weight + i, part);
        store(weights + i, fma(of_y, n, load(weights + i, part)), part);
        store(grad + i, a, part);
        along = fma(a, n, along);
    });
    const float mean = total(along) / static_cast<float>(K);
    each(K, [&](int64_t i, auto part) {
        const Floats n = load(x + i, part) * rstd;
        store(grad_x + i, (load(grad + i, part) - n * mean) * rstd, part);
    });
}

template <class From, class To>
ENMA_INLINE void copy(const From* from, int64_t count, To* to) {
    each(count, [&](int64_t i, auto part) { store(to + i, load(from + i, part), part); });
}

// Asks for the row of the next head: rows of one head lie far apart, where no processor looks ahead by itself.
template <class T>
ENMA_INLINE void ask_for_next(const T* row, int64_t K) {
    for (int64_t i = 0; i < K; i += 64 / static_cast<int64_t>(sizeof(T))) __builtin_prefetch(row + K + i);
}

// All keys, normalised and rotated, and all values, `head.width` apart.
template <class T>
void gather(const Head<T>& head, float* keys, float* values) {
    const SelfAttention& g = head.g;
    for (int64_t j = 0; j < g.past; ++j) {
        const int64_t from = head.key(j, g.past);
        copy(static_cast<const T*>(g.past_keys) + from, head.K, keys + j * head.width);
        copy(static_cast<const T*>(g.past_values) + from, head.K, values + j * head.width);
    }
    for (int64_t i = 0; i < g.tokens; ++i) {
        const int64_t j = g.past + i;
        for (int which = 0; which < 3; ++which) ask_for_next(head.row(i, which), head.K);
        turn(head.row(i, 1), head.K, g.k_weight, g.eps, head.cosines(i), head.sines(i), 1.0f, keys + j * head.width);
        copy(head.row(i, 2), head.K, values + j * head.width);
    }
}

// Scores (base 2) of `rows` queries from token `first` on, -inf behind what a query sees; returns the columns.
template <class T>
int64_t score(const Head<T>& head, int64_t first, int64_t rows, const float* columns, float* queries, float* scores) {
    const SelfAttention& g = head.g;
    for (int64_t r = 0; r < rows; ++r) {
        const int64_t i = first + r;
        turn(head.row(i, 0), head.K, g.q_weight, g.eps, head.cosines(i), head.sines(i), head.scale * LOG2_E,
             queries + r * head.width);
    }
    const int64_t count = padded(head.seen(first + rows - 1));
    multiply<Onto::ZERO>(rows, count, head.K, {queries, head.width, 1}, columns, head.lanes, scores, head.lanes);
    for (int64_t r = 0; r < rows; ++r) {
        for (int64_t j = head.seen(first + r); j < count; ++j) scores[r * head.lanes + j] = -__builtin_inff();
    }
    return count;
}

template <class T>
int64_t forward_work(const Head<T>& head) {
    return 2 * whole_lines(head.keys * head.width) + whole_lines(head.K * head.lanes) +
           2 * whole_lines(STRIP * head.width) + whole_lines(STRIP * head.lanes);
}

template <class T>
void forward(const SelfAttention& g, const SelfAttentionForward& f, int64_t b, int64_t h, float* work) {
    const Head<T> head{g, b, h};
    const int64_t K = head.K, width = head.width, lanes = head.lanes;
    float* const keys = taken(work, head.keys * width);
    float* const values = taken(work, head.keys * width);
    float* const columns = taken(work, K * lanes);
    float* const queries = taken(work, STRIP * width);
    float* const sums = taken(work, STRIP * width);
    float* const scores = taken(work, STRIP * lanes);
    gather(head, keys, values);
    if (f.keys != nullptr) {
        for (int64_t j = 0; j < head.keys; ++j) {
            copy(keys + j * width, K, static_cast<T*>(f.keys) + head.key(j, head.keys));
            copy(values + j * width, K, static_cast<T*>(f.values) + head.key(j, head.keys));
        }
    }
    transposed(keys, width, head.keys, K, lanes, columns);
    for (int64_t first = 0; first < g.tokens; first += STRIP) {
        const int64_t rows = smaller(STRIP, g.tokens - first);
        const int64_t count = score(head, first, rows, columns, queries, scores);
        float* const lse = f.lse + (b * g.heads + h) * g.tokens + first;
        float inverse[STRIP];
        for (int64_t r = 0; r < rows; ++r) {
            float* const row = scores + r * lanes;
            Floats found = load(row);
            for (int64_t j = LANES; j < count; j += LANES) found = maximum(found, load(row + j));
            const float most = highest(found);
            Floats sum{};
            for (int64_t j = 0; j < count; j += LANES) {
                const Floats weight = exp2_of(load(row + j) - most);
                store(row + j, weight);
                sum += weight;
            }
            const float whole = total(sum);
            inverse[r] = 1.0f / whole;
            lse[r] = most + __builtin_log2f(whole);
        }
        multiply<Onto::ZERO>(rows, width, head.seen(first + rows - 1), {scores, lanes, 1}, values, width, sums, width);
        for (int64_t r = 0; r < rows; ++r) {
            T* const out = static_cast<T*>(f.out) + head.token(first + r);
            each(K, [&](int64_t i, auto part) { store(out + i, load(sums + r * width + i, part) * inverse[r], part); });
        }
    }
}

template <class T>
int64_t backward_work(const Head<T>& head) {
    return 4 * whole_lines(head.keys * head.width) + 2 * whole_lines(head.K * head.lanes) +
           3 * whole_lines(STRIP * head.width) + 2 * whole_lines(STRIP * head.lanes);
}

template <class T>
void backward(const SelfAttention& g, const SelfAttentionBackward& f, int64_t b, int64_t h, float* weights,
              float* work) {
    const Head<T> head{g, b, h};
    const int64_t K = head.K, width = head.width, lanes = head.lanes;
    float* const keys = taken(work, head.keys * width);
    float* const values = taken(work, head.keys * width);
    float* const grad_keys = taken(work, head.keys * width);
    float* const grad_values = taken(work, head.keys * width);
    float* const key_columns = taken(work, K * lanes);
    float* const value_columns = taken(work, K * lanes);
    float* const queries = taken(work, STRIP * width);
    float* const grad_out = taken(work, STRIP * width);
    float* const grad_queries = taken(work, STRIP * width);
    float* const scores = taken(work, STRIP * lanes);
    float* const grad_scores = taken(work, STRIP * lanes);
    gather(head, keys, values);
    transposed(keys, width, head.keys, K, lanes, key_columns);
    transposed(values, width, head.keys, K, lanes, value_columns);
    const auto begin = [&](const void* later, float* grad, float factor) {
        for (int64_t j = 0; j < head.keys; ++j) {
            const T* const from = static_cast<const T*>(later) + head.key(j, head.keys);
            each(K, [&](int64_t i, auto part) {
                store(grad + j * width + i, later == nullptr ? Floats{} : load(from + i, part) * factor, part);
            });
        }
    };
    // Queries are in units of log 2, and so are the gradients of keys until the end.
    begin(f.grad_keys, grad_keys, LOG2_E);
    begin(f.grad_values, grad_values, 1.0f);
    for (int64_t first = 0; first < g.tokens; first += STRIP) {
        const int64_t rows = smaller(STRIP, g.tokens - first), seen = head.seen(first + rows - 1);
        const int64_t count = score(head, first, rows, key_columns, queries, scores);
        const float* const lse = f.lse + (b * g.heads + h) * g.tokens + first;
        float along[STRIP];
        for (int64_t r = 0; r < rows; ++r) {
            const int64_t at = head.token(first + r);
            const T* const grad = static_cast<const T*>(f.grad_out) + at;
            const T* const out = static_cast<const T*>(f.out) + at;
            ask_for_next(grad, K);
            ask_for_next(out, K);
            Floats sum{};
            each(K, [&](int64_t i, auto part) {
                const Floats a = load(grad + i, part);
                store(grad_out + r * width + i, a, part);
                sum = fma(a, load(out + i, part), sum);
            });
            along[r] = total(sum);
        }
        multiply<Onto::ZERO>(rows, count, K, {grad_out, width, 1}, value_columns, lanes, grad_scores, lanes);
        for (int64_t r = 0; r < rows; ++r) {
            for (int64_t j = r * lanes; j < r * lanes + count; j += LANES) {
                const Floats weight = exp2_of(load(scores + j) - lse[r]);
                store(scores + j, weight);
                store(grad_scores + j, weight * (load(grad_scores + j) - along[r]));
            }
        }
        multiply<Onto::ZERO>(rows, width, seen, {grad_scores, lanes, 1}, keys, width, grad_queries, width);
        multiply<Onto::SUM>(seen, width, rows, {grad_scores, 1, lanes}, queries, width, grad_keys, width);
        multiply<Onto::SUM>(seen, width, rows, {scores, 1, lanes}, grad_out, width, grad_values, width);
        for (int64_t r = 0; r < rows; ++r) {
            const int64_t i = first + r;
            float* const grad = grad_queries + r * width;
            each(K, [&](int64_t c, auto part) { store(grad + c, load(grad + c, part) * head.scale, part); });
            turn_back(head.row(i, 0), K, g.q_weight, g.eps, head.cosines(i), head.sines(i), grad,
                      static_cast<T*>(f.grad_qkv) + head.part(i, 0), weights);
        }
    }
    for (int64_t j = 0; j < head.keys; ++j) {
        float* const grad = grad_keys + j * width;
        each(K, [&](int64_t i, auto part) { store(grad + i, load(grad + i, part) * LN_2, part); });
        if (j < g.past) {
            copy(grad, K, static_cast<T*>(f.grad_past_keys) + head.key(j, g.past));
            copy(grad_values + j * width, K, static_cast<T*>(f.grad_past_values) + head.key(j, g.past));
            continue;
        }
        const int64_t i = j - g.past;
        turn_back(head.row(i, 1), K, g.k_weight, g.eps, head.cosines(i), head.sines(i), grad,
                  static_cast<T*>(f.grad_qkv) + head.part(i, 1), weights + K);
        copy(grad_values + j * width, K, static_cast<T*>(f.grad_qkv) + head.part(i, 2));
    }
}

int64_t forward_work_of(const SelfAttention& g) { return forward_work(Head<float>{g, 0, 0}); }
int64_t backward_work_of(const SelfAttention& g) { return backward_work(Head<float>{g, 0, 0}); }

void forward_of(const SelfAttention& g, const SelfAttentionForward& f, int64_t b, int64_t h, float* work) {
    (is_half(g.format) ? forward<uint16_t> : forward<float>)(g, f, b, h, work);
}

void backward_of(const SelfAttention& g, const SelfAttentionBackward& f, int64_t b, int64_t h, float* weights,
                 float* work) {
    (is_half(g.format) ? backward<uint16_t> : backward<float>)(g, f, b, h, weights, work);
}

constexpr enma::SelfAttentionKernels KERNELS{&forward_work_of, &backward_work_of, &forward_of, &backward_of};

}  // namespace projected
}  // namespace
