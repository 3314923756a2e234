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
 * Shapes are written [members, frames, grid, channels]. The grid of a line is one axis. On a plane it is two: [nx, ny].
 * Values have the units of the training data, and frames are frame_interval apart.
 *
 * Four errors are common to all functions. ENMA_INVALID_ARGUMENT: a pointer that is needed is NULL. ENMA_STATE: a
 * handle was freed, or another thread uses the session. ENMA_NO_MEMORY: memory ran out. ENMA_INTERNAL: a fault of the
 * library. The comment of a function has those of its own. A call that fails does not change its session, unless memory
 * ran out: then observe again.
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

/* Version of the interface. It changes when a program compiled against this header would have to be compiled again. */
#define ENMA_ABI_VERSION 2

/* What a call returns. */
typedef int32_t enma_status;
enum {
    ENMA_OK = 0,               /* all is well */
    ENMA_INVALID_ARGUMENT = 1, /* a null pointer, a wrong shape, a value out of bounds */
    ENMA_CHECKPOINT = 2,       /* a file is missing, truncated, altered or does not fit the others */
    ENMA_UNSUPPORTED = 3,      /* valid, but not implemented by this library */
    ENMA_STATE = 4,            /* the call does not fit what was called before, or a handle was freed */
    ENMA_NO_MEMORY = 5,        /* use fewer members at a time, or fewer threads */
    ENMA_INTERNAL = 6          /* a fault of the library: please report it */
};

/* Levels of messages. */
enum {
    ENMA_LOG_INFO = 0,   /* what was done, such as a model that was opened */
    ENMA_LOG_WARNING = 1 /* what may make a forecast worse */
};

/* A checkpoint that was opened. It does not change, and any number of sessions and threads may use it. */
typedef struct enma_model enma_model;

/* Members of one trajectory, with their memory. One thread at a time may use it. */
typedef struct enma_session enma_session;

/* Gets messages, on the thread that calls the library. It must not call the library.
 *
 *   user: log_user of the options
 *   level: ENMA_LOG_INFO or ENMA_LOG_WARNING
 *   message: one line of text, valid during the call */
typedef void (*enma_log_function)(void* user, int32_t level, const char* message);

/* Formats of the weights while sampling. Members of one have other bits than those of another. */
enum {
    ENMA_FP32 = 0, /* 32 bits */
    ENMA_BF16 = 1  /* 16 bits: half the memory, and less time on processors that multiply it (AVX-512 BF16) */
};

/* How a model is opened; ENMA_MODEL_OPTIONS has the defaults. */
typedef struct {
    size_t struct_size;    /* bytes of the struct */
    enma_log_function log; /* gets messages; NULL: none */
    void* log_user;        /* first argument of log */
    int32_t format;        /* of the weights: ENMA_FP32 or ENMA_BF16 */
} enma_model_options;
#define ENMA_MODEL_OPTIONS {sizeof(enma_model_options), NULL, NULL, ENMA_FP32}

/* A model, filled by enma_model_info. Text lives as long as the model. */
typedef struct {
    size_t struct_size;         /* bytes of the struct */
    const char* name;           /* of the model, such as combined-fast */
    const char* weights_sha256; /* SHA-256 of the file of weights, 64 hexadecimal digits */
    int64_t grid;               /* points of a frame, on a plane those of both dimensions together */
    int64_t field_channels;     /* values of a point */
    int64_t num_frames;         /* of a trajectory in training, observed and forecast */
    double frame_interval;      /* time between two frames, in the unit of the training data */
    double length;              /* of the domain along its first dimension, in the unit of the training data */
    int64_t num_tokens;         /* of a latent frame */
    int64_t token_channels;     /* values of a token */
    int64_t shifts;             /* the model's own number of them */
    double temperature;         /* the model's own, of the noise */
    int64_t dims;               /* of space, at most 3; models of this library have 1 or 2 */
    int64_t shape[3];           /* points along each dimension; 1 beyond the last */
    double lengths[3];          /* of the domain along each; 0 beyond the last */
    int32_t periodic[3];        /* 1 where the domain is a ring along it, 0 between walls */
    int32_t scattered;          /* 1 if frames may be observed at scattered points */
    int32_t format;             /* of the weights: ENMA_FP32 or ENMA_BF16 */
} enma_model_description;
#define ENMA_MODEL_DESCRIPTION \
    {sizeof(enma_model_description), NULL, NULL, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, {0, 0, 0}, {0, 0, 0}, {0, 0, 0}, 0, 0}

