/* caches_restore.c - brings two groups up together: all of group 0, and of
 * group 1 what the window needs at the position that is reached (caches.h). */
#include "caches_internal.h"

#include <string.h>

enum { FULL, WINDOWED }; /* the groups */

static uint32_t block_tokens_of(const struct kvl_caches *caches) {
    return caches->cache[FULL]->geometry.block_tokens;
}

/* Tokens before the entry. */
static uint32_t position_of(const struct kvl_caches *caches, struct kvl_caches_entry entry) {
    uint32_t tail = entry.with_tail ? caches->tails[FULL].tokens : 0;
    return entry.blocks * block_tokens_of(caches) + tail;
}

/* The first block of the window group that an entry needs, as far as it is not there already. */
static uint32_t window_first(
    const struct kvl_caches *caches, uint32_t first, struct kvl_caches_entry entry) {
    uint32_t seen = kvl_cache_first_seen(caches->cache[WINDOWED], position_of(caches, entry));
    return seen > first ? seen : first;
}

/* ---- what there is --------------------------------------------------------------------------- */

/* has[i]: the window group has block first + i. The last entry, not beyond `limit` whole blocks,
 * for which it has all that is needed; `first` blocks need nothing. */
static uint32_t last_entry(
    const struct kvl_caches *caches, uint32_t first, uint32_t limit, const uint8_t *has) {
    uint32_t end = limit;
    while (end > first) {
        uint32_t from = window_first(caches, first, (struct kvl_caches_entry){.blocks = end});
        uint32_t at = end;
        while (at > from && has[at - 1 - first] != 0)
            --at;
        if (at == from)
            return end;
        end = at - 1; /* every entry in between needs the block that is missing */
    }
    return first;
}

/* What a look-up told of the groups' blocks from `first` on, and of their tails. */
struct known {
    uint32_t first;
    uint32_t blocks;         /* asked for of each group */
    uint32_t full;           /* leading ones that group 0 has */
    const uint8_t *windowed; /* of each of them: not 0: group 1 has it */
    bool tail[KVL_LAYER_GROUPS_MAX];
};

static uint32_t list_keys(
    struct kvl_caches *caches, uint32_t first, uint32_t blocks, bool with_tail) {
    uint32_t count = 0;
    for (uint32_t group = 0; group < caches->count; ++group) {
        for (uint32_t i = 0; i < blocks; ++i)
            caches->asked[count++] = caches->cache[group]->blocks[first + i].key;
        if (with_tail)
            caches->asked[count++] = caches->tails[group].key;
    }
    return count;
}

/* False: nothing is known, or nobody answers. */
static bool look_up(struct kvl_caches *caches, struct known *known, bool with_tail) {
    struct kvl_cache *cache = caches->cache[FULL];
    uint32_t count = list_keys(caches, known->first, known->blocks, with_tail);
    if (count == 0 || !kvl_cache_may_wait(cache, KVL_PATIENCE_MS) ||
        kvl_connection_check(cache->connection, kvl_lookup_each(cache->connection->client,
                                                    caches->asked, count, caches->found)) != KVL_OK)
        return false;
    uint32_t of_group = known->blocks + with_tail;
    known->windowed = caches->found + of_group;
    while (known->full < known->blocks && caches->found[known->full] != 0)
        ++known->full;
    for (uint32_t group = 0; with_tail && group < caches->count; ++group)
        known->tail[group] = caches->found[group * of_group + known->blocks] != 0;
    return true;
}

/* Whether the tail can be entered at: both groups have it, and what stands before it. */
static bool has_tail(const struct kvl_caches *caches, const struct known *known) {
    struct kvl_caches_entry entry = {.blocks = caches->tails[FULL].block, .with_tail = true};
    if (!known->tail[FULL] || !known->tail[WINDOWED] || entry.blocks > known->first + known->full)
        return false;
    uint32_t from = window_first(caches, known->first, entry);
    for (uint32_t i = from; i < entry.blocks; ++i)
        if (known->windowed[i - known->first] == 0)
            return false;
    return true;
}

static struct kvl_caches_entry choose_entry(
    const struct kvl_caches *caches, const struct known *known) {
    uint32_t end = known->first + known->full;
    struct kvl_caches_entry entry = {
        .blocks = last_entry(caches, known->first, end, known->windowed)};
    if (entry.blocks <= caches->tails[FULL].block && has_tail(caches, known))
        entry = (struct kvl_caches_entry){.blocks = caches->tails[FULL].block, .with_tail = true};
    return entry;
}

