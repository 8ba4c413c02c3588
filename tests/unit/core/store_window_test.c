/* store_window_test.c - blocks of layers that see a window only: which of them leave first. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "store_fixture.h"

#define ACME 1u
#define WINDOW_TOKENS 40u
#define RECORD_BYTES (BLOCK_BYTES + 16384u) /* at the most */

/* How many blocks of the chain are missing at its beginning; none may be missing behind them. */
static uint32_t missing_in_front(
    struct fixture *f, uint32_t seed, uint32_t count, enum kvl_tier_kind tier) {
    struct kvl_key keys[64];
    uint8_t found[64];
    fixture_keys(f, seed, count, keys);
    kvl_store_lookup_each(f->store, keys, count, found);
    uint32_t missing = 0;
    while (missing < count && (found[missing] & 1u << tier) == 0)
        missing++;
    for (uint32_t i = missing; i < count; i++)
        assert_true((found[i] & 1u << tier) != 0);
    return missing;
}

static void a_chain_leaves_memory_from_its_beginning(void **state) {
    (void)state;
    struct fixture f;
    fixture_open(&f, &(struct fixture_options){.device_blocks = 16});
    fixture_enter_window(&f, KVL_TENANT_DEFAULT, WINDOW_TOKENS);
    fixture_store_chain(&f, f.a, 1, 8);
    fixture_store_chain(&f, f.a, 100000, 13);
    uint32_t missing = missing_in_front(&f, 1, 8, KVL_TIER_DEVICE);
    assert_true(missing >= 5 && missing < 8);
    assert_int_equal(missing_in_front(&f, 100000, 13, KVL_TIER_DEVICE), 0);
    /* A restore uses the end of the first chain: the other one's beginning is the oldest now. */
    struct kvl_key keys[8];
    struct kvl_restored blocks[8];
    struct kvl_restore_reply reply;
    uint64_t leases[8];
    fixture_keys(&f, 1, 8, keys);
    struct kvl_restore_request request = {
        .client = f.a, .target = KVL_TIER_DEVICE, .keys = keys + missing, .count = 8 - missing};
    assert_int_equal(kvl_store_restore(f.store, &request, blocks, &reply), KVL_OK);
    assert_int_equal(reply.count, 8 - missing); /* without the parents of the first of them */
    for (uint32_t i = 0; i < reply.count; i++)
        leases[i] = blocks[i].lease;
    kvl_store_release(f.store, f.a, leases, reply.count, NULL, 0);
    fixture_store_chain(&f, f.a, 200000, 8);
    assert_int_equal(missing_in_front(&f, 1, 8, KVL_TIER_DEVICE), missing);
    assert_true(missing_in_front(&f, 100000, 13, KVL_TIER_DEVICE) >= 8);
    assert_int_equal(missing_in_front(&f, 200000, 8, KVL_TIER_DEVICE), 0);
    /* Released together, the first one is the oldest: it and no other makes room next. */
    uint32_t room = 13 - missing_in_front(&f, 100000, 13, KVL_TIER_DEVICE);
    fixture_store_chain(&f, f.a, 300000, room + 1);
    assert_int_equal(missing_in_front(&f, 1, 8, KVL_TIER_DEVICE), missing + 1);
    fixture_close(&f);
}

static void a_demoted_chain_leaves_from_its_beginning(void **state) {
    (void)state;
    struct fixture f;
    fixture_open(&f, &(struct fixture_options){.device_blocks = 16, .host_blocks = 32});
    fixture_enter_window(&f, KVL_TENANT_DEFAULT, WINDOW_TOKENS);
    fixture_store_chain(&f, f.a, 1, 24);
    fixture_settle(&f);
    uint32_t missing = missing_in_front(&f, 1, 24, KVL_TIER_DEVICE);
    assert_true(missing >= 8 && missing < 24);
    assert_int_equal(missing_in_front(&f, 1, missing, KVL_TIER_HOST), 0); /* none is lost */
    fixture_close(&f);
}

/* However many of a chain's blocks were used in one second. */
static void a_full_quota_of_the_disk_takes_the_beginning(void **state) {
    (void)state;
    char folder[] = "/tmp/kvloft-window-XXXXXX";
    char command[64];
    struct fixture f;
    struct kvl_tenant_options acme = {
        .name = "acme", .quota_bytes = {4 * BLOCK_BYTES, 0, 8 * RECORD_BYTES}};
    assert_non_null(mkdtemp(folder));
    fixture_open(
        &f, &(struct fixture_options){
                .device_blocks = 8, .disk_path = folder, .tenants = &acme, .tenant_count = 1});
    uint32_t client = fixture_enter(&f, ACME);
    fixture_enter_window(&f, ACME, WINDOW_TOKENS);
    fixture_store_chain(&f, client, 1, 32);
    fixture_settle(&f);
    uint32_t missing = missing_in_front(&f, 1, 32, KVL_TIER_DISK);
    assert_true(missing >= 24 && missing < 32);
    fixture_close(&f);
    snprintf(command, sizeof command, "rm -rf %s", folder);
    assert_int_equal(system(command), 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_chain_leaves_memory_from_its_beginning),
        cmocka_unit_test(a_demoted_chain_leaves_from_its_beginning),
        cmocka_unit_test(a_full_quota_of_the_disk_takes_the_beginning),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
