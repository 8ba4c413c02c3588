/* transfer.c - moving a block's bytes between tiers, one whole block at a time.
 *
 *   disk -> device, host     disk LOAD into the slot's address
 *   host -> device           device STORE from the host slot
 *   device -> host           device LOAD into the host slot
 *   device, host -> disk     disk STORE from the slot
 *
 * A device that the CPU cannot address takes two hops: disk to a host slot, then as host -> device
 * (staging.c).
 * A transfer waits here while its carrier says AGAIN. Both copies count it as a user, so neither
 * goes while it runs; a block that is cleared meanwhile leaves an orphan behind (orphan.c). */
#include <assert.h>

#include "store_private.h"

static struct kvl_transfer **bucket_of(struct kvl_store *store, uint32_t block, unsigned to) {
    return &store->arriving[(block * KVL_MEMORY_TIERS + to) % KVL_ARRIVING_BUCKETS];
}

struct kvl_transfer *kvl_transfer_arriving(struct kvl_store *store, uint32_t block, unsigned to) {
    uint64_t generation = kvl_table_at(store->table, block)->generation;
    struct kvl_transfer *transfer = *bucket_of(store, block, to);
    while (transfer != NULL && (transfer->block != block || transfer->to != to ||
                                   transfer->io.record.generation != generation))
        transfer = transfer->next_arriving;
    return transfer;
}

static void arriving_remove(struct kvl_store *store, struct kvl_transfer *transfer) {
    struct kvl_transfer **at = bucket_of(store, transfer->block, transfer->to);
    while (*at != transfer)
        at = &(*at)->next_arriving;
    *at = transfer->next_arriving;
}

void kvl_entry_record(struct kvl_store *store, uint32_t block, struct kvl_block_record *record) {
    const struct kvl_entry *entry = kvl_table_at(store->table, block);
    const struct kvl_namespace_info *info = kvl_namespace_by_id(store, entry->namespace_id);
    *record = (struct kvl_block_record){
        .key = entry->key,
        .namespace_id = entry->namespace_id,
        .token_count = entry->token_count,
        .generation = entry->generation,
        .content_hash = entry->content_hash,
    };
    if (entry->parent != KVL_BLOCK_NONE)
        record->parent = kvl_table_at(store->table, entry->parent)->key;
    else if (info->geometry.layers != 0)
        record->parent = info->key;
}

static struct kvl_tier *tier_of(struct kvl_store *store, unsigned tier) {
    return store->tiers[tier].tier;
}

static uint8_t *slot_address(
    struct kvl_store *store, const struct kvl_entry *entry, unsigned tier) {
    struct kvl_tier *owner = tier_of(store, tier);
    return owner->ops->address(owner, kvl_entry_location(entry, tier));
}

/* Where the copy is made from; the nearest, but never a slot that is itself only arriving. */
static unsigned source_of(struct kvl_store *store, const struct kvl_entry *entry, unsigned to) {
    if (to == KVL_TIER_DEVICE)
        return kvl_entry_is_in(entry, KVL_TIER_HOST) ? KVL_TIER_HOST : KVL_TIER_DISK;
    if (to == KVL_TIER_HOST)
        return kvl_entry_is_in(entry, KVL_TIER_DEVICE) ? KVL_TIER_DEVICE : KVL_TIER_DISK;
    if (kvl_entry_is_in(entry, KVL_TIER_HOST) ||
        slot_address(store, entry, KVL_TIER_DEVICE) == NULL)
        return KVL_TIER_HOST;
    return KVL_TIER_DEVICE;
}

static void on_frames(struct kvl_io *io, uint32_t frames) {
    struct kvl_transfer *transfer = io->owner;
    for (struct kvl_piece *piece = transfer->pieces; piece != NULL; piece = piece->next)
        kvl_piece_progress(transfer->store, piece, frames, io->layout);
}

static void on_complete(struct kvl_io *io) {
    struct kvl_transfer *transfer = io->owner;
    kvl_err status = io->status;
    if (transfer->carrier == KVL_TIER_DEVICE)
        status = kvl_device_answered(transfer->store, status);
    kvl_transfer_end(transfer, status);
}

