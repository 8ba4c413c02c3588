#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
/* cmocka needs the four above first */
#include <cmocka.h>
#include <math.h>
#include <string.h>

#include "sampler.h"

static struct kvl_sampler make(float temperature, uint64_t seed) {
    struct kvl_sampler sampler;
    kvl_sampler_init(
        &sampler, (struct kvl_sampler_options){.temperature = temperature, .seed = seed});
    return sampler;
}

static uint32_t pick(struct kvl_sampler *sampler, const float *logits, uint32_t vocab) {
    return kvl_sampler_pick(sampler, &(struct kvl_sampler_input){.logits = logits, .vocab = vocab});
}

static void greedy_takes_the_lowest_id_among_equals(void **state) {
    (void)state;
    struct kvl_sampler sampler = make(0, 1);
    assert_int_equal(pick(&sampler, (float[]){1, 3, 2, 3}, 4), 1);
    assert_int_equal(pick(&sampler, (float[]){NAN, -5, NAN}, 3), 1);
    assert_int_equal(pick(&sampler, (float[]){NAN, NAN}, 2), 0);
    assert_int_equal(pick(&sampler, (float[]){-INFINITY, INFINITY}, 2), 1);
}

/* Published outputs of splitmix64 for seed 1234567 pin the generator. 6457827717110365317 / 2^64 is
 * 0.35007..., which falls to token 35 of 100 equal ones. */
static void the_generator_is_splitmix64(void **state) {
    (void)state;
    static const float equal[100] = {0};
    struct kvl_sampler sampler = make(1, 1234567);
    assert_int_equal(pick(&sampler, equal, 100), 35);
    assert_int_equal(pick(&sampler, equal, 100), 17); /* 3203168211198807973 / 2^64 */
    assert_int_equal(pick(&sampler, equal, 100), 53); /* 9817491932198370423 / 2^64 */
}

static void equal_seeds_draw_equal_tokens(void **state) {
    (void)state;
    static const float logits[] = {0.1f, 0.2f, 0.3f, 0.4f, 0.5f};
    struct kvl_sampler a = make(0.8f, 42), b = make(0.8f, 42), c = make(0.8f, 43);
    int different = 0;
    for (int i = 0; i < 200; i++) {
        uint32_t token = pick(&a, logits, 5);
        assert_int_equal(token, pick(&b, logits, 5));
        different += token != pick(&c, logits, 5);
    }
    assert_true(different > 50);
}

/* Pearson's statistic over 7 degrees of freedom; 24.3 is exceeded once in 1,000 seeds. */
static void draws_follow_the_softmax(void **state) {
    (void)state;
    enum { VOCAB = 8, DRAWS = 100000 };
    static const float logits[VOCAB] = {0, 1, 2, -1, 3, 0.5f, -0.5f, 2.5f};
    static const float temperatures[] = {0.5f, 1, 2};
    for (int t = 0; t < 3; t++) {
        struct kvl_sampler sampler = make(temperatures[t], 7);
        double seen[VOCAB] = {0}, total = 0, statistic = 0;
        for (int i = 0; i < DRAWS; i++) {
            seen[pick(&sampler, logits, VOCAB)]++;
        }
        for (int i = 0; i < VOCAB; i++) {
            total += exp((double)(logits[i] / temperatures[t]));
        }
        for (int i = 0; i < VOCAB; i++) {
            double expected = DRAWS * exp((double)(logits[i] / temperatures[t])) / total;
            statistic += (seen[i] - expected) * (seen[i] - expected) / expected;
        }
        assert_true(statistic < 24.3);
    }
}

/* ---- each option against its formula --------------------------------------------------------- */

enum { VOCAB = 12, DRAWS = 20000, CONTEXT = 9 };
static const float some_logits[VOCAB] = {
    0.3f, 2.1f, -1.2f, 1.4f, 2.6f, -0.4f, 0.9f, 1.1f, -2.5f, 0.1f, 1.9f, -0.8f};
