/* quota.c - a tenant's share of the disk: what is over it leaves, the longest unused first.
 *
 * Blocks on disk stand in no list (that would cost RAM for each of them), so a sweep walks the
 * table, a bounded number of entries at a time, and keeps the few that should leave first in a
 * heap. It frees a sixteenth of the quota, so that sweeps are seldom; meanwhile the tenant's new
 * blocks wait in the persist queue, nobody else's do.
 *
 * Of blocks that were last used in the same second those of window groups go first, in the order of
 * their seals, then the others against it: children before their parents. Pinned blocks stay, and
 * those that are being read; for these the new ones wait. */
#include <stdlib.h>

#include "clock.h"
#include "store_private.h"

#define KVL_SWEEP_STEP 65536u /* entries looked at in one go */
#define KVL_SWEEP_KEPT 4096u
#define KVL_STUCK_NS 1000000000u /* until the next try, when a sweep found nothing */

struct candidate {
    uint32_t block;
    uint32_t last_use_s;
    bool windowed;
    uint64_t generation;
};

struct kvl_sweep {
    struct kvl_tenant *tenant; /* NULL: none under way */
    uint32_t cursor;
    bool reads; /* of blocks that may leave when they end */
    uint32_t count;
    struct candidate kept[KVL_SWEEP_KEPT]; /* a heap: the last of them to leave stands first */
};

/* < 0: a leaves before b. */
static int order_of(const void *left, const void *right) {
    const struct candidate *a = left, *b = right;
    if (a->last_use_s != b->last_use_s)
        return a->last_use_s < b->last_use_s ? -1 : 1;
    if (a->windowed != b->windowed)
        return a->windowed ? -1 : 1;
    int later = (a->generation > b->generation) - (a->generation < b->generation);
    return a->windowed ? later : -later;
}

static void swap(struct candidate *a, struct candidate *b) {
    struct candidate kept = *a;
    *a = *b;
    *b = kept;
}

static void sift_down(struct kvl_sweep *sweep) {
    for (uint32_t at = 0, child; (child = 2 * at + 1) < sweep->count; at = child) {
        if (child + 1 < sweep->count && order_of(&sweep->kept[child], &sweep->kept[child + 1]) < 0)
            child++;
        if (order_of(&sweep->kept[at], &sweep->kept[child]) >= 0)
            return;
        swap(&sweep->kept[at], &sweep->kept[child]);
    }
}

static void keep(struct kvl_sweep *sweep, struct candidate candidate) {
    if (sweep->count == KVL_SWEEP_KEPT) {
        if (order_of(&candidate, &sweep->kept[0]) < 0) {
            sweep->kept[0] = candidate;
            sift_down(sweep);
        }
        return;
    }
    uint32_t at = sweep->count++;
    sweep->kept[at] = candidate;
    for (; at > 0 && order_of(&sweep->kept[(at - 1) / 2], &sweep->kept[at]) < 0; at = (at - 1) / 2)
        swap(&sweep->kept[at], &sweep->kept[(at - 1) / 2]);
}

static bool is_unpinned_on_disk(const struct kvl_entry *entry) {
    return kvl_entry_is_in(entry, KVL_TIER_DISK) && (entry->flags & KVL_ENTRY_PINNED) == 0;
}

static bool may_leave_disk(const struct kvl_entry *entry) {
    return is_unpinned_on_disk(entry) && entry->busy[KVL_TIER_DISK] == 0;
}

/* How much the tenant has to give up for what waits; and, once it gives up something, in all. */
static uint64_t excess_bytes(const struct kvl_tenant *tenant, uint64_t spare_bytes) {
    const struct kvl_tenant_tier *mine = &tenant->tiers[KVL_TIER_DISK];
    uint64_t wanted = mine->used_bytes + tenant->storing_bytes + spare_bytes;
    return wanted > mine->quota_bytes ? wanted - mine->quota_bytes : 0;
}

