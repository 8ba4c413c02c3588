/* write.c - from a placed batch to a synced one: written in large pieces, then fdatasync. A piece
 * is gathered from the batch's buffer and from where the callers have their blocks.
 *
 * Writes make room for reads: one in flight while a load waits for the device. A flush costs the
 * device time in which it writes nothing, so one data sync and one transaction, with two more, are
 * for all that was written while the ones before were under way. */
#include "clock.h"
#include "disk.h"
#include "planted.h"

/* Rather one of this size than a small one behind the others. */
#define LAST_WRITE_BYTES (KVL_DISK_WRITE_BYTES / 2 * 3)
_Static_assert(2 * (LAST_WRITE_BYTES / KVL_DISK_APART_BYTES + 2) <= KVL_DISK_PARTS,
    "a header and a payload of each record that a write holds, also in part");

static uint32_t writes_allowed(const struct kvl_disk *disk) {
    return disk->loads_active > 0 ? 1 : KVL_DISK_WRITES;
}

static void write_done(struct kvl_disk_op *op) {
    struct kvl_disk_batch *batch = op->owner;
    batch->disk->writes_active--;
    batch->writing--;
    batch->op_busy[op - batch->ops] = false;
    if (op->status != KVL_OK && batch->status == KVL_OK)
        batch->status = op->status;
    atomic_fetch_add(&batch->disk->written_bytes, op->done_bytes);
}

static struct kvl_disk_op *take_op(struct kvl_disk_batch *batch) {
    for (uint32_t i = 0; i < KVL_DISK_WRITES; i++) {
        if (!batch->op_busy[i]) {
            batch->op_busy[i] = true;
            batch->writing++;
            return &batch->ops[i];
        }
    }
    return NULL;
}

/* From there on in the batch, as far as memory and record go together. */
static struct iovec piece_at(struct kvl_disk_batch *batch, uint64_t at) {
    const struct kvl_disk_staged *staged = &batch->staged[batch->written_records];
    while (staged->status != KVL_OK || at >= staged->at_bytes + staged->record_bytes)
        staged = &batch->staged[++batch->written_records];
    uint64_t payload_at = staged->at_bytes + KVL_PAGE_BYTES;
    uint64_t end = staged->at_bytes + staged->record_bytes;
    if (staged->payload != NULL && at >= payload_at)
        return (struct iovec){staged->payload + (at - payload_at), end - at};
    if (staged->payload != NULL)
        end = payload_at;
    return (struct iovec){batch->buffer->memory + at, end - at};
}

/* The batch's next bytes, so many. */
static void gather(
    struct kvl_disk_batch *batch, struct kvl_disk_op *op, struct iovec *parts, uint64_t bytes) {
    uint32_t count = 0;
    while (op->bytes < bytes) {
        struct iovec piece = piece_at(batch, batch->written_bytes + op->bytes);
        uint8_t *end =
            count > 0 ? (uint8_t *)parts[count - 1].iov_base + parts[count - 1].iov_len : NULL;
        if (piece.iov_len > bytes - op->bytes)
            piece.iov_len = bytes - op->bytes;
        if (end != NULL && end == piece.iov_base)
            parts[count - 1].iov_len += piece.iov_len;
        else
            parts[count++] = piece;
        op->bytes += piece.iov_len;
    }
    op->buffer = parts[0].iov_base;
    if (count > 1) {
        op->parts = parts;
        op->part_count = count;
    }
}

static bool write_more(struct kvl_disk *disk, struct kvl_disk_batch *batch) {
    bool progress = false;
    while (batch->status == KVL_OK && batch->written_bytes < batch->used_bytes &&
           disk->writes_active < writes_allowed(disk)) {
        struct kvl_disk_op *op = take_op(batch);
        if (op == NULL)
            break;
        uint64_t left = batch->used_bytes - batch->written_bytes;
        *op = (struct kvl_disk_op){
            .kind = KVL_DISK_WRITE,
            .file = &batch->segment->file,
            .offset_bytes = batch->offset_bytes + batch->written_bytes,
            .done = write_done,
            .owner = batch,
        };
        gather(batch, op, batch->parts[op - batch->ops],
            left < LAST_WRITE_BYTES ? left : KVL_DISK_WRITE_BYTES);
        batch->written_bytes += op->bytes;
        disk->writes_active++;
        disk->backend->ops->submit(disk->backend, op);
        progress = true;
    }
    return progress;
}

