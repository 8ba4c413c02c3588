/* staging.c - two hops from disk to a device that the CPU cannot address, through the host.
 *
 *   disk --(first: a transfer to the host of its own)--> host --(second)--> device
 *
 * The second is what a restore waits for; it is made first and stands here until the block has a
 * slot in the host. The first is shared with whoever else brings the block to the host. A host that
 * is full makes the second wait while anything moves that may give a slot back; when nothing does,
 * leases fill the host, and the second ends with NOSPC. The copy stays in the host: it makes a
 * later demotion free, and goes when its slot is needed. */
#include <assert.h>

#include "store_private.h"

void kvl_stage_wait(struct kvl_store *store, struct kvl_transfer *second) {
    kvl_transfer_queue_push(&store->unstaged[second->io.priority], second);
    store->unstaged_count++;
}

/* The block is in the host. */
static void go_on(struct kvl_store *store, struct kvl_transfer *second) {
    uint64_t generation = second->io.record.generation;
    kvl_busy_up(store, second->block, KVL_TIER_HOST);
    kvl_busy_down(store, second->block, generation, KVL_TIER_DISK);
    second->from = KVL_TIER_HOST;
    kvl_transfer_hop(store, second);
}

static kvl_err fetch(
    struct kvl_store *store, const struct kvl_transfer *second, struct kvl_transfer **first) {
    uint32_t block = second->block;
    const struct kvl_entry *entry = kvl_table_at(store->table, block);
    if (!kvl_entry_is_in(entry, KVL_TIER_DISK))
        return KVL_ERR_NOTFOUND;
    if (!kvl_entry_has_slot(entry, KVL_TIER_HOST)) {
        const struct kvl_slot_wish wish = kvl_entry_slot_wish(store, entry, KVL_TIER_HOST);
        uint64_t location = 0;
        kvl_err err =
            kvl_slot_reserve(store, &wish, second->io.priority == KVL_IO_BEHIND, &location);
        if (err != KVL_OK)
            return err;
        kvl_slot_attach(store, block, KVL_TIER_HOST, location);
    }
    *first = kvl_transfer_start(store, block, KVL_TIER_HOST, second->io.priority);
    if (*first == NULL) {
        kvl_slot_release_unused(store, block, KVL_TIER_HOST);
        return KVL_ERR_NOMEM;
    }
    (*first)->quiet = true;
    return KVL_OK;
}

static kvl_err stage(struct kvl_store *store, struct kvl_transfer *second) {
    uint32_t block = second->block;
    if (store->device_lost)
        return KVL_ERR_IO;
    if (!kvl_entry_is(store, block, second->io.record.generation))
        return KVL_ERR_CANCELED;
    if (kvl_entry_is_in(kvl_table_at(store->table, block), KVL_TIER_HOST)) {
        go_on(store, second);
        return KVL_OK;
    }
    struct kvl_transfer *first = kvl_transfer_arriving(store, block, KVL_TIER_HOST);
    kvl_err err = first != NULL ? KVL_OK : fetch(store, second, &first);
    if (err != KVL_OK)
        return err;
    assert(first->second == NULL); /* a block goes to the device once at a time */
    first->second = second;
    return KVL_OK;
}

/* Something is under way that may leave a slot of the host free. */
static bool something_moves(const struct kvl_store *store) {
    return store->transfer_count > store->unstaged_count || store->storing > 0;
}

static void end(struct kvl_transfer *second, kvl_err status) {
    second->uncounted = true; /* no tier failed, or the first hop was counted */
    kvl_transfer_end(second, status);
}

/* False: it waits, and so do those behind it. */
static bool stage_next(struct kvl_store *store, struct kvl_transfer_queue *queue) {
    struct kvl_transfer *second = kvl_transfer_queue_pop(queue);
    kvl_err err = stage(store, second);
    if (err == KVL_ERR_AGAIN || (err == KVL_ERR_NOSPC && something_moves(store))) {
        kvl_transfer_queue_push_front(queue, second);
        store->retry = true;
        return false;
    }
    store->unstaged_count--;
    if (err != KVL_OK)
        end(second, err);
    return true;
}

void kvl_stage_pump(struct kvl_store *store) {
    for (unsigned priority = 0; priority < KVL_PRIORITIES; priority++)
        while (store->unstaged[priority].first != NULL)
            if (!stage_next(store, &store->unstaged[priority]))
                return;
}

void kvl_stage_landed(struct kvl_store *store, struct kvl_transfer *first, kvl_err status) {
    struct kvl_transfer *second = first->second;
    if (second == NULL)
        return;
    first->second = NULL;
    if (status == KVL_OK && !store->closing &&
        kvl_entry_is(store, second->block, second->io.record.generation))
        go_on(store, second);
    else
        end(second, status != KVL_OK ? status : KVL_ERR_CANCELED);
}

void kvl_stage_cancel_waiting(struct kvl_store *store) {
    for (unsigned priority = 0; priority < KVL_PRIORITIES; priority++)
        while (store->unstaged[priority].first != NULL) {
            store->unstaged_count--;
            end(kvl_transfer_queue_pop(&store->unstaged[priority]), KVL_ERR_CANCELED);
        }
}
