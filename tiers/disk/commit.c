/* commit.c - one index transaction at a time: synced batches and small changes together.
 *
 * The data of every block in a transaction was synced before. Stores complete only after it. */
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "clock.h"
#include "disk.h"

#define TOUCHES_PER_COMMIT 256u

static bool reserve_ops(struct kvl_disk_ops *ops, uint64_t more) {
    if (ops->capacity - ops->count >= more)
        return true;
    uint64_t capacity =
        ops->capacity * 2 > ops->count + more ? ops->capacity * 2 : ops->count + more + 64;
    struct kvl_index_op *items = realloc(ops->items, capacity * sizeof(*items));
    if (items == NULL)
        return false;
    ops->items = items;
    ops->capacity = capacity;
    return true;
}

struct kvl_index_op *kvl_disk_ops_add(struct kvl_disk_ops *ops) {
    if (!reserve_ops(ops, 1))
        return NULL;
    if (ops->count == 0)
        ops->since_ns = kvl_clock_ns();
    struct kvl_index_op *op = &ops->items[ops->count++];
    memset(op, 0, sizeof(*op));
    return op;
}

static bool is_catalog(const struct kvl_index_op *op) {
    return op->kind == KVL_INDEX_CATALOG_PUT || op->kind == KVL_INDEX_CATALOG_REMOVE;
}

void kvl_disk_ops_clear(struct kvl_disk *disk, struct kvl_disk_ops *ops) {
    for (uint64_t i = 0; i < ops->count; i++) {
        struct kvl_index_op *op = &ops->items[i];
        if (!is_catalog(op) || op->data == NULL)
            continue;
        atomic_fetch_sub(&disk->queued_bytes, (uint64_t)op->key_bytes + op->value_bytes);
        free(op->data - offsetof(struct kvl_disk_op_node, data));
    }
    ops->count = 0;
    ops->first_sequence = UINT64_MAX;
}

void kvl_disk_change_lost(struct kvl_disk *disk, kvl_err status) {
    disk->index_status = status;
    disk->index_failed_at = disk->sequence;
}

void kvl_disk_delete_block(
    struct kvl_disk *disk, const struct kvl_key *key, uint64_t location, uint64_t sequence) {
    struct kvl_index_op *op = kvl_disk_ops_add(&disk->pending);
    if (op == NULL) {
        KVL_ERROR(disk->log, "disk out of memory: a deletion is lost");
        kvl_disk_change_lost(disk, KVL_ERR_NOMEM);
        return;
    }
    op->kind = KVL_INDEX_DELETE;
    op->block.record.key = *key;
    op->old_location = location;
    struct kvl_segment *segment =
        kvl_segments_find(&disk->segments, kvl_location_segment(location));
    op->segment.generation = segment == NULL ? 0 : segment->generation;
    if (sequence < disk->pending.first_sequence)
        disk->pending.first_sequence = sequence;
}

/* NULL entry: there is none. */
struct place {
    struct kvl_segment *segment;
    struct kvl_segment_entry *entry;
};

static struct place place_at(struct kvl_disk *disk, uint64_t location) {
    struct kvl_segment *segment =
        kvl_segments_find(&disk->segments, kvl_location_segment(location));
    return (struct place){
        segment, segment == NULL ? NULL : kvl_segment_at(segment, kvl_location_page(location))};
}

static void set_moved_to(const struct place *place, uint64_t location) {
    if (place->entry != NULL && place->segment->moved_to != NULL)
        place->segment->moved_to[place->entry - place->segment->entries] = location;
}

/* The change that publishes the record, or, when nobody is to find it, deletes it: it is there,
 * and a rebuild must not take it for a block. */
static enum kvl_index_op_kind kind_of(struct kvl_disk *disk, const struct kvl_disk_staged *staged) {
    if (staged->status != KVL_OK)
        return KVL_INDEX_DELETE;
    if (staged->request != NULL)
        return KVL_INDEX_PUT;
    const struct kvl_segment_entry *entry = place_at(disk, staged->from).entry;
    return entry == NULL || !entry->live ? KVL_INDEX_DELETE : KVL_INDEX_MOVE;
}

static void turn_into_delete(struct kvl_index_op *op, uint64_t segment_generation) {
    op->kind = KVL_INDEX_DELETE;
    op->old_location = op->block.location;
    op->segment.generation = segment_generation;
}

static void add_staged(struct kvl_disk *disk, struct kvl_disk_staged *staged) {
    struct kvl_disk_ops *ops = &disk->commit.ops;
    if (staged->request == NULL && staged->from == 0)
        return; /* it has no place */
    enum kvl_index_op_kind kind = kind_of(disk, staged);
    struct place from = place_at(disk, staged->from);
    if (kind == KVL_INDEX_MOVE)
        set_moved_to(&from, staged->block.location);
    if (kind != KVL_INDEX_DELETE)
        staged->op_index = ops->count;
    struct kvl_index_op *op = kvl_disk_ops_add(ops);
    op->kind = kind;
    op->block = staged->block;
    op->old_location = staged->from;
    op->segment.generation = staged->segment_generation;
    if (kind == KVL_INDEX_DELETE)
        turn_into_delete(op, staged->segment_generation);
}

