/* Blocks that are sought while the index is still being loaded: found and read at once, told once,
 * and never said to be missing before that is certain. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
/* cmocka needs the four above first */
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "disk_fixture.h"
#include "large_index.h"

#define BLOCKS 12u
#define ABSENT 99u /* no block has this number */
#define NAMESPACE_NAME "seven"

/* What the tier told. */
struct heard {
    uint32_t blocks[BLOCKS], rows[LARGE_ROWS]; /* how often found */
    uint64_t locations[BLOCKS];
    uint32_t lost, namespaces, records;
    uint64_t over; /* the last seek that was */
    bool over_certain, certain, loaded;
    kvl_err loaded_status;
    uint64_t generation_max;
    uint32_t records_before; /* it was checked */
};

static struct disk_fixture fixture;
static struct disk_block blocks[BLOCKS];
static struct heard heard;

/* ---- an owner ----------------------------------------------------------------------------- */

static void on_found(void *arg, const struct kvl_block_record *record, uint64_t location,
    uint64_t stored_bytes, uint64_t last_use_wall_ns) {
    uint32_t row = large_number(&record->key);
    uint64_t number = block_number_of(&record->key);
    (void)arg, (void)stored_bytes, (void)last_use_wall_ns;
    if (row < LARGE_ROWS) {
        heard.rows[row]++;
    } else if (number < BLOCKS) {
        heard.blocks[number]++;
        heard.locations[number] = location;
    }
}

static void on_sought(void *arg, uint64_t number, bool certain) {
    (void)arg;
    if (number == 0)
        return;
    heard.over = number;
    heard.over_certain = certain;
}

static void on_checked(void *arg, uint64_t generation_max) {
    (void)arg;
    assert_false(heard.certain);
    heard.certain = true;
    heard.records_before = heard.records;
    heard.generation_max = generation_max;
}

static void on_loaded(void *arg, kvl_err status) {
    (void)arg;
    heard.loaded = true;
    heard.loaded_status = status;
}

static void on_lost(void *arg, const struct kvl_key *key, uint64_t location) {
    uint64_t number = block_number_of(key);
    (void)arg;
    if (number < BLOCKS && heard.locations[number] == location)
        heard.lost++;
}

static void on_catalog(void *arg, enum kvl_catalog_kind kind, const void *key, uint32_t key_bytes,
    const void *value, uint32_t value_bytes) {
    (void)arg, (void)key, (void)key_bytes, (void)value, (void)value_bytes;
    heard.namespaces += kind == KVL_CATALOG_NAMESPACE;
    heard.records += kind != KVL_CATALOG_NAMESPACE;
}

static void listen_anew(void) {
    heard = (struct heard){.loaded_status = KVL_ERR_BUSY};
    fixture.tier->events = (struct kvl_tier_events){.found = on_found,
        .sought = on_sought,
        .checked = on_checked,
        .loaded = on_loaded,
        .lost = on_lost};
    fixture.catalog->found = on_catalog;
}

static void open_tier(void) {
    if (fixture_open(&fixture) != KVL_OK)
        fail_msg("%s", fixture.msg.text);
    listen_anew();
}

static void wait_loaded(void) {
    while (!heard.loaded)
        fixture_poll(&fixture);
    assert_int_equal(heard.loaded_status, KVL_OK);
}

/* ---- a folder with blocks and many rows --------------------------------------------------- */

static void put_namespace(void) {
    assert_int_equal(
        fixture.catalog->ops->put(fixture.catalog, KVL_CATALOG_NAMESPACE, NAMESPACE_NAME,
            sizeof(NAMESPACE_NAME), NAMESPACE_NAME, sizeof(NAMESPACE_NAME)),
        KVL_OK);
}

