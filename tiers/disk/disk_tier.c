/* disk_tier.c - the owner's side: the tier and catalog interfaces, start and end. */
#include "disk_tier.h"

#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "clock.h"
#include "disk.h"

static struct kvl_disk *disk_of(struct kvl_tier *tier) {
    return kvl_container_of(tier, struct kvl_disk, tier);
}

static kvl_err check_io(const struct kvl_disk *disk, const struct kvl_io *io) {
    const struct kvl_layout *layout = io->layout;
    if (layout == NULL || io->buffer == NULL || layout->frame_count == 0 ||
        layout->frame_count > KVL_FRAMES_MAX || layout->payload_bytes == 0)
        return KVL_ERR_INVALID;
    if (layout->payload_bytes > KVL_RECORD_PAYLOAD_MAX ||
        kvl_record_bytes_max(layout) > disk->plan.segment_bytes)
        return io->op == KVL_IO_STORE ? KVL_ERR_TOOBIG : KVL_OK;
    return KVL_OK;
}

static kvl_err disk_submit(struct kvl_tier *tier, struct kvl_io *io) {
    struct kvl_disk *disk = disk_of(tier);
    kvl_err err = check_io(disk, io);
    if (err != KVL_OK)
        return err;
    struct kvl_disk_request *request = disk->free_requests;
    if (request == NULL)
        return KVL_ERR_AGAIN;
    disk->free_requests = request->next;
    request->io = io;
    request->arrival_ns = kvl_clock_ns();
    request->frames_told = 0;
    request->location = io->location;
    request->stored_bytes = 0;
    atomic_store(&request->canceled, false);
    atomic_store(&request->frames_ready, 0);
    io->tier_private = request;
    disk->inflight++;
    kvl_mailbox_post(&disk->inbox, &request->in);
    return KVL_OK;
}

static void tell_progress(struct kvl_disk_request *request) {
    uint32_t frames = atomic_load(&request->frames_ready);
    if (frames == request->frames_told || request->io->frame_ready == NULL)
        return;
    request->frames_told = frames;
    request->io->frame_ready(request->io, frames);
}

static void finish_request(struct kvl_disk *disk, struct kvl_disk_request *request) {
    struct kvl_io *io = request->io;
    io->status = request->status;
    if (io->op == KVL_IO_STORE && io->status == KVL_OK)
        io->location = request->location;
    io->stored_bytes = request->stored_bytes;
    io->tier_private = NULL;
    request->io = NULL;
    request->next = disk->free_requests;
    disk->free_requests = request;
    disk->inflight--;
    io->complete(io);
}

static void tell_found(struct kvl_disk *disk, struct kvl_disk_found *found) {
    const struct kvl_tier_events *events = &disk->tier.events;
    for (uint32_t i = 0; i < found->count && events->found != NULL; i++) {
        const struct kvl_index_block *block = &found->blocks[i];
        events->found(events->arg, &block->record, block->location, block->stored_bytes,
            block->last_use_wall_ns);
    }
    free(found);
    atomic_fetch_sub(&disk->found_chunks, 1);
}

static void tell_catalog(struct kvl_disk *disk, struct kvl_disk_catalog_record *record) {
    if (disk->catalog.found != NULL)
        disk->catalog.found(disk->catalog.found_arg, record->kind, record->data, record->key_bytes,
            record->data + record->key_bytes, record->value_bytes);
    free(record);
}

static void tell_sought(struct kvl_disk *disk, struct kvl_disk_seek *seek) {
    const struct kvl_tier_events *events = &disk->tier.events;
    disk->seek_keys -= seek->count;
    if (seek->number == 0 && seek->certain && events->checked != NULL)
        events->checked(events->arg, seek->generation_max);
    else if (events->sought != NULL)
        events->sought(events->arg, seek->number, seek->certain);
    free(seek);
}

static void answer(struct kvl_disk *disk, struct kvl_disk_ask *question) {
    const struct kvl_tier_events *events = &disk->tier.events;
    for (uint64_t i = 0; i < question->count && events->keep != NULL; i++)
        question->items[i].keep = events->keep(events->arg, &question->items[i].key);
    kvl_mailbox_post(&disk->inbox, &question->node);
}

