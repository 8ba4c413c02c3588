/* alloc_service_test.c - memory runs out once, or for good, somewhere between the start of a
 * service with all its tiers and its stop, under a client that uses every verb.
 *
 * Whatever it was: calls end, with an error or the right result; nothing is leaked; and a service
 * started on the same folder afterwards has what was said to be durable, and not what was said to
 * be cleared. */
#include <string.h>
#include <time.h>

#include "alloc_sweep.h"
#include "kvloft.h"
#include "service.h"

#define MIB (1ull << 20)
#define BLOCK_BYTES 8192u
#define BLOCKS 4u
#define CLEARED (BLOCKS - 1u) /* a namespace of its own, which is cleared */
#define TOKENS 1500u          /* two chunks of the catalog */
#define WAIT_MS 20000u

/* What a run was told, for the check after it. */
static struct {
    char address[128], disk_path[128];
    bool memory_is_gone; /* for good, until the stop */
    struct kvl_service *service;
    struct kvl_client *client, *other;
    struct kvl_namespace_info namespaces[2];
    struct kvl_key keys[BLOCKS];
    bool sealed[BLOCKS];
    bool appended, tailed, pinned; /* said OK */
    bool flushed, cleared;         /* and said to be durable */
} run;

static uint32_t tokens[TOKENS], read_tokens[TOKENS + 1];

static void sleep_ms(long ms) {
    nanosleep(&(struct timespec){.tv_nsec = ms * 1000000}, NULL);
}

static void fill(uint8_t *block, uint32_t number) {
    for (uint32_t i = 0; i < BLOCK_BYTES; i++)
        block[i] = (uint8_t)(number * 31 + i * 7 + i / 251);
}

static bool is_filled(const uint8_t *block, uint32_t number) {
    uint8_t expected[BLOCK_BYTES];
    fill(expected, number);
    return memcmp(block, expected, BLOCK_BYTES) == 0;
}

/* ---- calls that may fail --------------------------------------------------------------------- */

static kvl_err start(void) {
    struct kvl_errmsg msg = {{0}};
    struct kvl_service_options options = {.address = run.address,
        .device = "cpu",
        .device_bytes = MIB,
        .host_bytes = MIB,
        .disk_path = run.disk_path,
        .disk_bytes = 24 * MIB,
        .persist_ms = 5,
        .holder_name = "test"};
    kvl_err err = kvl_service_start(&options, NULL, &run.service, &msg);
    ALLOC_NEED(err == KVL_OK ? run.service != NULL : run.service == NULL && msg.text[0] != 0);
    return err;
}

static kvl_err connect_client(struct kvl_client **out) {
    struct kvl_errmsg msg = {{0}};
    struct kvl_client_options options = {
        .address = run.address, .name = "test", .timeout_ms = WAIT_MS};
    kvl_err err = kvl_client_open(&options, out, &msg);
    ALLOC_NEED(err != KVL_ERR_TIMEOUT && (err == KVL_OK || msg.text[0] != 0));
    return err;
}

/* The ticket's own status; given back in any case. What goes to disk waits for memory. */
static kvl_err wait_for(kvl_err err, struct kvl_ticket ticket, struct kvl_progress *progress) {
    ALLOC_NEED(err != KVL_ERR_TIMEOUT);
    if (err != KVL_OK || ticket.generation == 0)
        return err;
    err = kvl_ticket_wait(
        run.client, ticket, UINT32_MAX, run.memory_is_gone ? 200 : WAIT_MS, progress);
    ALLOC_NEED(err != KVL_ERR_TIMEOUT || run.memory_is_gone);
    kvl_err ignored = kvl_release(run.client, NULL, 0, &ticket, 1);
    (void)ignored;
    return err == KVL_OK ? progress->status : err;
}

static kvl_err open_namespace(uint32_t number) {
    struct kvl_namespace_request request = {.block_bytes = BLOCK_BYTES, .label = "alloc"};
    const char *name = number == 0 ? "kept" : "cleared";
    ALLOC_NEED(kvl_key_of_opaque_namespace(
                   name, BLOCK_BYTES, (struct kvl_bytes){0}, &request.key) == KVL_OK);
    return kvl_client_namespace(run.client, &request, &run.namespaces[number]);
}

