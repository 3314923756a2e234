/* libenma: forecasts of enma_fast checkpoints from C, C++ and Fortran, without Python.
 *
 * A model is opened once and shared by any number of sessions and threads. A session forecasts the members
 * [first_member, first_member + num_members) of one trajectory; one thread at a time may use it. A member depends on
 * (model, seed, trajectory, member number) and the observed frames only: not on the other members of its session, on
 * threads, or on the order of calls.
 *
 *     enma_model_open -> enma_session_new -> enma_session_observe -> enma_session_forecast, or one step at a time
 *
 * A model that was told known inputs in training takes them by enma_session_known, before enma_session_observe.
 *
 * Every call returns a status; enma_last_error() has the message of this thread's last failure. Arrays belong to the
 * caller and are described by DLTensor of DLPack: fp32 or fp64, any strides, on the CPU. The library never exits,
 * prints or throws, and runs on the calling thread and the threads that a session was given.
 *
 * Structs begin with their size: initialise them by the macros below, or zero them and set struct_size. A later library
 * reads the structs of an earlier header. */
#ifndef ENMA_ENMA_H
#define ENMA_ENMA_H

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define ENMA_API __attribute__((visibility("default")))
#else
#define ENMA_API
#endif

/* DLPack 1.0, its structs of a tensor. Include dlpack.h, if at all, before this header. */
#ifndef DLPACK_DLPACK_H_
#ifdef __cplusplus
/* Any value of 32 bits can be read before it is checked. */
typedef enum : int32_t { kDLCPU = 1, kDLCUDA = 2 } DLDeviceType;
#else
typedef enum { kDLCPU = 1, kDLCUDA = 2 } DLDeviceType;
#endif
typedef enum { kDLInt = 0U, kDLUInt = 1U, kDLFloat = 2U } DLDataTypeCode;

typedef struct {
    DLDeviceType device_type;
    int32_t device_id;
} DLDevice;

typedef struct {
    uint8_t code; /* DLDataTypeCode */
    uint8_t bits;
    uint16_t lanes;
} DLDataType;

typedef struct {
    void* data;
    DLDevice device;
    int32_t ndim;
    DLDataType dtype;
    int64_t* shape;
    int64_t* strides; /* in elements; NULL for a compact row-major array */
    uint64_t byte_offset;
} DLTensor;
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Changes when a program compiled against this header would have to be compiled again. */
#define ENMA_ABI_VERSION 2

typedef int32_t enma_status;
enum {
    ENMA_OK = 0,
    ENMA_INVALID_ARGUMENT = 1, /* a null pointer, a wrong shape, a value out of bounds */
    ENMA_CHECKPOINT = 2,       /* a file is missing, truncated, altered or does not fit the others */
    ENMA_UNSUPPORTED = 3,      /* valid, but not implemented by this library */
    ENMA_STATE = 4,            /* the call does not fit what was called before, or a handle was freed */
    ENMA_NO_MEMORY = 5,
    ENMA_INTERNAL = 6
};

/* Levels of messages. */
enum { ENMA_LOG_INFO = 0, ENMA_LOG_WARNING = 1 };

typedef struct enma_model enma_model;
typedef struct enma_session enma_session;

/* Called on the thread that calls the library; must not call it back. */
typedef void (*enma_log_function)(void* user, int32_t level, const char* message);

/* Formats of the weights while sampling. Members of one have other bits than those of another. bf16 takes half the memory,
 * and less time on processors that multiply it (AVX-512 BF16). */
enum { ENMA_FP32 = 0, ENMA_BF16 = 1 };

typedef struct {
    size_t struct_size;
    enma_log_function log; /* NULL: no messages */
    void* log_user;
    int32_t format; /* ENMA_FP32 or ENMA_BF16 */
} enma_model_options;
#define ENMA_MODEL_OPTIONS {sizeof(enma_model_options), NULL, NULL, ENMA_FP32}

/* Filled by enma_model_info; text lives as long as the model. */
typedef struct {
    size_t struct_size;
    const char* name;
    const char* weights_sha256;
    int64_t grid;           /* points of a frame, on a plane those of both dimensions together */
    int64_t field_channels; /* values of a point */
    int64_t num_frames;     /* of a trajectory in training, observed and forecast */
    double frame_interval;  /* time between two frames */
    double length;          /* of the domain, along its first dimension */
    int64_t num_tokens;     /* of a latent frame */
    int64_t token_channels;
    int64_t shifts; /* the model's own settings */
    double temperature;
    int64_t dims;        /* of space, at most 3; models of this library have 1 or 2 */
    int64_t shape[3];    /* points along each dimension; 1 beyond the last */
    double lengths[3];   /* of the domain along each; 0 beyond the last */
    int32_t periodic[3]; /* 1 where the domain is a ring along it, 0 between walls */
    int32_t scattered;   /* 1 if frames may be observed at scattered points */
    int32_t format;      /* of the weights: ENMA_FP32 or ENMA_BF16 */
} enma_model_description;
#define ENMA_MODEL_DESCRIPTION \
    {sizeof(enma_model_description), NULL, NULL, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, {0, 0, 0}, {0, 0, 0}, {0, 0, 0}, 0, 0}

