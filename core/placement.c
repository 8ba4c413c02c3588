/* placement.c - which tier holds which block: slots, users and eviction.
 *
 * A policy knows only blocks that may leave its tier: whole there and without a lease. Everything
 * else (children first, transfers, copies elsewhere) is asked of the entry when a victim is
 * sought. */
#include <assert.h>

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
    policy->ops->removed(policy, block);
    entry->flags &= (uint16_t) ~(KVL_ENTRY_LISTED << tier);
}

static void list(struct kvl_store *store, uint32_t block, unsigned tier) {
    struct kvl_entry *entry = kvl_table_at(store->table, block);
    if ((entry->flags & (KVL_ENTRY_LISTED << tier)) != 0)
        return;
    struct kvl_policy *policy = store->tiers[tier].policy;
    store->demote_rests = false;
    /* Unlisted for want of memory, the block just stays until its next use. */
    if (policy->ops->inserted(policy, block) == KVL_OK)
        entry->flags |= (uint16_t)(KVL_ENTRY_LISTED << tier);
}

/* ---- copies come and go ------------------------------------------------------------------- */

static void count_in_namespace(
    struct kvl_store *store, const struct kvl_entry *entry, bool visible) {
    struct kvl_namespace_info *info = kvl_namespace_by_id(store, entry->namespace_id);
    info->blocks += visible ? 1 : (uint64_t)-1;
    store->visible_blocks += visible ? 1 : (uint64_t)-1;
}

void kvl_place_set(struct kvl_store *store, uint32_t block, unsigned tier) {
    struct kvl_entry *entry = kvl_table_at(store->table, block);
    if (kvl_entry_is_in(entry, tier))
        return;
    if (entry->tiers == 0)
        count_in_namespace(store, entry, true);
    entry->tiers |= (uint8_t)(1u << tier);
    store->tiers[tier].blocks++;
    if (tier >= KVL_MEMORY_TIERS)
        return;
    kvl_table_child_came(store->table, entry->parent, tier);
    if (entry->leases[tier] == 0)
        list(store, block, tier);
}

void kvl_place_clear(struct kvl_store *store, uint32_t block, unsigned tier) {
    struct kvl_entry *entry = kvl_table_at(store->table, block);
    if (!kvl_entry_is_in(entry, tier))
        return;
    entry->tiers &= (uint8_t) ~(1u << tier);
    if (entry->tiers == 0)
        count_in_namespace(store, entry, false);
    store->tiers[tier].blocks--;
    if (tier >= KVL_MEMORY_TIERS)
        return;
    kvl_table_child_left(store->table, entry->parent, tier);
    unlist(store, block, tier);
}

kvl_err kvl_block_link(struct kvl_store *store, uint32_t block, const struct kvl_key *parent) {
    uint32_t number = kvl_table_find(store->table, parent);
    if (number == KVL_BLOCK_NONE) {
        kvl_err err = kvl_table_insert(store->table, parent, &number);
        if (err != KVL_OK)
            return err;
        kvl_table_at(store->table, number)->namespace_id =
            kvl_table_at(store->table, block)->namespace_id;
    }
    kvl_table_link(store->table, block, number);
    return KVL_OK;
}

/* ---- slots and their users ---------------------------------------------------------------- */

void kvl_slot_give_back(struct kvl_store *store, unsigned tier, uint64_t location) {
    static const struct kvl_key no_key;
    struct kvl_tier *owner = store->tiers[tier].tier;
    owner->ops->discard(owner, &no_key, location);
}

void kvl_slot_attach(struct kvl_store *store, uint32_t block, unsigned tier, uint64_t location) {
    struct kvl_entry *entry = kvl_table_at(store->table, block);
    assert(!kvl_entry_has_slot(entry, tier) && location / KVL_PAGE_BYTES <= UINT32_MAX);
    entry->slot_page[tier] = (uint32_t)(location / KVL_PAGE_BYTES);
    entry->flags |= (uint16_t)(KVL_ENTRY_SLOT << tier);
}

static void detach_slot(struct kvl_store *store, struct kvl_entry *entry, unsigned tier) {
    entry->flags &= (uint16_t) ~(KVL_ENTRY_SLOT << tier);
    kvl_slot_give_back(store, tier, kvl_entry_location(entry, tier));
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
        kvl_slot_give_back(store, tier, kvl_entry_location(entry, tier));
    else if (!kvl_orphan_add(store, tier, entry->generation, kvl_entry_location(entry, tier), users,
                 &entry->key))
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
    else if (!kvl_orphan_add(
                 store, KVL_TIER_DISK, entry->generation, entry->disk_location, users, &entry->key))
        KVL_ERROR(store->log, "event=disk_block_leaked reason=out_of_memory");
    entry->busy[KVL_TIER_DISK] = 0;
}