static const uint32_t some_context[CONTEXT] = {8, 8, 4, 1, 4, 10, 4, 2, 99};

/* exceeded once in 1,000 seeds, for 1 to 11 degrees of freedom */
static const double chi_square_limits[VOCAB - 1] = {
    10.83, 13.82, 16.27, 18.47, 20.52, 22.46, 24.32, 26.12, 27.88, 29.59, 31.26};

/* The formulas of sampler.h, written down as plainly as possible: p[i], 0 for what is left out. */
struct expected {
    double x[VOCAB], p[VOCAB];
    bool kept[VOCAB];
};

static void softmax(struct expected *e, double temperature) {
    double total = 0;
    for (int i = 0; i < VOCAB; i++) {
        total += e->kept[i] ? exp(e->x[i] / temperature) : 0;
    }
    for (int i = 0; i < VOCAB; i++) {
        e->p[i] = e->kept[i] ? exp(e->x[i] / temperature) / total : 0;
    }
}

/* How many kept ones have a smaller key, and their mass. */
static int rank_of(const struct expected *e, const double *keys, int of, double *mass_before) {
    int rank = 0;
    *mass_before = 0;
    for (int i = 0; i < VOCAB; i++) {
        bool before = keys[i] < keys[of] || (keys[i] == keys[of] && i < of);
        if (e->kept[i] && before) {
            rank++;
            *mass_before += e->p[i];
        }
    }
    return rank;
}

/* Keeps those that are among the first `most` by key and before which less than `mass` lies. */
static void keep_first(struct expected *e, const double *keys, int most, double mass) {
    bool kept[VOCAB];
    softmax(e, 1);
    for (int i = 0; i < VOCAB; i++) {
        double mass_before;
        kept[i] = e->kept[i] && rank_of(e, keys, i, &mass_before) < most && mass_before < mass;
    }
    memcpy(e->kept, kept, sizeof kept);
}

static void expect_filters(struct expected *e, const struct kvl_sampler_options *options) {
    double falling[VOCAB], deviation[VOCAB], entropy = 0, largest = 0;
    for (int i = 0; i < VOCAB; i++) {
        falling[i] = -e->x[i];
    }
    keep_first(e, falling, options->top_k > 0 ? (int)options->top_k : VOCAB, 2);
    softmax(e, 1);
    for (int i = 0; i < VOCAB; i++) {
        entropy -= e->kept[i] ? e->p[i] * log(e->p[i]) : 0;
    }
    for (int i = 0; i < VOCAB; i++) {
        deviation[i] = e->kept[i] ? fabs(-log(e->p[i]) - entropy) : INFINITY;
    }
    if (options->typical_p > 0) {
        keep_first(e, deviation, VOCAB, (double)options->typical_p);
    }
    if (options->top_p > 0) {
        keep_first(e, falling, VOCAB, (double)options->top_p);
    }
    softmax(e, 1);
    for (int i = 0; i < VOCAB; i++) {
        largest = e->p[i] > largest ? e->p[i] : largest;
    }
    for (int i = 0; i < VOCAB; i++) {
        e->kept[i] &= e->p[i] >= (double)options->min_p * largest;
    }
}

static void expect(struct expected *e, const struct kvl_sampler_options *options) {
    for (int i = 0; i < VOCAB; i++) {
        int times = 0;
        e->kept[i] = true;
        e->x[i] = (double)some_logits[i];
        for (uint32_t b = 0; b < options->bias_count; b++) {
            e->x[i] += options->bias[b].id == (uint32_t)i ? (double)options->bias[b].value : 0;
        }
        for (int c = CONTEXT - (int)options->penalty_last; c < CONTEXT; c++) {
            times += c >= 0 && some_context[c] == (uint32_t)i;
        }
        double repeat = options->repeat_penalty > 0 ? (double)options->repeat_penalty : 1;
        if (times > 0) {
            e->x[i] = e->x[i] > 0 ? e->x[i] / repeat : e->x[i] * repeat;
            e->x[i] -= times * (double)options->frequency_penalty;
            e->x[i] -= (double)options->presence_penalty;
        }
    }
    expect_filters(e, options);
    softmax(e, (double)options->temperature);
}

