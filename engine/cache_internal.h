/* cache_internal.h - what cache.c, cache_restore.c, cache_store.c, cache_window.c and caches.c
 * share.
 */
#ifndef KVL_CACHE_INTERNAL_H
#define KVL_CACHE_INTERNAL_H

#include "cache.h"
#include "private_memory.h"

enum kvl_block_home {
    KVL_HOME_MISSING,
    KVL_HOME_PRIVATE,
    KVL_HOME_FILLING,  /* a slot under a write lease */
    KVL_HOME_SEALED,   /* a slot under a read lease */
    KVL_HOME_ORPHANED, /* ours alone: a slot of a daemon that is gone, or one it would not seal */
};

struct kvl_cache_block {
    struct kvl_key key;             /* of the first named_count blocks */
    uint64_t lease;                 /* 0: none; FILLING, SEALED, ORPHANED by a refused seal */
    uint64_t offset_bytes;          /* of the slot, FILLING */
    struct kvl_device_arena *arena; /* held: FILLING, SEALED and ORPHANED */
    enum kvl_block_home home;
    bool settled; /* the daemon has it, or will never: nothing more to do */
    bool known;   /* MISSING, and the daemon has it: said when a slot was asked for last */
    bool asked;   /* an alloc for it is under way */
    bool sealing; /* a seal of it is under way */
};

struct kvl_cache_restore {
    bool active;
    bool failed;
    struct kvl_ticket ticket;
    struct kvl_progress progress;
    uint64_t began_ns;
    uint64_t arrived_ns; /* when all layers were there; 0: not yet */
    uint32_t first;
    uint32_t count;  /* leased blocks, the tail included */
    bool takes_tail; /* the last of them is the tail, held and copied from here: */
    struct kvl_device_arena *tail_arena;
    const uint8_t *tail_view;
    bool tail_taken;      /* as a whole, or not at all */
    uint32_t tail_layers; /* copied, one after the other */
    struct kvl_cache_tail tail;
};

struct kvl_cache_call;

struct kvl_cache {
    struct kvl_backend *backend;
    struct kvl_connection *connection; /* or NULL */
    uint64_t generation;               /* of the connection that leases belong to; 0: none */
    uint32_t group;
    struct kvl_geometry geometry; /* of the group; layer_group: its window, or 0 */
    uint32_t element_bytes;
    uint64_t block_bytes;
    uint32_t block_max;
    uint32_t named_count;
    uint32_t settled_count; /* leading blocks with settled set */
    uint32_t behind_count;  /* leading blocks that the window has left behind: MISSING, settled */
    uint8_t *nothing;       /* what the table shows of MISSING blocks: NULL, or a block of zeros */
    uint8_t **table;
    struct kvl_cache_block *blocks;
    struct kvl_private_memory *memory;
    struct kvl_key *chain;         /* block_max + 1: a request's keys */
    struct kvl_restored *restored; /* block_max + 1: its reply */
    struct kvl_allocated *granted; /* block_max + 1 */
    struct kvl_cache_restore restore;
    struct kvl_cache_call *calls; /* under way */
    bool copies_pending;          /* to be finished before the daemon may read what they wrote */
    struct kvl_cache_stats stats;
    void (*restore_progress)(void *arg, uint32_t blocks_ready, uint32_t blocks);
    void *restore_progress_arg;
};

/* The key of the block before; the namespace's for the first. */
const struct kvl_key *kvl_cache_parent_key(const struct kvl_cache *cache, uint32_t block);
/* True while there is a daemon to talk to and our leases are its. */
bool kvl_cache_is_online(struct kvl_cache *cache);
/* ... and it answers: ask before every call that waits for it. */
bool kvl_cache_may_wait(struct kvl_cache *cache, uint32_t patience_ms);
/* After the daemon's death: slots become orphans or move, answers to come are void. */
void kvl_cache_detach(struct kvl_cache *cache);
/* Makes a block MISSING; ends its lease behind. */
void kvl_cache_drop_block(struct kvl_cache *cache, uint32_t index);
/* The same of many, with few requests. */
void kvl_cache_drop_blocks(struct kvl_cache *cache, uint32_t first, uint32_t end);
/* What is left when the lease is somebody else's business. */
void kvl_cache_forget_block(struct kvl_cache *cache, uint32_t index);
bool kvl_cache_is_leased(const struct kvl_cache_block *block);
/* Asks for slots for the span's blocks; sets `known` of each. */
void kvl_cache_ask(struct kvl_cache *cache, const struct kvl_cache_span *span);
/* Private memory for what is MISSING of them. Errors: NOMEM. */
KVL_MUST_CHECK kvl_err kvl_cache_fill_up(struct kvl_cache *cache, uint32_t first, uint32_t end);
/* The first block that a token at this position, or a later one, sees something of. */
uint32_t kvl_cache_first_seen(const struct kvl_cache *cache, uint64_t position);
/* From now on the table shows zeros of MISSING blocks. Errors: NOMEM, IO (a lost device). */
KVL_MUST_CHECK kvl_err kvl_cache_need_nothing(struct kvl_cache *cache);
/* Blocks from `first` on are computed once more, though they were left behind. */
void kvl_cache_begin_anew(struct kvl_cache *cache, uint32_t first);
/* With `whole` leading blocks complete: lets go those that nothing to come will see. */
void kvl_cache_leave_behind(struct kvl_cache *cache, uint32_t whole);
/* Puts a granted slot under a MISSING block. False (and the lease ended) when it cannot be used. */
bool kvl_cache_take_slot(
    struct kvl_cache *cache, uint32_t index, const struct kvl_allocated *granted);
/* Ends leases and tickets behind; nothing depends on the answer. */
void kvl_cache_release(struct kvl_cache *cache, uint64_t lease);
/* Copies the first `rows` tokens of one layer; leaves copies_pending. */
KVL_MUST_CHECK kvl_err kvl_cache_copy_rows(
    struct kvl_cache *cache, uint8_t *to, const uint8_t *from, uint32_t layer, uint32_t rows);
/* Returns when all copies have been done. An error is a lost device, of which the next forward call
 * says so; who is about to let others read what was copied looks at it. */
kvl_err kvl_cache_finish_copies(struct kvl_cache *cache);
/* Lets the block's arena go, once its bytes are elsewhere or of no use. */
void kvl_cache_leave_arena(struct kvl_cache *cache, uint32_t index);
/* No callback reaches the cache any more. */
void kvl_cache_disown_calls(struct kvl_cache *cache);
uint64_t kvl_cache_now_ns(void);

#endif