static void evict(struct kvl_store *store, struct kvl_sweep *sweep) {
    struct kvl_tenant *tenant = sweep->tenant;
    struct kvl_tier *disk = store->tiers[KVL_TIER_DISK].tier;
    uint64_t spare_bytes = tenant->tiers[KVL_TIER_DISK].quota_bytes / 16;
    if (spare_bytes < tenant->wanted_bytes)
        spare_bytes = tenant->wanted_bytes;
    qsort(sweep->kept, sweep->count, sizeof(sweep->kept[0]), order_of);
    for (uint32_t i = 0; i < sweep->count && excess_bytes(tenant, spare_bytes) > 0; i++) {
        const struct candidate *candidate = &sweep->kept[i];
        const struct kvl_entry *entry = kvl_table_at(store->table, candidate->block);
        if (!kvl_entry_is(store, candidate->block, candidate->generation) ||
            !may_leave_disk(entry) || entry->last_use_s != candidate->last_use_s)
            continue;
        disk->ops->discard(disk, &entry->key, entry->disk_location);
        kvl_disk_copy_lost(store, candidate->block);
    }
    /* What is on its way to disk can leave once it is there, what is being read once it was. */
    if (excess_bytes(tenant, tenant->wanted_bytes) > 0 && sweep->count < KVL_SWEEP_KEPT &&
        tenant->storing_bytes == 0 && !sweep->reads)
        tenant->stuck_until_ns = kvl_clock_ns() + KVL_STUCK_NS;
    tenant->wanted_bytes = 0;
    sweep->tenant = NULL;
}

static struct kvl_tenant *next_over_quota(struct kvl_store *store) {
    for (uint32_t i = 0; i < store->tenants.count; i++) {
        struct kvl_tenant *tenant = store->tenants.tenants[i];
        if (tenant->tiers[KVL_TIER_DISK].quota_bytes == 0 ||
            excess_bytes(tenant, tenant->wanted_bytes) == 0)
            continue;
        if (tenant->stuck_until_ns <= kvl_clock_ns())
            return tenant;
        store->retry = true;
    }
    return NULL;
}

void kvl_quota_pump(struct kvl_store *store) {
    struct kvl_sweep *sweep = store->sweep;
    if (!store->loaded || store->tiers[KVL_TIER_DISK].tier == NULL)
        return;
    if (sweep == NULL || sweep->tenant == NULL) {
        struct kvl_tenant *tenant = next_over_quota(store);
        if (tenant == NULL)
            return;
        if (sweep == NULL && (sweep = store->sweep = malloc(sizeof(*sweep))) == NULL)
            return;
        sweep->tenant = tenant;
        sweep->cursor = sweep->count = 0;
        sweep->reads = false;
    }
    uint32_t end = kvl_table_end(store->table);
    for (uint32_t i = 0; i < KVL_SWEEP_STEP && sweep->cursor < end; i++, sweep->cursor++) {
        const struct kvl_entry *entry = kvl_table_at(store->table, sweep->cursor);
        if (!is_unpinned_on_disk(entry) || kvl_entry_tenant(store, entry) != sweep->tenant)
            continue;
        if (may_leave_disk(entry))
            keep(sweep, (struct candidate){.block = sweep->cursor,
                            .last_use_s = entry->last_use_s,
                            .windowed = kvl_namespace_is_windowed(store, entry->namespace_id),
                            .generation = entry->generation});
        else
            sweep->reads = true;
    }
    if (sweep->cursor >= end)
        evict(store, sweep);
    store->retry = true;
}

enum kvl_quota_answer kvl_disk_quota_ask(
    struct kvl_store *store, struct kvl_tenant *tenant, uint64_t bytes) {
    const struct kvl_tenant_tier *mine = &tenant->tiers[KVL_TIER_DISK];
    if (mine->quota_bytes == 0 || excess_bytes(tenant, bytes) == 0)
        return KVL_QUOTA_ROOM;
    if (bytes > mine->quota_bytes || tenant->stuck_until_ns > kvl_clock_ns())
        return KVL_QUOTA_FULL;
    if (tenant->wanted_bytes < bytes)
        tenant->wanted_bytes = bytes;
    store->retry = true;
    return KVL_QUOTA_WAIT;
}
