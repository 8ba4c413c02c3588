/* placement.c - which tier holds which block: slots, users and eviction.
 *
 * A policy knows only blocks that may leave its tier: whole there and without a lease. Everything
 * else (children first, transfers, copies elsewhere) is asked of the entry when a victim is
 * sought. */
#include <assert.h>

#include "clock.h"
#include "planted.h"
#include "store_private.h"

const struct kvl_layout *kvl_entry_layout(struct kvl_store *store, const struct kvl_entry *entry) {
    return &kvl_namespace_by_id(store, entry->namespace_id)->layout;
}

bool kvl_entry_is(struct kvl_store *store, uint32_t block, uint64_t generation) {
    if (block >= kvl_table_end(store->table))
        return false;
    const struct kvl_entry *entry = kvl_table_at(store->table, block);
    return (entry->flags & KVL_ENTRY_USED) != 0 && entry->generation == generation;
}

/* ---- the policies' lists ------------------------------------------------------------------ */

static void unlist(struct kvl_store *store, uint32_t block, unsigned tier) {
    struct kvl_entry *entry = kvl_table_at(store->table, block);
    if ((entry->flags & (KVL_ENTRY_LISTED << tier)) == 0)
        return;
    struct kvl_policy *policy = store->tiers[tier].policy;
    policy->ops->removed(policy, kvl_entry_tenant(store, entry)->id, block);
    entry->flags &= (uint16_t) ~(KVL_ENTRY_LISTED << tier);
}

static void list(struct kvl_store *store, uint32_t block, unsigned tier) {
    struct kvl_entry *entry = kvl_table_at(store->table, block);
    if ((entry->flags & (KVL_ENTRY_LISTED << tier)) != 0)
        return;
    struct kvl_policy *policy = store->tiers[tier].policy;
    struct kvl_tenant *tenant = kvl_entry_tenant(store, entry);
    store->demote_rests = tenant->demote_rests = false;
    /* Unlisted for want of memory, the block just stays until its next use. */
    if (policy->ops->inserted(policy, tenant->id, block) == KVL_OK)
        entry->flags |= (uint16_t)(KVL_ENTRY_LISTED << tier);
}

/* ---- copies come and go ------------------------------------------------------------------- */

/* The parent of the entry, which has to stay where its child is; NONE: nobody has to. */
static uint32_t needed_parent(struct kvl_store *store, const struct kvl_entry *entry) {
    return kvl_namespace_is_windowed(store, entry->namespace_id) ? KVL_BLOCK_NONE : entry->parent;
}

static void count_in_namespace(
    struct kvl_store *store, const struct kvl_entry *entry, bool visible) {
    struct kvl_namespace_info *info = kvl_namespace_by_id(store, entry->namespace_id);
    info->blocks += visible ? 1 : (uint64_t)-1;
    kvl_entry_tenant(store, entry)->blocks += visible ? 1 : (uint64_t)-1;
}

static uint64_t is_copied(uint8_t tiers, unsigned tier) {
    return (tiers & 1u << tier) != 0 && (tiers & ~(1u << tier)) != 0;
}

static void set_tiers(struct kvl_store *store, struct kvl_entry *entry, unsigned tiers) {
    for (unsigned tier = 0; tier < KVL_MEMORY_TIERS; tier++)
        store->tiers[tier].copied_blocks +=
            is_copied((uint8_t)tiers, tier) - is_copied(entry->tiers, tier);
    entry->tiers = (uint8_t)tiers;
}

void kvl_place_set(struct kvl_store *store, uint32_t block, unsigned tier) {
    struct kvl_entry *entry = kvl_table_at(store->table, block);
    if (kvl_entry_is_in(entry, tier))
        return;
    if (entry->tiers == 0)
        count_in_namespace(store, entry, true);
    set_tiers(store, entry, entry->tiers | 1u << tier);
    struct kvl_tenant_tier *mine = &kvl_entry_tenant(store, entry)->tiers[tier];
    mine->blocks++;
    if (tier >= KVL_MEMORY_TIERS) {
        mine->used_bytes += entry->disk_bytes;
        return;
    }
    kvl_table_child_came(store->table, needed_parent(store, entry), tier);
    if (entry->leases[tier] == 0)
        list(store, block, tier);
}

