/* pool.c - see pool.h.
 *
 * One 64-bit ticket says everything that must be read at once: the job's number (high half) and how
 * many of its units are still to be claimed (low half). A compare-and-swap that succeeds has
 * claimed a unit of that very job, and the job's description stays as it is until that unit is
 * reported done, so a thread that wakes late can never run a unit with the next job's description.
 */
#include "pool.h"

#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

enum {
    SPINS = 2000, /* some 25 us: longer than the serial work between two jobs of a token */
    CACHE_LINE = 64,
};

struct worker {
    struct kvl_pool *pool;
    pthread_t thread;
    uint32_t index;
};

struct kvl_pool {
    kvl_pool_unit *run;
    void *arg;
    uint32_t units;
    uint32_t job;

    _Alignas(CACHE_LINE) _Atomic uint64_t ticket;
    _Alignas(CACHE_LINE) _Atomic uint32_t done;     /* units of this job; the caller's futex */
    _Alignas(CACHE_LINE) _Atomic uint32_t sleepers; /* workers about to sleep or asleep */
    _Atomic uint32_t wake;                          /* their futex */
    _Atomic uint32_t caller_sleeps;
    _Atomic uint32_t stop;

    uint32_t worker_count;
    struct worker *workers;
};

static inline void relax(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb" ::: "memory"); /* waits as long as a pause; yield does nothing */
#endif
}

static void futex_wait(_Atomic uint32_t *word, uint32_t seen) {
    (void)syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
}

static void futex_wake(_Atomic uint32_t *word, int threads) {
    (void)syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, threads, NULL, NULL, 0);
}

/* Guided self-scheduling (Polychronopoulos and Kuck 1987): large shares first, for few claims and
 * long runs of memory, single units last, so that all threads end together. */
static uint32_t share_of(uint32_t left, uint32_t threads) {
    const uint32_t share = left / (2 * threads);
    return share > 0 ? share : 1;
}

/* Runs units of the current job until none is left; false if there was none. */
static bool work(struct kvl_pool *pool, uint32_t thread) {
    bool worked = false;
    uint64_t ticket = atomic_load(&pool->ticket);
    while ((uint32_t)ticket != 0) {
        const uint32_t taken = share_of((uint32_t)ticket, pool->worker_count + 1);
        if (!atomic_compare_exchange_weak(&pool->ticket, &ticket, ticket - taken)) {
            continue;
        }
        const uint32_t units = pool->units;
        const uint32_t first = units - (uint32_t)ticket;
        for (uint32_t unit = first; unit < first + taken; unit++) {
            pool->run(pool->arg, thread, unit);
        }
        worked = true;
        if (atomic_fetch_add(&pool->done, taken) + taken == units &&
            atomic_load(&pool->caller_sleeps)) {
            futex_wake(&pool->done, 1);
        }
        ticket = atomic_load(&pool->ticket);
    }
    return worked;
}

static bool has_work(struct kvl_pool *pool) {
    return (uint32_t)atomic_load(&pool->ticket) != 0 || atomic_load(&pool->stop) != 0;
}

static void wait_for_work(struct kvl_pool *pool) {
    for (uint32_t i = 0; i < SPINS; i++) {
        if (has_work(pool)) {
            return;
        }
        relax();
    }
    /* The caller publishes, then looks for sleepers; we count ourselves, then look for work. */
    const uint32_t seen = atomic_load(&pool->wake);
    atomic_fetch_add(&pool->sleepers, 1);
    if (!has_work(pool)) {
        futex_wait(&pool->wake, seen);
    }
    atomic_fetch_sub(&pool->sleepers, 1);
}

static void wake_sleepers(struct kvl_pool *pool) {
    if (atomic_load(&pool->sleepers) != 0) {
        atomic_fetch_add(&pool->wake, 1);
        futex_wake(&pool->wake, (int)pool->worker_count);
    }
}

static void *worker_main(void *arg) {
    struct worker *worker = arg;
    while (atomic_load(&worker->pool->stop) == 0) {
        if (!work(worker->pool, worker->index)) {
            wait_for_work(worker->pool);
        }
    }
    return NULL;
}

static void wait_until_done(struct kvl_pool *pool) {
    for (uint32_t i = 0; i < SPINS; i++) {
        if (atomic_load(&pool->done) == pool->units) {
            return;
        }
        relax();
    }
    atomic_store(&pool->caller_sleeps, 1);
    uint32_t done;
    while ((done = atomic_load(&pool->done)) != pool->units) {
        futex_wait(&pool->done, done);
    }
    atomic_store(&pool->caller_sleeps, 0);
}

void kvl_pool_run(struct kvl_pool *pool, kvl_pool_unit *run, void *arg, uint32_t units) {
    if (pool->worker_count == 0 || units <= 1) {
        for (uint32_t unit = 0; unit < units; unit++) {
            run(arg, 0, unit);
        }
        return;
    }
    pool->run = run;
    pool->arg = arg;
    pool->units = units;
    atomic_store(&pool->done, 0);
    atomic_store(&pool->ticket, (uint64_t)++pool->job << 32 | units);
    wake_sleepers(pool);
    work(pool, 0);
    wait_until_done(pool);
}

uint32_t kvl_pool_threads(const struct kvl_pool *pool) {
    return pool->worker_count + 1;
}

static uint32_t usable_cpus(void) {
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) != 0) {
        return 1;
    }
    const int count = CPU_COUNT(&set);
    return count > 0 ? (uint32_t)count : 1;
}

kvl_err kvl_pool_create(uint32_t threads, struct kvl_pool **out, struct kvl_errmsg *msg) {
    if (threads == 0) {
        threads = usable_cpus();
    }
    kvl_err err = KVL_OK;
    struct kvl_pool *pool = aligned_alloc(CACHE_LINE, sizeof *pool);
    if (pool == NULL) {
        return kvl_fail(msg, KVL_ERR_NOMEM, "out of memory for the thread pool");
    }
    memset(pool, 0, sizeof *pool);
    pool->workers = calloc(threads, sizeof *pool->workers);
    if (pool->workers == NULL) {
        err = kvl_fail(msg, KVL_ERR_NOMEM, "out of memory for %u threads", threads);
        goto cleanup;
    }
    for (uint32_t i = 0; i + 1 < threads; i++) {
        struct worker *worker = &pool->workers[i];
        *worker = (struct worker){.pool = pool, .index = i + 1};
        const int rc = pthread_create(&worker->thread, NULL, worker_main, worker);
        if (rc != 0) {
            err = kvl_fail(msg, kvl_err_from_errno(rc),
                "cannot start thread %u of %u (%s): ask for fewer threads", i + 2, threads,
                strerror(rc));
            goto cleanup;
        }
        pool->worker_count++;
    }
    *out = pool;
    pool = NULL;

cleanup:
    kvl_pool_destroy(pool);
    return err;
}

void kvl_pool_destroy(struct kvl_pool *pool) {
    if (pool == NULL) {
        return;
    }
    atomic_store(&pool->stop, 1);
    atomic_fetch_add(&pool->wake, 1);
    futex_wake(&pool->wake, (int)pool->worker_count);
    for (uint32_t i = 0; i < pool->worker_count; i++) {
        pthread_join(pool->workers[i].thread, NULL);
    }
    free(pool->workers);
    free(pool);
}
