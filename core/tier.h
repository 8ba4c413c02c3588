/* tier.h - what a tier is to core. Core owns this interface; tiers implement it.
 *
 * A tier holds whole blocks at locations it chooses. Memory tiers (device, host) have slots with
 * addresses; the disk tier has locations only. All functions are called on the owner thread (the
 * one that calls poll); none but drain and deinit ever blocks. Core holds no lock across a call.
 *
 * Transfers: submit queues one whole-block transfer between the tier and a buffer of host memory.
 *   io->complete fires exactly once iff submit returned OK, always from inside poll or drain, never
 *   from inside submit. A transfer is whole or failed. The caller keeps io and buffer alive until
 *   then, and unchanged what a STORE reads, which may be long after it was hashed; the tier borrows
 *   both.
 *   STORE  buffer -> tier. Memory tiers: location is the caller's slot (from alloc). Disk: location
 *          is set when complete fires with OK, and then the block is durable. The content is
 *          hashed again on the way; CORRUPT when it is not record.content_hash. Only a tier that
 * the CPU cannot address trusts its source: a host copy that was verified when it arrived. Memory
 * tiers: frame_ready (may be NULL) reports the growing number of leading frames that are there.
 *   HASH   memory tiers: record.content_hash becomes that of the bytes at location; no buffer.
 *          With another status than OK it is what it was.
 *   LOAD   tier at location -> buffer. frame_ready (may be NULL) reports the growing number of
 *          leading frames that are in the buffer and verified. CORRUPT when key, generation or a
 *          checksum differ; nothing of it may then be used.
 * A tier whose device is lost ends every io with CLOSED, from then on for ever, those that were on
 * their way included, and alloc answers CLOSED. It says so of nothing else: IO, or any other error,
 * is that one io's alone, and the tier and all that it holds go on. An io ends only when nothing
 * reads or writes its buffer any more; where a lost device leaves that open, the io stays in flight
 * until drain, so that its buffer is not used again. */
#ifndef KVL_TIER_H
#define KVL_TIER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "block.h"
#include "kvl_err.h"
#include "kvl_types.h"
#include "log.h"

#define kvl_container_of(pointer, type, member) ((type *)((char *)(pointer)-offsetof(type, member)))

enum kvl_io_op { KVL_IO_STORE, KVL_IO_LOAD, KVL_IO_HASH };
/* RESTORE overtakes PREFETCH overtakes BEHIND (persist, demote). */
enum kvl_io_priority { KVL_IO_RESTORE, KVL_IO_PREFETCH, KVL_IO_BEHIND };

struct kvl_io {
    enum kvl_io_op op;
    enum kvl_io_priority priority;
    struct kvl_block_record record;
    const struct kvl_layout *layout; /* lives as long as its namespace: for ever */
    void *buffer;                    /* 4096-aligned, layout->slot_bytes; HASH: NULL */
    uint64_t location;
    uint64_t stored_bytes; /* set by the tier: bytes this block takes there */
    kvl_err status;        /* set before complete */
    void (*frame_ready)(struct kvl_io *io, uint32_t frames);
    void (*complete)(struct kvl_io *io);
    void *owner;         /* the caller's */
    void *tier_private;  /* the tier's, between submit and complete */
    struct kvl_io *next; /* the tier's */
};

struct kvl_tier_stats {
    uint64_t capacity_bytes;
    uint64_t used_bytes; /* everything of ours, metadata included; never above capacity */
    uint64_t read_bytes, written_bytes; /* since start */
    uint64_t loads, stores, errors, corrupt;
    uint64_t inflight;
    uint64_t reserved_bytes; /* of used_bytes: set aside for metadata, whatever is stored */
};

/* Counts a transfer that ends, as every tier does: one fewer is in flight. */
void kvl_tier_stats_count(struct kvl_tier_stats *stats, const struct kvl_io *io, kvl_err status);

