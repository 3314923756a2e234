// Field models: frames decided in field space, a floor's forecast and what the network adds to it.
// enma_fast/models/decoders/field.py
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "core/cpu/field_network.h"
#include "core/cpu/floor.h"
#include "core/cpu/frame_session.h"
#include "core/cpu/physics_encoder.h"

namespace enma {

struct FieldModelShape {
    FieldConfig step;
    PhysicsShape context;
    FloorGrid grid;
    int block;  // points of a token along each axis
    ToldShape told;
};

// Residuals that members draw from.
constexpr int RESIDUAL_PATTERNS = 8;

// What is told of one of several trajectories.
struct ToldOf {
    const Told& all;
    std::int64_t trajectory;
};

// How much of the correction counts for a trajectory, and what multiplies the draws of its members.
struct Reliance {
    float share, spread;
};

// Packed weights; immutable, so that sessions can share it.
class FieldModel {
   public:
    // Throws Error: ENMA_UNSUPPORTED for a floor that there is not here; and what `take` throws.
    FieldModel(const FieldModelShape& shape, const TakeFloor& take);

    const FieldModelShape& shape() const { return shape_; }
    const Floor& floor() const { return *floor_; }
    const FieldNetwork& network() const { return network_; }
    const PhysicsEncoder& encoder() const { return encoder_; }
    const FieldScales& scales() const { return scales_; }
    int values() const { return shape_.grid.values(); }
    int inputs() const { return shape_.grid.channels * (PAST_FRAMES + floor_->views()) + shape_.told.inputs(); }
    std::size_t bytes() const { return network_.bytes() + encoder_.bytes() + member_.size() * sizeof(float); }
    bool draws_residuals() const { return !residuals_.empty(); }
    // Place of each value of a field among those of its tokens.
    const std::vector<int>& places() const { return places_; }

    // Inputs of the network [points, inputs] from past frames, views, and what is told of the frame that it makes.
    void inputs(Past past, const float* views, const ToldOf& told, std::int64_t frame, float* out) const;
    // By forecasts of frames that are known. `starts` are the first frames of the windows, in what is told.
    Reliance reliance(const Windows& windows, const std::vector<std::int64_t>& starts, const ToldOf& told,
                      const Inferred* inferred, const float* numbers, Isa isa) const;
    // The condition of a member, by its standard normals.
    void shift(const float* normals, float* condition) const;
    // Added to a frame, by standard normals.
    void add_residuals(const float* normals, float* frame) const;

   private:
    FieldModelShape shape_;
    std::unique_ptr<const Floor> floor_;
    FieldScales scales_;
    PhysicsEncoder encoder_;
    FieldNetwork network_;
    std::vector<float> usual_, spread_, misfit_, member_, residuals_;
    float size_;
    std::vector<int> places_;
};

// One chunk of an ensemble of a field model; members of a trajectory share what was inferred.
class FieldSession : public FrameSession {
   public:
    FieldSession(std::shared_ptr<const FieldModel> model, const SamplerSettings& settings);

    void reset() override;
    void start_segment(int segment) override;
    void read(const float* tokens) override;
    void tell(Told told) override;
    void reopen(std::int64_t count, std::int64_t first_frame) override;
    void begin(const std::uint32_t* seeds, const std::uint32_t* members, const int* groups) override;
    void frame(float* out, bool last) override;
    void follow(const float* tokens) override;
    void keep(const int* rows, int count) override;

    const SamplerSettings& settings() const override { return settings_; }
    std::int64_t most_rows() const override { return static_cast<std::int64_t>(frames_.size()) / model_->values(); }
    int tokens() const override { return model_->values() / channels(); }
    int channels() const override;
    SamplerPlan plan() const override;
    int frames_read() const override { return frames_read_; }
    int frames_made() const override { return frames_made_; }
    bool begun() const override { return begun_; }

   private:
    // What the members of a trajectory share.
    struct Group {
        Inference inferred;
        std::vector<float> numbers, low, high, past;  // past frames [3, values], those before the first known one too
        Reliance reliance;
    };
    struct Row {
        std::uint32_t seed, number;
        int group;
        Inference inferred;
        std::vector<float> condition, past;
    };
    struct Work;

    Group group_of(int g) const;
    Row row_of(std::uint32_t seed, std::uint32_t number, int group) const;
    // The next frame of members [begin, end), to fields [.., values].
    void decide(std::int64_t begin, std::int64_t end, char* memory, float* to) const;
    void remember(Row& member, const float* frame) const;
    void normals(std::uint32_t seed, std::uint32_t number, int frame, int step, int count, float scale,
                 float* out) const;
    // Fields [rows, values] of tokens, and back.
    void fields_of(const float* tokens, std::int64_t rows, float* out) const;

    std::shared_ptr<const FieldModel> model_;
    SamplerSettings settings_;
    // [segment][group]: frames
    std::vector<std::vector<std::vector<float>>> segments_;
    std::vector<Told> told_;  // of each segment
    std::vector<Group> groups_;
    std::vector<Row> members_;
    std::vector<float> frames_;  // fields of the next frame of all members
    int frame_ = 0, frames_read_ = 0, frames_made_ = 0;
    bool begun_ = false;
    std::size_t work_each_;
    Buffer work_;
};

}  // namespace enma
