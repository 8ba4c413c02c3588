/* identity_test.c - the same logits, to the last bit, however a token's KV came to be where it is.
 *
 * Every case runs the real service and compares the SHA-256 of the logits of all generated
 * positions with a run that has no daemon at all. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "golden_setup.h"

enum {
    PROMPT_BLOCKS = 10,
    PROMPT = PROMPT_BLOCKS * FIXTURE_BLOCK_TOKENS + 23,
    NEW_TOKENS = 24,
    SEED = 7,
};

static int set_up_all(void **state) {
    (void)state;
    return expect_answer(SEED, PROMPT, NEW_TOKENS);
}

/* A run that must end well and give the expected bits; returns what was restored. */
static uint64_t assert_identical(const struct engine_options *options) {
    struct kvl_turn_report report;
    assert_int_equal(engine_run(&fixture, options, prompt, PROMPT, NEW_TOKENS, &report), KVL_OK);
    assert_true(same_logits(&report, &expected));
    assert_int_equal(report.computed_tokens + restored_tokens(&report), report.prompt_tokens);
    uint64_t restored = restored_tokens(&report);
    kvl_turn_report_deinit(&report);
    return restored;
}

static void test_chunk_length_and_threads_change_nothing(void **state) {
    (void)state;
    bool one = fixture_has_one_arithmetic(&fixture);
    uint32_t few = quick ? 23 : one ? 1 : 7; /* a GPU's engines start slowly */
    for (uint32_t chunk = 1; chunk <= 512; chunk += few * (chunk < 40 ? 1 : 37))
        for (uint32_t threads = quick ? 2 : 1; threads <= (one ? 2 : 1); ++threads)
            (void)assert_identical(
                &(struct engine_options){.chunk_tokens = chunk, .threads = threads});
    (void)assert_identical(&(struct engine_options){.chunk_tokens = 512, .threads = 2});
}

static void test_chunk_length_changes_nothing_when_stored(void **state) {
    (void)state;
    for (uint32_t chunk = 1; chunk <= 512; chunk = chunk * 3 + 5) {
        fixture_start(&fixture, 16, 0, false);
        (void)assert_identical(&(struct engine_options){.stored = true, .chunk_tokens = chunk});
        fixture_stop(&fixture);
    }
}

static void test_every_number_of_restored_blocks(void **state) {
    (void)state;
    for (uint32_t blocks = 0; blocks <= PROMPT_BLOCKS; blocks += quick ? 5 : 1) {
        fixture_start(&fixture, 32, 0, false);
        store_prompt(blocks * FIXTURE_BLOCK_TOKENS + 1); /* that one token is in no whole block */
        assert_int_equal(assert_identical(&(struct engine_options){.stored = true}),
            blocks * FIXTURE_BLOCK_TOKENS);
        fixture_stop(&fixture);
    }
}

/* A prompt that ends with a whole block: its last block is computed, known or not. */
static void test_one_token_at_least_is_computed(void **state) {
    (void)state;
    struct kvl_turn_report first, second;
    uint32_t count = 3 * FIXTURE_BLOCK_TOKENS;
    struct engine_options options = {.stored = true};
    fixture_start(&fixture, 16, 0, false);
    assert_int_equal(engine_run(&fixture, &options, prompt, count, 3, &first), KVL_OK);
    assert_int_equal(engine_run(&fixture, &options, prompt, count, 3, &second), KVL_OK);
    assert_int_equal(restored_tokens(&first), 0);
    assert_int_equal(restored_tokens(&second), 2 * FIXTURE_BLOCK_TOKENS);
    assert_int_equal(second.private_tokens, 0);
    assert_true(same_logits(&first, &second));
    kvl_turn_report_deinit(&first);
    kvl_turn_report_deinit(&second);
}

/* Demotes everything there is of the prompt, then reads where it was found. */
static void run_after_demotion(enum kvl_tier_kind target) {
    struct engine engine;
    struct kvl_key keys[PROMPT_BLOCKS];
    struct kvl_ticket ticket;
    struct kvl_progress progress;
    fixture_start(&fixture, 32, 32, true);
    store_prompt(PROMPT);
    engine_open(&engine, &fixture, &(struct engine_options){.stored = true});
    assert_int_equal(
        kvl_key_chain(&engine.connection.request.key, prompt, PROMPT, FIXTURE_BLOCK_TOKENS, keys),
        KVL_OK);
    assert_int_equal(
        kvl_demote(engine.connection.client, target, keys, PROMPT_BLOCKS, &ticket), KVL_OK);
    if (ticket.generation != 0)
        assert_int_equal(
            kvl_ticket_wait(engine.connection.client, ticket, UINT32_MAX, 10000, &progress),
            KVL_OK);
    engine_close(&engine);
    struct kvl_turn_report report;
    assert_int_equal(engine_run(&fixture, &(struct engine_options){.stored = true}, prompt, PROMPT,
                         NEW_TOKENS, &report),
        KVL_OK);
    assert_true(same_logits(&report, &expected));
    assert_int_equal(report.restored_tokens[target], PROMPT_BLOCKS * FIXTURE_BLOCK_TOKENS);
    assert_true(report.restored_bytes > 0);
    kvl_turn_report_deinit(&report);
}

