/* store_far_test.c - the store over a device that the CPU cannot address: hashed by its tier, and
 * reached through the host. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "decorators/delay.h"
#include "decorators/far.h"
#include "far_fixture.h"
#include "memory/memory_tier.h"

/* ---- seal --------------------------------------------------------------------------------- */

static void a_far_block_is_visible_once_its_tier_has_hashed_it(void **state) {
    (void)state;
    struct fixture f;
    struct kvl_key key;
    uint8_t found[1];
    static const struct kvl_fault_rule full[] = {
        {.kind = KVL_FAULT_AGAIN, .ops = KVL_FAULT_HASH, .nth = 1},
        {.kind = KVL_FAULT_AGAIN, .ops = KVL_FAULT_HASH, .nth = 2}};
    far_open(
        &f, (struct fixture_options){.device_blocks = 8, .host_blocks = 8, .fault_device = true});
    assert_int_equal(kvl_fault_tier_set_rules(f.device, full, 2), KVL_OK);
    fixture_keys(&f, 5, 1, &key);
    struct kvl_allocated block = fixture_alloc(&f, f.a, &key, NULL);
    assert_int_equal(fixture_seal(&f, f.a, block.lease, block.offset_bytes, 5, 0), KVL_OK);
    assert_int_equal(fixture_lookup(&f, 5, 1, found), 0);
    fixture_settle(&f);
    assert_int_equal(kvl_fault_tier_injected(f.device), 2);
    assert_int_equal(fixture_lookup(&f, 5, 1, found), 1);
    assert_int_equal(fixture_report(&f).sealed_blocks, 1);
    /* The hash is that of the bytes: every copy made from here is compared with it. */
    assert_int_equal(fixture_check_chain(&f, f.b, 5, 1, KVL_TIER_HOST), 1);
    assert_int_equal(fixture_report(&f).hash_mismatches, 0);
    fixture_close(&f);
}

static void a_block_that_cannot_be_hashed_stays_its_engines_own(void **state) {
    (void)state;
    struct fixture f;
    struct kvl_key key;
    struct kvl_ticket ticket;
    uint8_t found[1];
    far_open(
        &f, (struct fixture_options){.device_blocks = 8, .host_blocks = 8, .fault_device = true});
    fixture_keys(&f, 7, 1, &key);
    struct kvl_allocated one = fixture_alloc(&f, f.a, &key, NULL);
    struct kvl_allocated two = fixture_alloc(&f, f.b, &key, &ticket);
    assert_int_equal(two.status, KVL_ALLOC_PENDING);
    far_fail(&f, KVL_FAULT_HASH, KVL_ERR_IO);
    assert_int_equal(fixture_seal(&f, f.a, one.lease, one.offset_bytes, 7, 0), KVL_OK);
    assert_int_equal(fixture_wait(&f, ticket), KVL_OK); /* inherits the key, as from a dead one */
    uint64_t lease = far_word_of(&f, ticket)->values[0],
             offset = far_word_of(&f, ticket)->values[1];
    assert_true(lease != 0 && offset != one.offset_bytes);
    assert_int_equal(fixture_lookup(&f, 7, 1, found), 0);
    struct kvl_store_report report = fixture_report(&f);
    assert_int_equal(report.tiers[KVL_TIER_DEVICE].errors, 1);
    assert_int_equal(report.sealed_blocks, 0);
    assert_int_equal(report.unpersisted_blocks, 0);
    assert_int_equal(report.tiers[KVL_TIER_DEVICE].used_bytes, 2 * BLOCK_BYTES);
    assert_true(fixture_is_filled(&f, KVL_TIER_DEVICE, one.offset_bytes, &key));
    far_mend(&f);
    assert_int_equal(fixture_seal(&f, f.b, lease, offset, 7, 0), KVL_OK);
    fixture_settle(&f);
    assert_int_equal(fixture_check_chain(&f, f.b, 7, 1, KVL_TIER_DEVICE), 1);
    assert_true(fixture_is_filled(&f, KVL_TIER_DEVICE, one.offset_bytes, &key));
    kvl_store_release(f.store, f.a, &one.lease, 1, NULL, 0);
    report = fixture_report(&f);
    assert_int_equal(report.tiers[KVL_TIER_DEVICE].used_bytes, BLOCK_BYTES);
    assert_int_equal(report.ghost_blocks, 0);
    fixture_close(&f);
}

