/* cuda_twin.h - a driver table that runs on any machine: streams are threads, device memory is a
 * memfd, pinned memory is memory.
 *
 * For order and faults only; it says nothing of a GPU's speed. It is strict where the driver is
 * undefined: copies from memory that is not pinned, or that span two registrations, calls outside a
 * context and things given back twice or never are recorded as violations. The copies of one call
 * are made last to first, since their order is promised to nobody.
 *
 * Threads: any. Faults and holds may be set at any time. */
#ifndef KVL_CUDA_TWIN_H
#define KVL_CUDA_TWIN_H

#include "device_cuda/cuda_driver.h"

#define CUDA_TWIN_GRANULE_BYTES 65536u

struct cuda_twin;

/* What a stream has copied, in the order of time over all streams. */
struct cuda_twin_copy {
    enum kvl_cuda_direction direction;
    uint64_t device_offset; /* in its memory */
    uint64_t copy_bytes;
    const uint8_t *host;
    uint32_t call; /* counted over all streams, from 0 */
};

/* NULL: out of memory. */
struct cuda_twin *cuda_twin_create(uint64_t memory_bytes);
void cuda_twin_destroy(struct cuda_twin *twin); /* NULL is fine */
const struct kvl_cuda_driver *cuda_twin_driver(const struct cuda_twin *twin);

/* Streams stop before their next copies, or go on. */
void cuda_twin_hold(struct cuda_twin *twin, bool hold);
/* Calls of copies in this direction do not return until it is let go, as where another call has the
 * driver's lock for long. */
void cuda_twin_stall(struct cuda_twin *twin, enum kvl_cuda_direction direction, bool stall);
/* Every call's copies take so much longer. */
void cuda_twin_set_delay(struct cuda_twin *twin, uint64_t delay_ns);
/* Copies take no time, and move nothing: a link that is faster than any CPU. */
void cuda_twin_skip_copies(struct cuda_twin *twin, bool skip);
/* The call of copies after `calls` more is refused, with an error that the device survives. */
void cuda_twin_fail_copies(struct cuda_twin *twin, uint32_t calls);
/* After `calls` more calls of copies were made, the device is lost; 0: now. */
void cuda_twin_lose(struct cuda_twin *twin, uint32_t calls);
/* It is lost to the caller at once, but not to its streams, which go on with what they have. */
void cuda_twin_lose_calls(struct cuda_twin *twin);
/* Writes of words are refused, with an error that the device survives. */
void cuda_twin_refuse_words(struct cuda_twin *twin, bool refuse);
void cuda_twin_refuse_pins(struct cuda_twin *twin, bool refuse);
/* The device cannot export its memory. */
void cuda_twin_refuse_export(struct cuda_twin *twin, bool refuse);

/* Copies made since the last call of it: at most max are written, all are forgotten. */
uint32_t cuda_twin_take_copies(struct cuda_twin *twin, struct cuda_twin_copy *copies, uint32_t max);
/* Calls of copies accepted so far, and of words. */
uint32_t cuda_twin_calls(struct cuda_twin *twin);
uint32_t cuda_twin_words(struct cuda_twin *twin);
/* The first violation; NULL: none. */
const char *cuda_twin_violation(struct cuda_twin *twin);
/* Contexts, memories, mappings, pins and streams that were not given back. */
uint32_t cuda_twin_leaks(struct cuda_twin *twin);

#endif
