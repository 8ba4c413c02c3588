/* disk_thread.c - the loop that owns the I/O backend, the segments and the order of writes. */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>

#include "clock.h"
#include "disk.h"
#include "thread.h"

#define POSIX_THREADS 8u
#define RING_DEPTH 128u

void kvl_disk_list_init(struct kvl_disk_request_list *list) {
    list->head = NULL;
    list->tail = &list->head;
    list->count = 0;
}

void kvl_disk_list_push(struct kvl_disk_request_list *list, struct kvl_disk_request *request) {
    request->next = NULL;
    *list->tail = request;
    list->tail = &request->next;
    list->count++;
}

void kvl_disk_list_push_front(
    struct kvl_disk_request_list *list, struct kvl_disk_request *request) {
    request->next = list->head;
    if (list->head == NULL)
        list->tail = &request->next;
    list->head = request;
    list->count++;
}

struct kvl_disk_request *kvl_disk_list_pop(struct kvl_disk_request_list *list) {
    struct kvl_disk_request *request = list->head;
    if (request == NULL)
        return NULL;
    list->head = request->next;
    if (list->head == NULL)
        list->tail = &list->head;
    list->count--;
    return request;
}

void kvl_disk_complete(struct kvl_disk_request *request, kvl_err status) {
    if (request->held != NULL)
        request->held->refs--;
    request->held = NULL;
    request->status = status;
    kvl_mailbox_post(&request->disk->outbox, &request->complete);
}

void kvl_disk_notify(
    struct kvl_disk *disk, const struct kvl_key *key, uint64_t location, bool moved) {
    struct kvl_disk_notices *notices = malloc(sizeof(*notices) + sizeof(notices->items[0]));
    if (notices == NULL)
        return;
    notices->node = (struct kvl_node){.kind = KVL_NODE_NOTICES};
    notices->ack = false;
    notices->count = 1;
    notices->items[0] = (struct kvl_disk_notice){.key = *key, .location = location, .moved = moved};
    kvl_mailbox_post(&disk->outbox, &notices->node);
}

kvl_err kvl_disk_backend_create(struct kvl_disk *disk, struct kvl_errmsg *msg) {
    enum kvl_disk_io io = disk->options.io;
    kvl_err err = KVL_ERR_UNSUPPORTED;
    if (io == KVL_DISK_IO_AUTO || io == KVL_DISK_IO_URING)
        err = kvl_io_uring_create(RING_DEPTH, &disk->backend);
    if (err != KVL_OK && io == KVL_DISK_IO_URING)
        return kvl_fail(msg, err, "io_uring is refused here; use io auto or posix");
    if (err != KVL_OK) {
        if (io == KVL_DISK_IO_AUTO)
            kvl_log_fallback(
                disk->log, "disk io=posix: io_uring is refused by the kernel or the container");
        err = kvl_io_posix_create(POSIX_THREADS, &disk->backend);
    }
    if (err != KVL_OK)
        return kvl_fail(msg, err, "cannot start the disk's I/O threads");
    disk->io_name = disk->segments.direct ? disk->backend->ops->name : "buffered";
    for (uint32_t id = 0; id < disk->segments.slots; id++) {
        if (disk->segments.items[id] != NULL)
            disk->backend->ops->register_file(disk->backend, &disk->segments.items[id]->file);
    }
    return KVL_OK;
}

static struct kvl_segment_entry *live_entry(
    struct kvl_disk *disk, const struct kvl_index_op *op, struct kvl_segment **segment) {
    *segment = kvl_segments_find(&disk->segments, kvl_location_segment(op->old_location));
    if (*segment == NULL)
        return NULL;
    struct kvl_segment_entry *entry = kvl_segment_at(*segment, kvl_location_page(op->old_location));
    if (entry == NULL || !kvl_segment_entry_is(entry, &op->block.record.key))
        return NULL;
    return entry;
}

/* A copy that is being written is deleted when its batch is committed: then, and no sooner, is the
 * block gone for good. */