static void a_failed_seal_that_nobody_waits_for_leaves_nothing(void **state) {
    (void)state;
    struct fixture f;
    struct kvl_key keys[2];
    far_open(&f,
        (struct fixture_options){
            .device_blocks = 8, .host_blocks = 8, .disk_path = far_folder, .fault_device = true});
    fixture_keys(&f, 7, 2, keys);
    far_fail(&f, KVL_FAULT_HASH, KVL_ERR_IO);
    for (uint32_t i = 0; i < 2; i++) {
        struct kvl_allocated block = fixture_alloc(&f, f.a, &keys[i], NULL);
        assert_int_equal(fixture_seal(&f, f.a, block.lease, block.offset_bytes, 7, i), KVL_OK);
        kvl_store_release(f.store, f.a, &block.lease, 1, NULL, 0); /* before its hash failed */
    }
    assert_int_equal(fixture_flush(&f), KVL_ERR_IO);
    fixture_settle(&f);
    struct kvl_store_report report = fixture_report(&f);
    assert_int_equal(report.tiers[KVL_TIER_DEVICE].used_bytes, 0);
    assert_int_equal(report.ghost_blocks + report.blocks + report.leases, 0);
    far_mend(&f);
    fixture_store_chain(&f, f.a, 7, 2);
    assert_int_equal(fixture_flush(&f), KVL_OK);
    fixture_close(&f);
}

static void a_block_that_is_cleared_while_it_is_hashed_keeps_its_slot_so_long(void **state) {
    (void)state;
    struct fixture f;
    struct kvl_key key;
    struct kvl_ticket ticket;
    uint8_t found[1];
    const struct kvl_delay_options hold = {.hash_latency_ns = KVL_DELAY_HOLD}, none = {0};
    for (unsigned leased = 0; leased < 2; leased++) {
        far_open(&f,
            (struct fixture_options){.device_blocks = 8, .host_blocks = 8, .delay_device = true});
        fixture_keys(&f, 5, 1, &key);
        kvl_delay_tier_set_latency(f.delay, &hold);
        struct kvl_allocated block = fixture_alloc(&f, f.a, &key, NULL);
        assert_int_equal(fixture_seal(&f, f.a, block.lease, block.offset_bytes, 5, 0), KVL_OK);
        if (!leased)
            kvl_store_release(f.store, f.a, &block.lease, 1, NULL, 0);
        struct kvl_clear_request clear = {.client = f.b, .scope = KVL_CLEAR_ALL};
        assert_int_equal(kvl_store_clear(f.store, &clear, &ticket), KVL_OK);
        fixture_poll_for(&f, 3);
        assert_int_equal(fixture_report(&f).tiers[KVL_TIER_DEVICE].used_bytes, BLOCK_BYTES);
        assert_int_equal(fixture_alloc(&f, f.b, &key, NULL).status, KVL_ALLOC_GRANTED);
        kvl_delay_tier_set_latency(f.delay, &none);
        assert_int_equal(fixture_wait(&f, ticket), KVL_OK);
        fixture_settle(&f);
        assert_int_equal(fixture_lookup(&f, 5, 1, found), 0);
        assert_int_equal(
            fixture_report(&f).tiers[KVL_TIER_DEVICE].used_bytes, (1 + leased) * BLOCK_BYTES);
        kvl_store_client_close(f.store, f.a);
        kvl_store_client_close(f.store, f.b);
        assert_int_equal(fixture_report(&f).tiers[KVL_TIER_DEVICE].used_bytes, 0);
        fixture_close(&f);
    }
}

static void a_store_closes_while_hashes_wait_and_run(void **state) {
    (void)state;
    struct fixture f;
    struct kvl_key keys[4];
    static const struct kvl_fault_rule full = {
        .kind = KVL_FAULT_AGAIN, .ops = KVL_FAULT_HASH, .per_million = 1000000};
    far_open(
        &f, (struct fixture_options){
                .device_blocks = 8, .host_blocks = 8, .fault_device = true, .delay_device = true});
    kvl_delay_tier_set_latency(
        f.delay, &(struct kvl_delay_options){.hash_latency_ns = KVL_DELAY_HOLD});
    fixture_keys(&f, 5, 4, keys);
    for (uint32_t i = 0; i < 4; i++) {
        if (i == 2)
            assert_int_equal(kvl_fault_tier_set_rules(f.device, &full, 1), KVL_OK);
        struct kvl_allocated block = fixture_alloc(&f, f.a, &keys[i], NULL);
        assert_int_equal(fixture_seal(&f, f.a, block.lease, block.offset_bytes, 5, i), KVL_OK);
    }
    fixture_close(&f); /* sanitizers see what is left */
}

