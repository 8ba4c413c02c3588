/* window_test.c - what a model with windowed layers moves, holds and asks for, and that its bits
 * stay those of an engine alone. The model's layers 1 and 3 see everything, 0, 2 and 4 a window of
 * 70 tokens: at a block boundary that window reaches two blocks back.
 *
 * Requests are counted where the engine makes them (the linker's --wrap). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <fcntl.h>
#include <glob.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "golden_setup.h"

enum {
    BLOCK = FIXTURE_BLOCK_TOKENS,
    BLOCKS = 10,
    PROMPT = BLOCKS * BLOCK + 23,
    NEW_TOKENS = 24,
    WINDOW_BLOCKS = 2, /* that a restore needs */
    SEED = 11,
};

static uint64_t full_bytes, window_bytes; /* of a block */
static char address[256];
static const struct engine_options stored = {.stored = true};

/* ---- requests ---- */

static struct {
    unsigned lookup, lookup_each, restore, alloc, alloc_async, seal_async, release_async;
} asked;

#define COUNTED(name, parameters, arguments)                                                       \
    kvl_err __real_kvl_##name parameters;                                                          \
    kvl_err __wrap_kvl_##name parameters;                                                          \
    kvl_err __wrap_kvl_##name parameters {                                                         \
        ++asked.name;                                                                              \
        return __real_kvl_##name arguments;                                                        \
    }

COUNTED(lookup,
    (struct kvl_client * client, const struct kvl_key *keys, uint32_t count, uint8_t *found,
        uint32_t *hits),
    (client, keys, count, found, hits))
COUNTED(lookup_each,
    (struct kvl_client * client, const struct kvl_key *keys, uint32_t count, uint8_t *found),
    (client, keys, count, found))
COUNTED(restore,
    (struct kvl_client * client, enum kvl_tier_kind target, const struct kvl_key *keys,
        uint32_t count, struct kvl_restored *blocks, struct kvl_restore_result *result),
    (client, target, keys, count, blocks, result))
COUNTED(alloc,
    (struct kvl_client * client, uint32_t space, enum kvl_tier_kind target,
        const struct kvl_key *keys, uint32_t count, bool wait, struct kvl_allocated *blocks,
        struct kvl_ticket *ticket),
    (client, space, target, keys, count, wait, blocks, ticket))
COUNTED(alloc_async,
    (struct kvl_client * client, uint32_t space, enum kvl_tier_kind target,
        const struct kvl_key *keys, uint32_t count, bool wait, kvl_alloc_done done, void *arg),
    (client, space, target, keys, count, wait, done, arg))
COUNTED(seal_async,
    (struct kvl_client * client, const struct kvl_seal *blocks, uint32_t count, kvl_seal_done done,
        void *arg),
    (client, blocks, count, done, arg))
COUNTED(release_async,
    (struct kvl_client * client, const uint64_t *leases, uint32_t lease_count,
        const struct kvl_ticket *tickets, uint32_t ticket_count, kvl_plain_done done, void *arg),
    (client, leases, lease_count, tickets, ticket_count, done, arg))

/* ---- the fixture ---- */

static bool is_windowed(void) {
    return kvl_layer_group_count(&fixture.model->hparams) > 1;
}

static int set_up_all(void **state) {
    (void)state;
    int failed = expect_answer(SEED, PROMPT, NEW_TOKENS);
    snprintf(address, sizeof address, "ipc://%s/socket", fixture.disk_path);
    fixture.address = address;
    full_bytes = kvl_group_block_bytes(&fixture.model->hparams, 0, BLOCK, KVL_KV_F16);
    window_bytes = kvl_group_block_bytes(&fixture.model->hparams, 1, BLOCK, KVL_KV_F16);
    return failed;
}

/* The keys of the prompt's whole blocks in a layer group. */
static void name_blocks(const struct engine *engine, uint32_t group, struct kvl_key *keys) {
    assert_int_equal(kvl_key_chain(kvl_connection_namespace(&engine->connection, group), prompt,
                         BLOCKS * BLOCK, BLOCK, keys),
        KVL_OK);
}

