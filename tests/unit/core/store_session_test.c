/* store_session_test.c - who may write a session, and what clearing one takes along. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "store_fixture.h"

static void one_writer_at_a_time(void **state) {
    (void)state;
    struct fixture f;
    struct kvl_session_info info;
    struct kvl_key other = {{1}};
    const uint32_t tokens[] = {1, 2, 3};
    fixture_open(&f, &(struct fixture_options){.device_blocks = 8});
    assert_int_equal(
        kvl_store_session_open(f.store, f.a, "a/b/c", &f.ns.key, &info), KVL_ERR_INVALID);
    assert_int_equal(kvl_store_session_open(f.store, f.a, "s", &f.ns.key, &info), KVL_OK);
    assert_int_equal(info.holder_pid, 11);
    assert_int_equal(kvl_store_session_open(f.store, f.b, "s", &f.ns.key, &info), KVL_ERR_BUSY);
    assert_string_equal(info.holder_name, "a");
    assert_int_equal(kvl_store_session_append(f.store, f.b, "s", 0, tokens, 3), KVL_ERR_PERM);
    assert_int_equal(kvl_store_session_append(f.store, f.a, "s", 0, tokens, 3), KVL_OK);
    assert_int_equal(kvl_store_session_append(f.store, f.a, "s", 4, tokens, 3), KVL_ERR_INVALID);
    assert_int_equal(kvl_store_session_drop(f.store, f.b, "s", &info), KVL_ERR_BUSY);
    kvl_store_client_close(f.store, f.a);
    assert_int_equal(kvl_store_session_open(f.store, f.b, "s", &other, &info), KVL_ERR_INVALID);
    assert_true(kvl_key_equal(&info.namespace_key, &f.ns.key));
    assert_int_equal(kvl_store_session_open(f.store, f.b, "s", &f.ns.key, &info), KVL_OK);
    assert_int_equal(info.token_count, 3);
    assert_int_equal(kvl_store_session_close(f.store, f.b, "s"), KVL_OK);
    assert_int_equal(kvl_store_session_close(f.store, f.b, "s"), KVL_ERR_PERM);
    assert_int_equal(kvl_store_session_drop(f.store, f.b, "s", &info), KVL_OK);
    assert_int_equal(kvl_store_session_drop(f.store, f.b, "s", &info), KVL_ERR_NOTFOUND);
    assert_false(kvl_store_session_at(f.store, KVL_TENANT_ALL, 0, &info));
    fixture_close(&f);
}

static void make_session(
    struct fixture *f, const char *name, uint32_t seed, uint32_t blocks, uint32_t own_blocks) {
    struct kvl_session_info info;
    uint32_t tokens[64 * BLOCK_TOKENS];
    uint32_t count = blocks * BLOCK_TOKENS;
    for (uint32_t i = 0; i < count; i++)
        tokens[i] = seed + i + (i / BLOCK_TOKENS >= blocks - own_blocks ? 500000 : 0);
    assert_int_equal(kvl_store_session_open(f->store, f->a, name, &f->ns.key, &info), KVL_OK);
    assert_int_equal(kvl_store_session_append(f->store, f->a, name, 0, tokens, count), KVL_OK);
}

static void clearing_a_session_spares_what_others_use(void **state) {
    (void)state;
    struct fixture f;
    struct kvl_ticket ticket;
    struct kvl_session_info info;
    uint8_t found[8];
    fixture_open(&f, &(struct fixture_options){.device_blocks = 32});
    fixture_store_chain(&f, f.a, 1, 8);
    make_session(&f, "eight", 1, 8, 0);
    make_session(&f, "forks after three", 1, 6, 3);
    struct kvl_clear_request clear = {.client = f.a, .scope = KVL_CLEAR_SESSION, .name = "eight"};
    assert_int_equal(kvl_store_clear(f.store, &clear, &ticket), KVL_OK);
    assert_int_equal(fixture_wait(&f, ticket), KVL_OK);
    assert_int_equal(kvl_ticket_word(kvl_store_tickets(f.store), ticket)->values[0], 5);
    assert_int_equal(fixture_lookup(&f, 1, 8, found), 3);
    assert_int_equal(
        kvl_store_session_read(f.store, "eight", 0, 0, NULL, NULL, &info), KVL_ERR_NOTFOUND);
    clear.name = "forks after three";
    assert_int_equal(kvl_store_clear(f.store, &clear, &ticket), KVL_OK);
    assert_int_equal(fixture_lookup(&f, 1, 8, found), 0);
    clear.name = "never was";
    assert_int_equal(kvl_store_clear(f.store, &clear, &ticket), KVL_ERR_NOTFOUND);
    fixture_close(&f);
}

/* Seals a first block of fewer than BLOCK_TOKENS tokens. */
static struct kvl_key store_tail(struct fixture *f, const uint32_t *tokens, uint32_t count) {
    struct kvl_key key, sealed;
    struct kvl_allocated block;
    struct kvl_ticket ticket;
    assert_int_equal(
        kvl_key_of_block(&f->ns.key, tokens, count, (struct kvl_bytes){0}, &key), KVL_OK);
    struct kvl_alloc_request request = {.client = f->a,
        .namespace_id = f->ns.id,
        .target = KVL_TIER_DEVICE,
        .keys = &key,
        .count = 1};
    assert_int_equal(kvl_store_alloc(f->store, &request, &block, &ticket), KVL_OK);
    assert_int_equal(block.status, KVL_ALLOC_GRANTED);
    fixture_fill(f, block.offset_bytes, &key);
    struct kvl_seal_request seal = {.client = f->a,
        .lease = block.lease,
        .parent = f->ns.key,
        .tokens = tokens,
        .token_count = count};
    assert_int_equal(kvl_store_seal(f->store, &seal, &sealed), KVL_OK);
    kvl_store_release(f->store, f->a, &block.lease, 1, NULL, 0);
    fixture_settle(f);
    return key;
}

