// Runs the native core without Torch, for the sanitizers: every instruction set of this machine against the formula in
// double, forward and backward, with NaN at padding. Prints "ok" or what is wrong.
#include <cmath>
#include <cstdio>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "core/cpu/dispatch.h"
#include "core/cpu/point_attention.h"
#include "core/cpu/vector_kernels.h"

namespace {

using Floats = std::vector<float>;
using Doubles = std::vector<double>;

struct Case {
    int64_t B, H, Q, P, K, V;
    int dims, power;
    bool periodic, padded;
};

struct Data {
    Case c;
    Floats q, k, v, x_q, x_p, slopes, out_grad;
    std::vector<uint8_t> valid;
    float periods[3];
};

Data drawn(const Case& c) {
    std::mt19937 random(7);
    std::normal_distribution<float> normal;
    std::uniform_real_distribution<float> uniform(0.0f, 1.0f);
    const auto fill = [&](int64_t n, auto& distribution) {
        Floats x(static_cast<size_t>(n));
        for (float& value : x) value = distribution(random);
        return x;
    };
    Data d{c, {}, {}, {}, {}, {}, {}, {}, {}, {0.0f, 0.0f, 0.0f}};
    d.q = fill(c.B * c.H * c.Q * c.K, normal);
    d.k = fill(c.B * c.H * c.P * c.K, normal);
    d.v = fill(c.B * c.H * c.P * c.V, normal);
    d.out_grad = fill(c.B * c.H * c.Q * c.V, normal);
    d.x_q = fill(c.Q * c.dims, uniform);
    d.x_p = fill(c.B * c.P * c.dims, uniform);
    d.slopes = fill(c.H, uniform);
    // A coincident pair: distance zero.
    if (c.Q && c.P)
        for (int i = 0; i < c.dims; ++i) d.x_q[i] = d.x_p[i];
    if (c.periodic) d.periods[0] = 0.7f, d.periods[2] = 0.9f;
    if (!c.padded) return d;
    d.valid.resize(c.B * c.P);
    const float nan = std::numeric_limits<float>::quiet_NaN();
    for (int64_t b = 0; b < c.B; ++b)
        for (int64_t p = 0; p < c.P; ++p) {
            // The last batch row has no valid point at all.
            const bool valid = b + 1 < c.B && (p % 3 != 1);
            d.valid[b * c.P + p] = valid;
            if (valid) continue;
            for (int i = 0; i < c.dims; ++i) d.x_p[(b * c.P + p) * c.dims + i] = nan;
            for (int64_t h = 0; h < c.H; ++h) {
                for (int64_t j = 0; j < c.K; ++j) d.k[((b * c.H + h) * c.P + p) * c.K + j] = nan;
                for (int64_t j = 0; j < c.V; ++j) d.v[((b * c.H + h) * c.P + p) * c.V + j] = nan;
            }
        }
    return d;
}

struct Results {
    Doubles out, q, k, v, slopes, x_q, x_p;
};

Results by_formula(const Data& d) {
    const Case& c = d.c;
    Results r{Doubles(d.out_grad.size()),
              Doubles(d.q.size()),
              Doubles(d.k.size()),
              Doubles(d.v.size()),
              Doubles(c.B * c.H),
              Doubles(c.B * c.H * c.Q * c.dims),
              Doubles(c.B * c.H * c.P * c.dims)};
    const double scale = 1.0 / std::sqrt(static_cast<double>(c.K));
    for (int64_t bh = 0; bh < c.B * c.H; ++bh)
        for (int64_t i = 0; i < c.Q; ++i) {
            const int64_t b = bh / c.H, row = bh * c.Q + i;
            const double slope = d.slopes[bh % c.H];
            const auto used = [&](int64_t p) { return !c.padded || d.valid[b * c.P + p]; };
            Doubles logit(c.P), power(c.P), apart(c.P * c.dims), dot(c.P);
            double most = -INFINITY, sum = 0.0;
            for (int64_t p = 0; p < c.P; ++p) {
                if (!used(p)) continue;
                double square = 0.0, product = 0.0;
                for (int j = 0; j < c.dims; ++j) {
                    double a = static_cast<double>(d.x_q[i * c.dims + j]) - d.x_p[(b * c.P + p) * c.dims + j];
                    if (d.periods[j] > 0) a -= d.periods[j] * std::nearbyint(a / d.periods[j]);
                    apart[p * c.dims + j] = a;
                    square += a * a;
                }
                for (int64_t j = 0; j < c.K; ++j)
                    product += static_cast<double>(d.q[row * c.K + j]) * d.k[(bh * c.P + p) * c.K + j];
                power[p] = c.power == 1 ? std::sqrt(square) : square;
                logit[p] = product * scale - slope * power[p];
                most = std::max(most, logit[p]);
            }
            for (int64_t p = 0; p < c.P; ++p)
                if (used(p)) sum += std::exp(logit[p] - most);
            double delta = 0.0;
            for (int64_t p = 0; p < c.P; ++p) {
                if (!used(p)) continue;
                const double weight = std::exp(logit[p] - most) / sum;
                for (int64_t j = 0; j < c.V; ++j) {
                    const double value = d.v[(bh * c.P + p) * c.V + j], grad = d.out_grad[row * c.V + j];
                    r.out[row * c.V + j] += weight * value;
                    r.v[(bh * c.P + p) * c.V + j] += weight * grad;
                    dot[p] += value * grad;
                }
                delta += weight * dot[p];
            }
            for (int64_t p = 0; p < c.P; ++p) {
                if (!used(p)) continue;
                const double grad = std::exp(logit[p] - most) / sum * (dot[p] - delta);
                for (int64_t j = 0; j < c.K; ++j) {
                    r.q[row * c.K + j] += grad * scale * d.k[(bh * c.P + p) * c.K + j];
                    r.k[(bh * c.P + p) * c.K + j] += grad * scale * d.q[row * c.K + j];
                }
                r.slopes[bh] -= grad * power[p];
                const double pull = c.power == 2 ? 2.0 : power[p] > 0 ? 1.0 / power[p] : 0.0;
                for (int j = 0; j < c.dims; ++j) {
                    const double part = -slope * grad * pull * apart[p * c.dims + j];
                    r.x_q[row * c.dims + j] += part;
                    r.x_p[(bh * c.P + p) * c.dims + j] -= part;
                }
            }
        }
    return r;
}

int failures = 0;

void compare(const char* kernels, const char* what, const Floats& ours, const Doubles& exact) {
    double largest = 1.0, error = 0.0;
    for (double x : exact) largest = std::max(largest, std::abs(x));
    // Not std::max, which loses NaN.
    for (size_t i = 0; i < exact.size(); ++i) {
        const double e = std::abs(ours[i] - exact[i]);
        if (!(e <= error)) error = e;
    }
    if (error <= 3e-6 * largest) return;
    std::printf("%s, %s: error %.3e, largest %.3e\n", kernels, what, error, largest);
    ++failures;
}

void run(const std::string& name, const Data& d, int threads) {
    const enma::Isa isa = enma::isa_by_name(name);
    const Case& c = d.c;
    const float nan = std::numeric_limits<float>::quiet_NaN();
    enma::PointAttention g{};
    g.batches = c.B, g.heads = c.H, g.queries = c.Q, g.points = c.P, g.head_dim = c.K, g.value_dim = c.V;
    g.dims = c.dims, g.power = c.power, g.threads = threads;
    for (int i = 0; i < c.dims; ++i) g.periods[i] = d.periods[i];
    g.q = {d.q.data(), c.H * c.Q * c.K, c.Q * c.K, c.K};
    g.k = {d.k.data(), c.H * c.P * c.K, c.P * c.K, c.K};
    g.v = {d.v.data(), c.H * c.P * c.V, c.P * c.V, c.V};
    g.query_points = {d.x_q.data(), 0};
    g.point_places = {d.x_p.data(), c.P * c.dims};
    g.slopes = d.slopes.data();
    g.valid = c.padded ? d.valid.data() : nullptr;

    Floats out(d.out_grad.size(), nan), lse(c.B * c.H * c.Q, nan), delta(lse.size(), 0.0f);
    enma::point_attention_forward(g, out.data(), lse.data(), isa);
    for (size_t i = 0; i < out.size(); ++i) delta[i / c.V] += out[i] * d.out_grad[i];
    Floats q(d.q.size(), nan), k(d.k.size(), nan), v(d.v.size(), nan), slopes(c.B * c.H, nan);
    Floats x_q(c.B * c.H * c.Q * c.dims, nan), x_p(c.B * c.H * c.P * c.dims, nan);
    const enma::PointAttentionGradients to{d.out_grad.data(), lse.data(),    delta.data(), q.data(),  k.data(),
                                           v.data(),          slopes.data(), x_q.data(),   x_p.data()};
    enma::point_attention_backward(g, to, isa);

    const Results exact = by_formula(d);
    compare(name.c_str(), "out", out, exact.out);
    compare(name.c_str(), "gradient of q", q, exact.q);
    compare(name.c_str(), "gradient of k", k, exact.k);
    compare(name.c_str(), "gradient of v", v, exact.v);
    compare(name.c_str(), "gradient of slopes", slopes, exact.slopes);
    compare(name.c_str(), "gradient of query points", x_q, exact.x_q);
    compare(name.c_str(), "gradient of points", x_p, exact.x_p);
}

}  // namespace

int main() {
    const Case cases[] = {
        {1, 1, 1, 1, 1, 1, 1, 1, false, false},    {2, 3, 17, 131, 5, 7, 2, 1, true, true},
        {2, 2, 65, 257, 16, 32, 3, 2, true, true}, {1, 5, 50, 40, 33, 200, 2, 2, false, false},
        {2, 1, 3, 5, 128, 4, 1, 2, true, true},    {2, 2, 0, 9, 4, 4, 2, 1, false, false},
        {2, 2, 9, 0, 4, 4, 2, 1, false, false},    {1, 4, 201, 129, 4, 80, 1, 1, true, false},
    };
    for (const std::string& name : enma::supported_isas()) {
        for (const Case& c : cases)
            for (int threads : {1, 3}) run(name, drawn(c), threads);
    }
    if (failures == 0) std::printf("ok: %zu instruction sets\n", enma::supported_isas().size());
    return failures != 0;
}
