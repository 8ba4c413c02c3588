/* cache.c - see cache.h: the table of blocks and the memory under it. */
#include "cache.h"

#include <stdlib.h>
#include <time.h>

#include "cache_internal.h"

#define RELEASE_MAX 1024u /* leases in one request */

uint64_t kvl_cache_now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static kvl_err allocate(struct kvl_cache *cache) {
    uint64_t blocks = cache->block_max;
    cache->table = calloc(blocks, sizeof *cache->table);
    cache->blocks = calloc(blocks, sizeof *cache->blocks);
    cache->chain = calloc(blocks + 1, sizeof *cache->chain);
    cache->restored = calloc(blocks + 1, sizeof *cache->restored);
    cache->granted = calloc(blocks + 1, sizeof *cache->granted);
    if (cache->table == NULL || cache->blocks == NULL || cache->chain == NULL ||
        cache->restored == NULL || cache->granted == NULL)
        return KVL_ERR_NOMEM;
    return kvl_private_memory_create(cache->backend, cache->block_bytes, &cache->memory);
}

kvl_err kvl_cache_create(const struct kvl_cache_options *options, struct kvl_cache **out) {
    *out = NULL;
    const struct kvl_hparams *hparams = options->hparams;
    const struct kvl_layer_group layers = kvl_layer_group(hparams, options->group);
    if (options->block_tokens == 0 || options->context_max == 0 || layers.layers == 0)
        return KVL_ERR_INVALID;
    struct kvl_cache *cache = calloc(1, sizeof *cache);
    if (cache == NULL)
        return KVL_ERR_NOMEM;
    cache->backend = options->backend;
    cache->connection = options->connection;
    cache->generation = options->connection != NULL ? options->connection->generation : 0;
    cache->group = options->group;
    cache->geometry = (struct kvl_geometry){
        .layers = layers.layers,
        .kv_heads = hparams->kv_heads,
        .k_dim = hparams->k_dim,
        .v_dim = hparams->v_dim,
        .block_tokens = options->block_tokens,
        .layer_group = layers.window,
    };
    cache->restore_progress = options->restore_progress;
    cache->restore_progress_arg = options->restore_progress_arg;
    cache->element_bytes = kvl_kv_dtype_bytes(options->kv_dtype);
    cache->block_bytes =
        kvl_group_block_bytes(hparams, options->group, options->block_tokens, options->kv_dtype);
    cache->block_max = (uint32_t)(((uint64_t)options->context_max + options->block_tokens - 1) /
                                  options->block_tokens);
    kvl_err err = cache->block_bytes == 0 ? KVL_ERR_TOOBIG : allocate(cache);
    if (err != KVL_OK) {
        kvl_cache_destroy(cache);
        return err;
    }
    *out = cache;
    return KVL_OK;
}

/* Whether the daemon that we are connected to holds a slot for it. */
bool kvl_cache_is_leased(const struct kvl_cache_block *block) {
    return block->lease != 0 &&
           (block->home == KVL_HOME_FILLING || block->home == KVL_HOME_SEALED ||
               block->home == KVL_HOME_ORPHANED);
}

/* The answer is not looked at: a daemon that does not get this one sees the client close. */
static void release_all(struct kvl_cache *cache) {
    uint64_t leases[RELEASE_MAX];
    uint32_t count = 0;
    for (uint32_t i = 0; i < cache->block_max; ++i) {
        struct kvl_cache_block *block = &cache->blocks[i];
        if (!kvl_cache_is_leased(block))
            continue;
        if (!kvl_cache_may_wait(cache, KVL_PATIENCE_MS))
            return; /* the client's end releases them */
        leases[count++] = block->lease;
        if (count == RELEASE_MAX) {
            (void)kvl_connection_check(
                cache->connection, kvl_release(cache->connection->client, leases, count, NULL, 0));
            count = 0;
        }
    }
    if (count > 0 && kvl_cache_may_wait(cache, KVL_PATIENCE_MS))
        (void)kvl_connection_check(
            cache->connection, kvl_release(cache->connection->client, leases, count, NULL, 0));
}

