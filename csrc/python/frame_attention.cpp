#include "core/cpu/frame_attention.h"

#include "python/bindings.h"
#include "python/tensor.h"

namespace enma {

namespace frame_attention_binding {

constexpr char OP[] = "frame_attention";
using Maybe = std::optional<Tensor>;

AttentionRows rows(const Tensor& x, const char* name, const FrameAttention& g, Dtype dtype) {
    expect(x.is_cpu(), OP, ": ", name, " is on ", x.device(), "; expected the CPU");
    expect(x.dtype() == dtype, OP, ": ", name, " is ", x.dtype());
    expect(x.dim() == 4 && x.size(1) == g.heads && x.size(3) == g.head_dim, OP, ": ", name, " has shape ", x.sizes());
    expect(x.stride(3) == 1, OP, ": ", name, " has gaps between channels");
    return {x.data(), x.stride(0), x.stride(1), x.stride(2)};
}

AttentionPart part(const Tensor& k, const Tensor& v, const char* name, std::int64_t count, const FrameAttention& g,
                   Dtype dtype) {
    AttentionPart part{rows(k, name, g, dtype), rows(v, name, g, dtype), count, 1};
    expect(k.sizes() == v.sizes(), OP, ": ", name, " has values of shape ", v.sizes());
    expect(0 <= count && count <= k.size(2), OP, ": ", name, " has ", k.size(2), " tokens; ", count, " asked for");
    const bool divides = k.size(0) > 0 && g.batch % k.size(0) == 0;
    expect(g.batch == 0 || divides, OP, ": ", name, " has ", k.size(0), " groups");
    part.rows_per_batch = g.batch == 0 ? 1 : g.batch / k.size(0);
    return part;
}

// Attention of the tokens of a frame to a prefix, a cache and one another.
Tensor attend(const Tensor& q, const Tensor& k, const Tensor& v, const Maybe& cache_k, const Maybe& cache_v,
              const Maybe& prefix_k, const Maybe& prefix_v, std::int64_t length, std::int64_t prefix_length,
              int threads, const std::string& isa) {
    FrameAttention g{};
    g.format = checked_format(OP, q, "q");
    expect(q.dim() == 4, OP, ": q has shape ", q.sizes());
    expect(1 <= q.size(3) && q.size(3) <= MAX_HEAD_DIM, OP, ": q has head dim ", q.size(3), "; expected 1 to ",
           MAX_HEAD_DIM);
    expect(cache_k.has_value() == cache_v.has_value() && prefix_k.has_value() == prefix_v.has_value(), OP,
           ": keys without values");
    g.batch = q.size(0), g.heads = q.size(1), g.tokens = q.size(2), g.head_dim = q.size(3);
    g.q = rows(q, "q", g, q.dtype());
    expect(k.dim() == 4 && k.size(0) == g.batch, OP, ": k has shape ", k.sizes());
    if (prefix_k) g.parts[0] = part(*prefix_k, *prefix_v, "prefix", prefix_length, g, q.dtype());
    if (cache_k) {
        expect(cache_k->dim() == 4 && cache_k->size(0) == g.batch, OP, ": cache has shape ", cache_k->sizes());
        g.parts[1] = part(*cache_k, *cache_v, "cache", length, g, q.dtype());
    }
    g.parts[2] = part(k, v, "k", g.tokens, g, q.dtype());
    g.threads = threads;
    Tensor out = Tensor::empty({g.batch, g.heads, g.tokens, g.head_dim}, q.dtype(), q);
    g.out = out.data();
    g.out_token_stride = g.head_dim, g.out_head_stride = g.tokens * g.head_dim;
    g.out_batch_stride = g.heads * g.out_head_stride;
    frame_attention(g, isa_of(OP, isa));
    return out;
}

}  // namespace frame_attention_binding

void bind_frame_attention(py::module_& m) {
    using namespace frame_attention_binding;
    m.def("frame_attention", &attend, arg("q"), arg("k"), arg("v"), arg("cache_k"), arg("cache_v"), arg("prefix_k"),
          arg("prefix_v"), arg("length"), arg("prefix_length"), arg("threads") = 1, arg("isa") = "", without_lock());
}

}  // namespace enma
