/* store_seal.c - how blocks come into being: alloc, fill, seal; and how leases end.
 *
 *   alloc -> write lease of a slot that no entry knows; a known key makes its entry FILLING, so
 *            that others get PENDING
 *   seal  -> the slot becomes the entry's, SEALING while its hash is taken (sealing.c), then
 * visible death -> the slot goes back; the key goes to the first that waits for it
 *
 * Two clients may fill one key when one of them did not name it: the first to seal owns it, the
 * other's slot stays its private one. */
#include <stdlib.h>

#include "planted.h"
#include "store_private.h"

/* ---- leases ------------------------------------------------------------------------------- */

static bool may_lease(
    const struct kvl_store *store, const struct kvl_client *client, uint64_t slot_bytes) {
    return client->read_leases + client->write_leases < KVL_CLIENT_LEASES_MAX &&
           (store->client_lease_bytes_max == 0 ||
               client->leased_bytes + slot_bytes <= store->client_lease_bytes_max);
}

static kvl_err take_lease(struct kvl_store *store, struct kvl_client *client,
    enum kvl_lease_kind kind, uint64_t slot_bytes, struct kvl_lease **out) {
    if (!may_lease(store, client, slot_bytes))
        return KVL_ERR_LIMIT;
    kvl_err err = kvl_lease_take(store->leases, &client->leases, out);
    if (err != KVL_OK)
        return err;
    (*out)->kind = (uint8_t)kind;
    (*out)->client = client->id;
    (*out)->slot_bytes = slot_bytes;
    client->leased_bytes += slot_bytes;
    struct kvl_tenant *tenant = store->tenants.tenants[client->info.tenant];
    tenant->leases++;
    tenant->leased_bytes += slot_bytes;
    if (kind == KVL_LEASE_READ)
        client->read_leases++;
    else
        client->write_leases++;
    return KVL_OK;
}

kvl_err kvl_lease_read(struct kvl_store *store, struct kvl_client *client, uint32_t block,
    unsigned tier, struct kvl_lease **out) {
    const struct kvl_entry *entry = kvl_table_at(store->table, block);
    if (entry->leases[tier] == UINT16_MAX)
        return KVL_ERR_LIMIT;
    kvl_err err =
        take_lease(store, client, KVL_LEASE_READ, kvl_entry_layout(store, entry)->slot_bytes, out);
    if (err != KVL_OK)
        return err;
    (*out)->block = block;
    (*out)->generation = entry->generation;
    (*out)->tier = (uint8_t)tier;
    (*out)->location = kvl_entry_location(entry, tier);
    (*out)->namespace_id = entry->namespace_id;
    kvl_lease_count_up(store, block, tier);
    return KVL_OK;
}

static kvl_err grant(struct kvl_store *store, struct kvl_client *client,
    const struct kvl_namespace_info *info, unsigned tier, struct kvl_lease **out) {
    uint64_t location = 0;
    const struct kvl_slot_wish wish = {
        kvl_namespace_tenant(store, info->id), tier, info->layout.slot_bytes};
    if (!may_lease(store, client, wish.slot_bytes))
        return KVL_ERR_LIMIT;
    kvl_err err = kvl_slot_reserve(store, &wish, false, &location);
    if (err != KVL_OK)
        return err;
    err = take_lease(store, client, KVL_LEASE_WRITE, wish.slot_bytes, out);
    if (err != KVL_OK) {
        kvl_slot_give_back(store, &wish, location);
        return err;
    }
    (*out)->tier = (uint8_t)tier;
    (*out)->location = location;
    (*out)->namespace_id = info->id;
    (*out)->generation = kvl_generation_next(store);
    return KVL_OK;
}

static bool is_filling(struct kvl_store *store, const struct kvl_lease *lease) {
    return lease->block != KVL_BLOCK_NONE && kvl_entry_is(store, lease->block, lease->generation) &&
           (kvl_table_at(store->table, lease->block)->flags & KVL_ENTRY_FILLING) != 0;
}