void kvl_block_abandon(struct kvl_store *store, uint32_t block) {
    struct kvl_entry *entry = kvl_table_at(store->table, block);
    for (unsigned tier = 0; tier < KVL_MEMORY_TIERS; tier++)
        abandon_slot(store, block, tier);
    abandon_disk(store, block);
    if ((entry->flags & KVL_ENTRY_STORE_FAILED) != 0)
        store->store_failed_blocks--;
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
    kvl_event_add(store, why, nearest, &entry->key);
    kvl_block_abandon(store, block);
    kvl_block_reap(store, block);
}

void kvl_block_evict(struct kvl_store *store, uint32_t block, unsigned tier) {
    struct kvl_entry *entry = kvl_table_at(store->table, block);
    assert(tier < KVL_MEMORY_TIERS && entry->leases[tier] == 0 && entry->busy[tier] == 0);
    kvl_place_clear(store, block, tier);
    detach_slot(store, entry, tier);
    store->tiers[tier].evicted++;
    kvl_event_add(store, KVL_EVENT_EVICTED, tier, &entry->key);
    if (entry->tiers == 0) {
        store->shed_blocks +=
            (entry->flags & (KVL_ENTRY_UNPERSISTED | KVL_ENTRY_STORE_FAILED)) != 0 ? 1 : 0;
        kvl_block_abandon(store, block);
        kvl_block_reap(store, block);
    }
}

void kvl_copy_is_bad(struct kvl_store *store, uint32_t block, unsigned tier) {
    struct kvl_entry *entry = kvl_table_at(store->table, block);
    store->tiers[tier].corrupt++;
    if (tier != KVL_TIER_DISK) {
        store->hash_mismatches++;
        if (entry->tiers == 1u << tier) {
            kvl_block_drop(store, block, KVL_EVENT_CORRUPT);
            return;
        }
    }
    kvl_place_clear(store, block, tier);
    kvl_event_add(store, KVL_EVENT_CORRUPT, tier, &entry->key);
    if (tier == KVL_TIER_DISK && entry->tiers != 0)
        kvl_persist_queue(store, block, kvl_persist_enter(store));
}

void kvl_block_used(struct kvl_store *store, uint32_t block) {
    struct kvl_entry *entry = kvl_table_at(store->table, block);
    entry->last_use_s = store->now_s;
    if (entry->hits < UINT16_MAX)
        entry->hits++;
    for (unsigned tier = 0; tier < KVL_MEMORY_TIERS; tier++)
        if ((entry->flags & (KVL_ENTRY_LISTED << tier)) != 0)
            store->tiers[tier].policy->ops->used(store->tiers[tier].policy, block);
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

static bool is_not_pinned(void *arg, uint32_t block) {
    const struct kvl_entry *entry = may_leave(arg, block);
    return entry != NULL && (entry->flags & KVL_ENTRY_PINNED) == 0;
}

static uint32_t find_victim(struct kvl_store *store, unsigned tier, bool behind) {
    struct victim_wish wish = {store, tier};
    struct kvl_policy *policy = store->tiers[tier].policy;
    uint32_t block = KVL_BLOCK_NONE;
    bool copies =
        store->tiers[KVL_TIER_DISK].tier != NULL || store->tiers[KVL_TIER_HOST].tier != NULL;
    if (copies)
        block = policy->ops->victim(policy, has_other_copy, &wish);
    if (copies && block == KVL_BLOCK_NONE && !behind)
        block = policy->ops->victim(policy, has_other_copy_children_or_not, &wish);
    if (block == KVL_BLOCK_NONE)
        block = policy->ops->victim(policy, has_no_hope, &wish);
    if (block == KVL_BLOCK_NONE && !behind)
        block = policy->ops->victim(policy, is_not_pinned, &wish);
    return block;
}

kvl_err kvl_slot_reserve(
    struct kvl_store *store, unsigned tier, uint64_t slot_bytes, bool behind, uint64_t *location) {
    struct kvl_tier_state *state = &store->tiers[tier];
    if (slot_bytes > state->slot_bytes_max)
        state->slot_bytes_max = slot_bytes;
    for (;;) {
        kvl_err err = state->tier->ops->alloc(state->tier, slot_bytes, location);
        if (err != KVL_ERR_NOSPC)
            return err == KVL_ERR_TOOBIG ? KVL_ERR_NOSPC : err;
        uint32_t victim = find_victim(store, tier, behind);
        if (victim == KVL_BLOCK_NONE)
            return KVL_ERR_NOSPC;
        kvl_block_evict(store, victim, tier);
    }
}
