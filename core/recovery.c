/* recovery.c - what the disk tier and the catalog tell: at start everything, later what changed.
 *
 * At start the catalog's records come first (namespaces, sessions, pins, counters), then the
 * blocks in any order, a child before its parent included, then `loaded`. Namespaces come twice,
 * first ahead of blocks that are sought (seek.c). Once the catalog is known new blocks and sessions
 * may be made; blocks wait in memory until `loaded`. The generation counter goes on above
 * everything that was ever given out: above the catalog's mark, which is set ahead in steps, and
 * above every block found. */
#include <stdlib.h>
#include <string.h>

#include "little_endian.h"
#include "store_private.h"

#define KVL_KEEP_RECENT_S 600u

static const char generation_name[] = "generation";

static void meta_found(struct kvl_store *store, const void *key, uint32_t key_bytes,
    const void *value, uint32_t value_bytes) {
    const uint8_t *at = value;
    if (key_bytes == sizeof(generation_name) - 1 && memcmp(key, generation_name, key_bytes) == 0 &&
        value_bytes == 8)
        store->generation_reserved = kvl_le_get(&at, 8);
}

static void ignored(struct kvl_store *store, enum kvl_catalog_kind kind, kvl_err err) {
    if (err != KVL_OK)
        KVL_WARN(store->log, "event=catalog_record_ignored kind=%u error=%s", (unsigned)kind,
            kvl_err_name(err));
}

static void on_record(void *arg, enum kvl_catalog_kind kind, const void *key, uint32_t key_bytes,
    const void *value, uint32_t value_bytes) {
    struct kvl_store *store = arg;
    switch (kind) {
    case KVL_CATALOG_META:
        meta_found(store, key, key_bytes, value, value_bytes);
        break;
    case KVL_CATALOG_NAMESPACE:
        kvl_namespace_found(store, key, key_bytes, value, value_bytes);
        break;
    case KVL_CATALOG_SESSION:
        ignored(store, kind,
            kvl_session_load_record(store->sessions, key, key_bytes, value, value_bytes));
        break;
    case KVL_CATALOG_TOKENS:
        ignored(store, kind,
            kvl_session_load_chunk(store->sessions, key, key_bytes, value, value_bytes));
        break;
    case KVL_CATALOG_PIN:
        kvl_pin_found(store, key, key_bytes);
        break;
    case KVL_CATALOG_KINDS:
        break;
    }
}

static void discard(struct kvl_store *store, const struct kvl_key *key, uint64_t location) {
    struct kvl_tier *disk = store->tiers[KVL_TIER_DISK].tier;
    disk->ops->discard(disk, key, location);
}

/* The very block, in memory, whose place on disk was taken back when the index was found damaged.
 */
static bool is_without_place(const struct kvl_entry *entry, const struct kvl_block_record *record) {
    return entry->tiers != 0 && !kvl_entry_is_in(entry, KVL_TIER_DISK) &&
           entry->generation == record->generation && entry->content_hash == record->content_hash;
}

/* The entry that the found block is to fill; NONE when another generation of it is better. */
static uint32_t entry_for_found(
    struct kvl_store *store, const struct kvl_block_record *record, uint64_t location) {
    uint32_t block = kvl_table_find(store->table, &record->key);
    if (block == KVL_BLOCK_NONE)
        return kvl_table_insert(store->table, &record->key, &block) == KVL_OK ? block
                                                                              : KVL_BLOCK_NONE;
    const struct kvl_entry *entry = kvl_table_at(store->table, block);
    if (is_without_place(entry, record))
        return block;
    bool in_use =
        entry->tiers != 0 || (entry->flags & (KVL_ENTRY_FILLING | KVL_ENTRY_SEALING)) != 0;
    if (in_use &&
        (entry->tiers != 1u << KVL_TIER_DISK || entry->generation >= record->generation)) {
        discard(store, &record->key, location);
        return KVL_BLOCK_NONE;
    }
    kvl_block_abandon(store, block);
    return block;
}

