/* What a client is told while the store is still being loaded: known chains at once, that a block
 * is missing only when that is certain, and everything else later. The index is large, and a gate
 * holds its loading up before it was checked. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "disk/disk_tier.h"
#include "harness.h"
#include "large_index.h"
#include "memory/memory_tier.h"
#include "server.h"

#define CHAIN 6u
#define ABSENT 77u
#define PASSES 6u         /* of the gate, before the index was read ahead */
#define SLOTS 1024u       /* of the device */
#define MORE_ROWS 120000u /* some 235 chunks, at most 32 of which a poll of the disk takes */

struct service {
    char directory[64];
    struct kvl_tier *device, *disk;
    struct kvl_store *store;
    struct kvl_server *server;
    pthread_t thread;
};

static struct service service;
static struct kvl_namespace_info info;
static struct kvl_key keys[CHAIN + 1]; /* the last one is nowhere */

static atomic_int turns = INT32_MAX;
static const struct kvl_tier_ops *disk_ops;
static struct kvl_tier_ops disk_ops_by_turns;

static _Atomic uint64_t clock_ahead_ns;

uint64_t __real_kvl_clock_ns(void);
uint64_t __wrap_kvl_clock_ns(void);
uint64_t __wrap_kvl_clock_ns(void) {
    return __real_kvl_clock_ns() + atomic_load(&clock_ahead_ns);
}

static uint32_t poll_by_turns(struct kvl_tier *tier) {
    if (atomic_load(&turns) == INT32_MAX)
        return disk_ops->poll(tier);
    if (atomic_load(&turns) == 0)
        return 0;
    uint32_t fired = disk_ops->poll(tier);
    if (fired > 0)
        atomic_fetch_sub(&turns, 1);
    return fired;
}

static void *serve(void *arg) {
    (void)arg;
    return (void *)(intptr_t)kvl_server_run(service.server);
}

static void start(void) {
    struct kvl_errmsg msg = {{0}};
    struct kvl_memory_tier_options memory = {
        .kind = KVL_TIER_DEVICE, .capacity_bytes = SLOTS * TEST_BLOCK_BYTES};
    struct kvl_disk_options disk = {.path = service.directory, .capacity_bytes = LARGE_CAPACITY};
    struct kvl_store_options store = {0};
    assert_int_equal(kvl_memory_tier_create(&memory, &service.device, &msg), KVL_OK);
    if (kvl_disk_tier_create(&disk, &service.disk, &store.catalog, &msg) != KVL_OK)
        fail_msg("%s", msg.text);
    disk_ops = service.disk->ops;
    disk_ops_by_turns = *disk_ops;
    disk_ops_by_turns.poll = poll_by_turns;
    service.disk->ops = &disk_ops_by_turns;
    store.device = service.device;
    store.disk = service.disk;
    assert_int_equal(kvl_store_create(&store, &service.store, &msg), KVL_OK);
    struct kvl_server_options options = {.address = own_address(), .store = service.store};
    if (kvl_server_create(&options, &service.server, &msg) != KVL_OK)
        fail_msg("%s", msg.text);
    assert_int_equal(pthread_create(&service.thread, NULL, serve, NULL), 0);
}

static void stop(void) {
    void *result = NULL;
    kvl_server_stop(service.server);
    pthread_join(service.thread, &result);
    assert_ptr_equal(result, (void *)(intptr_t)KVL_OK);
    kvl_server_destroy(service.server);
    assert_int_equal(kvl_store_drain(service.store, UINT64_MAX), KVL_OK);
    kvl_store_destroy(service.store);
    service.disk->ops->deinit(service.disk);
    service.device->ops->deinit(service.device);
}

static void flush_all(struct kvl_client *client) {
    struct kvl_ticket ticket;
    struct kvl_progress progress;
    assert_int_equal(kvl_flush(client, &ticket), KVL_OK);
    if (ticket.generation)
        assert_int_equal(kvl_ticket_wait(client, ticket, UINT32_MAX, 60000, &progress), KVL_OK);
}

