/* arena.c - cuts one sealed memfd into slabs of equal slots; arena_touch.c brings in its pages.
 *
 * The arena is counted in units (4 KiB; more where that would be over a million of them). A slab is
 * a run of free units, first fit from offset 0:
 *
 *   units   | 0 1 2 3 | 4 5 6 | 7 8 ...
 *   slabs   | A A A A | B B B | free
 *   slots   | s0 | s1 | s0    |
 *
 * A slab holds as many slots as fit a 64th of the arena (at most 32 MiB), fewer where no such run
 * is left, so that the last bytes are used too: with slots of a whole number of units the only
 * waste is less than one slot at the end. Slabs with a free slot stand in a list per slot size;
 * those that got a slot back go to its front, and their slots were touched already, so the one that
 * is still being touched is asked last. */
#include "arena.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "arena_touch.h"

#define PAGE_BYTES 4096u
#define UNITS_MAX (UINT64_C(1) << 20)
#define SLABS_PER_ARENA 64u
#define SLAB_BYTES_MAX (UINT64_C(32) << 20)
#define BITS 64u

struct slab {
    struct size_class *size_class;
    struct slab *prev, *next; /* in the class's list while a slot is free */
    uint64_t first_unit;
    uint32_t slot_count, used_count;
    uint32_t first_word;   /* no free slot in the words before */
    uint64_t free_slots[]; /* one bit each */
};

struct size_class {
    uint64_t slot_bytes;
    uint64_t slab_count;
    struct slab *partial;
    struct size_class *next;
};

struct kvl_arena {
    struct kvl_arena_touch *touch;
    uint64_t capacity_bytes, used_bytes;
    uint64_t unit_bytes, unit_count;
    uint64_t first_free_word; /* of free_units: no free unit in the words before */
    uint64_t *free_units;     /* one bit each */
    struct slab **slab_of_unit;
    struct size_class *classes;
};

/* ---- bit runs ----------------------------------------------------------------------------- */

static void bits_set(uint64_t *bits, uint64_t first, uint64_t count, bool value) {
    for (uint64_t i = first; i < first + count;) {
        uint64_t shift = i % BITS;
        uint64_t span = BITS - shift < first + count - i ? BITS - shift : first + count - i;
        uint64_t mask = (span == BITS ? UINT64_MAX : (UINT64_C(1) << span) - 1) << shift;
        if (value)
            bits[i / BITS] |= mask;
        else
            bits[i / BITS] &= ~mask;
        i += span;
    }
}

/* Position of the first bit >= from that has this value, or end. */
static uint64_t bit_find(const uint64_t *bits, uint64_t from, uint64_t end, bool value) {
    while (from < end) {
        uint64_t word = (value ? bits[from / BITS] : ~bits[from / BITS]) >> (from % BITS);
        if (word) {
            uint64_t at = from + (uint64_t)__builtin_ctzll(word);
            return at < end ? at : end;
        }
        from = (from / BITS + 1) * BITS;
    }
    return end;
}

/* First run of `count` free units, or unit_count. */
static uint64_t find_run(struct kvl_arena *arena, uint64_t count) {
    const uint64_t end = arena->unit_count;
    uint64_t at = bit_find(arena->free_units, arena->first_free_word * BITS, end, true);
    arena->first_free_word = at / BITS;
    while (at < end) {
        uint64_t stop = bit_find(arena->free_units, at, end, false);
        if (stop - at >= count)
            return at;
        at = bit_find(arena->free_units, stop, end, true);
    }
    return end;
}

/* ---- slabs -------------------------------------------------------------------------------- */

static void list_push(struct slab *slab) {
    struct slab *head = slab->size_class->partial;
    slab->prev = NULL;
    slab->next = head;
    if (head)
        head->prev = slab;
    slab->size_class->partial = slab;
}

static void list_remove(struct slab *slab) {
    if (slab->prev)
        slab->prev->next = slab->next;
    else
        slab->size_class->partial = slab->next;
    if (slab->next)
        slab->next->prev = slab->prev;
}

static uint64_t units_for(const struct kvl_arena *arena, uint64_t bytes) {
    return (bytes + arena->unit_bytes - 1) / arena->unit_bytes;
}

