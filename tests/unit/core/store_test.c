/* store_test.c - the store over real memory tiers: seals and leases. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "store_fixture.h"

static void sealed_blocks_are_found_and_read_in_place(void **state) {
    (void)state;
    fixture_near_only();
    struct fixture f;
    fixture_open(&f, &(struct fixture_options){.device_blocks = 32});
    uint8_t found[5];
    fixture_store_chain(&f, f.a, 1000, 4);
    assert_int_equal(fixture_lookup(&f, 1000, 5, found), 4);
    assert_int_equal(found[0], 1 << KVL_TIER_DEVICE);
    assert_int_equal(found[3], 1 << KVL_TIER_DEVICE);
    assert_int_equal(found[4], 0);
    struct kvl_restored blocks[4];
    struct kvl_restore_reply reply = fixture_restore(&f, f.b, KVL_TIER_DEVICE, 1000, 4, blocks);
    assert_int_equal(reply.count, 4);
    assert_int_equal(reply.ticket.generation, 0); /* resident: nothing to wait for */
    assert_false(reply.out_of_space);
    fixture_release(&f, f.b, blocks, 4);
    assert_int_equal(fixture_check_chain(&f, f.b, 1000, 4, KVL_TIER_DEVICE), 4);
    struct kvl_store_report report = fixture_report(&f);
    assert_int_equal(report.blocks, 4);
    assert_int_equal(report.sealed_blocks, 4);
    assert_int_equal(report.leases, 0);
    assert_int_equal(report.tiers[KVL_TIER_DEVICE].hits, 8);
    assert_int_equal(report.tiers[KVL_TIER_DEVICE].used_bytes, 4 * BLOCK_BYTES);
    fixture_close(&f);
}

static void a_block_is_invisible_until_it_was_hashed(void **state) {
    (void)state;
    struct fixture f;
    fixture_open(&f, &(struct fixture_options){.device_blocks = 8});
    struct kvl_key key;
    uint8_t found[1];
    fixture_keys(&f, 5, 1, &key);
    struct kvl_allocated block = fixture_alloc(&f, f.a, &key, NULL);
    assert_int_equal(fixture_lookup(&f, 5, 1, found), 0);
    assert_int_equal(fixture_seal(&f, f.a, block.lease, block.offset_bytes, 5, 0), KVL_OK);
    assert_int_equal(fixture_lookup(&f, 5, 1, found), 0); /* nothing was polled yet */
    assert_int_equal(found[0], 0);
    kvl_store_lookup_each(f.store, &key, 1, found);
    assert_int_equal(found[0], KVL_FOUND_SEALING);
    fixture_settle(&f);
    assert_int_equal(fixture_lookup(&f, 5, 1, found), 1);
    fixture_close(&f);
}

static void wrong_seals_are_refused(void **state) {
    (void)state;
    struct fixture f;
    fixture_open(&f, &(struct fixture_options){.device_blocks = 8});
    struct kvl_key keys[2], key;
    uint32_t tokens[BLOCK_TOKENS + 1] = {0};
    fixture_keys(&f, 5, 2, keys);
    struct kvl_allocated block = fixture_alloc(&f, f.a, &keys[0], NULL);
    struct kvl_seal_request request = {.client = f.a,
        .lease = block.lease,
        .parent = f.ns.key,
        .tokens = tokens,
        .token_count = BLOCK_TOKENS};
    assert_int_equal(kvl_store_seal(f.store, &request, &key), KVL_ERR_INVALID); /* other key */
    request.token_count = BLOCK_TOKENS + 1;
    assert_int_equal(kvl_store_seal(f.store, &request, &key), KVL_ERR_INVALID);
    request.token_count = 0;
    assert_int_equal(kvl_store_seal(f.store, &request, &key), KVL_ERR_INVALID);
    request.client = f.b;
    assert_int_equal(kvl_store_seal(f.store, &request, &key), KVL_ERR_NOTFOUND);
    request.client = f.a;
    request.lease ^= 1ull << 32;
    assert_int_equal(kvl_store_seal(f.store, &request, &key), KVL_ERR_NOTFOUND);
    assert_int_equal(fixture_report(&f).refused_seals, 5);
    assert_int_equal(fixture_seal(&f, f.a, block.lease, block.offset_bytes, 5, 0), KVL_OK);
    assert_int_equal(fixture_seal(&f, f.a, block.lease, block.offset_bytes, 5, 0), KVL_ERR_INVALID);
    fixture_close(&f);
}