static void add_batch(struct kvl_disk *disk, struct kvl_disk_batch *batch) {
    for (uint32_t i = 0; i < batch->staged_count; i++) {
        struct kvl_disk_staged *staged = &batch->staged[i];
        if (batch->status != KVL_OK && staged->status == KVL_OK)
            staged->status = batch->status;
        add_staged(disk, staged);
    }
    batch->state = KVL_BATCH_COMMITTING;
    if (batch->first_sequence < disk->commit.ops.first_sequence)
        disk->commit.ops.first_sequence = batch->first_sequence;
}

/* Last uses ride along with a commit that happens anyway: few, where the map is small, or they
 * would be steps of their own before it. */
static void add_touches(struct kvl_disk *disk) {
    uint64_t share = disk->plan.map_bytes / KVL_PAGE_BYTES / 16;
    uint32_t left = share < TOUCHES_PER_COMMIT ? (uint32_t)share : TOUCHES_PER_COMMIT;
    for (uint32_t id = 0; id < disk->segments.slots && left > 0; id++) {
        struct kvl_segment *segment = disk->segments.items[id];
        if (segment == NULL || !segment->touched)
            continue;
        segment->touched = false;
        for (uint64_t i = 0; i < segment->entry_count; i++) {
            struct kvl_segment_entry *entry = &segment->entries[i];
            if (!entry->live || !entry->used)
                continue;
            struct kvl_index_op *op = left > 0 ? kvl_disk_ops_add(&disk->commit.ops) : NULL;
            if (op == NULL) {
                segment->touched = true;
                break;
            }
            op->kind = KVL_INDEX_TOUCH;
            op->key_head = entry->key_head;
            op->block.last_use_wall_ns = entry->last_use_s * UINT64_C(1000000000);
            op->old_location = kvl_segment_location(segment, entry);
            entry->used = false;
            left--;
        }
    }
}

static void publish_store(struct kvl_disk *disk, struct kvl_disk_staged *staged) {
    struct kvl_segment *segment = staged->batch->segment;
    kvl_err status = staged->status;
    if (status == KVL_OK && !kvl_segment_add(segment, &staged->block)) {
        status = KVL_ERR_NOMEM;
        kvl_disk_delete_block(disk, &staged->block.record.key, staged->block.location, UINT64_MAX);
    }
    staged->request->location = staged->block.location;
    staged->request->stored_bytes = staged->block.stored_bytes;
    atomic_fetch_add(status == KVL_OK ? &disk->stores : &disk->errors, 1);
    kvl_disk_complete(staged->request, status);
}

static void publish_carried(struct kvl_disk *disk, struct kvl_disk_staged *staged) {
    bool moved = staged->status == KVL_OK && staged->op_index != UINT64_MAX &&
                 disk->commit.ops.items[staged->op_index].applied;
    struct place old = place_at(disk, staged->from);
    bool live = old.entry != NULL && old.entry->live;
    if (!moved)
        set_moved_to(&old, 0);
    if (moved && kvl_segment_add(staged->batch->segment, &staged->block)) {
        struct kvl_segment *segment = staged->batch->segment;
        if (live)
            kvl_disk_notify(disk, &staged->block.record.key, staged->block.location, true);
        else
            kvl_segment_kill(segment, &segment->entries[segment->entry_count - 1]);
        atomic_fetch_add(&disk->carried_bytes, staged->record_bytes);
    }
    kvl_disk_carried(disk, staged, moved);
}

static void publish_batch(struct kvl_disk *disk, struct kvl_disk_batch *batch) {
    for (uint32_t i = 0; i < batch->staged_count; i++) {
        struct kvl_disk_staged *staged = &batch->staged[i];
        if (staged->request != NULL)
            publish_store(disk, staged);
        else if (staged->from != 0)
            publish_carried(disk, staged);
    }
    if (!kvl_disk_probe_begin(disk, batch))
        kvl_disk_batch_release(batch);
}

/* What failed to be removed, and what failed to be published, is removed by the next. */
static void remove_later(struct kvl_disk *disk) {
    struct kvl_disk_commit *commit = &disk->commit;
    for (uint64_t i = commit->done_ops; i < commit->ops.count; i++) {
        struct kvl_index_op *op = &commit->ops.items[i];
        if (op->kind == KVL_INDEX_PUT || op->kind == KVL_INDEX_MOVE)
            turn_into_delete(op, op->segment.generation);
        if (op->kind == KVL_INDEX_DELETE)
            kvl_disk_delete_block(disk, &op->block.record.key, op->old_location,
                commit->ops.first_sequence != UINT64_MAX ? commit->ops.first_sequence
                                                         : ++disk->sequence);
    }
}

static void fail_uncommitted(
    const struct kvl_disk_commit *commit, struct kvl_disk_batch *batch, kvl_err status) {
    for (uint32_t i = 0; i < batch->staged_count; i++) {
        if (batch->staged[i].status == KVL_OK && batch->staged[i].op_index >= commit->done_ops)
            batch->staged[i].status = status;
    }
}

