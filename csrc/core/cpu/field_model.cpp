#include "core/cpu/field_model.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <exception>

#include "core/philox.h"

namespace enma {

namespace {

// What normals are drawn for: places and residuals of a frame; and, of frame 0, coefficients and numbers of a member.
enum Purpose { PLACES = 0, COEFFICIENTS = 1, MEMBER = 2, RESIDUALS = 3 };
// Frames stay within the range of the training data and the known frames, prolonged by this share of it.
constexpr float MARGIN = 0.5f;
constexpr double TINY = 1e-20;
constexpr float LEAST_USUAL = 1e-12f;
// How much more than usual, or less, the misfit of a trajectory counts.
constexpr float MISFIT = 8.0f;

std::unique_ptr<const Floor> floor_of(const FieldModelShape& shape, const TakeFloor& take) {
    const std::string prefix = "dynamics.context.floor.";
    const TakeFloor own{
        [&](const std::string& name, const auto& sizes) { return take.take(prefix + name, sizes); },
        [&](const std::string& name, const auto& sizes) { return take.take_wide(prefix + name, sizes); }};
    std::unique_ptr<const Floor> made = make_floor(shape.context.floor, shape.grid, own);
    if (!made) fail(ENMA_UNSUPPORTED, "context.floor is '", shape.context.floor.substr(0, 40), "'");
    return made;
}

}  // namespace

FieldModel::FieldModel(const FieldModelShape& shape, const TakeFloor& take)
    : shape_(shape),
      floor_(floor_of(shape, take)),
      scales_(take.take, "dynamics.step.model.scales.", shape.grid.channels, floor_->views()),
      encoder_(shape.context, shape.grid, floor_->features() + shape.told.numbers(), take.take,
               "dynamics.context.encoder."),
      network_({shape.step, shape.grid.axes, inputs(), shape.grid.channels, PHYSICS_NUMBERS}, take.take,
               "dynamics.step.model.network."),
      usual_(take.values("dynamics.step.model.usual", {2})),
      spread_(take.values("dynamics.step.model.spread", {2})),
      misfit_(take.values("dynamics.step.model.misfit", {2})),
      size_(*take.take("dynamics.step.model.size", {})) {
    if (shape.step.member > 0) {
        member_ = take.values("dynamics.step.model.member.weight", {PHYSICS_NUMBERS, shape.step.member});
    }
    std::vector<std::int64_t> sizes{RESIDUAL_PATTERNS};
    for (const GridAxis& axis : shape.grid.axes) sizes.push_back(axis.points);
    sizes.push_back(shape.grid.channels);
    residuals_ = take.values("dynamics.step.model.residuals", sizes);
    if (std::all_of(residuals_.begin(), residuals_.end(), [](float x) { return x == 0; })) residuals_.clear();
    // Channels of a token: (field channel, point of the block).
    const GridBlocks tokens(shape.grid.axes, shape.block);
    const int c = shape.grid.channels, of_block = tokens.points_of_block();
    places_.resize(values());
    for (int token = 0; token < tokens.places(); ++token) {
        for (int part = 0; part < of_block; ++part) {
            for (int i = 0; i < c; ++i) {
                places_[tokens.point(token, part) * c + i] = (token * c + i) * of_block + part;
            }
        }
    }
}

void FieldModel::inputs(Past past, const float* views, const ToldOf& told, std::int64_t frame, float* out) const {
    const int c = shape_.grid.channels, F = floor_->views(), row = inputs();
    scales_.inputs(past, shape_.grid.points(), row, out);
    told.all.inputs(shape_.told, told.trajectory, frame, shape_.grid.points(), row, out + c * (PAST_FRAMES + F));
    const float* last = past[PAST_FRAMES - 1];
    out += PAST_FRAMES * c;
    for (int point = 0; point < shape_.grid.points(); ++point, out += row, views += c * F, last += c) {
        for (int i = 0; i < c; ++i) {
            for (int f = 0; f < F; ++f) out[i * F + f] = (views[i * F + f] - last[i]) / scales_.view[i * F + f];
        }
    }
}

Reliance FieldModel::reliance(const Windows& windows, const std::vector<std::int64_t>& starts, const ToldOf& told,
                              const Inferred* inferred, const float* numbers, Isa isa) const {
    const std::vector<float>& mask = told.all.mask;
    const int size = values(), c = shape_.grid.channels, F = floor_->views();
    const Buffer space(network_.work_bytes() + floor_->work_bytes());
    std::vector<float> views(static_cast<std::size_t>(size) * F), made(size),
        x(static_cast<std::size_t>(shape_.grid.points()) * inputs());
    double product = 0.0, square = 0.0, total = 0.0, count = 0.0;
    const auto add = [&](Past past, const float* truth, std::int64_t frame) {
        floor_->step(past, inferred, isa, space.data() + network_.work_bytes(), views.data());
        inputs(past, views.data(), told, frame, x.data());
        network_.run({x.data(), numbers, nullptr, made.data()}, 0, 1, space.data(), isa);
        for (int i = 0; i < size; ++i) {
            const double added = made[i] * scales_.error[i % c] * (mask.empty() ? 1.0f : mask[i]);
            const double off = truth[i] - views[static_cast<std::ptrdiff_t>(i) * F];
            product += added * off;
            square += added * added;
            total += off * off;
        }
        count += size;
    };
    for (int w = 0; w < windows.count; ++w) {
        const float* const first = windows.values + static_cast<std::ptrdiff_t>(w) * PAST_FRAMES * size;
        add({first, first, first + size}, first + 2 * size, starts[w] + 2);
        // Floors whose step reads one frame.
        if (floor_->reads() == 1) add({first, first, first}, first + size, starts[w] + 1);
    }
    const double known = std::clamp(product / (square + TINY), 0.0, 1.0);
    const int place = windows.own ? 0 : 1;
    const double usual = std::max(usual_[place], LEAST_USUAL);
    const float share = size_ * static_cast<float>(std::min(known / usual, 1.0));
    // Of the squares of what is lacking with this share of the corrections.
    const double mean = std::max(total - 2 * share * product + share * share * square, 0.0) / count;
    const float misfit = static_cast<float>(std::sqrt(mean)) / misfit_[place];
    return {share, spread_[place] * std::sqrt(std::clamp(misfit, 1 / MISFIT, MISFIT))};
}

void FieldModel::shift(const float* normals, float* condition) const {
    const int count = shape_.step.member;
    for (int z = 0; z < PHYSICS_NUMBERS; ++z) {
        for (int m = 0; m < count; ++m) condition[z] += member_[z * count + m] * normals[m];
    }
}

void FieldModel::add_residuals(const float* normals, float* frame) const {
    for (int k = 0; k < RESIDUAL_PATTERNS; ++k) {
        const float* const residual = residuals_.data() + static_cast<std::ptrdiff_t>(k) * values();
        for (int i = 0; i < values(); ++i) frame[i] += normals[k] * residual[i];
    }
}

// Of one thread.
struct FieldSession::Work {
    Work(const FieldModel& model, Allocator& memory) {
        const std::size_t rows = model.network().together(), values = model.values();
        network = memory.take<char>(model.network().work_bytes());
        floor = memory.take<char>(model.floor().work_bytes());
        views = memory.take<float>(rows * values * model.floor().views());
        x = memory.take<float>(rows * model.shape().grid.points() * model.inputs());
        noise = memory.take<float>(rows * model.network().places() * model.shape().step.noise);
        condition = memory.take<float>(rows * PHYSICS_NUMBERS);
        made = memory.take<float>(rows * values);
    }
    char *network, *floor;
    float *views, *x, *noise, *condition, *made;
};

FieldSession::FieldSession(std::shared_ptr<const FieldModel> model, const SamplerSettings& settings)
    : model_(std::move(model)), settings_(settings) {
    Allocator count(nullptr);
    Work(*model_, count);
    work_each_ = pages(count.used());
    work_ = Buffer(work_each_ * settings.threads);
    frames_.resize(static_cast<std::size_t>(settings.rows) * model_->values());
}

int FieldSession::channels() const {
    return model_->shape().grid.channels *
           power(model_->shape().block, static_cast<int>(model_->shape().grid.axes.size()));
}

SamplerPlan FieldSession::plan() const {
    const std::size_t rows = settings_.rows + settings_.groups;
    return {model_->bytes(), 0, (frames_.size() + rows * PAST_FRAMES * model_->values()) * sizeof(float), work_.size()};
}

void FieldSession::reset() {
    segments_.clear();
    told_.clear();
    groups_.clear();
    members_.clear();
    frames_read_ = frames_made_ = 0;
    begun_ = false;
}

void FieldSession::start_segment(int) {
    segments_.emplace_back(settings_.groups);
    told_.emplace_back();
    ++frames_read_;
}

void FieldSession::fields_of(const float* tokens, std::int64_t rows, float* out) const {
    const std::vector<int>& places = model_->places();
    for (std::int64_t row = 0; row < rows; ++row, tokens += places.size()) {
        for (const int place : places) *out++ = tokens[place];
    }
}

void FieldSession::read(const float* tokens) {
    const std::size_t size = model_->values();
    for (std::vector<float>& frames : segments_.back()) {
        frames.resize(frames.size() + size);
        fields_of(tokens, 1, frames.data() + frames.size() - size);
        tokens += size;
    }
    ++frames_read_;
}

void FieldSession::tell(Told told) { told_.back() = std::move(told); }

FieldSession::Group FieldSession::group_of(int g) const {
    const std::int64_t size = model_->values(), c = model_->shape().grid.channels;
    const std::vector<float>& known = segments_.back()[g];
    const std::int64_t count = static_cast<std::int64_t>(known.size()) / size;
    Group out{};
    const bool own = count >= PAST_FRAMES || segments_.size() == 1;
    const std::vector<float>& source = own ? known : segments_.front()[g];
    const auto frames = static_cast<std::int64_t>(source.size()) / size;
    const std::vector<float> values = windows_of(source.data(), frames, size);
    const std::vector<std::int64_t> starts = window_starts(frames);
    const Windows windows{values.data(), static_cast<int>(starts.size()), own};
    const ToldOf own_told{told_.back(), g}, source_told{own ? told_.back() : told_.front(), g};
    const Floor& floor = model_->floor();
    out.inferred = floor.infer(windows, settings_.isa);
    std::vector<float> told(floor.features());
    floor.tell(out.inferred.get(), windows, told.data());
    const std::vector<float> numbers = own_told.all.numbers(model_->shape().told, g);
    told.insert(told.end(), numbers.begin(), numbers.end());
    out.numbers = model_->encoder().numbers(windows, told, settings_.isa);
    out.reliance =
        model_->reliance(windows, starts, source_told, out.inferred.get(), out.numbers.data(), settings_.isa);
    // The last frames; those before the first known one by the floor.
    const std::int64_t missing = std::max<std::int64_t>(0, PAST_FRAMES - count);
    out.past.resize(PAST_FRAMES * size);
    for (std::int64_t i = 0; i < missing; ++i) {
        floor.before(known.data(), out.inferred.get(), settings_.isa, &out.past[i * size]);
    }
    std::copy(known.end() - (PAST_FRAMES - missing) * size, known.end(), out.past.begin() + missing * size);
    out.low = model_->scales().low;
    out.high = model_->scales().high;
    for (std::int64_t i = 0; i < PAST_FRAMES * size; ++i) {
        out.low[i % c] = std::min(out.low[i % c], out.past[i]);
        out.high[i % c] = std::max(out.high[i % c], out.past[i]);
    }
    for (std::int64_t i = 0; i < c; ++i) {
        const float margin = MARGIN * (out.high[i] - out.low[i]);
        out.low[i] -= margin;
        out.high[i] += margin;
    }
    return out;
}

void FieldSession::normals(std::uint32_t seed, std::uint32_t number, int frame, int step, int count, float scale,
                           float* out) const {
    philox_token_normals({0, 0, static_cast<std::uint32_t>(step), static_cast<std::uint32_t>(frame)}, seed, number,
                         count, out);
    for (int i = 0; i < count; ++i) out[i] *= scale;
}

FieldSession::Row FieldSession::row_of(std::uint32_t seed, std::uint32_t number, int g) const {
    const Group& group = groups_[g];
    const Floor& floor = model_->floor();
    Row out{seed, number, g, group.inferred, group.numbers, group.past};
    const float scale = settings_.temperature * group.reliance.spread;
    std::vector<float> drawn(std::max(floor.draws(), model_->shape().step.member));
    if (scale == 0.0f || drawn.empty()) return out;
    if (floor.draws() > 0) {
        // A correction that counts takes the floor's error away, and its uncertainty with it.
        normals(seed, number, 0, COEFFICIENTS, floor.draws(), scale, drawn.data());
        for (int i = 0; i < floor.draws(); ++i) drawn[i] *= 1 - group.reliance.share;
        out.inferred = floor.draw(group.inferred, drawn.data());
    }
    normals(seed, number, 0, MEMBER, model_->shape().step.member, scale, drawn.data());
    model_->shift(drawn.data(), out.condition.data());
    return out;
}

void FieldSession::reopen(std::int64_t count, std::int64_t first_frame) {
    settings_.rows = count;
    settings_.first_frame = first_frame;
    begun_ = false;
}

void FieldSession::begin(const std::uint32_t* seeds, const std::uint32_t* members, const int* groups) {
    if (segments_.back().front().empty()) {
        fail(ENMA_INVALID_ARGUMENT,
             "history: frames are None; a field model continues a trajectory of which one frame is known");
    }
    // Also of segments of which nothing was told.
    const FieldModelShape& shape = model_->shape();
    for (const Told& told : told_) told.check(shape.told, settings_.groups, shape.grid.points(), shape.grid.channels);
    groups_.assign(settings_.groups, {});
    members_.clear();
    // What is inferred allocates, and may throw.
    std::atomic<int> next{0};
    std::vector<std::exception_ptr> problems(settings_.groups);
    parallel(static_cast<int>(std::min<std::int64_t>(settings_.threads, settings_.groups)), [&](int, int) {
        for (int g = next++; g < settings_.groups; g = next++) {
            try {
                groups_[g] = group_of(g);
            } catch (...) {
                problems[g] = std::current_exception();
            }
        }
    });
    for (const std::exception_ptr& problem : problems) {
        if (problem) std::rethrow_exception(problem);
    }
    for (std::int64_t b = 0; b < settings_.rows; ++b) members_.push_back(row_of(seeds[b], members[b], groups[b]));
    frame_ = static_cast<int>(settings_.first_frame);
    frames_made_ = 0;
    begun_ = true;
}

void FieldSession::decide(std::int64_t begin, std::int64_t end, char* memory, float* to) const {
    const FieldModel& model = *model_;
    const FieldNetwork& network = model.network();
    const std::ptrdiff_t size = model.values(), points = model.shape().grid.points(), n = model.shape().step.noise;
    const int c = model.shape().grid.channels, F = model.floor().views();
    const Told& told = told_.back();
    Allocator taken(memory);
    const Work work(model, taken);
    const bool corrected = std::any_of(members_.begin() + begin, members_.begin() + end,
                                       [&](const Row& member) { return groups_[member.group].reliance.share != 0.0f; });
    for (std::int64_t b = begin; b < end; ++b) {
        const Row& member = members_[b];
        const Group& group = groups_[member.group];
        const float *const first = member.past.data(), spread = settings_.temperature * group.reliance.spread;
        const float* const past[PAST_FRAMES] = {first, first + size, first + 2 * size};
        const std::ptrdiff_t i = b - begin;
        model.floor().step(past, member.inferred.get(), settings_.isa, work.floor, work.views + i * size * F);
        if (!corrected) continue;
        model.inputs(past, work.views + i * size * F, {told, member.group}, frame_,
                     work.x + i * points * model.inputs());
        std::copy(member.condition.begin(), member.condition.end(), work.condition + i * PHYSICS_NUMBERS);
        float* out = work.noise + i * network.places() * n;
        if (spread == 0.0f) std::fill_n(out, network.places() * n, 0.0f);
        for (int place = 0; spread != 0.0f && place < network.places(); ++place, out += n) {
            philox_token_normals({0, static_cast<std::uint32_t>(place), PLACES, static_cast<std::uint32_t>(frame_)},
                                 member.seed, member.number, static_cast<int>(n), out);
            for (std::ptrdiff_t j = 0; j < n; ++j) out[j] *= spread;
        }
    }
    if (corrected) {
        network.run({work.x, work.condition, work.noise, work.made}, 0, end - begin, work.network, settings_.isa);
    }
    for (std::int64_t b = begin; b < end; ++b, to += size) {
        const Group& group = groups_[members_[b].group];
        const float *const views = work.views + (b - begin) * size * F, *const made = work.made + (b - begin) * size;
        const float* const error = model.scales().error.data();
        for (std::ptrdiff_t first = 0; first < size; first += c) {
            for (int i = 0; i < c; ++i) {
                float value = views[(first + i) * F];
                if (group.reliance.share != 0.0f && (told.mask.empty() || told.mask[first + i] != 0.0f)) {
                    value += made[first + i] * error[i] * group.reliance.share;
                }
                to[first + i] = std::clamp(value, group.low[i], group.high[i]);
            }
        }
        if (!model.draws_residuals() || settings_.temperature == 0.0f) continue;
        // Two members each draw opposite residuals, so that these leave the mean where the floor has it.
        const Row& member = members_[b];
        const float scale = member.number % 2 ? -settings_.temperature : settings_.temperature;
        float drawn[RESIDUAL_PATTERNS];
        normals(member.seed, member.number / 2, frame_, RESIDUALS, RESIDUAL_PATTERNS, scale, drawn);
        model.add_residuals(drawn, to);
    }
}

void FieldSession::remember(Row& member, const float* frame) const {
    const std::ptrdiff_t size = model_->values();
    std::copy(member.past.begin() + size, member.past.end(), member.past.begin());
    std::copy_n(frame, size, member.past.end() - size);
}

void FieldSession::frame(float* out, bool last) {
    const std::int64_t rows = settings_.rows, each = model_->network().together(), items = (rows + each - 1) / each;
    const std::ptrdiff_t size = model_->values();
    const std::vector<int>& places = model_->places();
    std::atomic<std::int64_t> next{0};
    parallel(static_cast<int>(std::min<std::int64_t>(settings_.threads, items)), [&](int thread, int) {
        for (std::int64_t item = next++; item < items; item = next++) {
            const std::int64_t begin = item * each, end = std::min(begin + each, rows);
            decide(begin, end, work_.data() + thread * work_each_, frames_.data() + begin * size);
            for (std::int64_t b = begin; b < end; ++b) {
                const float* const frame = frames_.data() + b * size;
                for (std::ptrdiff_t i = 0; i < size; ++i) out[b * size + places[i]] = frame[i];
                remember(members_[b], frame);
            }
        }
    });
    begun_ = !last;
    if (last) return;
    ++frame_;
    ++frames_made_;
}

void FieldSession::follow(const float* tokens) {
    fields_of(tokens, settings_.rows, frames_.data());
    for (std::int64_t b = 0; b < settings_.rows; ++b) remember(members_[b], frames_.data() + b * model_->values());
    ++frame_;
    ++frames_made_;
}

void FieldSession::keep(const int* rows, int count) {
    for (int i = 0; i < count; ++i) {
        if (rows[i] != i) members_[i] = std::move(members_[rows[i]]);
    }
    members_.resize(count);
    settings_.rows = count;
}

}  // namespace enma