static void tell_notices(struct kvl_disk *disk, struct kvl_disk_notices *notices) {
    const struct kvl_tier_events *events = &disk->tier.events;
    for (uint64_t i = 0; i < notices->count; i++) {
        const struct kvl_disk_notice *notice = &notices->items[i];
        if (notice->moved && events->moved != NULL)
            events->moved(events->arg, &notice->key, notice->location);
        else if (!notice->moved && events->lost != NULL)
            events->lost(events->arg, &notice->key, notice->location);
    }
    if (notices->ack)
        kvl_mailbox_post(&disk->inbox, &notices->node);
    else
        free(notices);
}

static void tell_lost(struct kvl_disk *disk, struct kvl_disk_lost *lost) {
    const struct kvl_tier_events *events = &disk->tier.events;
    if (lost->count > 0 && events->lost_at != NULL)
        events->lost_at(events->arg, lost->locations, lost->count);
    free(lost);
}

static void tell_flushed(struct kvl_disk *disk, struct kvl_disk_flush *flush) {
    bool lost = flush->deletion_lost && flush->status == KVL_OK;
    if (flush->done != NULL)
        flush->done(flush->arg, lost ? KVL_ERR_NOMEM : flush->status);
    if (flush != &disk->drain_flush)
        free(flush);
}

static void tell(struct kvl_disk *disk, struct kvl_node *node) {
    switch (node->kind) {
    case KVL_NODE_PROGRESS:
        tell_progress(kvl_container_of(node, struct kvl_disk_request, progress));
        break;
    case KVL_NODE_COMPLETE:
        finish_request(disk, kvl_container_of(node, struct kvl_disk_request, complete));
        break;
    case KVL_NODE_FOUND:
        tell_found(disk, kvl_container_of(node, struct kvl_disk_found, node));
        break;
    case KVL_NODE_CATALOG:
        tell_catalog(disk, kvl_container_of(node, struct kvl_disk_catalog_record, node));
        break;
    case KVL_NODE_SOUGHT:
        tell_sought(disk, kvl_container_of(node, struct kvl_disk_seek, node));
        break;
    case KVL_NODE_LOAD: {
        struct kvl_disk_loading *loading = kvl_container_of(node, struct kvl_disk_loading, node);
        if (disk->tier.events.loaded != NULL)
            disk->tier.events.loaded(disk->tier.events.arg, loading->status);
        free(loading);
        break;
    }
    case KVL_NODE_ASK:
        answer(disk, kvl_container_of(node, struct kvl_disk_ask, node));
        break;
    case KVL_NODE_NOTICES:
        tell_notices(disk, kvl_container_of(node, struct kvl_disk_notices, node));
        break;
    case KVL_NODE_LOST:
        tell_lost(disk, kvl_container_of(node, struct kvl_disk_lost, node));
        break;
    default:
        tell_flushed(disk, kvl_container_of(node, struct kvl_disk_flush, node));
        break;
    }
}

static uint32_t disk_poll(struct kvl_tier *tier) {
    struct kvl_disk *disk = disk_of(tier);
    struct kvl_node *node;
    uint32_t count = 0;
    kvl_mailbox_take(&disk->outbox);
    for (; (node = kvl_mailbox_next(&disk->outbox)) != NULL; count++)
        tell(disk, node);
    return count;
}

static void disk_cancel(struct kvl_tier *tier, struct kvl_io *io) {
    struct kvl_disk *disk = disk_of(tier);
    struct kvl_disk_request *request = io->tier_private;
    if (request == NULL)
        return;
    atomic_store(&request->canceled, true);
    kvl_mailbox_post(&disk->inbox, &disk->wake);
}

static struct kvl_disk_op_node *new_op(enum kvl_index_op_kind kind, uint64_t data_bytes) {
    struct kvl_disk_op_node *node = calloc(1, sizeof(*node) + data_bytes);
    if (node != NULL) {
        node->node.kind = KVL_NODE_OP;
        node->op.kind = kind;
    }
    return node;
}

static void disk_discard(struct kvl_tier *tier, const struct kvl_key *key, uint64_t location) {
    struct kvl_disk *disk = disk_of(tier);
    struct kvl_disk_op_node *node = new_op(KVL_INDEX_DELETE, 0);
    if (node == NULL) {
        KVL_ERROR(disk->log, "disk out of memory: a deletion is lost");
        disk->deletion_lost = true;
        return;
    }
    node->op.block.record.key = *key;
    node->op.old_location = location;
    kvl_mailbox_post(&disk->inbox, &node->node);
}

