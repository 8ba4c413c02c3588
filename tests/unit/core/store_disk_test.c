/* store_disk_test.c - the store with a disk tier: what outlives the process, and a failing disk.
 *
 * A store that is destroyed without a drain stands for a crash: only what was flushed, or had its
 * time to get there, may be relied on. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "decorators/fault.h"
#include "store_fixture.h"

static char folder[64];

static int make_folder(void **state) {
    (void)state;
    strcpy(folder, "/tmp/kvl-store-XXXXXX");
    return mkdtemp(folder) == NULL;
}

static int remove_folder(void **state) {
    (void)state;
    char command[128];
    snprintf(command, sizeof(command), "rm -rf %s", folder);
    return system(command);
}

static struct kvl_store_report report_of(struct fixture *f) {
    struct kvl_store_report report;
    kvl_store_report(f->store, KVL_TENANT_ALL, &report);
    return report;
}

static void flush(struct fixture *f) {
    struct kvl_ticket ticket;
    assert_int_equal(kvl_store_flush(f->store, f->a, &ticket), KVL_OK);
    assert_int_equal(fixture_wait(f, ticket), KVL_OK);
    kvl_store_release(f->store, f->a, NULL, 0, &ticket, 1);
}

static void flushed_blocks_survive_a_restart(void **state) {
    (void)state;
    struct fixture f;
    struct fixture_options options = {.device_blocks = 32, .disk_path = folder};
    uint8_t found[9];
    fixture_open(&f, &options);
    uint32_t ns = f.ns.id;
    fixture_store_chain(&f, f.a, 1, 8);
    flush(&f);
    assert_int_equal(fixture_lookup(&f, 1, 8, found), 8);
    assert_int_equal(found[7] & ~(1 << KVL_TIER_HOST), 1 << KVL_TIER_DEVICE | 1 << KVL_TIER_DISK);
    assert_int_equal(report_of(&f).unpersisted_blocks, 0);
    fixture_close(&f);
    for (unsigned round = 0; round < 2; round++) {
        fixture_open(&f, &options);
        assert_int_equal(f.ns.id, ns);
        assert_int_equal(f.ns.blocks, 8);
        assert_int_equal(fixture_lookup(&f, 1, 9, found), 8);
        assert_int_equal(found[0], 1 << KVL_TIER_DISK);
        assert_int_equal(report_of(&f).ghost_blocks, 0);
        assert_int_equal(fixture_check_chain(&f, f.a, 1, 8, KVL_TIER_DEVICE), 8);
        assert_int_equal(report_of(&f).tiers[KVL_TIER_DISK].hits, 8);
        fixture_close(&f);
    }
    /* A block sealed now has a generation of its own. */
    fixture_open(&f, &options);
    fixture_store_chain(&f, f.a, 500000, 2);
    flush(&f);
    fixture_close(&f);
    fixture_open(&f, &options);
    assert_int_equal(fixture_check_chain(&f, f.a, 500000, 2, KVL_TIER_DEVICE), 2);
    fixture_close(&f);
}

static void what_leaves_memory_is_read_back_from_disk(void **state) {
    (void)state;
    struct fixture f;
    fixture_open(
        &f, &(struct fixture_options){.device_blocks = 16, .host_blocks = 16, .disk_path = folder});
    for (uint32_t chain = 0; chain < 6; chain++)
        fixture_store_chain(&f, f.a, 1 + chain * 100000, 8);
    fixture_settle(&f);
    assert_int_equal(report_of(&f).blocks, 48);
    for (uint32_t chain = 0; chain < 6; chain++)
        assert_int_equal(fixture_check_chain(&f, f.b, 1 + chain * 100000, 8, KVL_TIER_DEVICE), 8);
    struct kvl_store_report report = report_of(&f);
    assert_true(report.tiers[KVL_TIER_DISK].hits > 0);
    assert_int_equal(report.hash_mismatches, 0);
    assert_int_equal(report.leases, 0);
    fixture_close(&f);
}

