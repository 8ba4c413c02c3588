/* cuda_driver.h - the few calls of the CUDA driver that the tier makes, as a table.
 *
 * Types are our own, so that this header needs no toolkit. The real table is filled from
 * libcuda.so.1 at run time; tests have a twin of it that runs on any machine.
 *
 * Calls return the driver's own status, 0 for success; err_from converts it, text explains it.
 * NULL is no valid entry but where said. Threads: any, but every call from memory_free_bytes on
 * needs the device's context entered on the calling thread. */
#ifndef KVL_CUDA_DRIVER_H
#define KVL_CUDA_DRIVER_H

#include <stdbool.h>
#include <stdint.h>

#include "kvl_err.h"

typedef int kvl_cuda_status;
#define KVL_CUDA_OK 0

struct kvl_cuda_device_info {
    char name[128];
    uint8_t uuid[16];
    bool maps_memory;  /* cuMemCreate and what belongs to it */
    bool exports_fds;  /* POSIX file descriptors of such memory */
    bool pins_host;    /* cuMemHostRegister */
    bool is_addressed; /* one address for host memory on both sides */
};

/* One run of bytes; the direction is the call's. */
struct kvl_cuda_copy {
    uint64_t device;
    uint8_t *host;
    uint64_t copy_bytes;
};
enum kvl_cuda_direction { KVL_CUDA_TO_DEVICE, KVL_CUDA_TO_HOST };

struct kvl_cuda_driver {
    const char *name; /* "libcuda 13.0" */

    /* AGAIN: not ready yet. CLOSED: an error documented as the end of the context; no call works
     * any more. Every other is of one call only, for all that is known. */
    kvl_err (*err_from)(kvl_cuda_status status);
    /* One line, static storage. */
    const char *(*text)(const struct kvl_cuda_driver *driver, kvl_cuda_status status);
    kvl_cuda_status (*device_count)(const struct kvl_cuda_driver *driver, uint32_t *count);
    kvl_cuda_status (*device_info)(
        const struct kvl_cuda_driver *driver, uint32_t device, struct kvl_cuda_device_info *out);

    /* The primary context, shared with whatever else in this process uses the device. */
    kvl_cuda_status (*context_open)(
        const struct kvl_cuda_driver *driver, uint32_t device, void **context);
    void (*context_close)(const struct kvl_cuda_driver *driver, uint32_t device);
    /* In pairs, on one thread; what was current before is current after. */
    kvl_cuda_status (*context_enter)(const struct kvl_cuda_driver *driver, void *context);
    void (*context_leave)(const struct kvl_cuda_driver *driver);

    kvl_cuda_status (*memory_free_bytes)(const struct kvl_cuda_driver *driver, uint64_t *bytes);
    kvl_cuda_status (*memory_granularity)(
        const struct kvl_cuda_driver *driver, uint32_t device, uint64_t *bytes);
    /* Exportable memory, a multiple of the granularity. */
    kvl_cuda_status (*memory_create)(
        const struct kvl_cuda_driver *driver, uint32_t device, uint64_t bytes, uint64_t *handle);
    void (*memory_release)(const struct kvl_cuda_driver *driver, uint64_t handle);
    /* The descriptor is the caller's. */
    kvl_cuda_status (*memory_export)(
        const struct kvl_cuda_driver *driver, uint64_t handle, int *fd);
    /* The handle is to be released as one of memory_create. The descriptor stays the caller's. */
    kvl_cuda_status (*memory_import)(
        const struct kvl_cuda_driver *driver, int fd, uint64_t *handle);
    /* Reserves addresses, maps all of it, and lets the device read and write. */
    kvl_cuda_status (*memory_map)(const struct kvl_cuda_driver *driver, uint32_t device,
        uint64_t handle, uint64_t bytes, uint64_t *address);
    void (*memory_unmap)(const struct kvl_cuda_driver *driver, uint64_t address, uint64_t bytes);

    kvl_cuda_status (*host_register)(
        const struct kvl_cuda_driver *driver, void *address, uint64_t bytes);
    void (*host_unregister)(const struct kvl_cuda_driver *driver, void *address);
    /* Pinned; device is the device's address of it. */
    kvl_cuda_status (*host_alloc)(
        const struct kvl_cuda_driver *driver, uint64_t bytes, void **address, uint64_t *device);
    void (*host_free)(const struct kvl_cuda_driver *driver, void *address);

    /* Waits for no other stream; urgent: of the highest priority, otherwise of the lowest. */
    kvl_cuda_status (*stream_create)(
        const struct kvl_cuda_driver *driver, bool urgent, void **stream);
    /* Of an idle stream, or one of a lost device. */
    void (*stream_destroy)(const struct kvl_cuda_driver *driver, void *stream);
    /* AGAIN while work is left; otherwise the first error of it. */
    kvl_cuda_status (*stream_query)(const struct kvl_cuda_driver *driver, void *stream);

    /* Enqueues all copies, in no order among themselves, after what the stream has. Host memory is
     * pinned. The array is read before the call returns; after an error some may be enqueued. */
    kvl_cuda_status (*copy)(const struct kvl_cuda_driver *driver, void *stream,
        enum kvl_cuda_direction direction, const struct kvl_cuda_copy *copies, uint32_t count);
    /* Why copies are not as fast as they could be, or NULL; static storage. */
    const char *(*shortfall)(const struct kvl_cuda_driver *driver);
    /* Enqueues a write of *word, once everything before it is done and seen. device is the device's
     * address of a word in pinned memory. After an error nothing is enqueued. */
    kvl_cuda_status (*write_word)(
        const struct kvl_cuda_driver *driver, void *stream, uint64_t device, uint32_t value);
};

/* The real one: loads libcuda.so.1 (it stays loaded: it has threads of its own).
 * Errors: UNSUPPORTED (a build without CUDA, no driver, no GPU), VERSION (driver too old), NOMEM,
 * IO; msg says what was found and what is needed. */
KVL_MUST_CHECK kvl_err kvl_cuda_driver_open(struct kvl_cuda_driver **out, struct kvl_errmsg *msg);
void kvl_cuda_driver_close(struct kvl_cuda_driver *driver); /* NULL is fine */

#endif
