#include "core/cpu/philox_normal.h"

#include "core/cpu/parallel.h"
#include "core/philox.h"

namespace enma {
namespace {

// Below this many normals, waking other threads takes longer than drawing them.
constexpr std::int64_t PARALLEL = 4096;

std::uint32_t word_of(const MemberWords& words, std::int64_t member) {
    return static_cast<std::uint32_t>(words.values[member * words.stride]);
}

}  // namespace

void philox_normal(const PhiloxNormalArguments& arguments, float* out) {
    const std::int64_t M = arguments.num_tokens, C = arguments.channels;
    const std::int64_t num_rows = arguments.num_members * M;
    parallel(num_rows * C > PARALLEL ? arguments.threads : 1, [&](int thread, int threads) {
        for (std::int64_t row = num_rows * thread / threads; row < num_rows * (thread + 1) / threads; ++row) {
            const std::int64_t b = row / M, m = row % M;
            const std::int64_t token =
                arguments.tokens[b * arguments.token_stride_member + m * arguments.token_stride_place];
            const std::uint32_t k0 = word_of(arguments.seed, b), k1 = word_of(arguments.members, b);
            const PhiloxWords counter{0, static_cast<std::uint32_t>(token), word_of(arguments.mask_step, b),
                                      word_of(arguments.frame, b)};
            philox_token_normals(counter, k0, k1, static_cast<int>(C), out + row * C);
        }
    });
}

}  // namespace enma
