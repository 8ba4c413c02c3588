/* device_loss.c - a device that answers no more: its copies are gone, host and disk go on.
 *
 * It is lost once its tier says so, with CLOSED, and not before: a transfer that ends with another
 * error failed alone, and blocks that it was not about are as good as they were. From then on
 * nothing is placed there. What only it held is gone (and counted as shed, if it was to become
 * durable); slots under a lease stay their owners' until they release them or go. */
#include "store_private.h"

kvl_err kvl_device_answered(struct kvl_store *store, kvl_err status) {
    if (status != KVL_ERR_CLOSED)
        return status;
    store->device_lost = true;
    store->retry |= !store->device_forgotten;
    return KVL_ERR_IO;
}

/* False: nothing was lost with it. */
static bool forget_copy(struct kvl_store *store, uint32_t block) {
    struct kvl_entry *entry = kvl_table_at(store->table, block);
    if ((entry->flags & KVL_ENTRY_USED) == 0 || !kvl_entry_is_in(entry, KVL_TIER_DEVICE))
        return false;
    if (entry->tiers == 1u << KVL_TIER_DEVICE) {
        bool shed = (entry->flags & (KVL_ENTRY_UNPERSISTED | KVL_ENTRY_STORE_FAILED)) != 0;
        kvl_entry_tenant(store, entry)->shed_blocks += shed ? 1 : 0;
        kvl_block_drop(store, block, KVL_EVENT_EVICTED);
        return true;
    }
    kvl_place_clear(store, block, KVL_TIER_DEVICE);
    kvl_event_add(store, KVL_EVENT_EVICTED, KVL_TIER_DEVICE, entry);
    kvl_slot_release_unused(store, block, KVL_TIER_DEVICE);
    return false;
}

/* Whoever waits for blocks to be durable is not told that all is well. */
static void tell_those_who_flush(struct kvl_store *store) {
    for (struct kvl_operation *at = store->operations; at != NULL; at = at->next)
        if (at->settle != NULL && at->settle->remaining > 0)
            at->settle->status = KVL_ERR_IO;
}

void kvl_device_pump(struct kvl_store *store) {
    if (!store->device_lost || store->device_forgotten)
        return;
    store->device_forgotten = true;
    uint64_t lost = 0;
    uint32_t end = kvl_table_end(store->table);
    for (uint32_t block = 0; block < end; block++)
        lost += forget_copy(store, block) ? 1 : 0;
    if (lost > 0)
        tell_those_who_flush(store);
    KVL_ERROR(store->log, "event=device_lost device=%s blocks_lost=%llu",
        store->tiers[KVL_TIER_DEVICE].tier->ops->name, (unsigned long long)lost);
    kvl_log_fallback(store->log,
        "the device %s is lost: blocks are kept in host memory and on disk only, until a restart",
        store->tiers[KVL_TIER_DEVICE].tier->ops->name);
}
