/* stall_test.c - a disk that takes transfers and does not end them: what the owner does meanwhile.
 *
 * The disk is the real one inside a delay tier that holds transfers until it is told otherwise, so
 * whatever waited for one of them would wait for ever. Nothing here measures time. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "clock.h"
#include "decorators/delay.h"
#include "store_fixture.h"

#define DEVICE_BLOCKS 32u
#define STORING_BLOCKS (DEVICE_BLOCKS / 4 * 3) /* under way to the disk at most */

static const struct kvl_delay_options flowing;
static const struct kvl_delay_options held = {KVL_DELAY_HOLD, KVL_DELAY_HOLD, KVL_DELAY_HOLD};
static char folder[64];

static int make_folder(void **state) {
    (void)state;
    strcpy(folder, "/tmp/kvl-stall-XXXXXX");
    return mkdtemp(folder) == NULL;
}

static int remove_folder(void **state) {
    (void)state;
    char command[128];
    snprintf(command, sizeof(command), "rm -rf %s", folder);
    return system(command);
}

static void open_store(struct fixture *f) {
    fixture_open(f, &(struct fixture_options){
                        .device_blocks = DEVICE_BLOCKS, .disk_path = folder, .delay_disk = true});
}

static struct kvl_store_report report_of(struct fixture *f) {
    struct kvl_store_report report;
    kvl_store_report(f->store, KVL_TENANT_ALL, &report);
    return report;
}

static kvl_err flush(struct fixture *f) {
    struct kvl_ticket ticket;
    assert_int_equal(kvl_store_flush(f->store, f->a, &ticket), KVL_OK);
    kvl_err status = fixture_wait(f, ticket);
    kvl_store_release(f->store, f->a, NULL, 0, &ticket, 1);
    return status;
}

/* Ten times what memory holds: alloc says NOSPC for a second, then the oldest blocks are given up.
 */
static void a_disk_that_hangs_costs_persistence_and_nothing_else(void **state) {
    (void)state;
    struct fixture f;
    uint8_t found[1];
    open_store(&f);
    kvl_delay_tier_set_latency(f.disk, &held);
    for (uint32_t chain = 0; chain < 40; chain++)
        fixture_store_chain(&f, f.a, 1 + chain * 100000, 8);
    struct kvl_store_report report = report_of(&f);
    assert_int_equal(report.sealed_blocks, 320);
    assert_true(report.blocks <= DEVICE_BLOCKS);
    assert_int_equal(report.shed_blocks, 320 - report.blocks);
    assert_true(report.tiers[KVL_TIER_DISK].inflight <= STORING_BLOCKS);
    assert_true(report.unpersisted_blocks <= STORING_BLOCKS + 256); /* not growing */
    assert_int_equal(fixture_lookup(&f, 1 + 39 * 100000, 1, found), 1);
    assert_int_equal(fixture_check_chain(&f, f.b, 1 + 39 * 100000, 8, KVL_TIER_DEVICE), 8);
    kvl_delay_tier_set_latency(f.disk, &flowing);
    assert_int_equal(flush(&f), KVL_OK);
    report = report_of(&f);
    assert_int_equal(report.unpersisted_blocks, 0);
    assert_int_equal(report.tiers[KVL_TIER_DISK].blocks, report.blocks);
    fixture_close(&f);
}

static void a_restore_that_hangs_holds_up_nobody_else(void **state) {
    (void)state;
    struct fixture f;
    struct kvl_key keys[8];
    struct kvl_restored blocks[8];
    struct kvl_restore_reply reply;
    uint8_t found[8];
    open_store(&f);
    fixture_store_chain(&f, f.a, 1, 8);
    assert_int_equal(flush(&f), KVL_OK);
    fixture_close(&f);
    open_store(&f);
    kvl_delay_tier_set_latency(f.disk, &held);
    fixture_keys(&f, 1, 8, keys);
    struct kvl_restore_request request = {
        .client = f.a, .target = KVL_TIER_DEVICE, .keys = keys, .count = 8};
    assert_int_equal(kvl_store_restore(f.store, &request, blocks, &reply), KVL_OK);
    assert_int_equal(reply.count, 8);
    fixture_store_chain(&f, f.b, 700000, 12); /* alloc, seal, lookup, release */
    assert_int_equal(fixture_lookup(&f, 1, 8, found), 8);
    assert_int_equal(fixture_check_chain(&f, f.b, 700000, 12, KVL_TIER_DEVICE), 12);
    struct kvl_completion *word = kvl_ticket_word(kvl_store_tickets(f.store), reply.ticket);
    assert_int_equal(atomic_load(&word->status), KVL_ERR_PENDING);
    kvl_delay_tier_set_latency(f.disk, &flowing);
    assert_int_equal(fixture_wait(&f, reply.ticket), KVL_OK);
    for (uint32_t i = 0; i < 8; i++)
        assert_true(fixture_is_filled(&f, KVL_TIER_DEVICE, blocks[i].offset_bytes, &keys[i]));
    fixture_close(&f);
}

static void a_stop_waits_until_its_deadline(void **state) {
    (void)state;
    struct fixture f;
    open_store(&f);
    kvl_delay_tier_set_latency(f.disk, &held);
    fixture_store_chain(&f, f.a, 1, 8);
    assert_int_equal(kvl_store_drain(f.store, kvl_clock_ns() + 20000000), KVL_ERR_TIMEOUT);
    assert_int_equal(report_of(&f).unpersisted_blocks, 8);
    assert_int_equal(kvl_store_drain(f.store, 0), KVL_ERR_TIMEOUT);
    kvl_delay_tier_set_latency(f.disk, &flowing);
    assert_int_equal(kvl_store_drain(f.store, UINT64_MAX), KVL_OK);
    assert_int_equal(report_of(&f).unpersisted_blocks, 0);
    fixture_close(&f);
    open_store(&f);
    assert_int_equal(fixture_check_chain(&f, f.a, 1, 8, KVL_TIER_DEVICE), 8);
    fixture_close(&f);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(
            a_disk_that_hangs_costs_persistence_and_nothing_else, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(
            a_restore_that_hangs_holds_up_nobody_else, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(
            a_stop_waits_until_its_deadline, make_folder, remove_folder),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
