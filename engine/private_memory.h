/* private_memory.h - KV blocks in the engine's own memory, for what no daemon holds.
 *
 * Blocks are carved out of slabs of the backend's memory, so that a context without a daemon reads
 * as fast as one in an arena.
 *
 *   | slab: block, block, ... | slab | ...      freed blocks go to a free list, slabs live on
 *
 * Nothing is ever written into a block here: the CPU may have no address of it.
 *
 * Owns:    all slabs, until destroy; the backend is borrowed. Threads: one at a time. */
#ifndef KVL_PRIVATE_MEMORY_H
#define KVL_PRIVATE_MEMORY_H

#include <stdint.h>

#include "backend.h"

struct kvl_private_memory;

/* Errors: INVALID, NOMEM. */
KVL_MUST_CHECK kvl_err kvl_private_memory_create(
    struct kvl_backend *backend, uint64_t block_bytes, struct kvl_private_memory **out);
void kvl_private_memory_destroy(struct kvl_private_memory *memory); /* NULL is fine */

/* A block's content is undefined; addresses are multiples of 4096. Errors: those of the backend's
 * take_memory. */
KVL_MUST_CHECK kvl_err kvl_private_memory_take(struct kvl_private_memory *memory, uint8_t **block);
void kvl_private_memory_give_back(struct kvl_private_memory *memory, uint8_t *block);

#endif