static void wait_for_copies(struct kvl_disk *disk, uint64_t sequence) {
    for (struct kvl_disk_batch *batch = disk->batch_head; batch != NULL; batch = batch->next) {
        if (batch->first_sequence > sequence)
            batch->first_sequence = sequence;
    }
}

/* A block under way to another place is deleted at both. */
static void take_discard(struct kvl_disk *disk, const struct kvl_index_op *op, uint64_t sequence) {
    struct kvl_segment *segment;
    struct kvl_segment_entry *entry = live_entry(disk, op, &segment);
    const struct kvl_key *key = &op->block.record.key;
    kvl_disk_delete_block(disk, key, op->old_location, sequence);
    disk->reclaim.futile = false;
    if (entry == NULL)
        return;
    uint64_t moved_to = kvl_segment_moved_to(segment, entry);
    kvl_segment_kill(segment, entry);
    if (segment->state == KVL_SEGMENT_RECLAIMING)
        wait_for_copies(disk, sequence);
    if (moved_to == 0)
        return;
    kvl_disk_delete_block(disk, key, moved_to, sequence);
    struct kvl_segment *target = kvl_segments_find(&disk->segments, kvl_location_segment(moved_to));
    struct kvl_segment_entry *copy =
        target == NULL ? NULL : kvl_segment_at(target, kvl_location_page(moved_to));
    if (copy != NULL && kvl_segment_entry_is(copy, key))
        kvl_segment_kill(target, copy);
}

static void take_op(struct kvl_disk *disk, struct kvl_disk_op_node *node) {
    uint64_t sequence = ++disk->sequence;
    if (node->op.kind == KVL_INDEX_DELETE) {
        take_discard(disk, &node->op, sequence);
        free(node);
        return;
    }
    struct kvl_index_op *op = kvl_disk_ops_add(&disk->pending);
    if (op == NULL) {
        KVL_ERROR(disk->log, "disk out of memory: a catalog change is lost");
        kvl_disk_change_lost(disk, KVL_ERR_NOMEM);
        atomic_fetch_sub(&disk->queued_bytes, (uint64_t)node->op.key_bytes + node->op.value_bytes);
        free(node);
        return;
    }
    *op = node->op; /* op.data keeps the node */
    if (sequence < disk->pending.first_sequence)
        disk->pending.first_sequence = sequence;
}

static void take_request(struct kvl_disk *disk, struct kvl_disk_request *request) {
    request->sequence = ++disk->sequence;
    if (request->io->op == KVL_IO_STORE) {
        kvl_disk_list_push(&disk->stores_waiting, request);
        return;
    }
    /* The block may be moved while the request waits: the old place must last as long. */
    request->held = kvl_segments_find(&disk->segments, kvl_location_segment(request->io->location));
    if (request->held != NULL)
        request->held->refs++;
    kvl_disk_list_push(&disk->loads_waiting[request->io->priority], request);
}

static void take_flush(struct kvl_disk *disk, struct kvl_disk_flush *flush) {
    struct kvl_disk_flush **tail = &disk->flushes;
    while (*tail != NULL)
        tail = &(*tail)->next;
    flush->sequence = ++disk->sequence;
    flush->next = NULL;
    *tail = flush;
}

static bool adopt_sought(
    struct kvl_disk *disk, struct kvl_segment *segment, const struct kvl_index_block *block) {
    kvl_err err = kvl_segment_add_sought(segment, block);
    disk->deaf = disk->deaf || err == KVL_ERR_NOMEM;
    return err == KVL_OK;
}

/* Whether the owner is to hear of a block of the index: it lies in a segment that exists, else its
 * entry goes, and was not sought before. */