static void draw(struct kvl_sampler_options options, double seen[VOCAB]) {
    const struct kvl_sampler_input input = {
        .logits = some_logits, .vocab = VOCAB, .context = some_context, .context_tokens = CONTEXT};
    struct kvl_sampler sampler;
    kvl_sampler_init(&sampler, options);
    assert_int_equal(kvl_sampler_prepare(&sampler, VOCAB), KVL_OK);
    for (int i = 0; i < DRAWS; i++) {
        seen[kvl_sampler_pick(&sampler, &input)]++;
    }
    kvl_sampler_deinit(&sampler);
}

/* Pearson's statistic. what_is_left: how many tokens the options have to leave, so that a case
 * tests what it is meant to. */
static void assert_follows(struct kvl_sampler_options options, int what_is_left) {
    struct expected e;
    double seen[VOCAB] = {0}, statistic = 0;
    int left = 0;
    options.seed = 11;
    options.temperature = options.temperature > 0 ? options.temperature : 1;
    expect(&e, &options);
    draw(options, seen);
    for (int i = 0; i < VOCAB; i++) {
        if (e.p[i] == 0) {
            assert_true(seen[i] == 0);
            continue;
        }
        double expected = DRAWS * e.p[i];
        statistic += (seen[i] - expected) * (seen[i] - expected) / expected;
        left++;
    }
    assert_int_equal(left, what_is_left);
    assert_true(left == 1 || statistic < chi_square_limits[left - 2]);
}

static void filters_keep_what_they_say(void **state) {
    (void)state;
    assert_follows((struct kvl_sampler_options){.top_k = 1}, 1);
    assert_follows((struct kvl_sampler_options){.top_k = 5}, 5);
    assert_follows((struct kvl_sampler_options){.top_k = 50}, VOCAB);
    assert_follows((struct kvl_sampler_options){.top_p = 0.001f}, 1);
    assert_follows((struct kvl_sampler_options){.top_p = 0.7f}, 4);
    assert_follows((struct kvl_sampler_options){.top_p = 0.95f, .temperature = 3}, 8);
    assert_follows((struct kvl_sampler_options){.min_p = 0.2f}, 5);
    assert_follows((struct kvl_sampler_options){.min_p = 0.01f, .temperature = 0.5f}, 11);
    assert_follows((struct kvl_sampler_options){.min_p = 1}, 1);
    assert_follows((struct kvl_sampler_options){.typical_p = 0.001f}, 1);
    assert_follows((struct kvl_sampler_options){.typical_p = 0.6f}, 5);
    assert_follows((struct kvl_sampler_options){.typical_p = 0.9f, .temperature = 2}, 6);
}

static void penalties_and_bias_shift_what_they_say(void **state) {
    (void)state;
    static const struct kvl_logit_bias bias[] = {{3, 1.5f}, {4, -INFINITY}, {0, -0.5f}, {77, 9}};
    assert_follows((struct kvl_sampler_options){.repeat_penalty = 1.7f, .penalty_last = 64}, VOCAB);
    assert_follows(
        (struct kvl_sampler_options){.presence_penalty = 1.1f, .penalty_last = 64}, VOCAB);
    assert_follows(
        (struct kvl_sampler_options){.frequency_penalty = 0.6f, .penalty_last = 64}, VOCAB);
    assert_follows((struct kvl_sampler_options){.repeat_penalty = 1.3f,
                       .presence_penalty = -0.4f,
                       .frequency_penalty = 0.5f,
                       .penalty_last = 5},
        VOCAB);
    assert_follows((struct kvl_sampler_options){.presence_penalty = 5}, VOCAB); /* of no token */
    assert_follows((struct kvl_sampler_options){.bias = bias, .bias_count = 4}, VOCAB - 1);
}