static kvl_err disk_seek(struct kvl_tier *tier, const struct kvl_tier_seek *wanted) {
    struct kvl_disk *disk = disk_of(tier);
    uint32_t count = wanted->count;
    if (disk->seek_keys + count > KVL_DISK_SEEK_KEYS_MAX)
        return KVL_ERR_AGAIN;
    struct kvl_disk_seek *seek = malloc(sizeof(*seek) + count * sizeof(seek->keys[0]));
    if (seek == NULL)
        return KVL_ERR_NOMEM;
    *seek = (struct kvl_disk_seek){.node.kind = KVL_NODE_SOUGHT,
        .number = wanted->number,
        .leading = wanted->leading,
        .count = count};
    memcpy(seek->keys, wanted->keys, count * sizeof(seek->keys[0]));
    disk->seek_keys += count;
    atomic_fetch_add(&disk->seeks, 1);
    kvl_mailbox_post(&disk->seeker.inbox, &seek->node);
    return KVL_OK;
}

static struct kvl_tier_stats disk_stats(struct kvl_tier *tier) {
    struct kvl_disk *disk = disk_of(tier);
    return (struct kvl_tier_stats){
        .capacity_bytes = disk->plan.capacity_bytes,
        .used_bytes = atomic_load(&disk->used_bytes),
        .read_bytes = atomic_load(&disk->read_bytes),
        .written_bytes = atomic_load(&disk->written_bytes),
        .loads = atomic_load(&disk->loads),
        .stores = atomic_load(&disk->stores),
        .errors = atomic_load(&disk->errors),
        .corrupt = atomic_load(&disk->corrupt),
        .inflight = disk->inflight,
        .reserved_bytes = kvl_disk_plan_reserved_bytes(&disk->plan),
    };
}

static bool disk_fits(
    struct kvl_tier *tier, const struct kvl_layout *layout, uint64_t *capacity_bytes) {
    uint64_t record_bytes = kvl_record_bytes_max(layout);
    *capacity_bytes = kvl_disk_plan_capacity_for(record_bytes);
    return record_bytes <= disk_of(tier)->plan.segment_bytes;
}

/* flush: zeroed; NULL: out of memory. */
static kvl_err post_flush(struct kvl_disk *disk, struct kvl_disk_flush *flush,
    void (*done)(void *arg, kvl_err status), void *arg) {
    if (flush == NULL)
        return KVL_ERR_NOMEM;
    flush->node.kind = KVL_NODE_FLUSH;
    flush->done = done;
    flush->arg = arg;
    flush->deletion_lost = done != NULL && disk->deletion_lost;
    disk->deletion_lost = disk->deletion_lost && done == NULL;
    kvl_mailbox_post(&disk->inbox, &flush->node);
    return KVL_OK;
}

static void disk_quiesce(struct kvl_tier *tier) {
    struct kvl_disk *disk = disk_of(tier);
    if (post_flush(disk, calloc(1, sizeof(struct kvl_disk_flush)), NULL, NULL) != KVL_OK)
        KVL_WARN(disk->log, "disk out of memory: flushed within persist_ms instead of now");
}

struct drain_state {
    bool flushed;
    kvl_err status;
};

static void drained(void *arg, kvl_err status) {
    struct drain_state *state = arg;
    state->flushed = true;
    state->status = status;
}

static kvl_err disk_drain(struct kvl_tier *tier) {
    struct kvl_disk *disk = disk_of(tier);
    struct drain_state state = {false, KVL_OK};
    disk->drain_flush = (struct kvl_disk_flush){0};
    kvl_err err = post_flush(disk, &disk->drain_flush, drained, &state);
    if (err != KVL_OK)
        return err;
    struct pollfd wait = {.fd = disk->outbox.fd, .events = POLLIN};
    while (disk_poll(tier) > 0 || !state.flushed || disk->inflight > 0)
        poll(&wait, 1, disk->inflight > 0 || !state.flushed ? 100 : 0);
    return state.status;
}

static int disk_fd(const struct kvl_tier *tier) {
    return kvl_container_of((struct kvl_tier *)tier, struct kvl_disk, tier)->outbox.fd;
}

/* AGAIN: there may be room once what waits is durable, for it may replace older values. */
static kvl_err catalog_room(struct kvl_disk *disk, uint64_t bytes) {
    uint64_t map_bytes = disk->plan.map_bytes;
    uint64_t limit_bytes = map_bytes / 1000 * KVL_DISK_CATALOG_PERMILLE;
    uint64_t used_bytes = map_bytes / 1000 * atomic_load(&disk->index_permille);
    uint64_t journal_limit_bytes = disk->plan.journal_bytes / 200 * KVL_DISK_JOURNAL_PERCENT;
    uint64_t journal_bytes = atomic_load(&disk->journal_bytes);
    if (used_bytes + bytes > limit_bytes || journal_bytes + bytes > journal_limit_bytes)
        return KVL_ERR_NOSPC;
    uint64_t queued_bytes = atomic_load(&disk->queued_bytes);
    return used_bytes + queued_bytes + bytes > limit_bytes ||
                   journal_bytes + queued_bytes + bytes > journal_limit_bytes
               ? KVL_ERR_AGAIN
               : KVL_OK;
}

