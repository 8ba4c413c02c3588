#include "cuda_twin.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define RANGES_MAX 256u
#define LOG_MAX 65536u
#define MEMORIES_MAX 8u

enum twin_status {
    TWIN_OK = KVL_CUDA_OK,
    TWIN_INVALID = 1,
    TWIN_NOMEM = 2,
    TWIN_REFUSED = 3,
    TWIN_NOT_READY = 600,
    TWIN_FAILED = 304,
    TWIN_LOST = 719,
};

enum range_kind { RANGE_FREE, RANGE_PINNED, RANGE_HOST, RANGE_DEVICE };

struct range {
    enum range_kind kind;
    uintptr_t start;
    uint64_t bytes;
};

struct memory {
    int fd; /* -1: free */
    uint64_t bytes;
};

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

struct cuda_twin {
    struct kvl_cuda_driver driver;
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    uint64_t memory_bytes, used_bytes;
    uint64_t delay_ns;
    bool hold, lost, refuse_pins, refuse_export;
    uint32_t calls, fail_in, lose_in; /* UINT32_MAX: never */
    uint32_t contexts, streams;
    struct memory memories[MEMORIES_MAX];
    struct range ranges[RANGES_MAX];
    char violation[128];
    uint32_t log_count;
    struct cuda_twin_copy log[LOG_MAX];
};

static _Thread_local uint32_t contexts_entered;

static struct cuda_twin *twin_of(const struct kvl_cuda_driver *driver) {
    return (struct cuda_twin *)(uintptr_t)driver; /* its first member */
}

static void lock(struct cuda_twin *twin) {
    pthread_mutex_lock(&twin->mutex);
}

static void unlock(struct cuda_twin *twin) {
    pthread_mutex_unlock(&twin->mutex);
}

/* Under the mutex; the first is kept. */
static void violated(struct cuda_twin *twin, const char *what) {
    if (twin->violation[0] == '\0')
        snprintf(twin->violation, sizeof twin->violation, "%s", what);
}

/* Takes the mutex. */
static int enter_call(struct cuda_twin *twin) {
    lock(twin);
    if (contexts_entered == 0)
        violated(twin, "a call outside the context");
    return twin->lost ? TWIN_LOST : TWIN_OK;
}

static int leave_call(struct cuda_twin *twin, int status) {
    unlock(twin);
    return status;
}

/* ---- ranges --------------------------------------------------------------------------------- */

static bool range_add(
    struct cuda_twin *twin, enum range_kind kind, const void *start, uint64_t bytes) {
    for (uint32_t i = 0; i < RANGES_MAX; i++) {
        if (twin->ranges[i].kind != RANGE_FREE)
            continue;
        twin->ranges[i] = (struct range){.kind = kind, .start = (uintptr_t)start, .bytes = bytes};
        return true;
    }
    violated(twin, "too many ranges for the twin");
    return false;
}

/* The bytes it had; 0: there was none. */
static uint64_t range_remove(struct cuda_twin *twin, enum range_kind kind, const void *start) {
    for (uint32_t i = 0; i < RANGES_MAX; i++) {
        struct range *range = &twin->ranges[i];
        if (range->kind != kind || range->start != (uintptr_t)start)
            continue;
        range->kind = RANGE_FREE;
        return range->bytes;
    }
    violated(twin, "memory was given back that was not taken");
    return 0;
}

static const struct range *range_of(
    const struct cuda_twin *twin, bool device, uintptr_t start, uint64_t bytes) {
    for (uint32_t i = 0; i < RANGES_MAX; i++) {
        const struct range *range = &twin->ranges[i];
        if (range->kind == RANGE_FREE || (range->kind == RANGE_DEVICE) != device)
            continue;
        if (start >= range->start && bytes <= range->bytes &&
            start - range->start <= range->bytes - bytes)
            return range;
    }
    return NULL;
}

/* ---- statuses and devices ------------------------------------------------------------------- */

