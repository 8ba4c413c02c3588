/* work.c - engines of a storm: they write, read, talk, and check every byte they get.
 *
 * A step returns CLOSED once the daemon is gone, which ends its engine; anything else that is not
 * foreseen is a finding. Whatever the witness says of a block is said only after the daemon did. */
#include "storm.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "clock.h"

#define WAIT_MS 30000u

static bool is_over(kvl_err err) {
    return err == KVL_ERR_CLOSED || err == KVL_ERR_STALE;
}

kvl_err storm_told(struct storm_worker *worker, const char *what, kvl_err err) {
    if (err == KVL_OK || is_over(err))
        return err == KVL_OK ? KVL_OK : KVL_ERR_CLOSED;
    storm_finding(worker->storm, "%s: %s", what, kvl_err_name(err));
    return KVL_ERR_CLOSED;
}

bool storm_connect(
    struct storm_worker *worker, const struct storm *storm, uint64_t seed, bool patient) {
    *worker = (struct storm_worker){.storm = storm, .random = seed};
    struct kvl_client_options options = {.address = storm->address, .name = "storm"};
    struct kvl_errmsg msg = {{0}};
    kvl_err err = KVL_ERR_NOTFOUND;
    uint64_t end_ns = kvl_clock_ns() + 60000000000u;
    do {
        err = kvl_client_open(&options, &worker->client, &msg);
        if (err != KVL_OK)
            usleep(1000);
    } while (err != KVL_OK && patient && kvl_clock_ns() < end_ns);
    bool gone = err == KVL_ERR_NOTFOUND || err == KVL_ERR_CLOSED;
    if (err != KVL_OK && (patient || !gone))
        storm_finding(storm, "no daemon answers: %s", msg.text);
    if (err != KVL_OK)
        return false;
    for (unsigned kind = 0; kind < STORM_KINDS; kind++) {
        struct kvl_namespace_request request;
        storm_namespace((enum storm_kind)kind, &request);
        err = kvl_client_namespace(worker->client, &request, &worker->spaces[kind]);
        if (storm_told(worker, "namespace", err) != KVL_OK)
            return false;
    }
    return true;
}

kvl_err storm_settle(struct storm_worker *worker, struct kvl_ticket ticket, const char *what) {
    struct kvl_progress progress = {.status = KVL_OK};
    if (ticket.generation == 0)
        return KVL_OK;
    kvl_err err = kvl_ticket_wait(worker->client, ticket, UINT32_MAX, WAIT_MS, &progress);
    if (storm_told(worker, what, err) != KVL_OK)
        return KVL_ERR_CLOSED;
    err = storm_told(worker, "release", kvl_release(worker->client, NULL, 0, &ticket, 1));
    return err == KVL_OK ? progress.status : err;
}

/* ---- writing -------------------------------------------------------------------------------- */

static struct kvl_seal seal_of(struct storm_worker *worker, uint32_t block, uint32_t *tokens) {
    struct storm_block *blocks = worker->storm->witness->blocks;
    struct kvl_seal seal = {.opaque = block < storm_first(STORM_CHAT)};
    if (seal.opaque) {
        storm_opaque_name(block, seal.opaque_key);
        return seal;
    }
    uint32_t index = block - storm_first(STORM_CHAT);
    uint32_t place = index % STORM_SESSION_BLOCKS;
    for (uint32_t i = 0; i < STORM_BLOCK_TOKENS; i++)
        tokens[i] = storm_token(index / STORM_SESSION_BLOCKS, place * STORM_BLOCK_TOKENS + i);
    seal.parent = place == 0 ? worker->spaces[STORM_CHAT].key : blocks[block - 1].key;
    seal.tokens = tokens;
    seal.token_count = STORM_BLOCK_TOKENS;
    return seal;
}

static kvl_err alloc_blocks(struct storm_worker *worker, const uint32_t *blocks, uint32_t count,
    enum kvl_tier_kind tier, struct kvl_allocated *out) {
    struct kvl_key keys[STORM_BATCH];
    struct kvl_ticket ticket;
    for (uint32_t i = 0; i < count; i++)
        keys[i] = worker->storm->witness->blocks[blocks[i]].key;
    uint32_t space = worker->spaces[storm_kind_of(blocks[0])].id;
    kvl_err err;
    while ((err = kvl_alloc(worker->client, space, tier, keys, count, false, out, &ticket)) ==
           KVL_ERR_AGAIN)
        usleep(1000);
    return storm_told(worker, "alloc", err);
}

