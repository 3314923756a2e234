// The core of self_attention without Torch, for the sanitizers: every instruction set of this machine against the
// scalar one, in buffers that end where the data ends. Python tests compare the values with the formula.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

#include "core/cpu/self_attention.h"

using namespace enma;

namespace {

typedef std::vector<float> Floats;

Floats waves(int64_t count, float pace) {
    Floats x(count);
    for (int64_t i = 0; i < count; ++i) x[i] = std::sin(pace * static_cast<float>(i + 1));
    return x;
}

struct Problem {
    int64_t batch, heads, tokens, head_dim, frame, past;
    bool turns, keeps;
    int threads;
};

// Everything that forward and backward give, one after the other.
Floats results(const Problem& p, Isa isa) {
    const int64_t rows = p.batch * p.heads, size = rows * p.tokens * p.head_dim, all = p.past + p.tokens;
    const Floats qkv = waves(3 * size, 0.37f), weights = waves(2 * p.head_dim, 0.9f);
    const Floats turns = waves(2 * p.tokens * (p.head_dim / 2), 0.2f);
    const Floats past = waves(2 * rows * p.past * p.head_dim, 0.61f);
    const Floats grad_out = waves(size, 1.3f), later = waves(2 * rows * all * p.head_dim, 0.11f);
    Floats out(size), lse(rows * p.tokens), kept(p.keeps ? later.size() : 0);
    Floats grad_qkv(3 * size), grad_past(past.size()), grad_weights(2 * p.head_dim);
    SelfAttention g{};
    g.batch = p.batch, g.heads = p.heads, g.tokens = p.tokens, g.head_dim = p.head_dim;
    g.frame = p.frame, g.past = p.past, g.eps = 1e-5f, g.threads = p.threads;
    g.qkv = qkv.data(), g.q_weight = weights.data(), g.k_weight = weights.data() + p.head_dim;
    if (p.turns) g.cosines = turns.data(), g.sines = turns.data() + turns.size() / 2;
    if (p.past) g.past_keys = past.data(), g.past_values = past.data() + past.size() / 2;
    SelfAttentionForward f{out.data(), lse.data(), nullptr, nullptr};
    if (p.keeps) f.keys = kept.data(), f.values = kept.data() + kept.size() / 2;
    self_attention_forward(g, f, isa);
    SelfAttentionBackward b{};
    b.out = out.data(), b.grad_out = grad_out.data(), b.lse = lse.data(), b.grad_qkv = grad_qkv.data();
    if (p.keeps) b.grad_keys = later.data(), b.grad_values = later.data() + later.size() / 2;
    b.grad_past_keys = grad_past.data(), b.grad_past_values = grad_past.data() + grad_past.size() / 2;
    b.grad_weights = grad_weights.data();
    self_attention_backward(g, b, isa);
    Floats found;
    for (const Floats* part : {&out, &lse, &kept, &grad_qkv, &grad_past, &grad_weights}) {
        found.insert(found.end(), part->begin(), part->end());
    }
    return found;
}

}  // namespace

int main() {
    int count = 0, failures = 0;
    for (const std::string& name : supported_isas()) {
        for (const Problem& p :
             {Problem{1, 1, 1, 1, 1, 0, false, false, 1}, Problem{2, 3, 5, 7, 2, 3, false, true, 1},
              Problem{1, 2, 16, 32, 16, 0, true, false, 1}, Problem{2, 2, 45, 32, 4, 0, true, true, 3},
              Problem{1, 2, 4, 18, 4, 17, true, true, 1}, Problem{3, 1, 33, 8, 40, 1, true, false, 2},
              Problem{0, 2, 4, 8, 4, 0, false, false, 1}, Problem{2, 2, 0, 8, 4, 2, false, false, 1}}) {
            const Floats expected = results(p, Isa::scalar), found = results(p, isa_by_name(name));
            for (size_t i = 0; i < found.size(); ++i) {
                if (std::fabs(found[i] - expected[i]) <= 1e-4f * (1 + std::fabs(expected[i]))) continue;
                if (++failures < 10) std::printf("%s: %g, expected %g\n", name.c_str(), found[i], expected[i]);
            }
            ++count;
        }
    }
    if (failures) return std::printf("%d failures\n", failures), 1;
    std::printf("ok: %d problems\n", count);
    return 0;
}
