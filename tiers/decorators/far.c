/* far.c - STOREs on their way stand in one queue and go forward in turns, a frame each. */
#include "decorators/far.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "decorators/forward.h"

struct far_tier {
    struct kvl_forward forward;
    uint32_t frames_max;
    struct kvl_io_queue landing;
    struct kvl_io_queue ended; /* canceled, or refused by the inner tier: complete in poll */
    uint64_t errors;
};

static struct far_tier *far_tier_of(const struct kvl_tier *tier) {
    return kvl_container_of(kvl_forward_of(tier), struct far_tier, forward);
}

static void wake(struct far_tier *tier) {
    const uint64_t one = 1;
    while (write(tier->forward.own_fd, &one, sizeof one) < 0 && errno == EINTR)
        ;
}

static uint8_t *far_address(struct kvl_tier *base, uint64_t location) {
    (void)base;
    (void)location;
    return NULL;
}

static int far_share_fd(struct kvl_tier *base) {
    (void)base;
    return -1;
}

/* ---- frames land -------------------------------------------------------------------------- */

/* Frames that have landed; the io is ours meanwhile, and so is its tier_private. */
static uint32_t landed(const struct kvl_io *io) {
    return (uint32_t)(uintptr_t)io->tier_private;
}

static bool lands_in_frames(struct far_tier *tier, const struct kvl_io *io) {
    struct kvl_tier *inner = tier->forward.inner;
    const uint64_t capacity = inner->ops->stats(inner).capacity_bytes;
    return io->op == KVL_IO_STORE && io->layout && io->buffer && io->layout->frame_count > 1 &&
           io->location < capacity && io->layout->payload_bytes <= capacity - io->location &&
           inner->ops->address(inner, io->location) != NULL;
}

static kvl_err far_submit(struct kvl_tier *base, struct kvl_io *io) {
    struct far_tier *tier = far_tier_of(base);
    struct kvl_tier *inner = tier->forward.inner;
    if (!lands_in_frames(tier, io))
        return inner->ops->submit(inner, io);
    io->tier_private = NULL;
    kvl_io_queue_push(&tier->landing, io);
    wake(tier);
    return KVL_OK;
}

static void land_frame(struct far_tier *tier, struct kvl_io *io) {
    struct kvl_tier *inner = tier->forward.inner;
    const uint32_t frame = landed(io);
    const uint64_t offset = frame * io->layout->frame_bytes;
    memcpy(inner->ops->address(inner, io->location) + offset, (const uint8_t *)io->buffer + offset,
        kvl_layout_frame_bytes(io->layout, frame));
    io->tier_private = (void *)(uintptr_t)(frame + 1);
    if (io->frame_ready && frame + 1 < io->layout->frame_count)
        io->frame_ready(io, frame + 1);
}

/* False: it goes on later. */
static bool hand_on(struct far_tier *tier, struct kvl_io *io) {
    struct kvl_tier *inner = tier->forward.inner;
    io->tier_private = NULL;
    kvl_err err = inner->ops->submit(inner, io);
    if (err == KVL_ERR_AGAIN) {
        io->tier_private = (void *)(uintptr_t)io->layout->frame_count;
        return false;
    }
    if (err != KVL_OK) {
        io->status = err;
        tier->errors++;
        kvl_io_queue_push(&tier->ended, io);
    }
    return true;
}

/* True when something moved. */
static bool land(struct far_tier *tier, uint32_t frames_max) {
    bool moved = false;
    for (uint64_t left = tier->landing.count; left > 0; left--) {
        struct kvl_io *io = kvl_io_queue_pop(&tier->landing);
        const bool may_land = landed(io) < io->layout->frame_count && landed(io) < frames_max;
        if (may_land)
            land_frame(tier, io);
        moved |= may_land;
        if (landed(io) < io->layout->frame_count || !hand_on(tier, io))
            kvl_io_queue_push(&tier->landing, io);
    }
    return moved;
}

static uint32_t complete_ended(struct far_tier *tier) {
    const uint32_t count = (uint32_t)tier->ended.count; /* complete may add more */
    for (uint32_t i = 0; i < count; i++) {
        struct kvl_io *io = kvl_io_queue_pop(&tier->ended);
        io->complete(io);
    }
    return count;
}