static void on_found(void *arg, const struct kvl_block_record *record, uint64_t location,
    uint64_t stored_bytes, uint64_t last_use_wall_ns) {
    struct kvl_store *store = arg;
    const struct kvl_namespace_info *info = kvl_namespace_by_id(store, record->namespace_id);
    if (record->generation > store->generation_found)
        store->generation_found = record->generation;
    if (info == NULL || record->generation == 0) {
        KVL_WARN(store->log, "event=block_without_namespace id=%u", record->namespace_id);
        return;
    }
    uint32_t block = entry_for_found(store, record, location);
    if (block == KVL_BLOCK_NONE)
        return;
    struct kvl_entry *entry = kvl_table_at(store->table, block);
    bool is_new = entry->tiers == 0;
    kvl_entry_join(store, entry, record->namespace_id);
    entry->token_count = (uint16_t)record->token_count;
    entry->generation = record->generation;
    entry->content_hash = record->content_hash;
    entry->disk_location = location;
    entry->disk_bytes = stored_bytes > UINT32_MAX ? UINT32_MAX : (uint32_t)stored_bytes;
    entry->last_use_s = (uint32_t)(last_use_wall_ns / 1000000000u);
    bool root = kvl_key_is_zero(&record->parent) || kvl_key_equal(&record->parent, &info->key) ||
                kvl_key_equal(&record->parent, &record->key);
    /* Without its link a block is still found by its key; only eviction knows less. */
    if (is_new && !root && kvl_block_link(store, block, &record->parent) != KVL_OK)
        KVL_WARN(store->log, "event=parent_not_linked reason=out_of_memory");
    kvl_place_set(store, block, KVL_TIER_DISK);
}

static void finish_sessions(struct kvl_store *store) {
    struct kvl_session *session;
    for (uint32_t i = 0; (session = kvl_session_set_at(store->sessions, i)) != NULL;) {
        if (kvl_session_load_finish(session)) {
            i++;
            continue;
        }
        KVL_WARN(store->log, "event=session_without_record name=%s", session->info.name);
        kvl_session_remove(store->sessions, session);
    }
}

/* All of the catalog is here, and no generation that was ever given out is above those known. */
static void take_up(struct kvl_store *store) {
    if (!store->checked)
        finish_sessions(store);
    store->checked = true;
    uint64_t used = store->generation_reserved > store->generation_found
                        ? store->generation_reserved
                        : store->generation_found;
    if (used >= store->generation_next)
        store->generation_next = used + 1;
    kvl_seek_news(store);
}

static void on_checked(void *arg, uint64_t generation_max) {
    struct kvl_store *store = arg;
    if (generation_max > store->generation_found)
        store->generation_found = generation_max;
    take_up(store);
}

static void on_loaded(void *arg, kvl_err status) {
    struct kvl_store *store = arg;
    if (status != KVL_OK)
        KVL_ERROR(store->log, "event=disk_load_failed error=%s", kvl_err_name(status));
    take_up(store);
    store->loaded = true;
    KVL_INFO(store->log, "event=loaded blocks=%lu sessions=%u namespaces=%u",
        (unsigned long)kvl_visible_blocks(store, NULL), kvl_session_count(store->sessions),
        store->namespace_end);
}

#define KVL_GENERATION_STEP (1u << 20)

uint64_t kvl_generation_next(struct kvl_store *store) {
    uint64_t generation = store->generation_next++;
    if (generation >= store->generation_reserved) {
        uint8_t value[8];
        store->generation_reserved = generation + KVL_GENERATION_STEP;
        kvl_le_put(value, store->generation_reserved, sizeof(value));
        /* Lost, the blocks found at the next start still say how far the counter got. */
        if (kvl_catalog_put(store, KVL_CATALOG_META, generation_name, sizeof(generation_name) - 1,
                value, sizeof(value)) != KVL_OK)
            KVL_WARN(store->log, "event=generation_not_saved");
    }
    return generation;
}