static bool adopt(struct kvl_disk *disk, const struct kvl_index_block *block, bool sought) {
    struct kvl_segment *segment =
        kvl_segments_find(&disk->segments, kvl_location_segment(block->location));
    uint64_t offset = (uint64_t)kvl_location_page(block->location) * KVL_PAGE_BYTES;
    bool sane = segment != NULL && block->stored_bytes >= 2 * KVL_PAGE_BYTES &&
                block->stored_bytes % KVL_PAGE_BYTES == 0 && offset < segment->bytes &&
                block->stored_bytes <= segment->bytes - offset;
    if (sought)
        return sane && adopt_sought(disk, segment, block);
    if (sane && kvl_segment_was_sought(segment, kvl_location_page(block->location)))
        return false;
    if (sane && kvl_segment_add(segment, block))
        return true;
    kvl_disk_delete_block(disk, &block->record.key, block->location, UINT64_MAX);
    return false;
}

static void take_found(struct kvl_disk *disk, struct kvl_disk_found *found) {
    uint32_t kept = 0;
    for (uint32_t i = 0; i < found->count; i++) {
        if (adopt(disk, &found->blocks[i], found->sought[i]))
            found->blocks[kept++] = found->blocks[i];
    }
    found->count = kept;
    kvl_mailbox_post(&disk->outbox, &found->node);
}

/* The walk will come upon those that are there after all. */
static void take_recanted(struct kvl_disk *disk, struct kvl_disk_notices *recanted) {
    for (uint64_t i = 0; i < recanted->count; i++) {
        uint64_t location = recanted->items[i].location;
        struct kvl_segment *segment =
            kvl_segments_find(&disk->segments, kvl_location_segment(location));
        if (segment != NULL)
            kvl_segment_forget_sought(segment, kvl_location_page(location));
    }
    recanted->node.kind = KVL_NODE_NOTICES;
    kvl_mailbox_post(&disk->outbox, &recanted->node);
}

static void take_sought(struct kvl_disk *disk, struct kvl_disk_seek *seek) {
    if (disk->deaf)
        free(seek);
    else
        kvl_mailbox_post(&disk->outbox, &seek->node);
}

/* The segment opened last goes on; those without blocks are free, those of another
 * capacity's size of no use. */
static void settle_segments(struct kvl_disk *disk) {
    struct kvl_segment *newest = NULL;
    for (uint32_t id = 0; id < disk->segments.slots; id++) {
        struct kvl_segment *segment = disk->segments.items[id];
        if (segment == NULL)
            continue;
        if (segment->entry_count == 0) {
            if (segment->refs == 0)
                kvl_disk_drop_odd(disk, segment);
            continue;
        }
        kvl_segment_sort(segment);
        kvl_segment_trim(segment);
        const struct kvl_segment_entry *last = &segment->entries[segment->entry_count - 1];
        segment->append_bytes = ((uint64_t)last->page + last->pages) * KVL_PAGE_BYTES;
        segment->state = KVL_SEGMENT_FULL;
        if (newest == NULL || segment->generation > newest->generation)
            newest = segment;
    }
    if (newest != NULL) {
        newest->state = KVL_SEGMENT_ACTIVE;
        disk->active = newest;
    }
}

static void take_loaded(struct kvl_disk *disk, struct kvl_disk_loading *loading) {
    settle_segments(disk);
    disk->loaded = true;
    if (loading->bad > 0)
        KVL_WARN(disk->log, "disk index entries skipped for their checksum: %llu",
            (unsigned long long)loading->bad);
    kvl_mailbox_post(&disk->outbox, &loading->node);
}

static void sweep_canceled(struct kvl_disk_request_list *list) {
    struct kvl_disk_request *request = list->head;
    kvl_disk_list_init(list);
    while (request != NULL) {
        struct kvl_disk_request *next = request->next;
        if (atomic_load(&request->canceled))
            kvl_disk_complete(request, KVL_ERR_CANCELED);
        else
            kvl_disk_list_push(list, request);
        request = next;
    }
}

