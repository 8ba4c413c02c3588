/* persist.c - sealed blocks go to disk behind, in the order of their seals; flush waits for them.
 *
 *   seal -> enter (order n) -> hashed -> queue -> disk STORE -> durable -> done (order n)
 *
 * A few transfers are under way at a time: enough bytes for the disk's group commits, few enough
 * that a restore does not stand behind them. What the disk refuses stays in memory, marked; a
 * flush tries it once more; likewise what a tenant's quota of the disk has no room for (quota.c).
 * What only a far device holds is copied to the host first, a few at a time, and stored from there.
 * Memory that is full of blocks on their way to the disk says NOSPC; once the disk has stored
 * nothing for KVL_STUCK_NS, or told nothing while it loads, the oldest of them are given up
 * instead, counted as shed. Without a disk a seal is done once hashed; a copy in the host, while
 * that has room to spare, lets the block leave the device at once when its slot is needed. */
#include <assert.h>
#include <stdlib.h>

#include "clock.h"
#include "planted.h"
#include "store_private.h"

#define KVL_STORING_MAX 1024u
#define KVL_STORING_FEW 32u
#define KVL_STORING_BYTES (64u << 20)
#define KVL_PERSIST_COPIES_MAX 32u /* to the host, at a time */

uint64_t kvl_persist_enter(struct kvl_store *store, struct kvl_tenant *tenant) {
    store->persist_pending++;
    tenant->persist_pending++;
    return ++store->persist_order;
}

void kvl_persist_done(
    struct kvl_store *store, struct kvl_tenant *tenant, uint64_t order, kvl_err status) {
    assert(store->persist_pending > 0 && tenant->persist_pending > 0);
    store->persist_pending--;
    tenant->persist_pending--;
    for (struct kvl_operation *at = store->operations; at != NULL; at = at->next) {
        struct kvl_settle *settle = at->settle;
        if (settle == NULL || settle->order < order || settle->remaining == 0 ||
            (settle->tenant != NULL && settle->tenant != tenant))
            continue;
        settle->remaining--;
        if (status != KVL_OK)
            settle->status = status;
    }
}

static void push(struct kvl_store *store, struct kvl_persist_item item) {
    uint32_t last = (store->persist_first + store->persist_count) % store->persist_room;
    store->persist_items[last] = item;
    store->persist_count++;
}

static void push_front(struct kvl_store *store, struct kvl_persist_item item) {
    store->persist_first = (store->persist_first + store->persist_room - 1) % store->persist_room;
    store->persist_items[store->persist_first] = item;
    store->persist_count++;
}

static struct kvl_persist_item pop(struct kvl_store *store) {
    struct kvl_persist_item item = store->persist_items[store->persist_first];
    store->persist_first = (store->persist_first + 1) % store->persist_room;
    store->persist_count--;
    return item;
}

/* Blocks that memory had to give up meanwhile: however long the disk is stuck, no more waits for it
 * than is in memory. */
static void forget_gone(struct kvl_store *store) {
    for (uint32_t left = store->persist_count; left > 0; left--) {
        struct kvl_persist_item item = pop(store);
        if (kvl_entry_is(store, item.block, item.generation))
            push(store, item);
        else
            kvl_persist_done(store, item.tenant, item.order, KVL_OK);
    }
}

static kvl_err grow(struct kvl_store *store) {
    uint32_t room = store->persist_room == 0 ? 256 : store->persist_room * 2;
    struct kvl_persist_item *items = malloc(room * sizeof(items[0]));
    if (items == NULL)
        return KVL_ERR_NOMEM;
    for (uint32_t i = 0; i < store->persist_count; i++)
        items[i] = store->persist_items[(store->persist_first + i) % store->persist_room];
    free(store->persist_items);
    store->persist_items = items;
    store->persist_room = room;
    store->persist_first = 0;
    return KVL_OK;
}

static kvl_err make_room(struct kvl_store *store) {
    forget_gone(store);
    kvl_err err = store->persist_count >= store->persist_room / 2 ? grow(store) : KVL_OK;
    return store->persist_count < store->persist_room ? KVL_OK : err;
}

#define KVL_REFUSED (KVL_ENTRY_STORE_FAILED | KVL_ENTRY_OVER_QUOTA)

/* why: one of KVL_REFUSED. Only the disk's own refusals are a failure of the store. */
static void mark_refused(struct kvl_store *store, struct kvl_entry *entry, uint16_t why) {
    entry->flags &= (uint16_t)~KVL_ENTRY_UNPERSISTED;
    kvl_store_failed_clear(store, entry);
    entry->flags |= why;
    kvl_entry_tenant(store, entry)->store_failed_blocks++;
    store->store_failed_blocks += why == KVL_ENTRY_STORE_FAILED;
}