static void make_folder_of(uint32_t rows) {
    large_gate_open();
    snprintf(service.directory, sizeof service.directory, "/tmp/kvl-loading-XXXXXX");
    assert_non_null(mkdtemp(service.directory));
    start();
    struct kvl_client *client = connect_own("writer");
    info = open_opaque(client);
    for (uint32_t i = 0; i < CHAIN; i++) {
        keys[i] = opaque_key(&info, i);
        store_block(client, &info, i);
    }
    keys[CHAIN] = opaque_key(&info, ABSENT);
    flush_all(client);
    kvl_client_close(client);
    stop();
    large_index_add(service.directory, rows, info.id);
}

static int make_folder(void **state) {
    (void)state;
    make_folder_of(LARGE_ROWS);
    large_gate_close();
    start();
    return 0;
}

/* The disk is polled by turns, so that it takes several until everything is loaded. */
static int make_larger_folder(void **state) {
    (void)state;
    make_folder_of(MORE_ROWS);
    atomic_store(&turns, 0);
    start();
    return 0;
}

static int remove_folder(void **state) {
    char command[128];
    (void)state;
    large_gate_open();
    atomic_store(&turns, INT32_MAX);
    stop();
    snprintf(command, sizeof command, "rm -rf %s", service.directory);
    return system(command) == 0 ? 0 : -1;
}

/* ---- calls that may have to wait, on threads of their own ----------------------------------- */

struct call {
    void (*run)(struct call *call);
    struct kvl_client *client;
    pthread_t thread;
    atomic_bool done;
    uint32_t count; /* of the keys */
    kvl_err err;
    uint32_t hits;
    uint8_t found[CHAIN + 1];
    struct kvl_restored blocks[CHAIN + 1];
    struct kvl_restore_result restored;
    struct kvl_namespace_info info;
    struct kvl_allocated allocated[CHAIN + 1], unnamed;
    struct kvl_sealed sealed[2];
};

static void run_lookup(struct call *call) {
    call->err = kvl_lookup(call->client, keys, call->count, call->found, &call->hits);
}

static void run_restore(struct call *call) {
    call->err = kvl_restore(
        call->client, KVL_TIER_DEVICE, keys, call->count, call->blocks, &call->restored);
}

static void run_namespace(struct call *call) {
    struct kvl_namespace_request request = {.block_bytes = TEST_BLOCK_BYTES, .label = "test"};
    call->err =
        kvl_key_of_opaque_namespace("test", TEST_BLOCK_BYTES, (struct kvl_bytes){0}, &request.key);
    if (call->err == KVL_OK)
        call->err = kvl_client_namespace(call->client, &request, &call->info);
}

static void run_alloc(struct call *call) {
    struct kvl_ticket ticket;
    call->err = kvl_alloc(
        call->client, info.id, KVL_TIER_DEVICE, keys, call->count, false, call->allocated, &ticket);
}

static void run_session(struct call *call) {
    static const uint32_t tokens[] = {1, 2, 3};
    struct kvl_session_info session;
    call->err = kvl_session_open(call->client, "talk", &info.key, &session);
    if (call->err == KVL_OK)
        call->err = kvl_session_append(call->client, "talk", 0, tokens, 3);
}

/* Of the block that was allocated last, and of one whose key alloc did not know: number 2. */
static void run_seal(struct call *call) {
    const uint32_t numbers[] = {ABSENT, 2};
    struct kvl_seal seals[] = {{.lease = call->allocated[CHAIN].lease, .opaque = true},
        {.lease = call->unnamed.lease, .opaque = true}};
    for (uint32_t i = 0; i < 2; i++)
        memcpy(seals[i].opaque_key, &numbers[i], sizeof numbers[i]);
    call->err = kvl_seal(call->client, seals, 2, call->sealed);
}

static void *run(void *arg) {
    struct call *call = arg;
    call->run(call);
    atomic_store(&call->done, true);
    return NULL;
}

static void begin(struct call *call) {
    atomic_store(&call->done, false);
    assert_int_equal(pthread_create(&call->thread, NULL, run, call), 0);
}

static void end(struct call *call) {
    pthread_join(call->thread, NULL);
    assert_int_equal(call->err, KVL_OK);
}

/* Lets those who seek have a turn, until the call is over; the next turn only after a long while,
 * so that a slow machine does not use up those that there are. */