/* Which of a group's blocks the daemon has, in order, a digit each: 1 somewhere, 0 nowhere. Waits
 * for those that are being hashed. */
static void what_is_there(const struct engine *engine, uint32_t group, char digits[BLOCKS + 1]) {
    struct kvl_key keys[BLOCKS];
    uint8_t found[BLOCKS];
    digits[BLOCKS] = 0;
    name_blocks(engine, group, keys);
    bool hashing = true;
    for (int tries = 0; hashing && tries < 5000; ++tries) {
        assert_int_equal(kvl_lookup_each(engine->connection.client, keys, BLOCKS, found), KVL_OK);
        hashing = false;
        for (int i = 0; i < BLOCKS; ++i) {
            hashing = hashing || found[i] == KVL_FOUND_SEALING;
            digits[i] = found[i] != 0 ? '1' : '0';
        }
        if (hashing)
            usleep(1000);
    }
    assert_false(hashing);
}

static void assert_there(uint32_t group, const char *expected_digits) {
    struct engine engine;
    char digits[BLOCKS + 1];
    engine_open(&engine, &fixture, &stored);
    what_is_there(&engine, group, digits);
    assert_string_equal(digits, expected_digits);
    engine_close(&engine);
}

static void wait_for(struct engine *engine, struct kvl_ticket ticket) {
    struct kvl_progress progress;
    if (ticket.generation != 0)
        assert_int_equal(
            kvl_ticket_wait(engine->connection.client, ticket, UINT32_MAX, 10000, &progress),
            KVL_OK);
}

static void demote(uint32_t group, enum kvl_tier_kind target) {
    struct engine engine;
    struct kvl_key keys[BLOCKS];
    struct kvl_ticket ticket;
    engine_open(&engine, &fixture, &stored);
    name_blocks(&engine, group, keys);
    assert_int_equal(kvl_demote(engine.connection.client, target, keys, BLOCKS, &ticket), KVL_OK);
    wait_for(&engine, ticket);
    engine_close(&engine);
}

/* The daemon forgets a group's blocks. */
static void forget(uint32_t group) {
    struct engine engine;
    struct kvl_ticket ticket;
    engine_open(&engine, &fixture, &stored);
    assert_int_equal(kvl_clear(engine.connection.client, KVL_CLEAR_NAMESPACE,
                         kvl_connection_space(&engine.connection, group)->id, NULL, &ticket),
        KVL_OK);
    wait_for(&engine, ticket);
    engine_close(&engine);
}

/* A run that must give the expected bits, from so many restored blocks and moved bytes. */
static void assert_restores(uint32_t blocks, uint64_t bytes) {
    struct kvl_turn_report report;
    assert_int_equal(engine_run(&fixture, &stored, prompt, PROMPT, NEW_TOKENS, &report), KVL_OK);
    assert_true(same_logits(&report, &expected));
    assert_int_equal(restored_tokens(&report), blocks * BLOCK);
    assert_int_equal(report.computed_tokens, PROMPT - blocks * BLOCK);
    assert_int_equal(report.restored_bytes, bytes);
    kvl_turn_report_deinit(&report);
}

/* ---- what is moved ---- */

static void test_a_restore_moves_what_the_window_needs(void **state) {
    (void)state;
    const uint64_t bytes = BLOCKS * full_bytes + WINDOW_BLOCKS * window_bytes;
    for (int target = KVL_TIER_DEVICE; target < KVL_TIER_COUNT; ++target) {
        fixture_start(&fixture, 32, 32, true);
        store_prompt(PROMPT);
        for (uint32_t group = 0; group < 2 && target != KVL_TIER_DEVICE; ++group)
            demote(group, (enum kvl_tier_kind)target);
        assert_restores(BLOCKS, target == KVL_TIER_DEVICE ? 0 : bytes);
        fixture_stop(&fixture);
    }
    fixture_start(&fixture, 32, 0, true); /* all of them on disk */
    assert_restores(BLOCKS, bytes);
}

