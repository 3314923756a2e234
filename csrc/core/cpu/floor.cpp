// Floors whose numbers are those of a data set: enma_fast/models/floors/dataset.py.
#include "core/cpu/floor.h"

#include <algorithm>
#include <map>

namespace enma {

using MakeFloor = std::unique_ptr<const Floor>(const FloorGrid& grid, const TakeFloor& take);
MakeFloor make_waves_floor, make_vibration_floor, make_diffusion_floor, make_equation_floor;

namespace {

struct Persistence : Floor {
    explicit Persistence(int values) : Floor(values) {}
    void step(Past past, const Inferred*, Isa, char*, float* views) const override {
        std::copy_n(past[PAST_FRAMES - 1], values_, views);
    }
};

// The shape [*x, more].
std::vector<std::int64_t> shape_of(const FloorGrid& grid, std::int64_t more) {
    std::vector<std::int64_t> shape;
    for (const GridAxis& axis : grid.axes) shape.push_back(axis.points);
    shape.push_back(more);
    return shape;
}

struct DampedPersistence : Floor {
    DampedPersistence(const FloorGrid& grid, const TakeFloor& take, const std::string& prefix)
        : Floor(grid.values()),
          channels(grid.channels),
          mean(take.values(prefix + "mean", shape_of(grid, grid.channels))),
          rate(take.values(prefix + "rate", {grid.channels})) {}
    void step(Past past, const Inferred*, Isa, char*, float* views) const override { relax(past, mean, rate, views); }
    // The last frame, relaxed towards a target.
    void relax(Past past, const std::vector<float>& target, const std::vector<float>& kept, float* views) const {
        for (int i = 0; i < values_; ++i) {
            views[i] = target[i] + kept[i % channels] * (past[PAST_FRAMES - 1][i] - target[i]);
        }
    }

    int channels;
    std::vector<float> mean, rate;
};

// Each point returns to what its observed frames tell; beside a context, damped persistence.
struct ObservedMean : DampedPersistence {
    struct Target : Inferred {
        std::vector<float> fields;
    };

    ObservedMean(const FloorGrid& grid, const TakeFloor& take, const std::string& prefix)
        : DampedPersistence(grid, take, prefix),
          there(take.values(prefix + "there", shape_of(grid, grid.channels))),
          weights(take.values(prefix + "weights", {3, grid.channels})),
          returning(take.values(prefix + "returning", {grid.channels})) {}
    Inference infer(const Windows& windows, Isa) const override {
        if (!windows.own) return nullptr;
        auto target = std::make_shared<Target>();
        std::vector<double> own(values_), everywhere(channels), points(channels);
        const int frames = windows.count * PAST_FRAMES;
        for (int t = 0; t < frames; ++t) {
            for (int i = 0; i < values_; ++i) own[i] += windows.values[std::ptrdiff_t(t) * values_ + i];
        }
        for (int i = 0; i < values_; ++i) {
            own[i] = own[i] / frames - mean[i];
            everywhere[i % channels] += own[i] * there[i];
            points[i % channels] += there[i];
        }
        for (int i = 0; i < values_; ++i) {
            const int c = i % channels;
            const double all =
                weights[channels + c] * everywhere[c] / std::max(points[c], 1.0) + weights[2 * channels + c];
            target->fields.push_back(static_cast<float>(mean[i] + weights[c] * own[i] + all * there[i]));
        }
        return target;
    }
    void step(Past past, const Inferred* inferred, Isa isa, char* work, float* views) const override {
        if (inferred == nullptr) return DampedPersistence::step(past, inferred, isa, work, views);
        relax(past, static_cast<const Target*>(inferred)->fields, returning, views);
    }

    std::vector<float> there, weights, returning;
};

// Damped persistence, and a linear regression of what it misses on the principal components of two frames.
struct InverseModel : Floor {
    static constexpr int LAGS = 2, MOST_COMPONENTS = 30;

    InverseModel(const FloorGrid& grid, const TakeFloor& take, const std::string& prefix)
        : Floor(grid.values()),
          damped(grid, take, prefix + "damped."),
          components(std::min(MOST_COMPONENTS, values_)),
          scale(take.values(prefix + "scale", {grid.channels})),
          basis(take.values(prefix + "basis", {values_, components})),
          weights(take.values(prefix + "weights", {LAGS * components, components})) {}

