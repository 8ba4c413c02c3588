/* cuda_twin_stream.c - a stream is a thread with a list of copies and words to write. */
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "cuda_twin_private.h"

/* Copies, or the write of a word. */
struct operation {
    struct operation *next;
    uint32_t *word;
    uint32_t value, call, count;
    enum kvl_cuda_direction direction;
    struct kvl_cuda_copy copies[];
};

struct stream {
    struct cuda_twin *twin;
    pthread_t thread;
    struct operation *head, **tail;
    bool running, stopping;
};

static void log_copy(
    struct cuda_twin *twin, const struct operation *operation, const struct kvl_cuda_copy *copy) {
    const struct range *range =
        cuda_twin_range_of(twin, true, (uintptr_t)copy->device, copy->copy_bytes);
    if (twin->log_count == LOG_MAX || range == NULL)
        return;
    twin->log[twin->log_count++] = (struct cuda_twin_copy){.direction = operation->direction,
        .device_offset = copy->device - range->start,
        .copy_bytes = copy->copy_bytes,
        .host = copy->host,
        .call = operation->call};
}

/* Without the mutex. */
static void make_copies(const struct operation *operation, uint64_t delay_ns) {
    const struct timespec delay = {
        .tv_sec = (time_t)(delay_ns / 1000000000u), .tv_nsec = (long)(delay_ns % 1000000000u)};
    if (delay_ns > 0)
        nanosleep(&delay, NULL);
    for (uint32_t i = operation->count; i-- > 0;) {
        const struct kvl_cuda_copy *copy = &operation->copies[i];
        uint8_t *device = (uint8_t *)(uintptr_t)copy->device;
        if (operation->direction == KVL_CUDA_TO_DEVICE)
            memcpy(device, copy->host, copy->copy_bytes);
        else
            memcpy(copy->host, device, copy->copy_bytes);
    }
}

/* Under the mutex, given up for the copies. A lost device does nothing more. */
static void run_operation(struct cuda_twin *twin, const struct operation *operation) {
    if (twin->lost)
        return;
    if (operation->word != NULL) {
        __atomic_store_n(operation->word, operation->value, __ATOMIC_RELEASE);
        return;
    }
    if (twin->lose_in == 0) {
        twin->lost = true;
        return;
    }
    twin->lose_in -= twin->lose_in != UINT32_MAX;
    const uint64_t delay_ns = twin->delay_ns;
    const bool skip = twin->skip;
    cuda_twin_unlock(twin);
    if (!skip)
        make_copies(operation, delay_ns);
    cuda_twin_lock(twin);
    for (uint32_t i = 0; i < operation->count; i++)
        log_copy(twin, operation, &operation->copies[i]);
}

static void *stream_main(void *arg) {
    struct stream *stream = arg;
    struct cuda_twin *twin = stream->twin;
    cuda_twin_lock(twin);
    while (!stream->stopping) {
        struct operation *operation = stream->head;
        const bool held = twin->hold && !twin->lost && operation != NULL && operation->count > 0;
        if (operation == NULL || held) {
            pthread_cond_wait(&twin->changed, &twin->mutex);
            continue;
        }
        stream->running = true;
        run_operation(twin, operation);
        stream->running = false;
        stream->head = operation->next;
        if (stream->head == NULL)
            stream->tail = &stream->head;
        free(operation);
    }
    cuda_twin_unlock(twin);
    return NULL;
}

kvl_cuda_status cuda_twin_stream_create(
    const struct kvl_cuda_driver *driver, bool urgent, void **out) {
    struct cuda_twin *twin = cuda_twin_of(driver);
    (void)urgent;
    int status = cuda_twin_enter_call(twin);
    struct stream *stream = calloc(1, sizeof *stream);
    if (status == TWIN_OK && stream != NULL) {
        stream->twin = twin;
        stream->tail = &stream->head;
        status =
            pthread_create(&stream->thread, NULL, stream_main, stream) == 0 ? TWIN_OK : TWIN_NOMEM;
    } else if (status == TWIN_OK) {
        status = TWIN_NOMEM;
    }
    twin->streams += status == TWIN_OK;
    *out = stream;
    if (status != TWIN_OK)
        free(stream);
    return cuda_twin_leave_call(twin, status);
}