static bool finish_writing(struct kvl_disk *disk, struct kvl_disk_batch *batch) {
    if (batch->writing > 0 || (batch->status == KVL_OK && batch->written_bytes < batch->used_bytes))
        return false;
    batch->state = KVL_BATCH_WRITTEN;
    kvl_disk_buffer_give(disk, batch->buffer);
    batch->buffer = NULL;
    return true;
}

static void end_sync(struct kvl_disk *disk, kvl_err status) {
    disk->syncing = false;
    for (struct kvl_disk_batch *batch = disk->batch_head;
         batch != NULL && batch->state == KVL_BATCH_SYNCING; batch = batch->next) {
        if (batch->status == KVL_OK)
            batch->status = status;
        batch->state = KVL_BATCH_READY;
    }
}

static void sync_done(struct kvl_disk_op *op) {
    end_sync(op->owner, op->status);
}

/* The oldest written batches of one segment. */
struct group {
    uint64_t bytes;
    bool grows; /* more of it is on its way to the disk */
};

static bool is_of_group(const struct kvl_disk_batch *batch, const struct kvl_disk_batch *head) {
    return batch != NULL && batch->state == KVL_BATCH_WRITTEN && batch->segment == head->segment;
}

static struct group oldest_group(const struct kvl_disk *disk) {
    struct group group = {0};
    const struct kvl_disk_batch *head = disk->batch_head, *batch = head;
    for (; is_of_group(batch, head); batch = batch->next)
        group.bytes += batch->used_bytes;
    group.grows = batch != NULL && batch->segment == head->segment &&
                  (batch->sealed || batch->state == KVL_BATCH_WRITING);
    return group;
}

uint64_t kvl_disk_sync_due_ns(const struct kvl_disk *disk) {
    const struct kvl_disk_batch *head = disk->batch_head;
    if (head == NULL || head->state != KVL_BATCH_WRITTEN || disk->syncing || disk->commit.busy)
        return UINT64_MAX;
    struct group group = oldest_group(disk);
    bool waits = group.grows && group.bytes < KVL_DISK_GROUP_BYTES;
    return waits ? head->opened_ns + disk->persist_ns / 2 : 0;
}

static bool sync_oldest(struct kvl_disk *disk) {
    struct kvl_disk_batch *head = disk->batch_head;
    uint64_t due_ns = kvl_disk_sync_due_ns(disk);
    if (due_ns == UINT64_MAX || kvl_clock_ns() < due_ns)
        return false;
    bool written = false;
    for (struct kvl_disk_batch *batch = head; is_of_group(batch, head); batch = batch->next) {
        written = written || (batch->status == KVL_OK && batch->used_bytes > 0);
        batch->state = KVL_BATCH_SYNCING;
    }
    if (!written || KVL_PLANTED("sync-left-out")) {
        end_sync(disk, KVL_OK);
        return true;
    }
    disk->syncing = true;
    disk->sync_op = (struct kvl_disk_op){
        .kind = KVL_DISK_SYNC, .file = &head->segment->file, .done = sync_done, .owner = disk};
    disk->backend->ops->submit(disk->backend, &disk->sync_op);
    return true;
}

bool kvl_disk_writes_advance(struct kvl_disk *disk) {
    bool progress = false;
    for (struct kvl_disk_batch *batch = disk->batch_head; batch != NULL; batch = batch->next) {
        if (batch->state != KVL_BATCH_WRITING)
            continue;
        progress = write_more(disk, batch) || progress;
        progress = finish_writing(disk, batch) || progress;
    }
    return sync_oldest(disk) || progress;
}

void kvl_disk_batch_release(struct kvl_disk_batch *batch) {
    batch->segment->batches--;
    batch->segment = NULL;
    batch->state = KVL_BATCH_UNUSED;
}
