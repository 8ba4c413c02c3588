/* arena.c - one sealed memfd under a slab allocator: slabs.c cuts it, arena_touch.c brings in its
 * pages. */
#include "arena.h"

#include <assert.h>
#include <stdlib.h>

#include "arena_touch.h"
#include "slabs.h"

#define PAGE_BYTES 4096u

struct kvl_arena {
    struct kvl_arena_touch *touch;
    struct kvl_slabs *slabs;
    uint64_t capacity_bytes;
};

static kvl_err check_touched(void *arg, uint64_t offset_bytes, uint64_t range_bytes) {
    struct kvl_arena *arena = arg;
    return kvl_arena_touch_check(arena->touch, offset_bytes, range_bytes);
}

kvl_err kvl_arena_alloc(struct kvl_arena *arena, uint64_t slot_bytes, uint64_t *offset_bytes) {
    return kvl_slabs_alloc(arena->slabs, slot_bytes, offset_bytes);
}

void kvl_arena_free(struct kvl_arena *arena, uint64_t offset_bytes) {
    kvl_slabs_free(arena->slabs, offset_bytes);
}

static kvl_err make_slabs(struct kvl_arena *arena, struct kvl_errmsg *msg) {
    const struct kvl_slabs_options options = {
        .capacity_bytes = arena->capacity_bytes, .check = check_touched, .arg = arena};
    if (kvl_slabs_create(&options, &arena->slabs) != KVL_OK)
        return kvl_fail(msg, KVL_ERR_NOMEM, "out of memory for an arena's tables");
    return KVL_OK;
}

kvl_err kvl_arena_create(
    const struct kvl_arena_options *options, struct kvl_arena **out, struct kvl_errmsg *msg) {
    *out = NULL;
    struct kvl_arena_options rounded = *options;
    rounded.capacity_bytes = options->capacity_bytes / PAGE_BYTES * PAGE_BYTES;
    if (rounded.capacity_bytes == 0)
        return kvl_fail(msg, KVL_ERR_INVALID, "the %s tier needs at least %u bytes, not %llu",
            options->name, PAGE_BYTES, (unsigned long long)options->capacity_bytes);
    struct kvl_arena *arena = calloc(1, sizeof *arena);
    if (!arena)
        return kvl_fail(msg, KVL_ERR_NOMEM, "out of memory for the %s tier", options->name);
    arena->capacity_bytes = rounded.capacity_bytes;
    kvl_err err = make_slabs(arena, msg);
    if (err == KVL_OK)
        err = kvl_arena_touch_start(&rounded, &arena->touch, msg);
    if (err != KVL_OK) {
        kvl_arena_destroy(arena);
        return err;
    }
    *out = arena;
    return KVL_OK;
}

void kvl_arena_destroy(struct kvl_arena *arena) {
    if (!arena)
        return;
    kvl_arena_touch_stop(arena->touch);
    kvl_slabs_destroy(arena->slabs);
    free(arena);
}

uint8_t *kvl_arena_address(struct kvl_arena *arena, uint64_t offset_bytes) {
    assert(offset_bytes < arena->capacity_bytes);
    return kvl_arena_touch_base(arena->touch) + offset_bytes;
}

int kvl_arena_fd(const struct kvl_arena *arena) {
    return kvl_arena_touch_fd(arena->touch);
}

struct kvl_arena_stats kvl_arena_stats(const struct kvl_arena *arena) {
    return (struct kvl_arena_stats){.capacity_bytes = arena->capacity_bytes,
        .used_bytes = kvl_slabs_used_bytes(arena->slabs),
        .touched_bytes = kvl_arena_touch_touched_bytes(arena->touch),
        .huge_bytes = kvl_arena_touch_huge_bytes(arena->touch)};
}

void kvl_arena_wait_touched(struct kvl_arena *arena) {
    kvl_arena_touch_wait(arena->touch);
}