static void prefetch_brings_blocks_without_leases(void **state) {
    (void)state;
    struct fixture f;
    struct fixture_options options = {.device_blocks = 16, .host_blocks = 16, .disk_path = folder};
    struct kvl_key keys[4];
    struct kvl_ticket ticket;
    uint8_t found[4];
    fixture_open(&f, &options);
    fixture_store_chain(&f, f.a, 1, 4);
    flush(&f);
    fixture_close(&f);
    fixture_open(&f, &options);
    fixture_keys(&f, 1, 4, keys);
    assert_int_equal(
        kvl_store_prefetch(f.store, f.a, keys, 4, KVL_TIER_DISK, &ticket), KVL_ERR_INVALID);
    assert_int_equal(kvl_store_prefetch(f.store, f.a, keys, 4, KVL_TIER_HOST, &ticket), KVL_OK);
    assert_int_equal(fixture_wait(&f, ticket), KVL_OK);
    assert_int_equal(kvl_ticket_word(kvl_store_tickets(f.store), ticket)->values[0], 4);
    assert_int_equal(fixture_lookup(&f, 1, 4, found), 4);
    assert_int_equal(found[3], 1 << KVL_TIER_HOST | 1 << KVL_TIER_DISK);
    assert_int_equal(report_of(&f).leases, 0);
    fixture_close(&f);
}

static void what_was_cleared_stays_cleared(void **state) {
    (void)state;
    struct fixture f;
    struct fixture_options options = {.device_blocks = 16, .disk_path = folder};
    struct kvl_ticket ticket;
    uint8_t found[4];
    fixture_open(&f, &options);
    fixture_store_chain(&f, f.a, 1, 4);
    flush(&f);
    struct kvl_clear_request clear = {.client = f.a, .scope = KVL_CLEAR_ALL};
    assert_int_equal(kvl_store_clear(f.store, &clear, &ticket), KVL_OK);
    assert_int_equal(fixture_wait(&f, ticket), KVL_OK);
    fixture_close(&f);
    fixture_open(&f, &options);
    assert_int_equal(fixture_lookup(&f, 1, 4, found), 0);
    assert_int_equal(report_of(&f).blocks, 0);
    fixture_close(&f);
}

static void pins_survive_and_end(void **state) {
    (void)state;
    struct fixture f;
    struct fixture_options options = {.device_blocks = 16, .disk_path = folder};
    struct kvl_key keys[4];
    struct kvl_block_report page[8];
    fixture_open(&f, &options);
    fixture_store_chain(&f, f.a, 1, 3);
    fixture_keys(&f, 1, 4, keys);
    assert_int_equal(kvl_store_pin(f.store, keys, 4, true), 3);
    flush(&f);
    fixture_close(&f);
    fixture_open(&f, &options);
    uint64_t cursor = 0;
    assert_int_equal(report_of(&f).pins, 3);
    assert_int_equal(kvl_store_list(f.store, KVL_TENANT_ALL, &cursor, 8, page), 3);
    assert_true(page[0].pinned && page[1].pinned && page[2].pinned);
    assert_int_equal(kvl_store_pin(f.store, keys, 4, false), 3);
    flush(&f);
    fixture_close(&f);
    fixture_open(&f, &options);
    assert_int_equal(report_of(&f).pins, 0);
    assert_int_equal(report_of(&f).blocks, 3);
    fixture_close(&f);
}

static void pinned_blocks_without_a_copy_stay(void **state) {
    (void)state;
    struct fixture f;
    struct kvl_key keys[4];
    uint8_t found[12];
    fixture_open(&f, &(struct fixture_options){.device_blocks = 16});
    fixture_store_chain(&f, f.a, 1, 4);
    fixture_keys(&f, 1, 4, keys);
    assert_int_equal(kvl_store_pin(f.store, keys, 4, true), 4);
    fixture_store_chain(&f, f.a, 100000, 12);
    fixture_store_chain(&f, f.a, 200000, 12);
    assert_int_equal(fixture_lookup(&f, 1, 4, found), 4);
    assert_int_equal(fixture_lookup(&f, 200000, 12, found), 12);
    fixture_close(&f);
}

