// Context `physics`, of field models: its config and the engine. enma_fast/models/contexts/physics.py
#include <algorithm>

#include "core/cpu/field_model.h"
#include "runtime/checkpoint.h"
#include "runtime/config.h"
#include "runtime/engine.h"

namespace enma {

namespace {

// So that an int counts all sizes.
constexpr std::int64_t MOST_VALUES = 1 << 26, MOST_CHANNELS = 1 << 16;

void read(Fields& fields, ContextConfig& out) {
    out.layers = 2;
    out.width = 32;
    fields.read("patch", out.patch);
    fields.read("floor", out.floor);
    fields.read("block", out.block, 1, 64);
    fields.read("width", out.width, 1, 4096);
    fields.read("layers", out.layers, 0, 256);
    fields.read("hidden", out.hidden, 1, 4096);
}

FieldModelShape shape_of(const ModelConfig& config, const FieldConfig& step) {
    const CodecConfig& codec = config.codec;
    const ContextConfig& context = config.context;
    FieldModelShape out{step, {context.floor, context.block, context.width, context.layers, context.hidden}, {}, 0, {}};
    for (int axis = 0; axis < codec.dims(); ++axis) {
        const auto points = static_cast<int>(codec.grid[axis]);
        out.grid.axes.push_back({points, codec.periodic[axis] ? GridEdge::periodic : GridEdge::wall});
        out.grid.spacings.push_back(codec.lengths[axis] / (codec.periodic[axis] ? points : points - 1));
    }
    out.grid.channels = codec.field_channels;
    out.block = codec.space_factor;
    for (const KnownInput& input : config.known) out.told.in_time.push_back(input.in_time);
    out.told.masked = codec.masked;
    return out;
}

class FieldEngine : public Engine {
   public:
    // `initial` may be empty.
    FieldEngine(const FieldModelShape& shape, const TakeFloor& take, const MakeDecoder& initial)
        : model_(std::make_shared<const FieldModel>(shape, take)),
          initial_(initial ? initial({take.take, "dynamics.initial.", NumberFormat::fp32, 0.0f}) : nullptr) {}
    std::unique_ptr<FrameSession> session(const SamplerSettings& settings) const override {
        return std::make_unique<FieldSession>(model_, settings);
    }
    NumberFormat format() const override { return NumberFormat::fp32; }
    bool draws_fields() const override { return initial_ && initial_->draws_fields(); }
    std::size_t bytes() const override { return model_->bytes(); }

   private:
    std::shared_ptr<const FieldModel> model_;
    std::unique_ptr<const Decoder> initial_;
};

std::unique_ptr<const Engine> engine(const ModelConfig& config, Tensors& tensors, NumberFormat format) {
    const TakeFloor take{
        [&](const std::string& name, const std::vector<std::int64_t>& shape) { return tensors.take(name, shape); },
        [&](const std::string& name, const std::vector<std::int64_t>& shape) {
            return tensors.take_wide(name, shape);
        }};
    const std::unique_ptr<const Decoder> step = config.step({take.take, "", format, 0.0f});
    const FieldConfig* const own = step->field_config();
    if (own == nullptr) fail(ENMA_UNSUPPORTED, config.name, ": context 'physics' needs a step of kind 'field'");
    if (is_half(format)) fail(ENMA_UNSUPPORTED, config.name, ": field models are computed in fp32; ask for that");
    if (config.codec.time_factor != 1 || config.patch() != 1) {
        fail(ENMA_CHECKPOINT, config.name, ": a field model reads single frames, and tokens of one place");
    }
    const std::int64_t channels = config.codec.field_channels, block = std::max(own->block, config.context.block);
    const std::int64_t of_block = config.codec.dims() == 2 ? block * block : block;
    if (channels * config.points() > MOST_VALUES || channels * of_block > MOST_CHANNELS) {
        fail(ENMA_UNSUPPORTED, config.name, ": more than ", MOST_VALUES, " values of a frame, or ", MOST_CHANNELS,
             " of a block");
    }
    return std::make_unique<const FieldEngine>(shape_of(config, *own), take, config.initial);
}

}  // namespace

const ContextKind physics{"physics", read, engine, true};

}  // namespace enma