static void test_any_shared_prefix_is_restored(void **state) {
    (void)state;
    for (uint32_t blocks = 0; blocks <= BLOCKS; blocks += quick ? 5 : 1) {
        uint32_t of_window = blocks < WINDOW_BLOCKS ? blocks : WINDOW_BLOCKS;
        fixture_start(&fixture, 32, 32, true);
        forget(0);
        forget(1);
        store_prompt(blocks * BLOCK + 1);
        demote(0, KVL_TIER_HOST);
        demote(1, KVL_TIER_HOST);
        assert_restores(blocks, blocks * full_bytes + of_window * window_bytes);
        fixture_stop(&fixture);
    }
}

/* Where the groups' blocks are in unlike tiers, a token counts where the farther one was. */
static void test_tokens_count_where_the_farthest_block_was(void **state) {
    (void)state;
    struct kvl_turn_report report;
    fixture_start(&fixture, 32, 32, true);
    store_prompt(PROMPT);
    demote(1, KVL_TIER_DISK);
    assert_int_equal(engine_run(&fixture, &stored, prompt, PROMPT, NEW_TOKENS, &report), KVL_OK);
    assert_int_equal(report.restored_tokens[KVL_TIER_DEVICE], (BLOCKS - WINDOW_BLOCKS) * BLOCK);
    assert_int_equal(report.restored_tokens[KVL_TIER_HOST], 0);
    assert_int_equal(report.restored_tokens[KVL_TIER_DISK], WINDOW_BLOCKS * BLOCK);
    assert_int_equal(report.restored_bytes, WINDOW_BLOCKS * window_bytes);
    assert_true(same_logits(&report, &expected));
    kvl_turn_report_deinit(&report);
}

/* ---- one group has less than the other ---- */

static void test_blocks_without_their_window_are_computed(void **state) {
    (void)state;
    fixture_start(&fixture, 40, 0, false);
    store_prompt(PROMPT);
    forget(1);
    assert_restores(0, 0);
    assert_restores(BLOCKS, 0); /* and the window is there again */
    forget(1);
    store_prompt(4 * BLOCK + 1); /* of all of group 0, four blocks can be entered behind */
    assert_restores(4, 0);
    assert_restores(BLOCKS, 0);
}

static void test_a_window_without_its_blocks_is_computed(void **state) {
    (void)state;
    fixture_start(&fixture, 40, 0, false);
    store_prompt(PROMPT);
    forget(0);
    assert_restores(0, 0);
    forget(0);
    store_prompt(7 * BLOCK + 1);
    assert_restores(7, 0);
    assert_restores(BLOCKS, 0);
}

/* A full device gives up what windows have left behind first, and a restore does not miss it. */
static void test_what_was_left_behind_makes_room_first(void **state) {
    (void)state;
    struct engine engine;
    struct kvl_turn_report report;
    char digits[BLOCKS + 1];
    uint32_t other[4 * BLOCK];
    fixture_start(&fixture, BLOCKS + 2, 0, false);
    store_prompt(PROMPT);
    fixture_tokens(&fixture, SEED + 1, other, 4 * BLOCK);
    assert_int_equal(engine_run(&fixture, &stored, other, 4 * BLOCK, 0, &report), KVL_OK);
    assert_int_equal(report.private_tokens, 0);
    kvl_turn_report_deinit(&report);
    assert_there(0, "1111111111");
    engine_open(&engine, &fixture, &stored);
    what_is_there(&engine, 1, digits);
    engine_close(&engine);
    assert_int_equal(strncmp(digits, "0000", 4), 0);
    assert_restores(BLOCKS, 0);
}

/* A slot that an engine has got ahead for a block which its restore then passes over holds nothing:
 * it must not be sealed under that block's name. */
