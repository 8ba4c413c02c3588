#include "cuda_twin.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "cuda_twin_private.h"

static _Thread_local uint32_t contexts_entered;

struct cuda_twin *cuda_twin_of(const struct kvl_cuda_driver *driver) {
    return (struct cuda_twin *)(uintptr_t)driver; /* its first member */
}

void cuda_twin_lock(struct cuda_twin *twin) {
    pthread_mutex_lock(&twin->mutex);
}

void cuda_twin_unlock(struct cuda_twin *twin) {
    pthread_mutex_unlock(&twin->mutex);
}

/* Under the mutex; the first is kept. */
void cuda_twin_violated(struct cuda_twin *twin, const char *what) {
    if (twin->violation[0] == '\0')
        snprintf(twin->violation, sizeof twin->violation, "%s", what);
}

/* Takes the mutex. */
int cuda_twin_enter_call(struct cuda_twin *twin) {
    cuda_twin_lock(twin);
    if (contexts_entered == 0)
        cuda_twin_violated(twin, "a call outside the context");
    return twin->lost || twin->lost_calls ? TWIN_LOST : TWIN_OK;
}

int cuda_twin_leave_call(struct cuda_twin *twin, int status) {
    cuda_twin_unlock(twin);
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
    cuda_twin_violated(twin, "too many ranges for the twin");
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
    cuda_twin_violated(twin, "memory was given back that was not taken");
    return 0;
}

const struct range *cuda_twin_range_of(
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
    struct cuda_twin *twin = cuda_twin_of(driver);
    cuda_twin_lock(twin);
    const int status = twin->lost ? TWIN_LOST : TWIN_OK;
    cuda_twin_unlock(twin);
    *count = 1;
    return status;
}

static kvl_cuda_status device_info(
    const struct kvl_cuda_driver *driver, uint32_t device, struct kvl_cuda_device_info *out) {
    struct cuda_twin *twin = cuda_twin_of(driver);
    (void)device;
    cuda_twin_lock(twin);
    *out = (struct kvl_cuda_device_info){.name = "twin",
        .uuid = "twin of a GPU",
        .maps_memory = true,
        .exports_fds = !twin->refuse_export,
        .pins_host = true,
        .is_addressed = true};
    cuda_twin_unlock(twin);
    return TWIN_OK;
}

static kvl_cuda_status context_open(
    const struct kvl_cuda_driver *driver, uint32_t device, void **context) {
    struct cuda_twin *twin = cuda_twin_of(driver);
    (void)device;
    cuda_twin_lock(twin);
    twin->contexts++;
    *context = twin;
    cuda_twin_unlock(twin);
    return TWIN_OK;
}

static void context_close(const struct kvl_cuda_driver *driver, uint32_t device) {
    struct cuda_twin *twin = cuda_twin_of(driver);
    (void)device;
    cuda_twin_lock(twin);
    if (twin->contexts-- == 0)
        cuda_twin_violated(twin, "a context was closed twice");
    cuda_twin_unlock(twin);
}

static kvl_cuda_status context_enter(const struct kvl_cuda_driver *driver, void *context) {
    contexts_entered++;
    return context == cuda_twin_of(driver) ? TWIN_OK : TWIN_INVALID;
}

static void context_leave(const struct kvl_cuda_driver *driver) {
    (void)driver;
    contexts_entered--;
}

/* ---- device memory -------------------------------------------------------------------------- */

static kvl_cuda_status memory_free_bytes(const struct kvl_cuda_driver *driver, uint64_t *bytes) {
    struct cuda_twin *twin = cuda_twin_of(driver);
    int status = cuda_twin_enter_call(twin);
    *bytes = twin->memory_bytes - twin->used_bytes;
    return cuda_twin_leave_call(twin, status);
}

static kvl_cuda_status memory_granularity(
    const struct kvl_cuda_driver *driver, uint32_t device, uint64_t *bytes) {
    struct cuda_twin *twin = cuda_twin_of(driver);
    (void)device;
    *bytes = CUDA_TWIN_GRANULE_BYTES;
    return cuda_twin_leave_call(twin, cuda_twin_enter_call(twin));
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
    struct cuda_twin *twin = cuda_twin_of(driver);
    (void)device;
    int status = cuda_twin_enter_call(twin);
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
    return cuda_twin_leave_call(twin, status);
}

