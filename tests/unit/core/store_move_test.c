/* store_move_test.c - the store over real memory tiers: eviction, sharing, clear, and what it says
 * of itself. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "decorators/fault.h"
#include "store_fixture.h"

static void children_leave_before_their_parents(void **state) {
    (void)state;
    fixture_near_only();
    struct fixture f;
    fixture_open(&f, &(struct fixture_options){.device_blocks = 16});
    uint8_t found[16];
    fixture_store_chain(&f, f.a, 1, 8);
    fixture_store_chain(&f, f.a, 100000, 13);
    uint32_t left = fixture_lookup(&f, 1, 8, found);
    assert_true(left < 8);
    assert_int_equal(fixture_lookup(&f, 100000, 13, found), 13); /* used later: whole */
    assert_int_equal(fixture_report(&f).blocks, left + 13);      /* no orphaned children */
    assert_int_equal(fixture_report(&f).ghost_blocks, 0);
    fixture_close(&f);
}

static void demotion_and_promotion_keep_every_byte(void **state) {
    (void)state;
    struct fixture f;
    fixture_open(&f, &(struct fixture_options){.device_blocks = 16, .host_blocks = 64});
    uint8_t found[12];
    for (uint32_t chain = 0; chain < 4; chain++)
        fixture_store_chain(&f, f.a, 1 + 100000 * chain, 8);
    fixture_settle(&f);
    assert_int_equal(fixture_lookup(&f, 1, 8, found), 8); /* 32 blocks, 16 slots: none lost */
    assert_int_equal(found[7], 1 << KVL_TIER_HOST);
    assert_int_equal(fixture_report(&f).blocks, 32);
    for (uint32_t round = 0; round < 3; round++)
        for (uint32_t chain = 0; chain < 4; chain++) {
            assert_int_equal(
                fixture_check_chain(&f, f.b, 1 + 100000 * chain, 8, KVL_TIER_DEVICE), 8);
            fixture_settle(&f);
        }
    assert_int_equal(fixture_check_chain(&f, f.b, 1, 8, KVL_TIER_HOST), 8);
    struct kvl_store_report report = fixture_report(&f);
    assert_true(report.tiers[KVL_TIER_HOST].hits > 0);
    assert_int_equal(report.hash_mismatches, 0);
    fixture_close(&f);
}

static void two_restores_share_one_transfer(void **state) {
    (void)state;
    struct fixture f;
    fixture_open(&f, &(struct fixture_options){.device_blocks = 16, .host_blocks = 64});
    fixture_store_chain(&f, f.a, 1, 4);
    fixture_store_chain(&f, f.a, 100000, 16);
    fixture_settle(&f);
    uint8_t found[4];
    assert_int_equal(fixture_lookup(&f, 1, 4, found), 4);
    assert_int_equal(found[3], 1 << KVL_TIER_HOST);
    uint64_t before = fixture_report(&f).tiers[KVL_TIER_DEVICE].written_bytes;
    struct kvl_restored one[4], two[4];
    struct kvl_restore_reply first = fixture_restore(&f, f.a, KVL_TIER_DEVICE, 1, 4, one);
    struct kvl_restore_reply second = fixture_restore(&f, f.b, KVL_TIER_DEVICE, 1, 4, two);
    assert_int_equal(first.count, 4);
    assert_int_equal(second.count, 4);
    assert_int_equal(one[3].offset_bytes, two[3].offset_bytes);
    assert_int_equal(one[3].found_tier, KVL_TIER_HOST);
    assert_int_equal(fixture_wait(&f, first.ticket), KVL_OK);
    assert_int_equal(fixture_wait(&f, second.ticket), KVL_OK);
    struct kvl_completion *word = kvl_ticket_word(kvl_store_tickets(f.store), second.ticket);
    assert_int_equal(word->blocks_ready, 4);
    uint64_t moved = fixture_report(&f).tiers[KVL_TIER_DEVICE].written_bytes - before;
    assert_true(moved <= 4 * BLOCK_BYTES);
    fixture_close(&f);
}

static void a_client_that_dies_during_its_restore_leaves_resident_blocks(void **state) {
    (void)state;
    struct fixture f;
    fixture_open(&f, &(struct fixture_options){.device_blocks = 16, .host_blocks = 64});
    fixture_store_chain(&f, f.b, 1, 4);
    fixture_store_chain(&f, f.b, 100000, 16);
    fixture_settle(&f);
    struct kvl_restored blocks[4];
    (void)fixture_restore(&f, f.a, KVL_TIER_DEVICE, 1, 4, blocks);
    kvl_store_client_close(f.store, f.a);
    fixture_settle(&f);
    assert_int_equal(fixture_report(&f).leases, 0);
    assert_int_equal(fixture_check_chain(&f, f.b, 1, 4, KVL_TIER_DEVICE), 4);
    fixture_close(&f);
}

