/* Forecasts an ensemble from three observed frames, without Python, and prints mean and spread of each frame.
 *
 *     forecast CHECKPOINT FRAMES MEMBERS OUT
 *
 * FRAMES holds [3, grid, channels] and OUT gets [members, frames, grid, channels], both fp32 as they are in memory; on a
 * plane `grid` is two axes. */
#include <enma/enma.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { OBSERVED = 3 };

static void check(enma_status status) {
    if (status == ENMA_OK) return;
    fprintf(stderr, "enma: %s\n", enma_last_error());
    exit(1);
}

static void* allocated(size_t count, size_t size) {
    void* memory = calloc(count, size);
    if (memory == NULL) {
        fprintf(stderr, "not enough memory\n");
        exit(1);
    }
    return memory;
}

/* An array of frames whose first `axes` sizes are in `shape`, which gets those of a frame after them. */
static DLTensor tensor(float* data, int64_t* shape, int axes, const enma_model_description* about) {
    for (int64_t i = 0; i < about->dims; ++i) shape[axes++] = about->shape[i];
    shape[axes++] = about->field_channels;
    const DLTensor t = {data, {kDLCPU, 0}, axes, {kDLFloat, 32, 1}, shape, NULL, 0};
    return t;
}

/* Over points and channels: the mean of the members' mean, and the root mean square of their spread. */
static void print_frame(const float* values, int64_t members, int64_t each_member, int64_t size, int64_t frame) {
    double mean = 0, variance = 0;
    for (int64_t i = 0; i < size; ++i) {
        double sum = 0, squares = 0;
        for (int64_t k = 0; k < members; ++k) {
            const double x = values[k * each_member + frame * size + i];
            sum += x;
            squares += x * x;
        }
        mean += sum / (double)members;
        if (members > 1) variance += (squares - sum * sum / (double)members) / (double)(members - 1);
    }
    printf("frame %lld: mean %.6f, spread %.6f\n", (long long)frame, mean / (double)size,
           sqrt(fmax(0, variance) / (double)size));
}

int main(int argc, char** argv) {
    if (argc != 5) {
        fprintf(stderr, "usage: forecast CHECKPOINT FRAMES MEMBERS OUT\n");
        return 2;
    }
    enma_model* model;
    check(enma_model_open(argv[1], NULL, &model));
    enma_model_description about = ENMA_MODEL_DESCRIPTION;
    check(enma_model_info(model, &about));

    const int64_t size = about.grid * about.field_channels;
    float* history = allocated((size_t)(OBSERVED * size), sizeof(float));
    FILE* in = fopen(argv[2], "rb");
    if (in == NULL || fread(history, sizeof(float), (size_t)(OBSERVED * size), in) != (size_t)(OBSERVED * size)) {
        fprintf(stderr, "%s: not %d frames of %lld numbers\n", argv[2], OBSERVED, (long long)size);
        return 1;
    }
    fclose(in);

    enma_session_options options = ENMA_SESSION_OPTIONS;
    options.num_members = atoll(argv[3]);
    enma_session* session;
    check(enma_session_new(model, &options, &session));
    int64_t observed_shape[4] = {OBSERVED};
    const DLTensor observed = tensor(history, observed_shape, 1, &about);
    check(enma_session_observe(session, &observed, NULL));

    int64_t frames;
    check(enma_session_progress(session, NULL, &frames));
    float* values = allocated((size_t)(options.num_members * frames * size), sizeof(float));
    int64_t shape[5] = {options.num_members, frames};
    DLTensor out = tensor(values, shape, 2, &about);
    check(enma_session_forecast(session, &out));
    for (int64_t t = 0; t < frames; ++t) print_frame(values, options.num_members, frames * size, size, t);

    FILE* file = fopen(argv[4], "wb");
    const size_t count = (size_t)(options.num_members * frames * size);
    if (file == NULL || fwrite(values, sizeof(float), count, file) != count || fclose(file) != 0) {
        fprintf(stderr, "%s: cannot be written\n", argv[4]);
        return 1;
    }
    check(enma_session_free(session));
    check(enma_model_close(model));
    free(values);
    free(history);
    return 0;
}
