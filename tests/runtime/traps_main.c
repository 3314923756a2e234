/* A host, as codes of Fortran often are, that asks for a signal where its arithmetic overflows or has no result, in all of
 * its threads: forecasts of a model on a plane go on, and leave it its flags and its signals.
 *
 *     traps CHECKPOINT */
#define _GNU_SOURCE
#include <enma/enma.h>

#include <fenv.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { OBSERVED = 3, TRAPS = FE_INVALID | FE_DIVBYZERO | FE_OVERFLOW };

static void check(enma_status status) {
    if (status == ENMA_OK) return;
    fprintf(stderr, "%s\n", enma_last_error());
    exit(1);
}

static int wrong;

static void check_threads(void) {
#pragma omp parallel num_threads(2)
    {
        if (fegetexcept() != TRAPS) wrong = 1;
    }
    if (fetestexcept(TRAPS | FE_INEXACT) != FE_INEXACT) wrong = 1;
}

int main(int argc, char** argv) {
    if (argc != 2) return 2;
    enma_model* model;
    enma_session* session;
    feclearexcept(FE_ALL_EXCEPT);
    feraiseexcept(FE_INEXACT);
    /* Some pools of threads take this from the thread that starts a region, others keep their own. */
    feenableexcept(TRAPS);
#pragma omp parallel num_threads(2)
    feenableexcept(TRAPS);
    check(enma_model_open(argv[1], NULL, &model));
    enma_model_description about = ENMA_MODEL_DESCRIPTION;
    check(enma_model_info(model, &about));
    enma_session_options options = ENMA_SESSION_OPTIONS;
    options.num_members = OBSERVED;
    options.num_frames = 3;
    options.threads = 2;
    check(enma_session_new(model, &options, &session));
    const int64_t size = OBSERVED * about.grid * about.field_channels;
    double* values = calloc((size_t)size, sizeof(double));
    if (values == NULL) return 3;
    /* Far from what the model knows. */
    for (int64_t i = 0; i < size; ++i) values[i] = 100 * sin(0.05 * (double)i);
    feclearexcept(FE_ALL_EXCEPT);
    feraiseexcept(FE_INEXACT);
    int64_t shape[] = {OBSERVED, about.shape[0], about.shape[1], about.field_channels};
    DLTensor frames = {values, {kDLCPU, 0}, 4, {kDLFloat, 64, 1}, shape, NULL, 0};
    check(enma_session_observe(session, &frames, NULL));
    check_threads();
    const uint8_t stopped[OBSERVED] = {0, 1, 0};
    check(enma_session_stop(session, stopped, OBSERVED));
    while (enma_session_step(session, &frames) == ENMA_OK) check_threads();
    check(enma_session_free(session));
    check(enma_model_close(model));
    free(values);
    puts(wrong ? "changed" : "ok");
    return wrong;
}
