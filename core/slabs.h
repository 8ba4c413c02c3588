/* slabs.h - cuts a range of offsets into slabs of one slot size each; whose memory they are in is
 * not its business.
 *
 *   | slab 0: slots of size A | slab 1: slots of size B | slab 2: free | ...
 *
 * A slab takes the slot size of the first slot asked from it and goes back to the free slabs when
 * its last slot is freed; a slot larger than a slab takes a run of neighbouring slabs. Offsets are
 * multiples of 4096, slot sizes are rounded up to that.
 *
 * Owns: its tables only. Threads: one. Blocks: never. */
#ifndef KVL_SLABS_H
#define KVL_SLABS_H

#include <stdbool.h>
#include <stdint.h>

#include "kvl_err.h"

struct kvl_slabs;

struct kvl_slabs_options {
    uint64_t capacity_bytes; /* rounded down to 4096 */
    /* Whether this range can be handed out now; what it returns instead of OK is alloc's answer.
     * NULL: all can. */
    kvl_err (*check)(void *arg, uint64_t offset_bytes, uint64_t range_bytes);
    void *arg;
};

/* Errors: NOMEM. */
KVL_MUST_CHECK kvl_err kvl_slabs_create(
    const struct kvl_slabs_options *options, struct kvl_slabs **out);
void kvl_slabs_destroy(struct kvl_slabs *slabs); /* NULL is fine */

/* NOSPC: no free slot and no free slab. TOOBIG: never fits. INVALID: no bytes. And check's. */
KVL_MUST_CHECK kvl_err kvl_slabs_alloc(
    struct kvl_slabs *slabs, uint64_t slot_bytes, uint64_t *offset_bytes);
void kvl_slabs_free(struct kvl_slabs *slabs, uint64_t offset_bytes);
/* Slots handed out, rounded sizes. */
uint64_t kvl_slabs_used_bytes(const struct kvl_slabs *slabs);

#endif
