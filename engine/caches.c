/* caches.c - see caches.h: what is done to each group in turn. How they are restored together is in
 * caches_restore.c. */
#include "caches.h"

#include <stdlib.h>

#include "caches_internal.h"

static kvl_err allocate(struct kvl_caches *caches, uint32_t blocks) {
    if (caches->count == 1)
        return KVL_OK;
    uint64_t keys = caches->count * (blocks + UINT64_C(1));
    caches->asked = calloc(keys, sizeof *caches->asked);
    caches->found = calloc(keys, sizeof *caches->found);
    return caches->asked != NULL && caches->found != NULL ? KVL_OK : KVL_ERR_NOMEM;
}

kvl_err kvl_caches_create(const struct kvl_cache_options *options, struct kvl_caches **out) {
    *out = NULL;
    struct kvl_caches *caches = calloc(1, sizeof *caches);
    if (caches == NULL)
        return KVL_ERR_NOMEM;
    caches->hparams = *options->hparams;
    caches->count = kvl_layer_group_count(options->hparams);
    struct kvl_cache_options group = *options;
    kvl_err err = KVL_OK;
    for (group.group = 0; err == KVL_OK && group.group < caches->count; ++group.group)
        err = kvl_cache_create(&group, &caches->cache[group.group]);
    if (err == KVL_OK)
        err = allocate(caches, caches->cache[0]->block_max);
    if (err != KVL_OK) {
        kvl_caches_destroy(caches);
        return err;
    }
    *out = caches;
    return KVL_OK;
}

void kvl_caches_destroy(struct kvl_caches *caches) {
    if (caches == NULL)
        return;
    for (uint32_t group = 0; group < caches->count; ++group)
        kvl_cache_destroy(caches->cache[group]);
    free(caches->found);
    free(caches->asked);
    free(caches);
}

uint8_t *const *kvl_caches_table(const struct kvl_caches *caches, uint32_t group) {
    return group < caches->count ? kvl_cache_table(caches->cache[group]) : NULL;
}

kvl_err kvl_caches_name_blocks(struct kvl_caches *caches, const uint32_t *tokens, uint32_t count) {
    kvl_err err = KVL_OK;
    for (uint32_t group = 0; err == KVL_OK && group < caches->count; ++group)
        err = kvl_cache_name_blocks(caches->cache[group], tokens, count);
    return err;
}

kvl_err kvl_caches_name_tail(
    struct kvl_caches *caches, const uint32_t *tokens, struct kvl_cache_tail *tail) {
    kvl_err err = KVL_OK;
    for (uint32_t group = 0; err == KVL_OK && group < caches->count; ++group) {
        caches->tails[group] = *tail;
        err = kvl_cache_name_tail(caches->cache[group], tokens, &caches->tails[group]);
    }
    if (err == KVL_OK)
        *tail = caches->tails[0];
    return err;
}

kvl_err kvl_caches_take_tail(struct kvl_caches *caches) {
    kvl_err err = KVL_OK;
    for (uint32_t group = 0; err == KVL_OK && group < caches->count; ++group)
        err = kvl_cache_take_tail(caches->cache[group]);
    return err;
}

kvl_err kvl_caches_wait_layer(struct kvl_caches *caches, uint32_t layer) {
    const struct kvl_layer_place place = kvl_layer_place(&caches->hparams, layer);
    return kvl_cache_wait_layer(caches->cache[place.group], place.index);
}

/* Whether every group's block was known when slots were asked for. */
static bool is_known(const struct kvl_caches *caches, uint32_t block) {
    bool known = true;
    for (uint32_t group = 0; group < caches->count; ++group)
        known = known && caches->cache[group]->blocks[block].known;
    return known;
}

/* What only some groups have does not spare computing the block: there the known one is computed
 * beside them, in private memory. */
kvl_err kvl_caches_prepare(
    struct kvl_caches *caches, const struct kvl_cache_span *span, uint32_t *end) {
    if (caches->count == 1)
        return kvl_cache_prepare(caches->cache[0], span, end);
    if (span->first > span->end || span->end > caches->cache[0]->block_max)
        return KVL_ERR_INVALID;
    for (uint32_t group = 0; group < caches->count; ++group)
        kvl_cache_ask(caches->cache[group], span);
    *end = span->first;
    while (*end < span->end && !is_known(caches, *end))
        ++*end;
    kvl_err err = KVL_OK;
    for (uint32_t group = 0; err == KVL_OK && group < caches->count; ++group)
        err = kvl_cache_fill_up(caches->cache[group], span->first, *end);
    return err;
}

void kvl_caches_prepare_ahead(struct kvl_caches *caches, uint32_t block) {
    for (uint32_t group = 0; group < caches->count; ++group)
        kvl_cache_prepare_ahead(caches->cache[group], block);
}

void kvl_caches_settle(
    struct kvl_caches *caches, const uint32_t *tokens, uint32_t whole, bool offer) {
    for (uint32_t group = 0; group < caches->count; ++group)
        kvl_cache_settle(caches->cache[group], tokens, whole, offer);
}

void kvl_caches_finish(struct kvl_caches *caches, const uint32_t *tokens, uint32_t whole) {
    struct kvl_connection *connection = caches->cache[0]->connection;
    if (connection != NULL) {
        kvl_connection_dispatch(connection);
        (void)kvl_connection_revive_now(connection);
    }
    for (uint32_t group = 0; group < caches->count; ++group)
        kvl_cache_finish(caches->cache[group], tokens, whole);
}

void kvl_caches_seal_tail(
    struct kvl_caches *caches, const uint32_t *tokens, uint32_t count, struct kvl_cache_tail *out) {
    kvl_cache_seal_tail(caches->cache[0], tokens, count, out);
    for (uint32_t group = 1; out->tokens > 0 && group < caches->count; ++group) {
        struct kvl_cache_tail other;
        kvl_cache_seal_tail(caches->cache[group], tokens, count, &other);
        if (other.tokens == 0)
            *out = other;
    }
}

uint64_t kvl_caches_private_tokens(const struct kvl_caches *caches, uint32_t count) {
    uint64_t tokens = 0;
    uint32_t block_tokens = caches->cache[0]->geometry.block_tokens;
    for (uint32_t i = 0; (uint64_t)i * block_tokens < count; ++i) {
        bool is_private = false;
        for (uint32_t group = 0; group < caches->count; ++group)
            is_private = is_private || kvl_cache_is_private(caches->cache[group], i);
        uint32_t rest = count - i * block_tokens;
        if (is_private)
            tokens += rest < block_tokens ? rest : block_tokens;
    }
    return tokens;
}

const struct kvl_cache_stats *kvl_caches_stats(const struct kvl_caches *caches) {
    return caches->count == 1 ? kvl_cache_stats(caches->cache[0]) : &caches->stats;
}