/* Recent use protects what is on disk, but not so much of it that new blocks find no room: the disk
 * asks on until it may take something, and beyond half of it the answer is no. */
static bool may_keep_recent(struct kvl_store *store, const struct kvl_entry *entry) {
    struct kvl_tier *disk = store->tiers[KVL_TIER_DISK].tier;
    if (entry->hits < 2 || store->now_s - entry->last_use_s >= KVL_KEEP_RECENT_S ||
        store->kept_recent_bytes > disk->ops->stats(disk).capacity_bytes / 2)
        return false;
    store->kept_recent_bytes += entry->disk_bytes;
    return true;
}

static bool on_keep(void *arg, const struct kvl_key *key) {
    struct kvl_store *store = arg;
    uint32_t block = kvl_table_find(store->table, key);
    if (block == KVL_BLOCK_NONE)
        return false;
    const struct kvl_entry *entry = kvl_table_at(store->table, block);
    return (entry->flags & KVL_ENTRY_PINNED) != 0 || may_keep_recent(store, entry);
}

static void on_moved(void *arg, const struct kvl_key *key, uint64_t location) {
    struct kvl_store *store = arg;
    uint32_t block = kvl_table_find(store->table, key);
    if (block != KVL_BLOCK_NONE &&
        kvl_entry_is_in(kvl_table_at(store->table, block), KVL_TIER_DISK))
        kvl_table_at(store->table, block)->disk_location = location;
    else
        kvl_orphan_moved(store, key, location);
}

static void on_lost(void *arg, const struct kvl_key *key, uint64_t location) {
    struct kvl_store *store = arg;
    uint32_t block = kvl_table_find(store->table, key);
    if (block == KVL_BLOCK_NONE)
        return;
    const struct kvl_entry *entry = kvl_table_at(store->table, block);
    if (!kvl_entry_is_in(entry, KVL_TIER_DISK) || entry->disk_location != location)
        return;
    kvl_disk_copy_lost(store, block);
}

static int compare_locations(const void *left, const void *right) {
    const uint64_t *a = left, *b = right;
    return (*a > *b) - (*a < *b);
}

/* One pass over the table, about 0.1 s for ten million blocks: once in the life of a disk, and no
 * second index is kept for it. A copy in memory goes to disk again. */
static void on_lost_at(void *arg, const uint64_t *locations, uint64_t count) {
    struct kvl_store *store = arg;
    for (uint32_t block = 0; block < kvl_table_end(store->table); block++) {
        const struct kvl_entry *entry = kvl_table_at(store->table, block);
        uint64_t location = entry->disk_location;
        if (!kvl_entry_is_in(entry, KVL_TIER_DISK) ||
            bsearch(&location, locations, count, sizeof(locations[0]), compare_locations) == NULL)
            continue;
        kvl_copy_is_bad(store, block, KVL_TIER_DISK);
        if (entry->tiers == 0) {
            kvl_block_abandon(store, block);
            kvl_block_reap(store, block);
        }
    }
}

void kvl_recovery_listen(struct kvl_store *store) {
    for (unsigned tier = 0; tier < KVL_TIER_COUNT; tier++)
        if (store->tiers[tier].tier != NULL)
            store->tiers[tier].tier->events = (struct kvl_tier_events){.arg = store,
                .found = on_found,
                .loaded = on_loaded,
                .sought = kvl_seek_over,
                .checked = on_checked,
                .keep = on_keep,
                .moved = on_moved,
                .lost = on_lost,
                .lost_at = on_lost_at};
    if (store->catalog != NULL) {
        store->catalog->found = on_record;
        store->catalog->found_arg = store;
    }
    store->loaded = store->checked = store->tiers[KVL_TIER_DISK].tier == NULL;
}
