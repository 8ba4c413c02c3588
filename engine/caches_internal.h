/* caches_internal.h - what caches.c and caches_restore.c share. */
#ifndef KVL_CACHES_INTERNAL_H
#define KVL_CACHES_INTERNAL_H

#include "cache_internal.h"
#include "caches.h"

/* Of the sequence, at a block boundary or, with a tail, behind it. */
struct kvl_caches_entry {
    uint32_t blocks; /* whole ones before it */
    bool with_tail;
};

struct kvl_caches {
    struct kvl_cache *cache[KVL_LAYER_GROUPS_MAX];
    uint32_t count;
    struct kvl_hparams hparams;
    struct kvl_cache_tail tails[KVL_LAYER_GROUPS_MAX]; /* the named one's, in each group */
    /* With two groups: */
    struct kvl_key *asked; /* of a look-up: group 0's blocks, its tail, group 1's, its tail */
    uint8_t *found;
    bool restoring;
    uint64_t began_ns;
    uint32_t first; /* of the restore under way */
    struct kvl_caches_entry entry;
    struct kvl_cache_stats stats;
};

#endif
