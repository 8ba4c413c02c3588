/* demotion.c - moving blocks down: ahead of need, and when an operator asks.
 *
 * While the device has less free than a low-water mark, its oldest blocks are copied to the host
 * and then leave, so that alloc finds free slots. An operator's demote walks a chain from its end
 * (children first), a few blocks at a time, and waits for what is still being copied or written. */
#include <stdlib.h>

#include "store_private.h"

#define KVL_DEMOTIONS_MAX 8u
#define KVL_FREE_SLOTS_MIN 16u

struct room {
    uint64_t capacity_bytes, used_bytes, demoting_bytes;
};

static bool runs_full(const struct room *room, uint64_t slot_bytes_max) {
    uint64_t mark = room->capacity_bytes / 16;
    if (mark < KVL_FREE_SLOTS_MIN * slot_bytes_max)
        mark = KVL_FREE_SLOTS_MIN * slot_bytes_max;
    if (mark > room->capacity_bytes / 4)
        mark = room->capacity_bytes / 4;
    return room->capacity_bytes + room->demoting_bytes < room->used_bytes + mark;
}

/* The device, or a tenant's share of it, has less free than its low-water mark. */
static bool device_runs_full(struct kvl_store *store, const struct kvl_tenant *tenant) {
    struct kvl_tier_state *device = &store->tiers[KVL_TIER_DEVICE];
    struct kvl_tier_stats stats = device->tier->ops->stats(device->tier);
    struct room room = {stats.capacity_bytes, stats.used_bytes, store->demoting_bytes};
    if (tenant != NULL) {
        const struct kvl_tenant_tier *mine = &tenant->tiers[KVL_TIER_DEVICE];
        room = (struct room){mine->quota_bytes, mine->used_bytes, tenant->demoting_bytes};
    }
    return runs_full(&room, device->slot_bytes_max);
}

/* Starts to copy the block to the host; the device's copy goes when that is done. Errors: NOSPC,
 * AGAIN (memory not touched yet), NOMEM. */
static kvl_err demote_to_host(struct kvl_store *store, uint32_t block) {
    struct kvl_transfer *transfer = NULL;
    kvl_err err = kvl_transfer_to_host(store, block, &transfer);
    store->retry |= err == KVL_ERR_AGAIN;
    if (err != KVL_OK)
        return err;
    transfer->demotion = true;
    store->demoting_bytes += transfer->io.layout->slot_bytes;
    transfer->tenant->demoting_bytes += transfer->io.layout->slot_bytes;
    store->demoting++;
    return KVL_OK;
}

/* Not while its slot in the host is being filled, from disk perhaps: when that has come, the
 * device's copy may just go. */
static bool may_leave_device(void *arg, uint32_t block) {
    struct kvl_store *store = arg;
    const struct kvl_entry *entry = kvl_table_at(store->table, block);
    return kvl_entry_may_leave(entry, KVL_TIER_DEVICE) &&
           kvl_transfer_arriving(store, block, KVL_TIER_HOST) == NULL;
}

static void make_room_ahead(struct kvl_store *store, struct kvl_tenant *tenant) {
    /* Looking for victims in vain walks whole lists: it rests until something has changed. */
    bool *rests = tenant != NULL ? &tenant->demote_rests : &store->demote_rests;
    while (!*rests && store->demoting < KVL_DEMOTIONS_MAX && device_runs_full(store, tenant)) {
        uint32_t block = kvl_victim(store, KVL_TIER_DEVICE, tenant, may_leave_device, store);
        if (block == KVL_BLOCK_NONE) {
            *rests = true;
            return;
        }
        const struct kvl_entry *entry = kvl_table_at(store->table, block);
        bool on_disk = kvl_entry_is_in(entry, KVL_TIER_DISK);
        if (kvl_entry_is_in(entry, KVL_TIER_HOST)) {
            kvl_block_evict(store, block, KVL_TIER_DEVICE);
        } else if (demote_to_host(store, block) != KVL_OK) {
            if (!on_disk) { /* its last copy: it goes when the place is needed, not before */
                *rests = true;
                return;
            }
            kvl_block_evict(store, block, KVL_TIER_DEVICE);
        }
    }
}

void kvl_demote_finish(struct kvl_store *store, uint32_t block) {
    const struct kvl_entry *entry = kvl_table_at(store->table, block);
    if (kvl_entry_is_in(entry, KVL_TIER_DEVICE) && entry->leases[KVL_TIER_DEVICE] == 0 &&
        kvl_entry_may_leave(entry, KVL_TIER_DEVICE))
        kvl_block_evict(store, block, KVL_TIER_DEVICE);
}

/* ---- the operator's ----------------------------------------------------------------------- */

