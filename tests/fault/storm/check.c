/* check.c - what must hold after a restart, and at the end of a storm. */
#include "storm.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "clock.h"

#define PAGE 512u
#define READ_BYTES (2u << 20)
#define SLOW_TIMES 10u

static bool ok(struct storm_worker *worker, const char *what, kvl_err err) {
    if (err != KVL_OK)
        storm_finding(worker->storm, "%s: %s", what, kvl_err_name(err));
    return err == KVL_OK;
}

static bool stats(struct storm_worker *worker, struct kvl_store_report *report) {
    return ok(worker, "stats", kvl_stats(worker->client, report, NULL));
}

void storm_check_stopped(struct storm_worker *worker) {
    struct kvl_store_report report = {0};
    for (int i = 0; i < 10000 && (i == 0 || report.clients > 2); i++) {
        if (!stats(worker, &report))
            return;
        usleep(1000);
    }
    if (report.clients != 2 || report.leases == 0)
        storm_finding(worker->storm, "a stopped engine lost its leases: %llu clients, %llu leases",
            (unsigned long long)report.clients, (unsigned long long)report.leases);
}

void storm_check_leases(struct storm_worker *worker) {
    struct kvl_store_report report = {0};
    for (int i = 0; i < 10000; i++) { /* the dead are noticed behind */
        if (!stats(worker, &report))
            return;
        if (report.leases == 0 && report.clients == 1)
            break;
        usleep(1000);
    }
    if (report.leases != 0 || report.leased_bytes != 0 || report.clients != 1)
        storm_finding(worker->storm, "%llu leases of %llu bytes and %llu clients are left",
            (unsigned long long)report.leases, (unsigned long long)report.leased_bytes,
            (unsigned long long)report.clients);
}

/* ---- after a restart ------------------------------------------------------------------------- */

static bool list_present(struct storm_worker *worker, bool *present) {
    static struct kvl_block_report page[PAGE];
    const struct storm_witness *witness = worker->storm->witness;
    uint64_t cursor = 0;
    uint32_t count = 0;
    do {
        if (!ok(worker, "list", kvl_list_blocks(worker->client, &cursor, PAGE, page, &count)))
            return false;
        for (uint32_t i = 0; i < count; i++) {
            uint32_t block = storm_find(witness, &page[i].key);
            if (page[i].tiers == 0)
                continue; /* known as somebody's parent only */
            if (block == UINT32_MAX)
                storm_finding(worker->storm, "a block is there that nobody stored");
            else
                present[block] = true;
        }
    } while (count != 0);
    return true;
}

/* Other work makes a seal's way to disk longer: a few syncs one behind the other, one commit after
 * the other. */
static uint64_t bound_ns(const struct storm *storm) {
    return storm->bound_ns + SLOW_TIMES * storm->slow_ns;
}

static void check_presence(struct storm_worker *worker, uint32_t block, bool present) {
    const struct storm *storm = worker->storm;
    struct storm_block *known = &storm->witness->blocks[block];
    struct storm_totals *totals = &storm->witness->totals;
    uint64_t sealed_ns = atomic_load(&known->sealed_ns);
    uint32_t clear = atomic_load(&known->clear);
    if (present && !atomic_load(&known->tried))
        storm_finding(storm, "block %u is there, although it was lost or evicted before", block);
    if (present && clear == STORM_CLEARED)
        storm_finding(storm, "block %u is there, although it was cleared", block);
    bool durable = atomic_load(&known->durable);
    if (!present && sealed_ns != 0 && clear == STORM_KEPT && !storm->tight) {
        uint64_t age_ns = storm->killed_ns > sealed_ns ? storm->killed_ns - sealed_ns : 0;
        atomic_fetch_add(&totals->lost, 1);
        if (age_ns > atomic_load(&totals->lost_age_max_ns))
            atomic_store(&totals->lost_age_max_ns, age_ns);
        if (durable || age_ns > bound_ns(storm))
            storm_finding(storm, "block %u is lost, sealed %llu ms before the kill%s", block,
                (unsigned long long)(age_ns / 1000000), durable ? " and durable" : "");
    }
    atomic_store(&known->sealed_ns, !present ? 0 : sealed_ns != 0 ? sealed_ns : kvl_clock_ns());
    atomic_store(&known->durable, present);
    atomic_store(&known->tried, present);
}

