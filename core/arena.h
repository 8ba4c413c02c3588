/* arena.h - one tier's memory: a sealed memfd, cut into slabs of one slot size each.
 *
 * Slots are cut as slabs.h says. Huge pages: one byte per 2 MiB is touched, then MADV_COLLAPSE is
 * asked for (works for shared memory without any setting of the machine); where refused, WARN once
 * through the log. Touching runs in parallel behind the first answer; only touched slots are handed
 * out, so alloc may say AGAIN for a moment after start.
 *
 * Owns:    the memfd (sealed against shrink, grow and further seals) and its mapping.
 * Threads: alloc, free and stats on the owner thread; touching on threads of its own. */
#ifndef KVL_ARENA_H
#define KVL_ARENA_H

#include <stdbool.h>
#include <stdint.h>

#include "kvl_err.h"
#include "log.h"

struct kvl_arena;

struct kvl_arena_options {
    const char *name;        /* shown in /proc and in the log */
    uint64_t capacity_bytes; /* hard cap; rounded down to 4096 */
    uint32_t touch_threads;  /* 0: one */
    struct kvl_log *log;
};

struct kvl_arena_stats {
    uint64_t capacity_bytes;
    uint64_t used_bytes; /* slots handed out, rounded sizes */
    uint64_t touched_bytes;
    uint64_t huge_bytes; /* backed by huge pages */
};

KVL_MUST_CHECK kvl_err kvl_arena_create(
    const struct kvl_arena_options *options, struct kvl_arena **out, struct kvl_errmsg *msg);
void kvl_arena_destroy(struct kvl_arena *arena); /* NULL is fine */

/* NOSPC: no free slot and no free slab. AGAIN: not touched yet, soon. TOOBIG: never fits. */
KVL_MUST_CHECK kvl_err kvl_arena_alloc(
    struct kvl_arena *arena, uint64_t slot_bytes, uint64_t *offset_bytes);
void kvl_arena_free(struct kvl_arena *arena, uint64_t offset_bytes);

uint8_t *kvl_arena_address(struct kvl_arena *arena, uint64_t offset_bytes);
int kvl_arena_fd(const struct kvl_arena *arena); /* borrowed; closed by destroy */
struct kvl_arena_stats kvl_arena_stats(const struct kvl_arena *arena);
/* Blocks until everything is touched. For tests and benchmarks. */
void kvl_arena_wait_touched(struct kvl_arena *arena);

#endif
