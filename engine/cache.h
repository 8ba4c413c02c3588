/* cache.h - the KV blocks of one sequence and one layer group: where each of them lives, and whose
 * it is. caches.h has those of all groups.
 *
 * With a daemon, blocks live in its device arena: restored under a read lease, or filled in place
 * under a write lease and sealed when whole. A block that gets no slot (leases fill the tier,
 * another engine is filling the same key, no daemon) lives in private memory, and is offered to
 * the daemon again at later block boundaries. Losing the daemon changes no byte: mapped slots stay
 * readable and writable, and go on as private ones. Out of an arena that the backend has mapped
 * they move into private memory as far as there is some, since the daemon's GPU memory is free for
 * the next one only when nobody maps it any more.
 *
 * Block memory is the backend's: only its operations reach through the addresses.
 *
 *   MISSING -> PRIVATE ---offered, copied---> FILLING -> SEALED
 *      |---------> FILLING (granted) -----------^           |  daemon lost: FILLING, SEALED
 *      '---------> SEALED (restored)                        '->            -> ORPHANED -> as
 * PRIVATE
 *
 * Between two forward calls blocks may move; during one they stay where they are.
 *
 * In a window group, blocks that the window has left behind go: their leases end and their memory
 * is given back, and they are MISSING for good. A tile of the attention may reach back over the
 * window's beginning, so the table shows zeros there, not nothing.
 *
 * Owns:    private memory and leases; backend and connection are borrowed and outlive the cache.
 * Threads: the engine's one thread. */
#ifndef KVL_CACHE_H
#define KVL_CACHE_H

#include <stdbool.h>
#include <stdint.h>

#include "connection.h"

struct kvl_cache;

struct kvl_cache_options {
    struct kvl_backend *backend;       /* whose memory blocks live in */
    struct kvl_connection *connection; /* NULL: private memory only */
    const struct kvl_hparams *hparams; /* copied */
    uint32_t group;                    /* of its layers */
    enum kvl_kv_dtype kv_dtype;
    uint32_t block_tokens;
    uint32_t context_max; /* tokens */
    /* While a restore is waited for, about ten times a second; may be NULL. */
    void (*restore_progress)(void *arg, uint32_t blocks_ready, uint32_t blocks);
    void *restore_progress_arg;
};

struct kvl_cache_stats {
    uint64_t restored_tokens[KVL_TIER_COUNT]; /* where each block was found */
    uint64_t restored_bytes;                  /* brought up from host and disk */
    uint64_t restore_ns; /* from asking until the last layer was there, overlap included */
};

KVL_MUST_CHECK kvl_err kvl_cache_create(
    const struct kvl_cache_options *options, struct kvl_cache **out);
/* Ends all leases. NULL is fine. */
void kvl_cache_destroy(struct kvl_cache *cache);

/* For kvl_batch.blocks, or window_blocks; entries change between forward calls, the array does not.
 */
uint8_t *const *kvl_cache_table(const struct kvl_cache *cache);
/* Names the whole blocks of a sequence that holds these tokens so far (it only grows). */
KVL_MUST_CHECK kvl_err kvl_cache_name_blocks(
    struct kvl_cache *cache, const uint32_t *tokens, uint32_t count);

/* ---- restoring: begin, forward calls with wait_layer, end ------------------------------------ */

/* A sealed partial block of a session, which a restore may take as the chain's last. */
struct kvl_cache_tail {
    struct kvl_key key;
    uint32_t block;  /* its position in the chain */
    uint32_t tokens; /* 0: no tail */
};

/* Sets tail->key from the sequence's tokens; tail->block blocks before it must be named.
 * Errors: INVALID. */
KVL_MUST_CHECK kvl_err kvl_cache_name_tail(
    const struct kvl_cache *cache, const uint32_t *tokens, struct kvl_cache_tail *tail);
/* Asks for the leading known ones of blocks [first, limit). *tokens: the position reached, were all
 * of it to come (first * block_tokens: nothing). The tail is copied into block tail->block, which
 * the caller gives memory (kvl_cache_prepare) before the forward call. */
KVL_MUST_CHECK kvl_err kvl_cache_restore_begin(struct kvl_cache *cache, uint32_t first,
    uint32_t limit, const struct kvl_cache_tail *tail, uint32_t *tokens);
bool kvl_cache_is_restoring(const struct kvl_cache *cache);
/* Between kvl_cache_prepare and the forward call: brings the tail, where the backend cannot take it
 * layer by layer. CANCELED: the restore failed, end it. */
kvl_err kvl_cache_take_tail(struct kvl_cache *cache);
/* A kvl_batch.before_layer; arg is the cache. CANCELED: the restore failed, end it. */
kvl_err kvl_cache_wait_layer(void *arg, uint32_t layer);
/* True: all of it came. False: only the first *blocks blocks of the sequence are there, the others
 * are MISSING again. */
bool kvl_cache_restore_end(struct kvl_cache *cache, uint32_t *blocks);
/* After all, of what restore_begin got, only the blocks before `end` are wanted, and no tail. */
void kvl_cache_restore_cut(struct kvl_cache *cache, uint32_t end);

/* ---- filling --------------------------------------------------------------------------------- */

struct kvl_cache_span {
    uint32_t first, end;           /* blocks that need memory */
    uint32_t left_first, left_end; /* known ones among these are left to a restore */
    uint32_t patience_ms;          /* with the daemon; then private memory does */
};
/* Gives the span's blocks memory. *end: the span's end, or the first block that turned out to be
 * known to the daemon and is left to a restore. Errors: NOMEM. */
KVL_MUST_CHECK kvl_err kvl_cache_prepare(
    struct kvl_cache *cache, const struct kvl_cache_span *span, uint32_t *end);
/* Asks for a slot for a block that will be needed soon; waits for nothing. */
void kvl_cache_prepare_ahead(struct kvl_cache *cache, uint32_t block);

/* Between two forward calls, waiting for nothing: takes replies, notes a lost daemon, lets go what
 * the window has left behind, seals what is whole (tokens: the sequence's; `whole` leading blocks
 * are complete), and, when offer is set, offers private whole blocks again and tries to reach a
 * lost daemon. */
void kvl_cache_settle(struct kvl_cache *cache, const uint32_t *tokens, uint32_t whole, bool offer);
/* The same to its end: returns when every answer has come, or the daemon is lost. */
void kvl_cache_finish(struct kvl_cache *cache, const uint32_t *tokens, uint32_t whole);
/* Seals a copy of the partial block behind `whole` whole ones. out->tokens is 0 when there was no
 * slot for it, or no daemon. */
void kvl_cache_seal_tail(
    struct kvl_cache *cache, const uint32_t *tokens, uint32_t count, struct kvl_cache_tail *out);

/* The block is in private (or orphaned) memory. */
bool kvl_cache_is_private(const struct kvl_cache *cache, uint32_t block);
const struct kvl_cache_stats *kvl_cache_stats(const struct kvl_cache *cache);

#endif