static void sessions_survive_with_their_tokens(void **state) {
    (void)state;
    struct fixture f;
    struct fixture_options options = {.device_blocks = 16, .disk_path = folder};
    struct kvl_session_info info;
    static uint32_t tokens[3000], back[4000];
    uint32_t count = 0;
    struct kvl_key tail = {{9}};
    for (uint32_t i = 0; i < 3000; i++)
        tokens[i] = i * 7;
    fixture_open(&f, &options);
    assert_int_equal(kvl_store_session_open(f.store, f.a, "work", &f.ns.key, &info), KVL_OK);
    assert_int_equal(kvl_store_session_append(f.store, f.a, "work", 0, tokens, 3000), KVL_OK);
    assert_int_equal(kvl_store_session_append(f.store, f.a, "work", 1500, tokens, 700), KVL_OK);
    assert_int_equal(kvl_store_session_append(f.store, f.a, "work", 2200, tokens, 5), KVL_OK);
    assert_int_equal(kvl_store_session_tail(f.store, f.a, "work", &tail, 13), KVL_OK);
    assert_int_equal(kvl_store_session_open(f.store, f.a, "gone", &f.ns.key, &info), KVL_OK);
    assert_int_equal(kvl_store_session_append(f.store, f.a, "gone", 0, tokens, 2000), KVL_OK);
    assert_int_equal(kvl_store_session_drop(f.store, f.a, "gone", &info), KVL_OK);
    flush(&f);
    fixture_close(&f);
    fixture_open(&f, &options);
    assert_int_equal(report_of(&f).sessions, 1);
    assert_int_equal(kvl_store_session_read(f.store, "work", 0, 4000, back, &count, &info), KVL_OK);
    assert_int_equal(count, 2205);
    assert_int_equal(info.token_count, 2205);
    assert_memory_equal(back, tokens, 1500 * 4);
    assert_memory_equal(back + 1500, tokens, 700 * 4);
    assert_memory_equal(back + 2200, tokens, 5 * 4);
    assert_true(kvl_key_equal(&info.tail, &tail));
    assert_int_equal(info.tail_tokens, 13);
    assert_int_equal(info.holder_pid, 0);
    fixture_close(&f);
}

/* Stores and restores chains while the tiers fail now and then; every ticket must end, and what
 * is said to be there must be right. */
static void run_with_faults(
    const struct fixture_options *options, const struct kvl_fault_rule *rules, uint32_t count) {
    struct fixture f;
    fixture_open(&f, options);
    struct kvl_tier *faulty = options->fault_disk   ? f.disk
                              : options->fault_host ? f.host
                                                    : f.device;
    for (uint32_t chain = 0; chain < 4; chain++)
        fixture_store_chain(&f, f.a, 1 + chain * 100000, 8);
    assert_int_equal(kvl_fault_tier_set_rules(faulty, rules, count), KVL_OK);
    for (uint32_t round = 0; round < 3; round++)
        for (uint32_t chain = 0; chain < 4; chain++) {
            struct kvl_ticket ticket;
            (void)fixture_check_chain(&f, f.b, 1 + chain * 100000, 8, KVL_TIER_DEVICE);
            assert_int_equal(kvl_store_flush(f.store, f.a, &ticket), KVL_OK);
            (void)fixture_wait(&f, ticket);
            kvl_store_release(f.store, f.a, NULL, 0, &ticket, 1);
        }
    struct kvl_ticket ticket;
    assert_int_equal(kvl_store_verify(f.store, f.a, &ticket), KVL_OK);
    (void)fixture_wait(&f, ticket);
    fixture_settle(&f);
    assert_true(kvl_fault_tier_injected(faulty) > 0);
    struct kvl_store_report report = report_of(&f);
    assert_int_equal(report.leases, 0);
    for (unsigned tier = 0; tier < KVL_TIER_DISK; tier++)
        assert_int_equal(report.tiers[tier].used_bytes, report.tiers[tier].blocks * BLOCK_BYTES);
    /* With the faults gone, it goes on as before. */
    assert_int_equal(kvl_fault_tier_set_rules(faulty, NULL, 0), KVL_OK);
    fixture_store_chain(&f, f.a, 900000, 8);
    flush(&f);
    assert_int_equal(fixture_check_chain(&f, f.b, 900000, 8, KVL_TIER_DEVICE), 8);
    fixture_close(&f);
}

