/* rebuild.h - a new index from the segments and their journal, in place of a damaged one.
 *
 * The catalog and the list of segments come from the journal; blocks from the headers of the
 * records that it says are live, and of those behind, record by record. Where the journal itself
 * has lost something no block is taken: one that was cleared could come back.
 *
 * The old file goes first, so that the cap holds; the new one gets its name when it is complete
 * and synced. A cut in between leaves a journal without an index: the next start goes on here.
 *
 * Threads: the index's. Blocks on the disk. */
#ifndef KVL_DISK_REBUILD_H
#define KVL_DISK_REBUILD_H

#include "index.h"

struct kvl_rebuilt {
    bool journal_exists, journal_whole;
    uint64_t segments, blocks;
    uint64_t unreadable; /* records that were live and whose header is damaged */
};

/* The index may be open, or only allocated (index_private.h); afterwards it is open, and to be
 * checked. What it knows of segments wins over the journal. Errors: VERSION (the journal is
 * newer), NOSPC, NOMEM, IO, CORRUPT. */
KVL_MUST_CHECK kvl_err kvl_index_rebuild(
    struct kvl_index *index, int segments_fd, struct kvl_rebuilt *out, struct kvl_errmsg *msg);
KVL_MUST_CHECK kvl_err kvl_index_rebuild_unopened(const struct kvl_index_options *options,
    int segments_fd, struct kvl_index **out, struct kvl_rebuilt *rebuilt, struct kvl_errmsg *msg);

#endif