/* Makes the lease the filler of its key's entry, which is not visible and not being filled. */
static kvl_err fill_begin(
    struct kvl_store *store, struct kvl_lease *lease, const struct kvl_key *key) {
    uint32_t block = kvl_table_find(store->table, key);
    if (block == KVL_BLOCK_NONE) {
        kvl_err err = kvl_table_insert(store->table, key, &block);
        if (err != KVL_OK)
            return err;
    } else {
        kvl_block_abandon(store, block);
    }
    struct kvl_entry *entry = kvl_table_at(store->table, block);
    entry->flags |= KVL_ENTRY_FILLING;
    entry->generation = lease->generation;
    kvl_entry_join(store, entry, lease->namespace_id);
    lease->key = *key;
    lease->block = block;
    return KVL_OK;
}

/* ---- waiting for a key -------------------------------------------------------------------- */

static struct kvl_wait *next_waiter(struct kvl_store *store, const struct kvl_key *key) {
    struct kvl_wait *oldest = NULL;
    for (struct kvl_operation *at = store->operations; at != NULL; at = at->next) {
        struct kvl_wait *wait = kvl_container_of(at, struct kvl_wait, operation);
        if (at->kind == KVL_OPERATION_WAIT && kvl_key_equal(&wait->key, key))
            oldest = wait; /* the list has the newest first */
    }
    return oldest;
}

static void wait_end(struct kvl_store *store, struct kvl_wait *wait, kvl_err status) {
    kvl_operation_end(store, &wait->operation, status);
    free(wait);
}

void kvl_waiters_sealed(struct kvl_store *store, uint32_t block) {
    struct kvl_entry *entry = kvl_table_at(store->table, block);
    if ((entry->flags & KVL_ENTRY_WAITED) == 0)
        return;
    entry->flags &= (uint16_t)~KVL_ENTRY_WAITED;
    struct kvl_wait *wait;
    while ((wait = next_waiter(store, &entry->key)) != NULL)
        wait_end(store, wait, KVL_OK);
}

static kvl_err inherit(struct kvl_store *store, struct kvl_wait *wait) {
    struct kvl_client *client = kvl_client_find(store, wait->operation.client);
    const struct kvl_namespace_info *info = kvl_namespace_by_id(store, wait->namespace_id);
    struct kvl_lease *lease = NULL;
    if (client == NULL || wait->operation.word == NULL)
        return KVL_ERR_CLOSED;
    kvl_err err = grant(store, client, info, wait->tier, &lease);
    if (err != KVL_OK)
        return err;
    err = fill_begin(store, lease, &wait->key);
    if (err != KVL_OK) {
        kvl_lease_end(store, client, lease);
        return err;
    }
    kvl_operation_value(&wait->operation, 0, lease->number);
    kvl_operation_value(&wait->operation, 1, lease->location);
    return KVL_OK;
}

void kvl_fill_end(struct kvl_store *store, uint32_t block) {
    struct kvl_entry *entry = kvl_table_at(store->table, block);
    struct kvl_key key = entry->key;
    entry->flags &= (uint16_t)~KVL_ENTRY_FILLING;
    entry->generation = 0;
    bool waited = (entry->flags & KVL_ENTRY_WAITED) != 0;
    struct kvl_wait *wait;
    while (waited && (wait = next_waiter(store, &key)) != NULL) {
        kvl_err err = inherit(store, wait);
        wait_end(store, wait, err);
        if (err == KVL_OK)
            break;
    }
    if (waited && next_waiter(store, &key) == NULL)
        entry->flags &= (uint16_t)~KVL_ENTRY_WAITED;
    kvl_block_reap(store, block);
}

static kvl_err wait_begin(struct kvl_store *store, const struct kvl_alloc_request *request,
    uint32_t i, struct kvl_ticket *ticket) {
    struct kvl_wait *wait = calloc(1, sizeof(*wait));
    if (wait == NULL)
        return KVL_ERR_NOMEM;
    wait->key = request->keys[i];
    wait->namespace_id = request->namespace_id;
    wait->tier = (uint8_t)request->target;
    kvl_err err =
        kvl_operation_begin(store, request->client, KVL_OPERATION_WAIT, &wait->operation, ticket);
    if (err != KVL_OK) {
        free(wait);
        return err;
    }
    uint32_t block = kvl_table_find(store->table, &wait->key);
    kvl_table_at(store->table, block)->flags |= KVL_ENTRY_WAITED;
    return KVL_OK;
}

