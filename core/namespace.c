/* namespace.c - what kinds of blocks there are: geometry, layout and label, by a small number.
 *
 * The number stands in every record on disk, so the catalog keeps it:
 *
 *   key:   u32le id
 *   value: version u8 = 1 | namespace key 32 | geometry 7 x u32le | dtype u32le |
 *          block_bytes u64le | label 64                                       = 137 bytes
 *   value of a named tenant's: version u8 = 2 | the same | tag u64le | name 64 = 209 bytes */
#include <stdlib.h>
#include <string.h>

#include "little_endian.h"
#include "store_private.h"

#define KVL_NAMESPACE_RECORD_VERSION 1u
#define KVL_NAMESPACE_RECORD_VERSION_TENANT 2u
#define KVL_NAMESPACE_RECORD_BYTES (1u + KVL_KEY_BYTES + 28u + 4u + 8u + 64u)
#define KVL_NAMESPACE_RECORD_BYTES_TENANT (KVL_NAMESPACE_RECORD_BYTES + 8u + 64u)

struct kvl_namespace_info *kvl_namespace_by_id(struct kvl_store *store, uint32_t id) {
    bool known = id != 0 && id <= store->namespace_end && store->namespaces[id - 1] != NULL;
    return known ? &store->namespaces[id - 1]->info : NULL;
}

bool kvl_namespace_is_windowed(struct kvl_store *store, uint32_t id) {
    const struct kvl_namespace_info *info = kvl_namespace_by_id(store, id);
    return info != NULL && info->geometry.layer_group != 0;
}

struct kvl_tenant *kvl_namespace_tenant(struct kvl_store *store, uint32_t id) {
    bool known = id != 0 && id <= store->namespace_end && store->namespaces[id - 1] != NULL;
    return known ? store->namespaces[id - 1]->tenant : store->tenants.tenants[KVL_TENANT_DEFAULT];
}

void kvl_entry_join(struct kvl_store *store, struct kvl_entry *entry, uint32_t namespace_id) {
    bool pinned = (entry->flags & KVL_ENTRY_PINNED) != 0;
    kvl_entry_tenant(store, entry)->pins -= pinned;
    entry->namespace_id = (uint16_t)namespace_id;
    kvl_entry_tenant(store, entry)->pins += pinned;
}

struct kvl_namespace_info *kvl_namespace_by_key(
    struct kvl_store *store, const struct kvl_key *key) {
    for (uint32_t i = 0; i < store->namespace_end; i++)
        if (store->namespaces[i] != NULL && kvl_key_equal(&store->namespaces[i]->info.key, key))
            return &store->namespaces[i]->info;
    return NULL;
}

static kvl_err layout_of(const struct kvl_namespace_request *request, struct kvl_layout *out) {
    static const struct kvl_geometry none;
    if (memcmp(&request->geometry, &none, sizeof(none)) != 0)
        return kvl_layout_of_geometry(&request->geometry, (enum kvl_dtype)request->dtype, out);
    return request->dtype != 0 ? KVL_ERR_INVALID : kvl_layout_of_bytes(request->block_bytes, out);
}

static bool is_same(const struct kvl_namespace_info *info,
    const struct kvl_namespace_request *request, const struct kvl_layout *layout) {
    return memcmp(&info->geometry, &request->geometry, sizeof(info->geometry)) == 0 &&
           info->dtype == request->dtype && info->layout.payload_bytes == layout->payload_bytes;
}

static kvl_err ensure_room(struct kvl_store *store, uint32_t id) {
    if (id > KVL_NAMESPACES_MAX)
        return KVL_ERR_LIMIT;
    if (id > store->namespace_room) {
        uint32_t room = id < 8 ? 16 : id * 2;
        struct kvl_namespace **all = realloc(store->namespaces, room * sizeof(all[0]));
        if (all == NULL)
            return KVL_ERR_NOMEM;
        memset(all + store->namespace_room, 0, (room - store->namespace_room) * sizeof(all[0]));
        store->namespaces = all;
        store->namespace_room = room;
    }
    return KVL_OK;
}

static kvl_err add(struct kvl_store *store, uint32_t id, struct kvl_tenant *tenant,
    const struct kvl_namespace_request *request, const struct kvl_layout *layout,
    struct kvl_namespace **out) {
    kvl_err err = ensure_room(store, id);
    if (err != KVL_OK)
        return err;
    struct kvl_namespace *space = calloc(1, sizeof(*space));
    if (space == NULL)
        return KVL_ERR_NOMEM;
    struct kvl_namespace_info *info = &space->info;
    space->tenant = tenant;
    info->id = id;
    info->key = request->key;
    info->geometry = request->geometry;
    info->dtype = request->dtype;
    info->layout = *layout;
    memcpy(info->label, request->label, sizeof(info->label));
    info->label[sizeof(info->label) - 1] = '\0';
    store->namespaces[id - 1] = space;
    if (id > store->namespace_end)
        store->namespace_end = id;
    *out = space;
    return KVL_OK;
}