static void memory_release(const struct kvl_cuda_driver *driver, uint64_t handle) {
    struct cuda_twin *twin = cuda_twin_of(driver);
    cuda_twin_enter_call(twin);
    struct memory *memory = &twin->memories[handle - 1];
    if (handle == 0 || handle > MEMORIES_MAX || memory->fd < 0) {
        cuda_twin_violated(twin, "memory was released twice");
    } else {
        twin->used_bytes -= memory->bytes;
        close(memory->fd);
        memory->fd = -1;
    }
    cuda_twin_leave_call(twin, TWIN_OK);
}

static kvl_cuda_status memory_export(
    const struct kvl_cuda_driver *driver, uint64_t handle, int *fd) {
    struct cuda_twin *twin = cuda_twin_of(driver);
    int status = cuda_twin_enter_call(twin);
    if (status == TWIN_OK) {
        *fd = dup(twin->memories[handle - 1].fd);
        status = *fd >= 0 ? TWIN_OK : TWIN_NOMEM;
    }
    return cuda_twin_leave_call(twin, status);
}

/* Takes no memory of the device, whose it is already. */
static kvl_cuda_status memory_import(
    const struct kvl_cuda_driver *driver, int fd, uint64_t *handle) {
    struct cuda_twin *twin = cuda_twin_of(driver);
    int status = cuda_twin_enter_call(twin);
    if (status == TWIN_OK)
        status = memory_keep(twin, dup(fd), 0, handle);
    return cuda_twin_leave_call(twin, status);
}

static kvl_cuda_status memory_map(const struct kvl_cuda_driver *driver, uint32_t device,
    uint64_t handle, uint64_t bytes, uint64_t *address) {
    struct cuda_twin *twin = cuda_twin_of(driver);
    (void)device;
    int status = cuda_twin_enter_call(twin);
    if (status == TWIN_OK) {
        void *at =
            mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, twin->memories[handle - 1].fd, 0);
        status =
            at != MAP_FAILED && range_add(twin, RANGE_DEVICE, at, bytes) ? TWIN_OK : TWIN_NOMEM;
        *address = (uintptr_t)at;
    }
    return cuda_twin_leave_call(twin, status);
}

static void memory_unmap(const struct kvl_cuda_driver *driver, uint64_t address, uint64_t bytes) {
    struct cuda_twin *twin = cuda_twin_of(driver);
    cuda_twin_enter_call(twin);
    if (range_remove(twin, RANGE_DEVICE, (void *)(uintptr_t)address) != bytes)
        cuda_twin_violated(twin, "other bytes were unmapped than were mapped");
    else
        munmap((void *)(uintptr_t)address, bytes);
    cuda_twin_leave_call(twin, TWIN_OK);
}

/* ---- pinned memory -------------------------------------------------------------------------- */

static kvl_cuda_status host_register(
    const struct kvl_cuda_driver *driver, void *address, uint64_t bytes) {
    struct cuda_twin *twin = cuda_twin_of(driver);
    int status = cuda_twin_enter_call(twin);
    if (status == TWIN_OK && twin->refuse_pins)
        status = TWIN_NOMEM;
    if (status == TWIN_OK && !range_add(twin, RANGE_PINNED, address, bytes))
        status = TWIN_NOMEM;
    return cuda_twin_leave_call(twin, status);
}

static void host_unregister(const struct kvl_cuda_driver *driver, void *address) {
    struct cuda_twin *twin = cuda_twin_of(driver);
    cuda_twin_enter_call(twin);
    range_remove(twin, RANGE_PINNED, address);
    cuda_twin_leave_call(twin, TWIN_OK);
}

static kvl_cuda_status host_alloc(
    const struct kvl_cuda_driver *driver, uint64_t bytes, void **address, uint64_t *device) {
    struct cuda_twin *twin = cuda_twin_of(driver);
    int status = cuda_twin_enter_call(twin);
    if (status == TWIN_OK) {
        *address = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
        *device = (uintptr_t)*address;
        if (*address == NULL || !range_add(twin, RANGE_HOST, *address, bytes))
            status = TWIN_NOMEM;
    }
    return cuda_twin_leave_call(twin, status);
}