static const struct kvl_fault_rule some_of_each[] = {
    {.kind = KVL_FAULT_ERROR,
        .ops = KVL_FAULT_STORE | KVL_FAULT_LOAD,
        .error = KVL_ERR_IO,
        .per_million = 150000},
    {.kind = KVL_FAULT_ERROR,
        .ops = KVL_FAULT_STORE | KVL_FAULT_LOAD,
        .error = KVL_ERR_CORRUPT,
        .per_million = 50000},
    {.kind = KVL_FAULT_AGAIN, .ops = KVL_FAULT_STORE | KVL_FAULT_LOAD, .per_million = 200000},
};

static void a_failing_disk_never_wedges_a_ticket(void **state) {
    (void)state;
    run_with_faults(
        &(struct fixture_options){
            .device_blocks = 16, .host_blocks = 8, .disk_path = folder, .fault_disk = true},
        some_of_each, 3);
}

static void a_failing_device_never_wedges_a_ticket(void **state) {
    (void)state;
    run_with_faults(
        &(struct fixture_options){
            .device_blocks = 16, .host_blocks = 8, .disk_path = folder, .fault_device = true},
        some_of_each, 3);
}

static void a_host_without_memory_never_wedges_a_ticket(void **state) {
    (void)state;
    static const struct kvl_fault_rule rules[] = {{.kind = KVL_FAULT_ERROR,
                                                      .ops = KVL_FAULT_ALLOC,
                                                      .error = KVL_ERR_NOSPC,
                                                      .per_million = 500000},
        {.kind = KVL_FAULT_AGAIN, .ops = KVL_FAULT_ALLOC, .per_million = 300000}};
    run_with_faults(
        &(struct fixture_options){
            .device_blocks = 16, .host_blocks = 8, .disk_path = folder, .fault_host = true},
        rules, 2);
}

static void a_full_disk_keeps_blocks_in_memory_until_it_takes_them(void **state) {
    (void)state;
    struct fixture f;
    struct fixture_options options = {.device_blocks = 32, .disk_path = folder, .fault_disk = true};
    static const struct kvl_fault_rule full[] = {{.kind = KVL_FAULT_ERROR,
        .ops = KVL_FAULT_STORE,
        .error = KVL_ERR_NOSPC,
        .per_million = 1000000}};
    struct kvl_ticket ticket;
    fixture_open(&f, &options);
    assert_int_equal(kvl_fault_tier_set_rules(f.disk, full, 1), KVL_OK);
    fixture_store_chain(&f, f.a, 1, 4);
    assert_int_equal(kvl_store_flush(f.store, f.a, &ticket), KVL_OK);
    assert_int_equal(fixture_wait(&f, ticket), KVL_ERR_NOSPC);
    assert_int_equal(report_of(&f).unpersisted_blocks, 4);
    assert_int_equal(fixture_check_chain(&f, f.a, 1, 4, KVL_TIER_DEVICE), 4);
    assert_int_equal(kvl_fault_tier_set_rules(f.disk, NULL, 0), KVL_OK);
    flush(&f);
    assert_int_equal(report_of(&f).unpersisted_blocks, 0);
    fixture_close(&f);
    fixture_open(&f, &options);
    assert_int_equal(fixture_check_chain(&f, f.a, 1, 4, KVL_TIER_DEVICE), 4);
    fixture_close(&f);
}