static bool is_there(struct fixture *f, const struct kvl_key *key) {
    uint8_t found[1];
    return kvl_store_lookup(f->store, key, 1, found) == 1;
}

static void a_tail_goes_when_another_takes_its_place(void **state) {
    (void)state;
    struct fixture f;
    const uint32_t tokens[] = {900, 901, 902, 903, 904, 905};
    fixture_open(&f, &(struct fixture_options){.device_blocks = 16});
    make_session(&f, "first", 900, 1, 0);
    make_session(&f, "second", 900, 1, 0);
    struct kvl_key short_tail = store_tail(&f, tokens, 3), long_tail = store_tail(&f, tokens, 6);
    assert_int_equal(kvl_store_session_tail(f.store, f.a, "first", &short_tail, 3), KVL_OK);
    assert_int_equal(kvl_store_session_tail(f.store, f.a, "second", &short_tail, 3), KVL_OK);
    assert_int_equal(kvl_store_session_tail(f.store, f.a, "first", &long_tail, 6), KVL_OK);
    assert_true(is_there(&f, &short_tail)); /* still the second's */
    assert_int_equal(kvl_store_session_tail(f.store, f.a, "second", &long_tail, 6), KVL_OK);
    assert_false(is_there(&f, &short_tail));
    assert_true(is_there(&f, &long_tail));
    fixture_close(&f);
}

static void a_chain_asked_for_again_misses_once(void **state) {
    (void)state;
    struct fixture f;
    struct kvl_key keys[8];
    struct kvl_restored blocks[8];
    struct kvl_restore_reply reply;
    struct kvl_store_report report;
    fixture_open(&f, &(struct fixture_options){.device_blocks = 16});
    fixture_keys(&f, 1, 8, keys);
    for (uint32_t first = 0; first < 8; first += 2) {
        struct kvl_restore_request request = {
            .client = f.a, .target = KVL_TIER_DEVICE, .keys = keys + first, .count = 8 - first};
        assert_int_equal(kvl_store_restore(f.store, &request, blocks, &reply), KVL_OK);
    }
    kvl_store_report(f.store, KVL_TENANT_ALL, &report);
    assert_int_equal(report.tiers[KVL_TIER_DEVICE].misses, 8);
    assert_int_equal(report.tiers[KVL_TIER_DEVICE].hits, 0);
    fixture_close(&f);
}

