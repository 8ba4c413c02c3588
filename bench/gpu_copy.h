/* gpu_copy.h - how fast blocks move between a GPU's memory and pinned host memory, through the tier
 * as the daemon uses it, beside the best that single copies of the driver reach on the same memory.
 *
 *   gpu.store, 128 KiB     host to device: blocks that stand apart in both memories
 *   gpu.load, 128 KiB      device to host, every block hashed where it lands
 *   gpu.hash, 128 KiB      the same without a buffer: by way of the tier's ring
 *   gpu.both, 128 KiB      both at once; the limit is what plain batches reach both ways at once
 *   gpu.both, to host, ..  the part of it that goes to the host, of half of that limit
 *   gpu.plain store, ..    plain batches one way; so is gpu.plain load */
#ifndef KVL_BENCH_GPU_COPY_H
#define KVL_BENCH_GPU_COPY_H

#include <stdint.h>

#include "device_cuda/cuda_driver.h"
#include "report.h"

struct bench_gpu_copy_options {
    const struct kvl_cuda_driver *driver;
    uint32_t device;
    uint64_t staging_bytes; /* these as kvl_cuda_tier_options has them; 0: its choice */
    uint32_t copy_streams, hash_threads, driver_threads, spin_us;
};

/* Needs 2 GiB of the GPU's memory and of the host's. Errors: those of kvl_cuda_tier_create, IO; msg
 * says which. */
KVL_MUST_CHECK kvl_err bench_gpu_copy(const struct bench_gpu_copy_options *options,
    struct bench_report *report, struct kvl_errmsg *msg);

#endif