static kvl_err twin_err_from(kvl_cuda_status status) {
    switch (status) {
    case TWIN_OK:
        return KVL_OK;
    case TWIN_INVALID:
        return KVL_ERR_INVALID;
    case TWIN_NOMEM:
        return KVL_ERR_NOMEM;
    case TWIN_REFUSED:
        return KVL_ERR_PERM;
    case TWIN_NOT_READY:
        return KVL_ERR_AGAIN;
    case TWIN_FAILED:
        return KVL_ERR_IO;
    default:
        return KVL_ERR_CLOSED;
    }
}

static const char *twin_text(const struct kvl_cuda_driver *driver, kvl_cuda_status status) {
    (void)driver;
    return kvl_err_text(twin_err_from(status));
}

static kvl_cuda_status device_count(const struct kvl_cuda_driver *driver, uint32_t *count) {
    (void)driver;
    *count = 1;
    return TWIN_OK;
}

static kvl_cuda_status device_info(
    const struct kvl_cuda_driver *driver, uint32_t device, struct kvl_cuda_device_info *out) {
    struct cuda_twin *twin = twin_of(driver);
    (void)device;
    lock(twin);
    *out = (struct kvl_cuda_device_info){.name = "twin",
        .uuid = "twin of a GPU",
        .maps_memory = true,
        .exports_fds = !twin->refuse_export,
        .pins_host = true,
        .is_addressed = true};
    unlock(twin);
    return TWIN_OK;
}

static kvl_cuda_status context_open(
    const struct kvl_cuda_driver *driver, uint32_t device, void **context) {
    struct cuda_twin *twin = twin_of(driver);
    (void)device;
    lock(twin);
    twin->contexts++;
    *context = twin;
    unlock(twin);
    return TWIN_OK;
}

static void context_close(const struct kvl_cuda_driver *driver, uint32_t device) {
    struct cuda_twin *twin = twin_of(driver);
    (void)device;
    lock(twin);
    if (twin->contexts-- == 0)
        violated(twin, "a context was closed twice");
    unlock(twin);
}

static kvl_cuda_status context_enter(const struct kvl_cuda_driver *driver, void *context) {
    contexts_entered++;
    return context == twin_of(driver) ? TWIN_OK : TWIN_INVALID;
}

static void context_leave(const struct kvl_cuda_driver *driver) {
    (void)driver;
    contexts_entered--;
}

/* ---- device memory -------------------------------------------------------------------------- */

static kvl_cuda_status memory_free_bytes(const struct kvl_cuda_driver *driver, uint64_t *bytes) {
    struct cuda_twin *twin = twin_of(driver);
    int status = enter_call(twin);
    *bytes = twin->memory_bytes - twin->used_bytes;
    return leave_call(twin, status);
}

static kvl_cuda_status memory_granularity(
    const struct kvl_cuda_driver *driver, uint32_t device, uint64_t *bytes) {
    struct cuda_twin *twin = twin_of(driver);
    (void)device;
    *bytes = CUDA_TWIN_GRANULE_BYTES;
    return leave_call(twin, enter_call(twin));
}

/* Under the mutex. The handle is the place in the table, from 1. */
static int memory_keep(struct cuda_twin *twin, int fd, uint64_t bytes, uint64_t *handle) {
    for (uint32_t i = 0; i < MEMORIES_MAX && fd >= 0; i++) {
        if (twin->memories[i].fd >= 0)
            continue;
        twin->memories[i] = (struct memory){.fd = fd, .bytes = bytes};
        *handle = i + 1;
        return TWIN_OK;
    }
    return TWIN_NOMEM;
}

static kvl_cuda_status memory_create(
    const struct kvl_cuda_driver *driver, uint32_t device, uint64_t bytes, uint64_t *handle) {
    struct cuda_twin *twin = twin_of(driver);
    (void)device;
    int status = enter_call(twin);
    if (status == TWIN_OK && bytes % CUDA_TWIN_GRANULE_BYTES != 0)
        status = TWIN_INVALID;
    if (status == TWIN_OK && bytes > twin->memory_bytes - twin->used_bytes)
        status = TWIN_NOMEM;
    if (status == TWIN_OK) {
        int fd = memfd_create("twin", MFD_CLOEXEC);
        if (fd >= 0 && ftruncate(fd, (off_t)bytes) == 0)
            status = memory_keep(twin, fd, bytes, handle);
        else
            status = TWIN_NOMEM;
        if (status != TWIN_OK && fd >= 0)
            close(fd);
        if (status == TWIN_OK)
            twin->used_bytes += bytes;
    }
    return leave_call(twin, status);
}

