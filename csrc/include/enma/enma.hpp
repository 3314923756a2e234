// libenma for C++17: models and sessions that close themselves, and failures as exceptions. Header only; the library
// itself never throws.
//
//     enma::Model model("combined-fast");
//     enma::Session session(model, {.num_members = 64, .threads = 4});   // designated in C++20, by name before
//     session.observe(history);                                          // std::vector<float> or <double>, or a view
//     while (session.done() < session.total()) session.step(frame);
//
// Shapes are written [members, frames, *grid, channels]; the grid of a plane is two axes.
// A failure throws enma::Error with the status of the function of enma.h that failed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "enma/enma.h"

namespace enma {
// Names of their own in the binary: a program may be linked with the objects of the library, whose classes are called
// the same.
inline namespace api {

// A status other than ENMA_OK, and its message: what().
class Error : public std::runtime_error {
   public:
    // A failure.
    //
    //   status: one of enma.h
    //   message: one line of text
    //
    // Errors: none.
    Error(enma_status status, const char* message) : std::runtime_error(message), status_(status) {}

    // The status of the call that failed.
    //
    // Errors: none.
    enma_status status() const noexcept { return status_; }

   private:
    enma_status status_;
};

namespace detail {

inline void check(enma_status status) {
    if (status != ENMA_OK) throw Error(status, enma_last_error());
}

}  // namespace detail

// Numbers of entries along the axes of an array, or strides in entries.
using Sizes = std::vector<std::int64_t>;

// An array of the caller, of float or double. It has to outlive the call that it is passed to.
template <class T>
class View {
    static_assert(std::is_same_v<std::remove_const_t<T>, float> || std::is_same_v<std::remove_const_t<T>, double>,
                  "arrays are of float or double");

   public:
    // A view of an array.
    //
    //   data: its first value
    //   shape: entries along each axis
    //   strides: values from one entry to the next, along each axis; empty: row-major
    //
    // Errors: ENMA_INVALID_ARGUMENT for another number of strides than of sizes.
    View(T* data, Sizes shape, Sizes strides = {})
        : data_(data), shape_(std::move(shape)), strides_(std::move(strides)) {
        if (!strides_.empty() && strides_.size() != shape_.size()) {
            throw Error(ENMA_INVALID_ARGUMENT, "a view has as many strides as sizes, or none");
        }
    }

    // The same as enma.h takes it, valid as long as the view.
    //
    // Errors: none.
    DLTensor tensor() const {
        void* data = const_cast<void*>(static_cast<const void*>(data_));
        const DLDataType type = {kDLFloat, 8 * sizeof(T), 1};
        // The library does not write shapes and strides.
        std::int64_t* strides = strides_.empty() ? nullptr : const_cast<std::int64_t*>(strides_.data());
        return {data,
                {kDLCPU, 0},
                static_cast<std::int32_t>(shape_.size()),
                type,
                const_cast<std::int64_t*>(shape_.data()),
                strides,
                0};
    }

   private:
    T* data_;
    Sizes shape_, strides_;
};

// Frames observed at scattered points. Frames share their points, or each has its own: then the rows of the frames
// follow one another, and counts has their numbers. See enma_observations.
template <class T>
struct Observations {
    View<T> points;                      // coordinates [P, dims], with counts [rows, dims]
    View<T> values;                      // [frames, P, channels], with counts [rows, channels]
    std::vector<std::int64_t> counts{};  // points of each frame; empty: frames share their points
    std::vector<double> errors{};        // standard deviations of the error of the values: none, one, or one a channel
};

// Gets messages of a model and its sessions, on the thread that calls the library. It must not call the library.
using Log = std::function<void(int level, const std::string& message)>;

// A checkpoint that was opened. Sessions keep what they need of it. Any number of threads may use it.
class Model {
   public:
    // Opens a checkpoint folder, verified against the SHA-256 of its manifest.
    //
    //   folder: path of the checkpoint
    //   log: gets messages; empty: nobody does
    //   format: of the weights while sampling, ENMA_FP32 or ENMA_BF16
    //
    // Errors: those of enma_model_open.
    explicit Model(const std::string& folder, Log log = {}, std::int32_t format = ENMA_FP32)
        : log_(std::make_shared<const Log>(std::move(log))) {
        enma_model_options options = ENMA_MODEL_OPTIONS;
        options.format = format;
        options.log = *log_ ? &Model::say : nullptr;
        options.log_user = const_cast<Log*>(log_.get());
        enma_model* handle = nullptr;
        detail::check(enma_model_open(folder.c_str(), &options, &handle));
        handle_.reset(handle);
        about_ = ENMA_MODEL_DESCRIPTION;
        detail::check(enma_model_info(handle, &about_));
    }

    // Describes the model. Its texts live as long as the model.
    //
    // Errors: none.
    const enma_model_description& about() const noexcept { return about_; }

    // Sizes of an array of frames: [before, *grid, channels].
    //
    //   before: sizes of the first axes, such as {members, frames}
    //
    // Errors: none.
    Sizes shape(Sizes before) const {
        before.insert(before.end(), about_.shape, about_.shape + about_.dims);
        before.push_back(about_.field_channels);
        return before;
    }

    // Number of values of a frame: points times channels.
    //
    // Errors: none.
    std::size_t frame_size() const noexcept { return static_cast<std::size_t>(about_.grid * about_.field_channels); }

   private:
    friend class Session;
    struct Close {
        void operator()(enma_model* handle) const noexcept { enma_model_close(handle); }
    };
    static void say(void* user, std::int32_t level, const char* message) noexcept {
        // An exception may not pass through the library.
        try {
            (*static_cast<const Log*>(user))(level, message);
        } catch (...) {
        }
    }

    std::shared_ptr<const Log> log_;
    std::unique_ptr<enma_model, Close> handle_;
    enma_model_description about_{};
};

// What a session forecasts, as enma_session_options.
struct SessionOptions {
    std::uint64_t seed = 0;         // of the noise
    std::uint64_t trajectory = 0;   // number of the trajectory, part of the key of its noise
    std::int64_t first_member = 0;  // number of the first member
    std::int64_t num_members = 1;   // sampled together; memory grows with them
    std::int64_t num_frames = 0;    // to forecast; 0: up to the length of training
    std::int32_t threads = 1;       // at most, the calling one included
    std::int32_t shifts = 0;        // places from which members see the field; 0: the model's own, 1: none
    double temperature = -1.0;      // of the noise; negative: the model's own
    std::string isa{};              // instruction set, such as "avx2"; empty: ENMA_ISA's, or this machine's best
};

// Members of one trajectory, with their memory. One thread at a time may use it.
class Session {
   public:
    // Makes a session.
    //
    //   model: may end before the session
    //   options: members, frames, threads and settings
    //
    // Errors: those of enma_session_new.
    explicit Session(const Model& model, const SessionOptions& options = {})
        : log_(model.log_),
          num_members_(options.num_members),
          frame_size_(model.frame_size()),
          frame_(model.shape({})) {
        enma_session_options given = ENMA_SESSION_OPTIONS;
        given.seed = options.seed;
        given.trajectory = options.trajectory;
        given.first_member = options.first_member;
        given.num_members = options.num_members;
        given.num_frames = options.num_frames;
        given.threads = options.threads;
        given.shifts = options.shifts;
        given.temperature = options.temperature;
        given.isa = options.isa.empty() ? nullptr : options.isa.c_str();
        enma_session* handle = nullptr;
        detail::check(enma_session_new(model.handle_.get(), &given, &handle));
        handle_.reset(handle);
    }

    // Gives a known input by name, in the units of training, for what is observed next. A parameter may be a number.
    //
    //   name: of the input in training
    //   values, value: [], [frames], [*grid] or [frames, *grid] of the trajectory
    //   context_values, context_value: the same of its context
    //
    // Errors: those of enma_session_known.
    template <class T>
    void known(const std::string& name, const View<T>& values) {
        const DLTensor given = values.tensor();
        detail::check(enma_session_known(handle_.get(), name.c_str(), &given, nullptr));
    }

    template <class T, class U>
    void known(const std::string& name, const View<T>& values, const View<U>& context_values) {
        const DLTensor given = values.tensor(), other = context_values.tensor();
        detail::check(enma_session_known(handle_.get(), name.c_str(), &given, &other));
    }

    void known(const std::string& name, double value) { known(name, View<const double>(&value, {})); }

    void known(const std::string& name, double value, double context_value) {
        known(name, View<const double>(&value, {}), View<const double>(&context_value, {}));
    }

    // Encodes and reads observed frames, and forgets what was observed before. A vector holds whole frames one after
    // the other. Frames at scattered points need a model whose description says scattered.
    //
    //   history: observed frames [frames, *grid, channels], at least 3, or 1 with a context
    //   context: frames of another trajectory of the same physics, of the same shape
    //
    // Errors: those of enma_session_observe and enma_session_observe_points. ENMA_INVALID_ARGUMENT for a vector that
    // does not hold whole frames.
    template <class T>
    void observe(const View<T>& history) {
        const DLTensor seen = history.tensor();
        detail::check(enma_session_observe(handle_.get(), &seen, nullptr));
    }

    template <class T, class U>
    void observe(const View<T>& history, const View<U>& context) {
        const DLTensor seen = history.tensor(), other = context.tensor();
        detail::check(enma_session_observe(handle_.get(), &seen, &other));
    }

    // Observes another trajectory of the same physics alone: frame 0 is drawn too.
    //
    //   context: its frames [frames, *grid, channels], best as many as in training
    //
    // Errors: those of observe.
    template <class T>
    void observe_context(const View<T>& context) {
        const DLTensor other = context.tensor();
        detail::check(enma_session_observe(handle_.get(), nullptr, &other));
    }

    template <class T>
    void observe(const Observations<T>& history) {
        observe_points(&history, static_cast<const Observations<T>*>(nullptr));
    }

    template <class T, class U>
    void observe(const Observations<T>& history, const Observations<U>& context) {
        observe_points(&history, &context);
    }

    template <class T>
    void observe_context(const Observations<T>& context) {
        observe_points(static_cast<const Observations<T>*>(nullptr), &context);
    }

    template <class T>
    void observe(const std::vector<T>& history) {
        observe(frames_of(history));
    }

    template <class T, class U>
    void observe(const std::vector<T>& history, const std::vector<U>& context) {
        observe(frames_of(history), frames_of(context));
    }

    template <class T>
    void observe_context(const std::vector<T>& context) {
        observe_context(frames_of(context));
    }

    // Forecasts the next frame of all members.
    //
    //   frame: written: [members, *grid, channels]; a vector gets the size that it needs
    //
    // Errors: those of enma_session_step.
    template <class T>
    void step(const View<T>& frame) {
        static_assert(!std::is_const_v<T>, "a frame is written");
        DLTensor out = frame.tensor();
        detail::check(enma_session_step(handle_.get(), &out));
    }

    template <class T>
    void step(std::vector<T>& frame) {
        frame.resize(static_cast<std::size_t>(num_members_) * frame_size_);
        step(View<T>(frame.data(), sizes({num_members_}, frame.size())));
    }

    // Forecasts all frames that are left.
    //
    //   frames: written: [members, total() - done(), *grid, channels]; a vector gets the size that it needs
    //
    // Errors: those of enma_session_forecast.
    template <class T>
    void forecast(const View<T>& frames) {
        static_assert(!std::is_const_v<T>, "frames are written");
        DLTensor out = frames.tensor();
        detail::check(enma_session_forecast(handle_.get(), &out));
    }

    template <class T>
    void forecast(std::vector<T>& frames) {
        const std::int64_t left = total() - done();
        frames.resize(static_cast<std::size_t>(num_members_ * left) * frame_size_);
        forecast(View<T>(frames.data(), sizes({num_members_, left}, frames.size())));
    }

    // Ends members that need no more. Their places in later frames are NaN. The others keep their bits.
    //
    //   members: one entry for each member; those that are true end
    //
    // Errors: those of enma_session_stop.
    void stop(const std::vector<bool>& members) {
        const std::vector<std::uint8_t> bytes(members.begin(), members.end());
        detail::check(enma_session_stop(handle_.get(), bytes.data(), bytes.size()));
    }

    // Number of frames that were given out.
    //
    // Errors: those of enma_session_progress.
    std::int64_t done() const { return progress().first; }

    // Number of frames of the whole forecast.
    //
    // Errors: those of enma_session_progress.
    std::int64_t total() const { return progress().second; }

    // The state of the session in bytes, for a restart file.
    //
    // Errors: those of enma_session_save.
    std::vector<char> save() const {
        std::size_t size = 0;
        detail::check(enma_session_save(handle_.get(), nullptr, 0, &size));
        std::vector<char> state(size);
        detail::check(enma_session_save(handle_.get(), state.data(), size, nullptr));
        return state;
    }

    // Continues a saved session, in one with the same model and options; threads and isa may differ.
    //
    //   state: what save gave
    //
    // Errors: those of enma_session_restore.
    void restore(const std::vector<char>& state) {
        detail::check(enma_session_restore(handle_.get(), state.data(), state.size()));
    }

   private:
    struct Free {
        void operator()(enma_session* handle) const noexcept { enma_session_free(handle); }
    };

    template <class T>
    View<const T> frames_of(const std::vector<T>& frames) const {
        return {frames.data(), sizes({static_cast<std::int64_t>(frames.size() / frame_size_)}, frames.size())};
    }

    template <class T, class U>
    void observe_points(const Observations<T>* history, const Observations<U>* context) {
        DLTensor tensors[4];
        enma_observations seen = ENMA_OBSERVATIONS, other = ENMA_OBSERVATIONS;
        const auto describe = [](const auto* given, DLTensor* made, enma_observations& to) -> enma_observations* {
            if (given == nullptr) return nullptr;
            made[0] = given->points.tensor();
            made[1] = given->values.tensor();
            to.points = &made[0];
            to.values = &made[1];
            if (!given->errors.empty()) {
                to.errors = given->errors.data();
                to.num_errors = static_cast<std::int64_t>(given->errors.size());
            }
            if (given->counts.empty()) return &to;
            to.counts = given->counts.data();
            to.num_frames = static_cast<std::int64_t>(given->counts.size());
            return &to;
        };
        detail::check(enma_session_observe_points(handle_.get(), describe(history, tensors, seen),
                                                  describe(context, tensors + 2, other)));
    }

    std::pair<std::int64_t, std::int64_t> progress() const {
        std::pair<std::int64_t, std::int64_t> found;
        detail::check(enma_session_progress(handle_.get(), &found.first, &found.second));
        return found;
    }

    // Those of `count` values, which have to be whole frames.
    Sizes sizes(Sizes before, std::size_t count) const {
        const std::int64_t frames =
            std::accumulate(before.begin(), before.end(), std::int64_t{1}, std::multiplies<std::int64_t>());
        if (static_cast<std::size_t>(frames) * frame_size_ != count) {
            throw Error(ENMA_INVALID_ARGUMENT, ("a vector has " + std::to_string(count) +
                                                " values; whole frames have " + std::to_string(frame_size_) + " each")
                                                   .c_str());
        }
        before.insert(before.end(), frame_.begin(), frame_.end());
        return before;
    }

    std::shared_ptr<const Log> log_;
    std::unique_ptr<enma_session, Free> handle_;
    std::int64_t num_members_;
    std::size_t frame_size_;
    Sizes frame_;
};

}  // namespace api
}  // namespace enma