void kvl_cache_destroy(struct kvl_cache *cache) {
    if (cache == NULL)
        return;
    /* Another engine may get the slots: nothing of ours may still be written to them. */
    (void)kvl_cache_finish_copies(cache);
    if (cache->blocks != NULL && kvl_cache_may_wait(cache, KVL_PATIENCE_MS)) {
        (void)kvl_connection_check(cache->connection, kvl_client_drain(cache->connection->client));
        release_all(cache);
    }
    kvl_cache_disown_calls(cache);
    for (uint32_t i = 0; cache->blocks != NULL && i < cache->block_max; ++i)
        kvl_cache_leave_arena(cache, i);
    kvl_device_arena_let_go(cache->restore.tail_arena);
    kvl_private_memory_destroy(cache->memory);
    free(cache->granted);
    free(cache->restored);
    free(cache->chain);
    free(cache->blocks);
    free(cache->table);
    free(cache);
}

uint8_t *const *kvl_cache_table(const struct kvl_cache *cache) {
    return cache->table;
}

const struct kvl_cache_stats *kvl_cache_stats(const struct kvl_cache *cache) {
    return &cache->stats;
}

const struct kvl_key *kvl_cache_parent_key(const struct kvl_cache *cache, uint32_t block) {
    return block == 0 ? kvl_connection_namespace(cache->connection, cache->group)
                      : &cache->blocks[block - 1].key;
}

kvl_err kvl_cache_name_blocks(struct kvl_cache *cache, const uint32_t *tokens, uint32_t count) {
    if (cache->connection == NULL)
        return KVL_OK;
    uint32_t block_tokens = cache->geometry.block_tokens;
    for (uint32_t i = cache->named_count; i < count / block_tokens; ++i) {
        kvl_err err =
            kvl_key_of_block(kvl_cache_parent_key(cache, i), tokens + (uint64_t)i * block_tokens,
                block_tokens, (struct kvl_bytes){0}, &cache->blocks[i].key);
        if (err != KVL_OK)
            return err;
        cache->named_count = i + 1;
    }
    return KVL_OK;
}

kvl_err kvl_cache_name_tail(
    const struct kvl_cache *cache, const uint32_t *tokens, struct kvl_cache_tail *tail) {
    if (cache->connection == NULL || tail->block > cache->named_count)
        return KVL_ERR_INVALID;
    return kvl_key_of_block(kvl_cache_parent_key(cache, tail->block),
        tokens + (uint64_t)tail->block * cache->geometry.block_tokens, tail->tokens,
        (struct kvl_bytes){0}, &tail->key);
}

bool kvl_cache_is_online(struct kvl_cache *cache) {
    return cache->connection != NULL && cache->connection->connected &&
           cache->generation == cache->connection->generation;
}

bool kvl_cache_may_wait(struct kvl_cache *cache, uint32_t patience_ms) {
    return kvl_cache_is_online(cache) && kvl_connection_answers(cache->connection, patience_ms);
}

void kvl_cache_leave_arena(struct kvl_cache *cache, uint32_t index) {
    kvl_device_arena_let_go(cache->blocks[index].arena);
    cache->blocks[index].arena = NULL;
}

/* Moves an orphan out of an arena that the backend has mapped. */
static kvl_err evacuate(struct kvl_cache *cache, uint32_t index) {
    struct kvl_cache_block *block = &cache->blocks[index];
    uint8_t *to = NULL;
    kvl_err err = kvl_private_memory_take(cache->memory, &to);
    if (err != KVL_OK)
        return err;
    struct kvl_runs whole = {.bytes = cache->block_bytes, .count = 1};
    err = cache->backend->ops->copy(cache->backend, to, cache->table[index], whole);
    if (err != KVL_OK) {
        kvl_private_memory_give_back(cache->memory, to);
        return err;
    }
    cache->copies_pending = true;
    cache->table[index] = to;
    block->home = KVL_HOME_PRIVATE;
    kvl_cache_leave_arena(cache, index);
    return KVL_OK;
}