/* Ends the changes, whatever their status: stores complete, batches are free again. */
static void publish(struct kvl_disk *disk) {
    struct kvl_disk_commit *commit = &disk->commit;
    struct kvl_disk_batch *batch = commit->batches;
    while (batch != NULL) {
        struct kvl_disk_batch *next = batch->next;
        if (commit->status != KVL_OK)
            fail_uncommitted(commit, batch, commit->status);
        publish_batch(disk, batch);
        batch = next;
    }
    if (commit->status != KVL_OK) {
        KVL_ERROR(disk->log, "disk index commit failed status=%s ops=%llu",
            kvl_err_name(commit->status), (unsigned long long)commit->ops.count);
        kvl_disk_change_lost(disk, commit->status);
        remove_later(disk);
    }
    commit->batches = NULL;
    commit->attempts = 0;
    commit->done_ops = 0;
    kvl_disk_ops_clear(disk, &commit->ops);
}

static void send(struct kvl_disk *disk) {
    disk->commit.busy = true;
    disk->commit_parked = false;
    disk->commit.attempts++;
    kvl_mailbox_post(&disk->index_inbox, &disk->commit.node);
}

/* The map is full and nothing can be evicted: without the other new blocks the rest may fit. */
void kvl_disk_commit_strip(struct kvl_disk *disk) {
    struct kvl_disk_commit *commit = &disk->commit;
    uint64_t kept = commit->done_ops;
    for (struct kvl_disk_batch *batch = commit->batches; batch != NULL; batch = batch->next)
        fail_uncommitted(commit, batch, KVL_ERR_NOSPC);
    for (uint64_t i = commit->done_ops; i < commit->ops.count; i++) {
        struct kvl_index_op *op = &commit->ops.items[i];
        if (op->kind == KVL_INDEX_PUT || op->kind == KVL_INDEX_MOVE)
            turn_into_delete(op, op->segment.generation);
        if (op->kind != KVL_INDEX_TOUCH)
            commit->ops.items[kept++] = *op;
    }
    commit->ops.count = kept;
    commit->attempts = UINT32_MAX - 1;
    if (kept > commit->done_ops) {
        send(disk);
        return;
    }
    disk->commit_parked = false;
    commit->status = KVL_OK;
    publish(disk);
}

void kvl_disk_commit_done(struct kvl_disk *disk) {
    struct kvl_disk_commit *commit = &disk->commit;
    commit->busy = false;
    disk->index_permille = commit->usage_permille;
    if (commit->status == KVL_ERR_NOSPC && commit->attempts != UINT32_MAX) {
        disk->commit_parked = true;
        disk->reclaim.futile = false;
        if (commit->attempts >= 8 || disk->reclaim.state == KVL_RECLAIM_CARRYING)
            kvl_disk_commit_strip(disk);
        return;
    }
    publish(disk);
}

static bool due(const struct kvl_disk *disk) {
    if (disk->batch_head != NULL && disk->batch_head->state == KVL_BATCH_READY)
        return true;
    return disk->pending.count > 0 &&
           (disk->flushes != NULL ||
               kvl_clock_ns() >= disk->pending.since_ns + disk->persist_ns / 2);
}

static uint64_t ready_records(const struct kvl_disk *disk) {
    uint64_t count = 0;
    for (const struct kvl_disk_batch *batch = disk->batch_head;
         batch != NULL && batch->state == KVL_BATCH_READY; batch = batch->next)
        count += batch->staged_count;
    return count;
}

static void take_ready_batches(struct kvl_disk *disk) {
    struct kvl_disk_batch **tail = &disk->commit.batches;
    while (disk->batch_head != NULL && disk->batch_head->state == KVL_BATCH_READY) {
        struct kvl_disk_batch *batch = disk->batch_head;
        disk->batch_head = batch->next;
        if (disk->batch_head == NULL)
            disk->batch_tail = &disk->batch_head;
        batch->next = NULL;
        *tail = batch;
        tail = &batch->next;
        add_batch(disk, batch);
    }
}

/* A parked transaction goes again once a reclaim made room; reclaim.c says when. */
bool kvl_disk_commit_advance(struct kvl_disk *disk) {
    struct kvl_disk_commit *commit = &disk->commit;
    if (commit->busy)
        return false;
    if (disk->commit_parked) {
        if (disk->reclaim.state != KVL_RECLAIM_IDLE || !disk->reclaim.made_room)
            return false;
        disk->reclaim.made_room = false;
        send(disk);
        return true;
    }
    if (!disk->loaded || !due(disk) ||
        !reserve_ops(&disk->pending, ready_records(disk) + TOUCHES_PER_COMMIT))
        return false;
    struct kvl_disk_ops unused = commit->ops;
    commit->ops = disk->pending;
    disk->pending = unused;
    disk->pending.first_sequence = UINT64_MAX;
    add_touches(disk);
    take_ready_batches(disk);
    commit->status = KVL_OK;
    if (commit->ops.count > 0)
        send(disk);
    else
        publish(disk);
    return true;
}
