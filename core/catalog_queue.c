/* catalog_queue.c - puts into the catalog that could not be taken at once, in order.
 *
 * The catalog says AGAIN while its queue is full; nobody may wait, so the records stand here until
 * a pump finds room. A flush ends only when none are left. */
#include <stdlib.h>
#include <string.h>

#include "store_private.h"

#define KVL_PUTS_MAX 4096u

struct kvl_catalog_put {
    struct kvl_catalog_put *next;
    enum kvl_catalog_kind kind;
    bool remove;
    uint32_t key_bytes;
    uint32_t value_bytes;
    uint8_t bytes[]; /* key, then value */
};

static kvl_err hand_over(struct kvl_store *store, const struct kvl_catalog_put *put) {
    const struct kvl_catalog_ops *ops = store->catalog->ops;
    if (put->remove)
        return ops->remove(store->catalog, put->kind, put->bytes, put->key_bytes);
    return ops->put(store->catalog, put->kind, put->bytes, put->key_bytes,
        put->bytes + put->key_bytes, put->value_bytes);
}

static kvl_err wait_in_line(struct kvl_store *store, enum kvl_catalog_kind kind, const void *key,
    uint32_t key_bytes, const void *value, uint32_t value_bytes, bool remove) {
    if (store->puts_count >= KVL_PUTS_MAX)
        return KVL_ERR_AGAIN;
    struct kvl_catalog_put *put = malloc(sizeof(*put) + (size_t)key_bytes + value_bytes);
    if (put == NULL)
        return KVL_ERR_NOMEM;
    *put = (struct kvl_catalog_put){
        .kind = kind, .remove = remove, .key_bytes = key_bytes, .value_bytes = value_bytes};
    memcpy(put->bytes, key, key_bytes);
    if (value_bytes > 0)
        memcpy(put->bytes + key_bytes, value, value_bytes);
    if (store->puts_last != NULL)
        store->puts_last->next = put;
    else
        store->puts_first = put;
    store->puts_last = put;
    store->puts_count++;
    store->retry = true;
    return KVL_OK;
}

kvl_err kvl_catalog_put(struct kvl_store *store, enum kvl_catalog_kind kind, const void *key,
    uint32_t key_bytes, const void *value, uint32_t value_bytes) {
    if (store->catalog == NULL)
        return KVL_OK;
    kvl_err err = KVL_ERR_AGAIN;
    if (store->puts_count == 0)
        err = store->catalog->ops->put(store->catalog, kind, key, key_bytes, value, value_bytes);
    if (err != KVL_ERR_AGAIN)
        return err;
    return wait_in_line(store, kind, key, key_bytes, value, value_bytes, false);
}

kvl_err kvl_catalog_remove(
    struct kvl_store *store, enum kvl_catalog_kind kind, const void *key, uint32_t key_bytes) {
    if (store->catalog == NULL)
        return KVL_OK;
    kvl_err err = KVL_ERR_AGAIN;
    if (store->puts_count == 0)
        err = store->catalog->ops->remove(store->catalog, kind, key, key_bytes);
    if (err != KVL_ERR_AGAIN)
        return err;
    return wait_in_line(store, kind, key, key_bytes, NULL, 0, true);
}

static void drop_first(struct kvl_store *store) {
    struct kvl_catalog_put *put = store->puts_first;
    store->puts_first = put->next;
    if (store->puts_first == NULL)
        store->puts_last = NULL;
    store->puts_count--;
    free(put);
}

void kvl_catalog_pump(struct kvl_store *store) {
    while (store->puts_first != NULL) {
        kvl_err err = hand_over(store, store->puts_first);
        if (err == KVL_ERR_AGAIN || err == KVL_ERR_NOMEM) { /* later there may be room */
            store->retry = true;
            return;
        }
        if (err != KVL_OK)
            KVL_ERROR(store->log, "event=catalog_put_failed kind=%u error=%s",
                (unsigned)store->puts_first->kind, kvl_err_name(err));
        drop_first(store);
    }
}

void kvl_catalog_queue_free(struct kvl_store *store) {
    while (store->puts_first != NULL)
        drop_first(store);
}
