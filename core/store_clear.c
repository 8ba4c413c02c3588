/* store_clear.c - forgetting blocks for good: all, a namespace's, or those only a session uses.
 *
 * Blocks go from the table in one walk, a bounded number at a time; blocks sealed after the
 * request stay. The ticket ends when the disk's deletions are durable too. */
#include <stdlib.h>
#include <string.h>

#include "planted.h"
#include "store_private.h"

#define KVL_CLEAR_STEP 65536u /* entries looked at in one go */

struct kvl_clear {
    struct kvl_operation operation;
    enum kvl_clear_scope scope;
    uint32_t namespace_id;
    uint32_t cursor;
    uint64_t generation_end; /* blocks of this and later generations stay */
    uint64_t cleared;
    bool walked;
    struct kvl_settle settle; /* blocks that were being stored while they went, too */
};

static void clear_block(struct kvl_store *store, struct kvl_clear *clear, uint32_t block) {
    kvl_pin_clear(store, block);
    kvl_block_drop(store, block, KVL_EVENT_CLEARED);
    clear->cleared++;
}

static bool is_cleared(const struct kvl_clear *clear, const struct kvl_entry *entry) {
    bool sealed = entry->tiers != 0 || (entry->flags & KVL_ENTRY_SEALING) != 0;
    return (entry->flags & KVL_ENTRY_USED) != 0 && sealed &&
           entry->generation < clear->generation_end &&
           (clear->scope == KVL_CLEAR_ALL || entry->namespace_id == clear->namespace_id);
}

static void walk_is_over(struct kvl_store *store, struct kvl_clear *clear) {
    clear->walked = true;
    clear->operation.settle = &clear->settle;
    kvl_settle_begin(store, &clear->settle);
}

static void walk(struct kvl_store *store, struct kvl_clear *clear) {
    uint32_t end = kvl_table_end(store->table);
    for (uint32_t i = 0; i < KVL_CLEAR_STEP && clear->cursor < end; i++, clear->cursor++)
        if (is_cleared(clear, kvl_table_at(store->table, clear->cursor)))
            clear_block(store, clear, clear->cursor);
    store->retry |= clear->cursor < end;
    if (clear->cursor >= end)
        walk_is_over(store, clear);
}

/* ---- one session -------------------------------------------------------------------------- */

static uint64_t common_tokens(const struct kvl_session *a, const struct kvl_session *b) {
    uint64_t end =
        a->info.token_count < b->info.token_count ? a->info.token_count : b->info.token_count;
    uint64_t i = 0;
    while (i < end && a->tokens[i] == b->tokens[i])
        i++;
    return i;
}

/* Leading tokens that another session of the namespace has too. */
static uint64_t shared_tokens(struct kvl_store *store, const struct kvl_session *session) {
    uint64_t shared = 0;
    const struct kvl_session *other;
    for (uint32_t i = 0; (other = kvl_session_set_at(store->sessions, i)) != NULL; i++) {
        if (other == session ||
            !kvl_key_equal(&other->info.namespace_key, &session->info.namespace_key))
            continue;
        uint64_t common = common_tokens(session, other);
        shared = common > shared ? common : shared;
    }
    return shared;
}

/* Drops the block unless other blocks go on from it. */
static bool clear_leaf(
    struct kvl_store *store, struct kvl_clear *clear, const struct kvl_key *key) {
    uint32_t block = kvl_table_find(store->table, key);
    if (block == KVL_BLOCK_NONE)
        return true;
    const struct kvl_entry *entry = kvl_table_at(store->table, block);
    if (entry->children > 0)
        return false;
    if (entry->tiers != 0 || (entry->flags & KVL_ENTRY_SEALING) != 0)
        clear_block(store, clear, block);
    return true;
}