static kvl_err alloc_block(
    uint32_t namespace_id, struct kvl_key *key, struct kvl_allocated *block) {
    struct kvl_ticket ticket;
    kvl_err err = KVL_OK;
    block->status = KVL_ALLOC_NOSPC;
    for (uint32_t tries = 0; tries < 100 && err == KVL_OK && block->status == KVL_ALLOC_NOSPC;
         tries++) {
        if (tries > 0)
            sleep_ms(1);
        err = kvl_alloc(run.client, namespace_id, KVL_TIER_DEVICE, key, 1, false, block, &ticket);
    }
    return err;
}

static void store(uint32_t number) {
    const struct kvl_namespace_info *space = &run.namespaces[number == CLEARED];
    struct kvl_seal seal = {.opaque = true, .opaque_key = {(uint8_t)(number + 1)}};
    struct kvl_allocated block;
    struct kvl_sealed sealed = {.status = KVL_ERR_INVALID};
    ALLOC_NEED(kvl_key_of_opaque(&space->key, seal.opaque_key, &run.keys[number]) == KVL_OK);
    if (alloc_block(space->id, &run.keys[number], &block) != KVL_OK ||
        block.status != KVL_ALLOC_GRANTED)
        return;
    fill(kvl_client_block_writable(run.client, KVL_TIER_DEVICE, block.offset_bytes), number);
    seal.lease = block.lease;
    kvl_err err = kvl_seal(run.client, &seal, 1, &sealed);
    run.sealed[number] = err == KVL_OK && sealed.status == KVL_OK;
    err = kvl_release(run.client, &block.lease, 1, NULL, 0);
    ALLOC_NEED(err != KVL_ERR_TIMEOUT);
}

/* Hashing is behind a seal; what could not be hashed is never seen. */
static void wait_visible(void) {
    uint8_t found;
    uint32_t hits;
    for (uint32_t i = 0; i < BLOCKS; i++)
        for (uint32_t tries = 0; tries < 200 && run.sealed[i]; tries++) {
            if (kvl_lookup(run.client, &run.keys[i], 1, &found, &hits) != KVL_OK || hits == 1)
                break;
            sleep_ms(1);
        }
}

static void use_session(void) {
    struct kvl_session_info info;
    if (kvl_session_open(run.client, "work", &run.namespaces[0].key, &info) != KVL_OK)
        return;
    run.appended = kvl_session_append(run.client, "work", 0, tokens, TOKENS) == KVL_OK;
    run.tailed = run.appended && kvl_session_tail(run.client, "work", &run.keys[0], 3) == KVL_OK;
    kvl_err ignored = kvl_session_close(run.client, "work");
    (void)ignored;
}

/* Everything that arrived is right; returns how many. */
static uint32_t restore(
    enum kvl_tier_kind tier, const struct kvl_key *keys, uint32_t count, uint32_t first_number) {
    struct kvl_restored blocks[BLOCKS];
    uint64_t leases[BLOCKS];
    struct kvl_restore_result result;
    struct kvl_progress progress = {0};
    kvl_err err = kvl_restore(run.client, tier, keys, count, blocks, &result);
    for (uint32_t tries = 0; err == KVL_ERR_AGAIN && tries < 100; tries++) {
        sleep_ms(1);
        err = kvl_restore(run.client, tier, keys, count, blocks, &result);
    }
    if (err != KVL_OK)
        return 0;
    uint32_t ready = result.count;
    if (result.ticket.generation != 0) {
        kvl_err status = wait_for(KVL_OK, result.ticket, &progress);
        ready = status == KVL_OK ? result.count : progress.blocks_ready;
        ALLOC_NEED(ready <= result.count);
    }
    for (uint32_t i = 0; i < ready; i++)
        ALLOC_NEED(is_filled(
            kvl_client_block(run.client, tier, blocks[i].offset_bytes), first_number + i));
    for (uint32_t i = 0; i < result.count; i++)
        leases[i] = blocks[i].lease;
    err = kvl_release(run.client, leases, result.count, NULL, 0);
    ALLOC_NEED(err != KVL_ERR_TIMEOUT);
    return ready;
}

