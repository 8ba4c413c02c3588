/* delay.c - one queue per operation, each with one latency, so each is in order of due time. */
#include "decorators/delay.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "clock.h"
#include "decorators/forward.h"

#define RETRY_NS UINT64_C(1000000) /* after AGAIN from the inner tier */
#define OPS 3

struct delay_tier {
    struct kvl_forward forward;
    uint64_t latency_ns[OPS]; /* by enum kvl_io_op */
    struct kvl_io_queue held[OPS];
    struct kvl_io_queue ended; /* canceled, or refused by the inner tier: complete in poll */
    uint64_t errors;
};

static struct delay_tier *delay_tier_of(const struct kvl_tier *tier) {
    return kvl_container_of(kvl_forward_of(tier), struct delay_tier, forward);
}

/* A held io is ours, so its tier_private holds the time at which it is due. */
_Static_assert(sizeof(uintptr_t) >= sizeof(uint64_t), "a time fits a pointer");
static uint64_t due_ns(const struct kvl_io *io) {
    return (uintptr_t)io->tier_private;
}

static void set_due(struct kvl_io *io, uint64_t now_ns, uint64_t latency_ns) {
    uint64_t due = latency_ns > KVL_DELAY_HOLD - now_ns ? KVL_DELAY_HOLD : now_ns + latency_ns;
    io->tier_private = (void *)(uintptr_t)due;
}

/* The timer is set to the next due time, and never later than now when something has ended. */
static void set_timer(struct delay_tier *tier, uint64_t not_before_ns) {
    uint64_t next = KVL_DELAY_HOLD;
    for (int op = 0; op < OPS; op++) {
        if (tier->held[op].head && due_ns(tier->held[op].head) < next)
            next = due_ns(tier->held[op].head);
    }
    if (next < not_before_ns)
        next = not_before_ns;
    if (tier->ended.head)
        next = 1;                               /* long past: at once */
    struct itimerspec spec = {.it_value = {0}}; /* disarmed */
    if (next != KVL_DELAY_HOLD) {
        spec.it_value.tv_sec = (time_t)(next / 1000000000u);
        spec.it_value.tv_nsec = (long)(next % 1000000000u);
    }
    /* Cannot fail: the fd is ours and the time normal. Setting it also clears what was readable. */
    (void)timerfd_settime(tier->forward.own_fd, TFD_TIMER_ABSTIME, &spec, NULL);
}

static kvl_err delay_submit(struct kvl_tier *base, struct kvl_io *io) {
    struct delay_tier *tier = delay_tier_of(base);
    if ((unsigned)io->op >= OPS)
        return KVL_ERR_INVALID;
    set_due(io, kvl_clock_ns(), tier->latency_ns[io->op]);
    kvl_io_queue_push(&tier->held[io->op], io);
    set_timer(tier, 0);
    return KVL_OK;
}

/* False when the inner tier's queue is full. */
static bool hand_on(struct delay_tier *tier, struct kvl_io *io) {
    struct kvl_tier *inner = tier->forward.inner;
    const uint64_t due = due_ns(io);
    kvl_io_queue_remove(&tier->held[io->op], io);
    io->tier_private = NULL;
    kvl_err err = inner->ops->submit(inner, io);
    if (err == KVL_ERR_AGAIN) {
        struct kvl_io_queue *queue = &tier->held[io->op];
        io->tier_private = (void *)(uintptr_t)due;
        io->next = queue->head; /* back to the front */
        queue->head = io;
        if (!io->next)
            queue->tail = &io->next;
        queue->count++;
        return false;
    }
    if (err != KVL_OK) {
        io->status = err;
        kvl_io_queue_push(&tier->ended, io);
    }
    return true;
}

/* False when the inner tier said AGAIN. */
static bool hand_on_due(struct delay_tier *tier, uint64_t now_ns) {
    bool all = true;
    for (int op = 0; op < OPS; op++) {
        bool taken = true;
        while (taken && tier->held[op].head && due_ns(tier->held[op].head) <= now_ns)
            taken = hand_on(tier, tier->held[op].head);
        all = all && taken;
    }
    return all;
}

static uint32_t complete_ended(struct delay_tier *tier) {
    const uint32_t count = (uint32_t)tier->ended.count; /* complete may add more */
    for (uint32_t i = 0; i < count; i++) {
        struct kvl_io *io = kvl_io_queue_pop(&tier->ended);
        tier->errors += io->status != KVL_ERR_CANCELED;
        io->complete(io);
    }
    return count;
}

