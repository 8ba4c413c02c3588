/* cache_restore.c - brings a chain's known blocks up, while the forward pass runs behind them.
 *
 * The first forward call after kvl_cache_restore_begin waits before each layer until that layer of
 * every block is there, so computing layer 0 overlaps with the arrival of layer 1. A session's
 * tail comes with the chain; its rows are copied layer by layer into a block of the sequence's
 * own, since a sealed block is never written to. */
#include "cache_internal.h"

#define WAIT_SLICE_MS 100u
#define STALLED_SLICES 100u /* without any progress: give up and compute */

bool kvl_cache_is_restoring(const struct kvl_cache *cache) {
    return cache->restore.active;
}

/* How many keys to ask for, put into cache->chain; sets takes_tail. */
static uint32_t make_chain(
    struct kvl_cache *cache, uint32_t first, uint32_t limit, const struct kvl_cache_tail *tail) {
    struct kvl_cache_restore *restore = &cache->restore;
    uint32_t count = limit - first;
    for (uint32_t i = 0; i < count; ++i)
        cache->chain[i] = cache->blocks[first + i].key;
    restore->takes_tail = false;
    if (tail == NULL || tail->tokens == 0 || tail->block < first || tail->block > limit)
        return count;
    uint32_t before = tail->block - first;
    if (before < count) { /* the whole block of that place is the better one, when known */
        uint8_t found[KVL_CHAIN_BLOCKS_MAX];
        uint32_t hits = 0;
        if (kvl_connection_check(cache->connection,
                kvl_lookup(cache->connection->client, cache->chain, count, found, &hits)) !=
                KVL_OK ||
            hits > before)
            return count;
    }
    restore->takes_tail = true;
    restore->tail = *tail;
    cache->chain[before] = tail->key;
    return before + 1;
}

/* Puts the leased blocks under the table. Returns how many could be used. */
static uint32_t take_blocks(struct kvl_cache *cache, uint32_t first, uint32_t count) {
    for (uint32_t i = 0; i < count; ++i) {
        struct kvl_device_arena *arena = cache->connection->arena;
        uint8_t *view = kvl_device_arena_block(arena, cache->restored[i].offset_bytes, false);
        if (view == NULL) {
            for (uint32_t j = i; j < count; ++j)
                kvl_cache_release(cache, cache->restored[j].lease);
            return i;
        }
        if (cache->restore.takes_tail && first + i == cache->restore.tail.block) {
            cache->restore.tail_view = view; /* stays beside the table: read from, then released */
            cache->restore.tail_arena = kvl_device_arena_hold(arena);
            continue;
        }
        kvl_cache_drop_block(cache, first + i);
        struct kvl_cache_block *block = &cache->blocks[first + i];
        cache->table[first + i] = view; /* whole: only read from now on */
        block->arena = kvl_device_arena_hold(arena);
        block->home = KVL_HOME_SEALED;
        block->lease = cache->restored[i].lease;
        block->settled = true;
    }
    return count;
}

