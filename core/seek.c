/* seek.c - answers before the table is loaded: keys that it lacks are asked of the disk tier.
 *
 * A request is ready when every key is in the table, or when a seek of the others is over at a time
 * when the tier was certain of what it has not. One that was over before is asked for again then.
 */
#include <stdlib.h>

#include "store_private.h"

void kvl_seek_over(void *arg, uint64_t number, bool certain) {
    struct kvl_store *store = arg;
    if (number > store->seek_over)
        store->seek_over = number;
    /* Told in a row: those that are over by now, but this one, were not certain. */
    if (certain && store->seek_certain == UINT64_MAX)
        store->seek_certain = number != 0 ? number : store->seek_over + 1;
    store->seek_news++;
}

uint64_t kvl_store_seek_news(const struct kvl_store *store) {
    return store->seek_news;
}

bool kvl_store_seek_waits(const struct kvl_store *store, const struct kvl_seek *seek) {
    if (store->loaded)
        return false;
    return seek->number > store->seek_over || (seek->open && store->seek_certain == UINT64_MAX);
}

/* Puts those that are nowhere in front of `unknown`; returns how many. */
static uint32_t pick_unknown(
    struct kvl_store *store, const struct kvl_key *keys, uint32_t count, struct kvl_key *unknown) {
    uint32_t picked = 0;
    kvl_table_find_many(store->table, keys, count, store->scratch_blocks);
    for (uint32_t i = 0; i < count; i++) {
        uint32_t block = store->scratch_blocks[i];
        if (block == KVL_BLOCK_NONE || kvl_table_at(store->table, block)->tiers == 0)
            unknown[picked++] = keys[i];
    }
    return picked;
}

static void ask(
    struct kvl_store *store, const struct kvl_key *keys, uint32_t count, struct kvl_seek *seek) {
    struct kvl_tier *disk = store->tiers[KVL_TIER_DISK].tier;
    *seek = (struct kvl_seek){0};
    if (disk->ops->seek == NULL ||
        disk->ops->seek(disk, keys, count, store->seek_last + 1) != KVL_OK)
        return; /* asked again with the next news, or answered when loaded */
    seek->number = ++store->seek_last;
}

bool kvl_store_seek(
    struct kvl_store *store, const struct kvl_key *keys, uint32_t count, struct kvl_seek *seek) {
    bool over = seek->number != 0 && seek->number <= store->seek_over;
    if (store->loaded || count > KVL_CHAIN_BLOCKS_MAX)
        return true; /* too many: whoever executes it says so */
    if (over && seek->number >= store->seek_certain)
        return true;
    struct kvl_key *unknown = malloc((count + 1) * sizeof(*unknown));
    if (unknown == NULL)
        return false;
    uint32_t picked = pick_unknown(store, keys, count, unknown);
    seek->open = over && store->seek_certain == UINT64_MAX;
    if (picked > 0 && !kvl_store_seek_waits(store, seek))
        ask(store, unknown, picked, seek);
    free(unknown);
    return picked == 0;
}
