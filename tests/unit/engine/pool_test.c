/* pool_test.c - every unit runs exactly once, its effects are visible afterwards, and late workers
 * never touch the next job. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>
#include <unistd.h>

#include "cpu/pool.h"

enum { UNITS_MAX = 300 };

struct counts {
    uint32_t runs[UNITS_MAX]; /* plain: each unit belongs to one thread */
    uint32_t threads;
    uint32_t step;
    uint32_t wrong_thread[UNITS_MAX];
};

static void count_unit(void *arg, uint32_t thread, uint32_t unit) {
    struct counts *counts = arg;
    counts->runs[unit] += counts->step;
    counts->wrong_thread[unit] |= thread >= counts->threads;
}

static void check_jobs(uint32_t threads, uint32_t jobs, uint32_t pause_every) {
    struct kvl_pool *pool;
    struct kvl_errmsg msg;
    assert_int_equal(kvl_pool_create(threads, &pool, &msg), KVL_OK);
    assert_int_equal(kvl_pool_threads(pool), threads);
    struct counts counts = {.threads = threads};
    uint32_t expected[UNITS_MAX] = {0};
    for (uint32_t job = 0; job < jobs; job++) {
        const uint32_t units = job * 7919 % UNITS_MAX;
        counts.step = job + 1;
        kvl_pool_run(pool, count_unit, &counts, units);
        for (uint32_t i = 0; i < units; i++) {
            expected[i] += job + 1;
        }
        if (pause_every != 0 && job % pause_every == 0) {
            usleep(2000); /* long enough for workers to fall asleep */
        }
        assert_memory_equal(counts.runs, expected, sizeof expected);
    }
    for (uint32_t i = 0; i < UNITS_MAX; i++) {
        assert_int_equal(counts.wrong_thread[i], 0);
    }
    kvl_pool_destroy(pool);
}

static void runs_each_unit_once(void **state) {
    (void)state;
    for (uint32_t threads = 1; threads <= 5; threads++) {
        check_jobs(threads, 3000, 0);
    }
}

static void wakes_sleeping_workers(void **state) {
    (void)state;
    check_jobs(3, 100, 2);
}

static void uses_the_cpus_it_may_use(void **state) {
    (void)state;
    struct kvl_pool *pool;
    assert_int_equal(kvl_pool_create(0, &pool, NULL), KVL_OK);
    assert_true(kvl_pool_threads(pool) >= 1);
    kvl_pool_destroy(pool);
    kvl_pool_destroy(NULL);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(runs_each_unit_once),
        cmocka_unit_test(wakes_sleeping_workers),
        cmocka_unit_test(uses_the_cpus_it_may_use),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