kvl_err kvl_cache_restore_begin(struct kvl_cache *cache, uint32_t first, uint32_t limit,
    const struct kvl_cache_tail *tail, uint32_t *tokens) {
    uint32_t block_tokens = cache->geometry.block_tokens;
    *tokens = first * block_tokens;
    if (limit > cache->named_count || first > limit || cache->restore.active)
        return KVL_ERR_INVALID;
    if (limit - first > KVL_CHAIN_BLOCKS_MAX - 1)
        limit = first + KVL_CHAIN_BLOCKS_MAX - 1;
    if (!kvl_cache_may_wait(cache, KVL_PATIENCE_MS))
        return KVL_OK;
    uint64_t began_ns = kvl_cache_now_ns();
    cache->restore = (struct kvl_cache_restore){.began_ns = began_ns, .first = first};
    uint32_t count = make_chain(cache, first, limit, tail);
    if (count == 0 || !kvl_cache_may_wait(cache, KVL_PATIENCE_MS))
        return KVL_OK;
    struct kvl_restore_result result = {0};
    kvl_err err = kvl_connection_check(
        cache->connection, kvl_restore(cache->connection->client, KVL_TIER_DEVICE, cache->chain,
                               count, cache->restored, &result));
    if (err != KVL_OK || result.count == 0)
        return KVL_OK; /* nothing restored is no error: it is computed */
    struct kvl_cache_restore *restore = &cache->restore;
    restore->count = take_blocks(cache, first, result.count < count ? result.count : count);
    restore->takes_tail = restore->takes_tail && restore->count == count;
    restore->ticket = result.ticket;
    restore->arrived_ns = result.ticket.generation == 0 ? kvl_cache_now_ns() : 0;
    restore->active = restore->count > 0;
    uint32_t whole = restore->count - (restore->takes_tail ? 1 : 0);
    *tokens = (first + whole) * block_tokens + (restore->takes_tail ? restore->tail.tokens : 0);
    return KVL_OK;
}

static bool arrived(const struct kvl_progress *progress, uint32_t layers) {
    return progress->status == KVL_OK || (progress->layers_ready >= layers && layers != UINT32_MAX);
}

/* Waits until `layers` layers are there. False when they will not come. */
static bool wait_for(struct kvl_cache *cache, uint32_t layers) {
    struct kvl_cache_restore *restore = &cache->restore;
    struct kvl_progress *progress = &restore->progress;
    if (restore->ticket.generation == 0)
        return true;
    /* The ticket is void at the daemon that another sequence has reached meanwhile. */
    if (cache->generation != cache->connection->generation)
        return restore->arrived_ns != 0;
    for (uint32_t stalled = 0; stalled < STALLED_SLICES; ++stalled) {
        struct kvl_progress before = *progress;
        kvl_err err = kvl_ticket_wait(
            cache->connection->client, restore->ticket, layers, WAIT_SLICE_MS, progress);
        if (err == KVL_OK) {
            if (restore->arrived_ns == 0 && arrived(progress, cache->geometry.layers))
                restore->arrived_ns = kvl_cache_now_ns();
            return arrived(progress, layers);
        }
        if (err != KVL_ERR_TIMEOUT) {
            (void)kvl_connection_check(cache->connection, err);
            return false;
        }
        if (cache->restore_progress != NULL)
            cache->restore_progress(
                cache->restore_progress_arg, progress->blocks_ready, restore->count);
        if (progress->layers_ready != before.layers_ready ||
            progress->blocks_ready != before.blocks_ready)
            stalled = 0;
    }
    return false;
}

static kvl_err copy_tail(struct kvl_cache *cache, uint32_t layer) {
    struct kvl_cache_restore *restore = &cache->restore;
    kvl_err err = kvl_cache_copy_rows(
        cache, cache->table[restore->tail.block], restore->tail_view, layer, restore->tail.tokens);
    if (err == KVL_OK)
        ++restore->tail_layers;
    return err;
}

kvl_err kvl_cache_take_tail(struct kvl_cache *cache) {
    struct kvl_cache_restore *restore = &cache->restore;
    if (!restore->active || !restore->takes_tail || cache->backend->copies_within_forward)
        return KVL_OK;
    kvl_err err = wait_for(cache, UINT32_MAX) ? KVL_OK : KVL_ERR_CANCELED;
    for (uint32_t layer = 0; err == KVL_OK && layer < cache->geometry.layers; ++layer)
        err = copy_tail(cache, layer);
    restore->failed = err != KVL_OK;
    restore->tail_taken = true;
    return err;
}

