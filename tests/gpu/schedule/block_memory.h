/* block_memory.h - fills and checks blocks where they lie: in a daemon's device arena, by the CPU
 * or by kernels. No byte of a GPU's block passes through host memory here.
 *
 * Threads: one. All calls return when the memory has been written or read. */
#ifndef KVL_TESTS_BLOCK_MEMORY_H
#define KVL_TESTS_BLOCK_MEMORY_H

#include "kvloft.h"

#define BLOCK_IS_RIGHT UINT64_MAX

struct block_memory {
    KVL_MUST_CHECK kvl_err (*fill)(
        struct block_memory *memory, uint64_t offset_bytes, uint64_t bytes, uint64_t seed);
    /* *wrong: the first word that is not what block_pattern.h says, or BLOCK_IS_RIGHT. */
    KVL_MUST_CHECK kvl_err (*check)(struct block_memory *memory, uint64_t offset_bytes,
        uint64_t bytes, uint64_t seed, uint64_t *wrong);
    void (*close)(struct block_memory *memory);
    struct kvl_client *client; /* borrowed; outlives this */
    uint8_t *base;             /* of a GPU's arena, mapped here */
    unsigned long long *found; /* on the GPU: the first wrong word */
};

void block_memory_open_cpu(struct kvl_client *client, struct block_memory *out);
/* GPU 0. Errors: those of mapping its arena; UNSUPPORTED in a build without CUDA. */
KVL_MUST_CHECK kvl_err block_memory_open_cuda(
    struct kvl_client *client, struct block_memory *out, struct kvl_errmsg *msg);

#endif