void kvl_store_failed_clear(struct kvl_store *store, struct kvl_entry *entry) {
    if ((entry->flags & KVL_REFUSED) == 0)
        return;
    store->store_failed_blocks -= (entry->flags & KVL_ENTRY_STORE_FAILED) != 0;
    kvl_entry_tenant(store, entry)->store_failed_blocks--;
    entry->flags &= (uint16_t)~KVL_REFUSED;
}

static void mirror(struct kvl_store *store, uint32_t block) {
    const struct kvl_entry *entry = kvl_table_at(store->table, block);
    const struct kvl_slot_wish wish = kvl_entry_slot_wish(store, entry, KVL_TIER_HOST);
    uint64_t location = 0;
    if (store->closing || store->tiers[KVL_TIER_HOST].tier == NULL ||
        !kvl_entry_is_in(entry, KVL_TIER_DEVICE) || kvl_entry_has_slot(entry, KVL_TIER_HOST) ||
        kvl_slot_take(store, &wish, &location) != KVL_OK)
        return;
    kvl_slot_attach(store, block, KVL_TIER_HOST, location);
    struct kvl_transfer *transfer = kvl_transfer_start(store, block, KVL_TIER_HOST, KVL_IO_BEHIND);
    if (transfer == NULL)
        kvl_slot_release_unused(store, block, KVL_TIER_HOST);
    else
        transfer->quiet = true;
}

void kvl_persist_queue(struct kvl_store *store, uint32_t block, uint64_t order) {
    struct kvl_entry *entry = kvl_table_at(store->table, block);
    struct kvl_tenant *tenant = kvl_entry_tenant(store, entry);
    if (store->tiers[KVL_TIER_DISK].tier == NULL) {
        mirror(store, block);
        kvl_persist_done(store, tenant, order, KVL_OK);
        return;
    }
    if (store->persist_count == store->persist_room && make_room(store) != KVL_OK) {
        mark_refused(store, entry, KVL_ENTRY_STORE_FAILED);
        kvl_persist_done(store, tenant, order, KVL_ERR_NOMEM);
        return;
    }
    kvl_store_failed_clear(store, entry);
    entry->flags |= KVL_ENTRY_UNPERSISTED;
    push(store, (struct kvl_persist_item){tenant, block, entry->generation, order});
}

static void log_failure(struct kvl_store *store, kvl_err status) {
    if (store->store_failure_logged)
        return;
    store->store_failure_logged = true;
    kvl_log_fallback(store->log,
        "the disk refuses blocks (%s): they stay in memory until it takes them again",
        kvl_err_text(status));
}

/* A record's header and its frames' padding come on top of the payload. */
static uint64_t disk_bytes_most(const struct kvl_layout *layout) {
    return layout->slot_bytes + (1u + layout->frame_count) * (uint64_t)KVL_PAGE_BYTES;
}

void kvl_persist_stored(struct kvl_store *store, struct kvl_transfer *transfer, kvl_err status) {
    uint32_t block = transfer->block;
    const struct kvl_io *io = &transfer->io;
    bool known = kvl_entry_is(store, block, io->record.generation);
    store->storing--;
    store->stored_ns = kvl_clock_ns();
    store->storing_bytes -= io->layout->slot_bytes;
    transfer->tenant->storing_bytes -= disk_bytes_most(io->layout);
    if (known && status == KVL_OK) {
        struct kvl_entry *entry = kvl_table_at(store->table, block);
        entry->flags &= (uint16_t)~KVL_ENTRY_UNPERSISTED;
        entry->disk_location = io->location;
        entry->disk_bytes = io->stored_bytes > UINT32_MAX ? UINT32_MAX : (uint32_t)io->stored_bytes;
        kvl_place_set(store, block, KVL_TIER_DISK);
        kvl_event_add(store, KVL_EVENT_PERSISTED, KVL_TIER_DISK, entry);
        store->store_failure_logged = false;
        store->kept_recent_bytes = 0;
    } else if (status == KVL_OK) {
        struct kvl_tier *disk = store->tiers[KVL_TIER_DISK].tier;
        disk->ops->discard(disk, &io->record.key, io->location);
    } else if (known && status == KVL_ERR_CORRUPT) {
        kvl_copy_is_bad(store, block, transfer->from);
        if (kvl_entry_is(store, block, io->record.generation)) {
            kvl_persist_queue(store, block, transfer->order); /* from the copy that is left */
            return;
        }
    } else if (known) {
        mark_refused(store, kvl_table_at(store->table, block), KVL_ENTRY_STORE_FAILED);
        log_failure(store, status);
    }
    kvl_persist_done(store, transfer->tenant, transfer->order, known ? status : KVL_OK);
}