static void prepare_hop(struct kvl_store *store, struct kvl_transfer *transfer) {
    const struct kvl_entry *entry = kvl_table_at(store->table, transfer->block);
    unsigned from = transfer->from, to = transfer->to;
    struct kvl_io *io = &transfer->io;
    if (from == KVL_TIER_DISK) {
        transfer->carrier = KVL_TIER_DISK;
        io->op = KVL_IO_LOAD;
        io->location = entry->disk_location;
        io->buffer = slot_address(store, entry, to);
        return;
    }
    transfer->carrier = to == KVL_TIER_DISK ? KVL_TIER_DISK : KVL_TIER_DEVICE;
    io->op = to == KVL_TIER_HOST ? KVL_IO_LOAD : KVL_IO_STORE;
    io->location = to == KVL_TIER_DISK ? 0 : kvl_entry_location(entry, KVL_TIER_DEVICE);
    io->buffer = slot_address(store, entry, to == KVL_TIER_DISK ? from : KVL_TIER_HOST);
}

void kvl_transfer_hop(struct kvl_store *store, struct kvl_transfer *transfer) {
    prepare_hop(store, transfer);
    kvl_transfer_queue_push(
        &store->tiers[transfer->carrier].waiting[transfer->io.priority], transfer);
}

static void transfer_link(struct kvl_store *store, struct kvl_transfer *transfer) {
    transfer->next = store->transfers;
    if (store->transfers != NULL)
        store->transfers->prev = transfer;
    store->transfers = transfer;
    store->transfer_count++;
}

static void transfer_free(struct kvl_store *store, struct kvl_transfer *transfer) {
    if (transfer->prev != NULL)
        transfer->prev->next = transfer->next;
    else
        store->transfers = transfer->next;
    if (transfer->next != NULL)
        transfer->next->prev = transfer->prev;
    store->transfer_count--;
    kvl_pool_give(&store->transfer_pool, transfer);
}

struct kvl_transfer *kvl_transfer_start(
    struct kvl_store *store, uint32_t block, unsigned to, enum kvl_io_priority priority) {
    struct kvl_entry *entry = kvl_table_at(store->table, block);
    struct kvl_transfer *transfer = kvl_pool_take(&store->transfer_pool, sizeof(*transfer));
    if (transfer == NULL)
        return NULL;
    *transfer = (struct kvl_transfer){.store = store,
        .tenant = kvl_entry_tenant(store, entry),
        .block = block,
        .to = (uint8_t)to,
        .from = (uint8_t)source_of(store, entry, to)};
    transfer->io = (struct kvl_io){
        .priority = priority,
        .layout = kvl_entry_layout(store, entry),
        .frame_ready = on_frames,
        .complete = on_complete,
        .owner = transfer,
    };
    kvl_entry_record(store, block, &transfer->io.record);
    kvl_busy_up(store, block, transfer->from);
    kvl_busy_up(store, block, to);
    transfer->origin = transfer->from;
    if (to < KVL_MEMORY_TIERS) {
        struct kvl_transfer **bucket = bucket_of(store, block, to);
        transfer->next_arriving = *bucket;
        *bucket = transfer;
    }
    transfer_link(store, transfer);
    if (transfer->from == KVL_TIER_DISK && to == KVL_TIER_DEVICE && store->device_is_far)
        kvl_stage_wait(store, transfer);
    else
        kvl_transfer_hop(store, transfer);
    return transfer;
}

kvl_err kvl_transfer_to_host(struct kvl_store *store, uint32_t block, struct kvl_transfer **out) {
    const struct kvl_entry *entry = kvl_table_at(store->table, block);
    *out = NULL;
    if (tier_of(store, KVL_TIER_HOST) == NULL)
        return KVL_ERR_NOSPC;
    if (!kvl_entry_has_slot(entry, KVL_TIER_HOST)) {
        uint64_t location = 0;
        kvl_busy_up(store, block, KVL_TIER_DEVICE); /* not a victim of its own making room */
        const struct kvl_slot_wish wish = kvl_entry_slot_wish(store, entry, KVL_TIER_HOST);
        kvl_err err = kvl_slot_reserve(store, &wish, true, &location);
        if (err == KVL_OK)
            kvl_slot_attach(store, block, KVL_TIER_HOST, location);
        kvl_busy_down(store, block, entry->generation, KVL_TIER_DEVICE);
        if (err != KVL_OK)
            return err;
    }
    *out = kvl_transfer_start(store, block, KVL_TIER_HOST, KVL_IO_BEHIND);
    if (*out != NULL)
        return KVL_OK;
    kvl_slot_release_unused(store, block, KVL_TIER_HOST);
    return KVL_ERR_NOMEM;
}