static void the_second_seal_of_a_key_keeps_its_slot_private(void **state) {
    (void)state;
    struct fixture f;
    fixture_open(&f, &(struct fixture_options){.device_blocks = 8});
    struct kvl_key none = {{0}};
    struct kvl_allocated one = fixture_alloc(&f, f.a, &none, NULL);
    struct kvl_allocated two = fixture_alloc(&f, f.b, &none, NULL);
    assert_int_equal(fixture_seal(&f, f.a, one.lease, one.offset_bytes, 7, 0), KVL_OK);
    assert_int_equal(fixture_seal(&f, f.b, two.lease, two.offset_bytes, 7, 0), KVL_ERR_EXISTS);
    fixture_settle(&f);
    assert_int_equal(fixture_report(&f).blocks, 1);
    kvl_store_release(f.store, f.b, &two.lease, 1, NULL, 0);
    assert_int_equal(fixture_report(&f).tiers[KVL_TIER_DEVICE].used_bytes, BLOCK_BYTES);
    assert_int_equal(fixture_check_chain(&f, f.b, 7, 1, KVL_TIER_DEVICE), 1);
    struct kvl_key key;
    fixture_keys(&f, 7, 1, &key);
    assert_int_equal(fixture_alloc(&f, f.b, &key, NULL).status, KVL_ALLOC_EXISTS);
    fixture_close(&f);
}

static void one_waits_for_the_other_to_seal(void **state) {
    (void)state;
    struct fixture f;
    fixture_open(&f, &(struct fixture_options){.device_blocks = 8});
    struct kvl_key key;
    struct kvl_ticket ticket;
    fixture_keys(&f, 7, 1, &key);
    struct kvl_allocated one = fixture_alloc(&f, f.a, &key, NULL);
    struct kvl_allocated two = fixture_alloc(&f, f.b, &key, &ticket);
    assert_int_equal(two.status, KVL_ALLOC_PENDING);
    fixture_poll_for(&f, 3);
    struct kvl_completion *word = kvl_ticket_word(kvl_store_tickets(f.store), ticket);
    assert_int_equal(word->status, KVL_ERR_PENDING);
    assert_int_equal(fixture_seal(&f, f.a, one.lease, one.offset_bytes, 7, 0), KVL_OK);
    assert_int_equal(fixture_wait(&f, ticket), KVL_OK);
    assert_int_equal(word->values[0], 0);
    assert_int_equal(fixture_check_chain(&f, f.b, 7, 1, KVL_TIER_DEVICE), 1);
    fixture_close(&f);
}

static void a_dead_fillers_key_goes_to_who_waits(void **state) {
    (void)state;
    struct fixture f;
    fixture_open(&f, &(struct fixture_options){.device_blocks = 8});
    struct kvl_key key;
    struct kvl_ticket ticket;
    uint8_t found[1];
    fixture_keys(&f, 7, 1, &key);
    (void)fixture_alloc(&f, f.a, &key, NULL);
    assert_int_equal(fixture_alloc(&f, f.b, &key, &ticket).status, KVL_ALLOC_PENDING);
    kvl_store_client_close(f.store, f.a);
    assert_int_equal(fixture_wait(&f, ticket), KVL_OK);
    struct kvl_completion *word = kvl_ticket_word(kvl_store_tickets(f.store), ticket);
    uint64_t lease = word->values[0], offset = word->values[1];
    assert_true(lease != 0);
    assert_int_equal(fixture_lookup(&f, 7, 1, found), 0); /* nothing of the dead one's */
    assert_int_equal(fixture_seal(&f, f.b, lease, offset, 7, 0), KVL_OK);
    fixture_settle(&f);
    assert_int_equal(fixture_check_chain(&f, f.b, 7, 1, KVL_TIER_DEVICE), 1);
    kvl_store_client_close(f.store, f.b);
    assert_int_equal(fixture_report(&f).leases, 0);
    fixture_close(&f);
}

/* Its connection has ended, its process not: it keeps its leases, and gets no more. */
static void who_leaves_keeps_leases_and_inherits_nothing(void **state) {
    (void)state;
    struct fixture f;
    fixture_open(&f, &(struct fixture_options){.device_blocks = 8});
    struct kvl_key keys[2];
    struct kvl_ticket ticket;
    struct kvl_client_report client;
    fixture_keys(&f, 7, 2, keys);
    (void)fixture_alloc(&f, f.a, &keys[0], NULL);
    assert_int_equal(fixture_alloc(&f, f.b, &keys[1], NULL).status, KVL_ALLOC_GRANTED);
    assert_int_equal(fixture_alloc(&f, f.b, &keys[0], &ticket).status, KVL_ALLOC_PENDING);
    assert_true(kvl_store_client_leave(f.store, f.b));
    assert_true(kvl_store_client_at(f.store, KVL_TENANT_ALL, 1, &client));
    assert_true(client.leaving);
    assert_false(kvl_store_client_leave(f.store, 0)); /* nobody */
    assert_int_equal(fixture_report(&f).leases, 2);
    kvl_store_client_close(f.store, f.a);
    assert_int_equal(fixture_report(&f).leases, 1);
    kvl_store_client_close(f.store, f.b);
    assert_int_equal(fixture_report(&f).leases, 0);
    assert_int_equal(fixture_report(&f).tiers[KVL_TIER_DEVICE].used_bytes, 0);
    fixture_close(&f);
}