static void test_a_slot_of_a_block_passed_over_is_given_back(void **state) {
    (void)state;
    struct engine engine;
    struct kvl_turn_report report;
    char digits[BLOCKS + 1];
    uint32_t other[6 * BLOCK];
    fixture_start(&fixture, BLOCKS + 5, 0, false);
    engine_open(&engine, &fixture, &stored);
    assert_int_equal(engine_turn(&engine, prompt, 2 * BLOCK, 0, &report), KVL_OK);
    kvl_turn_report_deinit(&report);
    store_prompt(PROMPT);
    fixture_tokens(&fixture, SEED + 1, other, 6 * BLOCK);
    assert_int_equal(engine_run(&fixture, &stored, other, 6 * BLOCK, 0, &report), KVL_OK);
    kvl_turn_report_deinit(&report);
    what_is_there(&engine, 1, digits);
    assert_int_equal(digits[2], '0'); /* it made room */
    assert_int_equal(
        engine_turn(&engine, prompt + 2 * BLOCK, PROMPT - 2 * BLOCK, NEW_TOKENS, &report), KVL_OK);
    assert_int_equal(restored_tokens(&report), (BLOCKS - 2) * BLOCK);
    assert_true(same_logits(&report, &expected));
    kvl_turn_report_deinit(&report);
    what_is_there(&engine, 1, digits);
    assert_int_equal(digits[2], '0');
    engine_close(&engine);
}

/* One page of the segments is overwritten, at each place in turn: whichever group's block it was,
 * what came in both groups is used and the rest is computed. */
static void damage_segments(long at_page) {
    static const uint8_t noise[4096] = {0x5a, 0xa5};
    char pattern[256];
    glob_t files;
    snprintf(pattern, sizeof pattern, "%s/segments/*.seg", fixture.disk_path);
    assert_int_equal(glob(pattern, 0, NULL, &files), 0);
    for (size_t i = 0; i < files.gl_pathc; ++i) {
        int fd = open(files.gl_pathv[i], O_WRONLY);
        assert_true(fd >= 0);
        assert_int_equal(pwrite(fd, noise, sizeof noise, at_page * 4096), sizeof noise);
        close(fd);
    }
    globfree(&files);
}

static void empty_disk(void) {
    char command[256];
    snprintf(command, sizeof command, "rm -rf '%s'/*", fixture.disk_path);
    assert_int_equal(system(command), 0);
}

static void test_a_damaged_block_of_either_group_costs_no_bit(void **state) {
    (void)state;
    unsigned whole = 0, cut = 0;
    for (long page = 2; page < 130; page += quick ? 32 : 8) {
        struct kvl_turn_report report;
        empty_disk();
        fixture_start(&fixture, 32, 0, true);
        store_prompt(PROMPT);
        fixture_stop(&fixture);
        damage_segments(page);
        fixture_start(&fixture, 32, 0, true);
        assert_int_equal(
            engine_run(&fixture, &stored, prompt, PROMPT, NEW_TOKENS, &report), KVL_OK);
        assert_true(same_logits(&report, &expected));
        whole += restored_tokens(&report) == BLOCKS * BLOCK;
        cut += restored_tokens(&report) < BLOCKS * BLOCK;
        kvl_turn_report_deinit(&report);
        fixture_stop(&fixture);
    }
    empty_disk();
    assert_true(whole > 0); /* of the window group, no more than the window is looked at */
    assert_true(cut > 0);
}

/* ---- what is held ---- */

/* The device has room for all of group 0, but of the window group for the window and some blocks
 * that are being filled or sealed. */
