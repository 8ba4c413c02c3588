/* The whole way through a daemon: names, leases, tickets, sessions, status, asynchronous calls. */
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "harness.h"

static struct test_daemon daemon_a;

static int setup(void **state) {
    (void)state;
    daemon_init(&daemon_a);
    return daemon_start(&daemon_a) ? 0 : -1;
}

static int teardown(void **state) {
    (void)state;
    daemon_remove(&daemon_a);
    return 0;
}

static void test_store_and_restore(void **state) {
    (void)state;
    struct kvl_client *writer = connect_to(&daemon_a, "writer");
    struct kvl_client *reader = connect_to(&daemon_a, "reader");
    struct kvl_namespace_info info = open_opaque(writer);
    assert_int_equal(info.layout.payload_bytes, TEST_BLOCK_BYTES);
    struct kvl_key keys[4];
    uint64_t leases[3];
    for (uint32_t i = 0; i < 4; i++)
        keys[i] = opaque_key(&info, i);
    for (uint32_t i = 0; i < 3; i++)
        leases[i] = store_block(writer, &info, i);
    assert_true(wait_visible(reader, keys, 3));
    uint8_t found[4];
    uint32_t hits;
    assert_int_equal(kvl_lookup(reader, keys, 4, found, &hits), KVL_OK);
    assert_int_equal(hits, 3);
    assert_true(found[2] & 1 << KVL_TIER_DEVICE);
    assert_int_equal(found[3], 0);
    struct kvl_key holed[4] = {keys[3], keys[1], keys[3], keys[2]};
    assert_int_equal(kvl_lookup(reader, holed, 4, found, &hits), KVL_OK);
    assert_int_equal(hits, 0);
    assert_int_equal(found[1], 0);
    assert_int_equal(kvl_lookup_each(reader, holed, 4, found), KVL_OK);
    assert_int_equal(found[0], 0);
    assert_true(found[1] & 1 << KVL_TIER_DEVICE);
    assert_int_equal(found[2], 0);
    assert_true(found[3] & 1 << KVL_TIER_DEVICE);
    struct kvl_restored blocks[4];
    struct kvl_restore_result result;
    assert_int_equal(kvl_restore(reader, KVL_TIER_DEVICE, keys, 4, blocks, &result), KVL_OK);
    assert_int_equal(result.count, 3);
    for (uint32_t i = 0; i < 3; i++) {
        const uint8_t *data = kvl_client_block(reader, KVL_TIER_DEVICE, blocks[i].offset_bytes);
        assert_true(has_pattern(data, i));
        assert_int_equal(blocks[i].found_tier, KVL_TIER_DEVICE);
        assert_int_equal(kvl_release(reader, &blocks[i].lease, 1, &result.ticket, 1), KVL_OK);
    }
    assert_int_equal(kvl_release(writer, leases, 3, NULL, 0), KVL_OK);
    kvl_client_close(writer);
    kvl_client_close(reader);
}

/* Around the caches or not, whatever the lengths and the alignments. */
static void test_copies_are_whole_and_stay_in_bounds(void **state) {
    (void)state;
    enum { ROOM = (128 << 10) + 4096 };
    static const uint32_t lengths[] = {0, 1, 100, 65535, 65536, 65537, 65536 + 4095, 128 << 10};
    static uint8_t from[ROOM], to[ROOM], wanted[ROOM];
    for (uint32_t i = 0; i < ROOM; i++)
        from[i] = (uint8_t)(i * 7 + (i >> 8));
    for (uint32_t i = 0; i < sizeof lengths / sizeof lengths[0]; i++) {
        for (uint32_t shift = 0; shift < 130; shift += 13) {
            memset(to, 0xa5, ROOM);
            memset(wanted, 0xa5, ROOM);
            memcpy(wanted + shift, from + 3 * shift, lengths[i]);
            kvl_copy_block(to + shift, from + 3 * shift, lengths[i]);
            assert_memory_equal(to, wanted, ROOM);
        }
    }
}

static void test_offload_through_the_host_tier(void **state) {
    (void)state;
    struct kvl_client *client = connect_to(&daemon_a, "offload");
    struct kvl_namespace_info info = open_opaque(client);
    struct kvl_key key = opaque_key(&info, 50);
    uint64_t lease = store_block(client, &info, 50);
    assert_int_equal(kvl_release(client, &lease, 1, NULL, 0), KVL_OK);
    assert_true(wait_visible(client, &key, 1));
    struct kvl_restored block;
    struct kvl_restore_result result;
    struct kvl_progress progress;
    assert_int_equal(kvl_restore(client, KVL_TIER_HOST, &key, 1, &block, &result), KVL_OK);
    assert_int_equal(result.count, 1);
    if (result.ticket.generation != 0) { /* none when the daemon had copied it there already */
        assert_int_equal(
            kvl_ticket_wait(client, result.ticket, UINT32_MAX, 5000, &progress), KVL_OK);
        assert_int_equal(progress.status, KVL_OK);
    }
    assert_true(has_pattern(kvl_client_block(client, KVL_TIER_HOST, block.offset_bytes), 50));
    assert_int_equal(kvl_release(client, &block.lease, 1, &result.ticket, 1), KVL_OK);
    kvl_client_close(client);
}

