/* cache_store.c - gives blocks to the daemon behind the computation: seals, offers, slots ahead.
 *
 * Every request here is asynchronous; a call object carries the block numbers until its answer.
 * Answers come between forward calls only, so a block may change its memory then. */
#include "cache_internal.h"

#include <stdlib.h>

#define CALL_BLOCKS_MAX 16u
#define OFFER_BLOCKS_MAX 8u /* copied at one block boundary */

struct kvl_cache_call {
    struct kvl_cache *cache; /* NULL: nobody waits for the answer any more */
    struct kvl_cache_call *next;
    uint32_t count;
    uint32_t blocks[CALL_BLOCKS_MAX];
};

static struct kvl_cache_call *begin_call(struct kvl_cache *cache) {
    struct kvl_cache_call *call = calloc(1, sizeof *call);
    if (call != NULL) {
        call->cache = cache;
        call->next = cache->calls;
        cache->calls = call;
    }
    return call;
}

/* Takes the call off the list and frees it; returns the cache that still wants it, or NULL. */
static struct kvl_cache *end_call(struct kvl_cache_call *call) {
    struct kvl_cache *cache = call->cache;
    if (cache != NULL) {
        struct kvl_cache_call **link = &cache->calls;
        while (*link != call)
            link = &(*link)->next;
        *link = call->next;
    }
    free(call);
    return cache;
}

void kvl_cache_disown_calls(struct kvl_cache *cache) {
    while (cache->calls != NULL) {
        cache->calls->cache = NULL;
        cache->calls = cache->calls->next;
    }
}

/* ---- seal ------------------------------------------------------------------------------------ */

static void block_sealed(struct kvl_cache *cache, uint32_t index, const struct kvl_sealed *sealed) {
    struct kvl_cache_block *block = &cache->blocks[index];
    block->sealing = false;
    if (block->home != KVL_HOME_FILLING)
        return;
    block->settled = true;
    if (sealed->status != KVL_OK && sealed->status != KVL_ERR_EXISTS) {
        /* Refused: the bytes are right and stay readable, the daemon just does not know them. Its
         * lease stays too, as long as the block is here. */
        block->home = KVL_HOME_ORPHANED;
        return;
    }
    block->home = KVL_HOME_SEALED;
    /* From now on through the view that a stray write cannot get through. */
    cache->table[index] = kvl_device_arena_block(block->arena, block->offset_bytes, false);
}

static void seal_answered(void *arg, kvl_err err, const struct kvl_sealed *sealed, uint32_t count) {
    struct kvl_cache_call call = *(struct kvl_cache_call *)arg;
    struct kvl_cache *cache = end_call(arg);
    if (cache == NULL)
        return;
    for (uint32_t i = 0; i < call.count; ++i) {
        if (err == KVL_OK && i < count)
            block_sealed(cache, call.blocks[i], &sealed[i]);
        else
            cache->blocks[call.blocks[i]].sealing = false;
    }
    (void)kvl_connection_check(cache->connection, err);
}

/* One seal request for the next whole blocks from *block on. False when there was nothing to do,
 * or no room for another request. */
static bool seal_some(
    struct kvl_cache *cache, const uint32_t *tokens, uint32_t *block, uint32_t whole) {
    struct kvl_seal seals[CALL_BLOCKS_MAX];
    struct kvl_cache_call *call = begin_call(cache);
    if (call == NULL)
        return false;
    for (; *block < whole && call->count < CALL_BLOCKS_MAX; ++*block) {
        const struct kvl_cache_block *each = &cache->blocks[*block];
        if (each->home != KVL_HOME_FILLING || each->sealing || each->settled)
            continue;
        seals[call->count] = (struct kvl_seal){
            .lease = each->lease,
            .parent = *kvl_cache_parent_key(cache, *block),
            .tokens = tokens + (uint64_t)*block * cache->geometry.block_tokens,
            .token_count = cache->geometry.block_tokens,
        };
        call->blocks[call->count++] = *block;
    }
    if (call->count == 0) {
        (void)end_call(call);
        return false;
    }
    struct kvl_cache_call sent = *call; /* the answer may come inside the call */
    if (kvl_cache_finish_copies(cache) != KVL_OK) {
        (void)end_call(call); /* a lost device: what the slots hold is unknown */
        return false;
    }
    for (uint32_t i = 0; i < sent.count; ++i)
        cache->blocks[sent.blocks[i]].sealing = true;
    kvl_err err = kvl_seal_async(cache->connection->client, seals, sent.count, seal_answered, call);
    if (err == KVL_OK)
        return true;
    for (uint32_t i = 0; i < sent.count; ++i)
        cache->blocks[sent.blocks[i]].sealing = false;
    (void)end_call(call);
    (void)kvl_connection_check(cache->connection, err);
    return false;
}

/* ---- offers and slots ahead ------------------------------------------------------------------ */