static void test_a_long_context_holds_the_window_only(void **state) {
    (void)state;
    struct engine engine, watcher;
    struct kvl_turn_report report, alone;
    struct kvl_store_report held;
    const uint32_t count = 15 * BLOCK + 5;
    fixture_start_bytes(&fixture, 16 * full_bytes + 6 * window_bytes, 0, false);
    engine_open(&engine, &fixture, &(struct engine_options){.stored = true, .chunk_tokens = BLOCK});
    engine_open(&watcher, &fixture, &stored);
    assert_int_equal(engine_turn(&engine, prompt, count, NEW_TOKENS, &report), KVL_OK);
    assert_int_equal(report.private_tokens, 0);
    assert_int_equal(kvl_stats(watcher.connection.client, &held, NULL), KVL_OK);
    assert_int_equal(held.leased_bytes, 16 * full_bytes + 3 * window_bytes);
    assert_int_equal(
        engine_run(&fixture, &(struct engine_options){0}, prompt, count, NEW_TOKENS, &alone),
        KVL_OK);
    assert_true(same_logits(&report, &alone));
    engine_close(&watcher);
    engine_close(&engine);
    kvl_turn_report_deinit(&report);
    kvl_turn_report_deinit(&alone);
}

/* Where leases of another fill the tier, the window is offered again and moves in, so that the next
 * one finds it. */
static void test_a_private_window_moves_in_when_there_is_room(void **state) {
    (void)state;
    struct engine holder, engine;
    struct kvl_turn_report first, second;
    struct kvl_store_report report = {0};
    struct kvl_key no_keys[BLOCKS] = {{{0}}};
    struct kvl_allocated granted[BLOCKS];
    struct kvl_ticket ticket;
    fixture_start(&fixture, BLOCKS + 3, 0, false);
    engine_open(&holder, &fixture, &stored);
    for (uint32_t group = 0; group < 2; ++group)
        assert_int_equal(
            kvl_alloc(holder.connection.client, kvl_connection_space(&holder.connection, group)->id,
                KVL_TIER_DEVICE, no_keys, BLOCKS, false, granted, &ticket),
            KVL_OK);
    engine_open(&engine, &fixture, &(struct engine_options){.stored = true, .chunk_tokens = 100});
    assert_int_equal(engine_turn(&engine, prompt, PROMPT, NEW_TOKENS, &first), KVL_OK);
    assert_true(first.private_tokens > WINDOW_BLOCKS * BLOCK);
    assert_true(same_logits(&first, &expected));
    engine_close(&holder);
    for (int tries = 0; report.clients != 1 && tries < 5000; ++tries, usleep(1000))
        assert_int_equal(kvl_stats(engine.connection.client, &report, NULL), KVL_OK);
    assert_int_equal(engine_turn(&engine, NULL, 0, 2, &second), KVL_OK);
    assert_true(second.private_tokens < BLOCK);
    engine_close(&engine);
    assert_restores(BLOCKS, 0);
    kvl_turn_report_deinit(&first);
    kvl_turn_report_deinit(&second);
}

/* Leases fill the device before all of group 0 is there: it is entered where it ends, with the
 * window of that place. */
static void test_a_small_device_is_entered_where_it_is_full(void **state) {
    (void)state;
    struct engine engine;
    struct kvl_turn_report report;
    const uint32_t fits = 6;
    empty_disk();
    fixture_start(&fixture, 32, 0, true);
    store_prompt(PROMPT);
    fixture_stop(&fixture);
    fixture_start_bytes(&fixture, fits * full_bytes + WINDOW_BLOCKS * window_bytes, 0, true);
    engine_open(&engine, &fixture, &stored);
    assert_int_equal(engine_turn(&engine, prompt, PROMPT, NEW_TOKENS, &report), KVL_OK);
    assert_true(same_logits(&report, &expected));
    assert_int_equal(restored_tokens(&report), fits * BLOCK);
    /* The window of the end that was looked for first came, too. */
    assert_int_equal(report.restored_bytes, fits * full_bytes + 2 * WINDOW_BLOCKS * window_bytes);
    assert_true(report.private_tokens > 0);
    engine_close(&engine);
    kvl_turn_report_deinit(&report);
}

/* Without a daemon the window's private memory comes back too: a context of many windows takes no
 * more of it than a few blocks. */