static void test_tickets(void **state) {
    (void)state;
    struct kvl_client *client = connect_to(&daemon_a, "tickets");
    struct kvl_namespace_info info = open_opaque(client);
    struct kvl_key key = opaque_key(&info, 51);
    uint64_t lease = store_block(client, &info, 51);
    struct kvl_ticket ticket;
    struct kvl_progress progress, asked;
    assert_true(wait_visible(client, &key, 1));
    assert_int_equal(kvl_verify(client, &ticket), KVL_OK);
    assert_int_not_equal(ticket.generation, 0);
    assert_int_equal(kvl_ticket_wait(client, ticket, UINT32_MAX, 5000, &progress), KVL_OK);
    assert_int_equal(progress.status, KVL_OK);
    assert_true(progress.values[0] > 0);
    assert_int_equal(progress.values[1], 0);
    assert_int_equal(kvl_ticket_ask(client, ticket, &asked), KVL_OK);
    assert_memory_equal(asked.values, progress.values, sizeof asked.values);
    assert_int_equal(kvl_release(client, &lease, 1, &ticket, 1), KVL_OK);
    assert_int_equal(kvl_ticket_poll(client, ticket, &progress), KVL_ERR_STALE);
    assert_int_equal(kvl_ticket_ask(client, ticket, &asked), KVL_ERR_STALE);
    ticket.number = UINT32_MAX;
    assert_int_equal(kvl_ticket_wait(client, ticket, 1, 5000, &progress), KVL_ERR_STALE);
    kvl_client_close(client);
}

static void test_addresses_outside_an_arena_are_null(void **state) {
    (void)state;
    struct kvl_client *client = connect_to(&daemon_a, "outside");
    uint64_t bytes = kvl_client_arena_bytes(client, KVL_TIER_DEVICE);
    assert_true(bytes >= 8u << 20);
    assert_non_null(kvl_client_block(client, KVL_TIER_DEVICE, bytes - 1));
    assert_null(kvl_client_block(client, KVL_TIER_DEVICE, bytes));
    assert_null(kvl_client_block_writable(client, KVL_TIER_DISK, 0));
    kvl_client_close(client);
}

static void test_only_lookers_may_not_lease(void **state) {
    (void)state;
    struct kvl_client *client = NULL;
    struct kvl_client_options options = {.address = daemon_a.address, .look_only = true};
    assert_int_equal(kvl_client_open(&options, &client, NULL), KVL_OK);
    struct kvl_namespace_info info = open_opaque(client);
    struct kvl_key key = opaque_key(&info, 60);
    struct kvl_allocated block;
    struct kvl_ticket ticket;
    assert_int_equal(kvl_client_arena_bytes(client, KVL_TIER_DEVICE), 0);
    assert_int_equal(
        kvl_alloc(client, info.id, KVL_TIER_DEVICE, &key, 1, false, &block, &ticket), KVL_ERR_PERM);
    kvl_client_close(client);
}

static void test_sessions(void **state) {
    (void)state;
    struct kvl_client *writer = connect_to(&daemon_a, "chat-one");
    struct kvl_client *other = connect_to(&daemon_a, "chat-two");
    struct kvl_namespace_info space = open_opaque(writer);
    struct kvl_session_info info;
    enum { COUNT = 300000 }; /* more than one message holds */
    uint32_t *tokens = malloc(COUNT * sizeof *tokens), *back = malloc(COUNT * sizeof *back);
    assert_true(tokens && back);
    for (uint32_t i = 0; i < COUNT; i++)
        tokens[i] = i * 3;
    assert_int_equal(kvl_session_open(writer, "work", &space.key, &info), KVL_OK);
    assert_int_equal(kvl_session_append(writer, "work", 0, tokens, COUNT), KVL_OK);
    assert_int_equal(kvl_session_open(other, "work", &space.key, &info), KVL_ERR_BUSY);
    assert_string_equal(info.holder_name, "chat-one");
    assert_int_equal(info.holder_pid, getpid());
    assert_int_equal(kvl_session_append(other, "work", 0, tokens, 1), KVL_ERR_PERM);
    uint32_t count = 0;
    assert_int_equal(kvl_session_read(other, "work", 1, COUNT, back, &count, &info), KVL_OK);
    assert_int_equal(count, COUNT - 1);
    assert_memory_equal(back, tokens + 1, (COUNT - 1) * sizeof *tokens);
    assert_int_equal(kvl_session_at(other, 0, &info), KVL_OK);
    assert_string_equal(info.name, "work");
    assert_int_equal(kvl_session_at(other, 1, &info), KVL_ERR_NOTFOUND);
    assert_int_equal(kvl_session_read(other, "none", 0, 1, back, &count, &info), KVL_ERR_NOTFOUND);
    assert_int_equal(kvl_session_open(other, "", &space.key, &info), KVL_ERR_INVALID);
    assert_int_equal(kvl_session_close(writer, "work"), KVL_OK);
    assert_int_equal(kvl_session_drop(other, "work", &info), KVL_OK);
    free(tokens);
    free(back);
    kvl_client_close(writer);
    kvl_client_close(other);
}

