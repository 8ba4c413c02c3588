/* live_map.h - which records in the segments are live: a bit for every page of every segment.
 *
 * The journal is written from it, and a rebuild goes by it. A page's bit means
 *   before end_page: 1, a live record begins here
 *   from there on:   1, the record that begins here, if any, is dead; what carries the journal's
 *                    run and is not marked so is live
 * It takes a 32768th of the segments' bytes in RAM; while a journal is written anew, twice that.
 *
 * Threads: one at a time, the index's. */
#ifndef KVL_DISK_LIVE_MAP_H
#define KVL_DISK_LIVE_MAP_H

#include <stdbool.h>
#include <stdint.h>

#include "index.h"

struct kvl_live_segment {
    struct kvl_index_segment row;
    uint32_t end_page; /* behind the last record that was ever live */
    uint8_t *bits;
    struct kvl_live_segment *next; /* of those reserved */
};

struct kvl_live_map {
    struct kvl_live_segment **items; /* by id; NULL where there is none */
    uint32_t slots;
    struct kvl_live_segment *reserved;
};

void kvl_live_map_deinit(struct kvl_live_map *map);
/* Into one that is empty. False: out of memory; it is empty then. */
KVL_MUST_CHECK bool kvl_live_map_copy(struct kvl_live_map *copy, const struct kvl_live_map *map);
struct kvl_live_segment *kvl_live_map_find(const struct kvl_live_map *map, uint32_t id);
/* So that a later put of this row cannot fail. False: out of memory, or absurd. */
KVL_MUST_CHECK bool kvl_live_map_reserve(
    struct kvl_live_map *map, const struct kvl_index_segment *row);
/* Of what was not put after all. */
void kvl_live_map_unreserve(struct kvl_live_map *map);
/* A segment without records, in place of any other of its id. False: out of memory, or absurd. */
KVL_MUST_CHECK bool kvl_live_map_put(struct kvl_live_map *map, const struct kvl_index_segment *row);
void kvl_live_map_remove(struct kvl_live_map *map, uint32_t id);
/* Locations of unknown segments, or behind their end, change nothing. */
void kvl_live_map_add(struct kvl_live_map *map, uint64_t location, uint64_t record_bytes);
void kvl_live_map_drop(struct kvl_live_map *map, uint64_t location);
/* As drop, of a record that was written: the end page comes behind its first, so that a journal
 * that is written from the map still says that it is dead. Not while a record before it is to be
 * added. */
void kvl_live_map_bury(struct kvl_live_map *map, uint64_t location);
/* Takes over from a map of the same segments which records behind the last live one are dead: what
 * a map that was made from live records alone does not know. */
void kvl_live_map_keep_dead(struct kvl_live_map *map, const struct kvl_live_map *before);
/* Calls lost for each record that was live before and is not now, by rising location. */
void kvl_live_map_compare(const struct kvl_live_map *before, const struct kvl_live_map *now,
    void (*lost)(void *arg, uint64_t location), void *arg);
/* Whether a record of this segment generation that begins there is live; behind the end page it is
 * one of the journal's run. */
bool kvl_live_map_has(
    const struct kvl_live_map *map, uint64_t location, uint64_t segment_generation);

/* Whether it is the segment of that row still: recycled, it has another generation. */
bool kvl_live_segment_is(
    const struct kvl_live_segment *segment, const struct kvl_index_segment *row);
uint32_t kvl_live_segment_pages(const struct kvl_live_segment *segment);
bool kvl_live_segment_bit(const struct kvl_live_segment *segment, uint32_t page);
/* Bytes of bits that cover end_page. */
uint64_t kvl_live_segment_bits_bytes(uint32_t end_page);

#endif