static void a_disk_full_of_hot_blocks_takes_new_ones(void **state) {
    (void)state;
    struct fixture f;
    struct fixture_options options = {
        .device_blocks = 8, .disk_path = folder, .disk_bytes = 16ull << 20};
    uint8_t found[2];
    fixture_open(&f, &options);
    for (uint32_t chain = 0; chain < 30; chain++) {
        fixture_store_chain(&f, f.a, 1000 * chain, 2);
        flush(&f);
        for (unsigned use = 0; use < 2; use++)
            assert_int_equal(fixture_check_chain(&f, f.a, 1000 * chain, 2, KVL_TIER_DEVICE), 2);
    }
    assert_int_equal(report_of(&f).unpersisted_blocks, 0);
    assert_int_equal(fixture_lookup(&f, 29000, 2, found), 2);
    assert_true((found[0] & found[1] & 1u << KVL_TIER_DISK) != 0);
    fixture_close(&f);
}

static void a_block_that_changed_after_its_seal_is_dropped(void **state) {
    (void)state;
    fixture_near_only();
    struct fixture f;
    struct fixture_options options = {.device_blocks = 32, .disk_path = folder, .fault_disk = true};
    static const struct kvl_fault_rule full[] = {{.kind = KVL_FAULT_ERROR,
        .ops = KVL_FAULT_STORE,
        .error = KVL_ERR_NOSPC,
        .per_million = 1000000}};
    struct kvl_key keys[2];
    struct kvl_restored blocks[2];
    struct kvl_restore_reply reply;
    struct kvl_ticket ticket;
    uint8_t found[2];
    fixture_open(&f, &options);
    assert_int_equal(kvl_fault_tier_set_rules(f.disk, full, 1), KVL_OK);
    fixture_store_chain(&f, f.a, 1, 2);
    fixture_settle(&f);
    fixture_keys(&f, 1, 2, keys);
    struct kvl_restore_request request = {
        .client = f.a, .target = KVL_TIER_DEVICE, .keys = keys, .count = 2};
    assert_int_equal(kvl_store_restore(f.store, &request, blocks, &reply), KVL_OK);
    fixture_address(&f, KVL_TIER_DEVICE, blocks[1].offset_bytes)[4096] ^= 4;
    assert_int_equal(kvl_fault_tier_set_rules(f.disk, NULL, 0), KVL_OK);
    assert_int_equal(kvl_store_flush(f.store, f.a, &ticket), KVL_OK);
    assert_int_equal(fixture_wait(&f, ticket), KVL_ERR_CORRUPT);
    assert_int_equal(fixture_lookup(&f, 1, 2, found), 1);
    assert_int_equal(report_of(&f).hash_mismatches, 1);
    for (unsigned i = 0; i < 2; i++)
        kvl_store_release(f.store, f.a, &blocks[i].lease, 1, NULL, 0);
    assert_int_equal(report_of(&f).tiers[KVL_TIER_DEVICE].used_bytes, BLOCK_BYTES);
    fixture_close(&f);
}

/* Puts the chain into host and disk only, and returns where the host has it. */
static void move_to_host(
    struct fixture *f, uint32_t count, struct kvl_key *keys, struct kvl_restored *blocks) {
    struct kvl_ticket ticket;
    struct kvl_restore_reply reply;
    fixture_store_chain(f, f->a, 1, count);
    flush(f);
    fixture_keys(f, 1, count, keys);
    assert_int_equal(kvl_store_demote(f->store, f->a, keys, count, KVL_TIER_HOST, &ticket), KVL_OK);
    assert_int_equal(fixture_wait(f, ticket), KVL_OK);
    kvl_store_release(f->store, f->a, NULL, 0, &ticket, 1);
    struct kvl_restore_request request = {
        .client = f->a, .target = KVL_TIER_HOST, .keys = keys, .count = count};
    assert_int_equal(kvl_store_restore(f->store, &request, blocks, &reply), KVL_OK);
    assert_int_equal(reply.count, count);
    assert_int_equal(reply.ticket.generation, 0); /* there already */
}