static int make_folder(void **state) {
    (void)state;
    large_gate_open();
    fixture_init(&fixture, LARGE_CAPACITY, NULL);
    fixture.options.codec = KVL_DISK_CODEC_RAW;
    open_tier();
    wait_loaded();
    for (uint32_t n = 0; n < BLOCKS; n++) {
        uint32_t i = n * 5 % BLOCKS; /* the walk meets them in another order */
        block_init_bytes(&blocks[i], &fixture, i, 3000 + 5000 * i);
        assert_int_equal(block_do(&blocks[i], KVL_IO_STORE), KVL_OK);
    }
    put_namespace();
    fixture_put(&fixture, "session", "its value");
    fixture_close(&fixture, true);
    large_index_add(fixture.path, LARGE_ROWS, 3);
    return 0;
}

static int remove_folder(void **state) {
    (void)state;
    large_gate_open();
    for (uint32_t i = 0; i < BLOCKS; i++)
        block_free(&blocks[i]);
    fixture_remove(&fixture);
    return 0;
}

static kvl_err seek_keys(
    const struct kvl_key *keys, uint32_t count, bool leading, uint64_t number) {
    const struct kvl_tier_seek wanted = {
        .keys = keys, .count = count, .leading = leading, .number = number};
    return fixture.tier->ops->seek(fixture.tier, &wanted);
}

static struct kvl_key key_of(uint32_t number) {
    struct kvl_key key = blocks[0].io.record.key;
    uint64_t wanted = number;
    memcpy(key.bytes, &wanted, sizeof(wanted));
    return key;
}

/* Behind all that there are: no row bears witness that it is not there. */
static struct kvl_key last_key(void) {
    struct kvl_key key;
    memset(key.bytes, 0xff, sizeof(key.bytes));
    return key;
}

static kvl_err seek_block(uint32_t block, uint64_t number) {
    struct kvl_key key = key_of(block);
    return seek_keys(&key, 1, true, number);
}

/* While the index is still being read ahead, so before it was checked. */
static void wait_over(uint64_t number) {
    while (heard.over < number) {
        large_gate_pass();
        fixture_poll(&fixture);
        assert_false(heard.loaded || heard.certain);
    }
}

static void start_held_up(void) {
    large_gate_close();
    open_tier();
}

static void go_on(void) {
    large_gate_open();
    wait_loaded();
}

static void assert_reads(uint32_t block) {
    kvl_err err = KVL_OK;
    blocks[block].io.location = heard.locations[block];
    if (!block_load_same(&blocks[block], &err))
        fail_msg("block %u is not read as it was stored: %s", block, kvl_err_name(err));
}

static void assert_all_told_once(void) {
    for (uint32_t i = 0; i < BLOCKS; i++)
        assert_int_equal(heard.blocks[i], 1);
    for (uint32_t i = 0; i < LARGE_ROWS; i++)
        assert_int_equal(heard.rows[i], 1);
}

/* ---- tests -------------------------------------------------------------------------------- */

static void what_is_sought_is_found_and_read_before_the_rest(void **state) {
    (void)state;
    start_held_up();
    assert_int_equal(seek_block(4, 1), KVL_OK);
    wait_over(1);
    assert_int_equal(heard.namespaces, 1); /* or the block could not be taken up */
    assert_int_equal(heard.blocks[4], 1);
    assert_int_equal(heard.blocks[5], 0);
    assert_reads(4);
    assert_int_equal(seek_block(4, 2), KVL_OK); /* somebody else asks for the same */
    assert_int_equal(seek_block(7, 3), KVL_OK);
    wait_over(3);
    assert_int_equal(heard.blocks[4], 1);
    assert_reads(7);
    go_on();
    assert_all_told_once();
    assert_int_equal(heard.records, 1);
    assert_int_equal(heard.records_before, 1);
    assert_int_equal(heard.generation_max, LARGE_ROWS);
    for (uint32_t i = 0; i < BLOCKS; i++)
        assert_reads(i);
    fixture_close(&fixture, true);
}

