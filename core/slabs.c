/* slabs.c - the range is counted in units (4 KiB; more where that would be over a million of them).
 * A slab is a run of free units, first fit from offset 0:
 *
 *   units   | 0 1 2 3 | 4 5 6 | 7 8 ...
 *   slabs   | A A A A | B B B | free
 *   slots   | s0 | s1 | s0    |
 *
 * A slab holds as many slots as fit a 64th of the range (at most 32 MiB), fewer where no such run
 * is left, so that the last bytes are used too: with slots of a whole number of units the only
 * waste is less than one slot at the end. Slabs with a free slot stand in a list per slot size;
 * those that got a slot back go to its front, and their slots were ready already, so the one that
 * is still being made ready is asked last. */
#include "slabs.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

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

struct kvl_slabs {
    struct kvl_slabs_options options;
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
static uint64_t find_run(struct kvl_slabs *slabs, uint64_t count) {
    const uint64_t end = slabs->unit_count;
    uint64_t at = bit_find(slabs->free_units, slabs->first_free_word * BITS, end, true);
    slabs->first_free_word = at / BITS;
    while (at < end) {
        uint64_t stop = bit_find(slabs->free_units, at, end, false);
        if (stop - at >= count)
            return at;
        at = bit_find(slabs->free_units, stop, end, true);
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

static uint64_t units_for(const struct kvl_slabs *slabs, uint64_t bytes) {
    return (bytes + slabs->unit_bytes - 1) / slabs->unit_bytes;
}

static struct size_class *class_get(struct kvl_slabs *slabs, uint64_t slot_bytes) {
    for (struct size_class *c = slabs->classes; c; c = c->next) {
        if (c->slot_bytes == slot_bytes)
            return c;
    }
    struct size_class *made = calloc(1, sizeof *made);
    if (made) {
        made->slot_bytes = slot_bytes;
        made->next = slabs->classes;
        slabs->classes = made;
    }
    return made;
}

static void class_remove(struct kvl_slabs *slabs, struct size_class *gone) {
    struct size_class **at = &slabs->classes;
    while (*at != gone)
        at = &(*at)->next;
    *at = gone->next;
    free(gone);
}

static kvl_err check_ready(
    const struct kvl_slabs *slabs, uint64_t offset_bytes, uint64_t range_bytes) {
    if (slabs->options.check == NULL)
        return KVL_OK;
    return slabs->options.check(slabs->options.arg, offset_bytes, range_bytes);
}

/* The largest slab for which there is room; 0 slots when there is none even for one. */
static uint64_t find_slab_room(struct kvl_slabs *slabs, uint64_t slot_bytes, uint64_t *first_unit) {
    uint64_t target_bytes = slabs->capacity_bytes / SLABS_PER_ARENA;
    if (target_bytes > SLAB_BYTES_MAX)
        target_bytes = SLAB_BYTES_MAX;
    uint64_t slots = target_bytes / slot_bytes;
    for (slots = slots ? slots : 1; slots > 0; slots /= 2) {
        *first_unit = find_run(slabs, units_for(slabs, slots * slot_bytes));
        if (*first_unit < slabs->unit_count)
            break;
    }
    return slots;
}

static kvl_err slab_create(struct kvl_slabs *slabs, struct size_class *size_class) {
    const uint64_t slot_bytes = size_class->slot_bytes;
    uint64_t first_unit;
    uint64_t slots = find_slab_room(slabs, slot_bytes, &first_unit);
    if (slots == 0)
        return KVL_ERR_NOSPC;
    /* No slab before its first slot can be had: it would hold units that others could use. */
    kvl_err err = check_ready(slabs, first_unit * slabs->unit_bytes, slot_bytes);
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
    const uint64_t units = units_for(slabs, slots * slot_bytes);
    bits_set(slabs->free_units, first_unit, units, false);
    for (uint64_t i = 0; i < units; i++)
        slabs->slab_of_unit[first_unit + i] = slab;
    size_class->slab_count++;
    list_push(slab);
    return KVL_OK;
}

/* The slab is in its class's list: its last slot just came back. */
static void slab_destroy(struct kvl_slabs *slabs, struct slab *slab) {
    struct size_class *size_class = slab->size_class;
    const uint64_t units = units_for(slabs, slab->slot_count * size_class->slot_bytes);
    bits_set(slabs->free_units, slab->first_unit, units, true);
    if (slab->first_unit / BITS < slabs->first_free_word)
        slabs->first_free_word = slab->first_unit / BITS;
    memset(&slabs->slab_of_unit[slab->first_unit], 0, units * sizeof slabs->slab_of_unit[0]);
    list_remove(slab);
    free(slab);
    if (--size_class->slab_count == 0)
        class_remove(slabs, size_class);
}

/* ---- slots -------------------------------------------------------------------------------- */

static kvl_err slot_take(struct kvl_slabs *slabs, struct slab *slab, uint64_t *offset_bytes) {
    const uint64_t slot_bytes = slab->size_class->slot_bytes;
    uint64_t slot =
        bit_find(slab->free_slots, (uint64_t)slab->first_word * BITS, slab->slot_count, true);
    assert(slot < slab->slot_count);
    slab->first_word = (uint32_t)(slot / BITS);
    const uint64_t offset = slab->first_unit * slabs->unit_bytes + slot * slot_bytes;
    kvl_err err = check_ready(slabs, offset, slot_bytes);
    if (err != KVL_OK)
        return err;
    bits_set(slab->free_slots, slot, 1, false);
    if (++slab->used_count == slab->slot_count)
        list_remove(slab);
    slabs->used_bytes += slot_bytes;
    *offset_bytes = offset;
    return KVL_OK;
}

kvl_err kvl_slabs_alloc(struct kvl_slabs *slabs, uint64_t slot_bytes, uint64_t *offset_bytes) {
    if (slot_bytes == 0)
        return KVL_ERR_INVALID;
    if (slot_bytes > slabs->capacity_bytes)
        return KVL_ERR_TOOBIG;
    slot_bytes = (slot_bytes + PAGE_BYTES - 1) / PAGE_BYTES * PAGE_BYTES;
    if (units_for(slabs, slot_bytes) > slabs->unit_count)
        return KVL_ERR_TOOBIG;
    struct size_class *size_class = class_get(slabs, slot_bytes);
    if (!size_class)
        return KVL_ERR_NOMEM;
    kvl_err err = size_class->partial ? KVL_OK : slab_create(slabs, size_class);
    if (err == KVL_OK)
        err = slot_take(slabs, size_class->partial, offset_bytes);
    if (size_class->slab_count == 0)
        class_remove(slabs, size_class);
    return err;
}

void kvl_slabs_free(struct kvl_slabs *slabs, uint64_t offset_bytes) {
    const uint64_t unit = offset_bytes / slabs->unit_bytes;
    assert(unit < slabs->unit_count && slabs->slab_of_unit[unit]);
    struct slab *slab = slabs->slab_of_unit[unit];
    const uint64_t slot_bytes = slab->size_class->slot_bytes;
    const uint64_t in_slab_bytes = offset_bytes - slab->first_unit * slabs->unit_bytes;
    const uint64_t slot = in_slab_bytes / slot_bytes;
    assert(in_slab_bytes % slot_bytes == 0 && slot < slab->slot_count);
    assert(bit_find(slab->free_slots, slot, slot + 1, true) > slot);
    bits_set(slab->free_slots, slot, 1, true);
    if (slot / BITS < slab->first_word)
        slab->first_word = (uint32_t)(slot / BITS);
    slabs->used_bytes -= slot_bytes;
    if (slab->used_count-- == slab->slot_count)
        list_push(slab);
    if (slab->used_count == 0)
        slab_destroy(slabs, slab);
}

/* ---- life --------------------------------------------------------------------------------- */

static bool make_tables(struct kvl_slabs *slabs) {
    slabs->unit_bytes = PAGE_BYTES;
    while (slabs->capacity_bytes / slabs->unit_bytes > UNITS_MAX)
        slabs->unit_bytes *= 2;
    slabs->unit_count = slabs->capacity_bytes / slabs->unit_bytes;
    slabs->free_units = calloc(slabs->unit_count / BITS + 1, sizeof slabs->free_units[0]);
    slabs->slab_of_unit = calloc(slabs->unit_count + 1, sizeof slabs->slab_of_unit[0]);
    if (!slabs->free_units || !slabs->slab_of_unit)
        return false;
    bits_set(slabs->free_units, 0, slabs->unit_count, true);
    return true;
}

kvl_err kvl_slabs_create(const struct kvl_slabs_options *options, struct kvl_slabs **out) {
    *out = NULL;
    struct kvl_slabs *slabs = calloc(1, sizeof *slabs);
    if (!slabs)
        return KVL_ERR_NOMEM;
    slabs->options = *options;
    slabs->capacity_bytes = options->capacity_bytes / PAGE_BYTES * PAGE_BYTES;
    if (!make_tables(slabs)) {
        kvl_slabs_destroy(slabs);
        return KVL_ERR_NOMEM;
    }
    *out = slabs;
    return KVL_OK;
}

static void free_slabs(struct kvl_slabs *slabs) {
    for (uint64_t unit = 0; slabs->slab_of_unit && unit < slabs->unit_count; unit++) {
        struct slab *slab = slabs->slab_of_unit[unit];
        if (slab && slab->first_unit == unit) {
            unit += units_for(slabs, slab->slot_count * slab->size_class->slot_bytes) - 1;
            free(slab);
        }
    }
    while (slabs->classes) {
        struct size_class *next = slabs->classes->next;
        free(slabs->classes);
        slabs->classes = next;
    }
}

void kvl_slabs_destroy(struct kvl_slabs *slabs) {
    if (!slabs)
        return;
    free_slabs(slabs);
    free(slabs->slab_of_unit);
    free(slabs->free_units);
    free(slabs);
}

uint64_t kvl_slabs_used_bytes(const struct kvl_slabs *slabs) {
    return slabs->used_bytes;
}