/* ---- the end ------------------------------------------------------------------------------ */

static void count_failure(
    struct kvl_store *store, const struct kvl_transfer *transfer, kvl_err status) {
    transfer->tenant->tiers[transfer->carrier].errors++;
    KVL_WARN(store->log, "event=transfer_failed tier=%u from=%u to=%u error=%s", transfer->carrier,
        transfer->from, transfer->to, kvl_err_name(status));
}

/* NOTFOUND: the disk evicted the block while its transfer waited; it tells so too, later. */
static void source_failed(
    struct kvl_store *store, const struct kvl_transfer *transfer, kvl_err status) {
    if (status == KVL_ERR_CORRUPT) {
        kvl_copy_is_bad(store, transfer->block, transfer->from);
    } else if (status == KVL_ERR_NOTFOUND && transfer->from == KVL_TIER_DISK &&
               kvl_entry_is_in(kvl_table_at(store->table, transfer->block), KVL_TIER_DISK)) {
        kvl_place_clear(store, transfer->block, KVL_TIER_DISK);
        transfer->tenant->tiers[KVL_TIER_DISK].evicted++;
        kvl_event_add(
            store, KVL_EVENT_EVICTED, KVL_TIER_DISK, kvl_table_at(store->table, transfer->block));
    }
}

static void land(struct kvl_store *store, struct kvl_transfer *transfer, kvl_err status) {
    uint32_t block = transfer->block;
    if (!kvl_entry_is(store, block, transfer->io.record.generation))
        return;
    struct kvl_entry *entry = kvl_table_at(store->table, block);
    if (status != KVL_OK) {
        if (!transfer->uncounted)
            source_failed(store, transfer, status);
        return;
    }
    kvl_place_set(store, block, transfer->to);
    if (!transfer->demotion && !transfer->quiet)
        kvl_event_add(store, KVL_EVENT_RESTORED, transfer->to, entry);
}

/* The memory copy was bad and another tier has the block: whoever waits gets it from there. Not
 * after a bad load from disk, whose first layers may have been announced and be in use. */
static bool try_other_copy(struct kvl_store *store, struct kvl_transfer *transfer, kvl_err status) {
    if (status != KVL_ERR_CORRUPT || transfer->from == KVL_TIER_DISK || transfer->pieces == NULL ||
        store->closing || !kvl_entry_is(store, transfer->block, transfer->io.record.generation))
        return false;
    struct kvl_transfer *other =
        kvl_transfer_start(store, transfer->block, transfer->to, transfer->io.priority);
    if (other != NULL)
        other->pieces = transfer->pieces;
    return other != NULL;
}

static void end_arrival(struct kvl_store *store, struct kvl_transfer *transfer, kvl_err status) {
    uint64_t generation = transfer->io.record.generation;
    arriving_remove(store, transfer);
    if (transfer->demotion) {
        store->demoting_bytes -= transfer->io.layout->slot_bytes;
        transfer->tenant->demoting_bytes -= transfer->io.layout->slot_bytes;
        store->demoting--;
    }
    land(store, transfer, status);
    kvl_stage_landed(store, transfer, status);
    struct kvl_piece *piece = try_other_copy(store, transfer, status) ? NULL : transfer->pieces;
    while (piece != NULL) {
        struct kvl_piece *next = piece->next;
        kvl_piece_end(store, piece, status, transfer->origin, transfer->io.layout->payload_bytes);
        piece = next;
    }
    kvl_busy_down(store, transfer->block, generation, transfer->from);
    kvl_busy_down(store, transfer->block, generation, transfer->to);
    if (transfer->demotion && status == KVL_OK && kvl_entry_is(store, transfer->block, generation))
        kvl_demote_finish(store, transfer->block);
    if (transfer->for_disk)
        kvl_persist_copied(store, transfer, status);
}

