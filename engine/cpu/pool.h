/* pool.h - the threads that share one forward pass.
 *
 * A job is `units` independent pieces of work; threads claim them in shares that get smaller, so
 * a thread that the system holds up delays only its share. Results must not depend on which thread
 * ran which unit. The caller works too. Between jobs threads spin for a short while, then sleep.
 *
 * Threads: one caller at a time. No allocation and no lock after create. */
#ifndef KVL_CPU_POOL_H
#define KVL_CPU_POOL_H

#include <stdint.h>

#include "kvl_err.h"

struct kvl_pool;

/* thread: 0 (the caller) to threads - 1, for per-thread scratch. */
typedef void kvl_pool_unit(void *arg, uint32_t thread, uint32_t unit);

/* threads 0: as many as this process may run on. */
KVL_MUST_CHECK kvl_err kvl_pool_create(
    uint32_t threads, struct kvl_pool **out, struct kvl_errmsg *msg);
uint32_t kvl_pool_threads(const struct kvl_pool *pool);
/* Returns when all units are done, and their writes are visible to the caller. */
void kvl_pool_run(struct kvl_pool *pool, kvl_pool_unit *run, void *arg, uint32_t units);
void kvl_pool_destroy(struct kvl_pool *pool); /* NULL is fine */

#endif
