/* A host that opens the library by itself, of a model on a line.
 *
 *     process unload LIBRARY CHECKPOINT    opens it, takes a step on two threads and closes it, three times
 *     process fork LIBRARY CHECKPOINT      uses OpenMP, forks, and takes a step on two threads in the child */
#define _POSIX_C_SOURCE 200809L
#include <enma/enma.h>

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { OBSERVED = 3, MEMBERS = 4 };

static void* opened(const char* path) {
    void* library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (library == NULL) {
        fprintf(stderr, "%s\n", dlerror());
        _exit(3);
    }
    return library;
}

static void check(enma_status status) {
    if (status != ENMA_OK) _exit(4);
}

/* Functions of the library; a pointer of C's to a function is not one to void. */
#define FUNCTION(library, name, ...)  \
    enma_status (*name)(__VA_ARGS__); \
    *(void**)&name = dlsym(library, #name)

static void step(void* library, const char* checkpoint) {
    FUNCTION(library, enma_model_open, const char*, const enma_model_options*, enma_model**);
    FUNCTION(library, enma_model_info, const enma_model*, enma_model_description*);
    FUNCTION(library, enma_session_new, enma_model*, const enma_session_options*, enma_session**);
    FUNCTION(library, enma_session_observe, enma_session*, const DLTensor*, const DLTensor*);
    FUNCTION(library, enma_session_step, enma_session*, DLTensor*);
    FUNCTION(library, enma_session_free, enma_session*);
    FUNCTION(library, enma_model_close, enma_model*);
    enma_model* model;
    check(enma_model_open(checkpoint, NULL, &model));
    enma_model_description about = ENMA_MODEL_DESCRIPTION;
    check(enma_model_info(model, &about));
    enma_session_options options = ENMA_SESSION_OPTIONS;
    options.num_members = MEMBERS;
    options.threads = 2;
    enma_session* session;
    check(enma_session_new(model, &options, &session));
    float* values = calloc((size_t)(MEMBERS * about.grid * about.field_channels), sizeof(float));
    if (values == NULL) _exit(5);
    int64_t observed_shape[] = {OBSERVED, about.grid, about.field_channels};
    int64_t shape[] = {MEMBERS, about.grid, about.field_channels};
    const DLTensor observed = {values, {kDLCPU, 0}, 3, {kDLFloat, 32, 1}, observed_shape, NULL, 0};
    DLTensor out = {values, {kDLCPU, 0}, 3, {kDLFloat, 32, 1}, shape, NULL, 0};
    check(enma_session_observe(session, &observed, NULL));
    check(enma_session_step(session, &out));
    check(enma_session_free(session));
    check(enma_model_close(model));
    free(values);
}

static int unload(const char* library, const char* checkpoint) {
    for (int i = 0; i < 3; ++i) {
        void* handle = opened(library);
        step(handle, checkpoint);
        if (dlclose(handle) != 0) return 1;
        /* Threads that wait for work go to sleep, or find their code gone. */
        const struct timespec pause = {0, 20 * 1000 * 1000};
        nanosleep(&pause, NULL);
    }
    return 0;
}

static int forked(const char* library, const char* checkpoint) {
    void* handle = opened(library);
    int used = 0;
#pragma omp parallel num_threads(2) reduction(+ : used)
    used += 1;
    if (used != 2) return 1;
    const pid_t child = fork();
    if (child == 0) {
        alarm(100);
        step(handle, checkpoint);
        _exit(0);
    }
    int status;
    if (waitpid(child, &status, 0) != child || status != 0) return 2;
    step(handle, checkpoint);
    return 0;
}

int main(int argc, char** argv) {
    if (argc != 4) return 2;
    return strcmp(argv[1], "fork") == 0 ? forked(argv[2], argv[3]) : unload(argv[2], argv[3]);
}