static void end_while_held_up(struct call *call, uint32_t *passes) {
    uint32_t next_ms = 20, pause_ms = 1000;
    for (uint32_t waited_ms = 0; !atomic_load(&call->done); waited_ms++) {
        usleep(1000);
        if (waited_ms < next_ms)
            continue;
        if (++*passes > PASSES)
            fail_msg("the call waits for everything to be loaded");
        large_gate_pass();
        next_ms += pause_ms;
        pause_ms *= 4;
    }
    end(call);
}

static void assert_loading(struct kvl_client *client) {
    struct kvl_store_report report;
    assert_int_equal(kvl_stats(client, &report, NULL), KVL_OK);
    assert_false(report.loaded);
}

static void wait_loaded(struct kvl_client *client, struct kvl_store_report *report) {
    do
        assert_int_equal(kvl_stats(client, report, NULL), KVL_OK);
    while (!report->loaded);
}

/* ---- tests -------------------------------------------------------------------------------- */

static void test_a_known_chain_is_restored_while_the_table_fills(void **state) {
    (void)state;
    struct kvl_client *client = connect_own("engine"), *other = connect_own("other");
    struct kvl_store_report report;
    struct kvl_progress progress;
    uint32_t passes = 0;
    struct call open = {.run = run_namespace, .client = client};
    struct call look = {.run = run_lookup, .client = client, .count = CHAIN};
    struct call restore = {.run = run_restore, .client = client, .count = CHAIN};
    begin(&open);
    end_while_held_up(&open, &passes);
    assert_int_equal(open.info.id, info.id);
    begin(&look);
    end_while_held_up(&look, &passes);
    assert_int_equal(look.hits, CHAIN);
    begin(&restore); /* all of it is in the table now */
    end_while_held_up(&restore, &passes);
    assert_int_equal(restore.restored.count, CHAIN);
    assert_int_equal(
        kvl_ticket_wait(client, restore.restored.ticket, UINT32_MAX, 60000, &progress), KVL_OK);
    assert_int_equal(progress.status, KVL_OK);
    uint64_t leases[CHAIN];
    for (uint32_t i = 0; i < CHAIN; i++) {
        leases[i] = restore.blocks[i].lease;
        assert_true(has_pattern(
            kvl_client_block(client, KVL_TIER_DEVICE, restore.blocks[i].offset_bytes), i));
    }
    assert_int_equal(kvl_release(client, leases, CHAIN, &restore.restored.ticket, 1), KVL_OK);
    assert_loading(other);
    large_gate_open();
    wait_loaded(other, &report);
    assert_int_equal(report.blocks, LARGE_ROWS + CHAIN);
    assert_int_equal(report.tiers[KVL_TIER_DISK].blocks, LARGE_ROWS + CHAIN);
    assert_int_equal(report.tiers[KVL_TIER_DEVICE].blocks, CHAIN);
    kvl_client_close(client);
    kvl_client_close(other);
}

/* The key behind the chain is nowhere, and the rows around its place say so. */
static void test_where_a_chain_ends_is_told_while_the_table_fills(void **state) {
    (void)state;
    struct kvl_client *client = connect_own("engine");
    struct call look = {.run = run_lookup, .client = client, .count = CHAIN + 1};
    struct call restore = {.run = run_restore, .client = client, .count = CHAIN + 1};
    uint32_t passes = 0;
    begin(&look);
    end_while_held_up(&look, &passes);
    assert_int_equal(look.hits, CHAIN);
    assert_int_equal(look.found[CHAIN], 0);
    begin(&restore);
    end_while_held_up(&restore, &passes);
    assert_int_equal(restore.restored.count, CHAIN);
    assert_loading(client);
    large_gate_open();
    kvl_client_close(client);
}

