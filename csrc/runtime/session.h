// Members of one trajectory: encoded observations, latent frames, and what the decoder remembers.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "core/cpu/frame_session.h"
#include "runtime/known.h"
#include "runtime/model.h"
#include "runtime/tensor.h"
#include "runtime/view.h"

namespace enma {

struct Log {
    enma_log_function function = nullptr;
    void* user = nullptr;

    void operator()(int level, const std::string& message) const {
        if (function != nullptr) function(user, level, message.c_str());
    }
};

struct SessionSettings {
    std::uint64_t seed, trajectory;
    std::int64_t first_member, num_members, num_frames;
    int threads, shifts;
    float temperature;
    Isa isa;
};

// Observed frames, on the grid or at scattered points.
struct Frames {
    std::int64_t count = 0;
    std::vector<float> values;            // [count, *grid, c], or [rows, c]
    std::vector<float> points = {};       // [rows, d], or [P, d] that all frames share; none: on the grid
    std::vector<std::int64_t> rows = {};  // points of each frame, unless on the grid
    bool shared = false;
    bool of_groups = false;           // values are those of each group
    std::vector<double> errors = {};  // of values at scattered points, one for each channel; none: no error
};

// Members that see the field in one way, or begin from the same drawn field, are a group.
struct Groups {
    std::vector<View> views;
    std::vector<int> used;   // views that some member takes
    std::vector<int> group;  // of each member, its place among these
};

// Where in its trajectory a session is, and the latents that decide the rest: all that a saved session holds.
struct Observed {
    std::int64_t frames = 0;
    // [T, G, N C] of the history and of another trajectory, for each shift that some member takes.
    std::vector<float> history, context;
    // What a model is told of these two.
    Told told, context_told;
    // [T, members, N C]
    std::vector<float> made;
    std::int64_t done = 0;  // frames given out
    // How many of these each member has; GOES_ON for a member that was not stopped. None: all go on.
    std::vector<std::int64_t> kept;
};
constexpr std::int64_t GOES_ON = -1;

// Observations come in by observed.cpp, session.cpp begins with them, and frames go out by forecast.cpp.
class Session {
   public:
    // Throws Error.
    Session(std::shared_ptr<const Model> model, const SessionSettings& settings, const Log& log);

    // A known input of what is observed next, and of its context; either may be null, not both.
    void known(const char* name, const DLTensor* values, const DLTensor* context_values);
    // Either may be null, not both.
    void observe(const DLTensor* history, const DLTensor* context);
    void observe_points(const enma_observations* history, const enma_observations* context);
    void step(const DLTensor* frame);
    void forecast(const DLTensor* frames);
    void latents(const DLTensor* out) const;
    // Ends the members whose byte is not 0.
    void stop(const std::uint8_t* members, std::size_t count);
    std::int64_t num_latents() const;
    std::int64_t done() const { return ready() ? observed_.done : 0; }
    std::int64_t total() const { return ready() ? total_ - observed_.frames : 0; }

    // saved.cpp
    std::size_t saved_bytes() const;
    void save(char* out) const;
    void restore(const char* bytes, std::size_t size);

   private:
    struct SavedHeader;

    bool ready() const { return sampling_ != nullptr; }
    void check_ready() const;
    // Floats of a latent frame and of a frame.
    std::int64_t latent_size() const {
        return std::int64_t{model_->config().num_tokens()} * model_->config().token_channels();
    }
    std::int64_t frame_size() const {
        return std::int64_t{model_->config().points()} * model_->config().codec.field_channels;
    }
    std::int64_t num_groups() const { return static_cast<std::int64_t>(groups_.used.size()); }
    // Of members k by k modulo `count`, a multiple of the number of shifts.
    Groups groups_of(int count) const;
    // Runs body() with so many groups of members; what fails leaves the session with those that it had.
    template <class Body>
    void in_groups(int count, const Body& body);
    // Fields that are drawn where observations are scattered: a multiple of the number of shifts.
    int num_drawn() const;
    std::int64_t num_history() const;
    // Latent frames that each member reads for itself before those that the sampler makes: a frame 0 that was drawn.
    std::int64_t num_read(const Observed& observed) const {
        return observed.frames == 0 && model_->dynamics().draws_fields() ? 1 : 0;
    }
    // Each member becomes a group of its own.
    void separate();
    // Latents [members, N C] of a field that is drawn for each member, like the first frame of the context if it is known.
    std::vector<float> first_latents(const float* first);

