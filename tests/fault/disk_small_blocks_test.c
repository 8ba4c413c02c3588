/* Blocks so small that their rows take much of the index, and that a group of them copies more of
 * its pages than are left: transactions are no larger than the map allows, and none is refused. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
/* cmocka needs the four above first */
#include <cmocka.h>
#include <stdlib.h>

#include "clock.h"
#include "disk_fixture.h"

#define MIB (1ull << 20)
#define IN_FLIGHT_MAX 4000u
#define LIMIT_NS 30000000000ull /* nothing at all ends for so long: nothing ever will */

static struct disk_fixture fixture;
static struct disk_block blocks[IN_FLIGHT_MAX];
static uint64_t next_number, ended_ns, stored, refused;
static uint32_t keep_one_in;
static uint64_t salt;

static bool on_keep(void *arg, const struct kvl_key *key) {
    (void)arg;
    return keep_one_in != 0 && (block_number_of(key) * 2654435761u + salt) % keep_one_in == 0;
}

static void on_complete(struct kvl_io *io) {
    struct disk_block *block = kvl_container_of(io, struct disk_block, io);
    block->busy = false;
    ended_ns = kvl_clock_ns();
    stored += io->status == KVL_OK;
    /* Some are of no use any more as soon as they are there. */
    if (io->status == KVL_OK && keep_one_in != 0 && block->number % 4 == 0)
        fixture.tier->ops->discard(fixture.tier, &io->record.key, io->location);
    refused += io->status == KVL_ERR_NOSPC;
}

static void begin(struct disk_block *block) {
    block_free(block);
    block_init_bytes(block, &fixture, next_number++, 4096);
    block->io.op = KVL_IO_STORE;
    block->io.complete = on_complete;
    block->busy = true;
    assert_int_equal(fixture.tier->ops->submit(fixture.tier, &block->io), KVL_OK);
}

static uint32_t busy_count(uint32_t in_flight) {
    uint32_t count = 0;
    for (uint32_t i = 0; i < in_flight; i++)
        count += blocks[i].busy;
    return count;
}

/* So many more are stored or refused, so many at a time. */
static void store_more(uint64_t count, uint32_t in_flight) {
    uint64_t end = next_number + count;
    stored = refused = 0;
    ended_ns = kvl_clock_ns();
    while (next_number < end || busy_count(in_flight) > 0) {
        for (uint32_t i = 0; i < in_flight && next_number < end; i++) {
            if (!blocks[i].busy)
                begin(&blocks[i]);
        }
        fixture_poll(&fixture);
        assert_true(kvl_clock_ns() < ended_ns + LIMIT_NS);
    }
    assert_int_equal(stored, count);
    assert_int_equal(refused, 0);
}

static void open_with(uint64_t capacity_bytes) {
    fixture_init(&fixture, capacity_bytes, NULL);
    fixture.options.codec = KVL_DISK_CODEC_RAW;
    assert_int_equal(fixture_open(&fixture), KVL_OK);
    fixture.tier->events = (struct kvl_tier_events){
        .arg = &fixture, .loaded = fixture.tier->events.loaded, .keep = on_keep};
    fixture_wait_loaded(&fixture);
}

static void close_all(void) {
    for (uint32_t i = 0; i < IN_FLIGHT_MAX; i++)
        block_free(&blocks[i]);
    assert_int_equal(fixture.tier->ops->drain(fixture.tier), KVL_OK);
    fixture_close(&fixture, false);
    assert_true(fixture_disk_usage(&fixture) <= fixture.options.capacity_bytes);
    fixture_remove(&fixture);
}

static void what_is_old_makes_room_for_ever(void **state) {
    (void)state;
    keep_one_in = 0;
    open_with(64 * MIB);
    store_more(12000, 256);
    store_more(4000, 256);
    close_all();
}

/* Nor where a fifth is carried over again and again. */
static void what_is_kept_leaves_room(void **state) {
    (void)state;
    keep_one_in = 5;
    open_with(32 * MIB);
    for (salt = 0; salt < 40; salt++)
        store_more(5000, 700);
    close_all();
}

/* As many at once as a group of batches takes. */
static void groups_are_no_larger_than_the_map(void **state) {
    (void)state;
    keep_one_in = 0;
    open_with(256 * MIB);
    store_more(80000, IN_FLIGHT_MAX);
    close_all();
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(what_is_old_makes_room_for_ever),
        cmocka_unit_test(what_is_kept_leaves_room),
        cmocka_unit_test(groups_are_no_larger_than_the_map)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