/* ---- begin ----------------------------------------------------------------------------------- */

static const struct kvl_cache_tail *tail_of(
    const struct kvl_caches *caches, uint32_t group, struct kvl_caches_entry entry) {
    return entry.with_tail ? &caches->tails[group] : NULL;
}

/* Blocks that the restore passes over are never computed: a slot that was asked for one of them
 * ahead must not be taken for one that will be. False: its answer does not come. */
static bool pass_over(struct kvl_cache *cache, uint32_t first, uint32_t end) {
    for (uint32_t i = first; i < end; ++i)
        if (cache->blocks[i].asked && kvl_connection_check(cache->connection,
                                          kvl_client_drain(cache->connection->client)) != KVL_OK)
            return false;
    kvl_cache_drop_blocks(cache, first, end);
    return first == end || kvl_cache_need_nothing(cache) == KVL_OK;
}

/* True: the window group's blocks for the entry are under way, or none are needed. */
static bool begin_window(struct kvl_caches *caches, uint32_t first, struct kvl_caches_entry entry) {
    struct kvl_cache *cache = caches->cache[WINDOWED];
    uint32_t from = window_first(caches, first, entry), reached = 0;
    cache->restore = (struct kvl_cache_restore){0};
    if (!pass_over(cache, first, from))
        return false;
    if (from == entry.blocks && !entry.with_tail)
        return true;
    kvl_err err = kvl_cache_restore_begin(
        cache, from, entry.blocks, tail_of(caches, WINDOWED, entry), &reached);
    return err == KVL_OK && reached == position_of(caches, entry);
}

static void cut(struct kvl_caches *caches, uint32_t full_end) {
    kvl_cache_restore_cut(caches->cache[WINDOWED], 0);
    kvl_cache_restore_cut(caches->cache[FULL], full_end);
}

/* Blocks that are still on their way keep their slots when nobody wants them any more, so the
 * window is waited for: then it makes room for another one. */
static void give_window_back(struct kvl_caches *caches) {
    struct kvl_cache *cache = caches->cache[WINDOWED];
    uint32_t first = cache->restore.first, end = first + cache->restore.count;
    if (!cache->restore.active)
        return;
    end -= cache->restore.takes_tail ? 1 : 0;
    (void)kvl_cache_restore_end(cache, &(uint32_t){0});
    kvl_cache_drop_blocks(cache, first, end);
}

/* Starts both. The window goes first: should leases fill the tier, group 0 is what is cut short,
 * and a window for that end takes the place of the first one. False: nothing is restored. */
static bool begin_entry(
    struct kvl_caches *caches, const struct known *known, struct kvl_caches_entry *entry) {
    uint32_t first = known->first, reached = first * block_tokens_of(caches);
    if (position_of(caches, *entry) == reached)
        return false;
    bool good = begin_window(caches, first, *entry);
    if (good)
        good = kvl_cache_restore_begin(caches->cache[FULL], first, entry->blocks,
                   tail_of(caches, FULL, *entry), &reached) == KVL_OK;
    if (good && reached != position_of(caches, *entry)) {
        uint32_t end = reached / block_tokens_of(caches);
        give_window_back(caches);
        *entry =
            (struct kvl_caches_entry){.blocks = last_entry(caches, first, end, known->windowed)};
        cut(caches, entry->blocks);
        good = entry->blocks > first && begin_window(caches, first, *entry);
    }
    if (!good)
        cut(caches, first);
    return good;
}

static kvl_err begin_groups(struct kvl_caches *caches, uint32_t first, uint32_t limit,
    const struct kvl_cache_tail *tail, uint32_t *tokens) {
    *tokens = first * block_tokens_of(caches);
    if (limit > caches->cache[FULL]->named_count || first > limit || caches->restoring)
        return KVL_ERR_INVALID;
    uint32_t most = KVL_CHAIN_BLOCKS_MAX / KVL_LAYER_GROUPS_MAX - 1; /* in one look-up */
    struct known known = {.first = first, .blocks = limit - first < most ? limit - first : most};
    bool with_tail = tail != NULL && tail->tokens > 0 && tail->block >= first &&
                     tail->block <= first + known.blocks &&
                     kvl_key_equal(&tail->key, &caches->tails[FULL].key);
    caches->began_ns = kvl_cache_now_ns();
    if (!look_up(caches, &known, with_tail))
        return KVL_OK;
    struct kvl_caches_entry entry = choose_entry(caches, &known);
    if (!begin_entry(caches, &known, &entry))
        return KVL_OK;
    caches->restoring = true;
    caches->first = first;
    caches->entry = entry;
    *tokens = position_of(caches, entry);
    return KVL_OK;
}