static kvl_err clear_chain(
    struct kvl_store *store, struct kvl_clear *clear, const struct kvl_session *session) {
    const struct kvl_namespace_info *info =
        kvl_namespace_by_key(store, &session->info.namespace_key);
    uint32_t block_tokens = info != NULL ? info->geometry.block_tokens : 0;
    if (block_tokens == 0)
        return KVL_OK;
    uint64_t count = session->info.token_count / block_tokens;
    uint64_t kept = shared_tokens(store, session) / block_tokens;
    struct kvl_key *keys = malloc((count + 1) * sizeof(keys[0]));
    if (keys == NULL)
        return KVL_ERR_NOMEM;
    kvl_err err = kvl_key_chain(&session->info.namespace_key, session->tokens,
        session->info.token_count, block_tokens, keys);
    bool leaf = err == KVL_OK;
    if (leaf && !kvl_key_is_zero(&session->info.tail))
        (void)clear_leaf(store, clear, &session->info.tail);
    for (uint64_t i = count; leaf && i > kept; i--)
        leaf = clear_leaf(store, clear, &keys[i - 1]);
    free(keys);
    return err;
}

static kvl_err clear_session(
    struct kvl_store *store, struct kvl_clear *clear, const struct kvl_clear_request *request) {
    if (!kvl_session_name_is_valid(request->session))
        return KVL_ERR_INVALID;
    const struct kvl_session *session = kvl_session_find(store->sessions, request->session);
    if (session == NULL)
        return KVL_ERR_NOTFOUND;
    if (session->holder != request->client && kvl_client_find(store, session->holder) != NULL)
        return KVL_ERR_BUSY;
    struct kvl_session_info info;
    kvl_err err = clear_chain(store, clear, session);
    if (err == KVL_OK)
        err = kvl_store_session_drop(store, request->client, request->session, &info);
    return err;
}

/* ---- the operation ------------------------------------------------------------------------ */

static void clear_step(struct kvl_store *store, struct kvl_operation *operation) {
    struct kvl_clear *clear = kvl_container_of(operation, struct kvl_clear, operation);
    if (!clear->walked && clear->scope != KVL_CLEAR_SESSION)
        walk(store, clear);
    if (!clear->walked ||
        (!KVL_PLANTED("clear-not-durable") && !kvl_settle_step(store, &clear->settle)))
        return;
    kvl_operation_value(&clear->operation, 0, clear->cleared);
    kvl_operation_end(store, &clear->operation, clear->settle.status);
    free(clear);
}

void kvl_clear_pump(struct kvl_store *store) {
    kvl_operations_step(store, KVL_OPERATION_CLEAR, clear_step);
}

static kvl_err request_check(struct kvl_store *store, const struct kvl_clear_request *request) {
    if (request->scope < KVL_CLEAR_ALL || request->scope > KVL_CLEAR_SESSION)
        return KVL_ERR_INVALID;
    if (request->scope == KVL_CLEAR_NAMESPACE &&
        kvl_namespace_by_id(store, request->namespace_id) == NULL)
        return KVL_ERR_NOTFOUND;
    return KVL_OK;
}

kvl_err kvl_store_clear(
    struct kvl_store *store, const struct kvl_clear_request *request, struct kvl_ticket *ticket) {
    *ticket = (struct kvl_ticket){0};
    kvl_err err = request_check(store, request);
    if (err != KVL_OK)
        return err;
    struct kvl_clear *clear = calloc(1, sizeof(*clear));
    if (clear == NULL)
        return KVL_ERR_NOMEM;
    err =
        kvl_operation_begin(store, request->client, KVL_OPERATION_CLEAR, &clear->operation, ticket);
    if (err != KVL_OK) {
        free(clear);
        return err;
    }
    clear->scope = request->scope;
    clear->namespace_id = request->namespace_id;
    clear->generation_end = store->generation_next;
    if (request->scope == KVL_CLEAR_SESSION) {
        err = clear_session(store, clear, request);
        walk_is_over(store, clear);
    }
    if (err != KVL_OK) {
        kvl_operation_end(store, &clear->operation, err);
        kvl_ticket_release(store, request->client, *ticket);
        *ticket = (struct kvl_ticket){0};
        free(clear);
        return err;
    }
    kvl_store_pump(store);
    return KVL_OK;
}