static void test_restored_from_host(void **state) {
    (void)state;
    run_after_demotion(KVL_TIER_HOST);
}

static void test_restored_from_disk(void **state) {
    (void)state;
    run_after_demotion(KVL_TIER_DISK);
}

static void test_restored_after_restart(void **state) {
    (void)state;
    fixture_start(&fixture, 32, 0, true);
    store_prompt(PROMPT);
    fixture_stop(&fixture);
    fixture_start(&fixture, 32, 0, true);
    assert_int_equal(assert_identical(&(struct engine_options){.stored = true}),
        PROMPT_BLOCKS * FIXTURE_BLOCK_TOKENS);
}

/* What one turn generated is restored in the next, by another engine. */
static void test_generated_tokens_are_restored(void **state) {
    (void)state;
    if (!fixture_has_one_arithmetic(&fixture))
        skip(); /* compares decoded tokens with prefilled ones */
    uint32_t tokens[FIXTURE_CONTEXT];
    uint32_t first = 100, generated = 150, count = first + generated;
    struct kvl_turn_report turn, again, alone;
    struct engine_options stored = {.stored = true};
    fixture_start(&fixture, 32, 0, false);
    assert_int_equal(engine_run(&fixture, &stored, prompt, first, generated, &turn), KVL_OK);
    memcpy(tokens, prompt, first * sizeof *tokens);
    memcpy(tokens + first, turn.output.ids, generated * sizeof *tokens);
    assert_int_equal(engine_run(&fixture, &stored, tokens, count, NEW_TOKENS, &again), KVL_OK);
    assert_int_equal(
        engine_run(&fixture, &(struct engine_options){0}, tokens, count, NEW_TOKENS, &alone),
        KVL_OK);
    assert_int_equal(restored_tokens(&again), 3 * FIXTURE_BLOCK_TOKENS);
    assert_true(same_logits(&again, &alone));
    kvl_turn_report_deinit(&turn);
    kvl_turn_report_deinit(&again);
    kvl_turn_report_deinit(&alone);
}

static void test_no_cache(void **state) {
    (void)state;
    if (!fixture_has_one_arithmetic(&fixture) || quick)
        skip(); /* compares decoded tokens with prefilled ones, on one thread */
    struct kvl_turn_report cached, uncached;
    assert_int_equal(
        engine_run(&fixture, &(struct engine_options){0}, prompt, 100, 60, &cached), KVL_OK);
    assert_int_equal(engine_run(&fixture, &(struct engine_options){.no_cache = true}, prompt, 100,
                         60, &uncached),
        KVL_OK);
    assert_true(same_logits(&cached, &uncached));
    kvl_turn_report_deinit(&cached);
    kvl_turn_report_deinit(&uncached);
}

/* A session's turns, each by a new engine, against one engine that never stopped. */
static void test_session_goes_on_at_its_very_token(void **state) {
    (void)state;
    static const uint32_t turns[] = {40, 30, 64, 100, 1};
    enum { TURNS = sizeof turns / sizeof turns[0], ANSWER = 20 };
    struct engine alone;
    uint32_t used = 0, computed_before = 0;
    fixture_start(&fixture, 32, 8, true);
    engine_open(&alone, &fixture, &(struct engine_options){0});
    for (uint32_t turn = 0; turn < TURNS; ++turn) {
        struct engine engine;
        struct kvl_turn_report report, uninterrupted;
        struct kvl_errmsg msg = {{0}};
        if (turn == 3) { /* a restart in between */
            fixture_stop(&fixture);
            fixture_start(&fixture, 32, 8, true);
        }
        engine_open(&engine, &fixture, &(struct engine_options){.stored = true});
        assert_int_equal(kvl_saved_session_open(
                             &engine.session, &engine.connection, "talk", &engine.sequence, &msg),
            KVL_OK);
        assert_int_equal(engine_turn(&engine, prompt + used, turns[turn], ANSWER, &report), KVL_OK);
        assert_int_equal(
            engine_turn(&alone, prompt + used, turns[turn], ANSWER, &uninterrupted), KVL_OK);
        assert_true(same_logits(&report, &uninterrupted));
        assert_int_equal(report.prompt_tokens, uninterrupted.prompt_tokens);
        assert_int_equal(restored_tokens(&report), computed_before);
        assert_int_equal(report.private_tokens, 0);
        used += turns[turn];
        computed_before = engine.sequence.computed;
        engine_close(&engine);
        kvl_turn_report_deinit(&report);
        kvl_turn_report_deinit(&uninterrupted);
    }
    engine_close(&alone);
}