/* A private block gets a slot: the bytes move there. */
static void move_into_slot(
    struct kvl_cache *cache, uint32_t index, const struct kvl_allocated *granted) {
    uint8_t *old = cache->table[index];
    struct kvl_cache_block *block = &cache->blocks[index];
    struct kvl_cache_block before = *block;
    block->home = KVL_HOME_MISSING;
    block->arena = NULL;
    if (!kvl_cache_take_slot(cache, index, granted)) {
        *block = before;
        return;
    }
    struct kvl_runs whole = {.bytes = cache->block_bytes, .count = 1};
    cache->copies_pending = true;
    if (cache->backend->ops->copy(cache->backend, cache->table[index], old, whole) != KVL_OK) {
        cache->table[index] = old; /* a lost device; the next forward call says so */
        kvl_cache_leave_arena(cache, index);
        *block = before;
        kvl_cache_release(cache, granted->lease);
        return;
    }
    if (before.home == KVL_HOME_PRIVATE)
        kvl_private_memory_give_back(cache->memory, old);
    kvl_device_arena_let_go(before.arena);
}

static void slot_answered(
    struct kvl_cache *cache, uint32_t index, const struct kvl_allocated *granted) {
    struct kvl_cache_block *block = &cache->blocks[index];
    block->asked = false;
    bool ours = block->home == KVL_HOME_PRIVATE || block->home == KVL_HOME_ORPHANED;
    if (granted->status == KVL_ALLOC_EXISTS && ours)
        block->settled = true;
    else if (granted->status == KVL_ALLOC_GRANTED && ours && index < cache->named_count)
        move_into_slot(cache, index, granted);
    else if (granted->status == KVL_ALLOC_GRANTED)
        (void)kvl_cache_take_slot(cache, index, granted);
}

static void alloc_answered(void *arg, kvl_err err, const struct kvl_allocated *blocks,
    uint32_t count, struct kvl_ticket ticket) {
    (void)ticket; /* none was asked for */
    struct kvl_cache_call call = *(struct kvl_cache_call *)arg;
    struct kvl_cache *cache = end_call(arg);
    if (cache == NULL)
        return;
    for (uint32_t i = 0; i < call.count; ++i) {
        if (err == KVL_OK && i < count)
            slot_answered(cache, call.blocks[i], &blocks[i]);
        else
            cache->blocks[call.blocks[i]].asked = false;
    }
    (void)kvl_connection_check(cache->connection, err);
}

static void send_alloc(
    struct kvl_cache *cache, struct kvl_cache_call *call, const struct kvl_key *keys) {
    struct kvl_cache_call sent = *call;
    for (uint32_t i = 0; i < sent.count; ++i)
        cache->blocks[sent.blocks[i]].asked = true;
    kvl_err err = kvl_alloc_async(cache->connection->client,
        kvl_connection_space(cache->connection, cache->group)->id, KVL_TIER_DEVICE, keys,
        sent.count, false, alloc_answered, call);
    if (err == KVL_OK)
        return;
    for (uint32_t i = 0; i < sent.count; ++i)
        cache->blocks[sent.blocks[i]].asked = false;
    (void)end_call(call);
    (void)kvl_connection_check(cache->connection, err);
}

/* Asks for slots for whole blocks that only we have, parents first. */
static void offer_some(struct kvl_cache *cache, uint32_t whole) {
    struct kvl_key keys[OFFER_BLOCKS_MAX];
    struct kvl_cache_call *call = begin_call(cache);
    if (call == NULL)
        return;
    if (whole > cache->named_count)
        whole = cache->named_count;
    for (uint32_t i = cache->settled_count; i < whole && call->count < OFFER_BLOCKS_MAX; ++i) {
        const struct kvl_cache_block *block = &cache->blocks[i];
        bool ours = block->home == KVL_HOME_PRIVATE || block->home == KVL_HOME_ORPHANED;
        if (!ours || block->settled || block->asked)
            continue;
        keys[call->count] = block->key;
        call->blocks[call->count++] = i;
    }
    if (call->count == 0)
        (void)end_call(call);
    else
        send_alloc(cache, call, keys);
}

void kvl_cache_prepare_ahead(struct kvl_cache *cache, uint32_t block) {
    if (block >= cache->block_max || !kvl_cache_is_online(cache) || cache->blocks[block].asked ||
        cache->blocks[block].home != KVL_HOME_MISSING)
        return;
    struct kvl_cache_call *call = begin_call(cache);
    if (call == NULL)
        return;
    call->count = 1;
    call->blocks[0] = block;
    send_alloc(cache, call, &(struct kvl_key){0});
}

/* ---- settle ---------------------------------------------------------------------------------- */

static void follow_connection(struct kvl_cache *cache, bool revive) {
    struct kvl_connection *connection = cache->connection;
    kvl_connection_dispatch(connection);
    if (!connection->connected && cache->generation != 0)
        kvl_cache_detach(cache);
    if (revive)
        (void)kvl_connection_revive(connection);
    if (connection->connected && cache->generation != connection->generation) {
        if (cache->generation != 0)
            kvl_cache_detach(cache);
        cache->generation = connection->generation;
    }
}