static void memory_release(const struct kvl_cuda_driver *driver, uint64_t handle) {
    struct cuda_twin *twin = twin_of(driver);
    enter_call(twin);
    struct memory *memory = &twin->memories[handle - 1];
    if (handle == 0 || handle > MEMORIES_MAX || memory->fd < 0) {
        violated(twin, "memory was released twice");
    } else {
        twin->used_bytes -= memory->bytes;
        close(memory->fd);
        memory->fd = -1;
    }
    leave_call(twin, TWIN_OK);
}

static kvl_cuda_status memory_export(
    const struct kvl_cuda_driver *driver, uint64_t handle, int *fd) {
    struct cuda_twin *twin = twin_of(driver);
    int status = enter_call(twin);
    if (status == TWIN_OK) {
        *fd = dup(twin->memories[handle - 1].fd);
        status = *fd >= 0 ? TWIN_OK : TWIN_NOMEM;
    }
    return leave_call(twin, status);
}

/* Takes no memory of the device, whose it is already. */
static kvl_cuda_status memory_import(
    const struct kvl_cuda_driver *driver, int fd, uint64_t *handle) {
    struct cuda_twin *twin = twin_of(driver);
    int status = enter_call(twin);
    if (status == TWIN_OK)
        status = memory_keep(twin, dup(fd), 0, handle);
    return leave_call(twin, status);
}

static kvl_cuda_status memory_map(const struct kvl_cuda_driver *driver, uint32_t device,
    uint64_t handle, uint64_t bytes, uint64_t *address) {
    struct cuda_twin *twin = twin_of(driver);
    (void)device;
    int status = enter_call(twin);
    if (status == TWIN_OK) {
        void *at =
            mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, twin->memories[handle - 1].fd, 0);
        status =
            at != MAP_FAILED && range_add(twin, RANGE_DEVICE, at, bytes) ? TWIN_OK : TWIN_NOMEM;
        *address = (uintptr_t)at;
    }
    return leave_call(twin, status);
}

static void memory_unmap(const struct kvl_cuda_driver *driver, uint64_t address, uint64_t bytes) {
    struct cuda_twin *twin = twin_of(driver);
    enter_call(twin);
    if (range_remove(twin, RANGE_DEVICE, (void *)(uintptr_t)address) != bytes)
        violated(twin, "other bytes were unmapped than were mapped");
    else
        munmap((void *)(uintptr_t)address, bytes);
    leave_call(twin, TWIN_OK);
}

/* ---- pinned memory -------------------------------------------------------------------------- */

static kvl_cuda_status host_register(
    const struct kvl_cuda_driver *driver, void *address, uint64_t bytes) {
    struct cuda_twin *twin = twin_of(driver);
    int status = enter_call(twin);
    if (status == TWIN_OK && twin->refuse_pins)
        status = TWIN_NOMEM;
    if (status == TWIN_OK && !range_add(twin, RANGE_PINNED, address, bytes))
        status = TWIN_NOMEM;
    return leave_call(twin, status);
}

static void host_unregister(const struct kvl_cuda_driver *driver, void *address) {
    struct cuda_twin *twin = twin_of(driver);
    enter_call(twin);
    range_remove(twin, RANGE_PINNED, address);
    leave_call(twin, TWIN_OK);
}

static kvl_cuda_status host_alloc(
    const struct kvl_cuda_driver *driver, uint64_t bytes, void **address, uint64_t *device) {
    struct cuda_twin *twin = twin_of(driver);
    int status = enter_call(twin);
    if (status == TWIN_OK) {
        *address = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
        *device = (uintptr_t)*address;
        if (*address == NULL || !range_add(twin, RANGE_HOST, *address, bytes))
            status = TWIN_NOMEM;
    }
    return leave_call(twin, status);
}

static void host_free(const struct kvl_cuda_driver *driver, void *address) {
    struct cuda_twin *twin = twin_of(driver);
    enter_call(twin);
    if (range_remove(twin, RANGE_HOST, address) != 0)
        free(address);
    leave_call(twin, TWIN_OK);
}

