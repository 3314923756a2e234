// The functions of enma.h: handles, statuses and messages. Nothing is thrown across them.
#include <algorithm>
#include <atomic>
#include <cfenv>
#include <cstdio>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <new>

#include "enma/enma.h"
#include "core/error.h"
#include "runtime/session.h"

namespace enma {
namespace {

thread_local char last_error[2048] = "";

enma_status report(enma_status status, const char* message) {
    std::snprintf(last_error, sizeof last_error, "%s", message);
    return status;
}

// The exceptions of arithmetic are the host's: it may have asked for a signal at one, and finds its flags as they were.
class Arithmetic {
   public:
    Arithmetic() { std::feholdexcept(&host_); }
    ~Arithmetic() { std::fesetenv(&host_); }
    Arithmetic(const Arithmetic&) = delete;
    Arithmetic& operator=(const Arithmetic&) = delete;

   private:
    std::fenv_t host_;
};

template <class Body>
enma_status guard(const Body& body) noexcept {
    const Arithmetic arithmetic;
    try {
        body();
        return ENMA_OK;
    } catch (const Error& error) {
        return report(error.status(), error.what());
    } catch (const std::bad_alloc&) {
        return report(ENMA_NO_MEMORY, "not enough memory: use fewer members at a time, or fewer frames");
    } catch (const std::exception& error) {
        return report(ENMA_INTERNAL, error.what());
    } catch (...) {
        return report(ENMA_INTERNAL, "unknown exception");
    }
}

struct OpenModel {
    std::shared_ptr<const Model> model;
    Log log;
};

struct OpenSession {
    Session session;
    std::atomic_flag busy = ATOMIC_FLAG_INIT;
};

// Handles are numbers that are never used again, so one that was freed, or belongs to something else, is found out.
class Handles {
   public:
    template <class T>
    void* add(std::map<std::uintptr_t, std::shared_ptr<T>>& of, std::shared_ptr<T> value) {
        const std::lock_guard lock(mutex_);
        const std::uintptr_t number = next_;
        of.emplace(number, std::move(value));
        next_ += 16;
        return reinterpret_cast<void*>(number);
    }

    template <class T>
    std::shared_ptr<T> get(std::map<std::uintptr_t, std::shared_ptr<T>>& of, const void* handle, const char* name) {
        if (handle == nullptr) fail(ENMA_INVALID_ARGUMENT, name, " is NULL");
        const std::lock_guard lock(mutex_);
        const auto at = of.find(reinterpret_cast<std::uintptr_t>(handle));
        if (at == of.end()) fail(ENMA_STATE, name, " is no open ", name, ": it was freed, or is something else");
        return at->second;
    }

    template <class T>
    void remove(std::map<std::uintptr_t, std::shared_ptr<T>>& of, const void* handle, const char* name) {
        if (handle == nullptr) return;
        // Freed after the lock is.
        const std::shared_ptr<T> kept = get(of, handle, name);
        const std::lock_guard lock(mutex_);
        of.erase(reinterpret_cast<std::uintptr_t>(handle));
    }

    std::map<std::uintptr_t, std::shared_ptr<OpenModel>> models;
    std::map<std::uintptr_t, std::shared_ptr<OpenSession>> sessions;