/* Its neighbours say so, both on one page. */
static void what_is_absent_is_so_before_the_index_was_checked(void **state) {
    (void)state;
    const struct kvl_key keys[] = {key_of(1), key_of(ABSENT), key_of(2), last_key()};
    start_held_up();
    assert_int_equal(seek_keys(keys, 4, true, 1), KVL_OK);
    wait_over(1);
    assert_true(heard.over_certain);
    assert_int_equal(heard.blocks[1], 1);
    assert_int_equal(heard.blocks[2], 0); /* not sought any more */
    assert_int_equal(seek_keys(keys, 3, false, 2), KVL_OK);
    wait_over(2);
    assert_true(heard.over_certain);
    assert_int_equal(heard.blocks[2], 1);
    assert_int_equal(seek_keys(keys, 4, false, 3), KVL_OK);
    wait_over(3);
    assert_false(heard.over_certain);
    go_on();
    assert_all_told_once();
    fixture_close(&fixture, true);
}

static void what_is_not_found_is_missing_only_once_it_is_certain(void **state) {
    (void)state;
    const struct kvl_key keys[] = {key_of(5), last_key(), key_of(3)};
    start_held_up();
    assert_int_equal(seek_keys(keys, 2, true, 1), KVL_OK);
    wait_over(1);
    assert_false(heard.over_certain);
    assert_int_equal(heard.blocks[5], 1);
    large_gate_open();
    while (!heard.certain)
        fixture_poll(&fixture);
    /* The owner has polled too seldom for all to be loaded: some 65 of 79 chunks have left at most.
     */
    assert_false(heard.loaded);
    assert_int_equal(seek_keys(keys, 3, false, 2), KVL_OK);
    while (heard.over < 2)
        fixture_poll(&fixture);
    assert_true(heard.over_certain);
    assert_false(heard.loaded);
    assert_int_equal(heard.blocks[3], 1);
    assert_reads(3);
    wait_loaded();
    assert_all_told_once();
    fixture_close(&fixture, true);
}

/* A row that is sound and one that is not, or rows that are hidden, bear no witness. */
static void a_damaged_neighbour_proves_nothing(void **state) {
    (void)state;
    uint32_t row = 0; /* the first behind the absent key */
    struct kvl_key absent = key_of(ABSENT), behind = last_key();
    for (uint32_t i = 0; i < LARGE_ROWS; i++) {
        struct kvl_key key = large_key(i);
        if (memcmp(key.bytes, absent.bytes, sizeof(key.bytes)) > 0 &&
            memcmp(key.bytes, behind.bytes, sizeof(key.bytes)) < 0) {
            behind = key;
            row = i;
        }
    }
    uint64_t hash = large_content_hash(row);
    large_index_damage(fixture.path, &hash, sizeof(hash));
    start_held_up();
    assert_int_equal(seek_block(ABSENT, 1), KVL_OK);
    for (int i = 0; i < 3; i++) {
        large_gate_pass();
        fixture_poll(&fixture);
    }
    assert_int_equal(heard.over, 0);
    go_on();
    for (uint32_t i = 0; i < BLOCKS; i++)
        assert_reads(i);
    fixture_close(&fixture, true);
}

/* Of a row that is unsound nothing is said; once the index was made anew, all is told again. */
static void a_damaged_index_hides_nothing_for_good(void **state) {
    (void)state;
    uint64_t hash = blocks[6].io.record.content_hash;
    large_index_damage(fixture.path, &hash, sizeof(hash));
    start_held_up();
    assert_int_equal(seek_block(2, 1), KVL_OK);
    wait_over(1);
    assert_int_equal(heard.blocks[2], 1);
    assert_reads(2);
    assert_int_equal(seek_block(6, 2), KVL_OK);
    for (int i = 0; i < 3; i++) {
        large_gate_pass();
        fixture_poll(&fixture);
    }
    assert_int_equal(heard.over, 1);
    go_on();
    assert_int_equal(heard.lost, 1); /* number 2, taken back */
    assert_int_equal(heard.blocks[2], 2);
    assert_int_equal(heard.blocks[6], 1);
    for (uint32_t i = 0; i < BLOCKS; i++)
        assert_reads(i);
    fixture_close(&fixture, true);
}

