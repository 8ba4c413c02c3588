/* store_restore.c - looking chains up, and bringing them to where an engine can read them.
 *
 * A restore answers at once with leases and offsets, so its slots are taken first:
 *
 *   find     the leading visible blocks; hold what they have, so that making room for one block
 *            does not evict the next
 *   reserve  slots for those that are not in the target; out of space cuts the chain here
 *   lease    everything that is left
 *   move     one transfer per block that has to come; restores share those under way
 *
 * Transfers complete later, so nothing of a restore ends before its reply is out. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "planted.h"
#include "store_private.h"

void kvl_store_lookup_each(
    struct kvl_store *store, const struct kvl_key *keys, uint32_t count, uint8_t *found) {
    const uint32_t *blocks = store->scratch_blocks;
    kvl_table_find_many(store->table, keys, count, store->scratch_blocks);
    for (uint32_t i = 0; i < count; i++) {
        const struct kvl_entry *entry =
            blocks[i] == KVL_BLOCK_NONE ? NULL : kvl_table_at(store->table, blocks[i]);
        found[i] = entry == NULL ? 0 : entry->tiers;
        if (entry != NULL && entry->tiers == 0 && (entry->flags & KVL_ENTRY_SEALING) != 0)
            found[i] = KVL_FOUND_SEALING;
    }
}

uint32_t kvl_store_lookup(
    struct kvl_store *store, const struct kvl_key *keys, uint32_t count, uint8_t *found) {
    if (count > KVL_CHAIN_BLOCKS_MAX)
        count = KVL_CHAIN_BLOCKS_MAX;
    kvl_store_lookup_each(store, keys, count, found);
    uint32_t leading = 0;
    while (leading < count && found[leading] != 0 && found[leading] != KVL_FOUND_SEALING)
        leading++;
    memset(found + leading, 0, count - leading);
    return leading;
}

/* ---- progress ----------------------------------------------------------------------------- */

static void publish(struct kvl_restore *restore) {
    struct kvl_completion *word = restore->operation.word;
    if (word == NULL)
        return;
    bool all_well = restore->first_open == restore->piece_count;
    uint32_t blocks = all_well ? restore->count : restore->pieces[restore->first_open].index;
    uint32_t layers = restore->layers;
    for (uint32_t i = restore->first_open; i < restore->piece_count && layers > 0; i++)
        if (restore->pieces[i].layers_ready < layers)
            layers = restore->pieces[i].layers_ready;
    kvl_ticket_progress(word, blocks, layers);
}

static void end_if_done(struct kvl_store *store, struct kvl_restore *restore) {
    if (!restore->started || restore->pending > 0)
        return;
    struct kvl_operation *operation = &restore->operation;
    if (restore->prefetch) {
        kvl_operation_value(operation, 0, restore->blocks_moved);
    } else {
        for (unsigned tier = 0; tier < KVL_TIER_COUNT; tier++)
            kvl_operation_value(operation, tier, restore->bytes_from[tier]);
    }
    publish(restore);
    kvl_operation_end(store, operation, restore->status);
    free(restore);
}

void kvl_piece_progress(struct kvl_store *store, struct kvl_piece *piece, uint32_t frames,
    const struct kvl_layout *layout) {
    (void)store;
    uint32_t layers = frames * layout->layers_per_frame;
    if (frames >= layout->frame_count)
        layers = layout->layers;
    if (layers <= piece->layers_ready)
        return;
    piece->layers_ready = layers;
    /* Only the slowest block moves the word; restores of thousands of blocks have few frames. */
    if (piece->index == piece->restore->pieces[piece->restore->first_open].index ||
        frames < layout->frame_count)
        publish(piece->restore);
}

/* An end that a person understands: what is wrong with the data first, then with the device. */
static kvl_err worse(kvl_err a, kvl_err b) {
    if (b == KVL_OK)
        return a;
    if (b != KVL_ERR_CORRUPT && b != KVL_ERR_CANCELED)
        b = KVL_ERR_IO;
    return a == KVL_OK || b == KVL_ERR_CORRUPT ? b : a;
}

void kvl_piece_end(struct kvl_store *store, struct kvl_piece *piece, kvl_err status, unsigned from,
    uint64_t bytes) {
    struct kvl_restore *restore = piece->restore;
    assert(!piece->ended && restore->pending > 0);
    piece->ended = true;
    piece->status = status;
    restore->pending--;
    restore->status = worse(restore->status, status);
    if (status == KVL_OK) {
        piece->layers_ready = restore->layers;
        restore->bytes_from[from] += bytes;
        restore->blocks_moved++;
    } else {
        piece->layers_ready = 0;
    }
    while (restore->first_open < restore->piece_count &&
           restore->pieces[restore->first_open].ended &&
           restore->pieces[restore->first_open].status == KVL_OK)
        restore->first_open++;
    if (restore->pending > 0)
        publish(restore);
    else
        end_if_done(store, restore);
}

