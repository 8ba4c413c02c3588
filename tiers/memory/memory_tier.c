/* memory_tier.c - transfers wait here by priority; only a few stand at the copy workers at a time.
 *
 *   submit -> waiting[RESTORE | PREFETCH | BEHIND] -> at most threads + 1 at the workers ->
 * complete
 *
 * What has not been handed to a worker can still be overtaken and canceled. */
#include "memory/memory_tier.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "workers.h"

#define JOBS 1024u
#define PRIORITIES 3
#define FAIR_EVERY 8u /* every so many transfers the lowest priority that waits is served */

struct memory_tier;

struct copy_job {
    struct kvl_job job;
    struct memory_tier *tier;
    struct kvl_io *io;
    uint8_t *slot;
    kvl_err status;
    struct copy_job *next; /* of the list it is in: free, waiting or canceled */
};

struct job_list {
    struct copy_job *head;
    struct copy_job **tail;
};

struct memory_tier {
    struct kvl_tier base;
    struct kvl_arena *arena;
    struct kvl_workers *workers;
    uint32_t workers_window;
    struct job_list waiting[PRIORITIES];
    struct job_list canceled;
    struct job_list free;
    uint64_t dispatched;
    struct kvl_tier_stats stats;
    struct copy_job jobs[JOBS];
};

static struct memory_tier *memory_tier_of(const struct kvl_tier *tier) {
    return kvl_container_of((struct kvl_tier *)tier, struct memory_tier, base);
}

/* ---- lists -------------------------------------------------------------------------------- */

static void list_init(struct job_list *list) {
    list->head = NULL;
    list->tail = &list->head;
}

static void list_push(struct job_list *list, struct copy_job *job) {
    job->next = NULL;
    *list->tail = job;
    list->tail = &job->next;
}

static struct copy_job *list_pop(struct job_list *list) {
    struct copy_job *job = list->head;
    if (job) {
        list->head = job->next;
        if (!list->head)
            list->tail = &list->head;
    }
    return job;
}

static bool list_remove(struct job_list *list, struct copy_job *job) {
    for (struct copy_job **at = &list->head; *at; at = &(*at)->next) {
        if (*at == job) {
            *at = job->next;
            if (!*at)
                list->tail = at;
            return true;
        }
    }
    return false;
}

/* ---- transfers ---------------------------------------------------------------------------- */

/* On a copy worker. The copy is what gets hashed, not its source, so that a fault on the way shows;
 * frame by frame, while it is still in the cache. */
static kvl_err copy_and_check(const struct copy_job *job) {
    const struct kvl_io *io = job->io;
    uint8_t *to = io->op == KVL_IO_STORE ? job->slot : io->buffer;
    const uint8_t *from = io->op == KVL_IO_STORE ? io->buffer : job->slot;
    uint64_t hashes[KVL_FRAMES_MAX];
    for (uint32_t frame = 0; frame < io->layout->frame_count; frame++) {
        const uint64_t bytes = kvl_layout_frame_bytes(io->layout, frame);
        memcpy(to, from, bytes);
        hashes[frame] = kvl_bytes_hash(to, bytes);
        to += bytes;
        from += bytes;
    }
    bool same = kvl_content_hash_of_frames(io->layout, hashes) == io->record.content_hash;
    return same ? KVL_OK : KVL_ERR_CORRUPT;
}

static void copy_run(struct kvl_job *base) {
    struct copy_job *job = kvl_container_of(base, struct copy_job, job);
    job->status = KVL_OK;
    if (job->io->op == KVL_IO_HASH)
        job->io->record.content_hash = kvl_content_hash(job->io->layout, job->slot, NULL);
    else
        job->status = copy_and_check(job);
}

static void io_end(struct memory_tier *tier, struct copy_job *job, kvl_err status) {
    struct kvl_io *io = job->io;
    job->io = NULL;
    list_push(&tier->free, job);
    kvl_tier_stats_count(&tier->stats, io, status);
    io->tier_private = NULL;
    io->status = status;
    io->stored_bytes = io->layout->slot_bytes;
    if (status == KVL_OK && io->op != KVL_IO_HASH && io->frame_ready)
        io->frame_ready(io, io->layout->frame_count);
    io->complete(io);
}