/* A block that only an unreachable device holds needs a host copy before it can be stored. */
static bool is_reachable(struct kvl_store *store, const struct kvl_entry *entry) {
    struct kvl_tier *device = store->tiers[KVL_TIER_DEVICE].tier;
    return kvl_entry_is_in(entry, KVL_TIER_HOST) ||
           (kvl_entry_is_in(entry, KVL_TIER_DEVICE) &&
               device->ops->address(device, kvl_entry_location(entry, KVL_TIER_DEVICE)) != NULL);
}

/* The transfer that brings the block to the host: one that runs, or a new one. Errors: NOTFOUND,
 * AGAIN, NOSPC, NOMEM. */
static kvl_err copy_to_host(struct kvl_store *store, uint32_t block, struct kvl_transfer **out) {
    const struct kvl_entry *entry = kvl_table_at(store->table, block);
    *out = kvl_transfer_arriving(store, block, KVL_TIER_HOST);
    if (*out != NULL)
        return (*out)->for_disk ? KVL_ERR_AGAIN : KVL_OK;
    if (!kvl_entry_is_in(entry, KVL_TIER_DEVICE))
        return KVL_ERR_NOTFOUND;
    kvl_err err = kvl_transfer_to_host(store, block, out);
    if (err == KVL_OK)
        (*out)->quiet = true;
    return err;
}

static void refuse(struct kvl_store *store, const struct kvl_persist_item *item, kvl_err err) {
    mark_refused(store, kvl_table_at(store->table, item->block), KVL_ENTRY_STORE_FAILED);
    kvl_persist_done(store, item->tenant, item->order, err);
}

/* False: the host has no room now, nor for the next one. */
static bool copy_first(struct kvl_store *store, const struct kvl_persist_item *item) {
    struct kvl_transfer *copy = NULL;
    kvl_err err = copy_to_host(store, item->block, &copy);
    if (err == KVL_ERR_AGAIN || err == KVL_ERR_NOSPC) {
        store->retry = true;
        kvl_persist_queue(store, item->block, item->order);
        return false;
    }
    if (err != KVL_OK) {
        refuse(store, item, err);
        return true;
    }
    copy->for_disk = true;
    copy->order = item->order;
    store->persist_copies++;
    return true;
}

/* What failed stays in the device, marked: a flush tries it again. */
void kvl_persist_copied(struct kvl_store *store, struct kvl_transfer *transfer, kvl_err status) {
    const struct kvl_persist_item item = {
        transfer->tenant, transfer->block, transfer->io.record.generation, transfer->order};
    store->persist_copies--;
    if (!kvl_entry_is(store, item.block, item.generation)) /* cleared, or dropped as corrupt */
        kvl_persist_done(store, item.tenant, item.order,
            status == KVL_ERR_CORRUPT || store->device_lost ? status : KVL_OK);
    else if (status != KVL_OK)
        refuse(store, &item, status);
    else if (store->persist_count == store->persist_room && make_room(store) != KVL_OK)
        refuse(store, &item, KVL_ERR_NOMEM);
    else
        push_front(store, item);
}

/* False: no more can be begun now. */
static bool store_one(struct kvl_store *store, struct kvl_persist_item item) {
    if (!kvl_entry_is(store, item.block, item.generation)) {
        kvl_persist_done(store, item.tenant, item.order, KVL_OK);
        return true;
    }
    struct kvl_entry *entry = kvl_table_at(store->table, item.block);
    uint64_t bytes = disk_bytes_most(kvl_entry_layout(store, entry));
    enum kvl_quota_answer answer = kvl_disk_quota_ask(store, item.tenant, bytes);
    if (answer == KVL_QUOTA_FULL) {
        mark_refused(store, entry, KVL_ENTRY_OVER_QUOTA);
        kvl_persist_done(store, item.tenant, item.order, KVL_ERR_NOSPC);
        return true;
    }
    if (answer == KVL_QUOTA_WAIT) {
        kvl_persist_queue(store, item.block, item.order);
        return true;
    }
    if (!is_reachable(store, entry))
        return copy_first(store, &item);
    struct kvl_transfer *transfer =
        kvl_transfer_start(store, item.block, KVL_TIER_DISK, KVL_IO_BEHIND);
    if (transfer == NULL) {
        refuse(store, &item, KVL_ERR_NOMEM);
        return true;
    }
    transfer->order = item.order;
    item.tenant->storing_bytes += bytes;
    if (store->storing++ == 0)
        store->stored_ns = kvl_clock_ns();
    store->storing_bytes += transfer->io.layout->slot_bytes;
    return true;
}