void cuda_twin_stream_destroy(const struct kvl_cuda_driver *driver, void *handle) {
    struct cuda_twin *twin = cuda_twin_of(driver);
    struct stream *stream = handle;
    cuda_twin_enter_call(twin);
    if (stream->head != NULL && !twin->lost && !twin->lost_calls)
        cuda_twin_violated(twin, "a stream was destroyed that had work");
    stream->stopping = true;
    twin->streams--;
    pthread_cond_broadcast(&twin->changed);
    cuda_twin_leave_call(twin, TWIN_OK);
    pthread_join(stream->thread, NULL);
    while (stream->head != NULL) {
        struct operation *operation = stream->head;
        stream->head = operation->next;
        free(operation);
    }
    free(stream);
}

kvl_cuda_status cuda_twin_stream_query(const struct kvl_cuda_driver *driver, void *handle) {
    struct cuda_twin *twin = cuda_twin_of(driver);
    const struct stream *stream = handle;
    int status = cuda_twin_enter_call(twin);
    if (stream->running || (stream->head != NULL && !twin->lost))
        status = TWIN_NOT_READY;
    return cuda_twin_leave_call(twin, status);
}

/* Under the mutex. */
static int check_copies(
    struct cuda_twin *twin, const struct kvl_cuda_copy *copies, uint32_t count) {
    for (uint32_t i = 0; i < count; i++) {
        const struct kvl_cuda_copy *copy = &copies[i];
        if (copy->copy_bytes == 0 ||
            cuda_twin_range_of(twin, true, (uintptr_t)copy->device, copy->copy_bytes) == NULL) {
            cuda_twin_violated(twin, "a copy outside the device's memory");
            return TWIN_INVALID;
        }
        if (cuda_twin_range_of(twin, false, (uintptr_t)copy->host, copy->copy_bytes) == NULL) {
            cuda_twin_violated(twin, "a copy outside pinned memory, or over two pieces of it");
            return TWIN_INVALID;
        }
    }
    return TWIN_OK;
}

/* Under the mutex. */
static int enqueue(struct cuda_twin *twin, struct stream *stream, struct operation *operation) {
    if (operation == NULL)
        return TWIN_NOMEM;
    *stream->tail = operation;
    stream->tail = &operation->next;
    pthread_cond_broadcast(&twin->changed);
    return TWIN_OK;
}

kvl_cuda_status cuda_twin_copy(const struct kvl_cuda_driver *driver, void *stream,
    enum kvl_cuda_direction direction, const struct kvl_cuda_copy *copies, uint32_t count) {
    struct cuda_twin *twin = cuda_twin_of(driver);
    int status = cuda_twin_enter_call(twin);
    while (twin->stalled[direction])
        pthread_cond_wait(&twin->changed, &twin->mutex);
    if (status == TWIN_OK)
        status = check_copies(twin, copies, count);
    if (status == TWIN_OK && twin->fail_in == 0)
        status = TWIN_FAILED;
    twin->fail_in =
        status == TWIN_FAILED ? UINT32_MAX : twin->fail_in - (twin->fail_in != UINT32_MAX);
    if (status == TWIN_OK) {
        struct operation *operation =
            calloc(1, sizeof *operation + count * sizeof operation->copies[0]);
        if (operation != NULL) {
            operation->direction = direction;
            operation->count = count;
            operation->call = twin->calls++;
            memcpy(operation->copies, copies, count * sizeof *copies);
        }
        status = enqueue(twin, stream, operation);
    }
    return cuda_twin_leave_call(twin, status);
}

kvl_cuda_status cuda_twin_write_word(
    const struct kvl_cuda_driver *driver, void *stream, uint64_t device, uint32_t value) {
    struct cuda_twin *twin = cuda_twin_of(driver);
    int status = cuda_twin_enter_call(twin);
    if (status == TWIN_OK && twin->refuse_words)
        status = TWIN_NOMEM;
    if (status == TWIN_OK &&
        cuda_twin_range_of(twin, false, (uintptr_t)device, sizeof value) == NULL) {
        cuda_twin_violated(twin, "a word outside pinned memory");
        status = TWIN_INVALID;
    }
    if (status == TWIN_OK) {
        struct operation *operation = calloc(1, sizeof *operation);
        if (operation != NULL) {
            operation->word = (uint32_t *)(uintptr_t)device;
            operation->value = value;
        }
        status = enqueue(twin, stream, operation);
        twin->words += status == TWIN_OK;
    }
    return cuda_twin_leave_call(twin, status);
}