static void release_leases(struct fixture *f, const struct kvl_restored *blocks, uint32_t count) {
    for (uint32_t i = 0; i < count; i++)
        kvl_store_release(f->store, f->a, &blocks[i].lease, 1, NULL, 0);
}

static void a_bad_copy_in_memory_is_made_good_from_disk(void **state) {
    (void)state;
    fixture_near_only();
    struct fixture f;
    struct kvl_key keys[4];
    struct kvl_restored blocks[4];
    uint8_t found[4];
    fixture_open(
        &f, &(struct fixture_options){.device_blocks = 32, .host_blocks = 32, .disk_path = folder});
    move_to_host(&f, 4, keys, blocks);
    release_leases(&f, blocks, 4);
    fixture_address(&f, KVL_TIER_HOST, blocks[2].offset_bytes)[5000] ^= 1;
    assert_int_equal(fixture_check_chain(&f, f.a, 1, 4, KVL_TIER_DEVICE), 4);
    fixture_settle(&f);
    assert_int_equal(fixture_lookup(&f, 1, 4, found), 4);
    assert_int_equal(found[2], 1u << KVL_TIER_DEVICE | 1u << KVL_TIER_DISK);
    assert_int_equal(found[3], 7);
    assert_int_equal(report_of(&f).hash_mismatches, 1);
    assert_int_equal(report_of(&f).tiers[KVL_TIER_HOST].used_bytes, 3 * BLOCK_BYTES);
    fixture_close(&f);
}

static void a_bad_copy_is_not_what_goes_to_disk(void **state) {
    (void)state;
    fixture_near_only();
    struct fixture f;
    static const struct kvl_fault_rule full[] = {{.kind = KVL_FAULT_ERROR,
        .ops = KVL_FAULT_STORE,
        .error = KVL_ERR_NOSPC,
        .per_million = 1000000}};
    struct kvl_key key;
    struct kvl_restored block;
    struct kvl_restore_reply reply;
    uint8_t found[1];
    fixture_open(
        &f, &(struct fixture_options){
                .device_blocks = 32, .host_blocks = 32, .disk_path = folder, .fault_disk = true});
    assert_int_equal(kvl_fault_tier_set_rules(f.disk, full, 1), KVL_OK);
    fixture_store_chain(&f, f.a, 1, 1);
    fixture_settle(&f);
    assert_int_equal(fixture_check_chain(&f, f.a, 1, 1, KVL_TIER_HOST), 1);
    fixture_keys(&f, 1, 1, &key);
    struct kvl_restore_request request = {
        .client = f.a, .target = KVL_TIER_HOST, .keys = &key, .count = 1};
    assert_int_equal(kvl_store_restore(f.store, &request, &block, &reply), KVL_OK);
    fixture_address(&f, KVL_TIER_HOST, block.offset_bytes)[9] ^= 1;
    release_leases(&f, &block, 1);
    assert_int_equal(kvl_fault_tier_set_rules(f.disk, NULL, 0), KVL_OK);
    flush(&f);
    assert_int_equal(fixture_lookup(&f, 1, 1, found), 1);
    assert_int_equal(found[0], 1u << KVL_TIER_DEVICE | 1u << KVL_TIER_DISK);
    fixture_close(&f);
}

