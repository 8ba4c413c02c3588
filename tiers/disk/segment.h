/* segment.h - segment files and, in RAM, what lies in each.
 *
 *   FREE -> ACTIVE (appended to) -> FULL -> RECLAIMING -> FREE, with a new generation
 *
 * A location is segment id << 32 | first page of the record. The file's bytes are reused only when
 * the deletions of its blocks and its new generation are committed and refs is 0.
 *
 * Threads: the disk thread; the file functions any. */
#ifndef KVL_DISK_SEGMENT_H
#define KVL_DISK_SEGMENT_H

#include <stdbool.h>
#include <stdint.h>

#include "index.h"
#include "io_backend.h"

enum kvl_segment_state {
    KVL_SEGMENT_FREE,
    KVL_SEGMENT_ACTIVE,
    KVL_SEGMENT_FULL,
    KVL_SEGMENT_RECLAIMING
};

/* One record. There may be tens of millions, so the key is not here: the index has it, and finds
 * it by its head and the location. */
struct kvl_segment_entry {
    uint32_t key_head; /* the key's first 4 bytes */
    uint32_t page;
    uint32_t pages : 24;
    uint32_t live : 1, raw : 1, keep : 1;
    uint32_t used : 1;   /* last_use_s is newer than what the index has */
    uint32_t sought : 1; /* while loading: found ahead of the walk, which will pass it over */
    uint32_t last_use_s; /* wall clock */
};
_Static_assert(sizeof(struct kvl_segment_entry) == 16, "RAM per block is a promise (docs)");

struct kvl_segment {
    uint32_t id;
    enum kvl_segment_state state;
    struct kvl_disk_file file;
    uint64_t bytes;
    uint64_t generation;
    uint64_t append_bytes;   /* the next record's offset */
    uint64_t reserved_bytes; /* at most needed by batches not yet placed */
    uint64_t live_bytes;
    uint32_t refs;      /* loads that wait, and reads under way */
    uint32_t batches;   /* batches that go here and are not yet committed */
    bool touched;       /* last uses wait to be saved */
    uint64_t tried;     /* number of the reclaim that last found it unsuitable */
    uint64_t *moved_to; /* by entry: location of the copy, 0 none; NULL: no copies were made */
    struct kvl_segment_entry *entries; /* by page, the first sorted_count of them */
    uint64_t entry_count, entry_capacity;
    uint64_t sorted_count; /* all of them, once loaded */
    uint64_t sought_count;
};

struct kvl_segments {
    struct kvl_segment **items; /* by id; NULL where there is none */
    uint32_t slots;
    uint32_t count;
    uint64_t total_bytes;
    int directory_fd;
    bool direct; /* O_DIRECT */
};

static inline uint64_t kvl_location_make(uint32_t segment, uint64_t offset_bytes) {
    return (uint64_t)segment << 32 | offset_bytes / KVL_PAGE_BYTES;
}
static inline uint32_t kvl_location_segment(uint64_t location) {
    return (uint32_t)(location >> 32);
}
static inline uint32_t kvl_location_page(uint64_t location) {
    return (uint32_t)location;
}

void kvl_segments_deinit(struct kvl_segments *segments);
struct kvl_segment *kvl_segments_find(const struct kvl_segments *segments, uint32_t id);
/* The smallest id above another that is not in use; above 0: the smallest. */
uint32_t kvl_segments_unused_id(const struct kvl_segments *segments, uint32_t above);
uint32_t kvl_segments_count_state(
    const struct kvl_segments *segments, enum kvl_segment_state state);
/* The free one of the smallest id above another; above 0: of all. Segments are taken in this order.
 */
struct kvl_segment *kvl_segments_next_free(const struct kvl_segments *segments, uint32_t above);
static inline struct kvl_segment *kvl_segments_first_free(const struct kvl_segments *segments) {
    return kvl_segments_next_free(segments, 0);
}

/* Opens the file of a known segment. NOTFOUND: missing or of another size. */
KVL_MUST_CHECK kvl_err kvl_segments_attach(
    struct kvl_segments *segments, const struct kvl_index_segment *known);
/* Forgets the segment and closes its file. */
void kvl_segments_detach(struct kvl_segments *segments, struct kvl_segment *segment);

/* Adds behind all others (at start: anywhere, then sort). False: out of memory. */
bool kvl_segment_add(struct kvl_segment *segment, const struct kvl_index_block *block);
/* While loading, ahead of the walk: EXISTS when it was added so before, be it live or not. */
KVL_MUST_CHECK kvl_err kvl_segment_add_sought(
    struct kvl_segment *segment, const struct kvl_index_block *block);
bool kvl_segment_was_sought(const struct kvl_segment *segment, uint32_t page);
/* As if it had never been sought. */
void kvl_segment_forget_sought(struct kvl_segment *segment, uint32_t page);
void kvl_segment_sort(struct kvl_segment *segment);
/* Gives back what was allocated ahead for more entries. */
void kvl_segment_trim(struct kvl_segment *segment);
/* The record that begins at this page, or NULL. While loading it may look through all entries. */
struct kvl_segment_entry *kvl_segment_at(const struct kvl_segment *segment, uint32_t page);
/* Whether the record is the key's, as far as the entry can tell; its header says for certain. */
static inline bool kvl_segment_entry_is(
    const struct kvl_segment_entry *entry, const struct kvl_key *key) {
    return entry->key_head == kvl_index_key_head(key);
}
static inline uint64_t kvl_segment_location(
    const struct kvl_segment *segment, const struct kvl_segment_entry *entry) {
    return kvl_location_make(segment->id, (uint64_t)entry->page * KVL_PAGE_BYTES);
}
static inline uint64_t kvl_segment_moved_to(
    const struct kvl_segment *segment, const struct kvl_segment_entry *entry) {
    return segment->moved_to == NULL ? 0 : segment->moved_to[entry - segment->entries];
}
void kvl_segment_kill(struct kvl_segment *segment, struct kvl_segment_entry *entry);
/* Empty and FREE again, under a new generation. */
void kvl_segment_reset(struct kvl_segment *segment, uint64_t generation);

#define KVL_SEGMENT_NAME_BYTES 24
void kvl_segment_file_name(uint32_t id, char name[KVL_SEGMENT_NAME_BYTES]);
/* Creates, reserves and syncs the files of some segments, replacing any others of their names; all
 * together cost little more than one. made: how many there are now, the first of them; an error
 * when there are none. */
#define KVL_SEGMENTS_AHEAD 4u
KVL_MUST_CHECK kvl_err kvl_segment_files_create(
    int directory_fd, const struct kvl_index_segment *segments, uint32_t count, uint32_t *made);
KVL_MUST_CHECK kvl_err kvl_segment_file_remove(int directory_fd, uint32_t id);
/* Removes files in the directory that no segment owns. */
void kvl_segments_remove_strangers(const struct kvl_segments *segments);

#endif
