/* batch_test.c - turns that run together, a new one as soon as one ends, give the bits that each
 * gives alone: with a service and without, in more turns than run at once, where the tiers are too
 * small, and when the service goes away. A prefix that several share is computed once. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "golden_setup.h"
#include "scheduler.h"

enum {
    LINES = 12,
    PREFIX_BLOCKS = 6,
    PREFIX = PREFIX_BLOCKS * FIXTURE_BLOCK_TOKENS,
    FAMILIES = 2, /* of prompts with the same prefix; every fourth prompt is alone */
    NEW_TOKENS_MAX = 40,
};

/* A prompt and what it gives alone. */
struct line {
    struct kvl_job job; /* first */
    uint32_t tokens[FIXTURE_CONTEXT];
    uint32_t count;
    uint32_t max_tokens;
    struct kvl_sampler_options sampling;
    struct kvl_turn_report alone;
    /* of the run under way */
    struct kvl_sampler sampler;
    uint32_t ended;
    kvl_err err;
    uint64_t computed, restored, private_tokens;
    enum kvl_stop_reason stop_reason;
    bool is_same;   /* all of it, to the last logit */
    bool is_prefix; /* the tokens that were chosen are the first of those chosen alone */
    bool daemon_lost;
};

static struct line lines[LINES];
static volatile sig_atomic_t stop;

/* ---- one run --------------------------------------------------------------------------------- */

struct run {
    uint32_t next;
    uint32_t together_max; /* so many were under way at once */
    uint32_t together;
    uint32_t chosen; /* tokens, of all lines */
    uint32_t event_at;
    void (*event)(void); /* when that many tokens were chosen; NULL: none */
};
static struct run run;

static bool note_token(void *arg, uint32_t token) {
    (void)arg;
    (void)token;
    if (++run.chosen == run.event_at && run.event != NULL)
        run.event();
    return true;
}

static enum kvl_next next_line(void *arg, bool may_wait, struct kvl_job **job) {
    (void)arg;
    (void)may_wait;
    if (run.next == LINES)
        return KVL_NEXT_NONE;
    struct line *line = &lines[run.next++];
    kvl_sampler_init(&line->sampler, line->sampling);
    line->job = (struct kvl_job){.tokens = line->tokens,
        .token_count = line->count,
        .options = {.sampler = &line->sampler,
            .max_tokens = line->max_tokens,
            .hash_logits = true,
            .on_token = note_token}};
    if (++run.together > run.together_max)
        run.together_max = run.together;
    *job = &line->job;
    return KVL_NEXT_JOB;
}

static void line_ended(void *arg, struct kvl_job *job, kvl_err err) {
    (void)arg;
    struct line *line = (struct line *)(void *)job;
    const struct kvl_turn_report *report = &job->report;
    --run.together;
    ++line->ended;
    line->err = err;
    line->computed = report->computed_tokens;
    line->restored = restored_tokens(report);
    line->private_tokens = report->private_tokens;
    line->stop_reason = report->stop_reason;
    line->daemon_lost = report->daemon_lost;
    line->is_prefix = report->output.count <= line->alone.output.count;
    for (uint64_t i = 0; line->is_prefix && i < report->output.count; ++i)
        line->is_prefix = report->output.ids[i] == line->alone.output.ids[i];
    line->is_same = line->is_prefix && same_logits(report, &line->alone);
    kvl_sampler_deinit(&line->sampler);
}

struct setting {
    uint32_t parallel;
    uint32_t threads;
    uint32_t chunk_tokens;
    bool stored;
    uint32_t event_at;
    void (*event)(void);
};

static void run_lines(struct setting setting) {
    struct engine engine;
    engine_open(&engine, &fixture,
        &(struct engine_options){.stored = setting.stored,
            .threads = setting.threads,
            .chunk_tokens = setting.chunk_tokens,
            .batches_max = setting.parallel});
    run = (struct run){.event_at = setting.event_at, .event = setting.event};
    for (uint32_t i = 0; i < LINES; ++i)
        lines[i].ended = 0;
    struct kvl_scheduler_options options = {
        .sequence = engine.sequence.options,
        .parallel = setting.parallel,
        .next = next_line,
        .ended = line_ended,
    };
    options.sequence.chunk_tokens = setting.chunk_tokens;
    options.sequence.stop = &stop;
    kvl_schedule(&options);
    engine_close(&engine);
}

