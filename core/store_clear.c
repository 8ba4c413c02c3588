/* store_clear.c - forgetting blocks for good: all, a namespace's, a tenant's with its sessions, or
 * those only a session uses.
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
    const char *tenant_name; /* whose blocks; NULL: everybody's */
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

/* By name, so that what a tenant left behind under another secret goes too. */
static bool is_cleared(
    struct kvl_store *store, const struct kvl_clear *clear, const struct kvl_entry *entry) {
    bool sealed = entry->tiers != 0 || (entry->flags & KVL_ENTRY_SEALING) != 0;
    return (entry->flags & KVL_ENTRY_USED) != 0 && sealed &&
           entry->generation < clear->generation_end &&
           (clear->scope != KVL_CLEAR_NAMESPACE || entry->namespace_id == clear->namespace_id) &&
           (clear->tenant_name == NULL ||
               strcmp(kvl_entry_tenant(store, entry)->name, clear->tenant_name) == 0);
}

static void walk_is_over(struct kvl_store *store, struct kvl_clear *clear) {
    clear->walked = true;
    clear->operation.settle = &clear->settle;
    const struct kvl_client *client = kvl_client_find(store, clear->operation.client);
    kvl_settle_begin(store, &clear->settle, client != NULL ? kvl_client_view(store, client) : NULL);
}