void kvl_cache_detach(struct kvl_cache *cache) {
    kvl_err room = KVL_OK; /* without any left, orphans stay where they are */
    for (uint32_t i = 0; i < cache->block_max; ++i) {
        struct kvl_cache_block *block = &cache->blocks[i];
        if (block->home == KVL_HOME_FILLING || block->home == KVL_HOME_SEALED)
            block->home = KVL_HOME_ORPHANED;
        block->asked = block->sealing = false;
        block->settled = i < cache->behind_count;
        block->lease = 0;
        if (block->home == KVL_HOME_ORPHANED && block->arena->base != NULL && room == KVL_OK)
            room = evacuate(cache, i);
    }
    cache->settled_count = 0;
    cache->generation = 0;
    kvl_cache_disown_calls(cache);
}

void kvl_cache_release(struct kvl_cache *cache, uint64_t lease) {
    if (kvl_cache_is_online(cache))
        (void)kvl_connection_check(cache->connection,
            kvl_release_async(cache->connection->client, &lease, 1, NULL, 0, NULL, NULL));
}

void kvl_cache_forget_block(struct kvl_cache *cache, uint32_t index) {
    struct kvl_cache_block *block = &cache->blocks[index];
    if (block->home == KVL_HOME_PRIVATE)
        kvl_private_memory_give_back(cache->memory, cache->table[index]);
    kvl_cache_leave_arena(cache, index);
    block->home = KVL_HOME_MISSING;
    block->lease = 0;
    block->settled = block->sealing = false;
    cache->table[index] = cache->nothing;
}

void kvl_cache_drop_blocks(struct kvl_cache *cache, uint32_t first, uint32_t end) {
    uint64_t leases[RELEASE_MAX];
    uint32_t count = 0;
    for (uint32_t i = first; i < end; ++i) {
        if (kvl_cache_is_leased(&cache->blocks[i]))
            leases[count++] = cache->blocks[i].lease;
        kvl_cache_forget_block(cache, i);
        if (count < RELEASE_MAX && i + 1 < end)
            continue;
        if (count > 0 && kvl_cache_is_online(cache))
            (void)kvl_connection_check(cache->connection,
                kvl_release_async(cache->connection->client, leases, count, NULL, 0, NULL, NULL));
        count = 0;
    }
    if (first < end && cache->settled_count > first)
        cache->settled_count = first;
}

void kvl_cache_drop_block(struct kvl_cache *cache, uint32_t index) {
    kvl_cache_drop_blocks(cache, index, index + 1);
}

bool kvl_cache_take_slot(
    struct kvl_cache *cache, uint32_t index, const struct kvl_allocated *granted) {
    struct kvl_cache_block *block = &cache->blocks[index];
    uint8_t *slot = kvl_device_arena_block(cache->connection->arena, granted->offset_bytes, true);
    if (slot == NULL || block->home != KVL_HOME_MISSING) {
        kvl_cache_release(cache, granted->lease);
        return false;
    }
    cache->table[index] = slot;
    block->home = KVL_HOME_FILLING;
    block->lease = granted->lease;
    block->offset_bytes = granted->offset_bytes;
    block->arena = kvl_device_arena_hold(cache->connection->arena);
    return true;
}

/* Slots for the missing blocks of the span, but not for those that are to be restored instead.
 * What is still MISSING afterwards takes private memory. */
static void ask_for_slots(struct kvl_cache *cache, const struct kvl_cache_span *span) {
    struct kvl_client *client = cache->connection->client;
    for (uint32_t i = span->first; i < span->end; ++i)
        if (cache->blocks[i].asked && cache->blocks[i].home == KVL_HOME_MISSING) {
            (void)kvl_connection_check(cache->connection, kvl_client_drain(client));
            break;
        }
    uint32_t first = span->first;
    while (first < span->end && cache->blocks[first].home != KVL_HOME_MISSING)
        ++first;
    uint32_t count = span->end - first;
    if (count == 0 || !kvl_cache_may_wait(cache, span->patience_ms))
        return;
    for (uint32_t i = 0; i < count; ++i) {
        uint32_t block = first + i;
        /* A block that must be computed even if known takes a slot under no name: sealing it
         * then says EXISTS. */
        bool named = block < cache->named_count && block < span->left_end;
        cache->chain[i] = named ? cache->blocks[block].key : (struct kvl_key){0};
    }
    struct kvl_ticket no_ticket;
    kvl_err err = kvl_connection_check(cache->connection,
        kvl_alloc(client, kvl_connection_space(cache->connection, cache->group)->id,
            KVL_TIER_DEVICE, cache->chain, count, false, cache->granted, &no_ticket));
    for (uint32_t i = 0; err == KVL_OK && i < count; ++i) {
        uint32_t block = first + i;
        const struct kvl_allocated *granted = &cache->granted[i];
        if (granted->status == KVL_ALLOC_GRANTED)
            (void)kvl_cache_take_slot(cache, block, granted);
        else if (granted->status == KVL_ALLOC_EXISTS && block >= span->left_first &&
                 block < span->left_end)
            cache->blocks[block].known = true;
    }
}

