// Normals of the tokens that one mask step decides, on the CPU.
#pragma once

#include <cstdint>

namespace enma {

// One value per member; stride 0 where all members share it. Taken modulo 2^32.
struct MemberWords {
    const std::int64_t* values;
    std::int64_t stride;
};

struct PhiloxNormalArguments {
    MemberWords seed, members, frame, mask_step;
    // Token of member b at place m: tokens[b * token_stride_member + m * token_stride_place].
    const std::int64_t* tokens;
    std::int64_t token_stride_member, token_stride_place;
    std::int64_t num_members, num_tokens, channels;
    // At most; few normals are drawn by the calling thread alone.
    int threads;
};

// Fills out [num_members, num_tokens, channels], contiguous.
void philox_normal(const PhiloxNormalArguments& arguments, float* out);

}  // namespace enma