/* ---- verify ------------------------------------------------------------------------------- */

static void verify_finds_what_changed_in_far_memory(void **state) {
    (void)state;
    struct fixture f;
    struct kvl_ticket ticket;
    struct kvl_restored blocks[6];
    static const struct kvl_fault_rule some[] = {
        {.kind = KVL_FAULT_AGAIN, .ops = KVL_FAULT_HASH, .nth = 2},
        {.kind = KVL_FAULT_AGAIN, .ops = KVL_FAULT_HASH, .nth = 5}};
    far_open(
        &f, (struct fixture_options){.device_blocks = 16, .host_blocks = 16, .fault_device = true});
    fixture_store_chain(&f, f.a, 1, 6);
    fixture_settle(&f);
    assert_int_equal(fixture_restore(&f, f.a, KVL_TIER_DEVICE, 1, 6, blocks).count, 6);
    fixture_address(&f, KVL_TIER_DEVICE, blocks[5].offset_bytes)[4097] ^= 1;
    fixture_release(&f, f.a, blocks, 6);
    assert_int_equal(kvl_fault_tier_set_rules(f.device, some, 2), KVL_OK);
    assert_int_equal(kvl_store_verify(f.store, f.a, &ticket), KVL_OK);
    assert_int_equal(fixture_wait(&f, ticket), KVL_OK);
    assert_int_equal(far_word_of(&f, ticket)->values[0], 6);
    assert_int_equal(far_word_of(&f, ticket)->values[1], 1);
    assert_int_equal(kvl_fault_tier_injected(f.device), 2);
    uint8_t found[6];
    assert_int_equal(fixture_lookup(&f, 1, 6, found), 6);
    assert_int_equal(found[5], 1u << KVL_TIER_HOST); /* the good copy */
    assert_int_equal(found[0], 1u << KVL_TIER_HOST | 1u << KVL_TIER_DEVICE);
    assert_int_equal(fixture_check_chain(&f, f.a, 1, 6, KVL_TIER_DEVICE), 6);
    fixture_close(&f);
}

static void verify_counts_a_tier_that_cannot_hash(void **state) {
    (void)state;
    struct fixture f;
    struct kvl_ticket ticket;
    uint8_t found[3];
    far_open(
        &f, (struct fixture_options){.device_blocks = 8, .host_blocks = 8, .fault_device = true});
    fixture_store_chain(&f, f.a, 1, 3);
    fixture_settle(&f);
    far_fail(&f, KVL_FAULT_HASH, KVL_ERR_IO);
    assert_int_equal(kvl_store_verify(f.store, f.a, &ticket), KVL_OK);
    assert_int_equal(fixture_wait(&f, ticket), KVL_OK);
    assert_int_equal(far_word_of(&f, ticket)->values[1], 0); /* not read is not bad */
    assert_int_equal(fixture_report(&f).tiers[KVL_TIER_DEVICE].errors, 3);
    assert_int_equal(fixture_lookup(&f, 1, 3, found), 3);
    fixture_close(&f);
}

/* ---- restore ------------------------------------------------------------------------------ */

/* The first frame is there. */
static bool is_half_filled(struct fixture *f, uint64_t offset, const struct kvl_key *key) {
    uint8_t *whole = malloc(BLOCK_BYTES), *at = fixture_address(f, KVL_TIER_DEVICE, offset);
    assert_non_null(whole);
    memcpy(whole, at, BLOCK_BYTES);
    fixture_fill(f, offset, key);
    bool same = memcmp(whole, at, f->ns.layout.frame_bytes) == 0;
    memcpy(at, whole, BLOCK_BYTES);
    free(whole);
    return same;
}

