/* gpu_copy_limit.h - what plain copies of the driver reach between a tier's memory and pinned host
 * memory: what the tier's own copying is measured against.
 *
 *   alone      large copies, one call each, one way: the link at its best
 *   batches    64 copies of a size in one call, call behind call, nobody waiting: one way, or both,
 *              over a stream a direction */
#ifndef KVL_BENCH_GPU_COPY_LIMIT_H
#define KVL_BENCH_GPU_COPY_LIMIT_H

#include "device_cuda/cuda_driver.h"
#include "tier.h"

#define BENCH_COPY_BATCH 64u
#define BENCH_COPY_SIZES_MAX 4u

/* Where it copies: in each direction a region of this size, one behind the other, on both sides.
 * Sizes divide it, and are powers of two. */
struct bench_copy_place {
    const struct kvl_cuda_driver *driver;
    uint32_t device;
    struct kvl_tier *tier;
    uint64_t location;
    uint8_t *memory; /* pinned */
    uint64_t region_bytes;
};

enum bench_copy_ways { BENCH_COPY_TO_DEVICE, BENCH_COPY_TO_HOST, BENCH_COPY_BOTH, BENCH_COPY_WAYS };

/* GB/s; of both ways together where it is both. */
struct bench_copy_limit {
    double alone[BENCH_COPY_BOTH];
    double batches[BENCH_COPY_SIZES_MAX][BENCH_COPY_WAYS];
};

/* Errors: IO; msg says which. */
KVL_MUST_CHECK kvl_err bench_copy_limit(const struct bench_copy_place *place,
    const uint64_t *sizes_bytes, uint32_t size_count, struct bench_copy_limit *out,
    struct kvl_errmsg *msg);

#endif
