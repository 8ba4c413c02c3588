/* store_session.c - sessions for clients: who holds one, and what of it goes to the catalog.
 *
 * An append rewrites only the chunks that it touches, then the record, then removes chunks that
 * are no longer needed; see session.h for why that order survives a crash. */
#include <string.h>

#include "clock.h"
#include "store_private.h"

static const struct kvl_client *holder_of(
    struct kvl_store *store, const struct kvl_session *session) {
    return session->holder == 0 ? NULL : kvl_client_find(store, session->holder);
}

static void fill_info(
    struct kvl_store *store, const struct kvl_session *session, struct kvl_session_info *info) {
    const struct kvl_client *holder = holder_of(store, session);
    *info = session->info;
    info->holder_pid = 0;
    memset(info->holder_name, 0, sizeof(info->holder_name));
    if (holder == NULL)
        return;
    info->holder_pid = holder->info.pid;
    memcpy(info->holder_name, holder->info.name, sizeof(info->holder_name));
    info->holder_name[sizeof(info->holder_name) - 1] = '\0';
}

static kvl_err save_record(struct kvl_store *store, struct kvl_session *session) {
    uint8_t record[KVL_SESSION_RECORD_BYTES];
    session->info.updated_wall_ns = kvl_clock_wall_ns();
    kvl_session_record(session, record);
    return kvl_catalog_put(store, KVL_CATALOG_SESSION, session->info.name,
        (uint32_t)strlen(session->info.name), record, sizeof(record));
}

static kvl_err save_chunks(
    struct kvl_store *store, const struct kvl_session *session, uint32_t from, uint32_t end) {
    uint8_t key[KVL_SESSION_CHUNK_KEY_BYTES_MAX];
    uint8_t value[KVL_SESSION_CHUNK_BYTES];
    kvl_err err = KVL_OK;
    for (uint32_t chunk = from; chunk < end && err == KVL_OK; chunk++) {
        uint32_t key_bytes = kvl_session_chunk_key(session, chunk, key);
        uint32_t value_bytes = kvl_session_chunk(session, chunk, value);
        err = kvl_catalog_put(store, KVL_CATALOG_TOKENS, key, key_bytes, value, value_bytes);
    }
    return err;
}

static kvl_err remove_chunks(
    struct kvl_store *store, const struct kvl_session *session, uint32_t from, uint32_t end) {
    uint8_t key[KVL_SESSION_CHUNK_KEY_BYTES_MAX];
    kvl_err err = KVL_OK;
    for (uint32_t chunk = from; chunk < end && err == KVL_OK; chunk++) {
        uint32_t key_bytes = kvl_session_chunk_key(session, chunk, key);
        err = kvl_catalog_remove(store, KVL_CATALOG_TOKENS, key, key_bytes);
    }
    return err;
}

/* The session if this client may write it. */
static kvl_err held_by(
    struct kvl_store *store, uint32_t client, const char *name, struct kvl_session **out) {
    if (!kvl_session_full_name_is_valid(name))
        return KVL_ERR_INVALID;
    *out = kvl_session_find(store->sessions, name);
    if (*out == NULL)
        return KVL_ERR_NOTFOUND;
    return (*out)->holder == client && client != 0 ? KVL_OK : KVL_ERR_PERM;
}

kvl_err kvl_store_session_open(struct kvl_store *store, uint32_t client, const char *name,
    const struct kvl_key *namespace_key, struct kvl_session_info *info) {
    *info = (struct kvl_session_info){0};
    if (kvl_client_find(store, client) == NULL)
        return KVL_ERR_PERM;
    if (!kvl_session_full_name_is_valid(name))
        return KVL_ERR_INVALID;
    struct kvl_session *session = kvl_session_find(store->sessions, name);
    if (session != NULL) {
        fill_info(store, session, info);
        if (!kvl_key_equal(&session->info.namespace_key, namespace_key))
            return KVL_ERR_INVALID;
        if (session->holder != client && holder_of(store, session) != NULL)
            return KVL_ERR_BUSY;
    } else {
        kvl_err err = kvl_session_add(store->sessions, name, &session);
        if (err != KVL_OK)
            return err;
        session->info.namespace_key = *namespace_key;
        err = save_record(store, session);
        if (err != KVL_OK) {
            kvl_session_remove(store->sessions, session);
            return err;
        }
    }
    session->holder = client;
    fill_info(store, session, info);
    kvl_store_pump(store);
    return KVL_OK;
}

kvl_err kvl_store_session_append(struct kvl_store *store, uint32_t client, const char *name,
    uint64_t from_token, const uint32_t *tokens, uint32_t count) {
    struct kvl_session *session = NULL;
    kvl_err err = held_by(store, client, name, &session);
    if (err != KVL_OK)
        return err;
    uint32_t chunks_before = kvl_session_chunks(session->info.token_count);
    err = kvl_session_write(session, from_token, tokens, count);
    if (err != KVL_OK)
        return err;
    uint32_t chunks_now = kvl_session_chunks(session->info.token_count);
    err =
        save_chunks(store, session, (uint32_t)(from_token / KVL_SESSION_CHUNK_TOKENS), chunks_now);
    if (err == KVL_OK)
        err = save_record(store, session);
    if (err == KVL_OK)
        err = remove_chunks(store, session, chunks_now, chunks_before);
    kvl_store_pump(store);
    return err;
}