static void a_clients_death_returns_everything(void **state) {
    (void)state;
    struct fixture f;
    fixture_open(&f, &(struct fixture_options){.device_blocks = 16, .host_blocks = 16});
    struct kvl_key keys[4];
    struct kvl_ticket ticket;
    struct kvl_restored blocks[3];
    fixture_store_chain(&f, f.b, 50, 3);
    fixture_keys(&f, 9000, 4, keys);
    for (unsigned i = 0; i < 4; i++)
        assert_int_equal(fixture_alloc(&f, f.a, &keys[i], NULL).status, KVL_ALLOC_GRANTED);
    (void)fixture_restore(&f, f.a, KVL_TIER_DEVICE, 50, 3, blocks);
    struct kvl_store_report report = fixture_report(&f);
    assert_int_equal(report.leases, 7);
    assert_int_equal(report.leased_bytes, 7 * BLOCK_BYTES);
    kvl_store_client_close(f.store, f.a);
    fixture_settle(&f);
    report = fixture_report(&f);
    assert_int_equal(report.leases, 0);
    assert_int_equal(report.leased_bytes, 0);
    assert_int_equal(report.clients, 1);
    assert_int_equal(report.ghost_blocks, 0);
    assert_int_equal(report.tiers[KVL_TIER_DEVICE].used_bytes, 3 * BLOCK_BYTES);
    /* Its numbers are void: nothing can be released twice. */
    kvl_store_release(f.store, f.b, &blocks[0].lease, 1, &ticket, 0);
    assert_int_equal(fixture_report(&f).stale_releases, 1);
    fixture_close(&f);
}

static void leases_fill_a_tier_and_alloc_says_so(void **state) {
    (void)state;
    struct fixture f;
    fixture_open(&f, &(struct fixture_options){.device_blocks = 16});
    struct kvl_key keys[40];
    struct kvl_allocated blocks[40];
    struct kvl_ticket ticket;
    fixture_keys(&f, 1, 40, keys);
    struct kvl_alloc_request request = {.client = f.a,
        .namespace_id = f.ns.id,
        .target = KVL_TIER_DEVICE,
        .keys = keys,
        .count = 40};
    assert_int_equal(kvl_store_alloc(f.store, &request, blocks, &ticket), KVL_OK);
    uint32_t granted = 0;
    while (granted < 40 && blocks[granted].status == KVL_ALLOC_GRANTED)
        granted++;
    assert_int_equal(granted, 16);
    for (uint32_t i = granted; i < 40; i++)
        assert_int_equal(blocks[i].status, KVL_ALLOC_NOSPC);
    struct kvl_store_report report = fixture_report(&f);
    assert_true(
        report.tiers[KVL_TIER_DEVICE].used_bytes <= report.tiers[KVL_TIER_DEVICE].capacity_bytes);
    struct kvl_key other;
    fixture_keys(&f, 100000, 1, &other);
    assert_int_equal(fixture_alloc(&f, f.b, &other, NULL).status, KVL_ALLOC_NOSPC);
    kvl_store_release(f.store, f.a, &blocks[3].lease, 1, NULL, 0);
    assert_int_equal(fixture_alloc(&f, f.b, &other, NULL).status, KVL_ALLOC_GRANTED);
    fixture_close(&f);
}

static void one_client_cannot_lease_more_than_its_limit(void **state) {
    (void)state;
    struct fixture f;
    fixture_open(&f,
        &(struct fixture_options){.device_blocks = 16, .client_lease_bytes_max = 3 * BLOCK_BYTES});
    struct kvl_restored blocks[5];
    fixture_store_chain(&f, f.b, 50, 5);
    struct kvl_restore_reply reply = fixture_restore(&f, f.a, KVL_TIER_DEVICE, 50, 5, blocks);
    assert_int_equal(reply.count, 3);
    assert_true(reply.out_of_space);
    struct kvl_key key;
    fixture_keys(&f, 777, 1, &key);
    assert_int_equal(fixture_alloc(&f, f.a, &key, NULL).status, KVL_ALLOC_NOSPC);
    assert_int_equal(fixture_alloc(&f, f.b, &key, NULL).status, KVL_ALLOC_GRANTED);
    fixture_close(&f);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sealed_blocks_are_found_and_read_in_place),
        cmocka_unit_test(a_block_is_invisible_until_it_was_hashed),
        cmocka_unit_test(wrong_seals_are_refused),
        cmocka_unit_test(the_second_seal_of_a_key_keeps_its_slot_private),
        cmocka_unit_test(one_waits_for_the_other_to_seal),
        cmocka_unit_test(a_dead_fillers_key_goes_to_who_waits),
        cmocka_unit_test(who_leaves_keeps_leases_and_inherits_nothing),
        cmocka_unit_test(a_clients_death_returns_everything),
        cmocka_unit_test(leases_fill_a_tier_and_alloc_says_so),
        cmocka_unit_test(one_client_cannot_lease_more_than_its_limit),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
