#include "device_cuda/cuda_tier.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cuda_private.h"

#define PIN_BYTES (UINT64_C(512) << 20)
#define LOST_WAIT_MS 10000u

static struct cuda_tier *cuda_tier_of(const struct kvl_tier *tier) {
    return kvl_container_of((struct kvl_tier *)tier, struct cuda_tier, base);
}

/* ---- transfers ------------------------------------------------------------------------------ */

static bool io_is_valid(const struct cuda_tier *tier, const struct kvl_io *io) {
    return io->layout && io->complete && (unsigned)io->priority < KVL_CUDA_PRIORITIES &&
           (io->op == KVL_IO_HASH ||
               (io->buffer && (io->op == KVL_IO_STORE || io->op == KVL_IO_LOAD))) &&
           io->layout->frame_count > 0 && io->layout->frame_count <= KVL_FRAMES_MAX &&
           io->location % KVL_PAGE_BYTES == 0 && io->location < tier->capacity_bytes &&
           io->layout->payload_bytes <= tier->capacity_bytes - io->location;
}

static void move_init(struct cuda_move *move, struct kvl_io *io) {
    move->io = io;
    atomic_store(&move->canceled, false);
    move->direct = move->issued = false;
    move->frame = 0;
    move->frame_at_bytes = move->payload_at_bytes = 0;
    move->parts_out = move->landed = 0;
    move->status = KVL_OK;
    move->in_outbox = move->over = move->in_news = move->ended = move->told_ended = false;
    move->news_frames = move->told_frames = move->new_frames = 0;
}

static kvl_err cuda_submit(struct kvl_tier *base, struct kvl_io *io) {
    struct cuda_tier *tier = cuda_tier_of(base);
    if (!io_is_valid(tier, io))
        return KVL_ERR_INVALID;
    struct cuda_move *move = cuda_moves_pop(&tier->free);
    if (!move)
        return KVL_ERR_AGAIN;
    move_init(move, io);
    io->tier_private = move;
    tier->stats.inflight++;
    struct cuda_lane *lane = kvl_cuda_lane_of(tier, io);
    pthread_mutex_lock(&tier->mutex);
    cuda_moves_push(&lane->inbox[io->priority], move);
    kvl_cuda_thread_call(lane->thread);
    pthread_mutex_unlock(&tier->mutex);
    return KVL_OK;
}

static void cuda_cancel(struct kvl_tier *base, struct kvl_io *io) {
    struct cuda_tier *tier = cuda_tier_of(base);
    struct cuda_move *move = io->tier_private;
    if (!move)
        return;
    atomic_store(&move->canceled, true);
    struct cuda_lane *lane = kvl_cuda_lane_of(tier, io);
    pthread_mutex_lock(&tier->mutex);
    lane->canceling = true;
    kvl_cuda_thread_call(lane->thread);
    pthread_mutex_unlock(&tier->mutex);
}

/* What the CPU hashes has to be read from the GPU, too. */
static void count(struct cuda_tier *tier, const struct kvl_io *io, kvl_err status) {
    kvl_tier_stats_count(&tier->stats, io, status);
    if (status == KVL_OK && io->op == KVL_IO_HASH)
        tier->stats.read_bytes += io->layout->payload_bytes;
}

static void tell_frames(struct cuda_move *move, uint32_t frames) {
    struct kvl_io *io = move->io;
    if (frames <= move->told_frames || io->frame_ready == NULL)
        return;
    move->told_frames = frames;
    io->frame_ready(io, frames);
}

static void move_end(struct cuda_tier *tier, struct cuda_move *move) {
    struct kvl_io *io = move->io;
    const kvl_err status = move->status;
    if (status == KVL_OK && io->op != KVL_IO_HASH)
        tell_frames(move, io->layout->frame_count);
    if (status == KVL_OK && io->op == KVL_IO_HASH)
        io->record.content_hash = move->content_hash;
    move->io = NULL;
    cuda_moves_push(&tier->free, move);
    count(tier, io, status);
    io->tier_private = NULL;
    io->status = status;
    io->stored_bytes = io->layout->slot_bytes;
    io->complete(io);
}

/* Under the mutex. Those of one priority go to the end of a list of the owner's own; returns its
 * end. From then on each may become news again, but for those that have ended. */
static struct cuda_move **take_of(struct cuda_tier *tier, int priority, struct cuda_move **tail) {
    for (struct cuda_move *move = tier->news[priority]; move != NULL; move = move->news_next) {
        move->in_news = false;
        move->new_frames = move->news_frames;
        move->told_ended = move->ended;
        move->taken_next = NULL;
        *tail = move;
        tail = &move->taken_next;
    }
    tier->news[priority] = NULL;
    tier->news_tails[priority] = &tier->news[priority];
    return tail;
}

