#include "core/cpu/drivers.h"

#include <algorithm>
#include <numeric>

#include "core/error.h"

namespace enma {

int ToldShape::inputs() const {
    return static_cast<int>(in_time.size() + std::count(in_time.begin(), in_time.end(), true)) + (masked ? 1 : 0);
}

int ToldShape::numbers() const { return static_cast<int>(std::count(in_time.begin(), in_time.end(), false)); }

const float* Driver::at(std::int64_t trajectory, std::int64_t frame) const {
    const std::int64_t row = trajectories == 1 ? 0 : trajectory, t = std::clamp<std::int64_t>(frame, 0, frames - 1);
    return values.data() + (row * frames + t) * points;
}

void Told::check(const ToldShape& shape, std::int64_t trajectories, std::int64_t points, std::int64_t channels) const {
    const std::size_t places = shape.masked ? points * channels : 0;
    if (drivers.size() != shape.in_time.size() || mask.size() != places) {
        fail(ENMA_INVALID_ARGUMENT, drivers.size(), " drivers and ", mask.size(), " places of a mask; the model has ",
             shape.in_time.size(), " and ", places);
    }
    for (std::size_t i = 0; i < drivers.size(); ++i) {
        const Driver& driver = drivers[i];
        const bool fits = (driver.trajectories == 1 || driver.trajectories == trajectories) && driver.frames > 0 &&
                          (driver.frames == 1 || shape.in_time[i]) && (driver.points == 1 || driver.points == points);
        if (!fits) {
            fail(ENMA_INVALID_ARGUMENT, "driver ", i, " has ", driver.trajectories, " trajectories, ", driver.frames,
                 " frames and ", driver.points, " points; 1 or ", trajectories, ", ",
                 shape.in_time[i] ? "at least 1" : "1", ", and 1 or ", points, " are expected");
        }
    }
}

void Told::inputs(const ToldShape& shape, std::int64_t trajectory, std::int64_t frame, std::int64_t points, int row,
                  float* out) const {
    const auto put = [&](const Driver& driver, std::int64_t t) {
        const float* from = driver.at(trajectory, t);
        const int step = driver.points == 1 ? 0 : 1;
        for (std::int64_t p = 0; p < points; ++p, from += step) out[p * row] = *from;
        ++out;
    };
    for (const Driver& driver : drivers) put(driver, frame);
    for (std::size_t i = 0; i < drivers.size(); ++i) {
        if (shape.in_time[i]) put(drivers[i], frame - 1);
    }
    if (!shape.masked) return;
    const std::int64_t channels = static_cast<std::int64_t>(mask.size()) / points;
    for (std::int64_t p = 0; p < points; ++p) {
        const float* const there = mask.data() + p * channels;
        out[p * row] = std::accumulate(there, there + channels, 0.0f) / static_cast<float>(channels);
    }
}

std::vector<float> Told::numbers(const ToldShape& shape, std::int64_t trajectory) const {
    std::vector<float> out;
    for (std::size_t i = 0; i < drivers.size(); ++i) {
        if (shape.in_time[i]) continue;
        const float* const values = drivers[i].at(trajectory, 0);
        out.push_back(static_cast<float>(std::accumulate(values, values + drivers[i].points, 0.0) /
                                         static_cast<double>(drivers[i].points)));
    }
    return out;
}

}  // namespace enma