static void test_status_and_lists(void **state) {
    (void)state;
    struct kvl_client *client = connect_to(&daemon_a, "status");
    struct kvl_store_report report;
    struct kvl_daemon_info info;
    assert_int_equal(kvl_stats(client, &report, &info), KVL_OK);
    assert_int_equal(info.pid, daemon_a.pid);
    assert_string_equal(info.address, daemon_a.address);
    assert_string_equal(info.device, "cpu");
    assert_int_equal(report.epoch, kvl_client_epoch(client));
    assert_true(report.tiers[KVL_TIER_DEVICE].capacity_bytes != 0);
    assert_int_equal(report.tiers[KVL_TIER_DISK].capacity_bytes, 0);
    struct kvl_client_report self;
    assert_int_equal(kvl_stats_client(client, 0, &self), KVL_OK);
    assert_string_equal(self.name, "status");
    assert_int_equal(kvl_stats_client(client, 1, &self), KVL_ERR_NOTFOUND);
    struct kvl_event events[8];
    uint32_t count;
    uint64_t oldest, cursor = 0;
    assert_int_equal(kvl_events(client, 0, 8, events, &count, &oldest), KVL_OK);
    assert_true(count > 0);
    struct kvl_block_report blocks[64];
    assert_int_equal(kvl_list_blocks(client, &cursor, 64, blocks, &count), KVL_OK);
    assert_true(count >= 3);
    kvl_client_close(client);
}

static void wait_ok(struct kvl_client *client, struct kvl_ticket ticket) {
    struct kvl_progress progress = {.status = KVL_OK};
    if (ticket.generation != 0)
        assert_int_equal(kvl_ticket_wait(client, ticket, UINT32_MAX, 5000, &progress), KVL_OK);
    assert_int_equal(progress.status, KVL_OK);
    assert_int_equal(kvl_release(client, NULL, 0, &ticket, 1), KVL_OK);
}

static void test_blocks_are_moved_pinned_and_cleared(void **state) {
    (void)state;
    struct kvl_client *client = connect_to(&daemon_a, "operator");
    struct kvl_namespace_info info = open_opaque(client);
    struct kvl_key key = opaque_key(&info, 80);
    struct kvl_ticket ticket;
    uint8_t found;
    uint32_t hits, changed;
    uint64_t lease = store_block(client, &info, 80);
    assert_int_equal(kvl_release(client, &lease, 1, NULL, 0), KVL_OK);
    assert_true(wait_visible(client, &key, 1));
    assert_int_equal(kvl_pin(client, &key, 1, true, &changed), KVL_OK);
    assert_int_equal(changed, 1);
    assert_int_equal(kvl_pin(client, &key, 1, false, &changed), KVL_OK);
    assert_int_equal(kvl_demote(client, KVL_TIER_HOST, &key, 1, &ticket), KVL_OK);
    wait_ok(client, ticket);
    assert_int_equal(kvl_lookup(client, &key, 1, &found, &hits), KVL_OK);
    assert_int_equal(found, 1 << KVL_TIER_HOST);
    assert_int_equal(kvl_prefetch(client, KVL_TIER_DEVICE, &key, 1, &ticket), KVL_OK);
    wait_ok(client, ticket);
    assert_int_equal(kvl_lookup(client, &key, 1, &found, &hits), KVL_OK);
    assert_true(found & 1 << KVL_TIER_DEVICE);
    assert_int_equal(kvl_demote(client, KVL_TIER_DEVICE, &key, 1, &ticket), KVL_ERR_INVALID);
    assert_int_equal(kvl_clear(client, KVL_CLEAR_ALL, 0, NULL, &ticket), KVL_OK);
    wait_ok(client, ticket);
    assert_int_equal(kvl_lookup(client, &key, 1, &found, &hits), KVL_OK);
    assert_int_equal(hits, 0);
    kvl_client_close(client);
}