static void move(void) {
    struct kvl_ticket ticket = {0};
    struct kvl_progress progress = {0};
    kvl_err err = kvl_demote(run.client, KVL_TIER_DISK, run.keys, CLEARED, &ticket);
    err = wait_for(err, ticket, &progress);
    for (uint32_t i = 0; i < CLEARED; i++)
        restore(i % 2 == 0 ? KVL_TIER_DEVICE : KVL_TIER_HOST, &run.keys[i], 1, i);
    err = kvl_prefetch(run.client, KVL_TIER_DEVICE, &run.keys[1], 1, &ticket);
    err = wait_for(err, ticket, &progress);
    err = kvl_demote(run.client, KVL_TIER_HOST, &run.keys[1], 1, &ticket);
    err = wait_for(err, ticket, &progress);
    err = kvl_verify(run.client, &ticket);
    if (wait_for(err, ticket, &progress) == KVL_OK && ticket.generation != 0)
        ALLOC_NEED(progress.values[1] == 0);
}

static void on_alloc(void *arg, kvl_err err, const struct kvl_allocated *blocks, uint32_t count,
    struct kvl_ticket ticket) {
    (void)ticket;
    if (err == KVL_OK && count == 1 && blocks[0].status == KVL_ALLOC_GRANTED)
        *(uint64_t *)arg = blocks[0].lease;
}

/* A key that one client fills while another waits for it, and inherits it. */
static void inherit(void) {
    struct kvl_key key = {{77}};
    struct kvl_allocated block = {0};
    struct kvl_ticket ticket = {0};
    struct kvl_progress progress = {0};
    uint64_t lease = 0;
    if (connect_client(&run.other) != KVL_OK)
        return;
    kvl_err err = kvl_alloc_async(
        run.other, run.namespaces[0].id, KVL_TIER_DEVICE, &key, 1, false, on_alloc, &lease);
    if (err == KVL_OK)
        err = kvl_client_drain(run.other);
    if (err == KVL_OK && lease != 0)
        err = kvl_alloc(
            run.client, run.namespaces[0].id, KVL_TIER_DEVICE, &key, 1, true, &block, &ticket);
    kvl_client_close(run.other);
    run.other = NULL;
    ALLOC_NEED(err != KVL_ERR_TIMEOUT);
    if (ticket.generation == 0) {
        if (block.status == KVL_ALLOC_GRANTED)
            err = kvl_release(run.client, &block.lease, 1, NULL, 0);
        return;
    }
    if (wait_for(KVL_OK, ticket, &progress) == KVL_OK && progress.values[0] != 0)
        err = kvl_release(run.client, &progress.values[0], 1, NULL, 0);
}

static void clear_one(void) {
    struct kvl_ticket ticket = {0};
    struct kvl_progress progress = {0};
    kvl_err err = kvl_clear(run.client, KVL_CLEAR_NAMESPACE, run.namespaces[1].id, NULL, &ticket);
    run.cleared = wait_for(err, ticket, &progress) == KVL_OK;
}

static void flush(void) {
    struct kvl_ticket ticket = {0};
    struct kvl_progress progress = {0};
    kvl_err err = kvl_flush(run.client, &ticket);
    run.flushed = wait_for(err, ticket, &progress) == KVL_OK;
}

/* No slot is taken that no block or lease has. */
static void check_slots(void) {
    struct kvl_store_report report;
    if (kvl_stats(run.client, &report, NULL) != KVL_OK || report.leases != 0)
        return;
    for (uint32_t tier = KVL_TIER_DEVICE; tier <= KVL_TIER_HOST; tier++)
        ALLOC_NEED(report.tiers[tier].used_bytes == report.tiers[tier].blocks * BLOCK_BYTES);
}

