#include "runtime/known.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/error.h"

namespace enma {

void KnownInputs::give(const std::string& name, const DLTensor* values) {
    const ModelConfig& config = model_->config();
    const auto input = std::find_if(config.known.begin(), config.known.end(),
                                    [&](const KnownInput& known) { return known.name == name; });
    if (input == config.known.end()) {
        std::string names;
        for (const KnownInput& known : config.known) names += (names.empty() ? "" : ", ") + known.name;
        fail(ENMA_INVALID_ARGUMENT, argument_, ": ", config.name, " is not told ", name.substr(0, 80), "; it takes ",
             names.empty() ? "nothing but fields" : names);
    }
    const std::string where = text(argument_, ": ", name);
    std::vector<std::int64_t> shape;
    if (input->in_time) shape.push_back(-1);
    if (input->in_space) shape.insert(shape.end(), config.codec.grid.begin(), config.codec.grid.end());
    const Array array(values, where.c_str(), shape, false);
    Driver driver{1, input->in_time ? array.size(0) : 1, input->in_space ? config.codec.points() : 1, array.numbers()};
    const std::vector<float>& mask = model_->mask();
    const std::size_t channels = config.codec.field_channels;
    const std::size_t place = input - config.known.begin();
    const float mean = model_->driver_mean()[place], std = model_->driver_std()[place];
    for (std::size_t i = 0; i < driver.values.size(); ++i) {
        // It need not be known where some channel has no value.
        const std::size_t at = i % driver.points * channels;
        const bool land = !mask.empty() && input->in_space &&
                          std::any_of(&mask[at], &mask[at] + channels, [](float there) { return there == 0.0f; });
        if (std::isinf(driver.values[i]) || (std::isnan(driver.values[i]) && !land)) {
            fail(ENMA_INVALID_ARGUMENT, where, " holds a value that is missing or infinite; fill such values");
        }
        driver.values[i] = std::isnan(driver.values[i]) ? 0.0f : (driver.values[i] - mean) / std;
    }
    given_[name] = std::move(driver);
}

Told KnownInputs::told(std::int64_t frames) const {
    const ModelConfig& config = model_->config();
    Told out{{}, model_->mask()};
    std::string lacking;
    for (const KnownInput& input : config.known) {
        const auto found = given_.find(input.name);
        if (found != given_.end()) {
            out.drivers.push_back(found->second);
            continue;
        }
        lacking +=
            text(lacking.empty() ? "" : ", ", input.name, " (", input.kind(), " ", shape_text(input, frames), ")");
    }
    if (!lacking.empty()) {
        fail(ENMA_INVALID_ARGUMENT, argument_, ": lacks what ", config.name, " was told in training: ", lacking);
    }
    for (std::size_t i = 0; i < out.drivers.size(); ++i) {
        const std::int64_t there = out.drivers[i].frames;
        if (!config.known[i].in_time || there >= frames) continue;
        fail(ENMA_INVALID_ARGUMENT, argument_, ": ", config.known[i].name, " has ", there,
             there == 1 ? " frame" : " frames", "; the observed and the forecast ones are ", frames,
             ", in all of which it has to be known");
    }
    return out;
}

std::string KnownInputs::shape_text(const KnownInput& input, std::int64_t frames) const {
    std::string out;
    const auto add = [&](std::int64_t size) { out += (out.empty() ? "" : ", ") + std::to_string(size); };
    if (input.in_time) add(frames);
    for (std::size_t axis = 0; input.in_space && axis < model_->config().codec.grid.size(); ++axis) {
        add(model_->config().codec.grid[axis]);
    }
    return "[" + out + "]";
}

void KnownInputs::save(const Told& told, const std::function<void(const void*, std::size_t)>& put) {
    for (const Driver& driver : told.drivers) {
        put(&driver.frames, sizeof driver.frames);
        put(driver.values.data(), driver.values.size() * sizeof(float));
    }
}

Told KnownInputs::restored(const char*& at, const char* end, std::int64_t frames) const {
    const ModelConfig& config = model_->config();
    Told out{{}, model_->mask()};
    for (const KnownInput& input : config.known) {
        Driver driver{1, 0, input.in_space ? config.codec.points() : 1, {}};
        const std::int64_t least = input.in_time ? frames : 1;
        const bool counted = end - at >= static_cast<std::ptrdiff_t>(sizeof driver.frames);
        if (counted) std::memcpy(&driver.frames, at, sizeof driver.frames);
        at += counted ? sizeof driver.frames : 0;
        const std::int64_t held = (end - at) / static_cast<std::int64_t>(driver.points * sizeof(float));
        if (driver.frames < least || driver.frames > held || (driver.frames > 1 && !input.in_time)) {
            fail(ENMA_INVALID_ARGUMENT, "buffer: not a saved session; save the session again");
        }
        driver.values.resize(driver.frames * driver.points);
        std::memcpy(driver.values.data(), at, driver.values.size() * sizeof(float));
        at += driver.values.size() * sizeof(float);
        if (!std::all_of(driver.values.begin(), driver.values.end(), [](float x) { return std::isfinite(x); })) {
            fail(ENMA_INVALID_ARGUMENT, "buffer: holds a value that is not finite; save the session again");
        }
        out.drivers.push_back(std::move(driver));
    }
    return out;
}

}  // namespace enma
