/* namespace.c - what kinds of blocks there are: geometry, layout and label, by a small number.
 *
 * The number stands in every record on disk, so the catalog keeps it:
 *
 *   key:   u32le id
 *   value: version u8 = 1 | namespace key 32 | geometry 7 x u32le | dtype u32le |
 *          block_bytes u64le | label 64                                       = 137 bytes */
#include <stdlib.h>
#include <string.h>

#include "little_endian.h"
#include "store_private.h"

#define KVL_NAMESPACE_RECORD_VERSION 1u
#define KVL_NAMESPACE_RECORD_BYTES (1u + KVL_KEY_BYTES + 28u + 4u + 8u + 64u)

struct kvl_namespace_info *kvl_namespace_by_id(struct kvl_store *store, uint32_t id) {
    return id == 0 || id > store->namespace_end ? NULL : store->namespaces[id - 1];
}

struct kvl_namespace_info *kvl_namespace_by_key(
    struct kvl_store *store, const struct kvl_key *key) {
    for (uint32_t i = 0; i < store->namespace_end; i++)
        if (store->namespaces[i] != NULL && kvl_key_equal(&store->namespaces[i]->key, key))
            return store->namespaces[i];
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
        struct kvl_namespace_info **all = realloc(store->namespaces, room * sizeof(all[0]));
        if (all == NULL)
            return KVL_ERR_NOMEM;
        memset(all + store->namespace_room, 0, (room - store->namespace_room) * sizeof(all[0]));
        store->namespaces = all;
        store->namespace_room = room;
    }
    return KVL_OK;
}

static kvl_err add(struct kvl_store *store, uint32_t id,
    const struct kvl_namespace_request *request, const struct kvl_layout *layout,
    struct kvl_namespace_info **out) {
    kvl_err err = ensure_room(store, id);
    if (err != KVL_OK)
        return err;
    struct kvl_namespace_info *info = calloc(1, sizeof(*info));
    if (info == NULL)
        return KVL_ERR_NOMEM;
    info->id = id;
    info->key = request->key;
    info->geometry = request->geometry;
    info->dtype = request->dtype;
    info->layout = *layout;
    memcpy(info->label, request->label, sizeof(info->label));
    info->label[sizeof(info->label) - 1] = '\0';
    store->namespaces[id - 1] = info;
    if (id > store->namespace_end)
        store->namespace_end = id;
    *out = info;
    return KVL_OK;
}

static kvl_err save(struct kvl_store *store, const struct kvl_namespace_info *info) {
    uint8_t key[4], value[KVL_NAMESPACE_RECORD_BYTES];
    kvl_le_put(key, info->id, sizeof(key));
    uint8_t *at = kvl_le_put(value, KVL_NAMESPACE_RECORD_VERSION, 1);
    memcpy(at, info->key.bytes, KVL_KEY_BYTES);
    at += KVL_KEY_BYTES;
    const struct kvl_geometry *g = &info->geometry;
    const uint32_t fields[] = {g->layers, g->kv_heads, g->k_dim, g->v_dim, g->block_tokens,
        g->layer_group, g->shard, info->dtype};
    for (unsigned i = 0; i < sizeof(fields) / sizeof(fields[0]); i++)
        at = kvl_le_put(at, fields[i], 4);
    at = kvl_le_put(at, g->layers == 0 ? info->layout.payload_bytes : 0, 8);
    memcpy(at, info->label, sizeof(info->label));
    return kvl_catalog_put(store, KVL_CATALOG_NAMESPACE, key, sizeof(key), value, sizeof(value));
}

void kvl_namespace_found(struct kvl_store *store, const void *key, uint32_t key_bytes,
    const void *value, uint32_t value_bytes) {
    const uint8_t *at = value;
    const uint8_t *id_at = key;
    if (key_bytes != 4 || value_bytes != KVL_NAMESPACE_RECORD_BYTES ||
        *at++ != KVL_NAMESPACE_RECORD_VERSION) {
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
    struct kvl_namespace_info *info = NULL;
    if (id == 0 || kvl_namespace_by_id(store, id) != NULL ||
        layout_of(&request, &layout) != KVL_OK ||
        add(store, id, &request, &layout, &info) != KVL_OK)
        KVL_WARN(store->log, "event=namespace_record_ignored id=%u", id);
}

kvl_err kvl_store_namespace_open(struct kvl_store *store,
    const struct kvl_namespace_request *request, struct kvl_namespace_info *out) {
    struct kvl_layout layout;
    if (kvl_key_is_zero(&request->key))
        return KVL_ERR_INVALID;
    kvl_err err = layout_of(request, &layout);
    if (err != KVL_OK)
        return err;
    struct kvl_namespace_info *info = kvl_namespace_by_key(store, &request->key);
    if (info != NULL && !is_same(info, request, &layout))
        return KVL_ERR_INVALID;
    if (info == NULL) {
        err = add(store, store->namespace_end + 1, request, &layout, &info);
        if (err != KVL_OK)
            return err;
        err = save(store, info);
        if (err != KVL_OK) {
            store->namespaces[info->id - 1] = NULL;
            store->namespace_end--;
            free(info);
            return err;
        }
    }
    *out = *info;
    return KVL_OK;
}

bool kvl_store_namespace_at(
    struct kvl_store *store, uint32_t index, struct kvl_namespace_info *out) {
    for (uint32_t i = 0; i < store->namespace_end; i++) {
        if (store->namespaces[i] == NULL || index-- > 0)
            continue;
        *out = *store->namespaces[i];
        return true;
    }
    return false;
}

void kvl_namespaces_free(struct kvl_store *store) {
    for (uint32_t i = 0; i < store->namespace_end; i++)
        free(store->namespaces[i]);
    free(store->namespaces);
}