/* ---- streams -------------------------------------------------------------------------------- */

static void log_copy(
    struct cuda_twin *twin, const struct operation *operation, const struct kvl_cuda_copy *copy) {
    const struct range *range = range_of(twin, true, (uintptr_t)copy->device, copy->copy_bytes);
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
    unlock(twin);
    make_copies(operation, delay_ns);
    lock(twin);
    for (uint32_t i = 0; i < operation->count; i++)
        log_copy(twin, operation, &operation->copies[i]);
}

static void *stream_main(void *arg) {
    struct stream *stream = arg;
    struct cuda_twin *twin = stream->twin;
    lock(twin);
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
    unlock(twin);
    return NULL;
}

static kvl_cuda_status stream_create(
    const struct kvl_cuda_driver *driver, bool urgent, void **out) {
    struct cuda_twin *twin = twin_of(driver);
    (void)urgent;
    int status = enter_call(twin);
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
    return leave_call(twin, status);
}

static void stream_destroy(const struct kvl_cuda_driver *driver, void *handle) {
    struct cuda_twin *twin = twin_of(driver);
    struct stream *stream = handle;
    enter_call(twin);
    if (stream->head != NULL && !twin->lost)
        violated(twin, "a stream was destroyed that had work");
    stream->stopping = true;
    twin->streams--;
    pthread_cond_broadcast(&twin->changed);
    leave_call(twin, TWIN_OK);
    pthread_join(stream->thread, NULL);
    while (stream->head != NULL) {
        struct operation *operation = stream->head;
        stream->head = operation->next;
        free(operation);
    }
    free(stream);
}

static kvl_cuda_status stream_query(const struct kvl_cuda_driver *driver, void *handle) {
    struct cuda_twin *twin = twin_of(driver);
    const struct stream *stream = handle;
    int status = enter_call(twin);
    if (status == TWIN_OK && stream->head != NULL)
        status = TWIN_NOT_READY;
    return leave_call(twin, status);
}