/* ---- one request -------------------------------------------------------------------------- */

/* Held: bit tier: this request is counted as a user of the block's copy or slot there. */
struct chain {
    struct kvl_store *store;
    struct kvl_tenant *asker; /* whose hits and misses these are */
    unsigned target;
    uint32_t *blocks;
    uint8_t *held;
    uint32_t known;   /* leading visible blocks, held */
    uint32_t granted; /* those of them with a slot in the target */
    uint32_t absent;  /* of granted: not in the target yet */
};

static void hold(struct chain *chain, uint32_t i, unsigned tier) {
    if ((chain->held[i] & 1u << tier) != 0)
        return;
    kvl_busy_up(chain->store, chain->blocks[i], tier);
    chain->held[i] |= (uint8_t)(1u << tier);
}

static void let_go(struct chain *chain) {
    for (uint32_t i = 0; i < chain->known; i++) {
        uint64_t generation = kvl_table_at(chain->store->table, chain->blocks[i])->generation;
        for (unsigned tier = 0; tier < KVL_TIER_COUNT; tier++)
            if ((chain->held[i] & 1u << tier) != 0)
                kvl_busy_down(chain->store, chain->blocks[i], generation, tier);
    }
}

static void count_found(struct kvl_tenant *asker, unsigned nearest) {
    for (unsigned tier = 0; tier < nearest && tier < KVL_TIER_COUNT; tier++)
        asker->tiers[tier].misses++;
    if (nearest < KVL_TIER_COUNT)
        asker->tiers[nearest].hits++;
}

/* The block behind the visible ones was sealed a moment ago and is being hashed. */
static bool ends_in_sealing(const struct chain *chain, uint32_t count) {
    for (uint32_t i = 0; i < count && chain->blocks[i] != KVL_BLOCK_NONE; i++) {
        const struct kvl_entry *entry = kvl_table_at(chain->store->table, chain->blocks[i]);
        if (entry->tiers == 0)
            return (entry->flags & KVL_ENTRY_SEALING) != 0;
    }
    return false;
}

/* OK, or AGAIN while a block is being hashed: it will be there in a moment. */
static kvl_err chain_find(struct chain *chain, const struct kvl_key *keys, uint32_t count) {
    struct kvl_store *store = chain->store;
    kvl_table_find_many(store->table, keys, count, chain->blocks);
    memset(chain->held, 0, count);
    if (ends_in_sealing(chain, count))
        return KVL_ERR_AGAIN;
    for (chain->known = 0; chain->known < count; chain->known++) {
        uint32_t i = chain->known;
        if (chain->blocks[i] == KVL_BLOCK_NONE)
            break;
        const struct kvl_entry *entry = kvl_table_at(store->table, chain->blocks[i]);
        if (entry->tiers == 0)
            break;
        unsigned nearest = (unsigned)__builtin_ctz(entry->tiers);
        unsigned source = kvl_entry_is_in(entry, chain->target) ? chain->target : nearest;
        if (entry->busy[source] >= KVL_BUSY_MAX || entry->busy[chain->target] >= KVL_BUSY_MAX)
            break;
        hold(chain, i, source);
        if (kvl_entry_has_slot(entry, chain->target))
            hold(chain, i, chain->target);
    }
    return KVL_OK;
}

/* OK, or AGAIN. chain->granted says how far the slots went. */
static kvl_err chain_reserve(struct chain *chain) {
    struct kvl_store *store = chain->store;
    chain->granted = 0;
    if (chain->target == KVL_TIER_DEVICE && store->device_lost)
        return KVL_OK;
    for (; chain->granted < chain->known; chain->granted++) {
        uint32_t block = chain->blocks[chain->granted];
        const struct kvl_entry *entry = kvl_table_at(store->table, block);
        if (!kvl_entry_has_slot(entry, chain->target)) {
            uint64_t location = 0;
            const struct kvl_slot_wish wish = kvl_entry_slot_wish(store, entry, chain->target);
            kvl_err err = kvl_slot_reserve(store, &wish, false, &location);
            if (err == KVL_ERR_NOSPC)
                return KVL_OK;
            if (err != KVL_OK)
                return err;
            kvl_slot_attach(store, block, chain->target, location);
        }
        hold(chain, chain->granted, chain->target);
        if (!kvl_entry_is_in(entry, chain->target))
            chain->absent++;
    }
    return KVL_OK;
}