static struct size_class *class_get(struct kvl_arena *arena, uint64_t slot_bytes) {
    for (struct size_class *c = arena->classes; c; c = c->next) {
        if (c->slot_bytes == slot_bytes)
            return c;
    }
    struct size_class *made = calloc(1, sizeof *made);
    if (made) {
        made->slot_bytes = slot_bytes;
        made->next = arena->classes;
        arena->classes = made;
    }
    return made;
}

static void class_remove(struct kvl_arena *arena, struct size_class *gone) {
    struct size_class **at = &arena->classes;
    while (*at != gone)
        at = &(*at)->next;
    *at = gone->next;
    free(gone);
}

/* The largest slab for which there is room; 0 slots when there is none even for one. */
static uint64_t find_slab_room(struct kvl_arena *arena, uint64_t slot_bytes, uint64_t *first_unit) {
    uint64_t target_bytes = arena->capacity_bytes / SLABS_PER_ARENA;
    if (target_bytes > SLAB_BYTES_MAX)
        target_bytes = SLAB_BYTES_MAX;
    uint64_t slots = target_bytes / slot_bytes;
    for (slots = slots ? slots : 1; slots > 0; slots /= 2) {
        *first_unit = find_run(arena, units_for(arena, slots * slot_bytes));
        if (*first_unit < arena->unit_count)
            break;
    }
    return slots;
}

static kvl_err slab_create(struct kvl_arena *arena, struct size_class *size_class) {
    const uint64_t slot_bytes = size_class->slot_bytes;
    uint64_t first_unit;
    uint64_t slots = find_slab_room(arena, slot_bytes, &first_unit);
    if (slots == 0)
        return KVL_ERR_NOSPC;
    /* No slab before its first slot can be had: it would hold units that others could use. */
    kvl_err err = kvl_arena_touch_check(arena->touch, first_unit * arena->unit_bytes, slot_bytes);
    if (err != KVL_OK)
        return err;
    const uint64_t words = (slots + BITS - 1) / BITS;
    struct slab *slab = calloc(1, sizeof *slab + words * sizeof slab->free_slots[0]);
    if (!slab)
        return KVL_ERR_NOMEM;
    slab->size_class = size_class;
    slab->first_unit = first_unit;
    slab->slot_count = (uint32_t)slots;
    bits_set(slab->free_slots, 0, slots, true);
    const uint64_t units = units_for(arena, slots * slot_bytes);
    bits_set(arena->free_units, first_unit, units, false);
    for (uint64_t i = 0; i < units; i++)
        arena->slab_of_unit[first_unit + i] = slab;
    size_class->slab_count++;
    list_push(slab);
    return KVL_OK;
}

/* The slab is in its class's list: its last slot just came back. */
static void slab_destroy(struct kvl_arena *arena, struct slab *slab) {
    struct size_class *size_class = slab->size_class;
    const uint64_t units = units_for(arena, slab->slot_count * size_class->slot_bytes);
    bits_set(arena->free_units, slab->first_unit, units, true);
    if (slab->first_unit / BITS < arena->first_free_word)
        arena->first_free_word = slab->first_unit / BITS;
    memset(&arena->slab_of_unit[slab->first_unit], 0, units * sizeof arena->slab_of_unit[0]);
    list_remove(slab);
    free(slab);
    if (--size_class->slab_count == 0)
        class_remove(arena, size_class);
}

/* ---- slots -------------------------------------------------------------------------------- */

static kvl_err slot_take(struct kvl_arena *arena, struct slab *slab, uint64_t *offset_bytes) {
    const uint64_t slot_bytes = slab->size_class->slot_bytes;
    uint64_t slot =
        bit_find(slab->free_slots, (uint64_t)slab->first_word * BITS, slab->slot_count, true);
    assert(slot < slab->slot_count);
    slab->first_word = (uint32_t)(slot / BITS);
    const uint64_t offset = slab->first_unit * arena->unit_bytes + slot * slot_bytes;
    kvl_err err = kvl_arena_touch_check(arena->touch, offset, slot_bytes);
    if (err != KVL_OK)
        return err;
    bits_set(slab->free_slots, slot, 1, false);
    if (++slab->used_count == slab->slot_count)
        list_remove(slab);
    arena->used_bytes += slot_bytes;
    *offset_bytes = offset;
    return KVL_OK;
}

