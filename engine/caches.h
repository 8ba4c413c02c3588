/* caches.h - the KV blocks of one sequence: a cache (cache.h) for each group of the model's layers.
 *
 * A model whose layers are all alike has one, and everything here is that one's. With windowed
 * layers there are two, and what a token needs is in both:
 *
 *   group 0, sees everything   | 0 | 1 | 2 | 3 | 4 | 5 | 6 |      a restore up to here needs
 *   group 1, sees a window                         | 5 | 6 |      these blocks
 *                                                          ^ position, a multiple of block_tokens
 *
 * A restore brings the longest prefix of group 0 for whose end group 1 has what the window needs:
 * one look-up says what there is of both. Where one of them fails, what is left is again such a
 * prefix, or nothing. A block is left to another engine's seal only where both groups have it.
 *
 * Owns:    the caches; backend and connection are borrowed and outlive them.
 * Threads: the engine's one thread. */
#ifndef KVL_CACHES_H
#define KVL_CACHES_H

#include "cache.h"

struct kvl_caches;

/* options->group is not looked at. */
KVL_MUST_CHECK kvl_err kvl_caches_create(
    const struct kvl_cache_options *options, struct kvl_caches **out);
void kvl_caches_destroy(struct kvl_caches *caches); /* NULL is fine */

/* What each of these does to one cache is in cache.h. */
uint8_t *const *kvl_caches_table(const struct kvl_caches *caches, uint32_t group); /* or NULL */
KVL_MUST_CHECK kvl_err kvl_caches_name_blocks(
    struct kvl_caches *caches, const uint32_t *tokens, uint32_t count);
/* tail->key becomes that of group 0; those of the others are remembered until the next call. */
KVL_MUST_CHECK kvl_err kvl_caches_name_tail(
    struct kvl_caches *caches, const uint32_t *tokens, struct kvl_cache_tail *tail);

/* tail: named by kvl_caches_name_tail last, or NULL. */
KVL_MUST_CHECK kvl_err kvl_caches_restore_begin(struct kvl_caches *caches, uint32_t first,
    uint32_t limit, const struct kvl_cache_tail *tail, uint32_t *tokens);
bool kvl_caches_is_restoring(const struct kvl_caches *caches);
kvl_err kvl_caches_take_tail(struct kvl_caches *caches);
/* layer: of the model. */
kvl_err kvl_caches_wait_layer(struct kvl_caches *caches, uint32_t layer);
/* False: *blocks says from where on computing may go on; never less than `first` was. */
bool kvl_caches_restore_end(struct kvl_caches *caches, uint32_t *blocks);

KVL_MUST_CHECK kvl_err kvl_caches_prepare(
    struct kvl_caches *caches, const struct kvl_cache_span *span, uint32_t *end);
void kvl_caches_prepare_ahead(struct kvl_caches *caches, uint32_t block);
void kvl_caches_settle(
    struct kvl_caches *caches, const uint32_t *tokens, uint32_t whole, bool offer);
/* Tries to reach a lost daemon first. */
void kvl_caches_finish(struct kvl_caches *caches, const uint32_t *tokens, uint32_t whole);
/* out: group 0's; without tokens unless every group has one. */
void kvl_caches_seal_tail(
    struct kvl_caches *caches, const uint32_t *tokens, uint32_t count, struct kvl_cache_tail *out);

/* Tokens of which any group holds the block in private memory; what a window has left behind is
 * held by nobody. */
uint64_t kvl_caches_private_tokens(const struct kvl_caches *caches, uint32_t count);
/* A token that was restored counts once, where the farthest of its blocks was found; bytes are
 * those of all groups. */
const struct kvl_cache_stats *kvl_caches_stats(const struct kvl_caches *caches);

#endif
