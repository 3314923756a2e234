#include "core/cpu/philox_normal.h"

#include "python/bindings.h"
#include "python/tensor.h"

namespace enma {
namespace philox_normal_binding {

constexpr char OP[] = "philox_normal";

MemberWords member_words(const char* name, const Tensor& words, std::int64_t num_members) {
    expect(words.is_cpu() && words.dtype() == Dtype::int64, OP, ": ", name, " must be int64 on the CPU");
    expect(words.dim() == 0 || words.has_shape({num_members}), OP, ": ", name, " has shape ", words.sizes(),
           "; expected [] or [", num_members, "]");
    return {words.data<std::int64_t>(), words.dim() == 0 ? 0 : words.stride(0)};
}

// Fills `out` [B, M, C], contiguous, with the normals of the tokens that one mask step decides.
void fill(const Tensor& seed, const Tensor& members, const Tensor& frame, const Tensor& mask_step, const Tensor& tokens,
          const Tensor& out, int threads) {
    expect(out.is_cpu() && out.dtype() == Dtype::float32 && out.dim() == 3 && out.is_contiguous(), OP,
           ": out must be contiguous float32 [B, M, C] on the CPU");
    const std::int64_t B = out.size(0), M = out.size(1);
    expect(tokens.is_cpu() && tokens.dtype() == Dtype::int64, OP, ": tokens must be int64 on the CPU");
    const bool shared = tokens.dim() == 1;
    expect((shared || (tokens.dim() == 2 && tokens.size(0) == B)) && tokens.size(-1) == M, OP, ": tokens has shape ",
           tokens.sizes(), "; expected [", M, "] or [", B, ", ", M, "]");
    const PhiloxNormalArguments arguments{
        member_words("seed", seed, B),
        member_words("members", members, B),
        member_words("frame", frame, B),
        member_words("mask_step", mask_step, B),
        tokens.data<std::int64_t>(),
        shared ? 0 : tokens.stride(0),
        tokens.stride(-1),
        B,
        M,
        out.size(2),
        threads,
    };
    philox_normal(arguments, out.data<float>());
}

}  // namespace philox_normal_binding

void bind_philox_normal(py::module_& m) {
    using namespace philox_normal_binding;
    m.def("philox_normal", &fill, arg("seed"), arg("members"), arg("frame"), arg("mask_step"), arg("tokens"),
          arg("out"), arg("threads") = 1, without_lock());
}

}  // namespace enma