static void note_sealed(
    struct storm_worker *worker, uint32_t block, const struct kvl_sealed *sealed) {
    struct storm_witness *witness = worker->storm->witness;
    if (sealed->status == KVL_OK) {
        atomic_store(&witness->blocks[block].sealed_ns, kvl_clock_ns());
        atomic_fetch_add(&witness->totals.written, 1);
    } else if (sealed->status != KVL_ERR_EXISTS) {
        storm_finding(worker->storm, "seal of block %u: %s", block, kvl_err_name(sealed->status));
    }
    if (sealed->status == KVL_OK && !kvl_key_equal(&sealed->key, &witness->blocks[block].key))
        storm_finding(worker->storm, "seal of block %u: another key came back", block);
}

static kvl_err seal_blocks(struct storm_worker *worker, const uint32_t *blocks,
    const struct kvl_allocated *slots, uint32_t count, enum kvl_tier_kind tier) {
    struct kvl_seal seals[STORM_BATCH];
    struct kvl_sealed sealed[STORM_BATCH];
    uint32_t tokens[STORM_BATCH][STORM_BLOCK_TOKENS], numbers[STORM_BATCH], seal_count = 0;
    for (uint32_t i = 0; i < count; i++) {
        struct storm_block *block = &worker->storm->witness->blocks[blocks[i]];
        if (slots[i].status != KVL_ALLOC_GRANTED)
            continue;
        storm_fill(&block->key,
            kvl_client_block_writable(worker->client, tier, slots[i].offset_bytes),
            storm_bytes(storm_kind_of(blocks[i])));
        numbers[seal_count] = blocks[i];
        seals[seal_count] = seal_of(worker, blocks[i], tokens[seal_count]);
        seals[seal_count++].lease = slots[i].lease;
        atomic_store(&block->tried, true);
    }
    if (seal_count == 0)
        return KVL_OK;
    kvl_err err = storm_told(worker, "seal", kvl_seal(worker->client, seals, seal_count, sealed));
    for (uint32_t i = 0; err == KVL_OK && i < seal_count; i++)
        note_sealed(worker, numbers[i], &sealed[i]);
    return err;
}

static kvl_err release_slots(
    struct storm_worker *worker, const struct kvl_allocated *slots, uint32_t count) {
    uint64_t leases[STORM_BATCH];
    uint32_t lease_count = 0;
    for (uint32_t i = 0; i < count; i++)
        if (slots[i].status == KVL_ALLOC_GRANTED)
            leases[lease_count++] = slots[i].lease;
    return storm_told(worker, "release", kvl_release(worker->client, leases, lease_count, NULL, 0));
}

kvl_err storm_write_blocks(struct storm_worker *worker, const uint32_t *blocks, uint32_t count) {
    struct kvl_allocated slots[STORM_BATCH];
    enum kvl_tier_kind tier =
        storm_below(&worker->random, 4) == 0 ? KVL_TIER_HOST : KVL_TIER_DEVICE;
    kvl_err err = alloc_blocks(worker, blocks, count, tier, slots);
    if (err == KVL_OK)
        err = seal_blocks(worker, blocks, slots, count, tier);
    return err == KVL_OK ? release_slots(worker, slots, count) : err;
}

bool storm_may_go_on(struct storm_worker *worker, uint64_t end_ns) {
    return kvl_clock_ns() < end_ns && kvl_client_is_connected(worker->client);
}

void storm_pause(struct storm_worker *worker) {
    if (worker->pause_us > 0)
        usleep(storm_below(&worker->random, worker->pause_us));
}

/* The next blocks of the kind; a tight storm begins again, a roomy one ends. */
static uint32_t take_numbers(
    struct storm_worker *worker, enum storm_kind kind, uint32_t *numbers, uint32_t count) {
    const struct storm *storm = worker->storm;
    uint32_t from = atomic_fetch_add(&storm->witness->next[kind], count), taken = 0;
    for (uint32_t i = 0; i < count; i++) {
        if (storm->tight)
            numbers[taken++] = storm_first(kind) + (from + i) % storm_count(kind);
        else if (from + i < storm_count(kind))
            numbers[taken++] = storm_first(kind) + from + i;
    }
    return taken;
}

void storm_write(struct storm_worker *worker, uint64_t end_ns) {
    uint32_t numbers[STORM_BATCH];
    while (storm_may_go_on(worker, end_ns)) {
        enum storm_kind kind = storm_below(&worker->random, 8) == 0 ? STORM_LARGE : STORM_SMALL;
        uint32_t want = kind == STORM_LARGE ? 1 : 1 + storm_below(&worker->random, 8);
        uint32_t count = take_numbers(worker, kind, numbers, want);
        if (count > 0 && storm_write_blocks(worker, numbers, count) != KVL_OK)
            return;
        storm_pause(worker);
    }
}