static void layers_are_announced_as_their_frames_land(void **state) {
    (void)state;
    struct fixture f;
    struct kvl_restored blocks[3];
    struct kvl_key keys[3];
    far_open(&f, (struct fixture_options){.device_blocks = 16, .host_blocks = 16});
    fixture_keys(&f, 1, 3, keys);
    fixture_store_chain(&f, f.a, 1, 3);
    fixture_settle(&f);
    fixture_demote(&f, 1, 3, KVL_TIER_HOST);
    for (unsigned round = 0; round < 2; round++) {
        kvl_far_tier_hold(f.far, 1);
        struct kvl_restore_reply reply = fixture_restore(&f, f.b, KVL_TIER_DEVICE, 1, 3, blocks);
        struct kvl_completion *word = far_word_of(&f, reply.ticket);
        assert_int_equal(reply.count, 3);
        assert_int_equal(blocks[0].found_tier, KVL_TIER_HOST);
        fixture_poll_for(&f, 10);
        assert_int_equal(word->status, KVL_ERR_PENDING);
        assert_int_equal(word->layers_ready, 2); /* of every block, in its place */
        assert_int_equal(word->blocks_ready, 0);
        for (uint32_t i = 0; i < 3; i++)
            assert_true(is_half_filled(&f, blocks[i].offset_bytes, &keys[i]));
        kvl_far_tier_hold(f.far, KVL_FAR_ALL_FRAMES);
        assert_int_equal(fixture_wait(&f, reply.ticket), KVL_OK);
        assert_int_equal(word->layers_ready, 4);
        assert_int_equal(word->values[KVL_TIER_HOST], 3 * BLOCK_BYTES);
        fixture_release(&f, f.b, blocks, 3);
        kvl_store_release(f.store, f.b, NULL, 0, &reply.ticket, 1);
        assert_int_equal(fixture_check_chain(&f, f.b, 1, 3, KVL_TIER_DEVICE), 3);
        fixture_demote(&f, 1, 3, KVL_TIER_HOST);
    }
    fixture_close(&f);
}

/* The chain is on disk only, as after a restart. */
static void reopen_with_chain(
    struct fixture *f, struct fixture_options options, uint32_t seed, uint32_t count) {
    options.far_device = true;
    options.disk_path = far_folder;
    fixture_open(f, &options);
    fixture_store_chain(f, f->a, seed, count);
    assert_int_equal(fixture_flush(f), KVL_OK);
    fixture_close(f);
    fixture_open(f, &options);
}

static void a_chain_longer_than_the_host_passes_through_it(void **state) {
    (void)state;
    struct fixture f;
    struct kvl_restored blocks[24];
    uint8_t found[24];
    reopen_with_chain(&f, (struct fixture_options){.device_blocks = 32, .host_blocks = 8}, 1, 24);
    struct kvl_restore_reply reply = fixture_restore(&f, f.a, KVL_TIER_DEVICE, 1, 24, blocks);
    assert_int_equal(reply.count, 24);
    assert_int_equal(fixture_wait(&f, reply.ticket), KVL_OK);
    struct kvl_completion *word = far_word_of(&f, reply.ticket);
    assert_int_equal(word->values[KVL_TIER_DISK], 24 * BLOCK_BYTES); /* where it was */
    assert_int_equal(word->values[KVL_TIER_HOST], 0);
    fixture_release(&f, f.a, blocks, 24);
    assert_int_equal(fixture_check_chain(&f, f.b, 1, 24, KVL_TIER_DEVICE), 24);
    struct kvl_store_report report = fixture_report(&f);
    assert_true(
        report.tiers[KVL_TIER_HOST].used_bytes <= report.tiers[KVL_TIER_HOST].capacity_bytes);
    assert_true(report.tiers[KVL_TIER_HOST].blocks > 0); /* what passed last stays */
    assert_int_equal(fixture_lookup(&f, 1, 24, found), 24);
    fixture_close(&f);
}

