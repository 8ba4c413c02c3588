/* pin.c - an operator's wish that blocks stay: a flag in the entry and a record in the catalog.
 *
 *   catalog PIN: key = block key, value = u8 1
 *
 * A pin keeps its entry, so at start the pins make entries first and the blocks found later fill
 * them. A pinned block leaves a memory tier only when another tier has it. */
#include <string.h>

#include "store_private.h"

static kvl_err save(struct kvl_store *store, const struct kvl_key *key, bool pinned) {
    static const uint8_t one = 1;
    if (!pinned)
        return kvl_catalog_remove(store, KVL_CATALOG_PIN, key->bytes, KVL_KEY_BYTES);
    return kvl_catalog_put(store, KVL_CATALOG_PIN, key->bytes, KVL_KEY_BYTES, &one, sizeof(one));
}

static void set_flag(struct kvl_store *store, struct kvl_entry *entry, bool pinned) {
    if (pinned) {
        entry->flags |= KVL_ENTRY_PINNED;
        kvl_entry_tenant(store, entry)->pins++;
    } else {
        entry->flags &= (uint16_t)~KVL_ENTRY_PINNED;
        kvl_entry_tenant(store, entry)->pins--;
    }
}

static uint32_t pin_leading(struct kvl_store *store, const struct kvl_key *keys, uint32_t count) {
    uint32_t known = 0;
    for (; known < count; known++) {
        uint32_t block = kvl_table_find(store->table, &keys[known]);
        if (block == KVL_BLOCK_NONE)
            break;
        struct kvl_entry *entry = kvl_table_at(store->table, block);
        if ((entry->flags & KVL_ENTRY_PINNED) != 0)
            continue;
        if (entry->tiers == 0)
            break;
        kvl_err err = save(store, &keys[known], true);
        if (err != KVL_OK) {
            KVL_WARN(store->log, "event=pin_not_saved error=%s", kvl_err_name(err));
            break;
        }
        set_flag(store, entry, true);
    }
    return known;
}

static uint32_t unpin_all(struct kvl_store *store, const struct kvl_key *keys, uint32_t count) {
    uint32_t ended = 0;
    for (uint32_t i = 0; i < count; i++) {
        uint32_t block = kvl_table_find(store->table, &keys[i]);
        if (block == KVL_BLOCK_NONE)
            continue;
        struct kvl_entry *entry = kvl_table_at(store->table, block);
        if ((entry->flags & KVL_ENTRY_PINNED) == 0)
            continue;
        kvl_err err = save(store, &keys[i], false);
        if (err != KVL_OK) {
            KVL_WARN(store->log, "event=pin_not_saved error=%s", kvl_err_name(err));
            break;
        }
        set_flag(store, entry, false);
        kvl_block_reap(store, block);
        ended++;
    }
    return ended;
}

uint32_t kvl_store_pin(
    struct kvl_store *store, const struct kvl_key *keys, uint32_t count, bool pinned) {
    return pinned ? pin_leading(store, keys, count) : unpin_all(store, keys, count);
}

void kvl_pin_clear(struct kvl_store *store, uint32_t block) {
    struct kvl_entry *entry = kvl_table_at(store->table, block);
    if ((entry->flags & KVL_ENTRY_PINNED) == 0)
        return;
    kvl_err err = save(store, &entry->key, false);
    if (err != KVL_OK)
        KVL_WARN(store->log, "event=pin_not_removed error=%s", kvl_err_name(err));
    set_flag(store, entry, false);
}

void kvl_pin_found(struct kvl_store *store, const void *key, uint32_t key_bytes) {
    struct kvl_key block_key;
    if (key_bytes != KVL_KEY_BYTES)
        return;
    memcpy(block_key.bytes, key, KVL_KEY_BYTES);
    uint32_t block = kvl_table_find(store->table, &block_key);
    if (block == KVL_BLOCK_NONE && kvl_table_insert(store->table, &block_key, &block) != KVL_OK) {
        KVL_ERROR(store->log, "event=pin_lost reason=out_of_memory");
        return;
    }
    struct kvl_entry *entry = kvl_table_at(store->table, block);
    if ((entry->flags & KVL_ENTRY_PINNED) == 0)
        set_flag(store, entry, true);
}
