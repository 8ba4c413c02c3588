/* store_far_lost_test.c - the store goes on when a device that the CPU cannot address is lost. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "cuda_twin.h"
#include "far_fixture.h"

static uint32_t device_lost_lines;

static void count_lines(void *arg, enum kvl_log_level level, const char *line) {
    (void)arg;
    if (level == KVL_LOG_ERROR && strstr(line, "event=device_lost") != NULL)
        device_lost_lines++;
}

/* Host and disk go on; the device says NOSPC; its slots come back when their owners have gone. */
static void assert_goes_on_without_device(struct fixture *f, struct kvl_log *log) {
    struct kvl_key key;
    struct kvl_restored blocks[4];
    char warning[256];
    assert_int_equal(device_lost_lines, 1);
    assert_true(kvl_log_fallback_at(log, 0, warning, sizeof(warning)));
    assert_non_null(strstr(warning, "is lost"));
    fixture_keys(f, 990000, 1, &key);
    assert_int_equal(fixture_alloc(f, f->a, &key, NULL).status, KVL_ALLOC_NOSPC);
    struct kvl_restore_reply reply = fixture_restore(f, f->a, KVL_TIER_DEVICE, 1, 4, blocks);
    assert_int_equal(reply.count, 0);
    assert_true(reply.out_of_space);
    assert_int_equal(fixture_check_chain(f, f->a, 1, 4, KVL_TIER_HOST), 4);
    assert_int_equal(fixture_report(f).tiers[KVL_TIER_DEVICE].blocks, 0);
    kvl_store_client_close(f->store, f->a);
    kvl_store_client_close(f->store, f->b);
    fixture_settle(f);
    assert_int_equal(fixture_report(f).leases, 0);
    assert_int_equal(fixture_report(f).tiers[KVL_TIER_DEVICE].used_bytes, 0);
    fixture_close(f);
    kvl_log_destroy(log);
}

static struct kvl_log *open_to_lose(struct fixture *f) {
    struct kvl_log *log = kvl_log_create(KVL_LOG_WARN, count_lines, NULL);
    assert_non_null(log);
    device_lost_lines = 0;
    far_open(f, (struct fixture_options){.device_blocks = 64,
                    .host_blocks = 32,
                    .disk_path = far_folder,
                    .fault_device = true,
                    .log = log});
    fixture_store_chain(f, f->a, 1, 4);
    assert_int_equal(fixture_flush(f), KVL_OK);
    return log;
}

static void a_device_lost_while_restoring(void **state) {
    (void)state;
    struct fixture f;
    struct kvl_restored blocks[24];
    struct kvl_log *log = open_to_lose(&f);
    fixture_store_chain(&f, f.a, 100000, 24);
    assert_int_equal(fixture_flush(&f), KVL_OK);
    fixture_demote(&f, 100000, 24, KVL_TIER_DISK);
    far_fail(&f, ALL_IOS, KVL_ERR_CLOSED);
    struct kvl_restore_reply reply = fixture_restore(&f, f.b, KVL_TIER_DEVICE, 100000, 24, blocks);
    assert_int_equal(reply.count, 24);
    assert_int_equal(fixture_wait(&f, reply.ticket), KVL_ERR_IO);
    assert_int_equal(far_word_of(&f, reply.ticket)->blocks_ready, 0);
    fixture_settle(&f);
    assert_goes_on_without_device(&f, log);
}

static void a_device_lost_while_sealing(void **state) {
    (void)state;
    struct fixture f;
    struct kvl_key keys[20];
    uint8_t found[20];
    struct kvl_log *log = open_to_lose(&f);
    far_fail(&f, ALL_IOS, KVL_ERR_CLOSED);
    fixture_keys(&f, 100000, 20, keys);
    for (uint32_t i = 0; i < 20; i++) {
        struct kvl_allocated block = fixture_alloc(&f, f.b, &keys[i], NULL);
        assert_int_equal(block.status, KVL_ALLOC_GRANTED);
        assert_int_equal(fixture_seal(&f, f.b, block.lease, block.offset_bytes, 100000, i), KVL_OK);
    }
    assert_int_equal(fixture_flush(&f), KVL_ERR_IO);
    assert_int_equal(fixture_lookup(&f, 100000, 20, found), 0);
    assert_int_equal(fixture_report(&f).leases, 20); /* their owner's until it goes */
    assert_int_equal(fixture_report(&f).tiers[KVL_TIER_DEVICE].used_bytes, 20 * BLOCK_BYTES);
    assert_goes_on_without_device(&f, log);
}