/* What there was at this moment, the urgent first. */
static struct cuda_move *take_news(struct cuda_tier *tier, bool wait) {
    struct cuda_move *first = NULL;
    uint64_t times;
    pthread_mutex_lock(&tier->mutex);
    for (;;) {
        struct cuda_move **tail = &first;
        for (int i = 0; i < KVL_CUDA_PRIORITIES; i++)
            tail = take_of(tier, i, tail);
        if (first != NULL || !wait)
            break;
        pthread_cond_wait(&tier->told, &tier->mutex);
    }
    while (first != NULL && read(tier->event_fd, &times, sizeof times) < 0 && errno == EINTR)
        ;
    pthread_mutex_unlock(&tier->mutex);
    return first;
}

static uint32_t handle_news(struct cuda_tier *tier, struct cuda_move *moves) {
    uint32_t ended_count = 0;
    while (moves != NULL) {
        struct cuda_move *move = moves;
        moves = move->taken_next;
        if (move->told_ended) {
            ended_count++;
            move_end(tier, move);
        } else {
            tell_frames(move, move->new_frames);
        }
    }
    return ended_count;
}

static uint32_t cuda_poll(struct kvl_tier *base) {
    struct cuda_tier *tier = cuda_tier_of(base);
    return handle_news(tier, take_news(tier, false));
}

static kvl_err cuda_drain(struct kvl_tier *base) {
    struct cuda_tier *tier = cuda_tier_of(base);
    atomic_store(&tier->draining, true);
    while (tier->stats.inflight > 0)
        handle_news(tier, take_news(tier, true));
    atomic_store(&tier->draining, false);
    return KVL_OK;
}

static void cuda_quiesce(struct kvl_tier *base) {
    (void)base; /* nothing here is durable */
}

/* ---- slots ---------------------------------------------------------------------------------- */

static kvl_err cuda_alloc(struct kvl_tier *base, uint64_t slot_bytes, uint64_t *location) {
    struct cuda_tier *tier = cuda_tier_of(base);
    if (atomic_load(&tier->lost))
        return KVL_ERR_CLOSED;
    return kvl_slabs_alloc(tier->slabs, slot_bytes, location);
}

static void cuda_discard(struct kvl_tier *base, const struct kvl_key *key, uint64_t location) {
    (void)key; /* the location alone names a slot */
    kvl_slabs_free(cuda_tier_of(base)->slabs, location);
}

static uint8_t *cuda_address(struct kvl_tier *base, uint64_t location) {
    (void)base;
    (void)location;
    return NULL;
}

static int cuda_share_fd(struct kvl_tier *base) {
    return cuda_tier_of(base)->share_fd;
}

static void cuda_describe_arena(struct kvl_tier *base, struct kvl_arena_info *out) {
    const struct cuda_tier *tier = cuda_tier_of(base);
    *out = (struct kvl_arena_info){.memory = KVL_ARENA_CUDA, .bytes = tier->capacity_bytes};
    memcpy(out->device_uuid, tier->info.uuid, sizeof out->device_uuid);
}

static struct kvl_tier_stats cuda_stats(struct kvl_tier *base) {
    const struct cuda_tier *tier = cuda_tier_of(base);
    struct kvl_tier_stats stats = tier->stats;
    stats.capacity_bytes = tier->capacity_bytes;
    stats.used_bytes = kvl_slabs_used_bytes(tier->slabs);
    return stats;
}

/* ---- what the interface has no word for ------------------------------------------------------ */

kvl_err kvl_cuda_tier_pin_host(struct kvl_tier *base, void *address, uint64_t range_bytes) {
    struct cuda_tier *tier = cuda_tier_of(base);
    assert(((uintptr_t)address | range_bytes) % KVL_PAGE_BYTES == 0);
    struct cuda_pin *pin = calloc(1, sizeof *pin);
    if (!pin)
        return KVL_ERR_NOMEM;
    pin->address = address;
    pin->range_bytes = range_bytes;
    pthread_mutex_lock(&tier->mutex);
    pin->next = tier->new_pins;
    tier->new_pins = pin;
    kvl_cuda_thread_call(&tier->threads[tier->thread_count - 1]);
    pthread_mutex_unlock(&tier->mutex);
    return KVL_OK;
}

uint64_t kvl_cuda_tier_pinned_bytes(const struct kvl_tier *tier) {
    return atomic_load(&cuda_tier_of(tier)->pinned_bytes);
}

/* ---- life ----------------------------------------------------------------------------------- */