static void test_private_memory_of_the_window_comes_back(void **state) {
    (void)state;
    struct engine engine;
    struct kvl_turn_report report, again;
    engine_open(&engine, &fixture, &(struct engine_options){.chunk_tokens = BLOCK});
    assert_int_equal(engine_turn(&engine, prompt, PROMPT, NEW_TOKENS, &report), KVL_OK);
    assert_true(same_logits(&report, &expected));
    uint8_t *const *table = kvl_caches_table(engine.sequence.cache, 1);
    for (uint32_t i = 1; i < BLOCKS - WINDOW_BLOCKS; ++i)
        assert_ptr_equal(table[i], table[0]); /* nothing is there, and that but once */
    for (uint32_t i = BLOCKS - WINDOW_BLOCKS; i <= BLOCKS; ++i)
        for (uint32_t other = 0; other < i; ++other)
            assert_ptr_not_equal(table[i], table[other]);
    engine_close(&engine);
    kvl_turn_report_deinit(&report);
    if (!fixture_has_one_arithmetic(&fixture))
        return; /* what follows compares decoded tokens with prefilled ones */
    assert_int_equal(engine_run(&fixture, &(struct engine_options){.no_cache = true}, prompt,
                         PROMPT, 3, &report),
        KVL_OK); /* which begins anew with every token */
    assert_int_equal(
        engine_run(&fixture, &(struct engine_options){0}, prompt, PROMPT, 3, &again), KVL_OK);
    assert_true(same_logits(&report, &again));
    kvl_turn_report_deinit(&report);
    kvl_turn_report_deinit(&again);
}

/* ---- sessions ---- */

static void run_turn(uint32_t from, uint32_t count, struct kvl_turn_report *report) {
    struct engine engine;
    struct kvl_errmsg msg = {{0}};
    engine_open(&engine, &fixture, &stored);
    assert_int_equal(
        kvl_saved_session_open(&engine.session, &engine.connection, "talk", &engine.sequence, &msg),
        KVL_OK);
    assert_int_equal(engine_turn(&engine, prompt + from, count, 2, report), KVL_OK);
    engine_close(&engine);
}

/* A turn brings the tail of both groups, and of the window group what the tail's window needs. */
static void test_a_session_moves_what_the_window_needs(void **state) {
    (void)state;
    struct kvl_turn_report report;
    fixture_start(&fixture, 32, 32, true);
    run_turn(0, 5 * BLOCK + 30, &report); /* ends at 5 blocks and a tail of 31 tokens */
    kvl_turn_report_deinit(&report);
    fixture_stop(&fixture);
    fixture_start(&fixture, 32, 32, true);
    run_turn(5 * BLOCK + 30, 200, &report);
    assert_int_equal(restored_tokens(&report), 5 * BLOCK + 31);
    assert_int_equal(report.restored_tokens[KVL_TIER_DISK], 5 * BLOCK + 31);
    assert_int_equal(report.restored_bytes, 6 * full_bytes + 2 * window_bytes);
    kvl_turn_report_deinit(&report);
}

/* ---- what is asked ---- */

