/* The server as a thread of the client's own process, as the embedded engine runs it; and tcp. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "disk/disk_tier.h"
#include "harness.h"
#include "memory/memory_tier.h"
#include "server.h"

struct embedded {
    struct kvl_tier *device;
    struct kvl_store *store;
    struct kvl_server *server;
    pthread_t thread;
};

static void *serve(void *arg) {
    struct embedded *embedded = arg;
    kvl_err err = kvl_server_run(embedded->server);
    return (void *)(intptr_t)err;
}

static void embedded_start(
    struct embedded *embedded, const char *address, const char *secret_file) {
    struct kvl_errmsg msg = {{0}};
    struct kvl_memory_tier_options memory = {.kind = KVL_TIER_DEVICE, .capacity_bytes = 8u << 20};
    *embedded = (struct embedded){0};
    assert_int_equal(kvl_memory_tier_create(&memory, &embedded->device, &msg), KVL_OK);
    struct kvl_store_options store = {.device = embedded->device};
    assert_int_equal(kvl_store_create(&store, &embedded->store, &msg), KVL_OK);
    struct kvl_server_options options = {
        .address = address, .secret_file = secret_file, .store = embedded->store};
    if (kvl_server_create(&options, &embedded->server, &msg) != KVL_OK)
        fail_msg("%s", msg.text);
    assert_int_equal(pthread_create(&embedded->thread, NULL, serve, embedded), 0);
}

static void embedded_stop_with(
    struct embedded *embedded, struct kvl_tier *disk, const struct kvl_tier_ops *disk_ops) {
    void *result = NULL;
    kvl_server_stop(embedded->server);
    pthread_join(embedded->thread, &result);
    assert_ptr_equal(result, (void *)(intptr_t)KVL_OK);
    kvl_server_destroy(embedded->server);
    assert_int_equal(kvl_store_drain(embedded->store, UINT64_MAX), KVL_OK);
    kvl_store_destroy(embedded->store);
    if (disk) {
        disk->ops = disk_ops;
        disk->ops->deinit(disk);
    }
    embedded->device->ops->deinit(embedded->device);
}

static void embedded_stop(struct embedded *embedded) {
    embedded_stop_with(embedded, NULL, NULL);
}

static void wait_leases(struct kvl_client *client, uint64_t leases) {
    struct kvl_store_report report = {.leases = leases + 1};
    for (int i = 0; i < 3000 && report.leases != leases; i++) {
        usleep(i == 0 ? 0 : 10000);
        assert_int_equal(kvl_stats(client, &report, NULL), KVL_OK);
    }
    assert_int_equal(report.leases, leases);
}

static void test_two_clients_in_the_servers_process(void **state) {
    (void)state;
    struct embedded embedded;
    embedded_start(&embedded, own_address(), NULL);
    struct kvl_client *writer = connect_own("writer");
    struct kvl_client *reader = connect_own("reader");
    struct kvl_namespace_info info = open_opaque(writer);
    struct kvl_key key = opaque_key(&info, 7);
    store_block(writer, &info, 7);
    assert_true(wait_visible(reader, &key, 1));
    struct kvl_restored block;
    struct kvl_restore_result result;
    assert_int_equal(kvl_restore(reader, KVL_TIER_DEVICE, &key, 1, &block, &result), KVL_OK);
    assert_int_equal(result.count, 1);
    assert_true(has_pattern(kvl_client_block(reader, KVL_TIER_DEVICE, block.offset_bytes), 7));
    assert_int_equal(kvl_ping(reader, 1u << 20), KVL_OK);
    wait_leases(writer, 2);   /* the writer's own, too */
    kvl_client_close(reader); /* its process lives on */
    wait_leases(writer, 1);
    reader = connect_own("reader");
    assert_int_equal(kvl_client_reconnect(reader, NULL), KVL_OK);
    kvl_client_close(writer);
    wait_leases(reader, 0);
    assert_true(wait_visible(reader, &key, 1));
    kvl_client_close(reader);
    embedded_stop(&embedded);
}

