// A checkpoint with its weights packed: immutable, and shared by sessions.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/cpu/analysis.h"
#include "runtime/checkpoint.h"
#include "runtime/config.h"
#include "runtime/dynamics.h"

namespace enma {

class Model {
   public:
    // Throws Error.
    Model(const std::string& folder, NumberFormat format);
    Model(const Model&) = delete;
    Model& operator=(const Model&) = delete;

    const ModelConfig& config() const { return config_; }
    // Digest of config, weights and number format.
    const Digest& identity() const { return identity_; }
    const std::string& weights_sha256() const { return checkpoint_.weights_sha256(); }
    const Codec& codec() const { return *codec_; }
    // Whether frames may be observed at scattered points.
    bool reads_points() const { return codec_->features() > 0 || covariance_; }
    const Dynamics& dynamics() const { return dynamics_; }
    // How its fields vary, to estimate them from scattered points; null where the checkpoint does not say.
    const FieldCovariance* covariance() const { return covariance_ ? &*covariance_ : nullptr; }
    const float* latent_mean() const { return latent_mean_; }
    const float* latent_std() const { return latent_std_; }
    // ModelConfig::place_offsets
    const std::vector<std::int64_t>& place_offsets() const { return place_offsets_; }

   private:
    void read_covariance();

    Checkpoint checkpoint_;
    Digest identity_;
    ModelConfig config_;
    std::vector<std::int64_t> place_offsets_;
    std::unique_ptr<const Codec> codec_;
    Dynamics dynamics_;
    std::optional<FieldCovariance> covariance_;
    const float *latent_mean_, *latent_std_;
};

}  // namespace enma