static uint32_t far_poll(struct kvl_tier *base) {
    struct far_tier *tier = far_tier_of(base);
    struct kvl_tier *inner = tier->forward.inner;
    uint64_t wakes;
    while (read(tier->forward.own_fd, &wakes, sizeof wakes) < 0 && errno == EINTR)
        ;
    if (land(tier, tier->frames_max) || tier->ended.head)
        wake(tier);
    uint32_t ended = complete_ended(tier);
    return ended + inner->ops->poll(inner);
}

static void far_cancel(struct kvl_tier *base, struct kvl_io *io) {
    struct far_tier *tier = far_tier_of(base);
    struct kvl_tier *inner = tier->forward.inner;
    if (!kvl_io_queue_remove(&tier->landing, io)) {
        for (const struct kvl_io *at = tier->ended.head; at; at = at->next)
            if (at == io)
                return; /* ended already */
        inner->ops->cancel(inner, io);
        return;
    }
    io->tier_private = NULL;
    io->status = KVL_ERR_CANCELED;
    kvl_io_queue_push(&tier->ended, io);
    wake(tier);
}

static struct kvl_tier_stats far_stats(struct kvl_tier *base) {
    struct far_tier *tier = far_tier_of(base);
    struct kvl_tier *inner = tier->forward.inner;
    struct kvl_tier_stats stats = inner->ops->stats(inner);
    stats.inflight += tier->landing.count + tier->ended.count;
    stats.errors += tier->errors;
    return stats;
}

static kvl_err far_drain(struct kvl_tier *base) {
    struct far_tier *tier = far_tier_of(base);
    struct kvl_tier *inner = tier->forward.inner;
    kvl_err err;
    do {
        (void)land(tier, KVL_FAR_ALL_FRAMES);
        complete_ended(tier);
        err = inner->ops->drain(inner);
    } while (tier->landing.head || tier->ended.head);
    return err;
}

/* ---- life --------------------------------------------------------------------------------- */

static void far_deinit(struct kvl_tier *base) {
    struct far_tier *tier = far_tier_of(base);
    struct kvl_tier *inner = tier->forward.inner;
    kvl_forward_deinit(&tier->forward);
    inner->ops->deinit(inner);
    free(tier);
}

void kvl_far_tier_hold(struct kvl_tier *base, uint32_t frames) {
    struct far_tier *tier = far_tier_of(base);
    tier->frames_max = frames;
    wake(tier);
}

struct kvl_tier *kvl_far_tier_inner(const struct kvl_tier *tier) {
    return far_tier_of(tier)->forward.inner;
}

static void set_ops(struct kvl_tier_ops *ops) {
    ops->submit = far_submit;
    ops->poll = far_poll;
    ops->cancel = far_cancel;
    ops->address = far_address;
    ops->share_fd = far_share_fd;
    ops->describe_arena = NULL;
    ops->stats = far_stats;
    ops->drain = far_drain;
    ops->deinit = far_deinit;
}

kvl_err kvl_far_tier_create(struct kvl_tier *inner, struct kvl_tier **out) {
    *out = NULL;
    if (!inner->ops->alloc || !inner->ops->address)
        return KVL_ERR_INVALID;
    struct far_tier *tier = calloc(1, sizeof *tier);
    if (!tier)
        return KVL_ERR_NOMEM;
    tier->frames_max = KVL_FAR_ALL_FRAMES;
    kvl_io_queue_init(&tier->landing);
    kvl_io_queue_init(&tier->ended);
    tier->forward.epoll_fd = -1;
    tier->forward.own_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    kvl_err err = tier->forward.own_fd < 0
                      ? kvl_err_from_errno(errno)
                      : kvl_forward_init(&tier->forward, inner, tier->forward.own_fd);
    if (err != KVL_OK) {
        kvl_forward_deinit(&tier->forward);
        free(tier);
        return err;
    }
    set_ops(&tier->forward.ops);
    *out = &tier->forward.base;
    return KVL_OK;
}
