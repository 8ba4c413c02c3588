#include "cuda_device.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

static kvl_err check(
    const struct kvl_cuda_driver *driver, const char *what, kvl_cuda_status status) {
    if (status != KVL_CUDA_OK)
        fprintf(stderr, "cuda_device: %s: %d, %s\n", what, status, driver->text(driver, status));
    return driver->err_from(status);
}

static kvl_err open_entered(int fd, struct cuda_device *device) {
    const struct kvl_cuda_driver *driver = device->driver;
    uint64_t unused;
    void *pinned = NULL;
    kvl_err err = check(driver, "import", driver->memory_import(driver, fd, &device->memory));
    if (err == KVL_OK)
        err = check(driver, "map",
            driver->memory_map(
                driver, device->ordinal, device->memory, device->arena_bytes, &device->address));
    if (err == KVL_OK)
        err = check(driver, "make a stream", driver->stream_create(driver, true, &device->stream));
    if (err == KVL_OK)
        err = check(
            driver, "pin", driver->host_alloc(driver, CUDA_DEVICE_PIECE_BYTES, &pinned, &unused));
    device->pinned = pinned;
    return err;
}

kvl_err cuda_device_open(const struct kvl_cuda_driver *driver, uint32_t ordinal, int fd,
    uint64_t arena_bytes, struct cuda_device *out) {
    *out = (struct cuda_device){.driver = driver, .ordinal = ordinal, .arena_bytes = arena_bytes};
    kvl_err err =
        check(driver, "open a context", driver->context_open(driver, ordinal, &out->context));
    if (err != KVL_OK)
        return err;
    err = check(driver, "enter", driver->context_enter(driver, out->context));
    if (err == KVL_OK)
        err = open_entered(fd, out);
    driver->context_leave(driver);
    return err;
}

void cuda_device_close(struct cuda_device *device) {
    const struct kvl_cuda_driver *driver = device->driver;
    if (driver->context_enter(driver, device->context) == KVL_CUDA_OK) {
        if (device->pinned != NULL)
            driver->host_free(driver, device->pinned);
        if (device->stream != NULL)
            driver->stream_destroy(driver, device->stream);
        if (device->address != 0)
            driver->memory_unmap(driver, device->address, device->arena_bytes);
        if (device->memory != 0)
            driver->memory_release(driver, device->memory);
        driver->context_leave(driver);
    }
    driver->context_close(driver, device->ordinal);
}

/* One piece, to its end. */
static kvl_err move(const struct cuda_device *device, enum kvl_cuda_direction direction,
    uint64_t offset_bytes, uint64_t bytes) {
    const struct kvl_cuda_driver *driver = device->driver;
    const struct kvl_cuda_copy copy = {
        .device = device->address + offset_bytes, .host = device->pinned, .copy_bytes = bytes};
    kvl_err err = check(driver, "enter", driver->context_enter(driver, device->context));
    if (err == KVL_OK)
        err = check(driver, "copy", driver->copy(driver, device->stream, direction, &copy, 1));
    while (err == KVL_OK) {
        kvl_cuda_status status = driver->stream_query(driver, device->stream);
        err = driver->err_from(status);
        if (err == KVL_OK)
            break;
        if (err != KVL_ERR_AGAIN)
            check(driver, "finish a copy", status);
        else
            err = KVL_OK;
        nanosleep(&(struct timespec){.tv_nsec = 20000}, NULL);
    }
    driver->context_leave(driver);
    return err;
}

kvl_err cuda_device_read(
    const struct cuda_device *device, uint64_t offset_bytes, void *to, uint64_t bytes) {
    kvl_err err = KVL_OK;
    for (uint64_t at = 0; at < bytes && err == KVL_OK; at += CUDA_DEVICE_PIECE_BYTES) {
        const uint64_t some =
            bytes - at < CUDA_DEVICE_PIECE_BYTES ? bytes - at : CUDA_DEVICE_PIECE_BYTES;
        err = move(device, KVL_CUDA_TO_HOST, offset_bytes + at, some);
        memcpy((uint8_t *)to + at, device->pinned, some);
    }
    return err;
}

kvl_err cuda_device_write(
    const struct cuda_device *device, uint64_t offset_bytes, const void *from, uint64_t bytes) {
    kvl_err err = KVL_OK;
    for (uint64_t at = 0; at < bytes && err == KVL_OK; at += CUDA_DEVICE_PIECE_BYTES) {
        const uint64_t some =
            bytes - at < CUDA_DEVICE_PIECE_BYTES ? bytes - at : CUDA_DEVICE_PIECE_BYTES;
        memcpy(device->pinned, (const uint8_t *)from + at, some);
        err = move(device, KVL_CUDA_TO_DEVICE, offset_bytes + at, some);
    }
    return err;
}

uint64_t cuda_device_free_bytes(const struct kvl_cuda_driver *driver, uint32_t ordinal) {
    void *context = NULL;
    uint64_t bytes = 0;
    if (check(driver, "open a context", driver->context_open(driver, ordinal, &context)) != KVL_OK)
        return 0;
    if (check(driver, "enter", driver->context_enter(driver, context)) == KVL_OK) {
        (void)check(driver, "ask what is free", driver->memory_free_bytes(driver, &bytes));
        driver->context_leave(driver);
    }
    driver->context_close(driver, ordinal);
    return bytes;
}