static void a_cleared_block_is_gone_but_its_reader_keeps_it(void **state) {
    (void)state;
    struct fixture f;
    fixture_open(&f, &(struct fixture_options){.device_blocks = 16});
    struct kvl_restored blocks[3];
    struct kvl_key keys[3];
    struct kvl_ticket ticket;
    uint8_t found[3];
    fixture_store_chain(&f, f.a, 1, 3);
    fixture_keys(&f, 1, 3, keys);
    (void)fixture_restore(&f, f.a, KVL_TIER_DEVICE, 1, 3, blocks);
    struct kvl_clear_request clear = {.client = f.b, .scope = KVL_CLEAR_ALL};
    assert_int_equal(kvl_store_clear(f.store, &clear, &ticket), KVL_OK);
    assert_int_equal(fixture_lookup(&f, 1, 3, found), 0);
    assert_int_equal(fixture_wait(&f, ticket), KVL_OK);
    assert_int_equal(kvl_ticket_word(kvl_store_tickets(f.store), ticket)->values[0], 3);
    /* The key may be sealed anew, in another slot, while the old one is still read. */
    fixture_store_chain(&f, f.b, 1, 3);
    for (unsigned i = 0; i < 3; i++)
        assert_true(fixture_is_filled(&f, KVL_TIER_DEVICE, blocks[i].offset_bytes, &keys[i]));
    assert_int_equal(fixture_report(&f).tiers[KVL_TIER_DEVICE].used_bytes, 6 * BLOCK_BYTES);
    fixture_release(&f, f.a, blocks, 3);
    assert_int_equal(fixture_report(&f).tiers[KVL_TIER_DEVICE].used_bytes, 3 * BLOCK_BYTES);
    assert_int_equal(fixture_report(&f).ghost_blocks, 0);
    assert_int_equal(fixture_check_chain(&f, f.b, 1, 3, KVL_TIER_DEVICE), 3);
    fixture_close(&f);
}

static void a_namespace_is_cleared_alone(void **state) {
    (void)state;
    struct fixture f;
    fixture_open(&f, &(struct fixture_options){.device_blocks = 16});
    uint8_t found[2];
    struct kvl_ticket ticket;
    struct kvl_namespace_request request = {.block_bytes = 5000};
    struct kvl_namespace_info opaque;
    struct kvl_key none = {{0}}, key;
    assert_int_equal(
        kvl_key_of_opaque_namespace("mine", 5000, (struct kvl_bytes){0}, &request.key), KVL_OK);
    assert_int_equal(
        kvl_store_namespace_open(f.store, KVL_TENANT_DEFAULT, &request, &opaque), KVL_OK);
    struct kvl_alloc_request alloc = {.client = f.a,
        .namespace_id = opaque.id,
        .target = KVL_TIER_DEVICE,
        .keys = &none,
        .count = 1};
    struct kvl_allocated block;
    assert_int_equal(kvl_store_alloc(f.store, &alloc, &block, &ticket), KVL_OK);
    struct kvl_seal_request seal = {
        .client = f.a, .lease = block.lease, .opaque = true, .opaque_key = {1, 2, 3}};
    assert_int_equal(kvl_store_seal(f.store, &seal, &key), KVL_OK);
    fixture_store_chain(&f, f.a, 1, 2);
    struct kvl_clear_request clear = {
        .client = f.b, .scope = KVL_CLEAR_NAMESPACE, .namespace_id = f.ns.id};
    assert_int_equal(kvl_store_clear(f.store, &clear, &ticket), KVL_OK);
    assert_int_equal(fixture_lookup(&f, 1, 2, found), 0);
    assert_int_equal(kvl_store_lookup(f.store, &key, 1, found), 1);
    request.block_bytes = 6000; /* same key, another shape */
    assert_int_equal(
        kvl_store_namespace_open(f.store, KVL_TENANT_DEFAULT, &request, &opaque), KVL_ERR_INVALID);
    fixture_close(&f);
}

