#include "runtime/model.h"

#include <algorithm>
#include <limits>

#include "core/error.h"
#include "runtime/view.h"

namespace enma {

Model::Model(const std::string& folder, NumberFormat format)
    : checkpoint_(folder),
      identity_(checkpoint_.identity()),
      config_(read_config(checkpoint_.config(), checkpoint_.config_path())),
      place_offsets_(config_.place_offsets()),
      codec_(config_.codec.make([this](const std::string& name, const std::vector<std::int64_t>& shape) {
          return checkpoint_.tensors().take(name, shape);
      })),
      dynamics_(config_, checkpoint_.tensors(), format) {
    Tensors& tensors = checkpoint_.tensors();
    views(config_, config_.sampling.shifts);
    latent_mean_ = tensors.take("latent_mean", {config_.codec.latent_channels});
    latent_std_ = tensors.take("latent_std", {config_.codec.latent_channels});
    if (config_.is_told()) {
        const auto count = static_cast<std::int64_t>(config_.known.size());
        driver_mean_ = tensors.take("drivers.mean", {count});
        driver_std_ = tensors.take("drivers.std", {count});
    }
    if (config_.codec.masked) {
        const std::vector<std::int64_t> shape = config_.frames_shape({});
        const float* const mask = tensors.take("codec.mask", shape);
        mask_.assign(mask, mask + config_.points() * config_.codec.field_channels);
    }
    tensors.check_all_taken();
    read_covariance();
    // A saved session goes on with the format that it was made in.
    if (format == NumberFormat::bf16) identity_ = sha256(identity_.data(), identity_.size());
}

void Model::read_covariance() {
    Tensors* const tensors = checkpoint_.covariance();
    if (tensors == nullptr || codec_->features() > 0) return;
    const CodecConfig& codec = config_.codec;
    FieldCovariance& found = covariance_.emplace();
    found.grid = codec.grid;
    found.lengths = codec.lengths;
    found.periodic = codec.periodic;
    found.channels = codec.field_channels;
    std::vector<std::int64_t> shape;
    for (int axis = 0; axis < codec.dims(); ++axis) {
        shape.push_back(codec.periodic[axis] ? codec.grid[axis] / 2 + 1 : codec.grid[axis]);
    }
    shape.push_back(found.channels);
    const auto take = [&](const char* name, const std::vector<std::int64_t>& expected, std::int64_t count) {
        const float* const values = tensors->take(name, expected);
        return std::vector<double>(values, values + count);
    };
    found.mean = take("mean", {found.channels}, found.channels);
    found.deviation = take("deviation", shape, found.entries());
    found.correlation = take("correlation", shape, found.entries());
    tensors->check_all_taken();
    const auto within = [](const std::vector<double>& values, double most) {
        return std::all_of(values.begin(), values.end(), [most](double x) { return x >= 0 && x <= most; });
    };
    if (!within(found.deviation, std::numeric_limits<float>::max()) || !within(found.correlation, 1)) {
        fail(ENMA_CHECKPOINT, "covariance.safetensors of ", config_.name,
             ": deviation is below 0, or a correlation not between 0 and 1; copy the checkpoint again");
    }
}

}  // namespace enma