static void end_store(struct kvl_store *store, struct kvl_transfer *transfer, kvl_err status) {
    uint64_t generation = transfer->io.record.generation;
    uint32_t block = transfer->block;
    kvl_persist_stored(store, transfer, status);
    kvl_busy_down(store, block, generation, transfer->from);
    /* An abandoned entry left no orphan on the disk: nothing was there yet. */
    if (kvl_entry_is(store, block, generation))
        kvl_busy_down(store, block, generation, KVL_TIER_DISK);
}

static void count_bytes(const struct kvl_transfer *transfer) {
    uint64_t bytes = transfer->io.layout->payload_bytes;
    struct kvl_tenant_tier *tiers = transfer->tenant->tiers;
    tiers[transfer->from].read_bytes += bytes;
    tiers[transfer->to].written_bytes +=
        transfer->to == KVL_TIER_DISK ? transfer->io.stored_bytes : bytes;
}

void kvl_transfer_end(struct kvl_transfer *transfer, kvl_err status) {
    struct kvl_store *store = transfer->store;
    if (transfer->to == KVL_TIER_DEVICE && store->device_lost && status == KVL_OK)
        status = KVL_ERR_IO;
    if (status != KVL_OK && !transfer->uncounted && !(store->closing && status == KVL_ERR_CANCELED))
        count_failure(store, transfer, status);
    store->demote_rests = transfer->tenant->demote_rests = false;
    if (status == KVL_OK)
        count_bytes(transfer);
    if (transfer->to == KVL_TIER_DISK)
        end_store(store, transfer, status);
    else
        end_arrival(store, transfer, status);
    transfer_free(store, transfer);
}

/* ---- submitting --------------------------------------------------------------------------- */

/* A block that moved on disk while its transfer waited. */
static void refresh_location(struct kvl_store *store, struct kvl_transfer *transfer) {
    if (transfer->from == KVL_TIER_DISK &&
        kvl_entry_is(store, transfer->block, transfer->io.record.generation))
        transfer->io.location = kvl_table_at(store->table, transfer->block)->disk_location;
}

/* False: the carrier is full. */
static bool submit(struct kvl_store *store, struct kvl_transfer *transfer, kvl_err *status) {
    struct kvl_tier *carrier = tier_of(store, transfer->carrier);
    refresh_location(store, transfer);
    *status = carrier->ops->submit(carrier, &transfer->io);
    store->retry |= *status == KVL_ERR_AGAIN;
    return *status != KVL_ERR_AGAIN;
}

static void pump_tier(struct kvl_store *store, struct kvl_tier_state *state) {
    for (unsigned priority = 0; priority < KVL_PRIORITIES; priority++) {
        struct kvl_transfer_queue *queue = &state->waiting[priority];
        while (queue->first != NULL) {
            kvl_err status = KVL_OK;
            if (!submit(store, queue->first, &status))
                return;
            struct kvl_transfer *transfer = kvl_transfer_queue_pop(queue);
            if (transfer->carrier == KVL_TIER_DEVICE)
                status = kvl_device_answered(store, status);
            if (status != KVL_OK)
                kvl_transfer_end(transfer, status);
        }
    }
}

void kvl_transfer_pump(struct kvl_store *store) {
    for (unsigned tier = 0; tier < KVL_TIER_COUNT; tier++)
        if (store->tiers[tier].tier != NULL)
            pump_tier(store, &store->tiers[tier]);
}

void kvl_transfers_cancel_waiting(struct kvl_store *store) {
    for (unsigned tier = 0; tier < KVL_TIER_COUNT; tier++)
        for (unsigned priority = 0; priority < KVL_PRIORITIES; priority++) {
            struct kvl_transfer_queue *queue = &store->tiers[tier].waiting[priority];
            while (queue->first != NULL)
                kvl_transfer_end(kvl_transfer_queue_pop(queue), KVL_ERR_CANCELED);
        }
}