static void chain_move(
    struct chain *chain, struct kvl_restore *restore, enum kvl_io_priority priority) {
    struct kvl_store *store = chain->store;
    uint32_t made = 0;
    for (uint32_t i = 0; i < chain->granted; i++) {
        uint32_t block = chain->blocks[i];
        if (kvl_entry_is_in(kvl_table_at(store->table, block), chain->target))
            continue;
        struct kvl_piece *piece = &restore->pieces[made++];
        *piece = (struct kvl_piece){.restore = restore, .index = i};
        struct kvl_transfer *transfer = kvl_transfer_arriving(store, block, chain->target);
        if (transfer == NULL)
            transfer = kvl_transfer_start(store, block, chain->target, priority);
        if (transfer == NULL) {
            assert(!restore->started); /* so that this end cannot free the request */
            kvl_piece_end(store, piece, KVL_ERR_NOMEM, chain->target, 0);
            continue;
        }
        if (KVL_PLANTED("publish-before-copy")) {
            kvl_piece_end(store, piece, KVL_OK, transfer->from, 0);
            continue;
        }
        piece->next = transfer->pieces;
        transfer->pieces = piece;
    }
    assert(made == restore->piece_count);
    restore->started = true;
    publish(restore);
    end_if_done(store, restore);
}

static kvl_err restore_create(struct chain *chain, uint32_t client, bool prefetch,
    struct kvl_ticket *ticket, struct kvl_restore **out) {
    *out = NULL;
    *ticket = (struct kvl_ticket){0};
    if (chain->absent == 0)
        return KVL_OK;
    struct kvl_restore *restore =
        calloc(1, sizeof(*restore) + chain->absent * sizeof(restore->pieces[0]));
    if (restore == NULL)
        return KVL_ERR_NOMEM;
    kvl_err err = kvl_operation_begin(
        chain->store, client, KVL_OPERATION_RESTORE, &restore->operation, ticket);
    if (err != KVL_OK) {
        free(restore);
        return err;
    }
    const struct kvl_entry *first = kvl_table_at(chain->store->table, chain->blocks[0]);
    restore->prefetch = prefetch;
    restore->count = chain->granted;
    restore->piece_count = chain->absent;
    restore->pending = chain->absent;
    restore->layers = kvl_entry_layout(chain->store, first)->layers;
    *out = restore;
    return KVL_OK;
}

void kvl_store_count_looked(struct kvl_store *store, uint32_t client_id, const struct kvl_key *keys,
    uint32_t count, const uint8_t *found) {
    struct kvl_client *client = kvl_client_find(store, client_id);
    if (client == NULL || !client->info.attached || count == 0 ||
        kvl_key_equal(&client->looked_last, &keys[count - 1]))
        return;
    client->looked_last = keys[count - 1];
    for (uint32_t i = 0; i < count; i++)
        if (found[i] == 0)
            count_found(store->tenants.tenants[client->info.tenant], KVL_TIER_COUNT);
}

/* An engine asks for the rest of a prompt before each chunk: what is missing counts the first time.
 */
static void count_asked(const struct chain *chain, struct kvl_client *client,
    const struct kvl_restore_request *request, const struct kvl_restored *blocks, uint32_t leased) {
    for (uint32_t i = 0; i < leased; i++)
        count_found(chain->asker, blocks[i].found_tier);
    if (request->count == 0 ||
        kvl_key_equal(&client->asked_last, &request->keys[request->count - 1]))
        return;
    client->asked_last = request->keys[request->count - 1];
    for (uint32_t i = chain->known; i < request->count; i++)
        count_found(chain->asker, KVL_TIER_COUNT);
}

static void touch(struct chain *chain) {
    struct kvl_store *store = chain->store;
    uint32_t count = chain->granted;
    if (count == 0)
        return;
    bool windowed = kvl_namespace_is_windowed(
        store, kvl_table_at(store->table, chain->blocks[0])->namespace_id);
    /* Leaves first: the oldest of a chain is then its leaf, which may leave first. */
    for (uint32_t i = 0; i < count; i++)
        kvl_block_used(store, chain->blocks[windowed ? i : count - 1 - i]);
}

static void unlease(struct kvl_store *store, struct kvl_client *client,
    const struct kvl_restored *blocks, uint32_t count) {
    for (uint32_t i = 0; i < count; i++) {
        struct kvl_lease *lease = kvl_lease_find(store->leases, blocks[i].lease);
        if (lease != NULL)
            kvl_lease_end(store, client, lease);
    }
}