static void assert_all_the_same(void) {
    for (uint32_t i = 0; i < LINES; ++i) {
        assert_int_equal(lines[i].ended, 1);
        assert_int_equal(lines[i].err, KVL_OK);
        assert_int_equal(lines[i].computed + lines[i].restored, lines[i].count);
        if (!lines[i].is_same)
            fail_msg("line %u is not what it is alone", i);
    }
}

/* ---- the lines ------------------------------------------------------------------------------- */

static bool is_alone(uint32_t line) {
    return line % 4 == 3;
}

/* Line 0 and 1 are the first of their families, so only they compute the prefix. */
static uint32_t family_of(uint32_t line) {
    return line % 4 % FAMILIES;
}

static void run_alone(struct line *line) {
    struct engine engine;
    engine_open(&engine, &fixture, &(struct engine_options){0});
    kvl_sampler_init(&engine.sampler, line->sampling);
    assert_int_equal(
        engine_turn(&engine, line->tokens, line->count, line->max_tokens, &line->alone), KVL_OK);
    engine_close(&engine);
}

static int set_up(void **state) {
    (void)state;
    fixture_init(&fixture);
    for (uint32_t i = 0; i < LINES; ++i) {
        struct line *line = &lines[i];
        uint32_t prefix = is_alone(i) ? 0 : PREFIX;
        line->count = prefix + 9 + 23 * i % 150;
        line->max_tokens = i == 5 ? 0 : 4 + 29 * i % NEW_TOKENS_MAX;
        fixture_tokens(&fixture, 10 + family_of(i), line->tokens, prefix);
        fixture_tokens(&fixture, 100 + i, line->tokens + prefix, line->count - prefix);
        if (i % 3 == 1)
            line->sampling = (struct kvl_sampler_options){
                .temperature = 1.5f, .seed = i, .repeat_penalty = 1.2f};
        run_alone(line);
    }
    return 0;
}

static int tear_down(void **state) {
    for (uint32_t i = 0; i < LINES; ++i)
        kvl_turn_report_deinit(&lines[i].alone);
    return tear_down_all(state);
}

/* ---- tests ----------------------------------------------------------------------------------- */

static void test_without_a_service(void **state) {
    (void)state;
    static const uint32_t parallel[] = {1, 2, 5, LINES, KVL_TURNS_MAX};
    for (uint32_t i = quick ? 4 : 0; i < sizeof parallel / sizeof parallel[0]; ++i) {
        run_lines((struct setting){
            .parallel = parallel[i], .threads = 1 + i % 3, .chunk_tokens = i % 2 == 0 ? 0 : 100});
        assert_all_the_same();
        assert_in_range(run.together_max, parallel[i] < 3 ? parallel[i] : 3, parallel[i]);
        for (uint32_t line = 0; line < LINES; ++line)
            assert_int_equal(lines[line].computed, lines[line].count);
    }
}

static void test_a_shared_prefix_is_computed_once(void **state) {
    (void)state;
    static const uint32_t parallel[] = {1, 3, LINES};
    for (uint32_t i = quick ? 1 : 0; i < (quick ? 2 : 3); ++i) {
        fixture_start(&fixture, 140, 0, false);
        run_lines((struct setting){
            .parallel = parallel[i], .threads = 1 + i, .chunk_tokens = 130, .stored = true});
        fixture_stop(&fixture);
        assert_all_the_same();
        for (uint32_t line = 0; line < LINES; ++line) {
            bool is_first = line < FAMILIES;
            assert_int_equal(lines[line].restored, is_first || is_alone(line) ? 0 : PREFIX);
            assert_int_equal(lines[line].private_tokens, 0);
        }
    }
}