static void test_the_servers_end_is_noticed(void **state) {
    (void)state;
    struct embedded embedded;
    embedded_start(&embedded, own_address(), NULL);
    struct kvl_client *client = connect_own("engine");
    embedded_stop(&embedded);
    assert_false(kvl_client_is_connected(client));
    assert_int_equal(kvl_ping(client, 1), KVL_ERR_CLOSED);
    kvl_client_close(client);
}

struct other_thread {
    struct kvl_client *client;
    struct kvl_ticket ticket;
    kvl_err err;
    struct kvl_progress progress;
};

static void *wait_elsewhere(void *arg) {
    struct other_thread *other = arg;
    other->err = kvl_ticket_wait(other->client, other->ticket, UINT32_MAX, 10000, &other->progress);
    return NULL;
}

static void test_tickets_are_waited_for_on_other_threads(void **state) {
    (void)state;
    struct embedded embedded;
    embedded_start(&embedded, own_address(), NULL);
    struct kvl_client *client = connect_own("engine");
    struct other_thread other = {.client = client};
    struct kvl_namespace_info info = open_opaque(client);
    store_block(client, &info, 1);
    assert_int_equal(kvl_verify(client, &other.ticket), KVL_OK);
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, wait_elsewhere, &other), 0);
    for (int i = 0; i < 100; i++)
        assert_int_equal(kvl_ping(client, 100), KVL_OK);
    pthread_join(thread, NULL);
    assert_int_equal(other.err, KVL_OK);
    assert_int_equal(other.progress.status, KVL_OK);
    kvl_client_close(client);
    embedded_stop(&embedded);
}

/* ---- a store that is still loading ---------------------------------------------------------- */

static _Atomic bool gate_is_open;
static uint32_t (*ungated_poll)(struct kvl_tier *tier);

static uint32_t gated_poll(struct kvl_tier *tier) {
    return atomic_load(&gate_is_open) ? ungated_poll(tier) : 0;
}

struct opener {
    uint32_t done;
    kvl_err first;
};

static void on_first(void *arg, kvl_err err, const struct kvl_allocated *blocks, uint32_t count,
    struct kvl_ticket ticket) {
    struct opener *opener = arg;
    (void)blocks, (void)count, (void)ticket;
    opener->done++;
    opener->first = err;
}

static void test_verbs_about_blocks_wait_until_the_store_is_loaded(void **state) {
    (void)state;
    char directory[] = "/tmp/kvl-load-XXXXXX", command[64];
    assert_non_null(mkdtemp(directory));
    struct kvl_errmsg msg = {{0}};
    struct embedded embedded = {0};
    struct kvl_memory_tier_options memory = {.kind = KVL_TIER_DEVICE, .capacity_bytes = 8u << 20};
    struct kvl_disk_options disk = {.path = directory, .capacity_bytes = 64u << 20};
    struct kvl_store_options store = {0};
    assert_int_equal(kvl_memory_tier_create(&memory, &embedded.device, &msg), KVL_OK);
    if (kvl_disk_tier_create(&disk, &store.disk, &store.catalog, &msg) != KVL_OK)
        fail_msg("%s", msg.text);
    struct kvl_tier_ops gated = *store.disk->ops; /* the real tier, whose news come later */
    const struct kvl_tier_ops *real = store.disk->ops;
    ungated_poll = gated.poll;
    gated.poll = gated_poll;
    store.disk->ops = &gated;
    store.device = embedded.device;
    assert_int_equal(kvl_store_create(&store, &embedded.store, &msg), KVL_OK);
    struct kvl_server_options options = {.address = own_address(), .store = embedded.store};
    assert_int_equal(kvl_server_create(&options, &embedded.server, &msg), KVL_OK);
    assert_int_equal(pthread_create(&embedded.thread, NULL, serve, &embedded), 0);

    struct kvl_client *client = connect_own("engine"); /* hello: at once */
    struct kvl_client *other = connect_own("other");
    struct kvl_store_report report;
    struct opener opener = {0};
    assert_int_equal(kvl_ping(other, 100), KVL_OK);
    assert_int_equal(kvl_stats(other, &report, NULL), KVL_OK);
    assert_false(report.loaded);
    const struct kvl_key key = {{1}};
    assert_int_equal(
        kvl_alloc_async(client, 1, KVL_TIER_DEVICE, &key, 1, false, on_first, &opener), KVL_OK);
    for (int i = 0; i < 20; i++) {
        kvl_client_dispatch(client);
        assert_int_equal(kvl_ping(other, 1), KVL_OK); /* others go on meanwhile */
    }
    assert_int_equal(opener.done, 0);
    atomic_store(&gate_is_open, true);
    assert_int_equal(kvl_client_drain(client), KVL_OK);
    assert_int_equal(opener.done, 1);
    assert_int_equal(opener.first, KVL_ERR_NOTFOUND); /* its namespace */
    kvl_client_close(client);
    kvl_client_close(other);
    embedded_stop_with(&embedded, store.disk, real);
    snprintf(command, sizeof command, "rm -rf %s", directory);
    assert_int_equal(system(command), 0);
}

