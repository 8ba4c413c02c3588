/* live_map.c - see live_map.h. */
#include "live_map.h"

#include <stdlib.h>
#include <string.h>

#include "segment.h"

#define SEGMENT_IDS_MAX (1u << 20)
#define SEGMENT_BYTES_MAX (1ull << 40)

static void destroy(struct kvl_live_segment *segment) {
    if (segment != NULL)
        free(segment->bits);
    free(segment);
}

void kvl_live_map_deinit(struct kvl_live_map *map) {
    for (uint32_t id = 0; id < map->slots; id++)
        destroy(map->items[id]);
    kvl_live_map_unreserve(map);
    free(map->items);
    *map = (struct kvl_live_map){0};
}

static struct kvl_live_segment *copy_of(const struct kvl_live_segment *segment) {
    uint64_t bits_bytes = kvl_live_segment_bits_bytes(kvl_live_segment_pages(segment)) + 1;
    struct kvl_live_segment *copy = malloc(sizeof(*copy));
    uint8_t *bits = malloc(bits_bytes);
    if (copy == NULL || bits == NULL) {
        free(copy);
        free(bits);
        return NULL;
    }
    *copy = *segment;
    copy->bits = memcpy(bits, segment->bits, bits_bytes);
    return copy;
}

bool kvl_live_map_copy(struct kvl_live_map *copy, const struct kvl_live_map *map) {
    *copy = (struct kvl_live_map){.items = calloc((size_t)map->slots + 1, sizeof(map->items[0]))};
    if (copy->items == NULL)
        return false;
    for (copy->slots = 0; copy->slots < map->slots; copy->slots++) {
        const struct kvl_live_segment *segment = map->items[copy->slots];
        copy->items[copy->slots] = segment != NULL ? copy_of(segment) : NULL;
        if (segment != NULL && copy->items[copy->slots] == NULL)
            break;
    }
    if (copy->slots == map->slots)
        return true;
    kvl_live_map_deinit(copy);
    return false;
}

struct kvl_live_segment *kvl_live_map_find(const struct kvl_live_map *map, uint32_t id) {
    return id < map->slots ? map->items[id] : NULL;
}

uint32_t kvl_live_segment_pages(const struct kvl_live_segment *segment) {
    return (uint32_t)(segment->row.bytes / KVL_PAGE_BYTES);
}

uint64_t kvl_live_segment_bits_bytes(uint32_t end_page) {
    return ((uint64_t)end_page + 7) / 8;
}

bool kvl_live_segment_bit(const struct kvl_live_segment *segment, uint32_t page) {
    return (segment->bits[page / 8] >> (page % 8) & 1) != 0;
}

bool kvl_live_segment_is(
    const struct kvl_live_segment *segment, const struct kvl_index_segment *row) {
    return segment->row.id == row->id && segment->row.bytes == row->bytes &&
           segment->row.generation == row->generation;
}

static void set_bit(struct kvl_live_segment *segment, uint32_t page, bool value) {
    uint8_t mask = (uint8_t)(1u << (page % 8));
    if (value)
        segment->bits[page / 8] |= mask;
    else
        segment->bits[page / 8] &= (uint8_t)~mask;
}

static bool reserve_slot(struct kvl_live_map *map, uint32_t id) {
    if (id < map->slots)
        return true;
    uint32_t slots = id + 64;
    struct kvl_live_segment **items = realloc(map->items, slots * sizeof(items[0]));
    if (items == NULL)
        return false;
    memset(items + map->slots, 0, (slots - map->slots) * sizeof(items[0]));
    map->items = items;
    map->slots = slots;
    return true;
}

/* NULL: out of memory. */
static struct kvl_live_segment *new_segment(const struct kvl_index_segment *row) {
    struct kvl_live_segment *segment = calloc(1, sizeof(*segment));
    if (segment == NULL)
        return NULL;
    segment->row = *row;
    segment->bits = calloc(kvl_live_segment_bits_bytes(kvl_live_segment_pages(segment)) + 1, 1);
    if (segment->bits != NULL)
        return segment;
    free(segment);
    return NULL;
}

/* The reserved one of this row; NULL: none. */
static struct kvl_live_segment *take_reserved(
    struct kvl_live_map *map, const struct kvl_index_segment *row) {
    struct kvl_live_segment **at = &map->reserved;
    while (*at != NULL && !kvl_live_segment_is(*at, row))
        at = &(*at)->next;
    struct kvl_live_segment *segment = *at;
    if (segment != NULL)
        *at = segment->next;
    return segment;
}

