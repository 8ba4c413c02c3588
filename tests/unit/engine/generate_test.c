/* generate_test.c - how a turn ends, what it reports, and perplexity against a plain forward pass
 * in double. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine_fixture.h"
#include "perplexity.h"
#include "tiny_model.h"

enum { PROMPT = 90, SEED = 11 };

static struct fixture fixture;
static uint32_t prompt[FIXTURE_CONTEXT];
static const struct engine_options alone = {0};

static int set_up(void **state) {
    (void)state;
    fixture_init(&fixture);
    fixture_tokens(&fixture, SEED, prompt, FIXTURE_CONTEXT);
    return 0;
}

static int tear_down(void **state) {
    (void)state;
    fixture_deinit(&fixture);
    return 0;
}

static void test_length_ends_a_turn(void **state) {
    (void)state;
    struct kvl_turn_report report;
    assert_int_equal(engine_run(&fixture, &alone, prompt, PROMPT, 5, &report), KVL_OK);
    assert_int_equal(report.stop_reason, KVL_STOP_LENGTH);
    assert_int_equal(report.output.count, 5);
    assert_int_equal(report.decode_tokens, 4);
    assert_int_equal(report.prompt_tokens, PROMPT);
    assert_int_equal(report.computed_tokens, PROMPT);
    assert_true(report.ttft_ns >= report.prefill_ns);
    kvl_turn_report_deinit(&report);
}

static void test_full_context_ends_a_turn(void **state) {
    (void)state;
    struct kvl_turn_report report;
    uint32_t count = FIXTURE_CONTEXT - 3;
    assert_int_equal(engine_run(&fixture, &alone, prompt, count, 100, &report), KVL_OK);
    assert_int_equal(report.stop_reason, KVL_STOP_CONTEXT);
    assert_int_equal(report.output.count, 3);
    kvl_turn_report_deinit(&report);
    assert_int_equal(engine_run(&fixture, &alone, prompt, FIXTURE_CONTEXT, 100, &report), KVL_OK);
    assert_int_equal(report.stop_reason, KVL_STOP_CONTEXT);
    assert_int_equal(report.output.count, 1);
    kvl_turn_report_deinit(&report);
}

static void test_more_than_the_context_is_refused(void **state) {
    (void)state;
    struct engine engine;
    engine_open(&engine, &fixture, &alone);
    assert_int_equal(kvl_sequence_append(&engine.sequence, prompt, FIXTURE_CONTEXT), KVL_OK);
    assert_int_equal(kvl_sequence_append(&engine.sequence, prompt, 1), KVL_ERR_LIMIT);
    assert_int_equal(engine.sequence.count, FIXTURE_CONTEXT);
    engine_close(&engine);
}

static volatile sig_atomic_t stop;
static uint32_t tokens_until_stop;

static bool stop_after_some(void *arg, uint32_t token) {
    (void)arg;
    (void)token;
    if (tokens_until_stop > 0 && --tokens_until_stop == 0)
        stop = 1;
    return true;
}

/* An interrupted answer goes on at its very token. */
static void test_interrupt_loses_nothing(void **state) {
    (void)state;
    struct engine engine;
    struct kvl_turn_report whole, first, second;
    assert_int_equal(engine_run(&fixture, &alone, prompt, PROMPT, 20, &whole), KVL_OK);
    engine_open(&engine, &fixture, &alone);
    engine.sequence.options.stop = &stop;
    assert_int_equal(kvl_sequence_append(&engine.sequence, prompt, PROMPT), KVL_OK);
    struct kvl_generate_options options = {
        .sequence = &engine.sequence,
        .sampler = &engine.sampler,
        .max_tokens = 20,
        .on_token = stop_after_some,
    };
    tokens_until_stop = 7;
    assert_int_equal(kvl_generate(&options, &first), KVL_OK);
    assert_int_equal(first.stop_reason, KVL_STOP_INTERRUPTED);
    assert_int_equal(first.output.count, 7);
    stop = 0;
    options.max_tokens = 13;
    assert_int_equal(kvl_generate(&options, &second), KVL_OK);
    assert_int_equal(second.stop_reason, KVL_STOP_LENGTH);
    assert_memory_equal(whole.output.ids, first.output.ids, 7 * sizeof(uint32_t));
    assert_memory_equal(whole.output.ids + 7, second.output.ids, 13 * sizeof(uint32_t));
    engine_close(&engine);
    kvl_turn_report_deinit(&whole);
    kvl_turn_report_deinit(&first);
    kvl_turn_report_deinit(&second);
}

