/* write.c - from a placed batch to a synced one: written in large pieces, then fdatasync.
 *
 * Writes make room for reads: one in flight while a load waits for the device. */
#include "disk.h"
#include "planted.h"

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

static void sync_done(struct kvl_disk_op *op) {
    struct kvl_disk_batch *batch = op->owner;
    batch->writing--;
    batch->op_busy[op - batch->ops] = false;
    if (op->status != KVL_OK && batch->status == KVL_OK)
        batch->status = op->status;
    batch->state = KVL_BATCH_READY;
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
            .fd = batch->segment->fd,
            .offset_bytes = batch->offset_bytes + batch->written_bytes,
            .buffer = batch->memory + batch->written_bytes,
            .bytes = left < KVL_DISK_WRITE_BYTES ? left : KVL_DISK_WRITE_BYTES,
            .done = write_done,
            .owner = batch,
        };
        batch->written_bytes += op->bytes;
        disk->writes_active++;
        disk->backend->ops->submit(disk->backend, op);
        progress = true;
    }
    return progress;
}

static bool finish_writing(struct kvl_disk *disk, struct kvl_disk_batch *batch) {
    if (batch->writing > 0)
        return false;
    if (batch->status != KVL_OK ||
        (batch->written_bytes == batch->used_bytes && KVL_PLANTED("sync-left-out"))) {
        batch->state = KVL_BATCH_READY;
        return true;
    }
    if (batch->written_bytes < batch->used_bytes)
        return false;
    struct kvl_disk_op *op = take_op(batch);
    *op = (struct kvl_disk_op){
        .kind = KVL_DISK_SYNC, .fd = batch->segment->fd, .done = sync_done, .owner = batch};
    batch->state = KVL_BATCH_SYNCING;
    disk->backend->ops->submit(disk->backend, op);
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
    return progress;
}

void kvl_disk_batch_release(struct kvl_disk_batch *batch) {
    batch->segment->batches--;
    batch->segment = NULL;
    batch->state = KVL_BATCH_UNUSED;
}