/* Runs of blocks of one kind, so that chats come parents first; not more than the arenas take. */
static void read_present(struct storm_worker *worker, const bool *present) {
    uint32_t batch[STORM_BATCH], count = 0, right;
    for (uint32_t block = 0; block <= STORM_BLOCKS; block++) {
        bool end = block == STORM_BLOCKS;
        bool other = count > 0 && (end || storm_kind_of(block) != storm_kind_of(batch[0]));
        if (count == STORM_BATCH || other ||
            (count > 0 && count * storm_bytes(storm_kind_of(batch[0])) >= READ_BYTES)) {
            enum kvl_tier_kind tier = count % 2 == 0 ? KVL_TIER_DEVICE : KVL_TIER_HOST;
            if (storm_read_blocks(worker, batch, count, tier, &right) != KVL_OK) {
                storm_finding(worker->storm, "the daemon is gone in mid-check");
                return;
            }
            if (right < count && !worker->storm->tight)
                storm_finding(worker->storm, "%u of %u blocks from %u on cannot be read",
                    count - right, count, batch[0]);
            count = 0;
        }
        if (!end && present[block])
            batch[count++] = block;
    }
}

static void check_session(struct storm_worker *worker, uint32_t session) {
    const struct storm *storm = worker->storm;
    struct storm_session *known = &storm->witness->sessions[session];
    uint32_t tokens[STORM_SESSION_TOKENS + 1], count = 0;
    struct kvl_session_info info;
    char name[32];
    storm_session_name(session, name);
    kvl_err err =
        kvl_session_read(worker->client, name, 0, STORM_SESSION_TOKENS + 1, tokens, &count, &info);
    uint32_t clear = atomic_load(&known->clear), sent = atomic_load(&known->sent_tokens);
    uint32_t acked = atomic_load(&known->acked_tokens), least = atomic_load(&known->durable_tokens);
    if (acked > 0 && storm->killed_ns > atomic_load(&known->acked_ns) + bound_ns(storm))
        least = acked;
    if (err != KVL_ERR_NOTFOUND && !ok(worker, "session read", err))
        return;
    if (err == KVL_OK && clear == STORM_CLEARED)
        storm_finding(storm, "session %u is there, although it was cleared", session);
    if (clear == STORM_KEPT && (count < least || count > sent))
        storm_finding(storm, "session %u has %u tokens; %u were durable, %u were sent", session,
            count, least, sent);
    for (uint32_t i = 0; i < count; i++) {
        if (tokens[i] == storm_token(session, i))
            continue;
        storm_finding(storm, "session %u: token %u is wrong", session, i);
        break;
    }
    atomic_store(&known->sent_tokens, count);
    atomic_store(&known->acked_tokens, count);
    atomic_store(&known->durable_tokens, count);
}

void storm_check(struct storm_worker *worker) {
    static bool present[STORM_BLOCKS];
    struct kvl_store_report report;
    storm_check_leases(worker);
    if (!list_present(worker, present))
        return;
    for (uint32_t block = 0; block < STORM_BLOCKS; block++)
        check_presence(worker, block, present[block]);
    for (uint32_t session = 0; session < STORM_SESSIONS; session++)
        check_session(worker, session);
    read_present(worker, present);
    if (!stats(worker, &report))
        return;
    for (unsigned tier = 0; tier < KVL_TIER_COUNT; tier++)
        if (report.tiers[tier].corrupt_blocks != 0)
            storm_finding(worker->storm, "%llu corrupt blocks in tier %u",
                (unsigned long long)report.tiers[tier].corrupt_blocks, tier);
    if (report.hash_mismatches != 0 || report.tiers[KVL_TIER_DISK].errors != 0)
        storm_finding(worker->storm, "hash mismatches or disk errors were counted");
    atomic_fetch_add(&worker->storm->witness->totals.restarts, 1);
}

/* ---- what the tiers take --------------------------------------------------------------------- */

