#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
/* cmocka needs the four above first */
#include <cmocka.h>
#include <math.h>

#include "sampler.h"

static struct kvl_sampler make(float temperature, uint64_t seed) {
    struct kvl_sampler sampler;
    kvl_sampler_init(&sampler, (struct kvl_sampler_options){temperature, seed});
    return sampler;
}

static void greedy_takes_the_lowest_id_among_equals(void **state) {
    (void)state;
    struct kvl_sampler sampler = make(0, 1);
    assert_int_equal(kvl_sampler_pick(&sampler, (float[]){1, 3, 2, 3}, 4), 1);
    assert_int_equal(kvl_sampler_pick(&sampler, (float[]){NAN, -5, NAN}, 3), 1);
    assert_int_equal(kvl_sampler_pick(&sampler, (float[]){NAN, NAN}, 2), 0);
    assert_int_equal(kvl_sampler_pick(&sampler, (float[]){-INFINITY, INFINITY}, 2), 1);
}

/* Published outputs of splitmix64 for seed 1234567 pin the generator. 6457827717110365317 / 2^64 is
 * 0.35007..., which falls to token 35 of 100 equal ones. */
static void the_generator_is_splitmix64(void **state) {
    (void)state;
    static const float equal[100] = {0};
    struct kvl_sampler sampler = make(1, 1234567);
    assert_int_equal(kvl_sampler_pick(&sampler, equal, 100), 35);
    assert_int_equal(kvl_sampler_pick(&sampler, equal, 100), 17); /* 3203168211198807973 / 2^64 */
    assert_int_equal(kvl_sampler_pick(&sampler, equal, 100), 53); /* 9817491932198370423 / 2^64 */
}

static void equal_seeds_draw_equal_tokens(void **state) {
    (void)state;
    static const float logits[] = {0.1f, 0.2f, 0.3f, 0.4f, 0.5f};
    struct kvl_sampler a = make(0.8f, 42), b = make(0.8f, 42), c = make(0.8f, 43);
    int different = 0;
    for (int i = 0; i < 200; i++) {
        uint32_t token = kvl_sampler_pick(&a, logits, 5);
        assert_int_equal(token, kvl_sampler_pick(&b, logits, 5));
        different += token != kvl_sampler_pick(&c, logits, 5);
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
            seen[kvl_sampler_pick(&sampler, logits, VOCAB)]++;
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

static void extreme_logits_are_survived(void **state) {
    (void)state;
    struct kvl_sampler sampler = make(1e-6f, 3);
    for (int i = 0; i < 100; i++) {
        assert_int_equal(kvl_sampler_pick(&sampler, (float[]){-1e30f, 5, 1e30f, NAN}, 4), 2);
    }
    sampler = make(1, 3);
    assert_int_equal(kvl_sampler_pick(&sampler, (float[]){-INFINITY, NAN, 4}, 3), 2);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(greedy_takes_the_lowest_id_among_equals),
        cmocka_unit_test(the_generator_is_splitmix64),
        cmocka_unit_test(equal_seeds_draw_equal_tokens),
        cmocka_unit_test(draws_follow_the_softmax),
        cmocka_unit_test(extreme_logits_are_survived),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