/* Clients come, do one of everything at random, and die; nothing may be left behind. */
static void thousands_of_calls_leave_nothing_behind(void **state) {
    (void)state;
    struct fixture f;
    uint32_t random = 7;
    fixture_open(&f, &(struct fixture_options){.device_blocks = 24, .host_blocks = 16});
    for (uint32_t round = 0; round < 400; round++) {
        struct kvl_client_info info = {.pid = round, .attached = true, .name = "c"};
        struct kvl_key keys[8];
        struct kvl_allocated blocks[8];
        struct kvl_restored restored[8];
        struct kvl_restore_reply reply;
        struct kvl_ticket ticket;
        uint32_t client = 0;
        random = random * 1664525u + 1013904223u;
        uint32_t seed = 1 + (random >> 12) % 6 * 100000;
        assert_int_equal(kvl_store_client_open(f.store, &info, &client), KVL_OK);
        fixture_keys(&f, seed, 8, keys);
        struct kvl_alloc_request alloc = {.client = client,
            .namespace_id = f.ns.id,
            .target = KVL_TIER_DEVICE,
            .keys = keys,
            .count = 8,
            .wait = true};
        assert_int_equal(kvl_store_alloc(f.store, &alloc, blocks, &ticket), KVL_OK);
        for (uint32_t i = 0; i < 8 && (random >> 8) % 9 > i; i++)
            if (blocks[i].status == KVL_ALLOC_GRANTED)
                assert_int_equal(
                    fixture_seal(&f, client, blocks[i].lease, blocks[i].offset_bytes, seed, i),
                    KVL_OK);
        struct kvl_restore_request request = {
            .client = client, .target = KVL_TIER_DEVICE, .keys = keys, .count = 8};
        kvl_err err;
        while ((err = kvl_store_restore(f.store, &request, restored, &reply)) == KVL_ERR_AGAIN)
            kvl_store_poll(f.store); /* the last block is still being hashed */
        assert_int_equal(err, KVL_OK);
        if (random >> 28 == 0) {
            struct kvl_clear_request clear = {.client = client, .scope = KVL_CLEAR_ALL};
            assert_int_equal(kvl_store_clear(f.store, &clear, &ticket), KVL_OK);
        }
        if (random >> 30 != 0)
            fixture_poll_for(&f, 1);
        kvl_store_client_close(f.store, client);
    }
    fixture_settle(&f);
    struct kvl_store_report report;
    kvl_store_report(f.store, KVL_TENANT_ALL, &report);
    assert_int_equal(report.leases, 0);
    assert_int_equal(report.leased_bytes, 0);
    assert_int_equal(report.hash_mismatches, 0);
    for (unsigned tier = 0; tier < 2; tier++) {
        assert_int_equal(report.tiers[tier].used_bytes, report.tiers[tier].blocks * BLOCK_BYTES);
        assert_int_equal(report.tiers[tier].corrupt_blocks, 0);
    }
    struct kvl_clear_request clear = {.client = f.a, .scope = KVL_CLEAR_ALL};
    struct kvl_ticket ticket;
    assert_int_equal(kvl_store_clear(f.store, &clear, &ticket), KVL_OK);
    assert_int_equal(fixture_wait(&f, ticket), KVL_OK);
    kvl_store_report(f.store, KVL_TENANT_ALL, &report);
    assert_int_equal(report.blocks + report.ghost_blocks, 0);
    assert_int_equal(report.tiers[0].used_bytes + report.tiers[1].used_bytes, 0);
    fixture_close(&f);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_writer_at_a_time),
        cmocka_unit_test(clearing_a_session_spares_what_others_use),
        cmocka_unit_test(a_tail_goes_when_another_takes_its_place),
        cmocka_unit_test(a_chain_asked_for_again_misses_once),
        cmocka_unit_test(thousands_of_calls_leave_nothing_behind),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
