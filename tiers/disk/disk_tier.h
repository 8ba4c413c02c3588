/* disk_tier.h - the disk tier: blocks in segment files, LMDB as the index, the catalog beside it.
 *
 *   DIR/lock                  "pid name" of the one process that holds DIR
 *   DIR/index/data.mdb        LMDB (tiers/disk/index.h); state beside it (index_state.h)
 *   DIR/segments/NNNNNNNN.seg records, appended (tiers/disk/record.h)
 *   DIR/segments/journal      what a rebuild of the index needs (tiers/disk/journal.h)
 *
 * Threads: create, and everything through the tier and the catalog, on the owner thread. Inside: a
 * disk thread (I/O, order of writes), an index thread (LMDB) and codec workers.
 * Owns: DIR while it lives. Tier and catalog end together, by tier->ops->deinit.
 *
 * A STORE completes when its block is durable. Errors an io may end with: CORRUPT, NOSPC, IO,
 * NOTFOUND (a LOAD of a location that was reclaimed), CANCELED. submit: TOOBIG, INVALID, AGAIN.
 * A catalog put may also say NOSPC: the index has its share of the capacity only, and AGAIN may
 * mean that earlier puts are not durable yet. */
#ifndef KVL_DISK_TIER_H
#define KVL_DISK_TIER_H

#include <stdbool.h>
#include <stdint.h>

#include "catalog.h"
#include "tier.h"

/* AUTO: planes and zstd, unless they shrink little and the disk outruns their decoding (measured
 * on the blocks and the disk at hand); until that is measured, raw. */
enum kvl_disk_codec { KVL_DISK_CODEC_AUTO, KVL_DISK_CODEC_ZSTD, KVL_DISK_CODEC_RAW };
/* AUTO falls back from io_uring to threads, and from O_DIRECT to buffered, with a WARN each. */
enum kvl_disk_io { KVL_DISK_IO_AUTO, KVL_DISK_IO_URING, KVL_DISK_IO_POSIX, KVL_DISK_IO_BUFFERED };

struct kvl_disk_options {
    const char *path;        /* created with its parents, 0700, when missing */
    uint64_t capacity_bytes; /* hard cap of everything in path, also across restarts */
    uint32_t persist_ms;     /* a stored block is durable within this; 0: 200 */
    uint32_t codec_threads;  /* 0: 2 */
    enum kvl_disk_codec codec;
    enum kvl_disk_io io;
    bool rebuild;            /* the index anew from the segments, whatever it is like */
    const char *holder_name; /* shown to the process that finds path held; NULL: "kvloft" */
    struct kvl_log *log;     /* borrowed; may be NULL */
};

#define KVL_DISK_CAPACITY_BYTES_MIN (6ull << 20)

/* Errors: BUSY (names the holder), PERM, NOSPC, INVALID (capacity, path), UNSUPPORTED (a network
 * file system, io refused), VERSION (a newer format), CORRUPT (the index is damaged), NOMEM, IO. */
KVL_MUST_CHECK kvl_err kvl_disk_tier_create(const struct kvl_disk_options *options,
    struct kvl_tier **tier, struct kvl_catalog **catalog, struct kvl_errmsg *msg);

/* Without a daemon: makes the index anew from the segments and their journal, and reads back what
 * it then says. options: path, and a capacity if it is not to be the last one's. Errors: as create;
 * NOTFOUND (no such folder), CORRUPT (nothing to rebuild from: a sound index is left as it is). */
struct kvl_disk_rebuilt {
    uint64_t blocks;
    uint64_t unreadable; /* records whose header is damaged: lost */
    uint64_t left_out;   /* blocks that the index had no room for: lost */
    uint64_t catalog_records;
    bool whole; /* false: the journal is damaged or missing, and no block could be believed */
};
KVL_MUST_CHECK kvl_err kvl_disk_rebuild(
    const struct kvl_disk_options *options, struct kvl_disk_rebuilt *out, struct kvl_errmsg *msg);

/* Lets transfers use this memory (an arena) without pinning its pages each time. Where the system
 * refuses, a WARN through the log and nothing else changes. The memory must outlive the tier. */
void kvl_disk_tier_register_memory(struct kvl_tier *tier, void *address, uint64_t bytes);

/* From now on; see kvl_disk_options. Owner thread. */
void kvl_disk_tier_set_persist_ms(struct kvl_tier *tier, uint32_t persist_ms);

/* What AUTO decided, or what was asked for: "raw", "planes+zstd", "undecided". Static storage. */
const char *kvl_disk_tier_codec_name(struct kvl_tier *tier);
/* The backend in use: "io_uring", "posix", "buffered". Static storage. */
const char *kvl_disk_tier_io_name(struct kvl_tier *tier);

#endif