void kvl_place_clear(struct kvl_store *store, uint32_t block, unsigned tier) {
    struct kvl_entry *entry = kvl_table_at(store->table, block);
    if (!kvl_entry_is_in(entry, tier))
        return;
    set_tiers(store, entry, entry->tiers & ~(1u << tier));
    if (entry->tiers == 0)
        count_in_namespace(store, entry, false);
    struct kvl_tenant_tier *mine = &kvl_entry_tenant(store, entry)->tiers[tier];
    mine->blocks--;
    if (tier >= KVL_MEMORY_TIERS) {
        mine->used_bytes -= entry->disk_bytes;
        return;
    }
    kvl_table_child_left(store->table, needed_parent(store, entry), tier);
    unlist(store, block, tier);
}

kvl_err kvl_block_link(struct kvl_store *store, uint32_t block, const struct kvl_key *parent) {
    uint32_t number = kvl_table_find(store->table, parent);
    if (number == KVL_BLOCK_NONE) {
        kvl_err err = kvl_table_insert(store->table, parent, &number);
        if (err != KVL_OK)
            return err;
        kvl_entry_join(store, kvl_table_at(store->table, number),
            kvl_table_at(store->table, block)->namespace_id);
    }
    kvl_table_link(store->table, block, number);
    return KVL_OK;
}

/* ---- slots and their users ---------------------------------------------------------------- */

struct kvl_slot_wish kvl_entry_slot_wish(
    struct kvl_store *store, const struct kvl_entry *entry, unsigned tier) {
    return (struct kvl_slot_wish){.tenant = kvl_entry_tenant(store, entry),
        .tier = tier,
        .slot_bytes = kvl_entry_layout(store, entry)->slot_bytes};
}

static bool is_within_quota(const struct kvl_slot_wish *wish) {
    const struct kvl_tenant_tier *mine = &wish->tenant->tiers[wish->tier];
    return mine->quota_bytes == 0 || mine->used_bytes + wish->slot_bytes <= mine->quota_bytes;
}

kvl_err kvl_slot_take(
    struct kvl_store *store, const struct kvl_slot_wish *wish, uint64_t *location) {
    struct kvl_tier *owner = store->tiers[wish->tier].tier;
    if (!is_within_quota(wish) || (wish->tier == KVL_TIER_DEVICE && store->device_lost))
        return KVL_ERR_NOSPC;
    kvl_err err = owner->ops->alloc(owner, wish->slot_bytes, location);
    if (wish->tier == KVL_TIER_DEVICE && kvl_device_answered(store, err) != err)
        return KVL_ERR_NOSPC;
    if (err == KVL_OK)
        wish->tenant->tiers[wish->tier].used_bytes += wish->slot_bytes;
    return err;
}

void kvl_slot_give_back(
    struct kvl_store *store, const struct kvl_slot_wish *slot, uint64_t location) {
    static const struct kvl_key no_key;
    struct kvl_tier *owner = store->tiers[slot->tier].tier;
    slot->tenant->tiers[slot->tier].used_bytes -= slot->slot_bytes;
    owner->ops->discard(owner, &no_key, location);
}

void kvl_slot_attach(struct kvl_store *store, uint32_t block, unsigned tier, uint64_t location) {
    struct kvl_entry *entry = kvl_table_at(store->table, block);
    assert(!kvl_entry_has_slot(entry, tier) && location / KVL_PAGE_BYTES <= UINT32_MAX);
    entry->slot_page[tier] = (uint32_t)(location / KVL_PAGE_BYTES);
    entry->flags |= (uint16_t)(KVL_ENTRY_SLOT << tier);
}

static void detach_slot(struct kvl_store *store, struct kvl_entry *entry, unsigned tier) {
    const struct kvl_slot_wish slot = kvl_entry_slot_wish(store, entry, tier);
    entry->flags &= (uint16_t) ~(KVL_ENTRY_SLOT << tier);
    kvl_slot_give_back(store, &slot, kvl_entry_location(entry, tier));
}

/* What follows when a user of the slot has gone. */
void kvl_slot_release_unused(struct kvl_store *store, uint32_t block, unsigned tier) {
    struct kvl_entry *entry = kvl_table_at(store->table, block);
    if (!kvl_entry_has_slot(entry, tier) || entry->leases[tier] > 0)
        return;
    if (kvl_entry_is_in(entry, tier)) {
        list(store, block, tier);
    } else if (entry->busy[tier] == 0) {
        detach_slot(store, entry, tier);
        kvl_block_reap(store, block);
    }
}

void kvl_lease_count_up(struct kvl_store *store, uint32_t block, unsigned tier) {
    struct kvl_entry *entry = kvl_table_at(store->table, block);
    assert(kvl_entry_has_slot(entry, tier) && entry->leases[tier] < UINT16_MAX);
    entry->leases[tier]++;
    unlist(store, block, tier);
}