static void walk(struct kvl_store *store, struct kvl_clear *clear) {
    uint32_t end = kvl_table_end(store->table);
    for (uint32_t i = 0; i < KVL_CLEAR_STEP && clear->cursor < end; i++, clear->cursor++)
        if (is_cleared(store, clear, kvl_table_at(store->table, clear->cursor)))
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

/* Leading tokens that another session of the tenant's namespace has too. */
static uint64_t shared_tokens(
    struct kvl_store *store, const struct kvl_tenant *tenant, const struct kvl_session *session) {
    uint64_t shared = 0;
    struct kvl_session_range range = kvl_session_range(store->sessions, tenant->name);
    for (uint32_t i = 0; i < range.count; i++) {
        const struct kvl_session *other = kvl_session_set_at(store->sessions, range.first + i);
        if (other == session ||
            !kvl_key_equal(&other->info.namespace_key, &session->info.namespace_key))
            continue;
        uint64_t common = common_tokens(session, other);
        shared = common > shared ? common : shared;
    }
    return shared;
}

/* Drops the block unless other blocks go on from it. */
static bool clear_leaf(struct kvl_store *store, struct kvl_clear *clear, const struct kvl_key *salt,
    struct kvl_key key) {
    kvl_tenant_turn_key(salt, &key);
    uint32_t block = kvl_table_find(store->table, &key);
    if (block == KVL_BLOCK_NONE)
        return true;
    const struct kvl_entry *entry = kvl_table_at(store->table, block);
    if (entry->children > 0)
        return false;
    if (entry->tiers != 0 || (entry->flags & KVL_ENTRY_SEALING) != 0)
        clear_block(store, clear, block);
    return true;
}

/* In one layer group; `kept` leading tokens are another session's too. */
static kvl_err clear_chain(struct kvl_store *store, struct kvl_clear *clear,
    struct kvl_session *session, const struct kvl_session_space *space, uint64_t kept) {
    const struct kvl_key *salt = &kvl_namespace_tenant(store, space->id)->salt;
    uint32_t block_tokens = space->info->geometry.block_tokens;
    uint64_t count = session->info.token_count / block_tokens;
    struct kvl_key tail;
    struct kvl_key *keys = malloc((count + 1) * sizeof(keys[0]));
    if (keys == NULL)
        return KVL_ERR_NOMEM;
    kvl_err err =
        kvl_key_chain(&space->root, session->tokens, session->info.token_count, block_tokens, keys);
    bool leaf = err == KVL_OK;
    if (leaf && kvl_session_tail_key(session, space, &tail) == KVL_OK)
        (void)clear_leaf(store, clear, salt, tail);
    for (uint64_t i = count; leaf && i > kept / block_tokens; i--)
        leaf = clear_leaf(store, clear, salt, keys[i - 1]);
    free(keys);
    return err;
}

/* Nobody can reach the blocks of a tenant that is none any more. */
static kvl_err clear_chains(
    struct kvl_store *store, struct kvl_clear *clear, struct kvl_session *session) {
    const struct kvl_tenant *tenant = kvl_session_tenant(store, session);
    uint64_t kept = tenant != NULL ? shared_tokens(store, tenant, session) : 0;
    struct kvl_session_space space = {0};
    kvl_err err = KVL_OK;
    while (err == KVL_OK && kvl_session_space_next(store, session, &space))
        err = clear_chain(store, clear, session, &space, kept);
    return err;
}

static kvl_err clear_session(
    struct kvl_store *store, struct kvl_clear *clear, const struct kvl_clear_request *request) {
    if (!kvl_session_full_name_is_valid(request->name))
        return KVL_ERR_INVALID;
    struct kvl_session *session = kvl_session_find(store->sessions, request->name);
    if (session == NULL)
        return KVL_ERR_NOTFOUND;
    if (session->holder != request->client && kvl_client_find(store, session->holder) != NULL)
        return KVL_ERR_BUSY;
    struct kvl_session_info info;
    kvl_err err = clear_chains(store, clear, session);
    if (err == KVL_OK)
        err = kvl_store_session_drop(store, request->client, request->name, &info);
    return err;
}

/* ---- one tenant --------------------------------------------------------------------------- */

/* The tenant that is meant, by any of its secrets; NULL: none that the client may see. */
static const struct kvl_tenant *wanted_tenant(
    struct kvl_store *store, const struct kvl_client *client, const char *name) {
    const struct kvl_tenant *own = store->tenants.tenants[client->info.tenant];
    if (name == NULL)
        return own;
    for (uint32_t i = 0; i < store->tenants.count; i++) {
        const struct kvl_tenant *tenant = store->tenants.tenants[i];
        if (strcmp(tenant->name, name) == 0 && (client->info.sees_all || tenant == own))
            return tenant;
    }
    return NULL;
}

static kvl_err drop_sessions(
    struct kvl_store *store, uint32_t client, const struct kvl_tenant *tenant) {
    struct kvl_session_range range = kvl_session_range(store->sessions, tenant->name);
    for (uint32_t i = 0; i < range.count; i++) {
        const struct kvl_session *session = kvl_session_set_at(store->sessions, range.first + i);
        if (session->holder != client && kvl_client_find(store, session->holder) != NULL)
            return KVL_ERR_BUSY;
    }
    kvl_err err = KVL_OK;
    for (uint32_t i = 0; i < range.count && err == KVL_OK; i++) {
        struct kvl_session_info info;
        char name[KVL_SESSION_NAME_MAX + 1];
        strcpy(name, kvl_session_set_at(store->sessions, range.first)->info.name);
        err = kvl_store_session_drop(store, client, name, &info);
    }
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
    const struct kvl_client *client = kvl_client_find(store, request->client);
    uint32_t id = request->namespace_id;
    if (client == NULL)
        return KVL_ERR_PERM;
    const struct kvl_tenant *view = kvl_client_view(store, client);
    switch (request->scope) {
    case KVL_CLEAR_ALL:
    case KVL_CLEAR_SESSION:
        return KVL_OK;
    case KVL_CLEAR_NAMESPACE:
        return kvl_namespace_by_id(store, id) == NULL ||
                       (view != NULL && view != kvl_namespace_tenant(store, id))
                   ? KVL_ERR_NOTFOUND
                   : KVL_OK;
    case KVL_CLEAR_TENANT:
        return wanted_tenant(store, client, request->name) == NULL ? KVL_ERR_NOTFOUND : KVL_OK;
    }
    return KVL_ERR_INVALID;
}

/* What is done at once; the walk comes later. */
static kvl_err clear_begin(
    struct kvl_store *store, struct kvl_clear *clear, const struct kvl_clear_request *request) {
    const struct kvl_client *client = kvl_client_find(store, request->client);
    const struct kvl_tenant *view = kvl_client_view(store, client);
    if (request->scope == KVL_CLEAR_SESSION) {
        kvl_err err = clear_session(store, clear, request);
        walk_is_over(store, clear);
        return err;
    }
    clear->tenant_name = view != NULL ? view->name : NULL;
    if (request->scope != KVL_CLEAR_TENANT)
        return KVL_OK;
    const struct kvl_tenant *tenant = wanted_tenant(store, client, request->name);
    clear->tenant_name = tenant->name;
    return drop_sessions(store, request->client, tenant);
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
    err = clear_begin(store, clear, request);
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