static void test_nobody_is_told_a_miss_before_it_is_certain(void **state) {
    (void)state;
    struct kvl_client *engine = connect_own("engine"), *writer = connect_own("writer"),
                      *other = connect_own("other");
    struct call look = {.run = run_lookup, .client = engine, .count = CHAIN + 1};
    struct call alloc = {.run = run_alloc, .client = writer, .count = CHAIN + 1};
    memset(keys[CHAIN].bytes, 0xff, sizeof keys[CHAIN].bytes); /* no row is behind it */
    begin(&look);
    begin(&alloc);
    for (int i = 0; i < 40; i++) {
        assert_int_equal(kvl_ping(other, 100), KVL_OK);
        usleep(1000);
        if (i % 20 == 0)
            large_gate_pass();
    }
    assert_loading(other);
    assert_false(atomic_load(&look.done));
    assert_false(atomic_load(&alloc.done));
    large_gate_open();
    end(&look);
    end(&alloc);
    for (uint32_t i = 0; i < CHAIN; i++)
        assert_int_equal(alloc.allocated[i].status, KVL_ALLOC_EXISTS);
    assert_int_equal(alloc.allocated[CHAIN].status, KVL_ALLOC_GRANTED);
    assert_int_equal(look.hits, CHAIN);
    for (uint32_t i = 0; i < CHAIN; i++)
        assert_int_equal(look.found[i], 1u << KVL_TIER_DISK);
    assert_int_equal(look.found[CHAIN], 0);
    kvl_client_close(engine);
    kvl_client_close(writer);
    kvl_client_close(other);
}

/* Lets the disk be polled once, now and then, until the call is over. */
static void end_by_turns(struct call *call) {
    for (uint32_t waits = 0; !atomic_load(&call->done); waits++) {
        usleep(1000);
        if (waits % 20 == 19 && atomic_load(&turns) == 0)
            atomic_store(&turns, 1);
    }
    end(call);
}

static void test_new_blocks_and_sessions_are_taken_once_the_index_was_checked(void **state) {
    (void)state;
    static const struct kvl_key unnamed = {{0}};
    struct kvl_client *client = connect_own("engine"), *other = connect_own("other");
    struct call session = {.run = run_session, .client = client};
    struct call call = {.run = run_alloc, .client = client, .count = CHAIN + 1};
    struct kvl_ticket ticket;
    begin(&session);
    end_by_turns(&session);
    begin(&call);
    end_by_turns(&call);
    for (uint32_t i = 0; i < CHAIN; i++)
        assert_int_equal(call.allocated[i].status, KVL_ALLOC_EXISTS);
    assert_int_equal(call.allocated[CHAIN].status, KVL_ALLOC_GRANTED);
    assert_int_equal(
        kvl_alloc(client, info.id, KVL_TIER_DEVICE, &unnamed, 1, false, &call.unnamed, &ticket),
        KVL_OK);
    const struct kvl_allocated *last = &call.allocated[CHAIN];
    fill_pattern(kvl_client_block_writable(client, KVL_TIER_DEVICE, last->offset_bytes), ABSENT);
    fill_pattern(kvl_client_block_writable(client, KVL_TIER_DEVICE, call.unnamed.offset_bytes), 2);
    call.run = run_seal;
    begin(&call);
    end_by_turns(&call);
    assert_int_equal(call.sealed[0].status, KVL_OK);
    assert_int_equal(call.sealed[1].status, KVL_ERR_EXISTS); /* on disk, and found there */
    assert_loading(other);
    atomic_store(&turns, INT32_MAX);
    struct kvl_store_report report;
    wait_loaded(other, &report);
    assert_int_equal(report.blocks, MORE_ROWS + CHAIN + 1);
    flush_all(client);
    kvl_client_close(client);
    kvl_client_close(other);
    stop();
    start();
    other = connect_own("later");
    uint8_t found[CHAIN + 1];
    uint32_t hits = 0, tokens[4], count = 0;
    assert_int_equal(kvl_lookup(other, keys, CHAIN + 1, found, &hits), KVL_OK);
    assert_int_equal(hits, CHAIN + 1);
    assert_int_equal(kvl_session_read(other, "talk", 0, 4, tokens, &count, NULL), KVL_OK);
    assert_int_equal(count, 3);
    kvl_client_close(other);
}

static struct filling {
    struct kvl_allocated slots[SLOTS];
    struct kvl_seal seals[SLOTS];
    struct kvl_sealed sealed[SLOTS];
    struct kvl_key keys[SLOTS];
    uint64_t leases[SLOTS];
    uint32_t count;
} filling;

static void run_fill(struct call *call) {
    call->err = kvl_seal(call->client, filling.seals, filling.count, filling.sealed);
}

static uint32_t allocate_unnamed(
    struct kvl_client *client, struct kvl_allocated *slots, uint32_t count) {
    static const struct kvl_key unnamed[SLOTS];
    struct kvl_ticket ticket;
    uint32_t granted = 0;
    assert_int_equal(
        kvl_alloc(client, info.id, KVL_TIER_DEVICE, unnamed, count, false, slots, &ticket), KVL_OK);
    while (granted < count && slots[granted].status == KVL_ALLOC_GRANTED)
        granted++;
    return granted;
}