kvl_err kvl_arena_alloc(struct kvl_arena *arena, uint64_t slot_bytes, uint64_t *offset_bytes) {
    if (slot_bytes == 0)
        return KVL_ERR_INVALID;
    if (slot_bytes > arena->capacity_bytes)
        return KVL_ERR_TOOBIG;
    slot_bytes = (slot_bytes + PAGE_BYTES - 1) / PAGE_BYTES * PAGE_BYTES;
    if (units_for(arena, slot_bytes) > arena->unit_count)
        return KVL_ERR_TOOBIG;
    struct size_class *size_class = class_get(arena, slot_bytes);
    if (!size_class)
        return KVL_ERR_NOMEM;
    kvl_err err = size_class->partial ? KVL_OK : slab_create(arena, size_class);
    if (err == KVL_OK)
        err = slot_take(arena, size_class->partial, offset_bytes);
    if (size_class->slab_count == 0)
        class_remove(arena, size_class);
    return err;
}

void kvl_arena_free(struct kvl_arena *arena, uint64_t offset_bytes) {
    const uint64_t unit = offset_bytes / arena->unit_bytes;
    assert(unit < arena->unit_count && arena->slab_of_unit[unit]);
    struct slab *slab = arena->slab_of_unit[unit];
    const uint64_t slot_bytes = slab->size_class->slot_bytes;
    const uint64_t in_slab_bytes = offset_bytes - slab->first_unit * arena->unit_bytes;
    const uint64_t slot = in_slab_bytes / slot_bytes;
    assert(in_slab_bytes % slot_bytes == 0 && slot < slab->slot_count);
    assert(bit_find(slab->free_slots, slot, slot + 1, true) > slot);
    bits_set(slab->free_slots, slot, 1, true);
    if (slot / BITS < slab->first_word)
        slab->first_word = (uint32_t)(slot / BITS);
    arena->used_bytes -= slot_bytes;
    if (slab->used_count-- == slab->slot_count)
        list_push(slab);
    if (slab->used_count == 0)
        slab_destroy(arena, slab);
}

/* ---- the arena ---------------------------------------------------------------------------- */

static kvl_err make_tables(struct kvl_arena *arena, struct kvl_errmsg *msg) {
    arena->unit_bytes = PAGE_BYTES;
    while (arena->capacity_bytes / arena->unit_bytes > UNITS_MAX)
        arena->unit_bytes *= 2;
    arena->unit_count = arena->capacity_bytes / arena->unit_bytes;
    arena->free_units = calloc(arena->unit_count / BITS + 1, sizeof arena->free_units[0]);
    arena->slab_of_unit = calloc(arena->unit_count, sizeof arena->slab_of_unit[0]);
    if (!arena->free_units || !arena->slab_of_unit)
        return kvl_fail(msg, KVL_ERR_NOMEM, "out of memory for an arena's tables");
    bits_set(arena->free_units, 0, arena->unit_count, true);
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
    kvl_err err = make_tables(arena, msg);
    if (err == KVL_OK)
        err = kvl_arena_touch_start(&rounded, &arena->touch, msg);
    if (err != KVL_OK) {
        kvl_arena_destroy(arena);
        return err;
    }
    *out = arena;
    return KVL_OK;
}

static void free_slabs(struct kvl_arena *arena) {
    for (uint64_t unit = 0; arena->slab_of_unit && unit < arena->unit_count; unit++) {
        struct slab *slab = arena->slab_of_unit[unit];
        if (slab && slab->first_unit == unit) {
            unit += units_for(arena, slab->slot_count * slab->size_class->slot_bytes) - 1;
            free(slab);
        }
    }
    while (arena->classes) {
        struct size_class *next = arena->classes->next;
        free(arena->classes);
        arena->classes = next;
    }
}

void kvl_arena_destroy(struct kvl_arena *arena) {
    if (!arena)
        return;
    kvl_arena_touch_stop(arena->touch);
    free_slabs(arena);
    free(arena->slab_of_unit);
    free(arena->free_units);
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
        .used_bytes = arena->used_bytes,
        .touched_bytes = kvl_arena_touch_touched_bytes(arena->touch),
        .huge_bytes = kvl_arena_touch_huge_bytes(arena->touch)};
}

void kvl_arena_wait_touched(struct kvl_arena *arena) {
    kvl_arena_touch_wait(arena->touch);
}
