// Floors of field models: forecasts in closed form, to which the network adds. enma_fast/models/floors
//
// A kind is a file of its own, or a few in floor.cpp, and a line there.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core/cpu/dispatch.h"
#include "core/cpu/grid_layers.h"

namespace enma {

struct FloorGrid {
    std::vector<GridAxis> axes;
    std::vector<double> spacings;
    int channels;

    int points() const { return size_of(axes); }
    int values() const { return points() * channels; }
};

// Frames of a window, and those before the next one that a step is given.
constexpr int PAST_FRAMES = 3;

// Windows [count, 3, *x, c] of one trajectory; and whether they are of the one that is forecast.
struct Windows {
    const float* values;
    int count;
    bool own;
};

// What a floor infers from the windows of a trajectory, or draws for a member of it.
struct Inferred {
    virtual ~Inferred() = default;
};
using Inference = std::shared_ptr<const Inferred>;

// Frames [*x, c] before the next one, the oldest first.
using Past = const float* const (&)[PAST_FRAMES];

class Floor {
   public:
    virtual ~Floor() = default;
    // Forecasts of the next frame that a network may read; the first of them is the floor's own.
    virtual int views() const { return 1; }
    // Frames that a step reads.
    virtual int reads() const { return 1; }
    // Numbers that tell the network what was inferred, and standard normals of a draw.
    virtual int features() const { return 0; }
    virtual int draws() const { return 0; }
    virtual std::size_t work_bytes() const { return 0; }

    virtual Inference infer(const Windows&, Isa) const { return nullptr; }
    virtual void tell(const Inferred*, const Windows&, float*) const {}
    virtual Inference draw(const Inference& inferred, const float*) const { return inferred; }
    // [*x, c, views] of the next frame.
    virtual void step(Past past, const Inferred* inferred, Isa isa, char* work, float* views) const = 0;
    // The frame before the first one that is known.
    virtual void before(const float* first, const Inferred* inferred, Isa isa, float* out) const;

   protected:
    explicit Floor(int values) : values_(values) {}
    int values_;
};

// Tensors of a floor by name and shape, which do not outlive its making.
struct TakeFloor {
    TakeParameter take;
    std::function<const double*(const std::string& name, const std::vector<std::int64_t>& shape)> take_wide;

    std::vector<float> values(const std::string& name, const std::vector<std::int64_t>& shape) const {
        return copy(take(name, shape), shape);
    }
    std::vector<double> wide(const std::string& name, const std::vector<std::int64_t>& shape) const {
        return copy(take_wide(name, shape), shape);
    }
    template <class T>
    static std::vector<T> copy(const T* values, const std::vector<std::int64_t>& shape) {
        std::int64_t count = 1;
        for (const std::int64_t n : shape) count *= n;
        return {values, values + count};
    }
};

// By the name of its kind; null for one that there is not. Throws what `take` throws.
std::unique_ptr<const Floor> make_floor(const std::string& kind, const FloorGrid& grid, const TakeFloor& take);

}  // namespace enma
