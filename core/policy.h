/* policy.h - which block leaves a tier first. One instance per tier.
 *
 * Blocks are named by small numbers (the table's). The store tells the policy what happens; the
 * policy answers with victims. Each group (a tenant) has an order of its own, and a block is in one
 * group at a time; who makes room for whom is the store's to say. Children go before parents: a
 * block is only proposed when the store says that none of its children is in the same tier
 * (`evictable`); in window groups no block counts as a child. Threads: owner thread only. Blocks:
 * never. */
#ifndef KVL_POLICY_H
#define KVL_POLICY_H

#include <stdbool.h>
#include <stdint.h>

#include "kvl_err.h"

#define KVL_BLOCK_NONE UINT32_MAX

struct kvl_policy;

struct kvl_policy_ops {
    const char *name;
    KVL_MUST_CHECK kvl_err (*create)(struct kvl_policy **out);
    void (*destroy)(struct kvl_policy *policy);
    /* NOMEM leaves the policy as it was. */
    KVL_MUST_CHECK kvl_err (*inserted)(struct kvl_policy *policy, uint32_t group, uint32_t block);
    void (*used)(struct kvl_policy *policy, uint32_t group, uint32_t block);
    void (*removed)(struct kvl_policy *policy, uint32_t group, uint32_t block);
    /* The group's next victim for which evictable() holds, or KVL_BLOCK_NONE. Does not remove it.
     */
    uint32_t (*victim)(struct kvl_policy *policy, uint32_t group,
        bool (*evictable)(void *arg, uint32_t block), void *arg);
};

struct kvl_policy {
    const struct kvl_policy_ops *ops;
};

extern const struct kvl_policy_ops kvl_policy_lru;

/* By name ("lru"), or NULL. */
const struct kvl_policy_ops *kvl_policy_find(const char *name);
/* For listing: NULL past the last. */
const struct kvl_policy_ops *kvl_policy_at(uint32_t index);

#endif