void kvl_lease_count_down(
    struct kvl_store *store, uint32_t block, uint64_t generation, unsigned tier) {
    if (!kvl_entry_is(store, block, generation)) {
        kvl_orphan_count_down(store, tier, generation);
        return;
    }
    struct kvl_entry *entry = kvl_table_at(store->table, block);
    assert(entry->leases[tier] > 0);
    entry->leases[tier]--;
    kvl_slot_release_unused(store, block, tier);
}

void kvl_busy_up(struct kvl_store *store, uint32_t block, unsigned tier) {
    struct kvl_entry *entry = kvl_table_at(store->table, block);
    assert(entry->busy[tier] < UINT8_MAX);
    entry->busy[tier]++;
}

void kvl_busy_down(struct kvl_store *store, uint32_t block, uint64_t generation, unsigned tier) {
    if (!kvl_entry_is(store, block, generation)) {
        kvl_orphan_count_down(store, tier, generation);
        return;
    }
    struct kvl_entry *entry = kvl_table_at(store->table, block);
    assert(entry->busy[tier] > 0);
    entry->busy[tier]--;
    if (tier < KVL_MEMORY_TIERS)
        kvl_slot_release_unused(store, block, tier);
    else
        kvl_block_reap(store, block);
}

/* ---- blocks go ---------------------------------------------------------------------------- */

static bool is_kept(const struct kvl_entry *entry) {
    const unsigned flags = KVL_ENTRY_FILLING | KVL_ENTRY_SEALING | KVL_ENTRY_PINNED |
                           KVL_ENTRY_WAITED | KVL_ENTRY_SLOT << KVL_TIER_DEVICE |
                           KVL_ENTRY_SLOT << KVL_TIER_HOST;
    return entry->tiers != 0 || entry->children > 0 || (entry->flags & flags) != 0 ||
           entry->busy[KVL_TIER_DISK] > 0;
}

void kvl_block_reap(struct kvl_store *store, uint32_t block) {
    while (block != KVL_BLOCK_NONE) {
        struct kvl_entry *entry = kvl_table_at(store->table, block);
        if ((entry->flags & KVL_ENTRY_USED) == 0 || is_kept(entry))
            return;
        uint32_t parent = kvl_table_unlink(store->table, block);
        kvl_table_remove(store->table, block);
        block = parent;
    }
}

static void abandon_slot(struct kvl_store *store, uint32_t block, unsigned tier) {
    struct kvl_entry *entry = kvl_table_at(store->table, block);
    kvl_place_clear(store, block, tier);
    if (!kvl_entry_has_slot(entry, tier))
        return;
    uint32_t users = (uint32_t)entry->leases[tier] + entry->busy[tier];
    if (users == 0 || KVL_PLANTED("slot-freed-under-lease"))
        detach_slot(store, entry, tier);
    else if (!kvl_orphan_add(store, entry, tier, users))
        KVL_ERROR(store->log, "event=slot_leaked reason=out_of_memory tier=%u", tier);
    entry->leases[tier] = 0;
    entry->busy[tier] = 0;
}

static void abandon_disk(struct kvl_store *store, uint32_t block) {
    struct kvl_entry *entry = kvl_table_at(store->table, block);
    if (!kvl_entry_is_in(entry, KVL_TIER_DISK)) {
        entry->busy[KVL_TIER_DISK] = 0; /* being stored: the transfer discards it at its end */
        return;
    }
    kvl_place_clear(store, block, KVL_TIER_DISK);
    struct kvl_tier *disk = store->tiers[KVL_TIER_DISK].tier;
    uint32_t users = entry->busy[KVL_TIER_DISK];
    if (users == 0)
        disk->ops->discard(disk, &entry->key, entry->disk_location);
    else if (!kvl_orphan_add(store, entry, KVL_TIER_DISK, users))
        KVL_ERROR(store->log, "event=disk_block_leaked reason=out_of_memory");
    entry->busy[KVL_TIER_DISK] = 0;
}

void kvl_block_abandon(struct kvl_store *store, uint32_t block) {
    struct kvl_entry *entry = kvl_table_at(store->table, block);
    for (unsigned tier = 0; tier < KVL_MEMORY_TIERS; tier++)
        abandon_slot(store, block, tier);
    abandon_disk(store, block);
    kvl_store_failed_clear(store, entry);
    entry->flags &= KVL_ENTRY_USED | KVL_ENTRY_PINNED | KVL_ENTRY_WAITED;
    entry->generation = 0;
    entry->content_hash = 0;
    entry->token_count = 0;
    entry->hits = 0;
    entry->disk_bytes = 0;
    /* A link is made anew by the next seal; children stay, this entry is their ghost parent. */
    kvl_block_reap(store, kvl_table_unlink(store->table, block));
}