void kvl_cache_ask(struct kvl_cache *cache, const struct kvl_cache_span *span) {
    for (uint32_t i = span->first; i < span->end; ++i)
        cache->blocks[i].known = false;
    kvl_cache_begin_anew(cache, span->first);
    if (!kvl_cache_may_wait(cache, span->patience_ms))
        return;
    kvl_client_set_timeout(cache->connection->client, span->patience_ms);
    ask_for_slots(cache, span);
    kvl_client_set_timeout(cache->connection->client, 0);
}

kvl_err kvl_cache_prepare(
    struct kvl_cache *cache, const struct kvl_cache_span *span, uint32_t *end) {
    *end = span->end;
    if (span->first > span->end || span->end > cache->block_max)
        return KVL_ERR_INVALID;
    kvl_cache_ask(cache, span);
    for (uint32_t i = span->end; i > span->first; --i)
        if (cache->blocks[i - 1].known)
            *end = i - 1;
    return kvl_cache_fill_up(cache, span->first, *end);
}

kvl_err kvl_cache_fill_up(struct kvl_cache *cache, uint32_t first, uint32_t end) {
    for (uint32_t i = first; i < end; ++i) {
        if (cache->blocks[i].home != KVL_HOME_MISSING)
            continue;
        kvl_err err = kvl_private_memory_take(cache->memory, &cache->table[i]);
        if (err != KVL_OK)
            return err;
        cache->blocks[i].home = KVL_HOME_PRIVATE;
    }
    return KVL_OK;
}

/* Per layer: K of all heads, [block_tokens][k_dim] each, then V. The rows of one of them are one
 * run in each head. */
kvl_err kvl_cache_copy_rows(
    struct kvl_cache *cache, uint8_t *to, const uint8_t *from, uint32_t layer, uint32_t rows) {
    const struct kvl_geometry *geometry = &cache->geometry;
    uint64_t k_row = (uint64_t)geometry->k_dim * cache->element_bytes;
    uint64_t v_row = (uint64_t)geometry->v_dim * cache->element_bytes;
    uint64_t offset =
        (uint64_t)layer * geometry->kv_heads * geometry->block_tokens * (k_row + v_row);
    cache->copies_pending = true;
    for (uint32_t part = 0; part < 2; ++part) {
        uint64_t row = part == 0 ? k_row : v_row;
        struct kvl_runs runs = {
            .bytes = rows * row,
            .count = geometry->kv_heads,
            .stride_bytes = geometry->block_tokens * row,
        };
        kvl_err err = cache->backend->ops->copy(cache->backend, to + offset, from + offset, runs);
        if (err != KVL_OK)
            return err;
        offset += runs.count * runs.stride_bytes;
    }
    return KVL_OK;
}

kvl_err kvl_cache_finish_copies(struct kvl_cache *cache) {
    if (!cache->copies_pending)
        return KVL_OK;
    kvl_err err = cache->backend->ops->finish(cache->backend);
    if (err == KVL_OK)
        cache->copies_pending = false;
    return err;
}

bool kvl_cache_is_private(const struct kvl_cache *cache, uint32_t block) {
    enum kvl_block_home home = cache->blocks[block].home;
    return home == KVL_HOME_PRIVATE || home == KVL_HOME_ORPHANED;
}