kvl_err kvl_caches_restore_begin(struct kvl_caches *caches, uint32_t first, uint32_t limit,
    const struct kvl_cache_tail *tail, uint32_t *tokens) {
    if (caches->count == 1)
        return kvl_cache_restore_begin(caches->cache[FULL], first, limit, tail, tokens);
    return begin_groups(caches, first, limit, tail, tokens);
}

bool kvl_caches_is_restoring(const struct kvl_caches *caches) {
    return caches->count == 1 ? kvl_cache_is_restoring(caches->cache[FULL]) : caches->restoring;
}

/* ---- end ------------------------------------------------------------------------------------- */

/* Where the group's restore found the block; the tail is the one behind the whole ones. */
static uint32_t found_tier(const struct kvl_cache *cache, uint32_t block) {
    const struct kvl_cache_restore *restore = &cache->restore;
    bool restored = block >= restore->first && block - restore->first < restore->count;
    return restored ? cache->restored[block - restore->first].found_tier : KVL_TIER_DEVICE;
}

static void count_restored(struct kvl_caches *caches, uint32_t block, uint32_t tokens) {
    uint32_t tier = KVL_TIER_DEVICE;
    for (uint32_t group = 0; group < caches->count; ++group) {
        uint32_t found = found_tier(caches->cache[group], block);
        if (found > tier && found < KVL_TIER_COUNT)
            tier = found;
    }
    caches->stats.restored_tokens[tier] += tokens;
}

static void count_up(struct kvl_caches *caches, uint32_t end, bool with_tail) {
    caches->stats.restored_bytes = 0;
    for (uint32_t group = 0; group < caches->count; ++group)
        caches->stats.restored_bytes += caches->cache[group]->stats.restored_bytes;
    for (uint32_t block = caches->first; block < end; ++block)
        count_restored(caches, block, block_tokens_of(caches));
    if (with_tail)
        count_restored(caches, end, caches->tails[FULL].tokens);
    uint64_t arrived_ns = 0;
    for (uint32_t group = 0; group < caches->count; ++group) {
        uint64_t group_ns = caches->cache[group]->restore.arrived_ns;
        arrived_ns = group_ns > arrived_ns ? group_ns : arrived_ns;
    }
    caches->stats.restore_ns +=
        (arrived_ns != 0 ? arrived_ns : kvl_cache_now_ns()) - caches->began_ns;
}

/* The longest prefix that came in both groups; what stands behind it goes. */
static uint32_t keep_prefix(struct kvl_caches *caches, uint32_t full_end) {
    const struct kvl_cache *windowed = caches->cache[WINDOWED];
    for (uint32_t i = caches->first; i < full_end; ++i)
        caches->found[i - caches->first] = windowed->blocks[i].home == KVL_HOME_SEALED;
    uint32_t end = last_entry(caches, caches->first, full_end, caches->found);
    for (uint32_t group = 0; group < caches->count; ++group)
        kvl_cache_drop_blocks(caches->cache[group], end, caches->entry.blocks);
    return end;
}

bool kvl_caches_restore_end(struct kvl_caches *caches, uint32_t *blocks) {
    if (caches->count == 1)
        return kvl_cache_restore_end(caches->cache[FULL], blocks);
    uint32_t full_end = caches->first, unused = 0;
    bool good = kvl_cache_restore_end(caches->cache[FULL], &full_end);
    if (caches->cache[WINDOWED]->restore.active)
        good = kvl_cache_restore_end(caches->cache[WINDOWED], &unused) && good;
    uint32_t end = good ? caches->entry.blocks : keep_prefix(caches, full_end);
    count_up(caches, end, good && caches->entry.with_tail);
    caches->restoring = false;
    *blocks = end;
    return good;
}
