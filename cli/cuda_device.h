/* cuda_device.h - the GPU behind --device cuda[:N], where this build has it.
 *
 * cuda_device.c over tiers/device_cuda; cuda_device_none.c in a build without CUDA. */
#ifndef KVL_CUDA_DEVICE_H
#define KVL_CUDA_DEVICE_H

#include <stdbool.h>
#include <stdint.h>

#include "kvl_err.h"
#include "log.h"
#include "tier.h"

#define KVL_CUDA_DEVICE_MAX 255u

/* "cuda" (the first GPU) or "cuda:N", N at most KVL_CUDA_DEVICE_MAX; false for anything else. */
bool kvl_cuda_device_parse(const char *text, uint32_t *number);

struct kvl_cuda_device_options {
    uint32_t number;
    uint64_t capacity_bytes;
    struct kvl_log *log; /* borrowed for the tier's life */
};
/* Errors: UNSUPPORTED (this build, no driver, no such GPU), and those of its tier; msg says what to
 * do. */
KVL_MUST_CHECK kvl_err kvl_cuda_device_create(
    const struct kvl_cuda_device_options *options, struct kvl_tier **out, struct kvl_errmsg *msg);
/* Lets the GPU's copy engines reach the host tier's memory, which lives until the device's end.
 * Where that cannot be, copies take a longer way, and the log says so. */
void kvl_cuda_device_pin(struct kvl_tier *device, struct kvl_tier *host, struct kvl_log *log);

/* What people are told about GPU `number`. */
struct kvl_cuda_device_view {
    bool is_good;
    char text[160];
};
/* False past the last GPU. Number 0 always has something to say. Tries the driver: a second or so.
 */
bool kvl_cuda_device_look(uint32_t number, struct kvl_cuda_device_view *out);

#endif