static void verify_reads_everything(void **state) {
    (void)state;
    struct fixture f;
    fixture_open(&f, &(struct fixture_options){.device_blocks = 16, .host_blocks = 32});
    struct kvl_ticket ticket;
    struct kvl_restored blocks[10];
    uint8_t found[10];
    fixture_store_chain(&f, f.a, 1, 10);
    assert_int_equal(kvl_store_verify(f.store, f.a, &ticket), KVL_OK);
    assert_int_equal(fixture_wait(&f, ticket), KVL_OK);
    struct kvl_completion *word = kvl_ticket_word(kvl_store_tickets(f.store), ticket);
    assert_int_equal(word->values[0], 10);
    assert_int_equal(word->values[1], 0);
    kvl_store_release(f.store, f.a, NULL, 0, &ticket, 1);
    assert_int_equal(fixture_restore(&f, f.a, KVL_TIER_DEVICE, 1, 10, blocks).count, 10);
    fixture_settle(&f); /* nobody reads it now */
    fixture_address(&f, KVL_TIER_DEVICE, blocks[9].offset_bytes)[100] ^= 1;
    fixture_release(&f, f.a, blocks, 10);
    assert_int_equal(kvl_store_verify(f.store, f.a, &ticket), KVL_OK);
    assert_int_equal(fixture_wait(&f, ticket), KVL_OK);
    word = kvl_ticket_word(kvl_store_tickets(f.store), ticket);
    assert_int_equal(word->values[1], 1);
    /* The host's copy is good: the block stays, and comes back from there. */
    assert_int_equal(fixture_lookup(&f, 1, 10, found), 10);
    assert_int_equal(found[9], 1u << KVL_TIER_HOST);
    assert_int_equal(fixture_check_chain(&f, f.a, 1, 10, KVL_TIER_DEVICE), 10);
    fixture_close(&f);
}

static void events_tell_what_happened_and_what_was_missed(void **state) {
    (void)state;
    struct fixture f;
    fixture_open(&f, &(struct fixture_options){.device_blocks = 16});
    struct kvl_event events[8];
    uint64_t oldest = 0;
    fixture_store_chain(&f, f.a, 1, 3);
    assert_int_equal(kvl_store_events(f.store, KVL_TENANT_ALL, 0, 8, events, &oldest), 3);
    assert_int_equal(oldest, 1);
    assert_int_equal(events[2].kind, KVL_EVENT_STORED);
    assert_int_equal(events[2].sequence, 3);
    assert_int_equal(kvl_store_events(f.store, KVL_TENANT_ALL, 2, 8, events, &oldest), 1);
    assert_int_equal(kvl_store_events(f.store, KVL_TENANT_ALL, 3, 8, events, &oldest), 0);
    /* Small blocks, one after the other, until the ring has forgotten the first events. */
    struct kvl_namespace_request request = {.block_bytes = 4096};
    struct kvl_namespace_info small;
    assert_int_equal(
        kvl_key_of_opaque_namespace("small", 4096, (struct kvl_bytes){0}, &request.key), KVL_OK);
    assert_int_equal(
        kvl_store_namespace_open(f.store, KVL_TENANT_DEFAULT, &request, &small), KVL_OK);
    for (uint32_t i = 0; i < 9000; i++) {
        struct kvl_key none = {{0}}, key;
        struct kvl_ticket ticket;
        struct kvl_allocated block;
        struct kvl_alloc_request alloc = {.client = f.a,
            .namespace_id = small.id,
            .target = KVL_TIER_DEVICE,
            .keys = &none,
            .count = 1};
        assert_int_equal(kvl_store_alloc(f.store, &alloc, &block, &ticket), KVL_OK);
        struct kvl_seal_request seal = {.client = f.a, .lease = block.lease, .opaque = true};
        memcpy(seal.opaque_key, &i, sizeof(i));
        assert_int_equal(kvl_store_seal(f.store, &seal, &key), KVL_OK);
        kvl_store_release(f.store, f.a, &block.lease, 1, NULL, 0);
        if (i % 256 == 0)
            fixture_settle(&f);
    }
    fixture_settle(&f);
    uint32_t count = kvl_store_events(f.store, KVL_TENANT_ALL, 3, 8, events, &oldest);
    assert_int_equal(count, 8);
    assert_true(oldest > 4); /* a gap */
    assert_int_equal(events[0].sequence, oldest);
    assert_int_equal(events[7].sequence, oldest + 7);
    fixture_close(&f);
}

