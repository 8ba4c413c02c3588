/* seek.c - answers before the table is loaded: keys that it lacks are asked of the disk tier.
 *
 * A request is ready when every key is in the table, or when a seek of the others is over and what
 * it has not found is certain not to be there. Where that was not certain, it is asked for again
 * once the tier is certain of everything. */
#include <stdlib.h>

#include "store_private.h"

void kvl_seek_news(struct kvl_store *store) {
    store->seek_news++;
}

void kvl_seek_over(void *arg, uint64_t number, bool certain) {
    struct kvl_store *store = arg;
    kvl_seek_news(store);
    if (number == 0)
        return;
    store->seek_over = number;
    store->seek_answers[number % KVL_SEEKS_MAX] = certain ? number : 0;
}

bool kvl_store_is_checked(const struct kvl_store *store) {
    return store->checked;
}

uint64_t kvl_store_seek_news(const struct kvl_store *store) {
    return store->seek_news;
}

bool kvl_store_seek_waits(const struct kvl_store *store, const struct kvl_seek *seek) {
    if (store->loaded)
        return false;
    return seek->number > store->seek_over || (seek->open && !store->checked);
}

/* Puts those that are nowhere in front of `unknown`; returns how many. A zero key is none yet. */
static uint32_t pick_unknown(
    struct kvl_store *store, const struct kvl_key *keys, uint32_t count, struct kvl_key *unknown) {
    uint32_t picked = 0;
    kvl_table_find_many(store->table, keys, count, store->scratch_blocks);
    for (uint32_t i = 0; i < count; i++) {
        uint32_t block = store->scratch_blocks[i];
        bool nowhere = block == KVL_BLOCK_NONE || kvl_table_at(store->table, block)->tiers == 0;
        if (nowhere && !kvl_key_is_zero(&keys[i]))
            unknown[picked++] = keys[i];
    }
    return picked;
}

static void ask(
    struct kvl_store *store, const struct kvl_key *keys, uint32_t count, struct kvl_seek *seek) {
    struct kvl_tier *disk = store->tiers[KVL_TIER_DISK].tier;
    const struct kvl_tier_seek wanted = {
        .keys = keys, .count = count, .leading = seek->leading, .number = store->seek_last + 1};
    seek->number = 0;
    seek->open = false;
    bool room = store->seek_last - store->seek_over < KVL_SEEKS_MAX;
    if (!room || disk->ops->seek == NULL || disk->ops->seek(disk, &wanted) != KVL_OK)
        return; /* asked again with the next news, or answered when loaded */
    seek->number = ++store->seek_last;
}

bool kvl_store_seek(
    struct kvl_store *store, const struct kvl_key *keys, uint32_t count, struct kvl_seek *seek) {
    bool over = seek->number != 0 && seek->number <= store->seek_over;
    if (store->loaded || count > KVL_CHAIN_BLOCKS_MAX)
        return true; /* too many: whoever executes it says so */
    if (over && store->seek_answers[seek->number % KVL_SEEKS_MAX] == seek->number)
        return true;
    struct kvl_key *unknown = malloc((count + 1) * sizeof(*unknown));
    if (unknown == NULL)
        return false;
    uint32_t picked = pick_unknown(store, keys, count, unknown);
    seek->open = over && !store->checked;
    if (picked > 0 && !kvl_store_seek_waits(store, seek))
        ask(store, unknown, picked, seek);
    free(unknown);
    return picked == 0;
}