static void a_device_lost_while_demoting(void **state) {
    (void)state;
    struct fixture f;
    uint8_t found[20];
    struct kvl_restored blocks[20];
    struct kvl_log *log = open_to_lose(&f);
    far_fail(&f, KVL_FAULT_LOAD, KVL_ERR_NOMEM); /* no copy in the host, nor on disk */
    fixture_store_chain(&f, f.a, 100000, 20);
    fixture_settle(&f);
    assert_int_equal(fixture_restore(&f, f.b, KVL_TIER_DEVICE, 100000, 20, blocks).count, 20);
    far_fail(&f, ALL_IOS, KVL_ERR_CLOSED);
    assert_int_equal(fixture_flush(&f), KVL_ERR_IO); /* copies all 20 */
    fixture_settle(&f);
    assert_int_equal(fixture_lookup(&f, 100000, 20, found), 0); /* only the device had them */
    assert_true(fixture_report(&f).shed_blocks > 0);
    assert_int_equal(fixture_report(&f).leases, 20);
    assert_goes_on_without_device(&f, log);
}

/* By one io, of which nobody is told more than that it failed. */
static void a_device_is_lost_at_once(void **state) {
    (void)state;
    struct fixture f;
    struct kvl_restored block;
    struct kvl_log *log = open_to_lose(&f);
    fixture_demote(&f, 1, 4, KVL_TIER_HOST);
    far_fail(&f, ALL_IOS, KVL_ERR_CLOSED);
    struct kvl_restore_reply reply = fixture_restore(&f, f.b, KVL_TIER_DEVICE, 1, 1, &block);
    assert_int_equal(reply.count, 1);
    assert_int_equal(fixture_wait(&f, reply.ticket), KVL_ERR_IO);
    fixture_settle(&f);
    assert_goes_on_without_device(&f, log);
}

/* The same through the CUDA tier: the first io after the loss tells the store. */
static void a_lost_gpu_is_lost_to_the_store(void **state) {
    (void)state;
    struct fixture f;
    struct kvl_key key;
    assert_int_equal(setenv("KVL_STORE_DEVICE", "pinned", 1), 0);
    struct kvl_log *log = open_to_lose(&f);
    unsetenv("KVL_STORE_DEVICE");
    fixture_keys(&f, 100000, 1, &key);
    struct kvl_allocated block = fixture_alloc(&f, f.b, &key, NULL);
    assert_int_equal(block.status, KVL_ALLOC_GRANTED);
    cuda_twin_lose(f.twin.twin, 0);
    assert_int_equal(fixture_seal(&f, f.b, block.lease, block.offset_bytes, 100000, 0), KVL_OK);
    assert_int_equal(fixture_flush(&f), KVL_ERR_IO);
    assert_goes_on_without_device(&f, log);
}

/* Nor is one of its blocks evicted for a slot that will never come. */
static void a_device_lost_while_nothing_moves(void **state) {
    (void)state;
    struct fixture f;
    struct kvl_key key;
    struct kvl_log *log = open_to_lose(&f);
    far_fail(&f, KVL_FAULT_ALLOC, KVL_ERR_CLOSED);
    const uint64_t asked = kvl_fault_tier_injected(f.device);
    fixture_keys(&f, 100000, 1, &key);
    assert_int_equal(fixture_alloc(&f, f.a, &key, NULL).status, KVL_ALLOC_NOSPC);
    assert_int_equal(kvl_fault_tier_injected(f.device), asked + 1);
    fixture_settle(&f);
    assert_goes_on_without_device(&f, log);
}

/* However many: each is its own transfer's. */
static void failed_copies_lose_no_device(void **state) {
    (void)state;
    struct fixture f;
    struct kvl_restored blocks[24];
    struct kvl_log *log = open_to_lose(&f);
    fixture_store_chain(&f, f.a, 100000, 24);
    assert_int_equal(fixture_flush(&f), KVL_OK);
    fixture_demote(&f, 100000, 24, KVL_TIER_HOST);
    far_fail(&f, ALL_IOS, KVL_ERR_IO);
    struct kvl_restore_reply reply = fixture_restore(&f, f.b, KVL_TIER_DEVICE, 100000, 24, blocks);
    assert_int_equal(reply.count, 24);
    assert_int_equal(fixture_wait(&f, reply.ticket), KVL_ERR_IO);
    fixture_release(&f, f.b, blocks, 24);
    fixture_settle(&f);
    assert_int_equal(device_lost_lines, 0);
    far_mend(&f);
    assert_int_equal(fixture_check_chain(&f, f.b, 1, 4, KVL_TIER_DEVICE), 4);
    assert_int_equal(fixture_check_chain(&f, f.b, 100000, 24, KVL_TIER_DEVICE), 24);
    fixture_close(&f);
    kvl_log_destroy(log);
}

int main(void) {
#define FAR_TEST(name) cmocka_unit_test_setup_teardown(name, far_make_folder, far_remove_folder)
    const struct CMUnitTest tests[] = {
        FAR_TEST(a_device_lost_while_restoring),
        FAR_TEST(a_device_lost_while_sealing),
        FAR_TEST(a_device_lost_while_demoting),
        FAR_TEST(a_device_is_lost_at_once),
        FAR_TEST(a_lost_gpu_is_lost_to_the_store),
        FAR_TEST(a_device_lost_while_nothing_moves),
        FAR_TEST(failed_copies_lose_no_device),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
