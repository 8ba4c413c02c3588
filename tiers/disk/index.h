/* index.h - the LMDB index: what is on disk and where, segments, and the user's catalog.
 *
 * Databases in DIR/index/data.mdb, values little-endian:
 *   meta      "format"         u32 version of the whole directory
 *   blocks    key 32           u64 generation | u64 content hash | u64 location | u64 stored bytes
 * | u64 last use, wall ns | parent 32 | u32 namespace id | u32 tokens | u32 flags (1: raw) | zero 4
 * | u64 checksum        (96 bytes) segments  u32be id         u64 bytes | u64 generation | u64
 * checksum         (24 bytes) catalog.N the user's key   the user's value | u64 checksum (N:
 * catalog kind) A checksum is XXH3-64 over the key and everything before it. What does not pass is
 * skipped and counted, never used.
 *
 * What a removal or a change of the catalog does is in the journal before it is in here
 * (journal.h), so that the index can be rebuilt (rebuild.h) when LMDB's file is damaged.
 *
 * Threads: one at a time; the index thread after start. Every call may block on the disk. */
#ifndef KVL_DISK_INDEX_H
#define KVL_DISK_INDEX_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "block.h"
#include "catalog.h"

/* Format 1 had no journal beside the segments; it is read and written on as 2. */
#define KVL_DISK_FORMAT 2u
/* Above this share of the map, blocks are evicted; the rest is for deletes, which need pages. */
#define KVL_INDEX_PRESSURE_PERMILLE 850u

struct kvl_index;
struct kvl_index_state;
struct kvl_journal;

struct kvl_index_block {
    struct kvl_block_record record;
    uint64_t location;
    uint64_t stored_bytes;
    uint64_t last_use_wall_ns;
    bool raw; /* every frame is stored as it is */
};

struct kvl_index_segment {
    uint32_t id;
    uint64_t bytes;
    uint64_t generation;
};

enum kvl_index_op_kind {
    KVL_INDEX_PUT,    /* block, replacing any other of its key */
    KVL_INDEX_MOVE,   /* to block.location, if it still is at old_location */
    KVL_INDEX_DELETE, /* if it still is at old_location; the record there, written when the segment
                         had segment.generation, is dead in any case */
    KVL_INDEX_TOUCH,  /* block.last_use_wall_ns of key_head's block at old_location */
    KVL_INDEX_CATALOG_PUT,
    KVL_INDEX_CATALOG_REMOVE,
    KVL_INDEX_SEGMENT_PUT,
    KVL_INDEX_SEGMENT_REMOVE,
    KVL_INDEX_RECOVER /* block, unless a younger one of its key is known */
};

struct kvl_index_op {
    enum kvl_index_op_kind kind;
    bool applied; /* out: the condition held */
    struct kvl_index_block block;
    uint64_t old_location;
    uint32_t key_head; /* TOUCH: instead of the key */
    struct kvl_index_segment segment;
    enum kvl_catalog_kind catalog_kind;
    bool append; /* CATALOG_PUT: behind all other keys of its kind, so that pages are filled */
    uint32_t key_bytes, value_bytes;
    uint8_t *data; /* catalog key, then value; borrowed */
};

/* The first 4 bytes of a key; keys with one head stand together in the index. */
static inline uint32_t kvl_index_key_head(const struct kvl_key *key) {
    uint32_t head;
    memcpy(&head, key->bytes, sizeof(head));
    return head;
}

struct kvl_index_options {
    const char *directory;
    uint64_t map_bytes;
    struct kvl_index_state *state; /* borrowed; may be NULL */
    bool expected;                 /* there was one: without its databases it is damaged, not new */
};

/* Errors: VERSION (a newer format), CORRUPT (damaged), PERM, NOSPC, IO. */
KVL_MUST_CHECK kvl_err kvl_index_open(
    const struct kvl_index_options *options, struct kvl_index **out, struct kvl_errmsg *msg);
void kvl_index_close(struct kvl_index *index); /* NULL is fine */

/* Reads everything there is and compares it with its checksums, order and counts. CORRUPT: some of
 * it is not as it was written. Afterwards the index knows which records are live. */