/* What a session forecasts; ENMA_SESSION_OPTIONS has the defaults. */
typedef struct {
    size_t struct_size;   /* bytes of the struct */
    uint64_t seed;        /* of the noise */
    uint64_t trajectory;  /* number of the trajectory, part of the key of its noise */
    int64_t first_member; /* number of the first member, 0 to 2^32 - 1 */
    int64_t num_members;  /* at least 1, sampled together; memory grows with them */
    int64_t num_frames;   /* to forecast, at most 30,000; 0: up to the length of training */
    int32_t threads;      /* at most, the calling one included; 0: one */
    int32_t shifts;       /* places from which members see the field; 0: the model's own, 1: none */
    double temperature;   /* of the noise; negative: the model's own */
    const char* isa;      /* instruction set, such as "avx2"; NULL: ENMA_ISA's, or this machine's best */
} enma_session_options;
#define ENMA_SESSION_OPTIONS {sizeof(enma_session_options), 0, 0, 0, 1, 0, 1, 0, -1.0, NULL}

/* Frames observed at scattered points; ENMA_OBSERVATIONS is empty. Frames share their points, or each has its own: then
 * the rows of the frames follow one another, and counts has their numbers. A point that is given twice weighs twice. */
typedef struct {
    size_t struct_size;     /* bytes of the struct */
    const DLTensor* points; /* coordinates from 0 to the length of the domain: [P, dims], with counts [rows, dims] */
    const DLTensor* values; /* in the units of the fields: [frames, P, channels], with counts [rows, channels] */
    const int64_t* counts;  /* points of each frame, at least 1: [num_frames]; NULL: frames share their points */
    int64_t num_frames;     /* entries of counts */
    const double* errors;   /* standard deviations of the error of the values: [num_errors]; NULL: no error */
    int64_t num_errors;     /* 1, or one for each channel; models with an interpolation of their own take none */
} enma_observations;
#define ENMA_OBSERVATIONS {sizeof(enma_observations), NULL, NULL, NULL, 0, NULL, 0}

/* ENMA_ABI_VERSION of the library.
 *
 * Errors: none. */
ENMA_API uint32_t enma_abi_version(void);

/* Message of the last call on this thread that failed; "" if none has. Valid until the thread's next failure.
 *
 * Errors: none. */
ENMA_API const char* enma_last_error(void);

/* Opens a checkpoint folder. Every file is checked against the SHA-256 of its manifest before a weight is used.
 *
 *   folder: path of the checkpoint
 *   options: format of the weights, and who gets messages; NULL: fp32, and nobody
 *   model: gets the handle, or NULL after a failure
 *
 * Errors: ENMA_CHECKPOINT if a file is missing, truncated or altered, or does not fit the others. ENMA_UNSUPPORTED for
 * a format or a setting that this library does not implement. ENMA_INVALID_ARGUMENT for options out of bounds. */
ENMA_API enma_status enma_model_open(const char* folder, const enma_model_options* options, enma_model** model);

/* Describes a model.
 *
 *   model: an open one
 *   description: gets as many fields as its struct_size has room for
 *
 * Errors: ENMA_INVALID_ARGUMENT if struct_size is 0. */
ENMA_API enma_status enma_model_info(const enma_model* model, enma_model_description* description);

/* Closes a model. Its sessions go on, for they keep what they need.
 *
 *   model: an open one, or NULL
 *
 * Errors: ENMA_STATE if it was closed before. */
ENMA_API enma_status enma_model_close(enma_model* model);

/* Makes a session: members [first_member, first_member + num_members) of one trajectory, with their memory.
 *
 *   model: an open one; it may be closed before the session
 *   options: members, frames, threads and settings; NULL: one member up to the length of training
 *   session: gets the handle, or NULL after a failure
 *
 * Errors: ENMA_INVALID_ARGUMENT for options out of bounds, or an instruction set that this machine lacks.
 * ENMA_NO_MEMORY if the system does not give so many threads. ENMA_UNSUPPORTED if a later header set a field that this
 * library does not have. */
ENMA_API enma_status enma_session_new(enma_model* model, const enma_session_options* options, enma_session** session);

/* Ends a session and frees its memory.
 *
 *   session: one of enma_session_new, or NULL
 *
 * Errors: ENMA_STATE if it was freed before. */
ENMA_API enma_status enma_session_free(enma_session* session);

/* Gives a known input by name, in the units of training, to a model that was trained with known inputs. The next
 * enma_session_observe takes all that were given. Observe again, and they have to be given again.
 *
 * A parameter has no axis [], a series [frames], a map [grid], a forcing [frames, grid]. What varies in time has all
 * observed and all forecast frames, from the first observed one on. The time of day and year are the series day_sin,
 * day_cos, year_sin and year_cos: sine and cosine of the turns since 1970-01-01, of days or of years of 365.2425 days.
 *
 *   session: gets the input
 *   name: of the input in training
 *   values: [], [frames], [grid] or [frames, grid] of the trajectory that is observed next, or NULL
 *   context_values: the same of its context, or NULL
 *
 * Errors: ENMA_INVALID_ARGUMENT for a name that the model does not have, another shape, values that are missing or
 * infinite, or two arrays that are NULL. */
