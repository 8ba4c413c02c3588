/* tier_contract.h - what core/tier.h promises, as one suite that is run over every tier.
 *
 * One main per tier fills this struct. The suite runs over the tier itself, inside a fault
 * decorator without faults, inside a delay decorator without delay and, a memory tier, inside a far
 * decorator, so that these hold to the contract too. */
#ifndef KVL_TIER_CONTRACT_H
#define KVL_TIER_CONTRACT_H

#include "tier.h"

struct kvl_tier_contract {
    const char *name;
    uint64_t capacity_bytes; /* for a few dozen blocks of block_bytes */
    uint64_t block_bytes;
    uint64_t order_block_bytes; /* of the 301 blocks of the tests of order; 0: 8192 */
    bool trusts_stores;         /* a STORE of other bytes than were hashed is found by LOAD */
    bool persistent; /* fires `loaded`, sets the location itself, binds keys and generations */
    /* A fresh empty tier, ready to take blocks. */
    kvl_err (*make)(const struct kvl_tier_contract *contract, struct kvl_tier **out);
    /* Spoils a stored byte (not the first) of the block at location; NULL: through ops->address. */
    void (*damage)(const struct kvl_tier_contract *contract, uint64_t location);
    /* After deinit: removes what make left behind. May be NULL. */
    void (*clean)(const struct kvl_tier_contract *contract);
};

/* Returns how many tests failed: the exit status. */
int kvl_tier_contract_run(const struct kvl_tier_contract *contract);

#endif
