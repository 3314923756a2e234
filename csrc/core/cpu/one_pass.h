// Decoders of one pass: noise enters the masked transformer in place of known tokens, and all tokens are read at once.
#pragma once

#include <numeric>

#include "core/cpu/sampler.h"

namespace enma {

// What `read` gives of each token goes to `to`; then done(begin, end) for rows that a team has finished. One counter.
template <class Done>
void decide_in_one_pass(const Region& region, const SamplerView& m, const SamplerState& s, const LinearView& noise,
                        const LinearView& read, float temperature, float* to, const Done& done) {
    for (int row = region.begin(region.rows); row < region.end(region.rows); ++row) {
        std::iota(s.order + row * m.tokens, s.order + (row + 1) * m.tokens, 0);
        draw_noise(m, s, row, 0, 0, m.tokens, temperature);
    }
    wait(region.member);
    region.share_out(0, region.together, [&](int begin, int end) {
        const MaskTask task{begin, end, 0, 0, 0, m.tokens, &noise, nullptr, &read, to};
        region.run.mask_step(m, s, task, region.team, region.shared, region.own);
        done(begin, end);
    });
    wait(region.member);
}

}  // namespace enma