void kvl_block_drop(struct kvl_store *store, uint32_t block, enum kvl_event_kind why) {
    struct kvl_entry *entry = kvl_table_at(store->table, block);
    unsigned nearest = entry->tiers != 0 ? (unsigned)__builtin_ctz(entry->tiers) : KVL_TIER_DEVICE;
    kvl_event_add(store, why, nearest, entry);
    kvl_block_abandon(store, block);
    kvl_block_reap(store, block);
}

void kvl_block_evict(struct kvl_store *store, uint32_t block, unsigned tier) {
    struct kvl_entry *entry = kvl_table_at(store->table, block);
    assert(tier < KVL_MEMORY_TIERS && entry->leases[tier] == 0 && entry->busy[tier] == 0);
    kvl_place_clear(store, block, tier);
    detach_slot(store, entry, tier);
    kvl_entry_tenant(store, entry)->tiers[tier].evicted++;
    kvl_event_add(store, KVL_EVENT_EVICTED, tier, entry);
    if (entry->tiers == 0) {
        kvl_entry_tenant(store, entry)->shed_blocks +=
            (entry->flags & (KVL_ENTRY_UNPERSISTED | KVL_ENTRY_STORE_FAILED)) != 0 ? 1 : 0;
        kvl_block_abandon(store, block);
        kvl_block_reap(store, block);
    }
}

void kvl_disk_copy_lost(struct kvl_store *store, uint32_t block) {
    const struct kvl_entry *entry = kvl_table_at(store->table, block);
    kvl_place_clear(store, block, KVL_TIER_DISK);
    kvl_entry_tenant(store, entry)->tiers[KVL_TIER_DISK].evicted++;
    kvl_event_add(store, KVL_EVENT_EVICTED, KVL_TIER_DISK, entry);
    if (entry->tiers == 0) {
        kvl_block_abandon(store, block);
        kvl_block_reap(store, block);
    }
}

void kvl_copy_is_bad(struct kvl_store *store, uint32_t block, unsigned tier) {
    struct kvl_entry *entry = kvl_table_at(store->table, block);
    struct kvl_tenant *tenant = kvl_entry_tenant(store, entry);
    tenant->tiers[tier].corrupt++;
    if (tier != KVL_TIER_DISK) {
        tenant->hash_mismatches++;
        if (entry->tiers == 1u << tier) {
            kvl_block_drop(store, block, KVL_EVENT_CORRUPT);
            return;
        }
    }
    kvl_place_clear(store, block, tier);
    kvl_event_add(store, KVL_EVENT_CORRUPT, tier, entry);
    if (tier == KVL_TIER_DISK && entry->tiers != 0)
        kvl_persist_queue(store, block, kvl_persist_enter(store, tenant));
}

void kvl_block_used(struct kvl_store *store, uint32_t block) {
    struct kvl_entry *entry = kvl_table_at(store->table, block);
    entry->last_use_s = store->now_s;
    if (entry->hits < UINT16_MAX)
        entry->hits++;
    uint32_t group = kvl_entry_tenant(store, entry)->id;
    for (unsigned tier = 0; tier < KVL_MEMORY_TIERS; tier++)
        if ((entry->flags & (KVL_ENTRY_LISTED << tier)) != 0)
            store->tiers[tier].policy->ops->used(store->tiers[tier].policy, group, block);
}

/* ---- victims ------------------------------------------------------------------------------ */

struct victim_wish {
    struct kvl_store *store;
    unsigned tier;
};

static const struct kvl_entry *may_leave(const struct victim_wish *wish, uint32_t block) {
    const struct kvl_entry *entry = kvl_table_at(wish->store->table, block);
    return kvl_entry_may_leave(entry, wish->tier) ? entry : NULL;
}

static bool has_other_copy(void *arg, uint32_t block) {
    const struct victim_wish *wish = arg;
    const struct kvl_entry *entry = may_leave(wish, block);
    return entry != NULL && (entry->tiers & ~(1u << wish->tier)) != 0;
}

/* The chain is split over tiers for a while, but nothing is lost: better than NOSPC while a leaf
 * is on its way to another tier and its parents wait for it. */