static void host_free(const struct kvl_cuda_driver *driver, void *address) {
    struct cuda_twin *twin = cuda_twin_of(driver);
    cuda_twin_enter_call(twin);
    if (range_remove(twin, RANGE_HOST, address) != 0)
        free(address);
    cuda_twin_leave_call(twin, TWIN_OK);
}

static const char *shortfall(const struct kvl_cuda_driver *driver) {
    (void)driver;
    return NULL;
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
    .stream_create = cuda_twin_stream_create,
    .stream_destroy = cuda_twin_stream_destroy,
    .stream_query = cuda_twin_stream_query,
    .copy = cuda_twin_copy,
    .shortfall = shortfall,
    .write_word = cuda_twin_write_word,
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
    cuda_twin_lock(twin);
    twin->hold = hold;
    pthread_cond_broadcast(&twin->changed);
    cuda_twin_unlock(twin);
}

void cuda_twin_stall(struct cuda_twin *twin, enum kvl_cuda_direction direction, bool stall) {
    cuda_twin_lock(twin);
    twin->stalled[direction] = stall;
    pthread_cond_broadcast(&twin->changed);
    cuda_twin_unlock(twin);
}

void cuda_twin_skip_copies(struct cuda_twin *twin, bool skip) {
    cuda_twin_lock(twin);
    twin->skip = skip;
    cuda_twin_unlock(twin);
}

void cuda_twin_set_delay(struct cuda_twin *twin, uint64_t delay_ns) {
    cuda_twin_lock(twin);
    twin->delay_ns = delay_ns;
    cuda_twin_unlock(twin);
}

void cuda_twin_fail_copies(struct cuda_twin *twin, uint32_t calls) {
    cuda_twin_lock(twin);
    twin->fail_in = calls;
    cuda_twin_unlock(twin);
}

void cuda_twin_lose(struct cuda_twin *twin, uint32_t calls) {
    cuda_twin_lock(twin);
    twin->lose_in = calls;
    twin->lost = calls == 0;
    pthread_cond_broadcast(&twin->changed);
    cuda_twin_unlock(twin);
}

void cuda_twin_lose_calls(struct cuda_twin *twin) {
    cuda_twin_lock(twin);
    twin->lost_calls = true;
    cuda_twin_unlock(twin);
}

void cuda_twin_refuse_words(struct cuda_twin *twin, bool refuse) {
    cuda_twin_lock(twin);
    twin->refuse_words = refuse;
    cuda_twin_unlock(twin);
}

void cuda_twin_refuse_pins(struct cuda_twin *twin, bool refuse) {
    cuda_twin_lock(twin);
    twin->refuse_pins = refuse;
    cuda_twin_unlock(twin);
}

void cuda_twin_refuse_export(struct cuda_twin *twin, bool refuse) {
    cuda_twin_lock(twin);
    twin->refuse_export = refuse;
    cuda_twin_unlock(twin);
}

uint32_t cuda_twin_take_copies(
    struct cuda_twin *twin, struct cuda_twin_copy *copies, uint32_t max) {
    cuda_twin_lock(twin);
    const uint32_t count = twin->log_count < max ? twin->log_count : max;
    memcpy(copies, twin->log, count * sizeof *copies);
    twin->log_count = 0;
    cuda_twin_unlock(twin);
    return count;
}

uint32_t cuda_twin_calls(struct cuda_twin *twin) {
    cuda_twin_lock(twin);
    const uint32_t calls = twin->calls;
    cuda_twin_unlock(twin);
    return calls;
}

uint32_t cuda_twin_words(struct cuda_twin *twin) {
    cuda_twin_lock(twin);
    const uint32_t words = twin->words;
    cuda_twin_unlock(twin);
    return words;
}

const char *cuda_twin_violation(struct cuda_twin *twin) {
    cuda_twin_lock(twin);
    const char *violation = twin->violation[0] != '\0' ? twin->violation : NULL;
    cuda_twin_unlock(twin);
    return violation;
}

uint32_t cuda_twin_leaks(struct cuda_twin *twin) {
    cuda_twin_lock(twin);
    uint32_t leaks = twin->contexts + twin->streams;
    for (uint32_t i = 0; i < MEMORIES_MAX; i++)
        leaks += twin->memories[i].fd >= 0;
    for (uint32_t i = 0; i < RANGES_MAX; i++)
        leaks += twin->ranges[i].kind != RANGE_FREE;
    cuda_twin_unlock(twin);
    return leaks;
}