static kvl_err save(struct kvl_store *store, const struct kvl_namespace *space) {
    const struct kvl_namespace_info *info = &space->info;
    bool named = space->tenant->id != KVL_TENANT_DEFAULT;
    uint8_t key[4], value[KVL_NAMESPACE_RECORD_BYTES_TENANT] = {0};
    kvl_le_put(key, info->id, sizeof(key));
    uint8_t *at = kvl_le_put(
        value, named ? KVL_NAMESPACE_RECORD_VERSION_TENANT : KVL_NAMESPACE_RECORD_VERSION, 1);
    memcpy(at, info->key.bytes, KVL_KEY_BYTES);
    at += KVL_KEY_BYTES;
    const struct kvl_geometry *g = &info->geometry;
    const uint32_t fields[] = {g->layers, g->kv_heads, g->k_dim, g->v_dim, g->block_tokens,
        g->layer_group, g->shard, info->dtype};
    for (unsigned i = 0; i < sizeof(fields) / sizeof(fields[0]); i++)
        at = kvl_le_put(at, fields[i], 4);
    at = kvl_le_put(at, g->layers == 0 ? info->layout.payload_bytes : 0, 8);
    memcpy(at, info->label, sizeof(info->label));
    at = kvl_le_put(at + sizeof(info->label), space->tenant->tag, 8);
    memcpy(at, space->tenant->name, sizeof(space->tenant->name));
    return kvl_catalog_put(store, KVL_CATALOG_NAMESPACE, key, sizeof(key), value,
        named ? KVL_NAMESPACE_RECORD_BYTES_TENANT : KVL_NAMESPACE_RECORD_BYTES);
}

/* Whose the record is. Errors: INVALID, NOMEM, LIMIT. */
static kvl_err tenant_found(
    struct kvl_store *store, const uint8_t *value, uint32_t value_bytes, struct kvl_tenant **out) {
    char name[KVL_TENANT_NAME_MAX + 1];
    *out = store->tenants.tenants[KVL_TENANT_DEFAULT];
    if (value_bytes == KVL_NAMESPACE_RECORD_BYTES && value[0] == KVL_NAMESPACE_RECORD_VERSION)
        return KVL_OK;
    if (value_bytes != KVL_NAMESPACE_RECORD_BYTES_TENANT ||
        value[0] != KVL_NAMESPACE_RECORD_VERSION_TENANT)
        return KVL_ERR_INVALID;
    const uint8_t *at = value + KVL_NAMESPACE_RECORD_BYTES;
    uint64_t tag = kvl_le_get(&at, 8);
    memcpy(name, at, sizeof(name));
    name[sizeof(name) - 1] = '\0';
    if (!kvl_tenant_name_is_valid(name))
        return KVL_ERR_INVALID;
    return kvl_tenant_of_record(&store->tenants, name, tag, out);
}

void kvl_namespace_found(struct kvl_store *store, const void *key, uint32_t key_bytes,
    const void *value, uint32_t value_bytes) {
    const uint8_t *at = value;
    const uint8_t *id_at = key;
    struct kvl_tenant *tenant = NULL;
    if (key_bytes != 4 || tenant_found(store, at++, value_bytes, &tenant) != KVL_OK) {
        KVL_WARN(store->log, "event=namespace_record_ignored bytes=%u", value_bytes);
        return;
    }
    struct kvl_namespace_request request = {0};
    memcpy(request.key.bytes, at, KVL_KEY_BYTES);
    at += KVL_KEY_BYTES;
    request.geometry.layers = (uint32_t)kvl_le_get(&at, 4);
    request.geometry.kv_heads = (uint32_t)kvl_le_get(&at, 4);
    request.geometry.k_dim = (uint32_t)kvl_le_get(&at, 4);
    request.geometry.v_dim = (uint32_t)kvl_le_get(&at, 4);
    request.geometry.block_tokens = (uint32_t)kvl_le_get(&at, 4);
    request.geometry.layer_group = (uint32_t)kvl_le_get(&at, 4);
    request.geometry.shard = (uint32_t)kvl_le_get(&at, 4);
    request.dtype = (uint32_t)kvl_le_get(&at, 4);
    request.block_bytes = kvl_le_get(&at, 8);
    memcpy(request.label, at, sizeof(request.label));
    uint32_t id = (uint32_t)kvl_le_get(&id_at, 4);
    struct kvl_layout layout;
    struct kvl_namespace *space = NULL;
    const struct kvl_namespace_info *known = kvl_namespace_by_id(store, id);
    if (known != NULL && kvl_key_equal(&known->key, &request.key))
        return; /* told twice */
    if (id == 0 || known != NULL || layout_of(&request, &layout) != KVL_OK ||
        add(store, id, tenant, &request, &layout, &space) != KVL_OK)
        KVL_WARN(store->log, "event=namespace_record_ignored id=%u", id);
}