   private:
    std::mutex mutex_;
    std::uintptr_t next_ = 4096;
};

// Never destroyed: a program may free its sessions as late as it likes.
Handles& handles() {
    static Handles& all = *new Handles;
    return all;
}

// A struct of the caller, as long as it says it is, over the defaults of fields that it does not have.
template <class Options>
Options read_options(const Options* given, const Options& defaults, const char* name) {
    if (given == nullptr) return defaults;
    const std::size_t size = given->struct_size;
    if (size < sizeof(std::size_t) || size > 4096) {
        fail(ENMA_INVALID_ARGUMENT, name, ".struct_size is ", size, "; initialise it by its macro");
    }
    const char* bytes = reinterpret_cast<const char*>(given);
    if (size > sizeof(Options) && std::any_of(bytes + sizeof(Options), bytes + size, [](char c) { return c != 0; })) {
        fail(ENMA_UNSUPPORTED, name, " sets a field that this version of libenma does not know");
    }
    Options options = defaults;
    std::memcpy(&options, bytes, std::min(size, sizeof options));
    return options;
}

// Runs body(session) while no other thread does.
template <class Body>
enma_status with_session(enma_session* handle, const Body& body) noexcept {
    return guard([&] {
        const std::shared_ptr<OpenSession> open = handles().get(handles().sessions, handle, "session");
        if (open->busy.test_and_set(std::memory_order_acquire)) {
            fail(ENMA_STATE, "session is in use by another thread: give each thread its own");
        }
        struct Release {
            std::atomic_flag& flag;
            ~Release() { flag.clear(std::memory_order_release); }
        } const release{open->busy};
        body(open->session);
    });
}

Isa isa_of(const char* name) {
    try {
        return isa_by_name(name == nullptr ? "" : name);
    } catch (const std::invalid_argument& error) {
        throw Error(ENMA_INVALID_ARGUMENT, error.what());
    }
}

}  // namespace
}  // namespace enma

using namespace enma;

uint32_t enma_abi_version(void) { return ENMA_ABI_VERSION; }

const char* enma_last_error(void) { return last_error; }

enma_status enma_model_open(const char* folder, const enma_model_options* options, enma_model** model) {
    return guard([&] {
        if (folder == nullptr || model == nullptr) fail(ENMA_INVALID_ARGUMENT, folder ? "model" : "folder", " is NULL");
        *model = nullptr;
        const enma_model_options set = read_options(options, enma_model_options ENMA_MODEL_OPTIONS, "options");
        if (set.format != ENMA_FP32 && set.format != ENMA_BF16) {
            fail(ENMA_INVALID_ARGUMENT, "options.format is ", set.format,
                 "; ENMA_FP32 (0) or ENMA_BF16 (1) is expected");
        }
        const NumberFormat format = set.format == ENMA_BF16 ? NumberFormat::bf16 : NumberFormat::fp32;
        auto open = std::make_shared<OpenModel>(
            OpenModel{std::make_shared<const Model>(folder, format), {set.log, set.log_user}});
        const Model& opened = *open->model;
        open->log(ENMA_LOG_INFO, text(opened.config().name, " opened, SHA-256 of weights ", opened.weights_sha256()));
        *model = static_cast<enma_model*>(handles().add(handles().models, std::move(open)));
    });
}

enma_status enma_model_info(const enma_model* model, enma_model_description* description) {
    return guard([&] {
        const std::shared_ptr<OpenModel> open = handles().get(handles().models, model, "model");
        if (description == nullptr) fail(ENMA_INVALID_ARGUMENT, "description is NULL");
        const std::size_t size = description->struct_size;
        if (size < sizeof(std::size_t)) fail(ENMA_INVALID_ARGUMENT, "description.struct_size is ", size);
        const ModelConfig& config = open->model->config();
        const CodecConfig& codec = config.codec;
        const bool scattered = open->model->reads_points();
        enma_model_description found{size,
                                     config.name.c_str(),
                                     open->model->weights_sha256().c_str(),
                                     config.points(),
                                     codec.field_channels,
                                     config.num_frames,
                                     config.frame_interval,
                                     codec.lengths[0],
                                     config.num_tokens(),
                                     config.token_channels(),
                                     config.sampling.shifts,
                                     config.sampling.temperature,
                                     codec.dims(),
                                     {1, 1, 1},
                                     {},
                                     {},
                                     scattered,
                                     is_half(open->model->dynamics().format()) ? ENMA_BF16 : ENMA_FP32};
        for (int axis = 0; axis < codec.dims(); ++axis) {
            found.shape[axis] = codec.grid[axis];
            found.lengths[axis] = codec.lengths[axis];
            found.periodic[axis] = codec.periodic[axis];
        }
        std::memcpy(description, &found, std::min(size, sizeof found));
    });
}

enma_status enma_model_close(enma_model* model) {
    return guard([&] { handles().remove(handles().models, model, "model"); });
}