/* ---- the end of a lease ------------------------------------------------------------------- */

void kvl_lease_end(struct kvl_store *store, struct kvl_client *client, struct kvl_lease *lease) {
    struct kvl_lease ended = *lease;
    struct kvl_tenant *tenant = store->tenants.tenants[client->info.tenant];
    client->leased_bytes -= ended.slot_bytes;
    tenant->leased_bytes -= ended.slot_bytes;
    tenant->leases--;
    if (ended.kind == KVL_LEASE_READ)
        client->read_leases--;
    else
        client->write_leases--;
    kvl_lease_give_back(store->leases, &client->leases, lease);
    if (ended.kind == KVL_LEASE_READ) {
        kvl_lease_count_down(store, ended.block, ended.generation, ended.tier);
        return;
    }
    const struct kvl_slot_wish slot = {
        kvl_namespace_tenant(store, ended.namespace_id), ended.tier, ended.slot_bytes};
    if (client->open || !KVL_PLANTED("slot-lost-at-death"))
        kvl_slot_give_back(store, &slot, ended.location);
    if (ended.kind == KVL_LEASE_WRITE && is_filling(store, &ended))
        kvl_fill_end(store, ended.block);
}

static void release_one(struct kvl_store *store, struct kvl_client *client, uint64_t number) {
    struct kvl_lease *lease = kvl_lease_find(store->leases, number);
    if (lease != NULL && lease->client == client->id)
        kvl_lease_end(store, client, lease);
    else
        store->tenants.tenants[client->info.tenant]->stale_releases++;
}

static bool is_windowed(struct kvl_store *store, uint64_t number) {
    const struct kvl_lease *lease = kvl_lease_find(store->leases, number);
    return lease != NULL && kvl_namespace_is_windowed(store, lease->namespace_id);
}

void kvl_store_release(struct kvl_store *store, uint32_t client_id, const uint64_t *leases,
    uint32_t lease_count, const struct kvl_ticket *tickets, uint32_t ticket_count) {
    struct kvl_client *client = kvl_client_find(store, client_id);
    if (client == NULL) {
        store->tenants.tenants[KVL_TENANT_DEFAULT]->stale_releases +=
            (uint64_t)lease_count + ticket_count;
        return;
    }
    for (uint32_t i = 0; i < ticket_count; i++)
        kvl_ticket_release(store, client_id, tickets[i]);
    /* Leases come in order of their chain: the last one, a leaf, becomes the oldest; but of a
     * window group the first one, which is left behind first. */
    bool windowed = lease_count > 0 && is_windowed(store, leases[0]);
    for (uint32_t i = 0; i < lease_count; i++)
        release_one(store, client, leases[windowed ? i : lease_count - 1 - i]);
    kvl_store_pump(store);
}

/* ---- alloc -------------------------------------------------------------------------------- */

static uint32_t status_of_known(struct kvl_store *store, const struct kvl_key *key) {
    uint32_t block = kvl_table_find(store->table, key);
    if (block == KVL_BLOCK_NONE)
        return KVL_ALLOC_GRANTED;
    const struct kvl_entry *entry = kvl_table_at(store->table, block);
    if (entry->tiers != 0)
        return KVL_ALLOC_EXISTS;
    if ((entry->flags & (KVL_ENTRY_FILLING | KVL_ENTRY_SEALING)) != 0)
        return KVL_ALLOC_PENDING;
    return KVL_ALLOC_GRANTED;
}

static kvl_err alloc_one(struct kvl_store *store, struct kvl_client *client,
    const struct kvl_alloc_request *request, const struct kvl_key *key, struct kvl_allocated *out) {
    bool named = !kvl_key_is_zero(key);
    out->status = named ? status_of_known(store, key) : KVL_ALLOC_GRANTED;
    if (out->status != KVL_ALLOC_GRANTED)
        return KVL_OK;
    struct kvl_lease *lease = NULL;
    kvl_err err = grant(
        store, client, kvl_namespace_by_id(store, request->namespace_id), request->target, &lease);
    if (err != KVL_OK) {
        out->status = KVL_ALLOC_NOSPC;
        /* AGAIN: the arena is still being touched; leases do not fill it */
        return err == KVL_ERR_NOMEM || err == KVL_ERR_AGAIN ? err : KVL_OK;
    }
    if (named && fill_begin(store, lease, key) != KVL_OK) {
        kvl_lease_end(store, client, lease);
        return KVL_ERR_NOMEM;
    }
    out->lease = lease->number;
    out->offset_bytes = lease->location;
    return KVL_OK;
}

