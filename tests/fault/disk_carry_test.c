/* Blocks that may not be lost, where carrying them over is hard: they nearly fill their segments,
 * so that it frees nothing and must end with NOSPC instead of rewriting the disk for ever; or those
 * segments are larger than today's, so that no single one of these holds the copies. And which
 * blocks go where nothing is kept. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
/* cmocka needs the four above first */
#include <cmocka.h>
#include <errno.h>
#include <stdatomic.h>
#include <string.h>
#include <unistd.h>

#include "clock.h"
#include "disk/disk_dir.h"
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

static atomic_bool reads_fail;
static atomic_uint_fast64_t unreadable; /* number of a block; 0: none */

ssize_t __real_pread(int fd, void *buffer, size_t bytes, off_t offset);
ssize_t __wrap_pread(int fd, void *buffer, size_t bytes, off_t offset);
ssize_t __wrap_pread(int fd, void *buffer, size_t bytes, off_t offset) {
    uint64_t number = atomic_load(&unreadable);
    ssize_t got = __real_pread(fd, buffer, bytes, offset);
    struct kvl_key key = {{0}};
    memcpy(key.bytes, &number, sizeof number);
    key.bytes[31] = 0x5a;
    bool fails = number != 0 && got >= 4096 && memmem(buffer, 4096, key.bytes, sizeof key.bytes);
    if (!atomic_load(&reads_fail) && !fails)
        return got;
    errno = EIO;
    return -1;
}

static void open_with(uint64_t capacity_bytes) {
    fixture.options.capacity_bytes = capacity_bytes;
    assert_int_equal(fixture_open(&fixture), KVL_OK);
    fixture_wait_loaded(&fixture);
}

static uint64_t segment_bytes_of(uint64_t capacity_bytes) {
    struct kvl_disk_plan plan;
    assert_int_equal(kvl_disk_plan_make(capacity_bytes, &plan, NULL), KVL_OK);
    return plan.segment_bytes;
}

static kvl_err store_mib(uint64_t number) {
    struct disk_block block;
    block_init_bytes(&block, &fixture, number, MIB - 8192);
    kvl_err err = block_do(&block, KVL_IO_STORE);
    block_free(&block);
    return err;
}

static bool loads_same(uint64_t number) {
    struct disk_block block;
    struct disk_found_block *found = fixture_find(&fixture, number);
    if (found == NULL)
        return false;
    block_init_bytes(&block, &fixture, number, MIB - 8192);
    block.io.location = found->location;
    bool same = block_load_same(&block, NULL);
    block_free(&block);
    return same;
}

/* The wrapped call is the posix backend's. */
static void open_on_reads_that_fail(bool (*keep)(void *arg, const struct kvl_key *key)) {
    fixture_init(&fixture, 64 * MIB, NULL);
    fixture.options.codec = KVL_DISK_CODEC_RAW;
    fixture.options.io = KVL_DISK_IO_POSIX;
    open_with(64 * MIB);
    fixture.tier->events.keep = keep;
}

static uint64_t kept_remainder;

static bool keep_some_everywhere(void *arg, const struct kvl_key *key) {
    (void)arg;
    return block_number_of(key) % 4 == kept_remainder;
}

/* Carrying that fails has taken the room that is kept for it: stores do not get what is left. */
static void carrying_that_fails_leaves_room_for_the_next(void **state) {
    (void)state;
    uint64_t number = 0;
    open_on_reads_that_fail(keep_some_everywhere);
    while (number < 100)
        assert_int_equal(store_mib(number++), KVL_OK);
    for (kept_remainder = 0; kept_remainder < 4; kept_remainder++) {
        kvl_err err;
        atomic_store(&reads_fail, true);
        while ((err = store_mib(number++)) == KVL_OK)
            ;
        assert_int_equal(err, KVL_ERR_NOSPC);
        atomic_store(&reads_fail, false);
        for (uint32_t i = 0; i < 21; i++)
            assert_int_equal(store_mib(number++), KVL_OK);
    }
    fixture_close(&fixture, true);
    fixture_remove(&fixture);
}

static bool keep_the_unreadable(void *arg, const struct kvl_key *key) {
    (void)arg;
    return block_number_of(key) == atomic_load(&unreadable);
}

/* The segment that it lies in is passed over. */
static void a_kept_block_that_cannot_be_read_is_in_nobodys_way(void **state) {
    (void)state;
    uint64_t number = 0;
    open_on_reads_that_fail(keep_the_unreadable);
    while (number < 50)
        assert_int_equal(store_mib(number++), KVL_OK);
    atomic_store(&unreadable, 30);
    while (number < 250)
        assert_int_equal(store_mib(number++), KVL_OK);
    fixture.tier->events.keep = NULL;
    atomic_store(&unreadable, 0);
    assert_true(loads_same(30));
    fixture_close(&fixture, true);
    fixture_remove(&fixture);
}

/* Fills segments of the larger capacity, five blocks of eight to be kept, and goes on with the
 * smaller one. Returns how many are to be kept. */
static uint64_t go_on_with_larger_segments(uint64_t larger, uint64_t smaller, uint32_t segments) {
    uint64_t kept = 0, stored = segments * (segment_bytes_of(larger) / MIB);
    fixture_init(&fixture, larger, NULL);
    fixture.options.codec = KVL_DISK_CODEC_RAW;
    fixture.keep_below = 1000;
    open_with(larger);
    for (uint64_t i = 0; i < stored; i++)
        assert_int_equal(store_mib(i % 8 < 5 ? kept++ : 1000 + i), KVL_OK);
    fixture_close(&fixture, true);
    open_with(smaller);
    return kept;
}