static void test_session_has_one_writer(void **state) {
    (void)state;
    struct engine first, second;
    struct kvl_errmsg msg = {{0}};
    fixture_start(&fixture, 16, 0, false);
    engine_open(&first, &fixture, &(struct engine_options){.stored = true});
    engine_open(&second, &fixture, &(struct engine_options){.stored = true});
    assert_int_equal(
        kvl_saved_session_open(&first.session, &first.connection, "talk", &first.sequence, &msg),
        KVL_OK);
    assert_int_equal(
        kvl_saved_session_open(&second.session, &second.connection, "talk", &second.sequence, &msg),
        KVL_ERR_BUSY);
    assert_non_null(strstr(msg.text, "identity_test"));
    engine_close(&second);
    engine_close(&first);
}

/* ---- more than the tier holds, and others at work ---- */

static void test_context_larger_than_the_device_tier(void **state) {
    (void)state;
    struct kvl_turn_report report;
    fixture_start(&fixture, 6, 4, true);
    for (int round = 0; round < 2; ++round) {
        assert_int_equal(engine_run(&fixture, &(struct engine_options){.stored = true}, prompt,
                             PROMPT, NEW_TOKENS, &report),
            KVL_OK);
        assert_true(same_logits(&report, &expected));
        assert_true(report.private_tokens > 0);
        kvl_turn_report_deinit(&report);
    }
}

struct worker {
    pthread_t thread;
    struct engine_options options;
    uint64_t seed;
    kvl_err err;
    struct kvl_turn_report report;
};

static void *work(void *arg) {
    struct worker *worker = arg;
    uint32_t tokens[PROMPT];
    fixture_tokens(&fixture, worker->seed, tokens, PROMPT);
    worker->err =
        engine_run(&fixture, &worker->options, tokens, PROMPT, NEW_TOKENS, &worker->report);
    return NULL;
}

/* Runs them side by side and compares each with an engine alone. */
static void run_side_by_side(struct worker *workers, uint32_t count) {
    for (uint32_t i = 0; i < count; ++i)
        assert_int_equal(pthread_create(&workers[i].thread, NULL, work, &workers[i]), 0);
    for (uint32_t i = 0; i < count; ++i)
        pthread_join(workers[i].thread, NULL);
    for (uint32_t i = 0; i < count; ++i) {
        struct worker alone = {.seed = workers[i].seed};
        (void)work(&alone);
        assert_int_equal(workers[i].err, KVL_OK);
        assert_int_equal(alone.err, KVL_OK);
        assert_true(same_logits(&workers[i].report, &alone.report));
        kvl_turn_report_deinit(&alone.report);
        kvl_turn_report_deinit(&workers[i].report);
    }
}

static void test_two_engines_one_prompt(void **state) {
    (void)state;
    if (!fixture_runs_engines_side_by_side(&fixture))
        skip(); /* engine_gpu_test.py has two processes */
    fixture_start(&fixture, 40, 8, true);
    for (uint32_t chunk = 20; chunk <= 512; chunk *= 5) {
        struct worker workers[2] = {
            {.options = {.stored = true, .chunk_tokens = chunk}, .seed = SEED + chunk},
            {.options = {.stored = true, .chunk_tokens = chunk + 3}, .seed = SEED + chunk},
        };
        run_side_by_side(workers, 2);
    }
}

static void test_two_engines_that_do_not_fit_together(void **state) {
    (void)state;
    if (!fixture_runs_engines_side_by_side(&fixture))
        skip();
    fixture_start(&fixture, 14, 6, true);
    struct worker workers[2] = {
        {.options = {.stored = true, .chunk_tokens = 64}, .seed = 100},
        {.options = {.stored = true, .chunk_tokens = 128}, .seed = 200},
    };
    run_side_by_side(workers, 2);
}

