/* table_test.c - the block table against a plain array, through growth and deletions. */
#include "table.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define KEYS 60000u

/* As keys are: spread over all bits. Few places on purpose where `crowd` is set. */
static struct kvl_key key_of(uint32_t number, bool crowd) {
    struct kvl_key key = {{0}};
    uint64_t word = (number + 1) * 0x9e3779b97f4a7c15u;
    memcpy(key.bytes, &word, sizeof(word));
    if (crowd)
        memset(key.bytes, 7, 8);
    memcpy(key.bytes + 8, &number, sizeof(number));
    return key;
}

static void it_answers_as_an_array_would(void **state) {
    (void)state;
    struct kvl_table *table = NULL;
    uint32_t *numbers = malloc(KEYS * sizeof(numbers[0]));
    uint32_t random = 1, live = 0;
    assert_int_equal(kvl_table_create(&table), KVL_OK);
    for (uint32_t i = 0; i < KEYS; i++)
        numbers[i] = KVL_BLOCK_NONE;
    for (uint32_t step = 0; step < 400000; step++) {
        random = random * 1664525u + 1013904223u;
        /* Grows first, then shrinks to a few: both moves of the index are met. */
        uint32_t i = (random >> 8) % (step < 250000 ? KEYS : KEYS / 8);
        struct kvl_key key = key_of(i, false);
        assert_int_equal(kvl_table_find(table, &key), numbers[i]);
        bool remove = numbers[i] != KVL_BLOCK_NONE && (step >= 250000 || (random >> 4) % 3 == 0);
        if (remove) {
            kvl_table_remove(table, numbers[i]);
            numbers[i] = KVL_BLOCK_NONE;
            live--;
        } else if (numbers[i] == KVL_BLOCK_NONE) {
            assert_int_equal(kvl_table_insert(table, &key, &numbers[i]), KVL_OK);
            live++;
        }
        assert_int_equal(kvl_table_count(table), live);
    }
    for (uint32_t i = 0; i < KEYS; i++) {
        struct kvl_key key = key_of(i, false);
        assert_int_equal(kvl_table_find(table, &key), numbers[i]);
    }
    free(numbers);
    kvl_table_destroy(table);
}

static void many_are_found_as_one_by_one(void **state) {
    (void)state;
    struct kvl_table *table = NULL;
    struct kvl_key keys[1000];
    uint32_t blocks[1000], block;
    assert_int_equal(kvl_table_create(&table), KVL_OK);
    for (uint32_t i = 0; i < 1000; i++) {
        keys[i] = key_of(i, i % 50 == 0); /* some share their place and tag */
        if (i % 3 != 0 || i % 50 == 0)
            assert_int_equal(kvl_table_insert(table, &keys[i], &block), KVL_OK);
        kvl_table_find_many(table, keys, i + 1, blocks);
        assert_int_equal(blocks[i], kvl_table_find(table, &keys[i]));
    }
    for (uint32_t i = 0; i < 1000; i++)
        assert_int_equal(blocks[i] != KVL_BLOCK_NONE, i % 3 != 0 || i % 50 == 0);
    kvl_table_destroy(table);
}

static void remove_key(struct kvl_table *table, const struct kvl_key *key) {
    uint32_t block = kvl_table_find(table, key);
    if (block != KVL_BLOCK_NONE)
        kvl_table_remove(table, block);
}

/* Keys whose numbers follow one another are found without the index: not beyond a gap, nor where
 * another key took a number over, nor past the end. */
static void rows_of_numbers_end_where_they_end(void **state) {
    (void)state;
    enum { CHAIN = 300 };
    struct kvl_table *table = NULL;
    static struct kvl_key keys[CHAIN + 1];
    static uint32_t blocks[CHAIN + 1];
    const struct kvl_key others[] = {key_of(5000, false), key_of(5001, false)};
    uint32_t block;
    assert_int_equal(kvl_table_create(&table), KVL_OK);
    for (uint32_t i = 0; i < CHAIN; i++) {
        keys[i] = key_of(i, false);
        assert_int_equal(kvl_table_insert(table, &keys[i], &block), KVL_OK);
    }
    assert_int_equal(kvl_table_insert(table, &others[0], &block), KVL_OK);
    remove_key(table, &others[0]);
    keys[CHAIN] = (struct kvl_key){{0}}; /* as the unused entry has it that comes next */
    for (uint32_t round = 0; round < 4; round++) {
        for (uint32_t from = 0; from <= CHAIN; from += 7) {
            kvl_table_find_many(table, keys + from, CHAIN + 1 - from, blocks);
            for (uint32_t i = from; i <= CHAIN; i++)
                assert_int_equal(blocks[i - from], kvl_table_find(table, &keys[i]));
        }
        remove_key(table, &keys[40 + 60 * round]);
        remove_key(table, &keys[CHAIN - 1 - round]);
        if (round < 2)
            assert_int_equal(kvl_table_insert(table, &others[round], &block), KVL_OK);
    }
    kvl_table_destroy(table);
}