static void a_bad_copy_under_a_lease_keeps_its_slot_until_released(void **state) {
    (void)state;
    fixture_near_only();
    struct fixture f;
    struct kvl_key keys[2];
    struct kvl_restored blocks[2];
    fixture_open(
        &f, &(struct fixture_options){.device_blocks = 32, .host_blocks = 32, .disk_path = folder});
    move_to_host(&f, 2, keys, blocks);
    fixture_address(&f, KVL_TIER_HOST, blocks[1].offset_bytes)[0] ^= 1;
    assert_int_equal(fixture_check_chain(&f, f.a, 1, 2, KVL_TIER_DEVICE), 2);
    assert_int_equal(report_of(&f).tiers[KVL_TIER_HOST].used_bytes, 2 * BLOCK_BYTES);
    release_leases(&f, blocks, 2);
    assert_int_equal(report_of(&f).tiers[KVL_TIER_HOST].used_bytes, BLOCK_BYTES);
    fixture_close(&f);
}

/* As if each had been reclaimed between the look into the table and the read. */
static void what_was_evicted_meanwhile_is_not_bad(void **state) {
    (void)state;
    struct fixture f;
    struct kvl_ticket ticket;
    const struct kvl_fault_rule gone = {.kind = KVL_FAULT_ERROR,
        .ops = KVL_FAULT_LOAD,
        .error = KVL_ERR_NOTFOUND,
        .per_million = 1000000};
    fixture_open(&f,
        &(struct fixture_options){.device_blocks = 32, .disk_path = folder, .fault_disk = true});
    fixture_store_chain(&f, f.a, 1, 8);
    flush(&f);
    assert_int_equal(kvl_fault_tier_set_rules(f.disk, &gone, 1), KVL_OK);
    assert_int_equal(kvl_store_verify(f.store, f.a, &ticket), KVL_OK);
    assert_int_equal(fixture_wait(&f, ticket), KVL_OK);
    const struct kvl_completion *word = kvl_ticket_word(kvl_store_tickets(f.store), ticket);
    assert_int_equal(word->values[0], 8);
    assert_int_equal(word->values[1], 0);
    assert_true(kvl_fault_tier_injected(f.disk) >= 8);
    assert_int_equal(report_of(&f).tiers[KVL_TIER_DISK].corrupt_blocks, 0);
    fixture_close(&f);
}

/* Flips a bit so far behind each place where the file has the key. */
static void damage_at_key(const char *name, const struct kvl_key *key, size_t behind) {
    char path[128];
    struct stat file;
    uint32_t places = 0;
    snprintf(path, sizeof(path), "%s/%s", folder, name);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    assert_true(fd >= 0 && fstat(fd, &file) == 0);
    size_t bytes = (size_t)file.st_size;
    uint8_t *all = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    assert_true(all != MAP_FAILED);
    for (size_t at = 0; at + KVL_KEY_BYTES + behind < bytes; at++) {
        if (memcmp(all + at, key->bytes, KVL_KEY_BYTES) != 0)
            continue;
        all[at + behind] ^= 0x10;
        places++;
    }
    assert_true(places > 0);
    munmap(all, bytes);
    close(fd);
}

/* Three blocks whose headers cannot be read; the load of the first finds its row in the index
 * damaged, too. The second was on disk only, the third is in memory and goes there again. */