static void all_options_work_in_their_order(void **state) {
    (void)state;
    static const struct kvl_logit_bias bias[] = {{7, 1}, {10, -1}};
    assert_follows((struct kvl_sampler_options){.temperature = 0.8f,
                       .top_k = 9,
                       .typical_p = 0.95f,
                       .top_p = 0.9f,
                       .min_p = 0.1f,
                       .repeat_penalty = 1.2f,
                       .presence_penalty = 0.2f,
                       .frequency_penalty = 0.1f,
                       .penalty_last = 64,
                       .bias = bias,
                       .bias_count = 2},
        6);
}

static void bias_and_penalties_also_change_the_greedy_choice(void **state) {
    (void)state;
    static const struct kvl_logit_bias bias[] = {{4, -INFINITY}};
    struct kvl_sampler_options options = {.bias = bias, .bias_count = 1};
    double seen[VOCAB] = {0};
    struct kvl_sampler sampler = make(0, 0);
    assert_true(kvl_sampler_is_greedy(&sampler));
    draw(options, seen);
    assert_true(seen[1] == DRAWS);
    options = (struct kvl_sampler_options){.frequency_penalty = 1, .penalty_last = 64};
    kvl_sampler_init(&sampler, options);
    assert_false(kvl_sampler_is_greedy(&sampler));
    draw(options, seen);
    assert_true(seen[10] == 0 && seen[3] == DRAWS);
}

static void equal_logits_are_kept_by_lowest_id(void **state) {
    (void)state;
    static const float equal[6] = {1, 1, 1, 1, 1, NAN};
    struct kvl_sampler sampler;
    bool seen[6] = {false};
    kvl_sampler_init(
        &sampler, (struct kvl_sampler_options){.temperature = 1, .top_k = 2, .seed = 5});
    assert_int_equal(kvl_sampler_prepare(&sampler, 6), KVL_OK);
    for (int i = 0; i < 100; i++) {
        seen[pick(&sampler, equal, 6)] = true;
    }
    assert_true(seen[0] && seen[1] && !seen[2] && !seen[3] && !seen[4] && !seen[5]);
    kvl_sampler_deinit(&sampler);
}

static void extreme_logits_are_survived(void **state) {
    (void)state;
    struct kvl_sampler sampler = make(1e-6f, 3);
    for (int i = 0; i < 100; i++) {
        assert_int_equal(pick(&sampler, (float[]){-1e30f, 5, 1e30f, NAN}, 4), 2);
    }
    sampler = make(1, 3);
    assert_int_equal(pick(&sampler, (float[]){-INFINITY, NAN, 4}, 3), 2);
    kvl_sampler_init(
        &sampler, (struct kvl_sampler_options){
                      .temperature = 1, .top_p = 0.99f, .typical_p = 0.99f, .min_p = 0.1f});
    assert_int_equal(kvl_sampler_prepare(&sampler, 4), KVL_OK);
    for (int i = 0; i < 100; i++) {
        assert_int_equal(pick(&sampler, (float[]){-1e30f, -INFINITY, 1e30f, NAN}, 4), 2);
    }
    assert_int_equal(pick(&sampler, (float[]){NAN, NAN, NAN, NAN}, 4), 0);
    kvl_sampler_deinit(&sampler);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(greedy_takes_the_lowest_id_among_equals),
        cmocka_unit_test(the_generator_is_splitmix64),
        cmocka_unit_test(equal_seeds_draw_equal_tokens),
        cmocka_unit_test(draws_follow_the_softmax),
        cmocka_unit_test(filters_keep_what_they_say),
        cmocka_unit_test(penalties_and_bias_shift_what_they_say),
        cmocka_unit_test(all_options_work_in_their_order),
        cmocka_unit_test(bias_and_penalties_also_change_the_greedy_choice),
        cmocka_unit_test(equal_logits_are_kept_by_lowest_id),
        cmocka_unit_test(extreme_logits_are_survived),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