typedef struct {
    size_t struct_size;
    uint64_t seed;
    uint64_t trajectory; /* number of the trajectory, part of the key of its noise */
    int64_t first_member;
    int64_t num_members; /* sampled together; memory grows with them */
    int64_t num_frames;  /* to forecast; 0: up to the length of training */
    int32_t threads;     /* at most, the calling one included; 0: one */
    int32_t shifts;      /* 0: the model's own; 1: none */
    double temperature;  /* of the noise; negative: the model's own */
    const char* isa;     /* instruction set: "avx512", "avx2", "scalar" ...; NULL: ENMA_ISA's, or this machine's best */
} enma_session_options;
#define ENMA_SESSION_OPTIONS {sizeof(enma_session_options), 0, 0, 0, 1, 0, 1, 0, -1.0, NULL}

/* Frames observed at scattered points; duplicates count twice. Without `counts` the frames share their points: `points`
 * is [P, dims] and `values` [L, P, channels]. With it frame t has `counts[t]` points, at least 1, and the rows of the
 * frames follow one another: [rows, dims] and [rows, channels]. Coordinates are from 0 to the length of the domain.
 * `errors` are standard deviations of the error of the values, one or one for each channel; models with an interpolation
 * of their own take none. */
typedef struct {
    size_t struct_size;
    const DLTensor* points;
    const DLTensor* values;
    const int64_t* counts; /* [num_frames], or NULL */
    int64_t num_frames;
    const double* errors; /* [num_errors], or NULL */
    int64_t num_errors;
} enma_observations;
#define ENMA_OBSERVATIONS {sizeof(enma_observations), NULL, NULL, NULL, 0, NULL, 0}

/* ENMA_ABI_VERSION of the library. */
ENMA_API uint32_t enma_abi_version(void);

/* Message of the last call on this thread that failed; "" if none has. Valid until the thread's next failure. */
ENMA_API const char* enma_last_error(void);

/* Opens a checkpoint folder. Every file is checked against the SHA-256 of its manifest before a weight is used.
 * `options` may be NULL. */
ENMA_API enma_status enma_model_open(const char* folder, const enma_model_options* options, enma_model** model);

ENMA_API enma_status enma_model_info(const enma_model* model, enma_model_description* description);

/* Sessions of the model keep what they need. NULL is allowed. */
ENMA_API enma_status enma_model_close(enma_model* model);

ENMA_API enma_status enma_session_new(enma_model* model, const enma_session_options* options, enma_session** session);

/* NULL is allowed. */
ENMA_API enma_status enma_session_free(enma_session* session);

/* Tells a model by name what it was told in training beside the fields, in the same units: `values` of the trajectory that
 * is observed next, and `context_values` of its context, each NULL where it is not given. A parameter has no axis [], a
 * series [frames], a map [grid], a forcing [frames, grid]. What varies in time has all observed and all forecast frames,
 * from the first observed one on. The time of day and year are series of the names day_sin, day_cos, year_sin and
 * year_cos: sine and cosine of the turns since 1970-01-01, of days or of years of 365.2425 days. What is observed next
 * takes them; observe again, and they have to be given again. */
ENMA_API enma_status enma_session_known(enma_session* session, const char* name, const DLTensor* values,
                                        const DLTensor* context_values);

/* Below `grid` stands for both dimensions of a field on a plane: its arrays have one axis more.
 *
 * Encodes and reads the observed frames `history` [L, grid, channels], L at least 3, and forgets what was before. With
 * `context`, frames of another trajectory of the same physics, L may be 1 or `history` NULL: then frame 0 is drawn too. Of
 * a context of an even number of frames, if the model joins them in pairs and was trained on more, the last is not used.
 * Where the fields of a model have no values, such as on land, those of frames are not read, and forecasts are NaN. */
ENMA_API enma_status enma_session_observe(enma_session* session, const DLTensor* history, const DLTensor* context);

/* Likewise, of a model whose description says `scattered`. */
ENMA_API enma_status enma_session_observe_points(enma_session* session, const enma_observations* history,
                                                 const enma_observations* context);

/* The next frame of every member: [num_members, grid, channels]. */
ENMA_API enma_status enma_session_step(enma_session* session, DLTensor* frame);

/* All frames that are left: [num_members, frames, grid, channels]. */
ENMA_API enma_status enma_session_forecast(enma_session* session, DLTensor* frames);

/* Ends members that need no more: those whose byte in `members` is not 0, of `count` = num_members bytes. Their places in
 * later frames are NaN; the others go on with the same bits, and from the next latent frame on what is ended costs
 * nothing. There is no way back but to observe again. */
ENMA_API enma_status enma_session_stop(enma_session* session, const uint8_t* members, size_t count);

/* Frames that were given out, and all. */
ENMA_API enma_status enma_session_progress(enma_session* session, int64_t* done, int64_t* total);

/* Latent frames so far, the observed ones included: [num_members, latent frames, num_tokens, token_channels]. With
 * `latents` NULL only their number is returned; `count` may be NULL. */
ENMA_API enma_status enma_session_latents(enma_session* session, DLTensor* latents, int64_t* count);

/* Writes the state of a session into `buffer` of `size` bytes; with `buffer` NULL only `needed` is returned, which may
 * be NULL otherwise. */
ENMA_API enma_status enma_session_save(enma_session* session, void* buffer, size_t size, size_t* needed);

/* Continues a saved session, in one with the same model and options (threads and isa may differ): its next frame is
 * the one that the saved session would have given, with the same bits on the same instruction set. */
ENMA_API enma_status enma_session_restore(enma_session* session, const void* buffer, size_t size);

#ifdef __cplusplus
}
#endif

#endif
