// A checkpoint with its weights packed: immutable, and shared by sessions.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "core/cpu/analysis.h"
#include "core/cpu/flow_head.h"
#include "core/cpu/interpolation.h"
#include "core/cpu/sampler.h"
#include "core/cpu/tokenizer.h"
#include "runtime/checkpoint.h"
#include "runtime/config.h"

namespace enma {

// Transformers with tables of rotary places for so many frames, and the parameters that their views need.
struct PackedSampler {
    std::unique_ptr<Sampler> sampler;
    std::int64_t frames;
};

class Model {
   public:
    // Throws Error.
    explicit Model(const std::string& folder);
    Model(const Model&) = delete;
    Model& operator=(const Model&) = delete;

    const ModelConfig& config() const { return config_; }
    const Digest& identity() const { return checkpoint_.identity(); }
    const std::string& weights_sha256() const { return checkpoint_.weights_sha256(); }
    const Stream& encoder() const { return *encoder_; }
    const Stream& decoder() const { return *decoder_; }
    // Null in a model that works on its grid alone.
    const Interpolation* interpolation() const { return interpolation_.get(); }
    // How its fields vary, to estimate them from scattered points; null where the checkpoint does not say.
    const FieldCovariance* covariance() const { return covariance_ ? &*covariance_ : nullptr; }
    const float* latent_mean() const { return latent_mean_; }
    const float* latent_std() const { return latent_std_; }
    // ModelConfig::place_offsets
    const std::vector<std::int64_t>& place_offsets() const { return place_offsets_; }

    // For sequences of at least so many frames; packed again where the last one is for fewer.
    std::shared_ptr<const PackedSampler> sampler(std::int64_t frames) const;
    // The flow-matching head with so many flow steps.
    std::shared_ptr<const FlowHead> flow_head(int steps) const;

   private:
    void read_covariance();
    void read_dynamics();
    // Into `w`, and the layer of the sampler before it.
    const LocalHeadWeights& read_local_head(const std::string& head, const LocalConfig& config, LocalHeadWeights& w,
                                            const void*& features_weight, const void*& features_bias);
    FlowHeadWeights read_flow();
    std::vector<BlockWeights> blocks(const std::string& prefix, int count);
    std::vector<float> time_embeddings(const std::vector<float>& times) const;

    Checkpoint checkpoint_;
    ModelConfig config_;
    std::vector<std::int64_t> place_offsets_;
    std::unique_ptr<Stream> encoder_, decoder_;
    std::unique_ptr<Interpolation> interpolation_;
    std::optional<FieldCovariance> covariance_;
    const float *latent_mean_, *latent_std_;
    SamplerWeights weights_{};
    std::optional<LocalHeadWeights> local_, first_;
    FlowHeadWeights flow_{};
    const float *time_0_weight_, *time_0_bias_, *time_2_weight_, *time_2_bias_;
    std::vector<float> places_, masked_rotary_;
    mutable std::mutex mutex_;
    mutable std::shared_ptr<const PackedSampler> sampler_;
    mutable std::map<int, std::shared_ptr<const FlowHead>> heads_;
};

}  // namespace enma