static void drop_tail_block(struct kvl_store *store, const struct kvl_key *inside) {
    uint32_t block = kvl_table_find(store->table, inside);
    if (block == KVL_BLOCK_NONE)
        return;
    const struct kvl_entry *entry = kvl_table_at(store->table, block);
    const struct kvl_namespace_info *space = kvl_namespace_by_id(store, entry->namespace_id);
    bool partial = space != NULL && entry->token_count < space->geometry.block_tokens;
    if (!partial || entry->children != 0 || entry->tiers == 0)
        return;
    kvl_pin_clear(store, block); /* no session leads to it any more, to take it back */
    kvl_block_drop(store, block, KVL_EVENT_EVICTED);
}

/* A tail that another one takes the place of is of use to nobody, unless another session has it. */
static void drop_tail(struct kvl_store *store, struct kvl_session *session) {
    const struct kvl_session *other;
    for (uint32_t i = 0; (other = kvl_session_set_at(store->sessions, i)) != NULL; i++)
        if (other != session && kvl_key_equal(&other->info.tail, &session->info.tail))
            return;
    struct kvl_session_space space = {0};
    struct kvl_key tail;
    while (kvl_session_space_next(store, session, &space)) {
        if (kvl_session_tail_key(session, &space, &tail) != KVL_OK)
            continue;
        kvl_tenant_turn_key(&kvl_namespace_tenant(store, space.id)->salt, &tail);
        drop_tail_block(store, &tail);
    }
}

kvl_err kvl_store_session_tail(struct kvl_store *store, uint32_t client, const char *name,
    const struct kvl_key *tail, uint32_t tail_tokens) {
    struct kvl_session *session = NULL;
    kvl_err err = held_by(store, client, name, &session);
    if (err != KVL_OK)
        return err;
    if (tail_tokens > session->info.token_count || tail_tokens > KVL_BLOCK_TOKENS_MAX)
        return KVL_ERR_INVALID;
    if (!kvl_key_is_zero(&session->info.tail) && !kvl_key_equal(&session->info.tail, tail))
        drop_tail(store, session);
    session->info.tail = *tail;
    session->info.tail_tokens = kvl_key_is_zero(tail) ? 0 : tail_tokens;
    err = save_record(store, session);
    kvl_store_pump(store);
    return err;
}

kvl_err kvl_store_session_close(struct kvl_store *store, uint32_t client, const char *name) {
    struct kvl_session *session = NULL;
    kvl_err err = held_by(store, client, name, &session);
    if (err == KVL_OK)
        session->holder = 0;
    return err;
}

kvl_err kvl_store_session_drop(
    struct kvl_store *store, uint32_t client, const char *name, struct kvl_session_info *info) {
    *info = (struct kvl_session_info){0};
    if (!kvl_session_full_name_is_valid(name))
        return KVL_ERR_INVALID;
    struct kvl_session *session = kvl_session_find(store->sessions, name);
    if (session == NULL)
        return KVL_ERR_NOTFOUND;
    fill_info(store, session, info);
    if (session->holder != client && holder_of(store, session) != NULL)
        return KVL_ERR_BUSY;
    kvl_err err = kvl_catalog_remove(
        store, KVL_CATALOG_SESSION, session->info.name, (uint32_t)strlen(session->info.name));
    if (err == KVL_OK)
        err = remove_chunks(store, session, 0, kvl_session_chunks(session->info.token_count));
    if (err == KVL_OK)
        kvl_session_remove(store->sessions, session);
    kvl_store_pump(store);
    return err;
}

kvl_err kvl_store_session_read(struct kvl_store *store, const char *name, uint64_t from_token,
    uint32_t max, uint32_t *tokens, uint32_t *count, struct kvl_session_info *info) {
    if (count != NULL)
        *count = 0;
    if (!kvl_session_full_name_is_valid(name))
        return KVL_ERR_INVALID;
    const struct kvl_session *session = kvl_session_find(store->sessions, name);
    if (session == NULL)
        return KVL_ERR_NOTFOUND;
    if (info != NULL)
        fill_info(store, session, info);
    if (tokens == NULL || count == NULL || from_token >= session->info.token_count)
        return KVL_OK;
    uint64_t left = session->info.token_count - from_token;
    *count = left < max ? (uint32_t)left : max;
    memcpy(tokens, session->tokens + from_token, *count * sizeof(tokens[0]));
    return KVL_OK;
}

static struct kvl_session_range range_of(struct kvl_store *store, const struct kvl_tenant *view) {
    if (view == NULL)
        return (struct kvl_session_range){0, kvl_session_count(store->sessions)};
    return kvl_session_range(store->sessions, view->name);
}

uint32_t kvl_sessions_of(struct kvl_store *store, const struct kvl_tenant *view) {
    return range_of(store, view).count;
}

bool kvl_store_session_at(
    struct kvl_store *store, uint32_t tenant, uint32_t index, struct kvl_session_info *out) {
    struct kvl_session_range range = range_of(store, kvl_view_of(store, tenant));
    const struct kvl_session *session =
        index < range.count ? kvl_session_set_at(store->sessions, range.first + index) : NULL;
    if (session != NULL)
        fill_info(store, session, out);
    return session != NULL;
}

void kvl_sessions_close_of(struct kvl_store *store, uint32_t client) {
    struct kvl_session *session;
    for (uint32_t i = 0; (session = kvl_session_set_at(store->sessions, i)) != NULL; i++)
        if (session->holder == client)
            session->holder = 0;
}
