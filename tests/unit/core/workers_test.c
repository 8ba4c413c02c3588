#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
/* cmocka needs the four above first */
#include <cmocka.h>
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "kvl_err.h"
#include "workers.h"

struct test_job {
    struct kvl_job job;
    uint32_t number;
    uint64_t value; /* plain: handed over by the queues alone */
    uint32_t done;
    bool resubmit;
    sem_t *gate;
    struct kvl_workers *workers;
    struct run_order *order;
};

struct run_order {
    pthread_mutex_t mutex;
    uint32_t count;
    uint32_t numbers[16];
};

static void run(struct kvl_job *base) {
    struct test_job *job = (struct test_job *)base;
    if (job->gate)
        sem_wait(job->gate);
    job->value += job->number * 3u;
    if (job->order) {
        pthread_mutex_lock(&job->order->mutex);
        job->order->numbers[job->order->count++] = job->number;
        pthread_mutex_unlock(&job->order->mutex);
    }
}

static void done(struct kvl_job *base) {
    struct test_job *job = (struct test_job *)base;
    job->done++;
    if (job->resubmit) {
        job->resubmit = false;
        kvl_workers_submit(job->workers, &job->job, false);
    }
}

static bool is_readable(int fd, int timeout_ms) {
    struct pollfd poller = {.fd = fd, .events = POLLIN};
    return poll(&poller, 1, timeout_ms) == 1;
}

static void every_job_is_run_and_done_exactly_once(void **state) {
    (void)state;
    enum { JOBS = 2000 };
    static struct test_job jobs[JOBS];
    memset(jobs, 0, sizeof jobs);
    struct kvl_workers *workers;
    assert_int_equal(kvl_workers_create("test", 3, &workers), KVL_OK);
    uint32_t polled = 0;
    for (uint32_t i = 0; i < JOBS; i++) {
        jobs[i] = (struct test_job){.job = {.run = run, .done = done}, .number = i};
        kvl_workers_submit(workers, &jobs[i].job, i % 7 == 0);
        if (i % 100 == 0)
            polled += kvl_workers_poll(workers);
    }
    assert_true(polled <= JOBS);
    kvl_workers_drain(workers);
    assert_int_equal(kvl_workers_inflight(workers), 0);
    assert_int_equal(kvl_workers_poll(workers), 0);
    for (uint32_t i = 0; i < JOBS; i++) {
        assert_int_equal(jobs[i].done, 1);
        assert_int_equal(jobs[i].value, i * 3u);
    }
    kvl_workers_destroy(workers);
}

static void fd_is_readable_exactly_while_there_is_something_to_poll(void **state) {
    (void)state;
    sem_t gate;
    sem_init(&gate, 0, 0);
    struct kvl_workers *workers;
    assert_int_equal(kvl_workers_create("test", 1, &workers), KVL_OK);
    struct test_job job = {.job = {.run = run, .done = done}, .gate = &gate};
    kvl_workers_submit(workers, &job.job, false);
    assert_false(is_readable(kvl_workers_fd(workers), 20));
    assert_int_equal(kvl_workers_poll(workers), 0);
    assert_int_equal(kvl_workers_inflight(workers), 1);
    sem_post(&gate);
    assert_true(is_readable(kvl_workers_fd(workers), 10000));
    assert_int_equal(job.done, 0); /* done() waits for poll */
    assert_int_equal(kvl_workers_poll(workers), 1);
    assert_int_equal(job.done, 1);
    assert_false(is_readable(kvl_workers_fd(workers), 0));
    kvl_workers_destroy(workers);
    sem_destroy(&gate);
}

static void urgent_jobs_overtake_those_that_have_not_begun(void **state) {
    (void)state;
    sem_t gate;
    sem_init(&gate, 0, 0);
    struct run_order order = {.mutex = PTHREAD_MUTEX_INITIALIZER};
    struct kvl_workers *workers;
    assert_int_equal(kvl_workers_create("test", 1, &workers), KVL_OK);
    struct test_job jobs[6];
    for (uint32_t i = 0; i < 6; i++)
        jobs[i] = (struct test_job){.job = {.run = run, .done = done},
            .number = i,
            .order = &order,
            .gate = i == 0 ? &gate : NULL};
    /* Job 0 is urgent, so that it surely is the one that holds the only worker. */
    kvl_workers_submit(workers, &jobs[0].job, true);
    for (uint32_t i = 1; i < 6; i++)
        kvl_workers_submit(workers, &jobs[i].job, i >= 4);
    sem_post(&gate);
    kvl_workers_drain(workers);
    const uint32_t expected[6] = {0, 4, 5, 1, 2, 3};
    assert_int_equal(order.count, 6);
    assert_memory_equal(order.numbers, expected, sizeof expected);
    kvl_workers_destroy(workers);
    sem_destroy(&gate);
}

static void done_may_submit_again_and_drain_waits_for_that_too(void **state) {
    (void)state;
    struct kvl_workers *workers;
    assert_int_equal(kvl_workers_create("test", 2, &workers), KVL_OK);
    struct test_job job = {
        .job = {.run = run, .done = done}, .number = 5, .resubmit = true, .workers = workers};
    kvl_workers_submit(workers, &job.job, false);
    kvl_workers_drain(workers);
    assert_int_equal(job.done, 2);
    assert_int_equal(job.value, 30);
    kvl_workers_destroy(workers);
}

static void destroy_runs_what_was_submitted_but_calls_no_done(void **state) {
    (void)state;
    struct kvl_workers *workers;
    assert_int_equal(kvl_workers_create("a-name-longer-than-allowed", 2, &workers), KVL_OK);
    struct test_job jobs[50];
    for (uint32_t i = 0; i < 50; i++) {
        jobs[i] = (struct test_job){.job = {.run = run, .done = done}, .number = i + 1};
        kvl_workers_submit(workers, &jobs[i].job, false);
    }
    kvl_workers_destroy(workers);
    for (uint32_t i = 0; i < 50; i++) {
        assert_int_equal(jobs[i].value, (i + 1) * 3u);
        assert_int_equal(jobs[i].done, 0);
    }
    kvl_workers_destroy(NULL);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_job_is_run_and_done_exactly_once),
        cmocka_unit_test(fd_is_readable_exactly_while_there_is_something_to_poll),
        cmocka_unit_test(urgent_jobs_overtake_those_that_have_not_begun),
        cmocka_unit_test(done_may_submit_again_and_drain_waits_for_that_too),
        cmocka_unit_test(destroy_runs_what_was_submitted_but_calls_no_done),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
