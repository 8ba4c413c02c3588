#include "decorators/forward.h"

#include <errno.h>
#include <sys/epoll.h>
#include <unistd.h>

struct kvl_forward *kvl_forward_of(const struct kvl_tier *tier) {
    return kvl_container_of((struct kvl_tier *)tier, struct kvl_forward, base);
}

/* ---- calls inward ------------------------------------------------------------------------- */

static kvl_err forward_submit(struct kvl_tier *tier, struct kvl_io *io) {
    struct kvl_tier *inner = kvl_forward_of(tier)->inner;
    return inner->ops->submit(inner, io);
}

static uint32_t forward_poll(struct kvl_tier *tier) {
    struct kvl_tier *inner = kvl_forward_of(tier)->inner;
    return inner->ops->poll(inner);
}

static void forward_cancel(struct kvl_tier *tier, struct kvl_io *io) {
    struct kvl_tier *inner = kvl_forward_of(tier)->inner;
    inner->ops->cancel(inner, io);
}

static void forward_discard(struct kvl_tier *tier, const struct kvl_key *key, uint64_t location) {
    struct kvl_tier *inner = kvl_forward_of(tier)->inner;
    inner->ops->discard(inner, key, location);
}

static kvl_err forward_alloc(struct kvl_tier *tier, uint64_t slot_bytes, uint64_t *location) {
    struct kvl_tier *inner = kvl_forward_of(tier)->inner;
    return inner->ops->alloc(inner, slot_bytes, location);
}

static uint8_t *forward_address(struct kvl_tier *tier, uint64_t location) {
    struct kvl_tier *inner = kvl_forward_of(tier)->inner;
    return inner->ops->address(inner, location);
}

static int forward_share_fd(struct kvl_tier *tier) {
    struct kvl_tier *inner = kvl_forward_of(tier)->inner;
    return inner->ops->share_fd(inner);
}

static void forward_describe_arena(struct kvl_tier *tier, struct kvl_arena_info *out) {
    struct kvl_tier *inner = kvl_forward_of(tier)->inner;
    inner->ops->describe_arena(inner, out);
}

static struct kvl_tier_stats forward_stats(struct kvl_tier *tier) {
    struct kvl_tier *inner = kvl_forward_of(tier)->inner;
    return inner->ops->stats(inner);
}

static bool forward_fits(
    struct kvl_tier *tier, const struct kvl_layout *layout, uint64_t *capacity_bytes) {
    struct kvl_tier *inner = kvl_forward_of(tier)->inner;
    return inner->ops->fits(inner, layout, capacity_bytes);
}

static kvl_err forward_seek(struct kvl_tier *tier, const struct kvl_tier_seek *wanted) {
    struct kvl_tier *inner = kvl_forward_of(tier)->inner;
    return inner->ops->seek(inner, wanted);
}

static void forward_quiesce(struct kvl_tier *tier) {
    struct kvl_tier *inner = kvl_forward_of(tier)->inner;
    inner->ops->quiesce(inner);
}

static kvl_err forward_drain(struct kvl_tier *tier) {
    struct kvl_tier *inner = kvl_forward_of(tier)->inner;
    return inner->ops->drain(inner);
}

static int forward_fd(const struct kvl_tier *tier) {
    return kvl_forward_of(tier)->epoll_fd;
}

/* ---- events outward: the owner sets them on the decorator, any time before the first poll --- */

static void event_found(void *arg, const struct kvl_block_record *record, uint64_t location,
    uint64_t stored_bytes, uint64_t last_use_wall_ns) {
    const struct kvl_tier_events *events = &((struct kvl_forward *)arg)->base.events;
    if (events->found)
        events->found(events->arg, record, location, stored_bytes, last_use_wall_ns);
}

static void event_sought(void *arg, uint64_t number, bool certain) {
    const struct kvl_tier_events *events = &((struct kvl_forward *)arg)->base.events;
    if (events->sought)
        events->sought(events->arg, number, certain);
}

static void event_checked(void *arg, uint64_t generation_max) {
    const struct kvl_tier_events *events = &((struct kvl_forward *)arg)->base.events;
    if (events->checked)
        events->checked(events->arg, generation_max);
}