static void one_load_serves_who_wants_it_in_host_and_device(void **state) {
    (void)state;
    struct fixture f;
    struct kvl_restored near[8], far[8];
    for (unsigned order = 0; order < 2; order++) {
        reopen_with_chain(
            &f, (struct fixture_options){.device_blocks = 16, .host_blocks = 16}, 1, 8);
        enum kvl_tier_kind first = order == 0 ? KVL_TIER_HOST : KVL_TIER_DEVICE;
        enum kvl_tier_kind second = order == 0 ? KVL_TIER_DEVICE : KVL_TIER_HOST;
        struct kvl_restore_reply one = fixture_restore(&f, f.a, first, 1, 8, near);
        struct kvl_restore_reply two = fixture_restore(&f, f.b, second, 1, 8, far);
        assert_int_equal(fixture_wait(&f, one.ticket), KVL_OK);
        assert_int_equal(fixture_wait(&f, two.ticket), KVL_OK);
        struct kvl_tier_stats stats = f.disk->ops->stats(f.disk);
        assert_int_equal(stats.loads, 8);
        fixture_release(&f, f.a, near, 8);
        fixture_release(&f, f.b, far, 8);
        assert_int_equal(fixture_check_chain(&f, f.b, 1, 8, KVL_TIER_DEVICE), 8);
        assert_int_equal(fixture_check_chain(&f, f.b, 1, 8, KVL_TIER_HOST), 8);
        fixture_close(&f);
        assert_int_equal(far_remove_folder(NULL), 0);
        assert_int_equal(far_make_folder(NULL), 0);
    }
}

static void a_restore_that_is_cleared_on_its_way_ends(void **state) {
    (void)state;
    struct fixture f;
    struct kvl_restored blocks[8];
    struct kvl_ticket ticket;
    reopen_with_chain(&f, (struct fixture_options){.device_blocks = 16, .host_blocks = 8}, 1, 8);
    kvl_far_tier_hold(f.far, 1);
    struct kvl_restore_reply reply = fixture_restore(&f, f.a, KVL_TIER_DEVICE, 1, 8, blocks);
    fixture_poll_for(&f, 5);
    struct kvl_clear_request clear = {.client = f.b, .scope = KVL_CLEAR_ALL};
    assert_int_equal(kvl_store_clear(f.store, &clear, &ticket), KVL_OK);
    kvl_far_tier_hold(f.far, KVL_FAR_ALL_FRAMES);
    (void)fixture_wait(&f, reply.ticket);
    assert_int_equal(fixture_wait(&f, ticket), KVL_OK);
    fixture_release(&f, f.a, blocks, 8);
    fixture_settle(&f);
    struct kvl_store_report report = fixture_report(&f);
    assert_int_equal(report.blocks + report.ghost_blocks + report.leases, 0);
    assert_int_equal(report.tiers[KVL_TIER_DEVICE].used_bytes, 0);
    assert_int_equal(report.tiers[KVL_TIER_HOST].used_bytes, 0);
    fixture_close(&f);
}

static void a_store_closes_in_the_middle_of_a_two_hop_restore(void **state) {
    (void)state;
    struct fixture f;
    struct kvl_restored blocks[16];
    reopen_with_chain(&f, (struct fixture_options){.device_blocks = 32, .host_blocks = 8}, 1, 16);
    kvl_far_tier_hold(f.far, 1);
    (void)fixture_restore(&f, f.a, KVL_TIER_DEVICE, 1, 16, blocks);
    fixture_poll_for(&f, 5);
    fixture_close(&f);
}

/* Fills the host with leases of a client that copies its blocks in by itself. */
static uint32_t fill_host(struct fixture *f, struct kvl_allocated *blocks) {
    struct kvl_key keys[16];
    struct kvl_ticket ticket;
    fixture_keys(f, 700000, 16, keys);
    struct kvl_alloc_request request = {.client = f->b,
        .namespace_id = f->ns.id,
        .target = KVL_TIER_HOST,
        .keys = keys,
        .count = 16};
    assert_int_equal(kvl_store_alloc(f->store, &request, blocks, &ticket), KVL_OK);
    uint32_t granted = 0;
    while (granted < 16 && blocks[granted].status == KVL_ALLOC_GRANTED)
        granted++;
    assert_true(granted > 0 && granted < 16);
    return granted;
}

static void a_host_full_of_leases_ends_a_restore_and_not_the_store(void **state) {
    (void)state;
    struct fixture f;
    struct kvl_restored blocks[4];
    struct kvl_allocated leases[16];
    reopen_with_chain(&f, (struct fixture_options){.device_blocks = 16, .host_blocks = 8}, 1, 4);
    uint32_t held = fill_host(&f, leases);
    struct kvl_restore_reply reply = fixture_restore(&f, f.a, KVL_TIER_DEVICE, 1, 4, blocks);
    assert_int_equal(reply.count, 4);
    assert_int_equal(fixture_wait(&f, reply.ticket), KVL_ERR_IO);
    assert_int_equal(far_word_of(&f, reply.ticket)->blocks_ready, 0);
    fixture_release(&f, f.a, blocks, 4);
    assert_int_equal(fixture_report(&f).tiers[KVL_TIER_DEVICE].used_bytes, 0);
    assert_int_equal(
        fixture_report(&f).tiers[KVL_TIER_DEVICE].errors, 0); /* nothing failed there */
    for (uint32_t i = 0; i < held; i++)
        kvl_store_release(f.store, f.b, &leases[i].lease, 1, NULL, 0);
    assert_int_equal(fixture_check_chain(&f, f.a, 1, 4, KVL_TIER_DEVICE), 4);
    fixture_close(&f);
}