/* What forward calls were told, by way of a backend that notes it. */
static struct {
    const struct kvl_backend_ops *ops; /* that compute */
    uint32_t calls, arriving;
    bool first_arrives;
} told;

static kvl_err note_and_forward(
    struct kvl_backend *backend, const struct kvl_batch *batch, uint32_t count) {
    told.first_arrives = told.calls == 0 ? batch->layers_arrive : told.first_arrives;
    told.calls++;
    told.arriving += batch->layers_arrive ? 1 : 0;
    return told.ops->forward(backend, batch, count);
}

static void run_and_note(const struct engine_options *options) {
    struct engine engine;
    struct kvl_turn_report report;
    engine_open(&engine, &fixture, options);
    told.ops = engine.backend->ops;
    told.calls = told.arriving = 0;
    struct kvl_backend_ops noting = *told.ops;
    noting.forward = note_and_forward;
    engine.backend->ops = &noting;
    assert_int_equal(engine_turn(&engine, prompt, 5 * PROMPT, 3, &report), KVL_OK);
    engine.backend->ops = told.ops;
    engine_close(&engine);
    kvl_turn_report_deinit(&report);
}

/* A backend that arranges for layers to be waited for need not where nothing is on its way. */
static void test_only_a_restore_is_announced(void **state) {
    (void)state;
    const struct engine_options stored = {.stored = true, .chunk_tokens = 64};
    run_and_note(&alone);
    assert_int_equal(told.arriving, 0);
    assert_in_range(told.calls, 3, UINT32_MAX);
    fixture_start(&fixture, 32, 32, false);
    run_and_note(&stored);
    assert_int_equal(told.arriving, 0);
    for (int tries = 0; !told.first_arrives && tries < 200; ++tries) { /* hashed behind a seal */
        usleep(5000);
        run_and_note(&stored);
    }
    assert_true(told.first_arrives);
    assert_in_range(told.arriving, 1, told.calls - 1); /* decoding waits for nothing */
}

static double reference_nll(uint32_t count) {
    struct tiny_shape shape = tiny_shape_default();
    double *logits = malloc((uint64_t)count * shape.vocab * sizeof *logits);
    assert_non_null(logits);
    tiny_model_reference(&shape, prompt, count, logits);
    double sum = 0;
    for (uint32_t i = 0; i + 1 < count; ++i) {
        const double *row = logits + (uint64_t)i * shape.vocab;
        double total = 0;
        for (uint32_t j = 0; j < shape.vocab; ++j)
            total += exp(row[j]);
        sum += log(total) - row[prompt[i + 1]];
    }
    free(logits);
    return sum / (count - 1);
}

static void test_perplexity(void **state) {
    (void)state;
    static const uint32_t chunks[] = {1, 17, 64, 512};
    double expected = reference_nll(PROMPT), first = 0;
    for (size_t i = 0; i < sizeof chunks / sizeof chunks[0]; ++i) {
        struct engine engine;
        struct kvl_perplexity perplexity;
        engine_open(&engine, &fixture, &(struct engine_options){.chunk_tokens = chunks[i]});
        assert_int_equal(kvl_perplexity_of(&engine.sequence, prompt, PROMPT, &perplexity), KVL_OK);
        engine_close(&engine);
        assert_int_equal(perplexity.tokens, PROMPT);
        assert_true(fabs(perplexity.nll_mean - expected) < 1e-3 * expected);
        assert_true(fabs(perplexity.ppl - exp(perplexity.nll_mean)) < 1e-9 * perplexity.ppl);
        first = i == 0 ? perplexity.nll_mean : first;
        assert_true(perplexity.nll_mean == first);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_length_ends_a_turn),
        cmocka_unit_test(test_full_context_ends_a_turn),
        cmocka_unit_test(test_more_than_the_context_is_refused),
        cmocka_unit_test(test_interrupt_loses_nothing),
        cmocka_unit_test(test_perplexity),
        cmocka_unit_test(test_only_a_restore_is_announced),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