/* Blocks of a far device pass through the host. */
static kvl_err check_passes(struct kvl_store *store, const struct kvl_namespace_request *request,
    const struct kvl_layout *layout) {
    struct kvl_tier *host = store->tiers[KVL_TIER_HOST].tier;
    uint64_t least_bytes = layout->slot_bytes * KVL_FAR_HOST_BLOCKS_MIN;
    if (!store->device_is_far || host->ops->stats(host).capacity_bytes >= least_bytes)
        return KVL_OK;
    kvl_log_fallback(store->log,
        "namespace %.63s refused: blocks of %llu bytes pass through the host on their way to and "
        "from %s; --host-bytes %lluM is the least that works",
        request->label, (unsigned long long)layout->payload_bytes,
        store->tiers[KVL_TIER_DEVICE].tier->ops->name,
        (unsigned long long)((least_bytes + (1u << 20) - 1) >> 20));
    return KVL_ERR_NOSPC;
}

/* Sooner than at the first block that cannot be stored. */
static kvl_err check_fits(struct kvl_store *store, const struct kvl_namespace_request *request,
    const struct kvl_layout *layout) {
    struct kvl_tier *disk = store->tiers[KVL_TIER_DISK].tier;
    uint64_t capacity_bytes = 0;
    if (disk == NULL || disk->ops->fits == NULL || disk->ops->fits(disk, layout, &capacity_bytes))
        return KVL_OK;
    kvl_log_fallback(store->log,
        "namespace %.63s refused: a block of %llu bytes does not fit a segment of the disk; "
        "--disk-bytes %lluM is the least that works",
        request->label, (unsigned long long)layout->payload_bytes,
        (unsigned long long)(capacity_bytes >> 20));
    return KVL_ERR_TOOBIG;
}

kvl_err kvl_store_namespace_open(struct kvl_store *store, uint32_t tenant,
    const struct kvl_namespace_request *request, struct kvl_namespace_info *out) {
    struct kvl_layout layout;
    if (kvl_key_is_zero(&request->key) || tenant >= store->tenants.count)
        return KVL_ERR_INVALID;
    kvl_err err = layout_of(request, &layout);
    if (err == KVL_OK)
        err = check_fits(store, request, &layout);
    if (err == KVL_OK)
        err = check_passes(store, request, &layout);
    if (err != KVL_OK)
        return err;
    struct kvl_namespace_info *info = kvl_namespace_by_key(store, &request->key);
    if (info != NULL && !is_same(info, request, &layout))
        return KVL_ERR_INVALID;
    if (info != NULL && kvl_namespace_tenant(store, info->id)->id != tenant)
        return KVL_ERR_INVALID;
    if (info == NULL) {
        struct kvl_namespace *space = NULL;
        err = add(store, store->namespace_end + 1, store->tenants.tenants[tenant], request, &layout,
            &space);
        if (err != KVL_OK)
            return err;
        err = save(store, space);
        if (err != KVL_OK) {
            store->namespaces[--store->namespace_end] = NULL;
            free(space);
            return err;
        }
        info = &space->info;
    }
    *out = *info;
    return KVL_OK;
}

bool kvl_store_namespace_is_known(struct kvl_store *store, const struct kvl_key *key) {
    return kvl_namespace_by_key(store, key) != NULL;
}

bool kvl_store_namespace_at(
    struct kvl_store *store, uint32_t tenant, uint32_t index, struct kvl_namespace_info *out) {
    const struct kvl_tenant *view = kvl_view_of(store, tenant);
    for (uint32_t i = 0; i < store->namespace_end; i++) {
        const struct kvl_namespace *space = store->namespaces[i];
        if (space == NULL || (view != NULL && space->tenant != view) || index-- > 0)
            continue;
        *out = space->info;
        return true;
    }
    return false;
}

void kvl_namespaces_free(struct kvl_store *store) {
    for (uint32_t i = 0; i < store->namespace_end; i++)
        free(store->namespaces[i]);
    free(store->namespaces);
}