/* ---- reading -------------------------------------------------------------------------------- */

static bool compare(struct storm_worker *worker, uint32_t block, enum kvl_tier_kind tier,
    const struct kvl_restored *restored) {
    const struct storm *storm = worker->storm;
    const uint8_t *data = kvl_client_block(worker->client, tier, restored->offset_bytes);
    atomic_fetch_add(&storm->witness->totals.read, 1);
    if (data != NULL &&
        storm_is_right(&storm->witness->blocks[block].key, data, storm_bytes(storm_kind_of(block))))
        return true;
    atomic_fetch_add(&storm->witness->totals.wrong, 1);
    storm_finding(storm, "block %u has wrong bytes, restored from tier %u to %u", block,
        restored->found_tier, (unsigned)tier);
    return false;
}

/* Not the daemon's fault: no room, or evicted in between. */
static bool may_fail(const struct storm_worker *worker, kvl_err status) {
    return status == KVL_ERR_NOSPC || (worker->storm->tight && status == KVL_ERR_NOTFOUND);
}

static kvl_err wait_restored(
    struct storm_worker *worker, struct kvl_ticket ticket, uint32_t *ready) {
    struct kvl_progress progress;
    if (ticket.generation == 0)
        return KVL_OK;
    kvl_err err = kvl_ticket_wait(worker->client, ticket, UINT32_MAX, WAIT_MS, &progress);
    if (storm_told(worker, "restore's end", err) != KVL_OK)
        return KVL_ERR_CLOSED;
    if (progress.status == KVL_OK)
        return KVL_OK;
    if (!may_fail(worker, progress.status))
        storm_finding(worker->storm, "restore ended with %s", kvl_err_name(progress.status));
    if (progress.blocks_ready < *ready)
        *ready = progress.blocks_ready;
    return KVL_OK;
}

kvl_err storm_read_blocks(struct storm_worker *worker, const uint32_t *blocks, uint32_t count,
    enum kvl_tier_kind tier, uint32_t *right) {
    struct kvl_key keys[STORM_BATCH];
    struct kvl_restored restored[STORM_BATCH];
    struct kvl_restore_result result;
    uint64_t leases[STORM_BATCH];
    *right = 0;
    for (uint32_t i = 0; i < count; i++)
        keys[i] = worker->storm->witness->blocks[blocks[i]].key;
    kvl_err err;
    while (
        (err = kvl_restore(worker->client, tier, keys, count, restored, &result)) == KVL_ERR_AGAIN)
        usleep(1000);
    uint32_t ready = err == KVL_OK ? result.count : 0;
    if (storm_told(worker, "restore", err) != KVL_OK ||
        wait_restored(worker, result.ticket, &ready) != KVL_OK)
        return KVL_ERR_CLOSED;
    for (uint32_t i = 0; i < result.count; i++) {
        leases[i] = restored[i].lease;
        if (i < ready && compare(worker, blocks[i], tier, &restored[i]))
            (*right)++;
    }
    /* under a lease nothing changes */
    if (ready > 0 && storm_below(&worker->random, 4) == 0) {
        usleep(storm_below(&worker->random, 3000));
        (void)compare(worker, blocks[0], tier, &restored[0]);
    }
    return storm_told(worker, "release",
        kvl_release(worker->client, leases, result.count, &result.ticket,
            result.ticket.generation != 0 ? 1 : 0));
}

static uint32_t pick_sealed(struct storm_worker *worker, uint32_t *numbers, uint32_t count) {
    struct storm_witness *witness = worker->storm->witness;
    uint32_t picked = 0;
    for (uint32_t i = 0; i < count * 16 && picked < count; i++) {
        enum storm_kind kind = (enum storm_kind)storm_below(&worker->random, STORM_KINDS);
        uint32_t end = atomic_load(&witness->next[kind]);
        end *= kind == STORM_CHAT ? STORM_SESSION_BLOCKS : 1;
        if (end == 0)
            continue;
        end = end < storm_count(kind) ? end : storm_count(kind);
        uint32_t block = storm_first(kind) + storm_below(&worker->random, end);
        if (atomic_load(&witness->blocks[block].sealed_ns) != 0 &&
            atomic_load(&witness->blocks[block].clear) == STORM_KEPT)
            numbers[picked++] = block;
    }
    return picked;
}

