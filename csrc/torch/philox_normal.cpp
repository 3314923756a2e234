#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include "core/cpu/philox_normal.h"
#include "operators.h"

namespace enma {
namespace {

MemberWords member_words(const char* name, const at::Tensor& words, int64_t num_members) {
    TORCH_CHECK_VALUE(words.is_cpu() && words.scalar_type() == at::kLong, "philox_normal: ", name,
                      " must be int64 on the CPU");
    TORCH_CHECK_VALUE(words.dim() == 0 || (words.dim() == 1 && words.size(0) == num_members), "philox_normal: ", name,
                      " has shape ", words.sizes(), "; expected [] or [", num_members, "]");
    return {words.const_data_ptr<int64_t>(), words.dim() == 0 ? 0 : words.stride(0)};
}

}  // namespace

void philox_normal(const at::Tensor& seed, const at::Tensor& members, const at::Tensor& frame,
                   const at::Tensor& mask_step, const at::Tensor& tokens, const at::Tensor& out) {
    TORCH_CHECK_VALUE(out.is_cpu() && out.scalar_type() == at::kFloat && out.dim() == 3 && out.is_contiguous(),
                      "philox_normal: out must be contiguous float32 [B, M, C] on the CPU");
    const int64_t B = out.size(0), M = out.size(1);
    TORCH_CHECK_VALUE(tokens.is_cpu() && tokens.scalar_type() == at::kLong,
                      "philox_normal: tokens must be int64 on the CPU");
    const bool shared = tokens.dim() == 1;
    TORCH_CHECK_VALUE((shared || (tokens.dim() == 2 && tokens.size(0) == B)) && tokens.size(-1) == M,
                      "philox_normal: tokens has shape ", tokens.sizes(), "; expected [", M, "] or [", B, ", ", M, "]");
    const PhiloxNormalArguments arguments{
        member_words("seed", seed, B),
        member_words("members", members, B),
        member_words("frame", frame, B),
        member_words("mask_step", mask_step, B),
        tokens.const_data_ptr<int64_t>(),
        shared ? 0 : tokens.stride(0),
        tokens.stride(-1),
        B,
        M,
        out.size(2),
        at::get_num_threads(),
    };
    float* const values = out.mutable_data_ptr<float>();
    philox_normal(arguments, values);
}

}  // namespace enma
