/* rebuild.h - a new index from the segments and their journal, in place of a damaged one.
 *
 * The catalog and the list of segments come from the journal; blocks from the headers of the
 * records that it says are live, and of those behind, record by record. Where the journal itself
 * has lost something no block is taken: one that was cleared could come back.
 *
 * The old file goes first, and the new one takes no more than its share, so that the cap holds at
 * every instant: the catalog, which packs its pages, then blocks as far as they fit. It gets its
 * name when it is complete and synced. A cut in between leaves a journal without an index: the next
 * start goes on here.
 *
 * Threads: the index's. Blocks on the disk. */
#ifndef KVL_DISK_REBUILD_H
#define KVL_DISK_REBUILD_H

#include "index.h"

struct kvl_rebuilt {
    bool opened_again; /* healing only: nothing was damaged, and nothing rebuilt */
    bool journal_exists, journal_whole;
    uint64_t blocks;
    uint64_t unreadable; /* records that were live and whose header is damaged */
    uint64_t left_out;   /* for want of room in the map */
};

/* The index may be open, or only allocated (index_private.h); afterwards it is open, and to be
 * checked. What it knows of segments wins over the journal. Where the journal is of a larger
 * capacity, the file may be as large as that one's: evict, and compact. Errors: VERSION (the
 * journal is newer), NOSPC, NOMEM, IO, CORRUPT. */
KVL_MUST_CHECK kvl_err kvl_index_rebuild(
    struct kvl_index *index, int segments_fd, struct kvl_rebuilt *out, struct kvl_errmsg *msg);
KVL_MUST_CHECK kvl_err kvl_index_rebuild_unopened(const struct kvl_index_options *options,
    int segments_fd, struct kvl_index **out, struct kvl_rebuilt *rebuilt, struct kvl_errmsg *msg);

/* For the index of a tier that is at work. One that LMDB only closed (a write of its head failed)
 * is opened again. A damaged one is made anew: exactly those blocks that it knew to be live are
 * taken, from the headers of their records, and what else is in the segments is not; the catalog
 * comes from the journal, which is to be written anew afterwards. A damaged journal is written anew
 * before anything is removed, too, so that a cut costs no block. lost is called, by rising
 * location, for each record that was live and is not in the index any more; not when healing fails.
 * An error leaves the handle closed: its calls say CLOSED, and healing may be tried again. Errors:
 * also NOTFOUND (no journal), CORRUPT (the index was never read as a whole: a start is needed). */
KVL_MUST_CHECK kvl_err kvl_index_heal(struct kvl_index *index, int segments_fd,
    struct kvl_rebuilt *out, void (*lost)(void *arg, uint64_t location), void *arg,
    struct kvl_errmsg *msg);

#endif