/* ---- tcp ---------------------------------------------------------------------------------- */

static void write_secret(const char *path, const char *text, mode_t mode) {
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
    assert_int_equal(chmod(path, mode), 0);
}

static kvl_err open_tcp(
    const char *address, const char *secret, struct kvl_client **client, struct kvl_errmsg *msg) {
    struct kvl_client_options options = {
        .address = address, .secret_file = secret, .name = "remote", .timeout_ms = 60000};
    return kvl_client_open(&options, client, msg);
}

static void test_tcp_needs_the_secret_and_may_only_look(void **state) {
    (void)state;
    char right[] = "/tmp/kvl-secret-XXXXXX", wrong[] = "/tmp/kvl-secret-XXXXXX", address[64];
    close(mkstemp(right));
    close(mkstemp(wrong));
    write_secret(right, "a secret of enough bytes", 0600);
    write_secret(wrong, "another secret, long too", 0600);
    snprintf(address, sizeof address, "tcp://127.0.0.1:%d", 20000 + (int)getpid() % 12000);
    struct embedded embedded;
    embedded_start(&embedded, address, right);
    struct kvl_client *client = NULL;
    struct kvl_errmsg msg = {{0}};
    assert_int_equal(open_tcp(address, NULL, &client, &msg), KVL_ERR_INVALID);
    assert_int_equal(open_tcp(address, wrong, &client, &msg), KVL_ERR_PERM);
    chmod(right, 0644);
    assert_int_equal(open_tcp(address, right, &client, &msg), KVL_ERR_PERM);
    chmod(right, 0600);
    if (open_tcp(address, right, &client, &msg) != KVL_OK)
        fail_msg("%s", msg.text);
    assert_int_equal(kvl_ping(client, 100000), KVL_OK);
    assert_int_not_equal(kvl_client_epoch(client), 0);
    struct kvl_namespace_info info = open_opaque(client);
    struct kvl_key key = opaque_key(&info, 1);
    struct kvl_allocated block;
    struct kvl_ticket ticket;
    uint8_t found;
    uint32_t hits;
    assert_int_equal(kvl_lookup(client, &key, 1, &found, &hits), KVL_OK);
    assert_int_equal(
        kvl_alloc(client, info.id, KVL_TIER_DEVICE, &key, 1, false, &block, &ticket), KVL_ERR_PERM);
    kvl_client_close(client);
    embedded_stop(&embedded);
    unlink(right);
    unlink(wrong);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_two_clients_in_the_servers_process),
        cmocka_unit_test(test_the_servers_end_is_noticed),
        cmocka_unit_test(test_tickets_are_waited_for_on_other_threads),
        cmocka_unit_test(test_verbs_about_blocks_wait_until_the_store_is_loaded),
        cmocka_unit_test(test_tcp_needs_the_secret_and_may_only_look),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
