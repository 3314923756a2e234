#include "runtime/dynamics.h"

#include <cmath>

#include "core/error.h"

namespace enma {

Dynamics::Dynamics(const ModelConfig& config, Tensors& tensors, NumberFormat format)
    : config_(config), engine_(config.context.kind->engine(config, tensors, format)) {}

void Dynamics::check(const DecoderSettings& set) const {
    const std::int64_t most = MOST_TOKENS / config_.masked_rows();
    if (set.rows < 1 || set.rows > most) {
        fail(ENMA_INVALID_ARGUMENT, set.rows, " members; at least 1 and at most ", most,
             " are sampled together: use several sessions, each with its own first_member");
    }
    if (set.threads < 1 || set.threads > MOST_THREADS) {
        fail(ENMA_INVALID_ARGUMENT, "threads is ", set.threads, "; 1 to ", MOST_THREADS, " is expected");
    }
    if (!std::isfinite(set.temperature)) fail(ENMA_INVALID_ARGUMENT, "temperature is not a finite number");
}

std::unique_ptr<FrameSession> Dynamics::session(const SamplerSettings& set) const {
    check(set);
    if (set.groups < 1 || set.groups > MOST_TOKENS / config_.masked_rows()) {
        fail(ENMA_INVALID_ARGUMENT, "members of ", set.groups, " trajectories; at least 1 and fewer are expected");
    }
    if (set.prefix_frames < 1 || set.own_frames < 0 || set.first_frame < 0 || set.prefix_frames >= MOST_SEQUENCE ||
        set.own_frames >= MOST_SEQUENCE - set.prefix_frames) {
        fail(ENMA_INVALID_ARGUMENT, set.prefix_frames, " and ", set.own_frames, " latent frames, from number ",
             set.first_frame, " on; at least 1 and fewer than ", MOST_SEQUENCE, " are expected");
    }
    return engine_->session(set);
}

}  // namespace enma