static void alloc_undo(struct kvl_store *store, struct kvl_client *client,
    const struct kvl_allocated *blocks, uint32_t count) {
    for (uint32_t i = 0; i < count; i++) {
        struct kvl_lease *lease = kvl_lease_find(store->leases, blocks[i].lease);
        if (blocks[i].status == KVL_ALLOC_GRANTED && lease != NULL)
            kvl_lease_end(store, client, lease);
    }
}

kvl_err kvl_store_alloc(struct kvl_store *store, const struct kvl_alloc_request *request,
    struct kvl_allocated *blocks, struct kvl_ticket *ticket) {
    *ticket = (struct kvl_ticket){0};
    struct kvl_client *client = kvl_client_find(store, request->client);
    if (client == NULL || !client->info.attached)
        return KVL_ERR_PERM;
    if (request->count > KVL_CHAIN_BLOCKS_MAX ||
        (request->target != KVL_TIER_DEVICE && request->target != KVL_TIER_HOST) ||
        store->tiers[request->target].tier == NULL)
        return KVL_ERR_INVALID;
    if (kvl_namespace_by_id(store, request->namespace_id) == NULL ||
        kvl_namespace_tenant(store, request->namespace_id)->id != client->info.tenant)
        return KVL_ERR_NOTFOUND;
    uint32_t pending = request->count;
    bool full = false;
    kvl_err err = KVL_OK;
    uint32_t i = 0;
    for (; i < request->count && err == KVL_OK; i++) {
        blocks[i] = (struct kvl_allocated){.status = KVL_ALLOC_NOSPC};
        if (full)
            continue;
        err = alloc_one(store, client, request, &request->keys[i], &blocks[i]);
        full = blocks[i].status == KVL_ALLOC_NOSPC;
        if (blocks[i].status == KVL_ALLOC_PENDING && pending == request->count)
            pending = i;
    }
    if (err == KVL_OK && request->wait && pending < request->count)
        err = wait_begin(store, request, pending, ticket);
    if (err != KVL_OK)
        alloc_undo(store, client, blocks, i);
    kvl_store_pump(store);
    return err;
}

/* ---- seal --------------------------------------------------------------------------------- */

static bool tokens_are_valid(
    const struct kvl_namespace_info *info, const struct kvl_seal_request *request) {
    if (request->opaque)
        return info->geometry.layers == 0;
    return info->geometry.layers != 0 && request->token_count > 0 &&
           request->token_count <= info->geometry.block_tokens;
}

static bool parent_is_valid(struct kvl_store *store, const struct kvl_namespace_info *info,
    const struct kvl_seal_request *request) {
    if (request->opaque || kvl_key_equal(&request->parent, &info->key))
        return true;
    if (kvl_key_is_zero(&request->parent))
        return false;
    uint32_t parent = kvl_table_find(store->table, &request->parent);
    return parent == KVL_BLOCK_NONE || kvl_table_at(store->table, parent)->namespace_id == info->id;
}

/* Keys are made of keys as clients know them, and then turned. */
static kvl_err seal_key(struct kvl_store *store, const struct kvl_namespace_info *info,
    const struct kvl_seal_request *request, struct kvl_key *key) {
    const struct kvl_key *salt = &kvl_namespace_tenant(store, info->id)->salt;
    struct kvl_key parent = request->opaque ? info->key : request->parent;
    kvl_tenant_turn_key(salt, &parent);
    kvl_err err = request->opaque ? kvl_key_of_opaque(&parent, request->opaque_key, key)
                                  : kvl_key_of_block(&parent, request->tokens, request->token_count,
                                        request->extra, key);
    kvl_tenant_turn_key(salt, key);
    return err;
}