static kvl_err queue_catalog(
    struct kvl_disk *disk, struct kvl_index_op op, const void *key, const void *value) {
    uint64_t bytes = (uint64_t)op.key_bytes + op.value_bytes;
    if (op.key_bytes == 0 || op.key_bytes > KVL_CATALOG_KEY_BYTES_MAX ||
        op.value_bytes > KVL_CATALOG_VALUE_BYTES_MAX || op.catalog_kind >= KVL_CATALOG_KINDS)
        return KVL_ERR_TOOBIG;
    kvl_err room = op.kind == KVL_INDEX_CATALOG_PUT ? catalog_room(disk, bytes) : KVL_OK;
    if (room != KVL_OK)
        return room;
    if (atomic_load(&disk->queued_bytes) + bytes > KVL_DISK_QUEUED_BYTES_MAX)
        return KVL_ERR_AGAIN;
    struct kvl_disk_op_node *node = new_op(op.kind, bytes);
    if (node == NULL)
        return KVL_ERR_NOMEM;
    node->op = op;
    node->op.data = node->data;
    memcpy(node->data, key, op.key_bytes);
    if (value != NULL)
        memcpy(node->data + op.key_bytes, value, op.value_bytes);
    atomic_fetch_add(&disk->queued_bytes, bytes);
    kvl_mailbox_post(&disk->inbox, &node->node);
    return KVL_OK;
}

static kvl_err catalog_put(struct kvl_catalog *catalog, enum kvl_catalog_kind kind, const void *key,
    uint32_t key_bytes, const void *value, uint32_t value_bytes) {
    struct kvl_index_op op = {.kind = KVL_INDEX_CATALOG_PUT,
        .catalog_kind = kind,
        .key_bytes = key_bytes,
        .value_bytes = value_bytes};
    return queue_catalog(kvl_container_of(catalog, struct kvl_disk, catalog), op, key, value);
}

static kvl_err catalog_remove(
    struct kvl_catalog *catalog, enum kvl_catalog_kind kind, const void *key, uint32_t key_bytes) {
    struct kvl_index_op op = {
        .kind = KVL_INDEX_CATALOG_REMOVE, .catalog_kind = kind, .key_bytes = key_bytes};
    return queue_catalog(kvl_container_of(catalog, struct kvl_disk, catalog), op, key, NULL);
}

static kvl_err catalog_flush(
    struct kvl_catalog *catalog, void (*done)(void *arg, kvl_err status), void *arg) {
    return post_flush(kvl_container_of(catalog, struct kvl_disk, catalog),
        calloc(1, sizeof(struct kvl_disk_flush)), done, arg);
}

static const struct kvl_catalog_ops catalog_ops = {
    .put = catalog_put,
    .remove = catalog_remove,
    .flush = catalog_flush,
};

/* Frees what waits in a mailbox and is nobody's but the node's. */
static void discard_mail(struct kvl_mailbox *mailbox) {
    struct kvl_node *node;
    while (kvl_mailbox_take(mailbox) && (node = kvl_mailbox_next(mailbox)) != NULL) {
        switch (node->kind) {
        case KVL_NODE_OP:
        case KVL_NODE_FLUSH:
        case KVL_NODE_REGISTER:
        case KVL_NODE_ASK:
        case KVL_NODE_NOTICES:
        case KVL_NODE_LOST:
        case KVL_NODE_LOAD:
        case KVL_NODE_FOUND:
        case KVL_NODE_CATALOG:
        case KVL_NODE_RECANT:
        case KVL_NODE_SOUGHT:
            free(node); /* the node is the first member of all of these */
            break;
        default:
            break;
        }
    }
}

static void stop_threads(struct kvl_disk *disk) {
    struct kvl_node stop = {.kind = KVL_NODE_STOP};
    atomic_store(&disk->stopping, true);
    if (disk->disk_started) {
        kvl_mailbox_post(&disk->inbox, &disk->wake);
        pthread_join(disk->disk_thread, NULL);
    }
    if (disk->index_started) {
        kvl_mailbox_post(&disk->index_inbox, &stop);
        pthread_join(disk->index_thread, NULL);
    }
}

