/* schedule_engine.h - one engine of the schedule test: a process that does what it is told by a
 * number, and is killed at any moment.
 *
 *   stdin   u32 number of a schedule, again and again; end of file: leave
 *   stdout  the number, when that schedule was done
 *
 * A schedule is about 20 random steps: restore a chain and check every block of it where it lies,
 * grow a chain (alloc, fill, seal), hold its leases, demote, prefetch, look up, give up. */
#ifndef KVL_TESTS_SCHEDULE_ENGINE_H
#define KVL_TESTS_SCHEDULE_ENGINE_H

#include <stdint.h>

#include "kvloft.h"

enum {
    SCHEDULE_CHAINS = 12,
    SCHEDULE_CHAIN_BLOCKS = 6,
    SCHEDULE_BLOCK_TOKENS = 64,
    SCHEDULE_LAYERS = 4,
};
#define SCHEDULE_BLOCK_BYTES (UINT64_C(256) << 10)

/* In memory shared with the test; engines add to it. */
struct schedule_counts {
    uint64_t sealed, layers_checked;
    uint64_t restored[KVL_TIER_COUNT]; /* blocks checked, by where they were found */
    uint64_t unrestored;               /* restores that ended without their blocks */
    uint64_t refused;                  /* blocks that got no slot */
    uint64_t canceled;                 /* restores given up under way */
};

struct schedule_options {
    const char *address, *device; /* cpu or cuda */
    uint64_t seed;
    struct schedule_counts *counts;
};

/* Returns the process's exit status; 1: said why on stderr. */
int schedule_engine_run(const struct schedule_options *options);

KVL_MUST_CHECK kvl_err schedule_namespace(
    struct kvl_client *client, struct kvl_namespace_info *out);

#endif