static bool has_other_copy_children_or_not(void *arg, uint32_t block) {
    const struct victim_wish *wish = arg;
    const struct kvl_entry *entry = kvl_table_at(wish->store->table, block);
    return entry->busy[wish->tier] == 0 && (entry->tiers & ~(1u << wish->tier)) != 0;
}

/* Nothing better can come of it: no disk will ever have it. */
static bool has_no_hope(void *arg, uint32_t block) {
    const struct victim_wish *wish = arg;
    const struct kvl_entry *entry = may_leave(wish, block);
    return entry != NULL && (entry->flags & (KVL_ENTRY_PINNED | KVL_ENTRY_UNPERSISTED)) == 0;
}

/* It waits for the disk, and that for longer than anybody should wait. */
static bool is_not_pinned(void *arg, uint32_t block) {
    const struct kvl_entry *entry = may_leave(arg, block);
    return entry != NULL && (entry->flags & KVL_ENTRY_PINNED) == 0;
}

uint32_t kvl_victim(struct kvl_store *store, unsigned tier, const struct kvl_tenant *tenant,
    bool (*evictable)(void *arg, uint32_t block), void *arg) {
    struct kvl_policy *policy = store->tiers[tier].policy;
    if (tenant != NULL)
        return policy->ops->victim(policy, tenant->id, evictable, arg);
    uint32_t oldest = KVL_BLOCK_NONE, oldest_s = 0;
    uint64_t most_bytes = 0;
    for (uint32_t i = 0; i < store->tenants.count; i++) {
        const struct kvl_tenant_tier *mine = &store->tenants.tenants[i]->tiers[tier];
        uint32_t block =
            mine->blocks == 0 ? KVL_BLOCK_NONE : policy->ops->victim(policy, i, evictable, arg);
        if (block == KVL_BLOCK_NONE)
            continue;
        uint32_t used_s = kvl_table_at(store->table, block)->last_use_s;
        bool is_as_old = used_s == oldest_s && mine->used_bytes > most_bytes;
        if (oldest != KVL_BLOCK_NONE && used_s >= oldest_s && !is_as_old)
            continue;
        oldest = block;
        oldest_s = used_s;
        most_bytes = mine->used_bytes;
    }
    return oldest;
}

static uint32_t find_victim(
    struct kvl_store *store, unsigned tier, const struct kvl_tenant *tenant, bool behind) {
    struct victim_wish wish = {store, tier};
    uint32_t block = KVL_BLOCK_NONE;
    bool copies = store->tiers[tier].copied_blocks > 0; /* or the whole tier is looked through */
    if (copies)
        block = kvl_victim(store, tier, tenant, has_other_copy, &wish);
    if (copies && block == KVL_BLOCK_NONE && !behind)
        block = kvl_victim(store, tier, tenant, has_other_copy_children_or_not, &wish);
    if (block == KVL_BLOCK_NONE)
        block = kvl_victim(store, tier, tenant, has_no_hope, &wish);
    if (block == KVL_BLOCK_NONE && !behind && kvl_clock_ns() - store->stored_ns > KVL_STUCK_NS)
        block = kvl_victim(store, tier, tenant, is_not_pinned, &wish);
    return block;
}

kvl_err kvl_slot_reserve(
    struct kvl_store *store, const struct kvl_slot_wish *wish, bool behind, uint64_t *location) {
    uint64_t *slot_bytes_max = &store->tiers[wish->tier].slot_bytes_max;
    uint64_t quota_bytes = wish->tenant->tiers[wish->tier].quota_bytes;
    if (wish->slot_bytes > *slot_bytes_max)
        *slot_bytes_max = wish->slot_bytes;
    if (quota_bytes != 0 && wish->slot_bytes > quota_bytes)
        return KVL_ERR_NOSPC;
    for (;;) {
        const struct kvl_tenant *payer = is_within_quota(wish) ? NULL : wish->tenant;
        kvl_err err = kvl_slot_take(store, wish, location);
        if (err != KVL_ERR_NOSPC)
            return err == KVL_ERR_TOOBIG ? KVL_ERR_NOSPC : err;
        if (wish->tier == KVL_TIER_DEVICE && store->device_lost)
            return KVL_ERR_NOSPC; /* whatever goes */
        uint32_t victim = find_victim(store, wish->tier, payer, behind);
        if (victim == KVL_BLOCK_NONE)
            return KVL_ERR_NOSPC;
        kvl_block_evict(store, victim, wish->tier);
    }
}