/* What an earlier run stored serves all lines of a later one, from wherever it is. */
static void test_a_later_run_restores(void **state) {
    (void)state;
    struct setting setting = {.parallel = 4, .stored = true};
    fixture_start(&fixture, 30, 60, true);
    for (int round = 0; round < 2; ++round) {
        run_lines(setting);
        assert_all_the_same();
        fixture_stop(&fixture);
        fixture_start(&fixture, 30, 60, true);
    }
    for (uint32_t line = 0; line < LINES; ++line)
        assert_true(lines[line].restored >= (is_alone(line) ? 0 : PREFIX));
}

static void test_a_device_tier_that_is_too_small(void **state) {
    (void)state;
    uint64_t private_tokens = 0;
    fixture_start(&fixture, 9, 4, true);
    for (uint32_t parallel = quick ? 7 : 2; parallel <= (quick ? 7 : LINES); parallel += 5) {
        run_lines((struct setting){.parallel = parallel, .threads = 2, .stored = true});
        assert_all_the_same();
        for (uint32_t line = 0; line < LINES; ++line)
            private_tokens += lines[line].private_tokens;
    }
    assert_true(private_tokens > 0);
}

static void end_service(void) {
    fixture_stop(&fixture);
}

/* After the first tokens, while prompts are computed beside answers, and near the end. */
static void test_a_service_that_goes_away(void **state) {
    (void)state;
    static const uint32_t moments[] = {1, 2, 9, 40, 120};
    for (uint32_t i = 0; i < sizeof moments / sizeof moments[0]; i += quick ? 3 : 1) {
        fixture_start(&fixture, 140, 0, false);
        run_lines((struct setting){.parallel = 5,
            .threads = 1 + i % 2,
            .chunk_tokens = 64,
            .stored = true,
            .event_at = moments[i],
            .event = end_service});
        assert_null(fixture.service);
        assert_all_the_same();
        assert_true(lines[LINES - 1].daemon_lost);
    }
}

static void interrupt(void) {
    stop = 1;
}

/* Those under way end where they are; what they chose until then is what they choose alone. */
static void test_an_interrupt_ends_all(void **state) {
    (void)state;
    run_lines((struct setting){.parallel = 3, .event_at = 30, .event = interrupt});
    stop = 0;
    uint32_t interrupted = 0, ended = 0;
    for (uint32_t i = 0; i < LINES; ++i) {
        ended += lines[i].ended;
        if (lines[i].ended == 0)
            continue;
        assert_int_equal(lines[i].err, KVL_OK);
        assert_true(lines[i].is_prefix);
        if (lines[i].stop_reason == KVL_STOP_INTERRUPTED)
            ++interrupted;
        else
            assert_true(lines[i].is_same);
    }
    assert_in_range(interrupted, 1, 3);
    assert_int_equal(ended, run.next);
    assert_in_range(ended, 3, LINES - 1);
}

/* One that does not fit is an error of its own. */
static void test_a_prompt_that_is_too_long(void **state) {
    (void)state;
    uint32_t count = lines[4].count;
    lines[4].count = FIXTURE_CONTEXT + 1;
    run_lines((struct setting){.parallel = 3});
    lines[4].count = count;
    for (uint32_t i = 0; i < LINES; ++i) {
        assert_int_equal(lines[i].ended, 1);
        assert_int_equal(lines[i].err, i == 4 ? KVL_ERR_LIMIT : KVL_OK);
        assert_true(i == 4 || lines[i].is_same);
    }
}

int main(int argc, char **argv) {
    quick = kvl_is_quick(argc, argv);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_without_a_service),
        cmocka_unit_test_teardown(test_a_shared_prefix_is_computed_once, stop_service),
        cmocka_unit_test_teardown(test_a_later_run_restores, stop_service),
        cmocka_unit_test_teardown(test_a_device_tier_that_is_too_small, stop_service),
        cmocka_unit_test_teardown(test_a_service_that_goes_away, stop_service),
        cmocka_unit_test(test_an_interrupt_ends_all),
        cmocka_unit_test(test_a_prompt_that_is_too_long),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