/* ---- persist and demotion ----------------------------------------------------------------- */

static void blocks_wait_for_room_in_the_host_to_become_durable(void **state) {
    (void)state;
    struct fixture f;
    struct kvl_allocated leases[16];
    struct kvl_ticket ticket;
    uint8_t found[12];
    far_open(&f,
        (struct fixture_options){.device_blocks = 32, .host_blocks = 8, .disk_path = far_folder});
    uint32_t held = fill_host(&f, leases);
    fixture_store_chain(&f, f.a, 1, 12);
    assert_int_equal(kvl_store_flush(f.store, f.a, &ticket), KVL_OK);
    fixture_poll_for(&f, 20);
    assert_int_equal(far_word_of(&f, ticket)->status, KVL_ERR_PENDING);
    assert_int_equal(fixture_report(&f).unpersisted_blocks, 12);
    assert_int_equal(fixture_check_chain(&f, f.a, 1, 12, KVL_TIER_DEVICE), 12);
    for (uint32_t i = 0; i < held; i++)
        kvl_store_release(f.store, f.b, &leases[i].lease, 1, NULL, 0);
    assert_int_equal(fixture_wait(&f, ticket), KVL_OK);
    assert_int_equal(fixture_report(&f).unpersisted_blocks, 0);
    assert_int_equal(fixture_lookup(&f, 1, 12, found), 12);
    assert_true((found[11] & 1u << KVL_TIER_DISK) != 0);
    fixture_close(&f);
}

static void a_copy_that_fails_leaves_the_block_to_the_next_flush(void **state) {
    (void)state;
    struct fixture f;
    far_open(&f,
        (struct fixture_options){
            .device_blocks = 16, .host_blocks = 8, .disk_path = far_folder, .fault_device = true});
    far_fail(&f, KVL_FAULT_LOAD, KVL_ERR_IO);
    fixture_store_chain(&f, f.a, 1, 3);
    fixture_settle(&f);
    assert_int_equal(fixture_report(&f).unpersisted_blocks, 3);
    assert_int_equal(fixture_report(&f).tiers[KVL_TIER_HOST].used_bytes, 0);
    far_mend(&f);
    assert_int_equal(fixture_flush(&f), KVL_OK);
    assert_int_equal(fixture_report(&f).unpersisted_blocks, 0);
    fixture_close(&f);
}

static void a_block_that_changed_in_far_memory_is_never_stored(void **state) {
    (void)state;
    struct fixture f;
    struct kvl_restored blocks[2];
    uint8_t found[2];
    far_open(&f,
        (struct fixture_options){
            .device_blocks = 16, .host_blocks = 8, .disk_path = far_folder, .fault_device = true});
    far_fail(&f, KVL_FAULT_LOAD, KVL_ERR_IO); /* no copy leaves the device */
    fixture_store_chain(&f, f.a, 1, 2);
    fixture_settle(&f);
    (void)fixture_restore(&f, f.a, KVL_TIER_DEVICE, 1, 2, blocks);
    fixture_address(&f, KVL_TIER_DEVICE, blocks[1].offset_bytes)[4096] ^= 4;
    far_mend(&f);
    assert_int_equal(fixture_flush(&f), KVL_ERR_CORRUPT);
    assert_int_equal(fixture_lookup(&f, 1, 2, found), 1);
    assert_int_equal(fixture_report(&f).hash_mismatches, 1);
    fixture_release(&f, f.a, blocks, 2);
    assert_int_equal(fixture_report(&f).tiers[KVL_TIER_DEVICE].used_bytes, BLOCK_BYTES);
    fixture_close(&f);
}