bool kvl_live_map_reserve(struct kvl_live_map *map, const struct kvl_index_segment *row) {
    if (row->id == 0 || row->id > SEGMENT_IDS_MAX || row->bytes > SEGMENT_BYTES_MAX ||
        row->bytes % KVL_PAGE_BYTES != 0 || !reserve_slot(map, row->id))
        return false;
    struct kvl_live_segment *segment = new_segment(row);
    if (segment == NULL)
        return false;
    segment->next = map->reserved;
    map->reserved = segment;
    return true;
}

void kvl_live_map_unreserve(struct kvl_live_map *map) {
    while (map->reserved != NULL) {
        struct kvl_live_segment *segment = map->reserved;
        map->reserved = segment->next;
        destroy(segment);
    }
}

bool kvl_live_map_put(struct kvl_live_map *map, const struct kvl_index_segment *row) {
    struct kvl_live_segment *segment = take_reserved(map, row);
    if (segment == NULL && kvl_live_map_reserve(map, row))
        segment = take_reserved(map, row);
    if (segment == NULL)
        return false;
    destroy(map->items[row->id]);
    map->items[row->id] = segment;
    return true;
}

void kvl_live_map_remove(struct kvl_live_map *map, uint32_t id) {
    if (id >= map->slots)
        return;
    destroy(map->items[id]);
    map->items[id] = NULL;
}

void kvl_live_map_add(struct kvl_live_map *map, uint64_t location, uint64_t record_bytes) {
    struct kvl_live_segment *segment = kvl_live_map_find(map, kvl_location_segment(location));
    uint32_t page = kvl_location_page(location);
    uint64_t pages = record_bytes / KVL_PAGE_BYTES;
    if (segment == NULL || (uint64_t)page + pages > kvl_live_segment_pages(segment))
        return;
    uint32_t end_page = page + (uint32_t)pages;
    /* What was marked dead behind the old end stays dead: no record begins there. */
    for (uint32_t i = segment->end_page; i < end_page; i++)
        set_bit(segment, i, false);
    if (end_page > segment->end_page)
        segment->end_page = end_page;
    set_bit(segment, page, true);
}

void kvl_live_map_bury(struct kvl_live_map *map, uint64_t location) {
    struct kvl_live_segment *segment = kvl_live_map_find(map, kvl_location_segment(location));
    uint32_t page = kvl_location_page(location);
    if (segment == NULL || page >= kvl_live_segment_pages(segment))
        return;
    while (segment->end_page <= page)
        set_bit(segment, segment->end_page++, false);
    set_bit(segment, page, false);
}

void kvl_live_map_drop(struct kvl_live_map *map, uint64_t location) {
    struct kvl_live_segment *segment = kvl_live_map_find(map, kvl_location_segment(location));
    uint32_t page = kvl_location_page(location);
    if (segment != NULL && page < kvl_live_segment_pages(segment))
        set_bit(segment, page, page >= segment->end_page);
}

void kvl_live_map_keep_dead(struct kvl_live_map *map, const struct kvl_live_map *before) {
    for (uint32_t id = 0; id < before->slots; id++) {
        struct kvl_live_segment *segment = kvl_live_map_find(map, id);
        const struct kvl_live_segment *known = kvl_live_map_find(before, id);
        if (segment == NULL || known == NULL || !kvl_live_segment_is(segment, &known->row))
            continue;
        while (segment->end_page < known->end_page)
            set_bit(segment, segment->end_page++, false);
        for (uint32_t page = segment->end_page; page < kvl_live_segment_pages(known); page++)
            if (kvl_live_segment_bit(known, page))
                set_bit(segment, page, true);
    }
}

/* NULL now: the segment is gone. */
static void compare_segment(const struct kvl_live_segment *before,
    const struct kvl_live_segment *now, void (*lost)(void *arg, uint64_t location), void *arg) {
    for (uint32_t page = 0; page < before->end_page; page++) {
        bool is = now != NULL && page < now->end_page && kvl_live_segment_bit(now, page);
        if (kvl_live_segment_bit(before, page) && !is)
            lost(arg, kvl_location_make(before->row.id, (uint64_t)page * KVL_PAGE_BYTES));
    }
}

void kvl_live_map_compare(const struct kvl_live_map *before, const struct kvl_live_map *now,
    void (*lost)(void *arg, uint64_t location), void *arg) {
    for (uint32_t id = 0; id < before->slots; id++) {
        if (before->items[id] != NULL)
            compare_segment(before->items[id], kvl_live_map_find(now, id), lost, arg);
    }
}

bool kvl_live_map_has(
    const struct kvl_live_map *map, uint64_t location, uint64_t segment_generation) {
    const struct kvl_live_segment *segment = kvl_live_map_find(map, kvl_location_segment(location));
    uint32_t page = kvl_location_page(location);
    if (segment == NULL || segment->row.generation != segment_generation ||
        page >= kvl_live_segment_pages(segment))
        return false;
    return kvl_live_segment_bit(segment, page) == (page < segment->end_page);
}