static void what_is_dropped_before_the_walk_stays_dropped(void **state) {
    (void)state;
    start_held_up();
    assert_int_equal(seek_block(8, 1), KVL_OK);
    assert_int_equal(seek_block(9, 2), KVL_OK);
    wait_over(2);
    fixture.tier->ops->discard(fixture.tier, &blocks[8].io.record.key, heard.locations[8]);
    kvl_err err = KVL_OK;
    blocks[8].io.location = heard.locations[8];
    assert_false(block_load_same(&blocks[8], &err));
    assert_int_equal(err, KVL_ERR_NOTFOUND);
    assert_int_equal(seek_block(8, 3), KVL_OK);
    wait_over(3);
    go_on();
    assert_all_told_once();
    assert_int_equal(fixture_flush(&fixture), KVL_OK);
    fixture_close(&fixture, true);
    open_tier();
    wait_loaded();
    assert_int_equal(heard.blocks[8], 0);
    assert_int_equal(heard.blocks[9], 1);
    fixture_close(&fixture, true);
}

/* Found by the walk, its entry stands among those that are in no order yet. */
static void what_the_walk_has_found_is_read_and_dropped_before_the_end(void **state) {
    (void)state;
    open_tier();
    while (heard.blocks[5] == 0)
        fixture_poll(&fixture);
    assert_false(heard.loaded); /* nor will it be before the owner polls again */
    assert_reads(5);
    fixture.tier->ops->discard(fixture.tier, &blocks[5].io.record.key, heard.locations[5]);
    wait_loaded();
    assert_int_equal(fixture_flush(&fixture), KVL_OK);
    fixture_close(&fixture, true);
    open_tier();
    wait_loaded();
    assert_int_equal(heard.blocks[5], 0);
    fixture_close(&fixture, true);
}

static void who_asks_for_too_much_is_told_so_and_delays_nobody_for_good(void **state) {
    (void)state;
    uint32_t count = 16384;
    struct kvl_key *keys = malloc(count * sizeof(*keys));
    assert_non_null(keys);
    for (uint32_t i = 0; i < count; i++)
        keys[i] = large_key(i % 2 == 0 ? i : LARGE_ROWS + i);
    start_held_up();
    for (uint64_t number = 1; number <= 4; number++)
        assert_int_equal(seek_keys(keys, count, false, number), KVL_OK);
    assert_int_equal(seek_keys(keys, 1, false, 5), KVL_ERR_AGAIN);
    large_gate_open();
    wait_loaded();
    assert_all_told_once();
    fixture_close(&fixture, true);
    free(keys);
}

static void a_stop_does_not_wait_for_what_is_sought(void **state) {
    (void)state;
    struct kvl_key keys[300];
    for (uint32_t i = 0; i < 300; i++)
        keys[i] = large_key(i);
    start_held_up();
    for (uint64_t number = 1; number <= 20; number++)
        assert_int_equal(seek_keys(keys, 300, false, number), KVL_OK);
    wait_over(1);
    large_gate_open();
    fixture_close(&fixture, false);
}

#define SEEK(test) cmocka_unit_test_setup_teardown(test, make_folder, remove_folder)

int main(void) {
    const struct CMUnitTest tests[] = {
        SEEK(what_is_sought_is_found_and_read_before_the_rest),
        SEEK(what_is_absent_is_so_before_the_index_was_checked),
        SEEK(what_is_not_found_is_missing_only_once_it_is_certain),
        SEEK(a_damaged_neighbour_proves_nothing),
        SEEK(a_damaged_index_hides_nothing_for_good),
        SEEK(what_is_dropped_before_the_walk_stays_dropped),
        SEEK(what_the_walk_has_found_is_read_and_dropped_before_the_end),
        SEEK(who_asks_for_too_much_is_told_so_and_delays_nobody_for_good),
        SEEK(a_stop_does_not_wait_for_what_is_sought),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
