#include "core/cpu/parallel.h"
#include "core/philox.h"
#include "python/bindings.h"
#include "python/tensor.h"

namespace enma {
namespace philox_normal_binding {

constexpr char OP[] = "philox_normal";
// Below this many normals, waking other threads takes longer than drawing them.
constexpr std::int64_t PARALLEL = 4096;

// A word of each member, or one that all share; taken modulo 2^32.
struct Words {
    const std::int64_t* values;
    std::int64_t stride;

    Words(const char* name, const Tensor& words, std::int64_t num_members)
        : values(words.data<std::int64_t>()), stride(words.dim() == 0 ? 0 : words.stride(0)) {
        expect(words.is_cpu() && words.dtype() == Dtype::int64, OP, ": ", name, " must be int64 on the CPU");
        expect(words.dim() == 0 || words.has_shape({num_members}), OP, ": ", name, " has shape ", words.sizes(),
               "; expected [] or [", num_members, "]");
    }
    std::uint32_t operator[](std::int64_t member) const { return static_cast<std::uint32_t>(values[member * stride]); }
};

// Fills `out` [B, M, C], contiguous, with the normals of the tokens that one mask step decides.
void fill(const Tensor& seed, const Tensor& members, const Tensor& frame, const Tensor& mask_step, const Tensor& tokens,
          const Tensor& out, int threads) {
    expect(out.is_cpu() && out.dtype() == Dtype::float32 && out.dim() == 3 && out.is_contiguous(), OP,
           ": out must be contiguous float32 [B, M, C] on the CPU");
    const std::int64_t B = out.size(0), M = out.size(1), C = out.size(2);
    expect(tokens.is_cpu() && tokens.dtype() == Dtype::int64, OP, ": tokens must be int64 on the CPU");
    const bool shared = tokens.dim() == 1;
    expect((shared || (tokens.dim() == 2 && tokens.size(0) == B)) && tokens.size(-1) == M, OP, ": tokens has shape ",
           tokens.sizes(), "; expected [", M, "] or [", B, ", ", M, "]");
    const Words k0("seed", seed, B), k1("members", members, B), c3("frame", frame, B), c2("mask_step", mask_step, B);
    const std::int64_t* const token = tokens.data<std::int64_t>();
    const std::int64_t of_member = shared ? 0 : tokens.stride(0), of_place = tokens.stride(-1), rows = B * M;
    float* const to = out.data<float>();
    parallel(rows * C > PARALLEL ? threads : 1, [&](int thread, int n) {
        for (std::int64_t row = rows * thread / n; row < rows * (thread + 1) / n; ++row) {
            const std::int64_t b = row / M;
            const auto c1 = static_cast<std::uint32_t>(token[b * of_member + row % M * of_place]);
            philox_token_normals({0, c1, c2[b], c3[b]}, k0[b], k1[b], static_cast<int>(C), to + row * C);
        }
    });
}

}  // namespace philox_normal_binding

void bind_philox_normal(py::module_& m) {
    using namespace philox_normal_binding;
    m.def("philox_normal", &fill, arg("seed"), arg("members"), arg("frame"), arg("mask_step"), arg("tokens"),
          arg("out"), arg("threads") = 1, without_lock());
}

}  // namespace enma
