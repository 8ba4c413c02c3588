/* orphan.c - slots and disk places of blocks that are gone while somebody still uses them.
 *
 * A cleared block under a lease is invisible at once, but its reader's memory must not change: the
 * orphan counts the users of that generation's copy and frees it when the last one leaves. */
#include <stdlib.h>

#include "store_private.h"

static struct kvl_orphan **bucket_of(struct kvl_store *store, uint64_t generation) {
    return &store->orphans[generation % KVL_ORPHAN_BUCKETS];
}

bool kvl_orphan_add(
    struct kvl_store *store, const struct kvl_entry *entry, unsigned tier, uint32_t users) {
    struct kvl_orphan *orphan = calloc(1, sizeof(*orphan));
    if (orphan == NULL)
        return false;
    struct kvl_orphan **bucket = bucket_of(store, entry->generation);
    *orphan = (struct kvl_orphan){.next = *bucket,
        .tenant = kvl_entry_tenant(store, entry),
        .key = entry->key,
        .slot_bytes = kvl_entry_layout(store, entry)->slot_bytes,
        .generation = entry->generation,
        .location = kvl_entry_location(entry, tier),
        .users = users,
        .tier = (uint8_t)tier};
    *bucket = orphan;
    return true;
}

static void end(struct kvl_store *store, const struct kvl_orphan *orphan) {
    struct kvl_tier *disk = store->tiers[KVL_TIER_DISK].tier;
    const struct kvl_slot_wish slot = {orphan->tenant, orphan->tier, orphan->slot_bytes};
    if (orphan->tier == KVL_TIER_DISK)
        disk->ops->discard(disk, &orphan->key, orphan->location);
    else
        kvl_slot_give_back(store, &slot, orphan->location);
}

void kvl_orphan_count_down(struct kvl_store *store, unsigned tier, uint64_t generation) {
    for (struct kvl_orphan **at = bucket_of(store, generation); *at != NULL; at = &(*at)->next) {
        struct kvl_orphan *orphan = *at;
        if (orphan->generation != generation || orphan->tier != tier)
            continue;
        if (--orphan->users == 0) {
            end(store, orphan);
            *at = orphan->next;
            free(orphan);
        }
        return;
    }
}

void kvl_orphan_moved(struct kvl_store *store, const struct kvl_key *key, uint64_t location) {
    for (uint32_t i = 0; i < KVL_ORPHAN_BUCKETS; i++)
        for (struct kvl_orphan *orphan = store->orphans[i]; orphan != NULL; orphan = orphan->next)
            if (orphan->tier == KVL_TIER_DISK && kvl_key_equal(&orphan->key, key))
                orphan->location = location;
}

void kvl_orphans_free(struct kvl_store *store) {
    for (uint32_t i = 0; i < KVL_ORPHAN_BUCKETS; i++) {
        while (store->orphans[i] != NULL) {
            struct kvl_orphan *orphan = store->orphans[i];
            store->orphans[i] = orphan->next;
            free(orphan);
        }
    }
}