static void event_loaded(void *arg, kvl_err status) {
    const struct kvl_tier_events *events = &((struct kvl_forward *)arg)->base.events;
    if (events->loaded)
        events->loaded(events->arg, status);
}

static bool event_keep(void *arg, const struct kvl_key *key) {
    const struct kvl_tier_events *events = &((struct kvl_forward *)arg)->base.events;
    return events->keep && events->keep(events->arg, key);
}

static void event_moved(void *arg, const struct kvl_key *key, uint64_t location) {
    const struct kvl_tier_events *events = &((struct kvl_forward *)arg)->base.events;
    if (events->moved)
        events->moved(events->arg, key, location);
}

static void event_lost(void *arg, const struct kvl_key *key, uint64_t location) {
    const struct kvl_tier_events *events = &((struct kvl_forward *)arg)->base.events;
    if (events->lost)
        events->lost(events->arg, key, location);
}

static void event_lost_at(void *arg, const uint64_t *locations, uint64_t count) {
    const struct kvl_tier_events *events = &((struct kvl_forward *)arg)->base.events;
    if (events->lost_at)
        events->lost_at(events->arg, locations, count);
}

/* ---- life --------------------------------------------------------------------------------- */

static kvl_err watch(int epoll_fd, int fd) {
    struct epoll_event event = {.events = EPOLLIN};
    return epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event) == 0 ? KVL_OK : kvl_err_from_errno(errno);
}

kvl_err kvl_forward_init(struct kvl_forward *forward, struct kvl_tier *inner, int own_fd) {
    forward->own_fd = own_fd;
    forward->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (forward->epoll_fd < 0)
        return kvl_err_from_errno(errno);
    kvl_err err = watch(forward->epoll_fd, own_fd);
    if (err == KVL_OK)
        err = watch(forward->epoll_fd, inner->ops->fd(inner));
    if (err != KVL_OK)
        return err;
    forward->inner = inner;
    forward->ops = (struct kvl_tier_ops){
        .name = inner->ops->name,
        .submit = forward_submit,
        .poll = forward_poll,
        .cancel = forward_cancel,
        .discard = forward_discard,
        .alloc = inner->ops->alloc ? forward_alloc : NULL,
        .address = inner->ops->address ? forward_address : NULL,
        .share_fd = inner->ops->share_fd ? forward_share_fd : NULL,
        .describe_arena = inner->ops->describe_arena ? forward_describe_arena : NULL,
        .stats = forward_stats,
        .fits = inner->ops->fits ? forward_fits : NULL,
        .seek = inner->ops->seek ? forward_seek : NULL,
        .quiesce = forward_quiesce,
        .drain = forward_drain,
        .fd = forward_fd,
    };
    forward->base.ops = &forward->ops;
    inner->events = (struct kvl_tier_events){.arg = forward,
        .found = event_found,
        .loaded = event_loaded,
        .sought = event_sought,
        .checked = event_checked,
        .keep = event_keep,
        .moved = event_moved,
        .lost = event_lost,
        .lost_at = event_lost_at};
    return KVL_OK;
}

void kvl_forward_deinit(struct kvl_forward *forward) {
    if (forward->epoll_fd >= 0)
        close(forward->epoll_fd);
    if (forward->own_fd >= 0)
        close(forward->own_fd);
}

/* ---- queues of held ios ------------------------------------------------------------------- */

void kvl_io_queue_init(struct kvl_io_queue *queue) {
    *queue = (struct kvl_io_queue){.head = NULL};
    queue->tail = &queue->head;
}

void kvl_io_queue_push(struct kvl_io_queue *queue, struct kvl_io *io) {
    io->next = NULL;
    *queue->tail = io;
    queue->tail = &io->next;
    queue->count++;
}

struct kvl_io *kvl_io_queue_pop(struct kvl_io_queue *queue) {
    struct kvl_io *io = queue->head;
    if (io)
        kvl_io_queue_remove(queue, io);
    return io;
}

bool kvl_io_queue_remove(struct kvl_io_queue *queue, struct kvl_io *io) {
    for (struct kvl_io **at = &queue->head; *at; at = &(*at)->next) {
        if (*at == io) {
            *at = io->next;
            if (!*at)
                queue->tail = at;
            queue->count--;
            return true;
        }
    }
    return false;
}