static void a_copy_in_the_host_makes_demotion_free(void **state) {
    (void)state;
    struct fixture f;
    uint8_t found[4];
    far_open(&f,
        (struct fixture_options){.device_blocks = 16, .host_blocks = 16, .disk_path = far_folder});
    fixture_store_chain(&f, f.a, 1, 4);
    assert_int_equal(fixture_flush(&f), KVL_OK);
    uint64_t before = f.device->ops->stats(f.device).loads;
    fixture_demote(&f, 1, 4, KVL_TIER_HOST);
    assert_int_equal(f.device->ops->stats(f.device).loads, before);
    assert_int_equal(fixture_lookup(&f, 1, 4, found), 4);
    assert_int_equal(found[3], 1u << KVL_TIER_HOST | 1u << KVL_TIER_DISK);
    fixture_demote(&f, 1, 4, KVL_TIER_DISK);
    assert_int_equal(fixture_check_chain(&f, f.a, 1, 4, KVL_TIER_DEVICE), 4);
    fixture_close(&f);
}

/* ---- what a far device needs -------------------------------------------------------------- */

static void a_far_device_without_a_host_is_refused(void **state) {
    (void)state;
    const struct kvl_memory_tier_options options = {
        .kind = KVL_TIER_DEVICE, .capacity_bytes = 4 * BLOCK_BYTES};
    struct kvl_tier *memory = NULL, *far = NULL;
    struct kvl_store *store = NULL;
    struct kvl_errmsg msg;
    assert_int_equal(kvl_memory_tier_create(&options, &memory, &msg), KVL_OK);
    assert_int_equal(kvl_far_tier_create(memory, &far), KVL_OK);
    assert_int_equal(kvl_store_create(&(struct kvl_store_options){.device = far}, &store, &msg),
        KVL_ERR_INVALID);
    assert_non_null(strstr(msg.text, "needs a host tier, with room for at least 8 blocks"));
    assert_null(store);
    far->ops->deinit(far);
}

static void blocks_that_cannot_pass_through_the_host_are_refused(void **state) {
    (void)state;
    struct fixture f;
    struct kvl_namespace_info info;
    struct kvl_namespace_request request = {.block_bytes = 2 * BLOCK_BYTES, .label = "large"};
    memset(request.key.bytes, 0x33, KVL_KEY_BYTES);
    far_open(&f, (struct fixture_options){.device_blocks = 64, .host_blocks = 8});
    assert_int_equal(
        kvl_store_namespace_open(f.store, KVL_TENANT_DEFAULT, &request, &info), KVL_ERR_NOSPC);
    request.block_bytes = BLOCK_BYTES;
    assert_int_equal(
        kvl_store_namespace_open(f.store, KVL_TENANT_DEFAULT, &request, &info), KVL_OK);
    fixture_close(&f);
}

int main(void) {
#define FAR_TEST(name) cmocka_unit_test_setup_teardown(name, far_make_folder, far_remove_folder)
    const struct CMUnitTest tests[] = {
        FAR_TEST(a_far_block_is_visible_once_its_tier_has_hashed_it),
        FAR_TEST(a_block_that_cannot_be_hashed_stays_its_engines_own),
        FAR_TEST(a_failed_seal_that_nobody_waits_for_leaves_nothing),
        FAR_TEST(a_block_that_is_cleared_while_it_is_hashed_keeps_its_slot_so_long),
        FAR_TEST(a_store_closes_while_hashes_wait_and_run),
        FAR_TEST(verify_finds_what_changed_in_far_memory),
        FAR_TEST(verify_counts_a_tier_that_cannot_hash),
        FAR_TEST(layers_are_announced_as_their_frames_land),
        FAR_TEST(a_chain_longer_than_the_host_passes_through_it),
        FAR_TEST(one_load_serves_who_wants_it_in_host_and_device),
        FAR_TEST(a_restore_that_is_cleared_on_its_way_ends),
        FAR_TEST(a_store_closes_in_the_middle_of_a_two_hop_restore),
        FAR_TEST(a_host_full_of_leases_ends_a_restore_and_not_the_store),
        FAR_TEST(blocks_wait_for_room_in_the_host_to_become_durable),
        FAR_TEST(a_copy_that_fails_leaves_the_block_to_the_next_flush),
        FAR_TEST(a_block_that_changed_in_far_memory_is_never_stored),
        FAR_TEST(a_copy_in_the_host_makes_demotion_free),
        FAR_TEST(a_far_device_without_a_host_is_refused),
        FAR_TEST(blocks_that_cannot_pass_through_the_host_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