static void tier_destroy(struct cuda_tier *tier) {
    kvl_cuda_threads_stop(tier);
    kvl_cuda_arena_close(tier);
    kvl_cuda_driver_close(tier->own_driver);
    pthread_cond_destroy(&tier->told);
    for (uint32_t i = 0; i < KVL_CUDA_LANES; i++) {
        pthread_cond_destroy(&tier->threads[i].work);
        kvl_cuda_hashers_deinit(&tier->lanes[i]);
    }
    pthread_mutex_destroy(&tier->mutex);
    free(tier->moves);
    free(tier);
}

static void cuda_deinit(struct kvl_tier *base) {
    struct cuda_tier *tier = cuda_tier_of(base);
    assert(tier->stats.inflight == 0);
    tier_destroy(tier);
}

static int cuda_fd(const struct kvl_tier *base) {
    return cuda_tier_of(base)->event_fd;
}

static const struct kvl_tier_ops cuda_ops = {
    .name = "device-cuda",
    .submit = cuda_submit,
    .poll = cuda_poll,
    .cancel = cuda_cancel,
    .discard = cuda_discard,
    .alloc = cuda_alloc,
    .address = cuda_address,
    .share_fd = cuda_share_fd,
    .describe_arena = cuda_describe_arena,
    .stats = cuda_stats,
    .quiesce = cuda_quiesce,
    .drain = cuda_drain,
    .deinit = cuda_deinit,
    .fd = cuda_fd,
};

static void locks_init(struct cuda_tier *tier) {
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_mutex_init(&tier->mutex, NULL);
    for (uint32_t i = 0; i < KVL_CUDA_LANES; i++) {
        tier->threads[i].tier = tier;
        pthread_cond_init(&tier->threads[i].work, &monotonic);
        kvl_cuda_hashers_init(&tier->lanes[i]);
    }
    pthread_cond_init(&tier->told, NULL);
    pthread_condattr_destroy(&monotonic);
}

/* XXH3's state wants 64 bytes of alignment. */
static bool make_moves(struct cuda_tier *tier) {
    tier->moves = aligned_alloc(64, KVL_CUDA_MOVES * sizeof *tier->moves);
    if (!tier->moves)
        return false;
    memset(tier->moves, 0, KVL_CUDA_MOVES * sizeof *tier->moves);
    for (uint32_t i = 0; i < KVL_CUDA_MOVES; i++) {
        tier->moves[i].tier = tier;
        cuda_moves_push(&tier->free, &tier->moves[i]);
    }
    return true;
}

static struct cuda_tier *tier_new(const struct kvl_cuda_tier_options *options) {
    struct cuda_tier *tier = calloc(1, sizeof *tier);
    if (!tier)
        return NULL;
    tier->base.ops = &cuda_ops;
    tier->log = options->log;
    tier->driver = options->driver;
    tier->device = options->device;
    tier->pin_bytes = options->pin_bytes ? options->pin_bytes : PIN_BYTES;
    tier->lost_wait_ns =
        UINT64_C(1000000) * (options->lost_wait_ms ? options->lost_wait_ms : LOST_WAIT_MS);
    tier->share_fd = tier->event_fd = -1;
    locks_init(tier);
    cuda_moves_init(&tier->free);
    for (int lane = 0; lane < KVL_CUDA_LANES; lane++)
        kvl_cuda_lane_init(tier, (enum kvl_cuda_direction)lane, &tier->lanes[lane]);
    for (int i = 0; i < KVL_CUDA_PRIORITIES; i++)
        tier->news_tails[i] = &tier->news[i];
    return tier;
}

static kvl_err open_driver(struct cuda_tier *tier, struct kvl_errmsg *msg) {
    if (tier->driver != NULL)
        return KVL_OK;
    kvl_err err = kvl_cuda_driver_open(&tier->own_driver, msg);
    tier->driver = tier->own_driver;
    return err;
}

kvl_err kvl_cuda_tier_create(
    const struct kvl_cuda_tier_options *options, struct kvl_tier **out, struct kvl_errmsg *msg) {
    *out = NULL;
    struct cuda_tier *tier = tier_new(options);
    if (!tier)
        return kvl_fail(msg, KVL_ERR_NOMEM, "out of memory for a tier");
    kvl_err err = open_driver(tier, msg);
    if (err == KVL_OK)
        err = kvl_cuda_arena_open(tier, options, msg);
    if (err == KVL_OK && !make_moves(tier))
        err = kvl_fail(msg, KVL_ERR_NOMEM, "out of memory for a tier");
    if (err == KVL_OK)
        err = kvl_cuda_threads_start(tier, options, msg);
    if (err != KVL_OK) {
        tier_destroy(tier);
        return err;
    }
    KVL_INFO(tier->log, "event=gpu_tier gpu=%u name=\"%s\" driver=\"%s\" capacity_bytes=%" PRIu64,
        tier->device, tier->info.name, tier->driver->name, tier->capacity_bytes);
    *out = &tier->base;
    return KVL_OK;
}