static void take_node(struct kvl_disk *disk, struct kvl_node *node) {
    switch (node->kind) {
    case KVL_NODE_REQUEST:
        take_request(disk, kvl_container_of(node, struct kvl_disk_request, in));
        break;
    case KVL_NODE_OP:
        take_op(disk, kvl_container_of(node, struct kvl_disk_op_node, node));
        break;
    case KVL_NODE_FLUSH:
        take_flush(disk, kvl_container_of(node, struct kvl_disk_flush, node));
        break;
    case KVL_NODE_REGISTER:
        kvl_disk_arena_take(disk, kvl_container_of(node, struct kvl_disk_register, node));
        disk->arenas_due_ns = 0;
        break;
    case KVL_NODE_ASK:
        kvl_disk_reclaim_answered(disk, kvl_container_of(node, struct kvl_disk_ask, node));
        break;
    case KVL_NODE_NOTICES:
        free(kvl_container_of(node, struct kvl_disk_notices, node));
        kvl_disk_reclaim_told(disk);
        break;
    case KVL_NODE_COMMIT:
        if (node == &disk->commit.node)
            kvl_disk_commit_done(disk);
        else
            kvl_disk_reclaim_committed(disk);
        break;
    case KVL_NODE_PREPARE:
        kvl_disk_prepared(disk);
        break;
    case KVL_NODE_RESOLVE:
        kvl_disk_reclaim_resolved(disk);
        break;
    case KVL_NODE_FOUND:
        take_found(disk, kvl_container_of(node, struct kvl_disk_found, node));
        break;
    case KVL_NODE_CATALOG:
        kvl_mailbox_post(&disk->outbox, node);
        break;
    case KVL_NODE_RECANT:
        take_recanted(disk, kvl_container_of(node, struct kvl_disk_notices, node));
        break;
    case KVL_NODE_SOUGHT:
        take_sought(disk, kvl_container_of(node, struct kvl_disk_seek, node));
        break;
    case KVL_NODE_LOST:
        kvl_disk_lost_taken(disk, kvl_container_of(node, struct kvl_disk_lost, node));
        break;
    case KVL_NODE_LOAD:
        take_loaded(disk, kvl_container_of(node, struct kvl_disk_loading, node));
        break;
    default:
        for (uint32_t i = 0; i < 3; i++)
            sweep_canceled(&disk->loads_waiting[i]);
        sweep_canceled(&disk->stores_waiting);
        break;
    }
}

static bool take_inbox(struct kvl_disk *disk) {
    bool progress = kvl_mailbox_take(&disk->inbox);
    struct kvl_node *node;
    while ((node = kvl_mailbox_next(&disk->inbox)) != NULL)
        take_node(disk, node);
    return progress;
}

static uint64_t smaller(uint64_t a, uint64_t b) {
    return a < b ? a : b;
}

/* Sequence of the oldest of the owner's wishes that is not durable yet. */
static uint64_t oldest_outstanding(const struct kvl_disk *disk) {
    uint64_t oldest = UINT64_MAX;
    if (disk->stores_waiting.head != NULL)
        oldest = disk->stores_waiting.head->sequence;
    for (const struct kvl_disk_batch *batch = disk->batch_head; batch != NULL; batch = batch->next)
        oldest = smaller(oldest, batch->first_sequence);
    if (disk->pending.count > 0)
        oldest = smaller(oldest, disk->pending.first_sequence);
    if (disk->commit.busy || disk->commit_parked)
        oldest = smaller(oldest, disk->commit.ops.first_sequence);
    return oldest;
}

/* A change that was lost is told to every flush up to the first that was asked for afterwards and
 * that somebody waits for. */
static kvl_err failure_for(struct kvl_disk *disk, const struct kvl_disk_flush *flush) {
    kvl_err status = disk->index_status;
    if (flush->sequence > disk->index_failed_at && flush->done != NULL)
        disk->index_status = KVL_OK;
    return status;
}