static void test_ping_of_all_sizes(void **state) {
    (void)state;
    struct kvl_client *client = connect_to(&daemon_a, "ping");
    const uint32_t sizes[] = {0, 1, 7, 4096, 65537, 1u << 20, (4u << 20) - 64};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        assert_int_equal(kvl_ping(client, sizes[i]), KVL_OK);
    assert_int_equal(kvl_ping(client, 4u << 20), KVL_ERR_TOOBIG);
    assert_int_equal(kvl_ping(client, 1), KVL_OK); /* the connection still stands */
    kvl_client_close(client);
}

struct counter {
    uint32_t done, failed, nested;
    struct kvl_client *client;
};

static void on_plain(void *arg, kvl_err err) {
    struct counter *counter = arg;
    counter->done++;
    counter->failed += err != KVL_OK;
}

static void on_alloc(void *arg, kvl_err err, const struct kvl_allocated *blocks, uint32_t count,
    struct kvl_ticket ticket) {
    struct counter *counter = arg;
    (void)ticket;
    counter->done++;
    counter->failed += err != KVL_OK || count != 1 || blocks[0].status != KVL_ALLOC_GRANTED;
    if (err == KVL_OK && kvl_release_async(counter->client, &blocks[0].lease, 1, NULL, 0, on_plain,
                             counter) == KVL_OK)
        counter->nested++;
}

static void test_sixty_four_calls_at_once(void **state) {
    (void)state;
    struct kvl_client *client = connect_to(&daemon_a, "async");
    struct kvl_namespace_info info = open_opaque(client);
    struct counter counter = {.client = client};
    kvl_err err = KVL_OK;
    uint32_t accepted = 0;
    while (accepted < 100) {
        struct kvl_key key = opaque_key(&info, 1000 + accepted);
        err = kvl_alloc_async(client, info.id, KVL_TIER_DEVICE, &key, 1, false, on_alloc, &counter);
        if (err != KVL_OK)
            break;
        accepted++;
    }
    assert_int_equal(accepted, 64);
    assert_int_equal(err, KVL_ERR_AGAIN);
    assert_int_equal(counter.done, 0);
    struct pollfd poller = {.fd = kvl_client_fd(client), .events = POLLIN};
    for (int i = 0; i < 1000 && counter.done < 128; i++) {
        assert_int_equal(poll(&poller, 1, 5000), 1); /* the fd alone drives it */
        kvl_client_dispatch(client);
    }
    assert_int_equal(counter.done, 128); /* the allocs and the releases they made */
    assert_int_equal(counter.nested, 64);
    assert_int_equal(counter.failed, 0);
    assert_int_equal(kvl_ping(client, 10), KVL_OK);
    struct kvl_store_report report;
    assert_int_equal(kvl_stats(client, &report, NULL), KVL_OK);
    assert_int_equal(report.leases, 0);
    kvl_client_close(client);
}

static void test_close_ends_pending_calls(void **state) {
    (void)state;
    struct kvl_client *client = connect_to(&daemon_a, "closing");
    struct counter counter = {0};
    for (int i = 0; i < 10; i++)
        assert_int_equal(kvl_release_async(client, NULL, 0, NULL, 0, on_plain, &counter), KVL_OK);
    kvl_client_close(client);
    assert_int_equal(counter.done, 10);
    assert_int_equal(counter.failed, 10);
}

static void test_synchronous_calls_behind_a_full_queue(void **state) {
    (void)state;
    struct kvl_client *client = connect_to(&daemon_a, "full");
    struct counter counter = {0};
    for (int i = 0; i < 64; i++)
        assert_int_equal(kvl_release_async(client, NULL, 0, NULL, 0, on_plain, &counter), KVL_OK);
    assert_int_equal(kvl_ping(client, 100), KVL_OK); /* waits for its turn */
    assert_int_equal(counter.done, 64);
    assert_int_equal(kvl_client_drain(client), KVL_OK);
    kvl_client_close(client);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_store_and_restore),
        cmocka_unit_test(test_copies_are_whole_and_stay_in_bounds),
        cmocka_unit_test(test_offload_through_the_host_tier),
        cmocka_unit_test(test_tickets),
        cmocka_unit_test(test_addresses_outside_an_arena_are_null),
        cmocka_unit_test(test_only_lookers_may_not_lease),
        cmocka_unit_test(test_sessions),
        cmocka_unit_test(test_status_and_lists),
        cmocka_unit_test(test_blocks_are_moved_pinned_and_cleared),
        cmocka_unit_test(test_ping_of_all_sizes),
        cmocka_unit_test(test_sixty_four_calls_at_once),
        cmocka_unit_test(test_close_ends_pending_calls),
        cmocka_unit_test(test_synchronous_calls_behind_a_full_queue),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