    SavedHeader header() const;
    // What a verified buffer of these groups holds after its header.
    void restore_latents(const SavedHeader& header, const char* bytes, std::size_t size);
    // body(item, thread) for each of `items`, shared out among the threads.
    template <class Body>
    void share_out(std::int64_t items, const Body& body);
    char* work(int thread) const { return work_.data() + work_each_ * thread; }
    Frames frames_on_grid(const DLTensor* tensor, const char* name) const;
    Frames frames_at_points(const enma_observations& given, const char* name) const;
    void observe(std::optional<Frames> history, std::optional<Frames> context);
    std::vector<float> features(const Frames& frames, std::int64_t count);
    // Fields [G, frames, frame] that fit observations at scattered points, in units of the field.
    std::vector<float> drawn(const Frames& frames, std::uint32_t step) const;
    // `step` is the mask step of the noise of what is drawn.
    std::vector<float> encode(Frames frames, std::int64_t latents, std::uint32_t step);
    // Of a trajectory of which so many frames are observed. Throws Error if none is left to forecast.
    std::int64_t total_frames(std::int64_t observed) const;
    // Frames in all, latent frames in all, of the context, and that members share and have of their own.
    struct Plan {
        std::int64_t total, total_latents, context, shared, own;
    };
    // Throws Error if that is none.
    Plan plan(const Observed& observed) const;
    // Takes what was observed, reads it and what was made, and is ready for the next frame.
    void begin(Observed observed);
    void read_all(Observed observed, const Plan& planned);
    DecoderSettings deciding() const;
    // Decodes the next latent frame, [members, N C]; its frames are pending.
    void decode(const float* latents);
    void decode_row(const float* latents, StreamState& state, char* work, Sink sink, void* to) const;
    // Bytes of work space of a row that is decoded.
    std::size_t decoder_bytes() const;
    void advance();
    const float* next_frame();
    bool has(std::int64_t member, std::int64_t frame) const;
    // Latent frames that were made until so many frames were given out.
    std::int64_t made_until(std::int64_t frames) const;
    // Goes on without members that had stopped when so many latent frames were made.
    void drop_stopped(std::int64_t made);

    std::shared_ptr<const Model> model_;
    SessionSettings settings_;
    Log log_;
    std::uint32_t seed_;
    Groups groups_;
    KnownInputs known_, context_known_;

    Observed observed_;
    std::int64_t total_ = 0, total_latents_ = 0;
    std::unique_ptr<FrameSession> sampling_;

    std::vector<int> active_;          // members that go on
    std::vector<StreamState> states_;  // of each member
    std::int64_t decoded_ = 0;         // latent frames
    std::vector<float> pending_;       // [time factor, members, frame]
    std::int64_t pending_first_ = 0;   // number of the first of them in the trajectory
    std::int64_t pending_count_ = 0;
    Buffer work_;
    std::size_t work_each_ = 0;
};

template <class Body>
void Session::in_groups(int count, const Body& body) {
    Groups before = groups_of(count);
    std::swap(before, groups_);
    try {
        body();
    } catch (...) {
        groups_ = std::move(before);
        throw;
    }
}

template <class Body>
void Session::share_out(std::int64_t items, const Body& body) {
    if (items == 0) return;
    std::atomic<std::int64_t> next{0};
    parallel(static_cast<int>(std::min<std::int64_t>(settings_.threads, items)), [&](int thread, int) {
        for (std::int64_t item = next++; item < items; item = next++) body(item, thread);
    });
}

}  // namespace enma