/* Leases granted blocks; *leased of them, cut where the client's limit is reached. */
static kvl_err chain_lease(
    struct chain *chain, struct kvl_client *client, struct kvl_restored *blocks, uint32_t *leased) {
    struct kvl_store *store = chain->store;
    kvl_err err = KVL_OK;
    *leased = 0;
    while (*leased < chain->granted && err == KVL_OK) {
        uint32_t block = chain->blocks[*leased];
        const struct kvl_entry *entry = kvl_table_at(store->table, block);
        struct kvl_lease *lease = NULL;
        err = kvl_lease_read(store, client, block, chain->target, &lease);
        if (err == KVL_OK)
            blocks[(*leased)++] = (struct kvl_restored){
                .lease = lease->number,
                .offset_bytes = lease->location,
                .found_tier = (uint32_t)__builtin_ctz(entry->tiers),
                .token_count = entry->token_count,
            };
    }
    return err == KVL_ERR_LIMIT && *leased > 0 ? KVL_OK : err;
}

static void count_absent(struct chain *chain) {
    chain->absent = 0;
    for (uint32_t i = 0; i < chain->granted; i++)
        chain->absent +=
            !kvl_entry_is_in(kvl_table_at(chain->store->table, chain->blocks[i]), chain->target);
}

/* Blocks of unlike layout have no common layers: a chain ends where another namespace begins. */
static void cut_at_namespace(struct chain *chain) {
    for (uint32_t i = 1; i < chain->granted; i++)
        if (kvl_table_at(chain->store->table, chain->blocks[i])->namespace_id !=
            kvl_table_at(chain->store->table, chain->blocks[0])->namespace_id)
            chain->granted = i;
}

static bool target_is_usable(struct kvl_store *store, enum kvl_tier_kind target) {
    return (target == KVL_TIER_DEVICE || target == KVL_TIER_HOST) &&
           store->tiers[target].tier != NULL;
}

static struct chain chain_init(
    struct kvl_store *store, const struct kvl_client *client, enum kvl_tier_kind target) {
    return (struct chain){.store = store,
        .asker = store->tenants.tenants[client->info.tenant],
        .target = target,
        .blocks = store->scratch_blocks,
        .held = store->scratch_held};
}

kvl_err kvl_store_restore(struct kvl_store *store, const struct kvl_restore_request *request,
    struct kvl_restored *blocks, struct kvl_restore_reply *reply) {
    *reply = (struct kvl_restore_reply){0};
    struct kvl_client *client = kvl_client_find(store, request->client);
    if (client == NULL || !client->info.attached)
        return KVL_ERR_PERM;
    if (request->count > KVL_CHAIN_BLOCKS_MAX || !target_is_usable(store, request->target) ||
        (unsigned)request->priority >= KVL_PRIORITIES)
        return KVL_ERR_INVALID;
    struct chain chain = chain_init(store, client, request->target);
    struct kvl_restore *restore = NULL;
    uint32_t leased = 0;
    kvl_err err = chain_find(&chain, request->keys, request->count);
    if (err == KVL_OK)
        err = chain_reserve(&chain);
    if (err != KVL_OK)
        goto cleanup;
    cut_at_namespace(&chain);
    err = chain_lease(&chain, client, blocks, &leased);
    if (err != KVL_OK)
        goto cleanup;
    chain.granted = leased;
    count_absent(&chain);
    err = restore_create(&chain, request->client, false, &reply->ticket, &restore);
    if (err != KVL_OK)
        goto cleanup;
    reply->count = leased;
    reply->out_of_space = leased < chain.known;
    count_asked(&chain, client, request, blocks, leased);
    touch(&chain);
    if (restore != NULL)
        chain_move(&chain, restore, request->priority);
cleanup:
    if (err != KVL_OK)
        unlease(store, client, blocks, leased);
    let_go(&chain);
    kvl_store_pump(store);
    return err;
}

kvl_err kvl_store_prefetch(struct kvl_store *store, uint32_t client_id, const struct kvl_key *keys,
    uint32_t count, enum kvl_tier_kind target, struct kvl_ticket *ticket) {
    *ticket = (struct kvl_ticket){0};
    const struct kvl_client *client = kvl_client_find(store, client_id);
    if (client == NULL)
        return KVL_ERR_PERM;
    if (count > KVL_CHAIN_BLOCKS_MAX || !target_is_usable(store, target))
        return KVL_ERR_INVALID;
    struct chain chain = chain_init(store, client, target);
    struct kvl_restore *restore = NULL;
    kvl_err err = chain_find(&chain, keys, count);
    if (err == KVL_OK)
        err = chain_reserve(&chain);
    if (err != KVL_OK)
        goto cleanup;
    cut_at_namespace(&chain);
    count_absent(&chain);
    err = restore_create(&chain, client_id, true, ticket, &restore);
    if (err != KVL_OK)
        goto cleanup;
    touch(&chain);
    if (restore != NULL)
        chain_move(&chain, restore, KVL_IO_PREFETCH);
cleanup:
    let_go(&chain);
    kvl_store_pump(store);
    return err;
}