/* Write leases until the device has no slot left. */
static uint32_t count_slots(struct storm_worker *worker) {
    static struct kvl_allocated slots[8192];
    static struct kvl_key unknown[STORM_BATCH];
    static uint64_t leases[8192];
    struct kvl_ticket ticket;
    uint32_t count = 0;
    for (bool full = false; !full && count + STORM_BATCH <= 8192;) {
        kvl_err err = kvl_alloc(worker->client, worker->spaces[STORM_SMALL].id, KVL_TIER_DEVICE,
            unknown, STORM_BATCH, false, slots, &ticket);
        if (err == KVL_ERR_AGAIN) {
            usleep(1000);
            continue;
        }
        if (!ok(worker, "alloc", err))
            return 0;
        for (uint32_t i = 0; i < STORM_BATCH; i++) {
            full |= slots[i].status != KVL_ALLOC_GRANTED;
            if (slots[i].status == KVL_ALLOC_GRANTED)
                leases[count++] = slots[i].lease;
        }
    }
    (void)ok(worker, "release", kvl_release(worker->client, leases, count, NULL, 0));
    return count;
}

/* Small blocks for twice the disk's size: how many of them were there at most? (At any one moment a
 * segment may just have been reclaimed.) */
static uint32_t fill_disk(struct storm_worker *worker) {
    uint32_t end = (uint32_t)(worker->storm->disk_bytes * 2 / (storm_bytes(STORM_SMALL) + 4096));
    uint64_t most = 0;
    for (uint32_t i = 0; i + STORM_BATCH <= end; i += STORM_BATCH) {
        uint32_t numbers[STORM_BATCH];
        struct kvl_store_report report = {0};
        for (uint32_t n = 0; n < STORM_BATCH; n++)
            numbers[n] = storm_first(STORM_SMALL) + (i + n) % STORM_SMALL_BLOCKS;
        if (!ok(worker, "filling the disk", storm_write_blocks(worker, numbers, STORM_BATCH)))
            return 0;
        if (i % 64 != 0)
            continue;
        if (!ok(worker, "flush", storm_flush(worker)) || !stats(worker, &report))
            return 0;
        if (report.tiers[KVL_TIER_DISK].blocks > most)
            most = report.tiers[KVL_TIER_DISK].blocks;
    }
    return (uint32_t)most;
}

static bool clear_all(struct storm_worker *worker) {
    struct kvl_ticket ticket;
    return ok(worker, "clear", kvl_clear(worker->client, KVL_CLEAR_ALL, 0, NULL, &ticket)) &&
           ok(worker, "clear", storm_settle(worker, ticket, "clear"));
}

static bool memory_is_used(const struct kvl_store_report *report) {
    return report->tiers[KVL_TIER_DEVICE].used_bytes != 0 ||
           report->tiers[KVL_TIER_HOST].used_bytes != 0;
}

/* Slots whose blocks were being copied when they went come back behind. */
static void check_empty(struct storm_worker *worker) {
    struct kvl_store_report report = {0};
    for (int i = 0; i < 10000 && (i == 0 || memory_is_used(&report)); i++, usleep(1000))
        if (!stats(worker, &report))
            return;
    for (unsigned tier = 0; tier < KVL_TIER_COUNT; tier++) {
        const struct kvl_tier_report *at = &report.tiers[tier];
        if (at->blocks != 0 || (tier != KVL_TIER_DISK && at->used_bytes != 0))
            storm_finding(worker->storm, "after clear, tier %u has %llu blocks, %llu bytes used",
                tier, (unsigned long long)at->blocks, (unsigned long long)at->used_bytes);
    }
    if (report.blocks != 0 || report.unpersisted_blocks != 0)
        storm_finding(worker->storm, "after clear, %llu blocks are in the table, %llu unpersisted",
            (unsigned long long)report.blocks, (unsigned long long)report.unpersisted_blocks);
}

void storm_measure(struct storm_worker *worker, uint32_t *slots, uint32_t *blocks) {
    *blocks = worker->storm->tight ? fill_disk(worker) : 0;
    if (clear_all(worker))
        check_empty(worker);
    *slots = count_slots(worker);
}

void storm_finish(struct storm_worker *worker) {
    const struct storm_witness *witness = worker->storm->witness;
    uint32_t slots, blocks;
    if (clear_all(worker))
        check_empty(worker);
    storm_measure(worker, &slots, &blocks);
    if (slots != witness->slots_fresh)
        storm_finding(worker->storm, "the device takes %u blocks, %u when it was new", slots,
            witness->slots_fresh);
    /* one segment more or less is begun: an eighth of the capacity */
    if (blocks + witness->blocks_fresh / 6 < witness->blocks_fresh)
        storm_finding(worker->storm, "the disk keeps %u blocks, %u when it was new", blocks,
            witness->blocks_fresh);
    storm_check_leases(worker);
}