static void memory_not_touched_yet_is_asked_for_again(void **state) {
    (void)state;
    struct fixture f;
    static const struct kvl_fault_rule untouched[] = {
        {.kind = KVL_FAULT_AGAIN, .ops = KVL_FAULT_ALLOC, .nth = 3}};
    fixture_open(&f,
        &(struct fixture_options){.device_blocks = 16, .host_blocks = 32, .fault_device = true});
    fixture_store_chain(&f, f.a, 1, 4);
    fixture_store_chain(&f, f.a, 100000, 16);
    fixture_settle(&f);
    struct kvl_key keys[4];
    struct kvl_restored restored[4];
    struct kvl_restore_reply reply;
    struct kvl_allocated blocks[4];
    struct kvl_ticket ticket;
    uint64_t used = fixture_report(&f).tiers[KVL_TIER_DEVICE].used_bytes;
    fixture_keys(&f, 1, 4, keys);
    struct kvl_restore_request request = {
        .client = f.b, .target = KVL_TIER_DEVICE, .keys = keys, .count = 4};
    assert_int_equal(kvl_fault_tier_set_rules(f.device, untouched, 1), KVL_OK);
    assert_int_equal(kvl_store_restore(f.store, &request, restored, &reply), KVL_ERR_AGAIN);
    assert_int_equal(fixture_report(&f).leases, 0);
    assert_true(fixture_report(&f).tiers[KVL_TIER_DEVICE].used_bytes <= used);
    assert_int_equal(fixture_check_chain(&f, f.b, 1, 4, KVL_TIER_DEVICE), 4);
    fixture_keys(&f, 500000, 4, keys);
    struct kvl_alloc_request alloc = {.client = f.b,
        .namespace_id = f.ns.id,
        .target = KVL_TIER_DEVICE,
        .keys = keys,
        .count = 4};
    assert_int_equal(kvl_fault_tier_set_rules(f.device, untouched, 1), KVL_OK);
    assert_int_equal(kvl_store_alloc(f.store, &alloc, blocks, &ticket), KVL_ERR_AGAIN);
    assert_int_equal(fixture_report(&f).leases, 0);
    assert_int_equal(kvl_store_alloc(f.store, &alloc, blocks, &ticket), KVL_OK);
    assert_int_equal(blocks[3].status, KVL_ALLOC_GRANTED);
    fixture_close(&f);
}

static void list_pages_through_all_blocks_once(void **state) {
    (void)state;
    struct fixture f;
    fixture_open(&f, &(struct fixture_options){.device_blocks = 32});
    struct kvl_block_report page[3];
    struct kvl_key keys[10];
    bool seen[10] = {false};
    uint64_t cursor = 0;
    uint32_t listed, total = 0;
    fixture_store_chain(&f, f.a, 1, 10);
    fixture_keys(&f, 1, 10, keys);
    while ((listed = kvl_store_list(f.store, KVL_TENANT_ALL, &cursor, 3, page)) > 0)
        for (uint32_t i = 0; i < listed; i++, total++)
            for (uint32_t k = 0; k < 10; k++)
                if (kvl_key_equal(&page[i].key, &keys[k])) {
                    assert_false(seen[k]);
                    seen[k] = true;
                    assert_true(kvl_key_equal(&page[i].parent, k == 0 ? &f.ns.key : &keys[k - 1]));
                }
    assert_int_equal(total, 10);
    fixture_close(&f);
}

static void a_child_sealed_before_its_parent_is_linked(void **state) {
    (void)state;
    struct fixture f;
    fixture_open(&f, &(struct fixture_options){.device_blocks = 16});
    struct kvl_key none = {{0}};
    uint8_t found[2];
    struct kvl_allocated child = fixture_alloc(&f, f.a, &none, NULL);
    struct kvl_allocated parent = fixture_alloc(&f, f.a, &none, NULL);
    assert_int_equal(fixture_seal(&f, f.a, child.lease, child.offset_bytes, 1, 1), KVL_OK);
    fixture_settle(&f);
    assert_int_equal(fixture_report(&f).ghost_blocks, 1);
    assert_int_equal(fixture_lookup(&f, 1, 2, found), 0);
    assert_int_equal(fixture_seal(&f, f.a, parent.lease, parent.offset_bytes, 1, 0), KVL_OK);
    fixture_settle(&f);
    assert_int_equal(fixture_report(&f).ghost_blocks, 0);
    assert_int_equal(fixture_check_chain(&f, f.b, 1, 2, KVL_TIER_DEVICE), 2);
    fixture_close(&f);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(children_leave_before_their_parents),
        cmocka_unit_test(demotion_and_promotion_keep_every_byte),
        cmocka_unit_test(two_restores_share_one_transfer),
        cmocka_unit_test(a_client_that_dies_during_its_restore_leaves_resident_blocks),
        cmocka_unit_test(a_cleared_block_is_gone_but_its_reader_keeps_it),
        cmocka_unit_test(a_namespace_is_cleared_alone),
        cmocka_unit_test(verify_reads_everything),
        cmocka_unit_test(events_tell_what_happened_and_what_was_missed),
        cmocka_unit_test(memory_not_touched_yet_is_asked_for_again),
        cmocka_unit_test(list_pages_through_all_blocks_once),
        cmocka_unit_test(a_child_sealed_before_its_parent_is_linked),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