static uint32_t delay_poll(struct kvl_tier *base) {
    struct delay_tier *tier = delay_tier_of(base);
    struct kvl_tier *inner = tier->forward.inner;
    const uint64_t now_ns = kvl_clock_ns();
    bool all = hand_on_due(tier, now_ns);
    uint32_t count = complete_ended(tier);
    count += inner->ops->poll(inner);
    set_timer(tier, all ? 0 : now_ns + RETRY_NS);
    return count;
}

static void delay_cancel(struct kvl_tier *base, struct kvl_io *io) {
    struct delay_tier *tier = delay_tier_of(base);
    struct kvl_tier *inner = tier->forward.inner;
    if (kvl_io_queue_remove(&tier->held[io->op], io)) {
        io->tier_private = NULL;
        io->status = KVL_ERR_CANCELED;
        kvl_io_queue_push(&tier->ended, io);
        set_timer(tier, 0);
        return;
    }
    for (const struct kvl_io *at = tier->ended.head; at; at = at->next) {
        if (at == io)
            return; /* ended already */
    }
    inner->ops->cancel(inner, io);
}

static bool holds_any(const struct delay_tier *tier) {
    for (int op = 0; op < OPS; op++)
        if (tier->held[op].head)
            return true;
    return tier->ended.head != NULL;
}

static struct kvl_tier_stats delay_stats(struct kvl_tier *base) {
    struct delay_tier *tier = delay_tier_of(base);
    struct kvl_tier *inner = tier->forward.inner;
    struct kvl_tier_stats stats = inner->ops->stats(inner);
    for (int op = 0; op < OPS; op++)
        stats.inflight += tier->held[op].count;
    stats.inflight += tier->ended.count;
    stats.errors += tier->errors;
    return stats;
}

static kvl_err delay_drain(struct kvl_tier *base) {
    struct delay_tier *tier = delay_tier_of(base);
    struct kvl_tier *inner = tier->forward.inner;
    kvl_err err;
    do {
        hand_on_due(tier, KVL_DELAY_HOLD);
        complete_ended(tier);
        err = inner->ops->drain(inner);
    } while (holds_any(tier));
    set_timer(tier, 0);
    return err;
}

static void delay_deinit(struct kvl_tier *base) {
    struct delay_tier *tier = delay_tier_of(base);
    struct kvl_tier *inner = tier->forward.inner;
    kvl_forward_deinit(&tier->forward);
    inner->ops->deinit(inner);
    free(tier);
}

void kvl_delay_tier_set_latency(struct kvl_tier *base, const struct kvl_delay_options *options) {
    struct delay_tier *tier = delay_tier_of(base);
    tier->latency_ns[KVL_IO_STORE] = options->store_latency_ns;
    tier->latency_ns[KVL_IO_LOAD] = options->load_latency_ns;
    tier->latency_ns[KVL_IO_HASH] = options->hash_latency_ns;
    const uint64_t now_ns = kvl_clock_ns();
    for (int op = 0; op < OPS; op++) {
        for (struct kvl_io *io = tier->held[op].head; io; io = io->next)
            set_due(io, now_ns, tier->latency_ns[op]);
    }
    set_timer(tier, 0);
}

kvl_err kvl_delay_tier_create(
    struct kvl_tier *inner, const struct kvl_delay_options *options, struct kvl_tier **out) {
    *out = NULL;
    struct delay_tier *tier = calloc(1, sizeof *tier);
    if (!tier)
        return KVL_ERR_NOMEM;
    for (int op = 0; op < OPS; op++)
        kvl_io_queue_init(&tier->held[op]);
    kvl_io_queue_init(&tier->ended);
    tier->forward.epoll_fd = -1;
    tier->forward.own_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    kvl_err err = tier->forward.own_fd < 0
                      ? kvl_err_from_errno(errno)
                      : kvl_forward_init(&tier->forward, inner, tier->forward.own_fd);
    if (err != KVL_OK) {
        kvl_forward_deinit(&tier->forward);
        free(tier);
        return err;
    }
    tier->forward.ops.submit = delay_submit;
    tier->forward.ops.poll = delay_poll;
    tier->forward.ops.cancel = delay_cancel;
    tier->forward.ops.stats = delay_stats;
    tier->forward.ops.drain = delay_drain;
    tier->forward.ops.deinit = delay_deinit;
    kvl_delay_tier_set_latency(&tier->forward.base, options);
    *out = &tier->forward.base;
    return KVL_OK;
}