KVL_MUST_CHECK kvl_err kvl_index_check(struct kvl_index *index);
/* Of the blocks that the last check has read. */
uint64_t kvl_index_generation_max(const struct kvl_index *index);
/* Writes the journal anew; from then on every commit goes there first. The journal outlives the
 * index. A failure is made up for by the next commit, which fails when it cannot. */
KVL_MUST_CHECK kvl_err kvl_index_keep_journal(struct kvl_index *index, struct kvl_journal *journal);

/* One synced transaction: all or nothing. NOSPC: the map or the file system is full. CORRUPT: the
 * index is damaged: kvl_index_heal (rebuild.h), or else the next start, makes it anew. */
KVL_MUST_CHECK kvl_err kvl_index_commit(
    struct kvl_index *index, struct kvl_index_op *ops, uint64_t count);

/* Fills in the rows of blocks that are known by the heads of their keys and their locations. */
struct kvl_index_name {
    uint32_t key_head;
    bool found; /* out: the index has a sound row of it, and the next two say which */
    uint64_t location;
    struct kvl_key key;
    uint64_t generation;
};
KVL_MUST_CHECK kvl_err kvl_index_resolve(
    struct kvl_index *index, struct kvl_index_name *names, uint64_t count);

/* Tells of each key whether there is a block of it, until visit returns false. */
enum kvl_index_answer {
    KVL_INDEX_FOUND,
    KVL_INDEX_ABSENT,   /* by the two rows that it would stand between: both sound, on one page */
    KVL_INDEX_NOT_FOUND /* which is not to say that it is absent, unless the index is sound */
};
typedef bool (*kvl_index_visit_key)(
    void *arg, enum kvl_index_answer answer, const struct kvl_index_block *block);
/* CORRUPT: a row is unsound, and nothing is said of its key and those behind it. That the index is
 * damaged is left for a check to note. */
KVL_MUST_CHECK kvl_err kvl_index_seek(struct kvl_index *index, const struct kvl_key *keys,
    uint32_t count, kvl_index_visit_key visit, void *arg);
/* Called again and again while the index is read ahead and checked, outside of LMDB's calls; it may
 * seek. NULL: nothing is. */
void kvl_index_set_between(struct kvl_index *index, void (*between)(void *arg), void *arg);

/* Used pages, in permille of the map. */
uint32_t kvl_index_usage_permille(struct kvl_index *index);
/* Bytes of the file; above the map when the capacity was made smaller. */
uint64_t kvl_index_file_bytes(struct kvl_index *index);

/* Asks for all pages ever used to be read ahead: a walk follows its keys, not its pages, and one
 * fault a page from a disk takes many times as long. */
void kvl_index_read_ahead(struct kvl_index *index);

/* Walks end early when visit returns false. bad: entries skipped for their checksum. */
typedef bool (*kvl_index_visit_block)(void *arg, const struct kvl_index_block *block);
typedef bool (*kvl_index_visit_segment)(void *arg, const struct kvl_index_segment *segment);
typedef bool (*kvl_index_visit_catalog)(void *arg, enum kvl_catalog_kind kind, const void *key,
    uint32_t key_bytes, const void *value, uint32_t value_bytes);
KVL_MUST_CHECK kvl_err kvl_index_walk_segments(
    struct kvl_index *index, kvl_index_visit_segment visit, void *arg, uint64_t *bad);
KVL_MUST_CHECK kvl_err kvl_index_walk_catalog(
    struct kvl_index *index, kvl_index_visit_catalog visit, void *arg, uint64_t *bad);
/* One kind of it. */
KVL_MUST_CHECK kvl_err kvl_index_walk_kind(struct kvl_index *index, enum kvl_catalog_kind kind,
    kvl_index_visit_catalog visit, void *arg, uint64_t *bad);
KVL_MUST_CHECK kvl_err kvl_index_walk_blocks(
    struct kvl_index *index, kvl_index_visit_block visit, void *arg, uint64_t *bad);

/* Deletes every block for which drop says true, in transactions of bounded size. */
KVL_MUST_CHECK kvl_err kvl_index_drop_blocks(
    struct kvl_index *index, kvl_index_visit_block drop, void *arg);
/* Rewrites the file without free pages and reopens it. The handle stays valid unless this fails. */
KVL_MUST_CHECK kvl_err kvl_index_compact(struct kvl_index **index, struct kvl_errmsg *msg);

#endif