static void blocks_that_a_healing_lost_are_misses(void **state) {
    (void)state;
    struct fixture f;
    struct fixture_options options = {.device_blocks = 16, .disk_path = folder, .fault_disk = true};
    static const uint32_t first[] = {1, 100000, 200000};
    struct kvl_key keys[3];
    uint8_t found[2];
    fixture_open(&f, &options);
    for (uint32_t i = 0; i < 3; i++) {
        fixture_store_chain(&f, f.a, first[i], 1);
        fixture_keys(&f, first[i], 1, &keys[i]);
    }
    flush(&f);
    fixture_close(&f);
    fixture_open(&f, &options);
    assert_int_equal(fixture_check_chain(&f, f.a, first[2], 1, KVL_TIER_DEVICE), 1);
    for (uint32_t i = 0; i < 3; i++)
        damage_at_key("segments/00000001.seg", &keys[i], KVL_KEY_BYTES);
    damage_at_key("index/data.mdb", &keys[0], KVL_KEY_BYTES + 16);
    assert_int_equal(fixture_lookup(&f, first[1], 1, found), 1);
    assert_int_equal(fixture_check_chain(&f, f.a, first[0], 1, KVL_TIER_DEVICE), 0);
    for (uint32_t i = 0; i < 100 && fixture_lookup(&f, first[1], 1, found) > 0; i++)
        fixture_settle(&f);
    assert_int_equal(fixture_lookup(&f, first[1], 1, found), 0);
    assert_int_equal(report_of(&f).tiers[KVL_TIER_DISK].corrupt_blocks, 3);
    assert_int_equal(fixture_check_chain(&f, f.a, first[2], 1, KVL_TIER_DEVICE), 1);
    flush(&f);
    fixture_close(&f);
    fixture_open(&f, &options);
    for (uint32_t i = 0; i < 3; i++)
        assert_int_equal(
            fixture_check_chain(&f, f.a, first[i], 1, KVL_TIER_DEVICE), i == 2 ? 1 : 0);
    fixture_close(&f);
}

static void blocks_too_large_for_the_disk_are_refused_at_once(void **state) {
    (void)state;
    fixture_near_only();
    for (uint64_t disk_bytes = 20u << 20; disk_bytes <= 32u << 20; disk_bytes += 12u << 20) {
        struct fixture f;
        struct kvl_namespace_info info;
        struct kvl_namespace_request request = {.block_bytes = 3u << 20, .label = "large"};
        memset(request.key.bytes, 0x33, KVL_KEY_BYTES);
        fixture_open(&f, &(struct fixture_options){
                             .device_blocks = 32, .disk_path = folder, .disk_bytes = disk_bytes});
        fixture_settle(&f);
        assert_int_equal(kvl_store_namespace_open(f.store, KVL_TENANT_DEFAULT, &request, &info),
            disk_bytes < 32u << 20 ? KVL_ERR_TOOBIG : KVL_OK);
        assert_int_equal(kvl_store_drain(f.store, UINT64_MAX), KVL_OK);
        fixture_close(&f);
    }
}

int main(void) {
#define DISK_TEST(name) cmocka_unit_test_setup_teardown(name, make_folder, remove_folder)
    const struct CMUnitTest tests[] = {
        DISK_TEST(flushed_blocks_survive_a_restart),
        DISK_TEST(what_leaves_memory_is_read_back_from_disk),
        DISK_TEST(prefetch_brings_blocks_without_leases),
        DISK_TEST(what_was_cleared_stays_cleared),
        DISK_TEST(what_was_evicted_meanwhile_is_not_bad),
        DISK_TEST(blocks_that_a_healing_lost_are_misses),
        DISK_TEST(blocks_too_large_for_the_disk_are_refused_at_once),
        DISK_TEST(pins_survive_and_end),
        DISK_TEST(pinned_blocks_without_a_copy_stay),
        DISK_TEST(sessions_survive_with_their_tokens),
        DISK_TEST(a_failing_disk_never_wedges_a_ticket),
        DISK_TEST(a_failing_device_never_wedges_a_ticket),
        DISK_TEST(a_host_without_memory_never_wedges_a_ticket),
        DISK_TEST(a_full_disk_keeps_blocks_in_memory_until_it_takes_them),
        DISK_TEST(a_disk_full_of_hot_blocks_takes_new_ones),
        DISK_TEST(a_block_that_changed_after_its_seal_is_dropped),
        DISK_TEST(a_bad_copy_in_memory_is_made_good_from_disk),
        DISK_TEST(a_bad_copy_is_not_what_goes_to_disk),
        DISK_TEST(a_bad_copy_under_a_lease_keeps_its_slot_until_released),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
