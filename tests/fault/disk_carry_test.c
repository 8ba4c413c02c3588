/* Blocks that may not be lost and nearly fill their segments: carrying them from one segment to the
 * next frees nothing, so it must end with NOSPC instead of rewriting the disk for ever. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
/* cmocka needs the four above first */
#include <cmocka.h>

#include "clock.h"
#include "disk_fixture.h"

#define MIB (1ull << 20)
#define LIMIT_NS                                                                                   \
    50000000000ull           /* what gives up does after some rounds of carrying, not by a clock */
#define BLOCK_BYTES 3000000u /* one fits a segment of 4 MiB, two do not */

static struct disk_fixture fixture;

static kvl_err store_for(uint64_t number, uint64_t limit_ns) {
    struct disk_block block;
    block_init_bytes(&block, &fixture, number, BLOCK_BYTES);
    block_begin(&block, KVL_IO_STORE);
    uint64_t end_ns = kvl_clock_ns() + limit_ns;
    while (block.busy && kvl_clock_ns() < end_ns)
        fixture_poll(&fixture);
    assert_false(block.busy);
    block_free(&block);
    return block.status;
}

static void carrying_without_gain_ends(void **state) {
    (void)state;
    fixture_init(&fixture, 32 * MIB, NULL);
    fixture.keep_below = UINT64_MAX;
    assert_int_equal(fixture_open(&fixture), KVL_OK);
    fixture_wait_loaded(&fixture);
    uint64_t stored = 0;
    kvl_err err;
    while ((err = store_for(stored, LIMIT_NS)) == KVL_OK)
        stored++;
    assert_int_equal(err, KVL_ERR_NOSPC);
    assert_true(stored >= 5);
    assert_int_equal(fixture.lost, 0);
    /* Asking again costs no rewriting either. */
    uint64_t written = fixture.tier->ops->stats(fixture.tier).written_bytes;
    for (uint32_t i = 0; i < 20; i++)
        assert_int_equal(store_for(stored, LIMIT_NS), KVL_ERR_NOSPC);
    uint64_t more = fixture.tier->ops->stats(fixture.tier).written_bytes - written;
    assert_true(more < 32 * MIB);
    fixture.keep_below = 0;
    for (uint64_t number = 100; number < 120; number++)
        assert_int_equal(store_for(number, LIMIT_NS), KVL_OK);
    fixture_close(&fixture, true);
    fixture_remove(&fixture);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(carrying_without_gain_ends)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