/* What a tier tells its owner, always from inside poll. */
struct kvl_tier_events {
    void *arg;
    /* At start, once for every block a persistent tier holds, in any order; then loaded, once. */
    void (*found)(void *arg, const struct kvl_block_record *record, uint64_t location,
        uint64_t stored_bytes, uint64_t last_use_wall_ns);
    void (*loaded)(void *arg, kvl_err status);
    /* A seek is over, and with it all that were asked for before: what there is of its keys was
     * told as found. certain: what was not found (leading: the first such) is not there; else the
     * tier does not know yet. Number 0: namespaces have been told. */
    void (*sought)(void *arg, uint64_t number, bool certain);
    /* Once, before loaded, if at all: the catalog was told as a whole, no block has a generation
     * above this one, and from now on every answer is certain. */
    void (*checked)(void *arg, uint64_t generation_max);
    /* Before space is reclaimed: true keeps the block (it is rewritten elsewhere: then `moved`). */
    bool (*keep)(void *arg, const struct kvl_key *key);
    void (*moved)(void *arg, const struct kvl_key *key, uint64_t location);
    /* The block is no longer in this tier: evicted, or found corrupt. */
    void (*lost)(void *arg, const struct kvl_key *key, uint64_t location);
    /* As lost, of blocks that were damaged together with what told their keys: all that were at
     * these locations, which rise. */
    void (*lost_at)(void *arg, const uint64_t *locations, uint64_t count);
};

/* Keys are copied. */
struct kvl_tier_seek {
    const struct kvl_key *keys;
    uint32_t count;
    bool leading;    /* those behind the first that is not there are of no interest */
    uint64_t number; /* rises */
};

struct kvl_tier;

struct kvl_tier_ops {
    const char *name;
    KVL_MUST_CHECK kvl_err (*submit)(struct kvl_tier *tier, struct kvl_io *io);
    /* Fires completions and events; returns how many. Call when fd is readable. */
    uint32_t (*poll)(struct kvl_tier *tier);
    /* Asks that a queued io ends early; complete still fires, with CANCELED or its real status. */
    void (*cancel)(struct kvl_tier *tier, struct kvl_io *io);
    /* Frees the block at location. Not while an io of it is under way. Persistent tiers: gone for
     * ever once the next flush is done. */
    void (*discard)(struct kvl_tier *tier, const struct kvl_key *key, uint64_t location);
    /* Memory tiers only, NULL otherwise. Errors as kvl_arena_alloc; CLOSED of a lost device. */
    kvl_err (*alloc)(struct kvl_tier *tier, uint64_t slot_bytes, uint64_t *location);
    /* Memory tiers: host address of a location, or NULL where the CPU cannot reach it. */
    uint8_t *(*address)(struct kvl_tier *tier, uint64_t location);
    /* Memory tiers: the arena's memfd or exported handle, for engines to map; -1 if none. */
    int (*share_fd)(struct kvl_tier *tier);
    /* How that descriptor is mapped; NULL: a memfd, by mmap. Sets memory and device_uuid, of the
     * zeroed *out; the size is stats' capacity. */
    void (*describe_arena)(struct kvl_tier *tier, struct kvl_arena_info *out);
    struct kvl_tier_stats (*stats)(struct kvl_tier *tier);
    /* Whether blocks of this layout can be stored at all; if not, capacity_bytes is the smallest
     * with which they could. NULL: all that the arena holds can. */
    bool (*fits)(struct kvl_tier *tier, const struct kvl_layout *layout, uint64_t *capacity_bytes);
    /* Starts making everything stored so far durable now, instead of within the persist bound. */
    void (*quiesce)(struct kvl_tier *tier);
    /* Blocks until nothing is in flight and everything is durable; fires completions. */
    KVL_MUST_CHECK kvl_err (*drain)(struct kvl_tier *tier);
    /* Frees the tier and its memory. Nothing may be in flight (drain first). */
    void (*deinit)(struct kvl_tier *tier);
    /* Before loaded: tells at once as found what the tier holds of these keys, ahead of the rest.
     * Then `sought` fires, or `loaded` does. NULL: the tier cannot. Errors: AGAIN (many are being
     * sought), NOMEM. */
    KVL_MUST_CHECK kvl_err (*seek)(struct kvl_tier *tier, const struct kvl_tier_seek *wanted);
    /* An eventfd or epoll fd that is readable when poll has work. */
    int (*fd)(const struct kvl_tier *tier);
};

/* Embedded first in every tier; recovered with kvl_container_of. */
struct kvl_tier {
    const struct kvl_tier_ops *ops;
    struct kvl_tier_events events; /* set by the owner before the first poll */
};

#endif
