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
    // 1 where fields have values, [points, c]; none of fields that have them everywhere.
    const std::vector<float>& mask() const { return mask_; }
    // Means and standard deviations of drivers, one for each of `config().known`.
    const float* driver_mean() const { return driver_mean_; }
    const float* driver_std() const { return driver_std_; }
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
    std::vector<float> mask_;
    const float *latent_mean_, *latent_std_, *driver_mean_ = nullptr, *driver_std_ = nullptr;
};

}  // namespace enma