static struct copy_job *next_waiting(struct memory_tier *tier) {
    const bool fair = tier->dispatched % FAIR_EVERY == FAIR_EVERY - 1;
    for (int i = 0; i < PRIORITIES; i++) {
        struct copy_job *job = list_pop(&tier->waiting[fair ? PRIORITIES - 1 - i : i]);
        if (job)
            return job;
    }
    return NULL;
}

static void dispatch(struct memory_tier *tier) {
    while (kvl_workers_inflight(tier->workers) < tier->workers_window) {
        struct copy_job *job = next_waiting(tier);
        if (!job)
            return;
        tier->dispatched++;
        /* Not urgent: the order was chosen here, and an urgent one could pass a served BEHIND. */
        kvl_workers_submit(tier->workers, &job->job, false);
    }
}

static void copy_done(struct kvl_job *base) {
    struct copy_job *job = kvl_container_of(base, struct copy_job, job);
    struct memory_tier *tier = job->tier;
    dispatch(tier);
    io_end(tier, job, job->status);
}

static bool io_is_valid(struct memory_tier *tier, const struct kvl_io *io) {
    const uint64_t capacity = kvl_arena_stats(tier->arena).capacity_bytes;
    const bool copies = io->op == KVL_IO_STORE || io->op == KVL_IO_LOAD;
    return io->layout && io->complete && (unsigned)io->priority < PRIORITIES &&
           (copies ? io->buffer != NULL : io->op == KVL_IO_HASH) &&
           io->location % KVL_PAGE_BYTES == 0 && io->location < capacity &&
           io->layout->payload_bytes <= capacity - io->location;
}

static kvl_err memory_submit(struct kvl_tier *base, struct kvl_io *io) {
    struct memory_tier *tier = memory_tier_of(base);
    if (!io_is_valid(tier, io))
        return KVL_ERR_INVALID;
    struct copy_job *job = list_pop(&tier->free);
    if (!job)
        return KVL_ERR_AGAIN;
    job->io = io;
    job->slot = kvl_arena_address(tier->arena, io->location);
    io->tier_private = job;
    tier->stats.inflight++;
    list_push(&tier->waiting[io->priority], job);
    dispatch(tier);
    return KVL_OK;
}

static uint32_t end_canceled(struct memory_tier *tier) {
    struct copy_job *job;
    uint32_t ended = 0;
    while ((job = list_pop(&tier->canceled)) != NULL) {
        io_end(tier, job, KVL_ERR_CANCELED);
        ended++;
    }
    return ended;
}

static uint32_t memory_poll(struct kvl_tier *base) {
    struct memory_tier *tier = memory_tier_of(base);
    uint32_t ended = kvl_workers_poll(tier->workers);
    return ended + end_canceled(tier);
}

/* A transfer waits only while the workers have others, whose end makes the fd readable: so the
 * canceled ones need no wake-up of their own. */
static void memory_cancel(struct kvl_tier *base, struct kvl_io *io) {
    struct memory_tier *tier = memory_tier_of(base);
    struct copy_job *job = io->tier_private;
    if (job && list_remove(&tier->waiting[io->priority], job))
        list_push(&tier->canceled, job);
}

static kvl_err memory_drain(struct kvl_tier *base) {
    struct memory_tier *tier = memory_tier_of(base);
    while (tier->stats.inflight > 0) {
        kvl_workers_drain(tier->workers);
        end_canceled(tier);
    }
    return KVL_OK;
}

static void memory_quiesce(struct kvl_tier *base) {
    (void)base; /* nothing here is durable */
}

/* ---- slots -------------------------------------------------------------------------------- */

static kvl_err memory_alloc(struct kvl_tier *base, uint64_t slot_bytes, uint64_t *location) {
    return kvl_arena_alloc(memory_tier_of(base)->arena, slot_bytes, location);
}

static void memory_discard(struct kvl_tier *base, const struct kvl_key *key, uint64_t location) {
    (void)key; /* the location alone names a slot */
    kvl_arena_free(memory_tier_of(base)->arena, location);
}

