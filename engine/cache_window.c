/* cache_window.c - what a window group's cache lets go as the sequence moves on.
 *
 *   block:  0 | 1 | 2 | 3 | 4 | 5 ...          whole: 5, the next token stands in block 5
 *           behind    |<- window ->|           first_seen(5 * block_tokens): 2
 *
 * A block goes once nothing to come sees any of its tokens and nothing of it is under way: the
 * daemon keeps it, cold, as long as it likes. */
#include "cache_internal.h"

#define RELEASE_MAX 256u /* leases in one request */

uint32_t kvl_cache_first_seen(const struct kvl_cache *cache, uint64_t position) {
    return (uint32_t)kvl_block_first_seen(&cache->geometry, position);
}

kvl_err kvl_cache_need_nothing(struct kvl_cache *cache) {
    if (cache->nothing != NULL)
        return KVL_OK;
    uint8_t *block = NULL;
    kvl_err err = kvl_private_memory_take(cache->memory, &block);
    if (err != KVL_OK)
        return err;
    cache->copies_pending = true;
    err = cache->backend->ops->zero(cache->backend, block, cache->block_bytes);
    if (err != KVL_OK) {
        kvl_private_memory_give_back(cache->memory, block);
        return err;
    }
    cache->nothing = block;
    for (uint32_t i = 0; i < cache->block_max; ++i)
        if (cache->blocks[i].home == KVL_HOME_MISSING)
            cache->table[i] = block;
    return KVL_OK;
}

void kvl_cache_begin_anew(struct kvl_cache *cache, uint32_t first) {
    for (; cache->behind_count > first; --cache->behind_count)
        cache->blocks[cache->behind_count - 1].settled = false;
    if (cache->settled_count > first)
        cache->settled_count = first;
}

static bool is_under_way(const struct kvl_cache_block *block) {
    return block->home == KVL_HOME_FILLING || block->asked || block->sealing;
}

/* False: ask again later. */
static bool release(struct kvl_cache *cache, const uint64_t *leases, uint32_t count) {
    if (count == 0 || !kvl_cache_is_online(cache))
        return count == 0;
    return kvl_connection_check(cache->connection,
               kvl_release_async(cache->connection->client, leases, count, NULL, 0, NULL, NULL)) ==
           KVL_OK;
}

/* The next blocks, until one that is under way. False when there was none, or no way to say so. */
static bool leave_some(struct kvl_cache *cache, uint32_t end) {
    uint64_t leases[RELEASE_MAX];
    uint32_t count = 0, first = cache->behind_count, next = first;
    for (; next < end && count < RELEASE_MAX && !is_under_way(&cache->blocks[next]); ++next)
        if (kvl_cache_is_leased(&cache->blocks[next]))
            leases[count++] = cache->blocks[next].lease;
    if (next == first || !release(cache, leases, count))
        return false;
    for (; cache->behind_count < next; ++cache->behind_count) {
        kvl_cache_forget_block(cache, cache->behind_count);
        cache->blocks[cache->behind_count].settled = true;
    }
    return true;
}

void kvl_cache_leave_behind(struct kvl_cache *cache, uint32_t whole) {
    uint32_t end = kvl_cache_first_seen(cache, (uint64_t)whole * cache->geometry.block_tokens);
    if (cache->behind_count >= end || kvl_cache_need_nothing(cache) != KVL_OK)
        return;
    while (leave_some(cache, end))
        continue;
}