static void destroy(struct kvl_disk *disk) {
    stop_threads(disk);
    kvl_workers_destroy(disk->workers);
    discard_mail(&disk->inbox);
    discard_mail(&disk->outbox);
    discard_mail(&disk->seeker.inbox);
    kvl_disk_seeker_deinit(disk);
    while (disk->flushes != NULL) {
        struct kvl_disk_flush *next = disk->flushes->next;
        free(disk->flushes);
        disk->flushes = next;
    }
    kvl_disk_ops_clear(disk, &disk->pending);
    kvl_disk_ops_clear(disk, &disk->commit.ops);
    free(disk->pending.items);
    free(disk->commit.ops.items);
    free(disk->reclaim.commit.ops.items);
    free(disk->reclaim.resolved);
    kvl_codec_pool_deinit(&disk->codecs);
    kvl_index_close(disk->index);
    kvl_journal_deinit(&disk->journal);
    kvl_index_state_served(disk->index_state);
    kvl_index_state_close(disk->index_state);
    kvl_segments_deinit(&disk->segments);
    kvl_disk_memory_destroy(disk);
    kvl_disk_dir_close(&disk->dir);
    kvl_mailbox_deinit(&disk->inbox);
    kvl_mailbox_deinit(&disk->outbox);
    kvl_mailbox_deinit(&disk->index_inbox);
    kvl_mailbox_deinit(&disk->seeker.inbox);
    sem_destroy(&disk->started);
    free(disk->requests);
    free(disk);
}

static void disk_deinit(struct kvl_tier *tier) {
    destroy(disk_of(tier));
}

static const struct kvl_tier_ops disk_ops = {
    .name = "disk",
    .submit = disk_submit,
    .poll = disk_poll,
    .cancel = disk_cancel,
    .discard = disk_discard,
    .stats = disk_stats,
    .fits = disk_fits,
    .seek = disk_seek,
    .quiesce = disk_quiesce,
    .drain = disk_drain,
    .deinit = disk_deinit,
    .fd = disk_fd,
};

static struct kvl_disk *new_disk(const struct kvl_disk_options *options) {
    struct kvl_disk *disk = calloc(1, sizeof(*disk));
    if (disk == NULL)
        return NULL;
    disk->tier.ops = &disk_ops;
    disk->catalog.ops = &catalog_ops;
    disk->options = *options;
    disk->log = options->log;
    if (disk->options.codec_threads == 0)
        disk->options.codec_threads = 2;
    if (disk->options.codec_threads > KVL_CODECS_MAX)
        disk->options.codec_threads = KVL_CODECS_MAX;
    if (disk->options.persist_ms == 0)
        disk->options.persist_ms = 200;
    atomic_store(&disk->persist_ns, disk->options.persist_ms * 1000000ull);
    disk->dir.lock_fd = disk->dir.segments_fd = -1;
    disk->journal.fd = disk->journal.new_fd = -1;
    disk->inbox.fd = disk->outbox.fd = disk->index_inbox.fd = disk->seeker.inbox.fd = -1;
    disk->batch_tail = &disk->batch_head;
    disk->pending.first_sequence = disk->commit.ops.first_sequence = UINT64_MAX;
    disk->commit.node.kind = KVL_NODE_COMMIT;
    disk->wake.kind = KVL_NODE_WAKE;
    kvl_disk_list_init(&disk->stores_waiting);
    for (uint32_t i = 0; i < 3; i++)
        kvl_disk_list_init(&disk->loads_waiting[i]);
    atomic_store(&disk->codec_state, disk->options.codec);
    sem_init(&disk->started, 0, 0);
    return disk;
}

static kvl_err create_queues(struct kvl_disk *disk) {
    bool fds = kvl_mailbox_init(&disk->inbox);
    fds = kvl_mailbox_init(&disk->outbox) && fds;
    fds = kvl_mailbox_init(&disk->index_inbox) && fds;
    fds = kvl_mailbox_init(&disk->seeker.inbox) && fds;
    kvl_err err = kvl_codec_pool_init(&disk->codecs, disk->options.codec_threads);
    if (!fds)
        return KVL_ERR_LIMIT;
    disk->requests = calloc(KVL_DISK_REQUESTS, sizeof(*disk->requests));
    if (disk->requests == NULL)
        return KVL_ERR_NOMEM;
    for (uint32_t i = KVL_DISK_REQUESTS; i-- > 0;) {
        struct kvl_disk_request *request = &disk->requests[i];
        request->disk = disk;
        request->in.kind = KVL_NODE_REQUEST;
        request->progress.kind = KVL_NODE_PROGRESS;
        request->complete.kind = KVL_NODE_COMPLETE;
        request->next = disk->free_requests;
        disk->free_requests = request;
    }
    if (err == KVL_OK)
        err = kvl_workers_create("kvl-codec", disk->options.codec_threads, &disk->workers);
    return err == KVL_OK ? kvl_disk_memory_create(disk) : err;
}