static uint8_t *memory_address(struct kvl_tier *base, uint64_t location) {
    return kvl_arena_address(memory_tier_of(base)->arena, location);
}

static int memory_share_fd(struct kvl_tier *base) {
    return kvl_arena_fd(memory_tier_of(base)->arena);
}

static struct kvl_tier_stats memory_stats(struct kvl_tier *base) {
    struct memory_tier *tier = memory_tier_of(base);
    struct kvl_arena_stats arena = kvl_arena_stats(tier->arena);
    struct kvl_tier_stats stats = tier->stats;
    stats.capacity_bytes = arena.capacity_bytes;
    stats.used_bytes = arena.used_bytes;
    return stats;
}

struct kvl_arena_stats kvl_memory_tier_arena_stats(const struct kvl_tier *tier) {
    return kvl_arena_stats(memory_tier_of(tier)->arena);
}

void kvl_memory_tier_wait_touched(struct kvl_tier *tier) {
    kvl_arena_wait_touched(memory_tier_of(tier)->arena);
}

/* ---- life --------------------------------------------------------------------------------- */

static void memory_deinit(struct kvl_tier *base) {
    struct memory_tier *tier = memory_tier_of(base);
    assert(tier->stats.inflight == 0);
    kvl_workers_destroy(tier->workers);
    kvl_arena_destroy(tier->arena);
    free(tier);
}

static int memory_fd(const struct kvl_tier *base) {
    return kvl_workers_fd(memory_tier_of(base)->workers);
}

#define MEMORY_OPS(tier_name)                                                                      \
    {                                                                                              \
        .name = (tier_name), .submit = memory_submit, .poll = memory_poll,                         \
        .cancel = memory_cancel, .discard = memory_discard, .alloc = memory_alloc,                 \
        .address = memory_address, .share_fd = memory_share_fd, .stats = memory_stats,             \
        .quiesce = memory_quiesce, .drain = memory_drain, .deinit = memory_deinit,                 \
        .fd = memory_fd,                                                                           \
    }

static const struct kvl_tier_ops device_ops = MEMORY_OPS("device-cpu");
static const struct kvl_tier_ops host_ops = MEMORY_OPS("host");

static void lists_init(struct memory_tier *tier) {
    for (int i = 0; i < PRIORITIES; i++)
        list_init(&tier->waiting[i]);
    list_init(&tier->canceled);
    list_init(&tier->free);
    for (uint32_t i = 0; i < JOBS; i++) {
        tier->jobs[i].tier = tier;
        tier->jobs[i].job = (struct kvl_job){.run = copy_run, .done = copy_done};
        list_push(&tier->free, &tier->jobs[i]);
    }
}

kvl_err kvl_memory_tier_create(
    const struct kvl_memory_tier_options *options, struct kvl_tier **out, struct kvl_errmsg *msg) {
    *out = NULL;
    if (options->kind != KVL_TIER_DEVICE && options->kind != KVL_TIER_HOST)
        return kvl_fail(msg, KVL_ERR_INVALID, "a memory tier is device or host");
    struct memory_tier *tier = calloc(1, sizeof *tier);
    if (!tier)
        return kvl_fail(msg, KVL_ERR_NOMEM, "out of memory for a tier");
    const uint32_t threads = options->copy_threads ? options->copy_threads : 1;
    tier->base.ops = options->kind == KVL_TIER_DEVICE ? &device_ops : &host_ops;
    tier->workers_window = threads + 1;
    lists_init(tier);

    kvl_err err = kvl_workers_create("kvl-copy", threads, &tier->workers);
    if (err != KVL_OK) {
        kvl_fail(msg, err, "cannot start %u copy threads (%s)", threads, kvl_err_text(err));
        goto failed;
    }
    const struct kvl_arena_options arena = {.name = tier->base.ops->name,
        .capacity_bytes = options->capacity_bytes,
        .touch_threads = threads,
        .log = options->log};
    err = kvl_arena_create(&arena, &tier->arena, msg);
    if (err != KVL_OK)
        goto failed;
    *out = &tier->base;
    return KVL_OK;
failed:
    kvl_workers_destroy(tier->workers);
    free(tier);
    return err;
}
