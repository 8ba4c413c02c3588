/* workers.h - threads that take work and hand results back to the owner thread through a queue.
 *
 * A job is embedded in its owner's struct. run() is called on a worker; done() on the owner thread
 * from kvl_workers_poll(), exactly once per submitted job, in order of completion. Urgent jobs
 * overtake others that have not begun.
 *
 * Threads: submit and poll on the owner thread only. The eventfd is readable when poll has work. */
#ifndef KVL_WORKERS_H
#define KVL_WORKERS_H

#include <stdbool.h>
#include <stdint.h>

#include "kvl_err.h"

struct kvl_job {
    void (*run)(struct kvl_job *job);
    void (*done)(struct kvl_job *job);
    struct kvl_job *next; /* the queue's */
};

struct kvl_workers;

KVL_MUST_CHECK kvl_err kvl_workers_create(
    const char *name, uint32_t threads, struct kvl_workers **out);
/* Runs what was submitted to its end, calls no done() any more, joins. NULL is fine. */
void kvl_workers_destroy(struct kvl_workers *workers);

void kvl_workers_submit(struct kvl_workers *workers, struct kvl_job *job, bool urgent);
/* Calls done() of finished jobs; returns how many. Never blocks. */
uint32_t kvl_workers_poll(struct kvl_workers *workers);
/* Blocks until every submitted job's done() was called. */
void kvl_workers_drain(struct kvl_workers *workers);
int kvl_workers_fd(const struct kvl_workers *workers);
uint32_t kvl_workers_inflight(const struct kvl_workers *workers);

#endif