ENMA_API enma_status enma_session_known(enma_session* session, const char* name, const DLTensor* values,
                                        const DLTensor* context_values);

/* Encodes and reads observed frames, and forgets what was observed before.
 *
 * With a context, frames of another trajectory of the same physics, one observed frame is enough. With the context
 * alone frame 0 is drawn too. Some models join frames in pairs. Of an even number of context frames they use all but
 * the last one, unless training had as many. Where the fields of a model have no values, such as on land, those of
 * frames are not read, and forecasts are NaN.
 *
 *   session: observes
 *   history: observed frames [frames, grid, channels], at least 3, or 1 with a context; NULL: frame 0 is drawn
 *   context: frames of the other trajectory [frames, grid, channels], best as many as in training, or NULL
 *
 * Errors: ENMA_INVALID_ARGUMENT for another shape, values that are missing or infinite, too few or too many frames, or
 * a known input that is missing or too short. ENMA_CHECKPOINT if frame 0 has to be drawn, and the checkpoint cannot. */
ENMA_API enma_status enma_session_observe(enma_session* session, const DLTensor* history, const DLTensor* context);

/* Observes frames at scattered points, as enma_session_observe does those on the grid. The description of the model
 * says by scattered whether it takes them.
 *
 *   session: observes
 *   history: observed frames, at least 3, or 1 with a context; NULL: frame 0 is drawn
 *   context: frames of the other trajectory, or NULL
 *
 * Errors: those of enma_session_observe. ENMA_INVALID_ARGUMENT also for a point out of the domain, a frame without a
 * point or with more than 16,384, and for a model that works on its grid only. */
ENMA_API enma_status enma_session_observe_points(enma_session* session, const enma_observations* history,
                                                 const enma_observations* context);

/* Forecasts the next frame of every member.
 *
 *   session: one that has observed
 *   frame: written: [num_members, grid, channels]
 *
 * Errors: ENMA_STATE if nothing is observed, or all frames were given out. ENMA_INVALID_ARGUMENT for another shape. */
ENMA_API enma_status enma_session_step(enma_session* session, DLTensor* frame);

/* Forecasts all frames that are left.
 *
 *   session: one that has observed
 *   frames: written: [num_members, frames, grid, channels], frames as enma_session_progress has left
 *
 * Errors: those of enma_session_step. */
ENMA_API enma_status enma_session_forecast(enma_session* session, DLTensor* frames);

/* Ends members that need no more. Their places in later frames are NaN. The others go on with the same bits, and from
 * the next latent frame on what is ended costs nothing. There is no way back but to observe again.
 *
 *   session: one that has observed
 *   members: a byte for each member [num_members]; those that are not 0 end
 *   count: number of bytes, equal to num_members
 *
 * Errors: ENMA_STATE if nothing is observed. ENMA_INVALID_ARGUMENT for another count. */
ENMA_API enma_status enma_session_stop(enma_session* session, const uint8_t* members, size_t count);

/* Says how far a session is.
 *
 *   session: any; before it has observed, both numbers are 0
 *   done: gets the number of frames that were given out, unless NULL
 *   total: gets the number of frames of the whole forecast, unless NULL
 *
 * Errors: the common ones. */
ENMA_API enma_status enma_session_progress(enma_session* session, int64_t* done, int64_t* total);

/* Copies the latent frames so far, those of the observed frames included.
 *
 *   session: one that has observed
 *   latents: written: [num_members, latent frames, num_tokens, token_channels]; NULL: only their number is asked for
 *   count: gets the number of latent frames, unless NULL
 *
 * Errors: ENMA_STATE if nothing is observed and latents is given. ENMA_INVALID_ARGUMENT for another shape. */
ENMA_API enma_status enma_session_latents(enma_session* session, DLTensor* latents, int64_t* count);

/* Writes the state of a session, for a restart file.
 *
 *   session: one that has observed
 *   buffer: gets the state; NULL: only its size is asked for
 *   size: bytes of the buffer
 *   needed: gets the bytes of the state, unless NULL
 *
 * Errors: ENMA_STATE if nothing is observed. ENMA_INVALID_ARGUMENT if the buffer is too small. */
ENMA_API enma_status enma_session_save(enma_session* session, void* buffer, size_t size, size_t* needed);

/* Continues a saved session, in one with the same model and options; threads and isa may differ. Its next frame is the
 * one that the saved session would have given, with the same bits on the same instruction set.
 *
 *   session: takes the state
 *   buffer: what enma_session_save wrote
 *   size: bytes of the buffer
 *
 * Errors: ENMA_INVALID_ARGUMENT if the buffer was altered or cut short, or belongs to another model or other options.
 * ENMA_UNSUPPORTED for a state in a version that this library does not read. */
ENMA_API enma_status enma_session_restore(enma_session* session, const void* buffer, size_t size);

#ifdef __cplusplus
}
#endif

#endif
