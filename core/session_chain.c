/* session_chain.c - which blocks a session's tokens stand for: a chain in the namespace that it was
 * opened under, and in that of every other layer group of the same model.
 *
 * The session knows the first only; the others' keys follow from it (kvl_key_of_layer_group), so
 * each namespace tells by itself whether it belongs. Keys here are as clients know them. */
#include <string.h>

#include "store_private.h"

const struct kvl_tenant *kvl_session_tenant(
    struct kvl_store *store, const struct kvl_session *session) {
    char name[KVL_SESSION_NAME_MAX + 1];
    const char *slash = strchr(session->info.name, '/');
    size_t length = slash != NULL ? (size_t)(slash - session->info.name) : 0;
    memcpy(name, session->info.name, length);
    name[length] = '\0';
    return kvl_tenant_find(&store->tenants, name);
}

bool kvl_session_space_next(
    struct kvl_store *store, const struct kvl_session *session, struct kvl_session_space *space) {
    const struct kvl_tenant *tenant = kvl_session_tenant(store, session);
    while (tenant != NULL && space->id < store->namespace_end) {
        space->info = kvl_namespace_by_id(store, ++space->id);
        if (space->info == NULL || kvl_namespace_tenant(store, space->id) != tenant)
            continue;
        space->root = space->info->key;
        kvl_tenant_turn_key(&tenant->salt, &space->root);
        const struct kvl_geometry *geometry = &space->info->geometry;
        if (geometry->layers != 0 &&
            kvl_key_is_of_model(&space->root, geometry, &session->info.namespace_key))
            return true;
    }
    return false;
}

static void walk_from_the_beginning(struct kvl_session *session, uint32_t block_tokens) {
    session->walk = (struct kvl_session_walk){
        .block_tokens = block_tokens, .own = {.parent = session->info.namespace_key}};
}

static kvl_err walk_to_tail(struct kvl_session *session, uint32_t block_tokens) {
    struct kvl_session_walk *walk = &session->walk;
    if (walk->block_tokens != block_tokens)
        walk_from_the_beginning(session, block_tokens);
    kvl_err err = kvl_session_tail_place(&session->info, session->tokens, block_tokens, &walk->own);
    if (err != KVL_ERR_NOTFOUND || walk->own.whole == 0)
        return err;
    walk_from_the_beginning(session, block_tokens); /* an interrupted turn's tail stands earlier */
    return kvl_session_tail_place(&session->info, session->tokens, block_tokens, &walk->own);
}

/* As many blocks in the other group's chain as in the session's. */
static kvl_err walk_beside(struct kvl_session *session, const struct kvl_key *root) {
    struct kvl_session_walk *walk = &session->walk;
    struct kvl_session_place *other = &walk->other;
    if (!kvl_key_equal(&walk->other_root, root) || other->whole > walk->own.whole) {
        walk->other_root = *root;
        *other = (struct kvl_session_place){.parent = *root};
    }
    kvl_err err = KVL_OK;
    for (; err == KVL_OK && other->whole < walk->own.whole; other->whole++)
        err = kvl_key_of_block(&other->parent, session->tokens + other->whole * walk->block_tokens,
            walk->block_tokens, (struct kvl_bytes){0}, &other->parent);
    if (err != KVL_OK)
        walk->other_root = (struct kvl_key){{0}}; /* begins anew */
    return err;
}

kvl_err kvl_session_tail_key(
    struct kvl_session *session, const struct kvl_session_space *space, struct kvl_key *tail) {
    const struct kvl_session_info *info = &session->info;
    uint32_t block_tokens = space->info->geometry.block_tokens;
    *tail = info->tail;
    if (kvl_key_is_zero(tail))
        return KVL_ERR_NOTFOUND;
    if (kvl_key_equal(&space->root, &info->namespace_key))
        return KVL_OK;
    kvl_err err = walk_to_tail(session, block_tokens);
    if (err == KVL_OK)
        err = walk_beside(session, &space->root);
    if (err != KVL_OK)
        return err;
    const struct kvl_session_place *other = &session->walk.other;
    return kvl_key_of_block(&other->parent, session->tokens + other->whole * block_tokens,
        info->tail_tokens, (struct kvl_bytes){0}, tail);
}
