/* cuda_twin_private.h - what the two files of the twin share.
 *
 *   cuda_twin.c         devices, memory, pins; the table; what tests ask and set
 *   cuda_twin_stream.c  streams: threads that copy and write words */
#ifndef KVL_CUDA_TWIN_PRIVATE_H
#define KVL_CUDA_TWIN_PRIVATE_H

#include <pthread.h>

#include "cuda_twin.h"

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

struct cuda_twin {
    struct kvl_cuda_driver driver;
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    uint64_t memory_bytes, used_bytes;
    uint64_t delay_ns;
    bool hold, skip, lost, lost_calls, refuse_words, refuse_pins, refuse_export;
    bool stalled[2];                  /* by direction */
    uint32_t calls, fail_in, lose_in; /* UINT32_MAX: never */
    uint32_t words;
    uint32_t contexts, streams;
    struct memory memories[MEMORIES_MAX];
    struct range ranges[RANGES_MAX];
    char violation[128];
    uint32_t log_count;
    struct cuda_twin_copy log[LOG_MAX];
};

struct cuda_twin *cuda_twin_of(const struct kvl_cuda_driver *driver);
void cuda_twin_lock(struct cuda_twin *twin);
void cuda_twin_unlock(struct cuda_twin *twin);
/* Under the mutex; the first is kept. */
void cuda_twin_violated(struct cuda_twin *twin, const char *what);
/* Takes the mutex; what it returns is the status so far. */
int cuda_twin_enter_call(struct cuda_twin *twin);
/* Gives it up; returns the status. */
int cuda_twin_leave_call(struct cuda_twin *twin, int status);
/* Which holds all of these bytes, of the device's or of pinned ones; NULL: none. Under the mutex.
 */
const struct range *cuda_twin_range_of(
    const struct cuda_twin *twin, bool device, uintptr_t start, uint64_t bytes);

/* ---- cuda_twin_stream.c: entries of the table ----------------------------------------------- */

kvl_cuda_status cuda_twin_stream_create(
    const struct kvl_cuda_driver *driver, bool urgent, void **out);
void cuda_twin_stream_destroy(const struct kvl_cuda_driver *driver, void *handle);
kvl_cuda_status cuda_twin_stream_query(const struct kvl_cuda_driver *driver, void *handle);
kvl_cuda_status cuda_twin_copy(const struct kvl_cuda_driver *driver, void *stream,
    enum kvl_cuda_direction direction, const struct kvl_cuda_copy *copies, uint32_t count);
kvl_cuda_status cuda_twin_write_word(
    const struct kvl_cuda_driver *driver, void *stream, uint64_t device, uint32_t value);

#endif