/* So many more to be kept, one by one with others. */
static void store_more(uint64_t first, uint64_t count) {
    for (uint64_t i = 0; i < count; i++) {
        assert_int_equal(store_mib(first + i), KVL_OK);
        assert_int_equal(store_mib(2000 + i), KVL_OK);
    }
    assert_true(fixture.moved > 0);
}

static void assert_all_there(uint64_t count) {
    for (uint64_t number = 0; number < count; number++)
        assert_true(loads_same(number));
}

/* A folder as it was made before docs/decisions/0021: segments of an eighth of the capacity. Of
 * each more is kept than a segment of today's holds. */
static void larger_segments_are_carried_over_too(void **state) {
    (void)state;
    uint64_t capacity = 128 * MIB;
    assert_int_equal(segment_bytes_of(450 * MIB) / MIB, capacity / MIB / 8);
    assert_true(segment_bytes_of(capacity) < 10 * MIB);
    uint64_t kept = go_on_with_larger_segments(450 * MIB, capacity, 6);
    assert_int_equal(fixture_live_count(&fixture), 6 * 16);
    store_more(kept, 24);
    assert_all_there(kept + 24);
    fixture_close(&fixture, true);
    assert_true(fixture_disk_usage(&fixture) <= capacity);
    open_with(capacity);
    assert_all_there(kept + 24);
    fixture_close(&fixture, true);
    fixture_remove(&fixture);
}

/* What fits a smaller capacity to the last byte would leave nothing to carry with. */
static void a_smaller_capacity_leaves_room_for_carrying(void **state) {
    (void)state;
    uint64_t space = 64 * MIB - 64 * MIB / 16, left = space % segment_bytes_of(480 * MIB);
    assert_true(left < segment_bytes_of(64 * MIB));
    uint64_t kept = go_on_with_larger_segments(480 * MIB, 64 * MIB, 5);
    uint64_t first = 0;
    while (fixture_find(&fixture, first) == NULL)
        assert_true(++first < kept); /* the oldest had to go */
    store_more(kept, 8);
    for (uint64_t number = first; number < kept + 8; number++)
        assert_true(loads_same(number));
    fixture_close(&fixture, true);
    assert_true(fixture_disk_usage(&fixture) <= 64 * MIB);
    fixture_remove(&fixture);
}

/* Within a second too, in which all blocks look equally old. */
static void the_oldest_blocks_go_first(void **state) {
    (void)state;
    fixture_init(&fixture, 64 * MIB, NULL);
    fixture.options.codec = KVL_DISK_CODEC_RAW;
    open_with(64 * MIB);
    for (uint64_t number = 0; number < 300; number++) {
        assert_int_equal(store_mib(number), KVL_OK);
        for (uint64_t recent = number < 32 ? 0 : number - 32; recent <= number; recent++)
            assert_non_null(fixture_find(&fixture, recent));
    }
    fixture_close(&fixture, true);
    fixture_remove(&fixture);
}

/* The owner is asked about some of the segments only, and not again and again: each answer may cost
 * it what it protects. */
static void ahead_of_need_few_are_asked_about(void **state) {
    (void)state;
    uint64_t capacity = 256 * MIB, number = 0;
    uint64_t of_a_segment = segment_bytes_of(capacity) / MIB;
    fixture_init(&fixture, capacity, NULL);
    fixture.options.codec = KVL_DISK_CODEC_RAW;
    fixture.keep_below = UINT64_MAX;
    open_with(capacity);
    while (fixture.asked == 0)
        assert_int_equal(store_mib(number++), KVL_OK);
    assert_true(number > 20 * of_a_segment);
    uint64_t end_ns = kvl_clock_ns() + 300000000ull;
    while (kvl_clock_ns() < end_ns)
        fixture_poll(&fixture);
    assert_true(fixture.asked <= 8 * of_a_segment);
    fixture_close(&fixture, true);
    fixture_remove(&fixture);
}

/* The segment that is active then is larger than today's, and its copies would need more room than
 * there will ever be: it is filled up first. */
static void a_much_smaller_capacity_stores_on(void **state) {
    (void)state;
    static const uint64_t capacities[][2] = {{64 * MIB, 16 * MIB}, {256 * MIB, 20 * MIB}};
    for (uint32_t i = 0; i < sizeof capacities / sizeof *capacities; i++) {
        fixture_init(&fixture, capacities[i][0], NULL);
        fixture.options.codec = KVL_DISK_CODEC_RAW;
        open_with(capacities[i][0]);
        for (uint64_t number = 0; number < 12; number++)
            assert_int_equal(store_mib(number), KVL_OK);
        fixture_close(&fixture, true);
        open_with(capacities[i][1]);
        for (uint64_t number = 100; number < 160; number++)
            assert_int_equal(store_mib(number), KVL_OK);
        fixture_close(&fixture, true);
        fixture_remove(&fixture);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(carrying_without_gain_ends),
        cmocka_unit_test(carrying_that_fails_leaves_room_for_the_next),
        cmocka_unit_test(a_kept_block_that_cannot_be_read_is_in_nobodys_way),
        cmocka_unit_test(the_oldest_blocks_go_first),
        cmocka_unit_test(ahead_of_need_few_are_asked_about),
        cmocka_unit_test(larger_segments_are_carried_over_too),
        cmocka_unit_test(a_smaller_capacity_leaves_room_for_carrying),
        cmocka_unit_test(a_much_smaller_capacity_stores_on)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