/* ---- the daemon goes away ---- */

/* Turns of an engine alone; the second goes on without new text. */
static void run_alone(uint32_t first_tokens, struct kvl_turn_report *second) {
    struct engine engine;
    struct kvl_turn_report first;
    engine_open(&engine, &fixture, &(struct engine_options){0});
    assert_int_equal(engine_turn(&engine, prompt, PROMPT, first_tokens, &first), KVL_OK);
    assert_int_equal(engine_turn(&engine, NULL, 0, NEW_TOKENS - first_tokens, second), KVL_OK);
    engine_close(&engine);
    kvl_turn_report_deinit(&first);
}

static void test_daemon_lost_between_prefill_and_decode(void **state) {
    (void)state;
    struct engine engine;
    struct kvl_turn_report first, second, alone;
    run_alone(1, &alone);
    fixture_start(&fixture, 32, 0, false);
    engine_open(&engine, &fixture, &(struct engine_options){.stored = true});
    assert_int_equal(engine_turn(&engine, prompt, PROMPT, 1, &first), KVL_OK);
    assert_false(first.daemon_lost);
    fixture_stop(&fixture);
    /* The token chosen was appended: the rest of the answer is a turn without new text. */
    assert_int_equal(engine_turn(&engine, NULL, 0, NEW_TOKENS - 1, &second), KVL_OK);
    assert_true(second.daemon_lost);
    assert_true(second.private_tokens > 0);
    assert_true(same_logits(&second, &alone));
    engine_close(&engine);
    kvl_turn_report_deinit(&alone);
    kvl_turn_report_deinit(&first);
    kvl_turn_report_deinit(&second);
}

static void *stop_after(void *arg) {
    const struct timespec *pause = arg;
    nanosleep(pause, NULL);
    fixture_stop(&fixture);
    return NULL;
}

/* The service ends while an engine is anywhere in its turn: restore, prefill or decode. */
static void test_daemon_lost_at_any_moment(void **state) {
    (void)state;
    for (long moment_us = 0; moment_us <= 40000; moment_us += quick ? 8000 : 4000) {
        struct engine engine;
        struct kvl_turn_report report;
        struct timespec pause = {.tv_nsec = moment_us * 1000};
        pthread_t stopper;
        fixture_start(&fixture, 32, 0, false);
        store_prompt(4 * FIXTURE_BLOCK_TOKENS + 1);
        engine_open(
            &engine, &fixture, &(struct engine_options){.stored = true, .chunk_tokens = 64});
        assert_int_equal(pthread_create(&stopper, NULL, stop_after, &pause), 0);
        kvl_err err = engine_turn(&engine, prompt, PROMPT, NEW_TOKENS, &report);
        pthread_join(stopper, NULL);
        assert_int_equal(err, KVL_OK);
        assert_true(same_logits(&report, &expected));
        kvl_turn_report_deinit(&report);
        engine_close(&engine);
    }
}

int main(int argc, char **argv) {
    quick = kvl_is_quick(argc, argv);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_chunk_length_and_threads_change_nothing),
        cmocka_unit_test_teardown(test_chunk_length_changes_nothing_when_stored, stop_service),
        cmocka_unit_test_teardown(test_every_number_of_restored_blocks, stop_service),
        cmocka_unit_test_teardown(test_one_token_at_least_is_computed, stop_service),
        cmocka_unit_test_teardown(test_restored_from_host, stop_service),
        cmocka_unit_test_teardown(test_restored_from_disk, stop_service),
        cmocka_unit_test_teardown(test_restored_after_restart, stop_service),
        cmocka_unit_test_teardown(test_generated_tokens_are_restored, stop_service),
        cmocka_unit_test(test_no_cache),
        cmocka_unit_test_teardown(test_session_goes_on_at_its_very_token, stop_service),
        cmocka_unit_test_teardown(test_session_has_one_writer, stop_service),
        cmocka_unit_test_teardown(test_context_larger_than_the_device_tier, stop_service),
        cmocka_unit_test_teardown(test_two_engines_one_prompt, stop_service),
        cmocka_unit_test_teardown(test_two_engines_that_do_not_fit_together, stop_service),
        cmocka_unit_test_teardown(test_daemon_lost_between_prefill_and_decode, stop_service),
        cmocka_unit_test_teardown(test_daemon_lost_at_any_moment, stop_service),
    };
    return cmocka_run_group_tests(tests, set_up_all, tear_down_all);
}