static bool may_store(const struct kvl_store *store) {
    if (store->persist_copies >= KVL_PERSIST_COPIES_MAX)
        return false;
    if (store->storing == 0)
        return true;
    return store->storing_bytes < store->storing_bytes_max &&
           (store->storing < KVL_STORING_FEW ||
               (store->storing < KVL_STORING_MAX && store->storing_bytes < KVL_STORING_BYTES));
}

void kvl_persist_pump(struct kvl_store *store) {
    if (!store->loaded)
        return; /* nobody knows yet what the quotas leave */
    for (uint32_t left = store->persist_count; left > 0 && may_store(store); left--)
        if (!store_one(store, pop(store)))
            return;
}

/* ---- flush -------------------------------------------------------------------------------- */

static void on_flushed(void *arg, kvl_err status) {
    struct kvl_settle *settle = arg;
    if (settle->status == KVL_OK)
        settle->status = status;
    settle->asked = false;
    settle->durable = true;
}

void kvl_settle_begin(
    struct kvl_store *store, struct kvl_settle *settle, const struct kvl_tenant *tenant) {
    settle->tenant = tenant;
    settle->order = store->persist_order;
    settle->remaining = tenant != NULL ? tenant->persist_pending : store->persist_pending;
}

bool kvl_settle_step(struct kvl_store *store, struct kvl_settle *settle) {
    struct kvl_tier *disk = store->tiers[KVL_TIER_DISK].tier;
    if (settle->remaining > 0) {
        if (disk != NULL && !settle->hurried && store->persist_count == 0 &&
            store->persist_copies == 0 && store->storing > 0) {
            settle->hurried = true;
            disk->ops->quiesce(disk);
        }
        return false;
    }
    if (settle->asked)
        return false;
    if (store->catalog == NULL || settle->durable)
        return true;
    if (store->puts_count > 0)
        return false;
    kvl_err err = store->catalog->ops->flush(store->catalog, on_flushed, settle);
    settle->asked = err == KVL_OK;
    store->retry |= err == KVL_ERR_AGAIN;
    if (err == KVL_OK || err == KVL_ERR_AGAIN)
        return false;
    settle->status = err;
    return true;
}

static void flush_step(struct kvl_store *store, struct kvl_operation *operation) {
    struct kvl_flush *flush = kvl_container_of(operation, struct kvl_flush, operation);
    if (!KVL_PLANTED("flush-not-durable") && !kvl_settle_step(store, &flush->settle))
        return;
    kvl_operation_end(store, &flush->operation, flush->settle.status);
    free(flush);
}

void kvl_flush_pump(struct kvl_store *store) {
    kvl_operations_step(store, KVL_OPERATION_FLUSH, flush_step);
}

static void queue_refused_again(struct kvl_store *store, const struct kvl_tenant *view) {
    uint64_t refused = 0;
    for (uint32_t i = 0; i < store->tenants.count; i++) {
        struct kvl_tenant *tenant = store->tenants.tenants[i];
        if (view != NULL && view != tenant)
            continue;
        refused += tenant->store_failed_blocks;
        tenant->stuck_until_ns = 0;
    }
    uint32_t end = kvl_table_end(store->table);
    for (uint32_t block = 0; block < end && refused > 0; block++) {
        const struct kvl_entry *entry = kvl_table_at(store->table, block);
        struct kvl_tenant *tenant = kvl_entry_tenant(store, entry);
        if ((entry->flags & KVL_REFUSED) == 0 || (view != NULL && view != tenant))
            continue;
        kvl_persist_queue(store, block, kvl_persist_enter(store, tenant));
        refused--;
    }
}

kvl_err kvl_store_flush(struct kvl_store *store, uint32_t client, struct kvl_ticket *ticket) {
    struct kvl_flush *flush = calloc(1, sizeof(*flush));
    *ticket = (struct kvl_ticket){0};
    if (flush == NULL)
        return KVL_ERR_NOMEM;
    kvl_err err =
        kvl_operation_begin(store, client, KVL_OPERATION_FLUSH, &flush->operation, ticket);
    if (err != KVL_OK) {
        free(flush);
        return err;
    }
    const struct kvl_tenant *view = kvl_client_view(store, kvl_client_find(store, client));
    queue_refused_again(store, view);
    flush->operation.settle = &flush->settle;
    kvl_settle_begin(store, &flush->settle, view);
    kvl_store_pump(store);
    return KVL_OK;
}