void kvl_cache_settle(struct kvl_cache *cache, const uint32_t *tokens, uint32_t whole, bool offer) {
    if (cache->connection != NULL)
        follow_connection(cache, offer);
    kvl_cache_leave_behind(cache, whole);
    if (!kvl_cache_is_online(cache))
        return;
    while (cache->settled_count < whole && cache->blocks[cache->settled_count].settled)
        ++cache->settled_count;
    uint32_t block = cache->settled_count;
    while (seal_some(cache, tokens, &block, whole))
        continue;
    if (offer && kvl_cache_is_online(cache))
        offer_some(cache, whole);
}

void kvl_cache_finish(struct kvl_cache *cache, const uint32_t *tokens, uint32_t whole) {
    if (cache->connection == NULL)
        return;
    /* Offers, then the seals of what was granted. */
    for (uint32_t round = 0; round < 2 && cache->connection->connected; ++round) {
        kvl_cache_settle(cache, tokens, whole, round == 0);
        if (kvl_connection_answers(cache->connection, KVL_PATIENCE_MS))
            (void)kvl_connection_check(
                cache->connection, kvl_client_drain(cache->connection->client));
    }
    kvl_cache_settle(cache, tokens, whole, false);
    if (kvl_cache_may_wait(cache, KVL_PATIENCE_MS))
        (void)kvl_connection_check(cache->connection, kvl_client_drain(cache->connection->client));
}

/* The slot holds the tail's rows, zeros behind them, when it returns. */
static kvl_err fill_tail(
    struct kvl_cache *cache, uint8_t *slot, const struct kvl_cache_tail *tail) {
    struct kvl_backend *backend = cache->backend;
    cache->copies_pending = true;
    kvl_err err = backend->ops->zero(
        backend, slot, kvl_connection_space(cache->connection, cache->group)->layout.slot_bytes);
    for (uint32_t layer = 0; err == KVL_OK && layer < cache->geometry.layers; ++layer)
        err = kvl_cache_copy_rows(cache, slot, cache->table[tail->block], layer, tail->tokens);
    kvl_err finished = kvl_cache_finish_copies(cache);
    return err == KVL_OK ? finished : err;
}

static kvl_err seal_slot(struct kvl_cache *cache, const uint32_t *tokens,
    const struct kvl_cache_tail *tail, uint64_t lease) {
    struct kvl_seal seal = {
        .lease = lease,
        .parent = *kvl_cache_parent_key(cache, tail->block),
        .tokens = tokens,
        .token_count = tail->tokens,
    };
    struct kvl_sealed sealed = {.status = KVL_ERR_CLOSED};
    kvl_err err = kvl_seal(cache->connection->client, &seal, 1, &sealed);
    return err == KVL_OK && sealed.status != KVL_ERR_EXISTS ? sealed.status : err;
}

/* A slot under the tail's key, filled and sealed. */
static kvl_err store_tail(
    struct kvl_cache *cache, const uint32_t *tokens, const struct kvl_cache_tail *tail) {
    struct kvl_client *client = cache->connection->client;
    struct kvl_allocated granted = {0};
    struct kvl_ticket no_ticket;
    kvl_err err = kvl_alloc(client, kvl_connection_space(cache->connection, cache->group)->id,
        KVL_TIER_DEVICE, &tail->key, 1, false, &granted, &no_ticket);
    if (err != KVL_OK || granted.status == KVL_ALLOC_EXISTS)
        return err;
    if (granted.status != KVL_ALLOC_GRANTED)
        return granted.status == KVL_ALLOC_PENDING ? KVL_ERR_PENDING : KVL_ERR_NOSPC;
    uint8_t *slot = kvl_device_arena_block(cache->connection->arena, granted.offset_bytes, true);
    err = slot != NULL ? fill_tail(cache, slot, tail) : KVL_ERR_INVALID;
    if (err == KVL_OK)
        err = seal_slot(cache, tokens, tail, granted.lease);
    kvl_cache_release(cache, granted.lease);
    return err;
}

void kvl_cache_seal_tail(
    struct kvl_cache *cache, const uint32_t *tokens, uint32_t count, struct kvl_cache_tail *out) {
    uint32_t block_tokens = cache->geometry.block_tokens;
    *out = (struct kvl_cache_tail){.block = count / block_tokens, .tokens = count % block_tokens};
    if (out->tokens == 0 || !kvl_cache_may_wait(cache, KVL_PATIENCE_MS)) {
        out->tokens = 0;
        return;
    }
    kvl_err err = kvl_cache_name_tail(cache, tokens, out);
    if (err == KVL_OK)
        err = kvl_connection_check(cache->connection,
            store_tail(cache, tokens + (uint64_t)out->block * block_tokens, out));
    if (err != KVL_OK)
        *out = (struct kvl_cache_tail){0};
}
