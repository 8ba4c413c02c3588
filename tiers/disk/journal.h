/* journal.h - DIR/segments/journal: what a rebuild of the index cannot read from the segments.
 *
 *   frame: u32 magic "KVLJ" | u32 payload bytes | u64 sequence | u64 checksum of the payload
 *          | u64 checksum of these 24 bytes | entries, zero to a multiple of 8
 *   entry: u8 kind | u8 catalog kind | u16 key bytes | u32 value bytes | key | value
 *     1 HEAD     value: u32 format | u32 zero | u64 run | u64 capacity; first in the file
 *     2 SEGMENT  value: u64 bytes | u64 generation | u32 id | u32 end page | live bits of the pages
 *                before the end page, lowest bit first. Nothing else of this id holds any more.
 *     3 REMOVED  value: u32 id
 *     4 DEAD     value: u64 locations: the records there are dead
 *     5 PUT, 6 REMOVE   of the catalog: key, value as the user gave them
 *
 * A record is live when its segment is known with the record's segment generation, and it begins
 * before the end page at a set bit, or behind it with the run of HEAD; and no later DEAD names it.
 * So no removal needs a write into a segment, and bytes that a crash left behind the last record
 * are of an older run and count for nothing.
 *
 * A frame is appended and synced before the index transaction that holds its changes commits. The
 * file is written anew from the index at each start and when it has grown: journal.new, synced,
 * renamed. So frames come whole and in sequence, without holes; a file that is not so has lost
 * something, and then no block may be believed to be live. Only behind the last frame may bytes
 * stand that are none: an append that the power went away from. Nothing was committed on its word,
 * and index/state tells it from a frame that was synced once and is damaged.
 *
 * Threads: one at a time, the index's. Calls block on the disk. */
#ifndef KVL_DISK_JOURNAL_H
#define KVL_DISK_JOURNAL_H

#include <stdbool.h>
#include <stdint.h>

#include "index_state.h"
#include "live_map.h"

#define KVL_JOURNAL_NAME "journal"

enum kvl_journal_kind {
    KVL_JOURNAL_HEAD = 1,
    KVL_JOURNAL_SEGMENT,
    KVL_JOURNAL_REMOVED,
    KVL_JOURNAL_DEAD,
    KVL_JOURNAL_PUT,
    KVL_JOURNAL_REMOVE
};

struct kvl_journal_entry {
    enum kvl_journal_kind kind;
    enum kvl_catalog_kind catalog_kind;
    const uint8_t *key, *value;
    uint32_t key_bytes, value_bytes;
};

struct kvl_journal {
    int directory_fd; /* borrowed */
    int fd;           /* -1: to be written anew before anything is committed */
    int new_fd;       /* while that is going on, else -1 */
    uint64_t run;     /* of this start */
    uint64_t capacity_bytes;
    uint64_t limit_bytes; /* of the file; while it is written anew there are two */
    uint64_t bytes;
    uint64_t live_bytes; /* when it was written anew */
    uint64_t sequence;
    uint8_t *frame; /* being put together, head included */
    uint64_t frame_bytes, frame_capacity;
    kvl_err status; /* of what was added */
    struct kvl_index_state *state;
};

void kvl_journal_init(struct kvl_journal *journal, int directory_fd, uint64_t limit_bytes,
    struct kvl_index_state *state);
void kvl_journal_deinit(struct kvl_journal *journal);

/* To the frame under way; errors show when it is appended. */
void kvl_journal_add(struct kvl_journal *journal, const struct kvl_journal_entry *entry);
void kvl_journal_add_dead(struct kvl_journal *journal, uint64_t location);
void kvl_journal_add_segment(struct kvl_journal *journal, const struct kvl_live_segment *segment);
/* All segments that the map has. */
void kvl_journal_add_map(struct kvl_journal *journal, const struct kvl_live_map *map);
void kvl_journal_add_removed(struct kvl_journal *journal, uint32_t id);
void kvl_journal_forget_frame(struct kvl_journal *journal);

/* Whether the transaction under way calls for a new file instead of an append. */
bool kvl_journal_is_full(const struct kvl_journal *journal);
/* Appends the frame under way, if it holds anything, and syncs. Errors: NOSPC, IO, NOMEM; then
 * nothing of it counts, and it is forgotten. */
KVL_MUST_CHECK kvl_err kvl_journal_append(struct kvl_journal *journal);
/* A new file: what is added between begin and end is all it holds. Errors as above; the old file
 * holds on. */
KVL_MUST_CHECK kvl_err kvl_journal_begin(struct kvl_journal *journal);
KVL_MUST_CHECK kvl_err kvl_journal_end(struct kvl_journal *journal);
void kvl_journal_abandon(struct kvl_journal *journal);
/* The file says what is not so: the next transaction has to write it anew. */
void kvl_journal_outdate(struct kvl_journal *journal);

/* ---- reading ------------------------------------------------------------------------------ */

struct kvl_journal_found {
    bool exists;
    bool whole; /* every frame from HEAD on; behind the last one may stand what never was one */
    uint32_t format;
    uint64_t run, capacity_bytes, sequence;
};

/* An error ends the reading. */
typedef kvl_err (*kvl_journal_visit)(void *arg, const struct kvl_journal_entry *entry);

/* Visits what is readable, HEAD included, in order; damaged frames are stepped over. The bytes may
 * be anything. */
KVL_MUST_CHECK kvl_err kvl_journal_parse(const uint8_t *bytes, uint64_t count,
    kvl_journal_visit visit, void *arg, struct kvl_journal_found *found);
/* The whole file, to be freed; bytes NULL: there is none. Errors: IO, NOMEM. */
KVL_MUST_CHECK kvl_err kvl_journal_load(int directory_fd, uint8_t **bytes, uint64_t *count);
/* Only what HEAD says, and whether there is a file at all. */
KVL_MUST_CHECK kvl_err kvl_journal_look(int directory_fd, struct kvl_journal_found *found);
/* Gives back what was reserved behind the file's end, and a half-written new file. */
void kvl_journal_trim(int directory_fd);

/* What SEGMENT says; false: malformed. */
bool kvl_journal_read_segment(
    const struct kvl_journal_entry *entry, struct kvl_index_segment *row, uint32_t *end_page);
#define KVL_JOURNAL_SEGMENT_BYTES 24u /* then the bits */

#endif
