/* memory_tier.h - a tier of slots in shared memory: host, and device where the device is the CPU.
 *
 * One implementation serves both: on a machine without a GPU the hot tier is shared host memory
 * that engines map and compute on, so the two differ by name and capacity only.
 *
 *   engine --- maps ---> arena (slots) <--- memcpy + hash on copy workers ---> io buffer
 *
 * Slots come from alloc and go back by discard. An engine may fill a slot in place; STORE and LOAD
 * copy between a slot and a buffer, and hash the copy: CORRUPT when it is not
 * record.content_hash; HASH hashes a slot in place. A block has one hash over all its frames, so
 * frame_ready is called once, with all of them. RESTORE goes before PREFETCH goes before BEHIND,
 * but every eighth transfer is taken from the lowest that waits, so that none starves. submit says
 * AGAIN while 1024 transfers are under way. A block takes its slot's bytes (slot_bytes rounded up
 * to 4096). */
#ifndef KVL_MEMORY_TIER_H
#define KVL_MEMORY_TIER_H

#include "arena.h"
#include "tier.h"

struct kvl_memory_tier_options {
    enum kvl_tier_kind kind; /* DEVICE: called "device-cpu"; HOST: "host" */
    uint64_t capacity_bytes; /* hard cap of the slots */
    uint32_t copy_threads;   /* 0: one; as many others touch the arena at start */
    struct kvl_log *log;
};

/* Errors: INVALID (kind, or a capacity under one page), NOMEM, LIMIT, UNSUPPORTED; msg says which
 * and what to do. Threads: the caller's becomes the owner thread. */
KVL_MUST_CHECK kvl_err kvl_memory_tier_create(
    const struct kvl_memory_tier_options *options, struct kvl_tier **out, struct kvl_errmsg *msg);

/* What stats leaves out: bytes touched, bytes on huge pages. tier is one made above. */
struct kvl_arena_stats kvl_memory_tier_arena_stats(const struct kvl_tier *tier);
/* Blocks until the whole arena can be handed out. For tests and benchmarks. */
void kvl_memory_tier_wait_touched(struct kvl_tier *tier);

#endif