struct kvl_demote {
    struct kvl_operation operation;
    unsigned target;
    uint32_t open; /* items from here on are done */
    uint64_t moved;
    struct demote_item {
        uint32_t block;
        uint64_t generation;
        bool copying; /* our transfer to the host */
        bool done;
    } items[];
};

/* Takes one copy away, children or not: the operator said so. True: nothing to wait for. */
static bool leave_tier(
    struct kvl_store *store, struct kvl_demote *demote, uint32_t block, unsigned tier) {
    const struct kvl_entry *entry = kvl_table_at(store->table, block);
    if (!kvl_entry_is_in(entry, tier) || entry->leases[tier] > 0)
        return true;
    if (entry->busy[tier] > 0)
        return false;
    kvl_block_evict(store, block, tier);
    demote->moved++;
    return true;
}

static bool item_to_host(
    struct kvl_store *store, struct kvl_demote *demote, struct demote_item *item) {
    const struct kvl_entry *entry = kvl_table_at(store->table, item->block);
    bool on_device = kvl_entry_is_in(entry, KVL_TIER_DEVICE);
    if (item->copying && !on_device)
        demote->moved++;
    if (!on_device || entry->leases[KVL_TIER_DEVICE] > 0)
        return true;
    if (entry->busy[KVL_TIER_DEVICE] > 0)
        return false;
    if (item->copying || kvl_entry_is_in(entry, KVL_TIER_HOST))
        return leave_tier(store, demote, item->block, KVL_TIER_DEVICE);
    if (store->demoting >= KVL_DEMOTIONS_MAX ||
        kvl_transfer_arriving(store, item->block, KVL_TIER_HOST) != NULL)
        return false;
    kvl_err err = demote_to_host(store, item->block);
    item->copying = err == KVL_OK;
    return err != KVL_OK && err != KVL_ERR_AGAIN;
}

static bool item_to_disk(
    struct kvl_store *store, struct kvl_demote *demote, struct demote_item *item) {
    const struct kvl_entry *entry = kvl_table_at(store->table, item->block);
    if (!kvl_entry_is_in(entry, KVL_TIER_DISK))
        return (entry->flags & KVL_ENTRY_UNPERSISTED) == 0;
    return leave_tier(store, demote, item->block, KVL_TIER_DEVICE) &&
           leave_tier(store, demote, item->block, KVL_TIER_HOST);
}

static void demote_step(struct kvl_store *store, struct kvl_operation *operation) {
    struct kvl_demote *demote = kvl_container_of(operation, struct kvl_demote, operation);
    bool waiting = false;
    for (uint32_t i = demote->open; i-- > 0;) {
        struct demote_item *item = &demote->items[i];
        if (!item->done)
            item->done = !kvl_entry_is(store, item->block, item->generation) ||
                         (demote->target == KVL_TIER_HOST ? item_to_host(store, demote, item)
                                                          : item_to_disk(store, demote, item));
        if (item->done && !waiting)
            demote->open = i;
        waiting |= !item->done;
    }
    kvl_operation_value(&demote->operation, 0, demote->moved);
    if (waiting)
        return;
    kvl_operation_end(store, &demote->operation, KVL_OK);
    free(demote);
}

void kvl_demote_pump(struct kvl_store *store) {
    make_room_ahead(store, NULL);
    for (uint32_t i = 0; i < store->tenants.count; i++)
        if (store->tenants.tenants[i]->tiers[KVL_TIER_DEVICE].quota_bytes != 0)
            make_room_ahead(store, store->tenants.tenants[i]);
    kvl_operations_step(store, KVL_OPERATION_DEMOTE, demote_step);
}

kvl_err kvl_store_demote(struct kvl_store *store, uint32_t client, const struct kvl_key *keys,
    uint32_t count, enum kvl_tier_kind target, struct kvl_ticket *ticket) {
    *ticket = (struct kvl_ticket){0};
    if ((target != KVL_TIER_HOST && target != KVL_TIER_DISK) || count > KVL_CHAIN_BLOCKS_MAX ||
        store->tiers[target].tier == NULL)
        return KVL_ERR_INVALID;
    struct kvl_demote *demote = calloc(1, sizeof(*demote) + count * sizeof(demote->items[0]));
    if (demote == NULL)
        return KVL_ERR_NOMEM;
    kvl_err err =
        kvl_operation_begin(store, client, KVL_OPERATION_DEMOTE, &demote->operation, ticket);
    if (err != KVL_OK) {
        free(demote);
        return err;
    }
    demote->target = target;
    for (uint32_t i = 0; i < count; i++) {
        uint32_t block = kvl_table_find(store->table, &keys[i]);
        if (block != KVL_BLOCK_NONE)
            demote->items[demote->open++] = (struct demote_item){
                .block = block, .generation = kvl_table_at(store->table, block)->generation};
    }
    kvl_store_pump(store);
    return KVL_OK;
}