    int reads() const override { return LAGS; }
    void step(Past past, const Inferred* inferred, Isa isa, char* work, float* views) const override {
        const int E = components;
        double known[LAGS * MOST_COMPONENTS] = {}, made[MOST_COMPONENTS] = {};
        // The last frame comes first.
        for (int lag = 0; lag < LAGS; ++lag) project(past[PAST_FRAMES - 1 - lag], known + lag * E);
        damped.step(past, inferred, isa, work, views);
        for (int i = 0; i < LAGS * E; ++i) {
            for (int e = 0; e < E; ++e) made[e] += known[i] * weights[i * E + e];
        }
        for (int i = 0; i < values_; ++i) {
            double moved = 0.0;
            for (int e = 0; e < E; ++e) moved += basis[static_cast<std::ptrdiff_t>(i) * E + e] * made[e];
            views[i] += static_cast<float>(moved) * scale[i % damped.channels];
        }
    }
    // Components of a frame.
    void project(const float* frame, double* out) const {
        for (int i = 0; i < values_; ++i) {
            const double off = (frame[i] - damped.mean[i]) / scale[i % damped.channels];
            const float* const row = basis.data() + static_cast<std::ptrdiff_t>(i) * components;
            for (int e = 0; e < components; ++e) out[e] += off * row[e];
        }
    }

    DampedPersistence damped;
    int components;
    std::vector<float> scale, basis, weights;
};

// The mean of both.
struct MultiModelMean : Floor {
    MultiModelMean(const FloorGrid& grid, const TakeFloor& take)
        : Floor(grid.values()), observed(grid, take, "observed."), inverse(grid, take, "inverse.") {}

    int reads() const override { return inverse.reads(); }
    std::size_t work_bytes() const override { return sizeof(float) * values_; }
    Inference infer(const Windows& windows, Isa isa) const override { return observed.infer(windows, isa); }
    void step(Past past, const Inferred* inferred, Isa isa, char* work, float* views) const override {
        float* const other = reinterpret_cast<float*>(work);
        observed.step(past, inferred, isa, work, views);
        inverse.step(past, nullptr, isa, work, other);
        for (int i = 0; i < values_; ++i) views[i] = (views[i] + other[i]) / 2;
    }

    ObservedMean observed;
    InverseModel inverse;
};

std::unique_ptr<const Floor> make_persistence(const FloorGrid& grid, const TakeFloor&) {
    return std::make_unique<const Persistence>(grid.values());
}
std::unique_ptr<const Floor> make_damped(const FloorGrid& grid, const TakeFloor& take) {
    return std::make_unique<const DampedPersistence>(grid, take, "");
}
std::unique_ptr<const Floor> make_observed(const FloorGrid& grid, const TakeFloor& take) {
    return std::make_unique<const ObservedMean>(grid, take, "");
}
std::unique_ptr<const Floor> make_inverse(const FloorGrid& grid, const TakeFloor& take) {
    return std::make_unique<const InverseModel>(grid, take, "");
}
std::unique_ptr<const Floor> make_mean(const FloorGrid& grid, const TakeFloor& take) {
    return std::make_unique<const MultiModelMean>(grid, take);
}

}  // namespace

void Floor::before(const float* first, const Inferred*, Isa, float* out) const { std::copy_n(first, values_, out); }

std::unique_ptr<const Floor> make_floor(const std::string& kind, const FloorGrid& grid, const TakeFloor& take) {
    static const std::map<std::string, MakeFloor*> known = {
        {"persistence", make_persistence},      {"damped persistence", make_damped},
        {"linear inverse model", make_inverse}, {"multi-model mean", make_mean},
        {"observed mean", make_observed},       {"waves", make_waves_floor},
        {"vibration", make_vibration_floor},    {"diffusion", make_diffusion_floor},
        {"equation", make_equation_floor}};
    const auto found = known.find(kind);
    return found == known.end() ? nullptr : found->second(grid, take);
}

}  // namespace enma