kvl_err kvl_cache_wait_layer(void *arg, uint32_t layer) {
    struct kvl_cache *cache = arg;
    struct kvl_cache_restore *restore = &cache->restore;
    if (!restore->active)
        return KVL_OK;
    if (restore->failed || !wait_for(cache, layer + 1)) {
        restore->failed = true;
        return KVL_ERR_CANCELED;
    }
    if (!restore->takes_tail || restore->tail_taken)
        return KVL_OK;
    kvl_err err = copy_tail(cache, layer);
    if (err == KVL_OK)
        err = kvl_cache_finish_copies(cache); /* the layer reads them as soon as this returns */
    restore->failed = restore->failed || err != KVL_OK;
    return err;
}

static void count_restored(struct kvl_cache *cache, uint32_t count) {
    for (uint32_t i = 0; i < count; ++i) {
        uint32_t tier = cache->restored[i].found_tier;
        if (tier >= KVL_TIER_COUNT)
            continue;
        cache->stats.restored_tokens[tier] += cache->restored[i].token_count;
        if (tier != KVL_TIER_DEVICE)
            cache->stats.restored_bytes += cache->block_bytes;
    }
}

static void give_ticket_back(struct kvl_cache *cache) {
    const struct kvl_ticket *ticket = &cache->restore.ticket;
    if (ticket->generation != 0 && kvl_cache_is_online(cache))
        (void)kvl_connection_check(cache->connection,
            kvl_release_async(cache->connection->client, NULL, 0, ticket, 1, NULL, NULL));
}

/* The ticket goes on for all of them: the cut ones come for nobody, and are waited for. */
void kvl_cache_restore_cut(struct kvl_cache *cache, uint32_t end) {
    struct kvl_cache_restore *restore = &cache->restore;
    if (!restore->active)
        return;
    uint32_t whole = restore->count - (restore->takes_tail ? 1 : 0);
    uint32_t kept = end > restore->first ? end - restore->first : 0;
    if (restore->takes_tail)
        kvl_cache_release(cache, cache->restored[restore->count - 1].lease);
    restore->takes_tail = false;
    kvl_device_arena_let_go(restore->tail_arena);
    restore->tail_arena = NULL;
    if (kept < whole)
        kvl_cache_drop_blocks(cache, restore->first + kept, restore->first + whole);
    restore->count = kept < whole ? kept : whole;
    if (restore->count > 0)
        return;
    give_ticket_back(cache);
    restore->active = false;
}

bool kvl_cache_restore_end(struct kvl_cache *cache, uint32_t *blocks) {
    struct kvl_cache_restore *restore = &cache->restore;
    uint32_t ready = restore->count;
    restore->failed = restore->failed || !wait_for(cache, UINT32_MAX);
    if (restore->failed && restore->ticket.generation != 0 &&
        restore->progress.blocks_ready < restore->count)
        ready = restore->progress.blocks_ready;
    /* Another sequence's restore may have ended the forward call that copies it. */
    if (restore->takes_tail && !restore->tail_taken &&
        restore->tail_layers < cache->geometry.layers)
        restore->failed = true;
    if (restore->failed && restore->takes_tail && ready == restore->count)
        --ready; /* its copy may not be whole */

    (void)kvl_cache_finish_copies(cache); /* before the tail's slot is anybody else's */
    kvl_device_arena_let_go(restore->tail_arena);
    restore->tail_arena = NULL;
    uint32_t whole = restore->count - (restore->takes_tail ? 1 : 0);
    if (ready < whole)
        kvl_cache_drop_blocks(cache, restore->first + ready, restore->first + whole);
    if (restore->takes_tail)
        kvl_cache_release(cache, cache->restored[restore->count - 1].lease);
    give_ticket_back(cache);
    count_restored(cache, ready);
    uint64_t end_ns = restore->arrived_ns != 0 ? restore->arrived_ns : kvl_cache_now_ns();
    cache->stats.restore_ns += end_ns - restore->began_ns;
    restore->active = false;
    *blocks = restore->first + (ready < whole ? ready : whole);
    return !restore->failed;
}