static void test_requests_are_as_few_as_can_be(void **state) {
    (void)state;
    struct kvl_turn_report report;
    const unsigned groups = is_windowed() ? 2 : 1;
    fixture_start(&fixture, 40, 0, false);
    memset(&asked, 0, sizeof asked);
    /* Nothing is known: two chunks, of 8 blocks and of 2 and a bit. */
    assert_int_equal(engine_run(&fixture, &stored, prompt, PROMPT, 1, &report), KVL_OK);
    kvl_turn_report_deinit(&report);
    assert_int_equal(asked.lookup, 0);
    assert_int_equal(asked.lookup_each, groups == 2 ? 2 : 0);
    assert_int_equal(asked.restore, groups == 2 ? 0 : 2);
    assert_int_equal(asked.alloc, 2 * groups);
    assert_int_equal(asked.alloc_async, groups); /* the block after the last one, ahead */
    assert_int_equal(asked.seal_async, 2 * groups);
    assert_int_equal(asked.release_async, groups == 2 ? 1 : 0); /* what the window left behind */
    memset(&asked, 0, sizeof asked);
    /* All of it is: one restore of each group, then the rest is computed. */
    assert_int_equal(engine_run(&fixture, &stored, prompt, PROMPT, 1, &report), KVL_OK);
    assert_int_equal(restored_tokens(&report), BLOCKS * BLOCK);
    kvl_turn_report_deinit(&report);
    assert_int_equal(asked.lookup, 0);
    assert_int_equal(asked.lookup_each, groups == 2 ? 1 : 0);
    assert_int_equal(asked.restore, groups);
    assert_int_equal(asked.alloc, groups);
    assert_int_equal(asked.alloc_async, groups);
    assert_int_equal(asked.seal_async, 0);
    assert_int_equal(asked.release_async, 0);
}

int main(int argc, char **argv) {
    quick = kvl_is_quick(argc, argv);
    const struct CMUnitTest windowed[] = {
        cmocka_unit_test_teardown(test_a_restore_moves_what_the_window_needs, stop_service),
        cmocka_unit_test_teardown(test_any_shared_prefix_is_restored, stop_service),
        cmocka_unit_test_teardown(test_tokens_count_where_the_farthest_block_was, stop_service),
        cmocka_unit_test_teardown(test_blocks_without_their_window_are_computed, stop_service),
        cmocka_unit_test_teardown(test_a_window_without_its_blocks_is_computed, stop_service),
        cmocka_unit_test_teardown(test_what_was_left_behind_makes_room_first, stop_service),
        cmocka_unit_test_teardown(test_a_slot_of_a_block_passed_over_is_given_back, stop_service),
        cmocka_unit_test_teardown(test_a_damaged_block_of_either_group_costs_no_bit, stop_service),
        cmocka_unit_test_teardown(test_a_long_context_holds_the_window_only, stop_service),
        cmocka_unit_test_teardown(test_a_small_device_is_entered_where_it_is_full, stop_service),
        cmocka_unit_test_teardown(test_a_private_window_moves_in_when_there_is_room, stop_service),
        cmocka_unit_test_teardown(test_private_memory_of_the_window_comes_back, stop_service),
        cmocka_unit_test_teardown(test_a_session_moves_what_the_window_needs, stop_service),
        cmocka_unit_test_teardown(test_requests_are_as_few_as_can_be, stop_service),
    };
    const struct CMUnitTest plain[] = {
        cmocka_unit_test_teardown(test_requests_are_as_few_as_can_be, stop_service),
    };
    /* A GPU's service always has a host tier, which keeps what the others expect to be gone. */
    const struct CMUnitTest on_gpu[] = {
        cmocka_unit_test_teardown(test_a_restore_moves_what_the_window_needs, stop_service),
        cmocka_unit_test_teardown(test_any_shared_prefix_is_restored, stop_service),
        cmocka_unit_test_teardown(test_tokens_count_where_the_farthest_block_was, stop_service),
        cmocka_unit_test_teardown(test_blocks_without_their_window_are_computed, stop_service),
        cmocka_unit_test_teardown(test_a_window_without_its_blocks_is_computed, stop_service),
        cmocka_unit_test_teardown(test_private_memory_of_the_window_comes_back, stop_service),
        cmocka_unit_test_teardown(test_a_session_moves_what_the_window_needs, stop_service),
    };
    const char *backend = getenv("KVL_TEST_BACKEND");
    if (getenv("KVL_ARCHITECTURE") == NULL)
        return cmocka_run_group_tests(plain, set_up_all, tear_down_all);
    return backend != NULL && strcmp(backend, "cuda") == 0
               ? cmocka_run_group_tests(on_gpu, set_up_all, tear_down_all)
               : cmocka_run_group_tests(windowed, set_up_all, tear_down_all);
}
