/* sealing.c - between a seal and the block's being visible: its hash is taken.
 *
 * Where the CPU can address the slot, a worker hashes it in place; otherwise its tier does
 * (KVL_IO_HASH). A tier that cannot ends the sealing: nothing becomes visible, the key is free
 * again for whoever waits for it, and the slot stays what the engine's lease makes of it, its
 * private memory, until the lease ends (an orphan meanwhile). Through what memory a tier takes a
 * hash is the tier's affair: no slot of the host is taken here, nor kept. */
#include "store_private.h"

struct kvl_sealing {
    struct kvl_job job;
    struct kvl_io io;
    struct kvl_store *store;
    struct kvl_tenant *tenant;
    const void *payload; /* NULL: its tier hashes it */
    uint64_t generation;
    uint64_t order;
    uint32_t block;
    unsigned tier;
    struct kvl_sealing *next; /* waiting for room in its tier */
};

static void visible(struct kvl_store *store, const struct kvl_sealing *sealing) {
    struct kvl_entry *entry = kvl_table_at(store->table, sealing->block);
    entry->content_hash = sealing->io.record.content_hash;
    entry->flags &= (uint16_t)~KVL_ENTRY_SEALING;
    entry->last_use_s = store->now_s;
    kvl_place_set(store, sealing->block, sealing->tier);
    sealing->tenant->sealed_blocks++;
    kvl_event_add(store, KVL_EVENT_STORED, sealing->tier, entry);
    kvl_waiters_sealed(store, sealing->block);
    kvl_persist_queue(store, sealing->block, sealing->order);
}

static void failed(struct kvl_store *store, const struct kvl_sealing *sealing, kvl_err status) {
    kvl_block_abandon(store, sealing->block);
    kvl_persist_done(store, sealing->tenant, sealing->order, status);
    if (store->closing)
        return;
    sealing->tenant->tiers[sealing->tier].errors++;
    KVL_WARN(store->log, "event=seal_failed tier=%u error=%s", sealing->tier, kvl_err_name(status));
    kvl_fill_end(store, sealing->block);
}

static void sealing_end(struct kvl_sealing *sealing, kvl_err status) {
    struct kvl_store *store = sealing->store;
    if (sealing->tier == KVL_TIER_DEVICE && store->device_lost)
        status = KVL_ERR_IO;
    if (!kvl_entry_is(store, sealing->block, sealing->generation))
        kvl_persist_done(store, sealing->tenant, sealing->order, KVL_OK); /* cleared meanwhile */
    else if (status == KVL_OK)
        visible(store, sealing);
    else
        failed(store, sealing, status);
    kvl_busy_down(store, sealing->block, sealing->generation, sealing->tier);
    kvl_pool_give(&store->seal_pool, sealing);
}

static void hash_run(struct kvl_job *job) {
    struct kvl_sealing *sealing = kvl_container_of(job, struct kvl_sealing, job);
    sealing->io.record.content_hash = kvl_content_hash(sealing->io.layout, sealing->payload, NULL);
}

static void hash_done(struct kvl_job *job) {
    sealing_end(kvl_container_of(job, struct kvl_sealing, job), KVL_OK);
}

static void on_hashed(struct kvl_io *io) {
    struct kvl_sealing *sealing = io->owner;
    sealing_end(sealing, kvl_device_answered(sealing->store, io->status));
}

/* ---- start -------------------------------------------------------------------------------- */

struct kvl_sealing *kvl_sealing_take(struct kvl_store *store) {
    return kvl_pool_take(&store->seal_pool, sizeof(struct kvl_sealing));
}

void kvl_sealing_give_back(struct kvl_store *store, struct kvl_sealing *sealing) {
    kvl_pool_give(&store->seal_pool, sealing);
}

static void wait_for_room(struct kvl_store *store, struct kvl_sealing *sealing) {
    if (store->sealing_first == NULL)
        store->sealing_first = sealing;
    else
        store->sealing_last->next = sealing;
    store->sealing_last = sealing;
}

void kvl_sealing_start(
    struct kvl_store *store, struct kvl_sealing *sealing, uint32_t block, unsigned tier) {
    const struct kvl_entry *entry = kvl_table_at(store->table, block);
    struct kvl_tier *owner = store->tiers[tier].tier;
    struct kvl_tenant *tenant = kvl_entry_tenant(store, entry);
    *sealing = (struct kvl_sealing){.job = {.run = hash_run, .done = hash_done},
        .io = {.op = KVL_IO_HASH,
            .priority = KVL_IO_PREFETCH,
            .layout = kvl_entry_layout(store, entry),
            .location = kvl_entry_location(entry, tier),
            .complete = on_hashed,
            .owner = sealing},
        .store = store,
        .tenant = tenant,
        .payload = owner->ops->address(owner, kvl_entry_location(entry, tier)),
        .generation = entry->generation,
        .order = kvl_persist_enter(store, tenant),
        .block = block,
        .tier = tier};
    kvl_entry_record(store, block, &sealing->io.record);
    kvl_busy_up(store, block, tier);
    if (sealing->payload != NULL)
        kvl_workers_submit(store->workers, &sealing->job, true);
    else
        wait_for_room(store, sealing);
}

static struct kvl_sealing *pop(struct kvl_store *store) {
    struct kvl_sealing *sealing = store->sealing_first;
    store->sealing_first = sealing->next;
    return sealing;
}

void kvl_sealing_pump(struct kvl_store *store) {
    struct kvl_tier *device = store->tiers[KVL_TIER_DEVICE].tier;
    while (store->sealing_first != NULL) {
        kvl_err err = device->ops->submit(device, &store->sealing_first->io);
        if (err == KVL_ERR_AGAIN) {
            store->retry = true;
            return;
        }
        struct kvl_sealing *sealing = pop(store);
        if (err != KVL_OK)
            sealing_end(sealing, kvl_device_answered(store, err));
    }
}

void kvl_sealings_cancel_waiting(struct kvl_store *store) {
    while (store->sealing_first != NULL)
        sealing_end(pop(store), KVL_ERR_CANCELED);
}