static bool finish_flushes(struct kvl_disk *disk) {
    bool progress = false;
    if (!disk->loaded)
        return false;
    while (disk->flushes != NULL &&
           (disk->index_status != KVL_OK || disk->flushes->sequence < oldest_outstanding(disk))) {
        struct kvl_disk_flush *flush = disk->flushes;
        disk->flushes = flush->next;
        flush->status = failure_for(disk, flush);
        kvl_mailbox_post(&disk->outbox, &flush->node);
        progress = true;
    }
    return progress;
}

static bool advance(struct kvl_disk *disk) {
    bool progress = take_inbox(disk);
    progress = kvl_workers_poll(disk->workers) > 0 || progress;
    progress = kvl_disk_loads_advance(disk) || progress;
    progress = disk->backend->ops->poll(disk->backend) > 0 || progress;
    kvl_disk_loads_verify(disk);
    progress = kvl_disk_stage_advance(disk) || progress;
    progress = kvl_disk_writes_advance(disk) || progress;
    progress = kvl_disk_commit_advance(disk) || progress;
    progress = kvl_disk_reclaim_advance(disk) || progress;
    progress = kvl_disk_arenas_advance(disk) || progress;
    return finish_flushes(disk) || progress;
}

/* When the persist bound asks for something, although nothing else happens. */
static int wait_ms(const struct kvl_disk *disk) {
    uint64_t due_ns = disk->arenas != NULL ? disk->arenas_due_ns : UINT64_MAX;
    for (const struct kvl_disk_batch *batch = disk->batch_head; batch != NULL;
         batch = batch->next) {
        if (batch->state == KVL_BATCH_FILLING && !batch->sealed)
            due_ns = smaller(due_ns, batch->opened_ns + disk->persist_ns / 2);
    }
    due_ns = smaller(due_ns, kvl_disk_sync_due_ns(disk));
    if (disk->loaded && disk->pending.count > 0 && !disk->commit.busy && !disk->commit_parked)
        due_ns = smaller(due_ns, disk->pending.since_ns + disk->persist_ns / 2);
    if (due_ns == UINT64_MAX)
        return -1;
    uint64_t now_ns = kvl_clock_ns();
    return due_ns <= now_ns ? 1 : (int)((due_ns - now_ns) / 1000000 + 1);
}

static void wait_for_work(struct kvl_disk *disk) {
    struct pollfd fds[] = {
        {.fd = disk->inbox.fd, .events = POLLIN},
        {.fd = disk->backend->fd, .events = POLLIN},
        {.fd = kvl_workers_fd(disk->workers), .events = POLLIN},
    };
    poll(fds, sizeof(fds) / sizeof(fds[0]), wait_ms(disk));
}

/* Nothing of ours is with the kernel, the workers or the index thread any more. */
static bool quiet(const struct kvl_disk *disk) {
    return disk->backend->inflight == 0 && kvl_workers_inflight(disk->workers) == 0 &&
           !disk->commit.busy && !disk->preparing && disk->reclaim.state != KVL_RECLAIM_DELETING &&
           disk->reclaim.state != KVL_RECLAIM_RESOLVING && disk->loaded;
}

void *kvl_disk_main(void *arg) {
    struct kvl_disk *disk = arg;
    kvl_thread_begin("kvl-disk", KVL_THREAD_PROMPT);
    disk->start_status = kvl_disk_backend_create(disk, &disk->start_msg);
    if (disk->start_status == KVL_OK)
        kvl_disk_memory_register(disk);
    kvl_err status = disk->start_status;
    sem_post(&disk->started);
    if (status != KVL_OK)
        return NULL;
    while (!atomic_load(&disk->stopping)) {
        if (!advance(disk))
            wait_for_work(disk);
    }
    while (!quiet(disk)) {
        bool progress = take_inbox(disk);
        progress = kvl_workers_poll(disk->workers) > 0 || progress;
        progress = disk->backend->ops->poll(disk->backend) > 0 || progress;
        kvl_disk_loads_verify(disk);
        if (!progress)
            poll(NULL, 0, 1);
    }
    kvl_disk_arenas_forget(disk);
    disk->backend->ops->destroy(disk->backend);
    return NULL;
}