/* Demotes or prefetches; both may find nothing to do. */
static kvl_err move_blocks(struct storm_worker *worker, const uint32_t *numbers, uint32_t count) {
    struct kvl_key keys[STORM_BATCH];
    struct kvl_ticket ticket = {0};
    uint32_t what = storm_below(&worker->random, 3);
    for (uint32_t i = 0; i < count; i++)
        keys[i] = worker->storm->witness->blocks[numbers[i]].key;
    kvl_err err = what == 0 ? kvl_prefetch(worker->client, KVL_TIER_DEVICE, keys, count, &ticket)
                            : kvl_demote(worker->client, what == 1 ? KVL_TIER_HOST : KVL_TIER_DISK,
                                  keys, count, &ticket);
    if (err == KVL_ERR_AGAIN || err == KVL_ERR_NOTFOUND)
        return KVL_OK;
    if (storm_told(worker, what == 0 ? "prefetch" : "demote", err) != KVL_OK)
        return KVL_ERR_CLOSED;
    return storm_settle(worker, ticket, "moving blocks") == KVL_ERR_CLOSED ? KVL_ERR_CLOSED
                                                                           : KVL_OK;
}

void storm_read(struct storm_worker *worker, uint64_t end_ns) {
    uint32_t numbers[STORM_BATCH], right;
    kvl_err err = KVL_OK;
    while (err == KVL_OK && storm_may_go_on(worker, end_ns)) {
        uint32_t count = pick_sealed(worker, numbers, 1 + storm_below(&worker->random, 6));
        if (count > 0 && storm_below(&worker->random, 8) == 0)
            err = move_blocks(worker, numbers, count);
        else if (count > 0)
            err = storm_read_blocks(worker, numbers, count,
                storm_below(&worker->random, 2) == 0 ? KVL_TIER_HOST : KVL_TIER_DEVICE, &right);
        storm_pause(worker);
    }
}

/* ---- many, and doomed ones ------------------------------------------------------------------- */

/* Under everybody's leases, which go on. */
static kvl_err clear_small(struct storm_worker *worker) {
    struct kvl_ticket ticket;
    kvl_err err = kvl_clear(
        worker->client, KVL_CLEAR_NAMESPACE, worker->spaces[STORM_SMALL].id, NULL, &ticket);
    if (storm_told(worker, "clear", err) != KVL_OK)
        return KVL_ERR_CLOSED;
    return storm_told(worker, "clear", storm_settle(worker, ticket, "clear"));
}

void storm_crowd(struct storm_worker *worker, uint64_t end_ns) {
    kvl_err err = KVL_OK;
    while (err == KVL_OK && storm_may_go_on(worker, end_ns)) {
        uint32_t numbers[8], right;
        uint32_t first = storm_below(&worker->random, 1024);
        for (uint32_t i = 0; i < 8; i++)
            numbers[i] = first + i;
        err = storm_below(&worker->random, 1000) == 0 ? clear_small(worker)
              : storm_below(&worker->random, 2) == 0
                  ? storm_write_blocks(worker, numbers, 8)
                  : storm_read_blocks(worker, numbers, 8,
                        storm_below(&worker->random, 2) == 0 ? KVL_TIER_HOST : KVL_TIER_DEVICE,
                        &right);
        storm_pause(worker);
    }
}

void storm_grab(struct storm_worker *worker) {
    for (;;) {
        uint32_t numbers[4], space = worker->spaces[STORM_SMALL].id;
        uint32_t first = storm_below(&worker->random, 256);
        struct kvl_key keys[4] = {0};
        struct kvl_allocated slots[4];
        struct kvl_restored restored[4];
        struct kvl_restore_result result;
        struct kvl_ticket ticket;
        bool named = storm_below(&worker->random, 2) == 0,
             wait = storm_below(&worker->random, 4) == 0;
        for (uint32_t i = 0; i < 4; i++) {
            numbers[i] = first + i;
            keys[i] = worker->storm->witness->blocks[named ? first + i : 0].key;
            if (!named)
                keys[i] = (struct kvl_key){{0}};
        }
        kvl_err err = kvl_alloc(
            worker->client, space, KVL_TIER_DEVICE, keys, 4, wait && named, slots, &ticket);
        if (err == KVL_OK && !named && slots[0].status == KVL_ALLOC_GRANTED)
            atomic_store(&worker->storm->witness->grabbed, true);
        if (err == KVL_OK && named && storm_below(&worker->random, 2) == 0)
            err = seal_blocks(worker, numbers, slots, 4, KVL_TIER_DEVICE);
        if (err == KVL_OK && named)
            err = kvl_restore(worker->client, KVL_TIER_HOST, keys, 4, restored, &result);
        if (err == KVL_OK && storm_below(&worker->random, 100) == 0)
            err = clear_small(worker);
        if (err != KVL_OK && err != KVL_ERR_AGAIN && err != KVL_ERR_LIMIT)
            (void)storm_told(worker, "grab", err);
        usleep(storm_below(&worker->random, 2000));
    }
}