static void use(void) {
    uint32_t changed = 0;
    if (connect_client(&run.client) != KVL_OK || open_namespace(0) != KVL_OK ||
        open_namespace(1) != KVL_OK)
        return;
    for (uint32_t i = 0; i < BLOCKS; i++)
        store(i);
    wait_visible();
    use_session();
    run.pinned =
        run.sealed[0] && kvl_pin(run.client, run.keys, 1, true, &changed) == KVL_OK && changed == 1;
    flush();
    move();
    inherit();
    clear_one();
    check_slots();
}

static void stop(void) {
    kvl_client_close(run.other);
    kvl_client_close(run.client);
    kvl_service_stop(run.service);
    run.client = run.other = NULL;
    run.service = NULL;
}

/* ---- afterwards ------------------------------------------------------------------------------ */

static bool is_pinned(const struct kvl_key *key) {
    struct kvl_block_report blocks[2 * BLOCKS];
    uint64_t cursor = 0;
    uint32_t count = 0;
    ALLOC_NEED(kvl_list_blocks(run.client, &cursor, 2 * BLOCKS, blocks, &count) == KVL_OK);
    for (uint32_t i = 0; i < count; i++)
        if (kvl_key_equal(&blocks[i].key, key))
            return blocks[i].pinned != 0;
    return false;
}

static void check_session(void) {
    struct kvl_session_info info = {0};
    uint32_t count = 0;
    kvl_err err = kvl_session_read(run.client, "work", 0, TOKENS + 1, read_tokens, &count, &info);
    bool kept = run.appended && run.flushed;
    ALLOC_NEED(err == KVL_OK || (err == KVL_ERR_NOTFOUND && !kept));
    ALLOC_NEED(count <= TOKENS && memcmp(read_tokens, tokens, count * sizeof(tokens[0])) == 0);
    ALLOC_NEED(!kept || count == TOKENS);
    if (run.tailed && run.flushed)
        ALLOC_NEED(info.tail_tokens == 3 && kvl_key_equal(&info.tail, &run.keys[0]));
}

static void check_afterwards(void) {
    struct kvl_ticket ticket;
    struct kvl_progress progress = {0};
    uint8_t found;
    uint32_t hits = 0;
    ALLOC_NEED(start() == KVL_OK && connect_client(&run.client) == KVL_OK);
    ALLOC_NEED(open_namespace(0) == KVL_OK && open_namespace(1) == KVL_OK);
    for (uint32_t i = 0; i < BLOCKS; i++) {
        ALLOC_NEED(kvl_lookup(run.client, &run.keys[i], 1, &found, &hits) == KVL_OK);
        if (i == CLEARED && run.cleared)
            ALLOC_NEED(hits == 0);
        else if (run.sealed[i] && run.flushed && i != CLEARED)
            ALLOC_NEED(hits == 1);
        if (hits == 1)
            ALLOC_NEED(restore(KVL_TIER_DEVICE, &run.keys[i], 1, i) == 1);
    }
    check_session();
    ALLOC_NEED(!run.pinned || !run.flushed || is_pinned(&run.keys[0]));
    kvl_err err = kvl_verify(run.client, &ticket);
    ALLOC_NEED(wait_for(err, ticket, &progress) == KVL_OK && progress.values[1] == 0);
    check_slots();
    stop();
}

static void run_service(
    struct alloc_fail_report *report, uint64_t nth, bool lasting, const char *path) {
    for (uint32_t i = 0; i < TOKENS; i++)
        tokens[i] = i * 3 + 1;
    snprintf(run.address, sizeof run.address, "ipc://%s/socket", path);
    snprintf(run.disk_path, sizeof run.disk_path, "%s/disk", path);
    run.memory_is_gone = lasting;
    alloc_fail_arm(report, nth, lasting);
    if (start() == KVL_OK)
        use();
    if (lasting) /* nothing can be made durable without memory: it comes back for the stop */
        alloc_fail_disarm();
    stop();
    alloc_fail_disarm();
    run.memory_is_gone = false;
    if (report->failed == 0)
        ALLOC_NEED(run.flushed && run.cleared && run.appended && run.tailed && run.pinned);
    check_afterwards();
}

int main(int argc, char **argv) {
    static const struct alloc_scenario scenario = {"service and client", run_service};
    return alloc_sweep(&scenario, argc, argv);
}