enma_status enma_session_new(enma_model* model, const enma_session_options* options, enma_session** session) {
    return guard([&] {
        const std::shared_ptr<OpenModel> open = handles().get(handles().models, model, "model");
        if (session == nullptr) fail(ENMA_INVALID_ARGUMENT, "session is NULL");
        *session = nullptr;
        const enma_session_options set = read_options(options, enma_session_options ENMA_SESSION_OPTIONS, "options");
        const SamplingConfig& own = open->model->config().sampling;
        if (set.shifts < 0) fail(ENMA_INVALID_ARGUMENT, "shifts is ", set.shifts, "; 0 or more is expected");
        const SessionSettings settings{set.seed,
                                       set.trajectory,
                                       set.first_member,
                                       set.num_members,
                                       set.num_frames,
                                       set.threads == 0 ? 1 : set.threads,
                                       set.shifts == 0 ? own.shifts : set.shifts,
                                       static_cast<float>(set.temperature < 0 ? own.temperature : set.temperature),
                                       isa_of(set.isa)};
        std::shared_ptr<OpenSession> made(new OpenSession{Session(open->model, settings, open->log)});
        *session = static_cast<enma_session*>(handles().add(handles().sessions, std::move(made)));
    });
}

enma_status enma_session_free(enma_session* session) {
    return guard([&] { handles().remove(handles().sessions, session, "session"); });
}

enma_status enma_session_known(enma_session* session, const char* name, const DLTensor* values,
                               const DLTensor* context_values) {
    return with_session(session, [&](Session& s) { s.known(name, values, context_values); });
}

enma_status enma_session_observe(enma_session* session, const DLTensor* history, const DLTensor* context) {
    return with_session(session, [&](Session& s) { s.observe(history, context); });
}

enma_status enma_session_observe_points(enma_session* session, const enma_observations* history,
                                        const enma_observations* context) {
    return with_session(session, [&](Session& s) {
        const enma_observations none = ENMA_OBSERVATIONS;
        const enma_observations seen = read_options(history, none, "history");
        const enma_observations other = read_options(context, none, "context");
        s.observe_points(history == nullptr ? nullptr : &seen, context == nullptr ? nullptr : &other);
    });
}

enma_status enma_session_step(enma_session* session, DLTensor* frame) {
    return with_session(session, [&](Session& s) { s.step(frame); });
}

enma_status enma_session_forecast(enma_session* session, DLTensor* frames) {
    return with_session(session, [&](Session& s) { s.forecast(frames); });
}

enma_status enma_session_stop(enma_session* session, const uint8_t* members, size_t count) {
    return with_session(session, [&](Session& s) {
        if (members == nullptr) fail(ENMA_INVALID_ARGUMENT, "members is NULL");
        s.stop(members, count);
    });
}

enma_status enma_session_progress(enma_session* session, int64_t* done, int64_t* total) {
    return with_session(session, [&](const Session& s) {
        if (done != nullptr) *done = s.done();
        if (total != nullptr) *total = s.total();
    });
}

enma_status enma_session_latents(enma_session* session, DLTensor* latents, int64_t* count) {
    return with_session(session, [&](const Session& s) {
        if (count != nullptr) *count = s.num_latents();
        if (latents != nullptr) s.latents(latents);
    });
}

enma_status enma_session_save(enma_session* session, void* buffer, size_t size, size_t* needed) {
    return with_session(session, [&](const Session& s) {
        const std::size_t bytes = s.saved_bytes();
        if (needed != nullptr) *needed = bytes;
        if (buffer == nullptr && needed == nullptr) fail(ENMA_INVALID_ARGUMENT, "buffer and needed are both NULL");
        if (buffer == nullptr) return;
        if (size < bytes) fail(ENMA_INVALID_ARGUMENT, "buffer has ", size, " bytes; ", bytes, " are needed");
        s.save(static_cast<char*>(buffer));
    });
}

enma_status enma_session_restore(enma_session* session, const void* buffer, size_t size) {
    return with_session(session, [&](Session& s) {
        if (buffer == nullptr) fail(ENMA_INVALID_ARGUMENT, "buffer is NULL");
        s.restore(static_cast<const char*>(buffer), size);
    });
}
