/* arena_touch.h - the arena's pages: a sealed memfd, its mapping, and the threads that touch it.
 *
 * Pages come in chunks of 2 MiB from offset 0 up, on huge pages where the system gives them. Only
 * arena.c includes this.
 * Threads: start and stop on the owner thread; everything else on any. */
#ifndef KVL_ARENA_TOUCH_H
#define KVL_ARENA_TOUCH_H

#include <stdint.h>

#include "arena.h"

struct kvl_arena_touch;

/* capacity_bytes is a multiple of 4096. Errors: NOMEM (more than the machine, its cgroup or a
 * limit of the process allows), UNSUPPORTED (no memfd or no seals). */
KVL_MUST_CHECK kvl_err kvl_arena_touch_start(
    const struct kvl_arena_options *options, struct kvl_arena_touch **out, struct kvl_errmsg *msg);
/* Stops touching within one chunk, unmaps, closes. NULL is fine. */
void kvl_arena_touch_stop(struct kvl_arena_touch *touch);

/* OK: all of the range is touched. AGAIN: not yet. NOSPC: memory ran out before it. */
KVL_MUST_CHECK kvl_err kvl_arena_touch_check(
    struct kvl_arena_touch *touch, uint64_t offset_bytes, uint64_t range_bytes);
void kvl_arena_touch_wait(struct kvl_arena_touch *touch);

uint8_t *kvl_arena_touch_base(const struct kvl_arena_touch *touch);
int kvl_arena_touch_fd(const struct kvl_arena_touch *touch);
uint64_t kvl_arena_touch_touched_bytes(const struct kvl_arena_touch *touch);
uint64_t kvl_arena_touch_huge_bytes(const struct kvl_arena_touch *touch);

#endif