/* The entry for a key that is not sealed, empty: new, a ghost's, or one that was being filled. */
static kvl_err seal_entry(struct kvl_store *store, const struct kvl_namespace_info *info,
    const struct kvl_seal_request *request, const struct kvl_key *key, uint32_t *block) {
    *block = kvl_table_find(store->table, key);
    if (*block != KVL_BLOCK_NONE) {
        kvl_block_abandon(store, *block);
    } else {
        kvl_err err = kvl_table_insert(store->table, key, block);
        if (err != KVL_OK)
            return err;
    }
    struct kvl_entry *entry = kvl_table_at(store->table, *block);
    kvl_entry_join(store, entry, info->id);
    entry->token_count = request->opaque ? 0 : (uint16_t)request->token_count;
    if (request->opaque || kvl_key_equal(&request->parent, &info->key))
        return KVL_OK;
    kvl_err err = kvl_block_link(store, *block, &request->parent);
    if (err != KVL_OK)
        kvl_block_reap(store, *block);
    return err;
}

static void seal_begin(struct kvl_store *store, struct kvl_client *client, struct kvl_lease *lease,
    uint32_t block, struct kvl_sealing *sealing) {
    struct kvl_entry *entry = kvl_table_at(store->table, block);
    entry->generation = kvl_generation_next(store);
    entry->flags |= KVL_ENTRY_SEALING;
    kvl_slot_attach(store, block, lease->tier, lease->location);
    kvl_lease_count_up(store, block, lease->tier);
    lease->kind = KVL_LEASE_READ;
    lease->block = block;
    lease->generation = entry->generation;
    client->write_leases--;
    client->read_leases++;
    kvl_sealing_start(store, sealing, block, lease->tier);
}

static kvl_err refuse(struct kvl_store *store, const struct kvl_client *client, kvl_err err) {
    uint32_t tenant = client != NULL ? client->info.tenant : KVL_TENANT_DEFAULT;
    store->tenants.tenants[tenant]->refused_seals++;
    return err;
}

bool kvl_store_seal_key(
    struct kvl_store *store, const struct kvl_seal_request *request, struct kvl_key *key) {
    const struct kvl_lease *lease = kvl_lease_find(store->leases, request->lease);
    const struct kvl_namespace_info *info =
        lease == NULL ? NULL : kvl_namespace_by_id(store, lease->namespace_id);
    return info != NULL && lease->client == request->client && tokens_are_valid(info, request) &&
           seal_key(store, info, request, key) == KVL_OK;
}

kvl_err kvl_store_seal(
    struct kvl_store *store, const struct kvl_seal_request *request, struct kvl_key *key) {
    struct kvl_client *client = kvl_client_find(store, request->client);
    struct kvl_lease *lease = kvl_lease_find(store->leases, request->lease);
    if (client == NULL || lease == NULL || lease->client != request->client)
        return refuse(store, client, KVL_ERR_NOTFOUND);
    if (lease->kind != KVL_LEASE_WRITE)
        return refuse(store, client, KVL_ERR_INVALID);
    const struct kvl_namespace_info *info = kvl_namespace_by_id(store, lease->namespace_id);
    if (!tokens_are_valid(info, request) || !parent_is_valid(store, info, request))
        return refuse(store, client, KVL_ERR_INVALID);
    kvl_err err = seal_key(store, info, request, key);
    if (err != KVL_OK)
        return refuse(store, client, err);
    if (!kvl_key_is_zero(&lease->key) && !kvl_key_equal(&lease->key, key))
        return refuse(store, client, KVL_ERR_INVALID);
    uint32_t block = kvl_table_find(store->table, key);
    const struct kvl_entry *entry =
        block == KVL_BLOCK_NONE ? NULL : kvl_table_at(store->table, block);
    if (entry != NULL && (entry->tiers != 0 || (entry->flags & KVL_ENTRY_SEALING) != 0)) {
        lease->kind = KVL_LEASE_PRIVATE;
        return KVL_ERR_EXISTS;
    }
    struct kvl_sealing *sealing = kvl_sealing_take(store);
    if (sealing == NULL)
        return KVL_ERR_NOMEM;
    err = seal_entry(store, info, request, key, &block);
    if (err != KVL_OK) {
        kvl_sealing_give_back(store, sealing);
        return err;
    }
    seal_begin(store, client, lease, block, sealing);
    kvl_store_pump(store);
    return KVL_OK;
}
