/* fault.c - failed ios wait in a queue of ours, with an eventfd, until the next poll ends them. */
#include "decorators/fault.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "decorators/forward.h"

struct fault_tier {
    struct kvl_forward forward;
    struct kvl_fault_rule rules[KVL_FAULT_RULES_MAX];
    uint64_t counts[KVL_FAULT_RULES_MAX];
    uint32_t rule_count;
    uint64_t random_state;
    uint64_t injected, errors, corrupt;
    struct kvl_io_queue failed;
};

static struct fault_tier *fault_tier_of(const struct kvl_tier *tier) {
    return kvl_container_of(kvl_forward_of(tier), struct fault_tier, forward);
}

/* splitmix64 (Steele, Lea, Flood 2014). */
static uint64_t random_next(struct fault_tier *tier) {
    uint64_t z = tier->random_state += UINT64_C(0x9E3779B97F4A7C15);
    z = (z ^ (z >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94D049BB133111EB);
    return z ^ (z >> 31);
}

/* Every rule of this operation counts it, also after an earlier one has hit. */
static const struct kvl_fault_rule *rule_for(struct fault_tier *tier, enum kvl_fault_op op) {
    const struct kvl_fault_rule *hit = NULL;
    for (uint32_t i = 0; i < tier->rule_count; i++) {
        const struct kvl_fault_rule *rule = &tier->rules[i];
        if (!(rule->ops & op))
            continue;
        tier->counts[i]++;
        bool hits = rule->nth ? tier->counts[i] == rule->nth
                              : random_next(tier) % 1000000u < rule->per_million;
        if (hits && !hit)
            hit = rule;
    }
    tier->injected += hit != NULL;
    return hit;
}

static void fail_later(struct fault_tier *tier, struct kvl_io *io, kvl_err error) {
    if (io->op == KVL_IO_LOAD)
        memset(io->buffer, 0xA5, io->layout->payload_bytes);
    io->status = error;
    kvl_io_queue_push(&tier->failed, io);
    const uint64_t one = 1;
    while (write(tier->forward.own_fd, &one, sizeof one) < 0 && errno == EINTR)
        ;
}

static void flip_bit(struct fault_tier *tier, const struct kvl_io *io) {
    struct kvl_tier *inner = tier->forward.inner;
    uint8_t *stored = inner->ops->address(inner, io->location);
    uint64_t bit = random_next(tier) % (io->layout->payload_bytes * 8);
    stored[bit / 8] ^= (uint8_t)(1u << (bit % 8));
}

static kvl_err fault_submit(struct kvl_tier *base, struct kvl_io *io) {
    struct fault_tier *tier = fault_tier_of(base);
    struct kvl_tier *inner = tier->forward.inner;
    static const enum kvl_fault_op ops[] = {[KVL_IO_STORE] = KVL_FAULT_STORE,
        [KVL_IO_LOAD] = KVL_FAULT_LOAD,
        [KVL_IO_HASH] = KVL_FAULT_HASH};
    if ((unsigned)io->op >= sizeof ops / sizeof ops[0])
        return KVL_ERR_INVALID;
    const struct kvl_fault_rule *rule = rule_for(tier, ops[io->op]);
    if (rule && rule->kind == KVL_FAULT_AGAIN)
        return KVL_ERR_AGAIN;
    if (rule && rule->kind == KVL_FAULT_ERROR) {
        fail_later(tier, io, rule->error);
        return KVL_OK;
    }
    if (rule)
        flip_bit(tier, io);
    return inner->ops->submit(inner, io);
}

static kvl_err fault_alloc(struct kvl_tier *base, uint64_t slot_bytes, uint64_t *location) {
    struct fault_tier *tier = fault_tier_of(base);
    struct kvl_tier *inner = tier->forward.inner;
    const struct kvl_fault_rule *rule = rule_for(tier, KVL_FAULT_ALLOC);
    if (rule)
        return rule->kind == KVL_FAULT_AGAIN ? KVL_ERR_AGAIN : rule->error;
    return inner->ops->alloc(inner, slot_bytes, location);
}

/* Ends those that had failed by now: what complete submits anew waits for the next poll. */
static uint32_t end_failed(struct fault_tier *tier) {
    uint64_t wakes;
    while (read(tier->forward.own_fd, &wakes, sizeof wakes) < 0 && errno == EINTR)
        ;
    const uint32_t count = (uint32_t)tier->failed.count;
    for (uint32_t i = 0; i < count; i++) {
        struct kvl_io *io = kvl_io_queue_pop(&tier->failed);
        tier->errors += io->status != KVL_ERR_CANCELED;
        tier->corrupt += io->status == KVL_ERR_CORRUPT;
        io->complete(io);
    }
    return count;
}

static uint32_t fault_poll(struct kvl_tier *base) {
    struct fault_tier *tier = fault_tier_of(base);
    struct kvl_tier *inner = tier->forward.inner;
    uint32_t ended = end_failed(tier);
    return ended + inner->ops->poll(inner);
}

static bool is_failed(const struct fault_tier *tier, const struct kvl_io *io) {
    for (const struct kvl_io *at = tier->failed.head; at; at = at->next) {
        if (at == io)
            return true;
    }
    return false;
}

/* One that failed already keeps its real status. */
static void fault_cancel(struct kvl_tier *base, struct kvl_io *io) {
    struct fault_tier *tier = fault_tier_of(base);
    struct kvl_tier *inner = tier->forward.inner;
    if (!is_failed(tier, io))
        inner->ops->cancel(inner, io);
}

static struct kvl_tier_stats fault_stats(struct kvl_tier *base) {
    struct fault_tier *tier = fault_tier_of(base);
    struct kvl_tier *inner = tier->forward.inner;
    struct kvl_tier_stats stats = inner->ops->stats(inner);
    stats.errors += tier->errors;
    stats.corrupt += tier->corrupt;
    stats.inflight += tier->failed.count;
    return stats;
}

static kvl_err fault_drain(struct kvl_tier *base) {
    struct fault_tier *tier = fault_tier_of(base);
    struct kvl_tier *inner = tier->forward.inner;
    kvl_err err;
    do {
        end_failed(tier);
        err = inner->ops->drain(inner);
    } while (tier->failed.head);
    return err;
}

static void fault_deinit(struct kvl_tier *base) {
    struct fault_tier *tier = fault_tier_of(base);
    struct kvl_tier *inner = tier->forward.inner;
    kvl_forward_deinit(&tier->forward);
    inner->ops->deinit(inner);
    free(tier);
}

static bool rule_is_valid(const struct kvl_fault_rule *rule, struct kvl_tier *inner) {
    switch (rule->kind) {
    case KVL_FAULT_ERROR:
        return rule->error != KVL_OK;
    case KVL_FAULT_AGAIN:
        return true;
    case KVL_FAULT_FLIP:
        return rule->ops == KVL_FAULT_LOAD && inner->ops->address != NULL &&
               inner->ops->address(inner, 0) != NULL;
    }
    return false;
}

kvl_err kvl_fault_tier_set_rules(
    struct kvl_tier *base, const struct kvl_fault_rule *rules, uint32_t rule_count) {
    struct fault_tier *tier = fault_tier_of(base);
    if (rule_count > KVL_FAULT_RULES_MAX)
        return KVL_ERR_INVALID;
    for (uint32_t i = 0; i < rule_count; i++) {
        if (!rule_is_valid(&rules[i], tier->forward.inner))
            return KVL_ERR_INVALID;
    }
    for (uint32_t i = 0; i < rule_count; i++)
        tier->rules[i] = rules[i];
    tier->rule_count = rule_count;
    memset(tier->counts, 0, sizeof tier->counts);
    return KVL_OK;
}

uint64_t kvl_fault_tier_injected(const struct kvl_tier *tier) {
    return fault_tier_of(tier)->injected;
}

kvl_err kvl_fault_tier_create(struct kvl_tier *inner, uint64_t seed,
    const struct kvl_fault_rule *rules, uint32_t rule_count, struct kvl_tier **out) {
    *out = NULL;
    struct fault_tier *tier = calloc(1, sizeof *tier);
    if (!tier)
        return KVL_ERR_NOMEM;
    tier->random_state = seed;
    kvl_io_queue_init(&tier->failed);
    tier->forward.inner = inner; /* the rules are checked against it */
    tier->forward.epoll_fd = -1;
    tier->forward.own_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    kvl_err err = tier->forward.own_fd < 0
                      ? kvl_err_from_errno(errno)
                      : kvl_fault_tier_set_rules(&tier->forward.base, rules, rule_count);
    if (err == KVL_OK)
        err = kvl_forward_init(&tier->forward, inner, tier->forward.own_fd);
    if (err != KVL_OK) {
        kvl_forward_deinit(&tier->forward);
        free(tier);
        return err;
    }
    tier->forward.ops.submit = fault_submit;
    tier->forward.ops.poll = fault_poll;
    tier->forward.ops.cancel = fault_cancel;
    if (inner->ops->alloc)
        tier->forward.ops.alloc = fault_alloc;
    tier->forward.ops.stats = fault_stats;
    tier->forward.ops.drain = fault_drain;
    tier->forward.ops.deinit = fault_deinit;
    *out = &tier->forward.base;
    return KVL_OK;
}