/* Signals are the main thread's business. */
static kvl_err start_threads(struct kvl_disk *disk, struct kvl_errmsg *msg) {
    sigset_t all, before;
    struct kvl_disk_loading *loading = calloc(1, sizeof(*loading));
    if (loading == NULL)
        return kvl_fail(msg, KVL_ERR_NOMEM, "out of memory");
    loading->node.kind = KVL_NODE_LOAD;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = pthread_create(&disk->index_thread, NULL, kvl_disk_index_main, disk);
    disk->index_started = error == 0;
    if (error == 0) {
        error = pthread_create(&disk->disk_thread, NULL, kvl_disk_main, disk);
        disk->disk_started = error == 0;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    while (error == 0 && sem_wait(&disk->started) != 0)
        assert(errno == EINTR);
    if (error != 0 || disk->start_status != KVL_OK) {
        free(loading);
        if (error != 0)
            return kvl_fail(msg, KVL_ERR_LIMIT, "cannot start threads: %s", strerror(error));
        *msg = disk->start_msg;
        return disk->start_status;
    }
    kvl_mailbox_post(&disk->index_inbox, &loading->node);
    return KVL_OK;
}

kvl_err kvl_disk_tier_create(const struct kvl_disk_options *options, struct kvl_tier **tier,
    struct kvl_catalog **catalog, struct kvl_errmsg *msg) {
    struct kvl_errmsg unused;
    msg = msg != NULL ? msg : &unused;
    struct kvl_disk *disk = new_disk(options);
    if (disk == NULL)
        return kvl_fail(msg, KVL_ERR_NOMEM, "out of memory");
    kvl_err err = kvl_disk_plan_make(options->capacity_bytes, &disk->plan, msg);
    if (err == KVL_OK && (err = create_queues(disk)) != KVL_OK)
        kvl_fail(msg, err, "cannot set up the disk tier: %s", kvl_err_text(err));
    if (err == KVL_OK)
        err = kvl_disk_dir_open(options, &disk->dir, msg);
    if (err == KVL_OK)
        err = kvl_disk_open_store(disk, msg);
    uint32_t segments = disk->segments.count;
    if (err == KVL_OK)
        err = start_threads(disk, msg);
    if (err != KVL_OK) {
        destroy(disk);
        return err;
    }
    KVL_INFO(disk->log, "disk open path=%s capacity=%llu segment=%llu segments=%u io=%s",
        disk->dir.path, (unsigned long long)disk->plan.capacity_bytes,
        (unsigned long long)disk->plan.segment_bytes, segments, disk->io_name);
    *tier = &disk->tier;
    *catalog = &disk->catalog;
    return KVL_OK;
}

void kvl_disk_tier_register_memory(struct kvl_tier *tier, void *address, uint64_t bytes) {
    struct kvl_disk *disk = disk_of(tier);
    struct kvl_disk_register *memory = calloc(1, sizeof(*memory));
    if (memory == NULL)
        return;
    memory->node.kind = KVL_NODE_REGISTER;
    memory->address = address;
    memory->bytes = bytes;
    kvl_mailbox_post(&disk->inbox, &memory->node);
}

void kvl_disk_tier_set_persist_ms(struct kvl_tier *tier, uint32_t persist_ms) {
    struct kvl_disk *disk = disk_of(tier);
    atomic_store(&disk->persist_ns, persist_ms * 1000000ull);
    kvl_mailbox_post(&disk->inbox, &disk->wake);
}

const char *kvl_disk_tier_codec_name(struct kvl_tier *tier) {
    switch (atomic_load(&disk_of(tier)->codec_state)) {
    case KVL_DISK_CODEC_ZSTD:
        return "planes+zstd";
    case KVL_DISK_CODEC_RAW:
        return "raw";
    default:
        return "undecided";
    }
}

const char *kvl_disk_tier_io_name(struct kvl_tier *tier) {
    return disk_of(tier)->io_name;
}
