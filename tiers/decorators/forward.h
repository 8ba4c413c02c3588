/* forward.h - what every decorator shares: a tier that hands each call on to the one inside.
 *
 *   owner --> decorator (ops of its own, per instance) --> inner tier
 *   owner <-- events, through the decorator            <-- inner tier
 *
 * A decorator embeds kvl_forward first, starts from kvl_forward_init's ops and replaces what it
 * changes. alloc, address, share_fd and describe_arena are NULL where the inner tier's are, so that
 * a decorated disk still looks like a disk. The fd is an epoll fd over the inner tier's and one of
 * the decorator's own. Only tiers/decorators includes this. */
#ifndef KVL_FORWARD_H
#define KVL_FORWARD_H

#include "tier.h"

struct kvl_forward {
    struct kvl_tier base;
    struct kvl_tier_ops ops;
    struct kvl_tier *inner; /* owned: deinit ends it too */
    int own_fd;             /* owned from init on, also when init fails */
    int epoll_fd;
};

struct kvl_forward *kvl_forward_of(const struct kvl_tier *tier);

/* forward is zeroed. On failure the inner tier stays the caller's. */
KVL_MUST_CHECK kvl_err kvl_forward_init(
    struct kvl_forward *forward, struct kvl_tier *inner, int own_fd);
/* Closes both fds; the inner tier is left alone. */
void kvl_forward_deinit(struct kvl_forward *forward);

/* A queue of ios that the decorator holds, linked by io->next. */
struct kvl_io_queue {
    struct kvl_io *head;
    struct kvl_io **tail;
    uint64_t count;
};
void kvl_io_queue_init(struct kvl_io_queue *queue);
void kvl_io_queue_push(struct kvl_io_queue *queue, struct kvl_io *io);
struct kvl_io *kvl_io_queue_pop(struct kvl_io_queue *queue);
/* False when io is not in it. */
bool kvl_io_queue_remove(struct kvl_io_queue *queue, struct kvl_io *io);

#endif
