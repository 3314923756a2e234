#include "core/cpu/self_attention.h"

#include "python/bindings.h"
#include "python/tensor.h"

namespace enma {

namespace self_attention_binding {

constexpr char OP[] = "self_attention";
using Maybe = std::optional<Tensor>;

const void* checked_if_given(const Maybe& x, const char* name, const std::vector<std::int64_t>& shape, Dtype dtype) {
    return x ? checked(OP, *x, name, shape, dtype) : nullptr;
}

SelfAttention problem_of(const Tensor& qkv, const Tensor& q_weight, const Tensor& k_weight, const Maybe& cosines,
                         const Maybe& sines, const Maybe& past_keys, const Maybe& past_values, std::int64_t frame,
                         double eps, int threads) {
    SelfAttention g{};
    g.format = checked_format(OP, qkv, "qkv");
    expect(qkv.dim() == 5 && qkv.size(2) == 3 && qkv.size(4) > 0, OP, ": qkv has shape ", qkv.sizes());
    expect(frame > 0, OP, ": frame is ", frame);
    expect(cosines.has_value() == sines.has_value() && past_keys.has_value() == past_values.has_value(), OP,
           ": one of a pair is missing");
    g.batch = qkv.size(0), g.tokens = qkv.size(1), g.heads = qkv.size(3), g.head_dim = qkv.size(4);
    g.frame = frame, g.eps = static_cast<float>(eps), g.threads = threads;
    g.past = past_keys && past_keys->dim() == 4 ? past_keys->size(2) : 0;
    g.qkv = checked(OP, qkv, "qkv", {g.batch, g.tokens, 3, g.heads, g.head_dim}, qkv.dtype());
    g.q_weight = static_cast<const float*>(checked(OP, q_weight, "q_weight", {g.head_dim}, Dtype::float32));
    g.k_weight = static_cast<const float*>(checked(OP, k_weight, "k_weight", {g.head_dim}, Dtype::float32));
    expect(!cosines || g.head_dim % 2 == 0, OP, ": qkv has head dim ", g.head_dim, "; expected an even one to rotate");
    const std::vector<std::int64_t> turns{g.tokens, g.head_dim / 2}, past{g.batch, g.heads, g.past, g.head_dim};
    g.cosines = static_cast<const float*>(checked_if_given(cosines, "cosines", turns, Dtype::float32));
    g.sines = static_cast<const float*>(checked_if_given(sines, "sines", turns, Dtype::float32));
    g.past_keys = checked_if_given(past_keys, "past_keys", past, qkv.dtype());
    g.past_values = checked_if_given(past_values, "past_values", past, qkv.dtype());
    return g;
}

// out; the logarithms of the sums of weights; all keys and all values (empty unless kept).
std::tuple<Tensor, Tensor, Tensor, Tensor> forward(const Tensor& qkv, const Tensor& q_weight, const Tensor& k_weight,
                                                   const Maybe& cosines, const Maybe& sines, const Maybe& past_keys,
                                                   const Maybe& past_values, std::int64_t frame, double eps, bool keep,
                                                   int threads, const std::string& isa) {
    const SelfAttention g =
        problem_of(qkv, q_weight, k_weight, cosines, sines, past_keys, past_values, frame, eps, threads);
    Tensor out = Tensor::empty({g.batch, g.tokens, g.heads, g.head_dim}, qkv.dtype(), qkv);
    Tensor lse = Tensor::empty({g.batch, g.heads, g.tokens}, Dtype::float32, qkv);
    const std::vector<std::int64_t> kept{g.batch, g.heads, keep ? g.past + g.tokens : 0, g.head_dim};
    Tensor keys = Tensor::empty(kept, qkv.dtype(), qkv), values = Tensor::empty(kept, qkv.dtype(), qkv);
    const SelfAttentionForward f{out.data(), lse.data<float>(), keep ? keys.data() : nullptr,
                                 keep ? values.data() : nullptr};
    self_attention_forward(g, f, isa_of(OP, isa));
    return {std::move(out), std::move(lse), std::move(keys), std::move(values)};
}

// Gradients of qkv, of both weights, and of the past keys and values (empty without a past).
std::tuple<Tensor, Tensor, Tensor, Tensor> backward(const Tensor& grad_out, const Maybe& grad_keys,
                                                    const Maybe& grad_values, const Tensor& out, const Tensor& lse,
                                                    const Tensor& qkv, const Tensor& q_weight, const Tensor& k_weight,
                                                    const Maybe& cosines, const Maybe& sines, const Maybe& past_keys,
                                                    const Maybe& past_values, std::int64_t frame, double eps,
                                                    int threads, const std::string& isa) {
    const SelfAttention g =
        problem_of(qkv, q_weight, k_weight, cosines, sines, past_keys, past_values, frame, eps, threads);
    const Dtype dtype = qkv.dtype();
    const std::vector<std::int64_t> shape{g.batch, g.tokens, g.heads, g.head_dim},
        kept{g.batch, g.heads, g.past + g.tokens, g.head_dim}, past{g.batch, g.heads, g.past, g.head_dim};
    Tensor grad_qkv = Tensor::empty({g.batch, g.tokens, 3, g.heads, g.head_dim}, dtype, qkv);
    Tensor grad_weights = Tensor::empty({2, g.head_dim}, Dtype::float32, qkv);
    Tensor grad_past_keys = Tensor::empty(past, dtype, qkv), grad_past_values = Tensor::empty(past, dtype, qkv);
    const SelfAttentionBackward b{
        checked(OP, out, "out", shape, dtype),
        checked(OP, grad_out, "grad_out", shape, dtype),
        static_cast<const float*>(checked(OP, lse, "lse", {g.batch, g.heads, g.tokens}, Dtype::float32)),
        checked_if_given(grad_keys, "grad_keys", kept, dtype),
        checked_if_given(grad_values, "grad_values", kept, dtype),
        grad_qkv.data(),
        grad_past_keys.data(),
        grad_past_values.data(),
        grad_weights.data<float>(),
    };
    self_attention_backward(g, b, isa_of(OP, isa));
    return {std::move(grad_qkv), std::move(grad_weights), std::move(grad_past_keys), std::move(grad_past_values)};
}

}  // namespace self_attention_binding

void bind_self_attention(py::module_& m) {
    using namespace self_attention_binding;
    m.def("self_attention_forward", &forward, arg("qkv"), arg("q_weight"), arg("k_weight"), arg("cosines"),
          arg("sines"), arg("past_keys"), arg("past_values"), arg("frame"), arg("eps"), arg("keep"), arg("threads") = 1,
          arg("isa") = "", without_lock());
    m.def("self_attention_backward", &backward, arg("grad_out"), arg("grad_keys"), arg("grad_values"), arg("out"),
          arg("lse"), arg("qkv"), arg("q_weight"), arg("k_weight"), arg("cosines"), arg("sines"), arg("past_keys"),
          arg("past_values"), arg("frame"), arg("eps"), arg("threads") = 1, arg("isa") = "", without_lock());
}

}  // namespace enma
