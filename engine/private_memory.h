/* private_memory.h - KV blocks in the engine's own memory, for what no daemon holds.
 *
 * Blocks are carved out of slabs that are mapped at once, 2 MiB aligned and advised to huge pages,
 * so that a context without a daemon reads as fast as one in an arena.
 *
 *   | slab: block, block, ... | slab | ...      freed blocks go to a free list, slabs live on
 *
 * Owns:    all slabs, until destroy. Threads: one at a time. Errors: NOMEM. */
#ifndef KVL_PRIVATE_MEMORY_H
#define KVL_PRIVATE_MEMORY_H

#include <stdint.h>

#include "kvl_err.h"

struct kvl_private_memory;

KVL_MUST_CHECK kvl_err kvl_private_memory_create(
    uint64_t block_bytes, struct kvl_private_memory **out);
void kvl_private_memory_destroy(struct kvl_private_memory *memory); /* NULL is fine */

/* A block's content is undefined; addresses are multiples of 4096. */
KVL_MUST_CHECK kvl_err kvl_private_memory_take(struct kvl_private_memory *memory, uint8_t **block);
void kvl_private_memory_give_back(struct kvl_private_memory *memory, uint8_t *block);

#endif