/* Under the mutex. */
static int check_copies(
    struct cuda_twin *twin, const struct kvl_cuda_copy *copies, uint32_t count) {
    for (uint32_t i = 0; i < count; i++) {
        const struct kvl_cuda_copy *copy = &copies[i];
        if (copy->copy_bytes == 0 ||
            range_of(twin, true, (uintptr_t)copy->device, copy->copy_bytes) == NULL) {
            violated(twin, "a copy outside the device's memory");
            return TWIN_INVALID;
        }
        if (range_of(twin, false, (uintptr_t)copy->host, copy->copy_bytes) == NULL) {
            violated(twin, "a copy outside pinned memory, or over two pieces of it");
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

static kvl_cuda_status copy(const struct kvl_cuda_driver *driver, void *stream,
    enum kvl_cuda_direction direction, const struct kvl_cuda_copy *copies, uint32_t count) {
    struct cuda_twin *twin = twin_of(driver);
    int status = enter_call(twin);
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
    return leave_call(twin, status);
}

static const char *shortfall(const struct kvl_cuda_driver *driver) {
    (void)driver;
    return NULL;
}

static kvl_cuda_status write_word(
    const struct kvl_cuda_driver *driver, void *stream, uint64_t device, uint32_t value) {
    struct cuda_twin *twin = twin_of(driver);
    int status = enter_call(twin);
    if (status == TWIN_OK && range_of(twin, false, (uintptr_t)device, sizeof value) == NULL) {
        violated(twin, "a word outside pinned memory");
        status = TWIN_INVALID;
    }
    if (status == TWIN_OK) {
        struct operation *operation = calloc(1, sizeof *operation);
        if (operation != NULL) {
            operation->word = (uint32_t *)(uintptr_t)device;
            operation->value = value;
        }
        status = enqueue(twin, stream, operation);
    }
    return leave_call(twin, status);
}

static const struct kvl_cuda_driver twin_table = {
    .name = "twin",
    .err_from = twin_err_from,
    .text = twin_text,
    .device_count = device_count,
    .device_info = device_info,
    .context_open = context_open,
    .context_close = context_close,
    .context_enter = context_enter,
    .context_leave = context_leave,
    .memory_free_bytes = memory_free_bytes,
    .memory_granularity = memory_granularity,
    .memory_create = memory_create,
    .memory_release = memory_release,
    .memory_export = memory_export,
    .memory_import = memory_import,
    .memory_map = memory_map,
    .memory_unmap = memory_unmap,
    .host_register = host_register,
    .host_unregister = host_unregister,
    .host_alloc = host_alloc,
    .host_free = host_free,
    .stream_create = stream_create,
    .stream_destroy = stream_destroy,
    .stream_query = stream_query,
    .copy = copy,
    .shortfall = shortfall,
    .write_word = write_word,
};

/* ---- for tests ------------------------------------------------------------------------------ */

struct cuda_twin *cuda_twin_create(uint64_t memory_bytes) {
    struct cuda_twin *twin = calloc(1, sizeof *twin);
    if (twin == NULL)
        return NULL;
    twin->driver = twin_table;
    twin->memory_bytes = memory_bytes;
    twin->fail_in = twin->lose_in = UINT32_MAX;
    for (uint32_t i = 0; i < MEMORIES_MAX; i++)
        twin->memories[i].fd = -1;
    pthread_mutex_init(&twin->mutex, NULL);
    pthread_cond_init(&twin->changed, NULL);
    return twin;
}

void cuda_twin_destroy(struct cuda_twin *twin) {
    if (twin == NULL)
        return;
    pthread_cond_destroy(&twin->changed);
    pthread_mutex_destroy(&twin->mutex);
    free(twin);
}

const struct kvl_cuda_driver *cuda_twin_driver(const struct cuda_twin *twin) {
    return &twin->driver;
}

void cuda_twin_hold(struct cuda_twin *twin, bool hold) {
    lock(twin);
    twin->hold = hold;
    pthread_cond_broadcast(&twin->changed);
    unlock(twin);
}

void cuda_twin_set_delay(struct cuda_twin *twin, uint64_t delay_ns) {
    lock(twin);
    twin->delay_ns = delay_ns;
    unlock(twin);
}

void cuda_twin_fail_copies(struct cuda_twin *twin, uint32_t calls) {
    lock(twin);
    twin->fail_in = calls;
    unlock(twin);
}

void cuda_twin_lose(struct cuda_twin *twin, uint32_t calls) {
    lock(twin);
    twin->lose_in = calls;
    twin->lost = calls == 0;
    pthread_cond_broadcast(&twin->changed);
    unlock(twin);
}

void cuda_twin_refuse_pins(struct cuda_twin *twin, bool refuse) {
    lock(twin);
    twin->refuse_pins = refuse;
    unlock(twin);
}

void cuda_twin_refuse_export(struct cuda_twin *twin, bool refuse) {
    lock(twin);
    twin->refuse_export = refuse;
    unlock(twin);
}

uint32_t cuda_twin_take_copies(
    struct cuda_twin *twin, struct cuda_twin_copy *copies, uint32_t max) {
    lock(twin);
    const uint32_t count = twin->log_count < max ? twin->log_count : max;
    memcpy(copies, twin->log, count * sizeof *copies);
    twin->log_count = 0;
    unlock(twin);
    return count;
}

uint32_t cuda_twin_calls(struct cuda_twin *twin) {
    lock(twin);
    const uint32_t calls = twin->calls;
    unlock(twin);
    return calls;
}

const char *cuda_twin_violation(struct cuda_twin *twin) {
    lock(twin);
    const char *violation = twin->violation[0] != '\0' ? twin->violation : NULL;
    unlock(twin);
    return violation;
}

uint32_t cuda_twin_leaks(struct cuda_twin *twin) {
    lock(twin);
    uint32_t leaks = twin->contexts + twin->streams;
    for (uint32_t i = 0; i < MEMORIES_MAX; i++)
        leaks += twin->memories[i].fd >= 0;
    for (uint32_t i = 0; i < RANGES_MAX; i++)
        leaks += twin->ranges[i].kind != RANGE_FREE;
    unlock(twin);
    return leaks;
}