/* Every slot of the device has a new block that nobody leases, and none of them is on disk. */
static void fill_device(struct kvl_client *client) {
    struct call seal = {.run = run_fill, .client = client};
    filling.count = allocate_unnamed(client, filling.slots, SLOTS);
    for (uint32_t i = 0; i < filling.count; i++) {
        const uint32_t number = 1000 + i;
        fill_pattern(
            kvl_client_block_writable(client, KVL_TIER_DEVICE, filling.slots[i].offset_bytes),
            number);
        filling.leases[i] = filling.slots[i].lease;
        filling.seals[i] = (struct kvl_seal){.lease = filling.leases[i], .opaque = true};
        memcpy(filling.seals[i].opaque_key, &number, sizeof number);
        filling.keys[i] = opaque_key(&info, number);
    }
    begin(&seal);
    end_by_turns(&seal);
    for (uint32_t i = 0; i < filling.count; i++)
        assert_int_equal(filling.sealed[i].status, KVL_OK);
    for (uint32_t i = 0; i < filling.count; i++)
        assert_true(wait_visible(client, &filling.keys[i], 1));
    assert_int_equal(kvl_release(client, filling.leases, filling.count, NULL, 0), KVL_OK);
}

/* As long as loading goes on nothing can be stored: that is no disk that hangs. */
static void test_new_blocks_are_not_given_up_while_the_table_fills(void **state) {
    (void)state;
    struct kvl_client *client = connect_own("engine");
    struct call session = {.run = run_session, .client = client};
    struct kvl_allocated more;
    struct kvl_store_report report;
    begin(&session);
    end_by_turns(&session);
    fill_device(client);
    atomic_fetch_add(&clock_ahead_ns, UINT64_C(2000000000));
    atomic_store(&turns, 1);
    while (atomic_load(&turns) > 0)
        usleep(1000);
    assert_loading(client);
    assert_int_equal(allocate_unnamed(client, &more, 1), 0);
    atomic_store(&turns, INT32_MAX);
    wait_loaded(client, &report);
    flush_all(client);
    assert_int_equal(allocate_unnamed(client, &more, 1), 1);
    assert_int_equal(kvl_stats(client, &report, NULL), KVL_OK);
    assert_int_equal(report.shed_blocks, 0);
    assert_int_equal(report.blocks, MORE_ROWS + CHAIN + filling.count);
    kvl_client_close(client);
}

/* Its request is given up, and what it had asked for comes back to nobody. */
static void test_a_client_may_leave_while_its_keys_are_sought(void **state) {
    (void)state;
    struct kvl_client *other = connect_own("other");
    memset(keys[CHAIN].bytes, 0xff, sizeof keys[CHAIN].bytes);
    for (uint32_t i = 0; i < 3; i++) {
        struct kvl_client *client = connect_own("hasty");
        kvl_client_set_timeout(client, 30);
        uint32_t hits;
        uint8_t found[CHAIN + 1];
        assert_int_not_equal(kvl_lookup(client, keys, CHAIN + 1, found, &hits), KVL_OK);
        kvl_client_close(client);
    }
    assert_loading(other);
    struct kvl_store_report report;
    large_gate_open();
    wait_loaded(other, &report);
    assert_int_equal(report.blocks, LARGE_ROWS + CHAIN);
    kvl_client_close(other);
}

#define LOADING(test) cmocka_unit_test_setup_teardown(test, make_folder, remove_folder)

int main(void) {
    const struct CMUnitTest tests[] = {
        LOADING(test_a_known_chain_is_restored_while_the_table_fills),
        LOADING(test_where_a_chain_ends_is_told_while_the_table_fills),
        LOADING(test_nobody_is_told_a_miss_before_it_is_certain),
        cmocka_unit_test_setup_teardown(
            test_new_blocks_and_sessions_are_taken_once_the_index_was_checked, make_larger_folder,
            remove_folder),
        cmocka_unit_test_setup_teardown(test_new_blocks_are_not_given_up_while_the_table_fills,
            make_larger_folder, remove_folder),
        LOADING(test_a_client_may_leave_while_its_keys_are_sought),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