static void children_are_counted(void **state) {
    (void)state;
    struct kvl_table *table = NULL;
    struct kvl_key keys[3] = {key_of(1, false), key_of(2, false), key_of(3, false)};
    uint32_t parent, one, two;
    assert_int_equal(kvl_table_create(&table), KVL_OK);
    assert_int_equal(kvl_table_insert(table, &keys[0], &parent), KVL_OK);
    assert_int_equal(kvl_table_insert(table, &keys[1], &one), KVL_OK);
    assert_int_equal(kvl_table_insert(table, &keys[2], &two), KVL_OK);
    kvl_table_link(table, one, parent);
    kvl_table_link(table, two, parent);
    assert_int_equal(kvl_table_at(table, parent)->children, 2);
    assert_int_equal(kvl_table_unlink(table, one), parent);
    assert_int_equal(kvl_table_unlink(table, one), KVL_BLOCK_NONE);
    assert_int_equal(kvl_table_at(table, parent)->children, 1);
    kvl_table_destroy(table);
}

static void a_parent_of_very_many_counts_no_more_until_it_has_none(void **state) {
    (void)state;
    struct kvl_table *table = NULL;
    struct kvl_key keys[2] = {key_of(1, false), key_of(2, false)};
    uint32_t parent, child;
    assert_int_equal(kvl_table_create(&table), KVL_OK);
    assert_int_equal(kvl_table_insert(table, &keys[0], &parent), KVL_OK);
    assert_int_equal(kvl_table_insert(table, &keys[1], &child), KVL_OK);
    kvl_table_link(table, child, parent);
    kvl_table_child_came(table, parent, 1);
    assert_int_equal(kvl_table_at(table, parent)->tier_children[1], 1);
    kvl_table_child_left(table, parent, 1);
    assert_int_equal(kvl_table_at(table, parent)->tier_children[1], 0);
    for (uint32_t i = 0; i < 70000; i++)
        kvl_table_child_came(table, parent, 1);
    for (uint32_t i = 0; i < 70000; i++)
        kvl_table_child_left(table, parent, 1);
    assert_int_not_equal(kvl_table_at(table, parent)->tier_children[1], 0);
    assert_int_equal(kvl_table_unlink(table, child), parent);
    assert_int_equal(kvl_table_at(table, parent)->tier_children[1], 0);
    kvl_table_child_came(table, KVL_BLOCK_NONE, 0);
    kvl_table_child_left(table, KVL_BLOCK_NONE, 0);
    kvl_table_destroy(table);
}

static void an_entry_costs_what_is_promised(void **state) {
    (void)state;
    struct kvl_table *table = NULL;
    uint32_t block;
    assert_int_equal(kvl_table_create(&table), KVL_OK);
    /* Just after the index grew and its old half went: the most it costs for long. */
    for (uint32_t i = 0; i < 205000; i++) {
        struct kvl_key key = key_of(i, false);
        assert_int_equal(kvl_table_insert(table, &key, &block), KVL_OK);
    }
    /* 128 are promised for a block on disk; the disk tier keeps 16 for its record. */
    assert_true(kvl_table_bytes(table) / kvl_table_count(table) <= 112);
    kvl_table_destroy(table);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(it_answers_as_an_array_would),
        cmocka_unit_test(many_are_found_as_one_by_one),
        cmocka_unit_test(rows_of_numbers_end_where_they_end),
        cmocka_unit_test(children_are_counted),
        cmocka_unit_test(a_parent_of_very_many_counts_no_more_until_it_has_none),
        cmocka_unit_test(an_entry_costs_what_is_promised),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
