/* scheduler.h - continuous batching: the turns of several sequences at once, and a new one as soon
 * as one has ended.
 *
 * Every step is one forward call (generate.h) with a token of each sequence that decodes and the
 * next chunk of the one whose prompt is being computed:
 *
 *   step         1      2      3      4      5
 *   sequence A   chunk  chunk  token  token  token
 *   sequence B                 chunk  token  token
 *   sequence C                        chunk  chunk
 *
 * Prompts are computed one at a time, in the order in which they come: what one has computed is
 * sealed before the next begins, which therefore restores the prefix that they share instead of
 * computing it, and reads it where it lies. That takes a connection; without one nothing is shared.
 * Which sequences run together changes no bit of any of them.
 *
 * Threads: the engine's one thread; callbacks run on it. */
#ifndef KVL_SCHEDULER_H
#define KVL_SCHEDULER_H

#include "generate.h"

/* One turn of a sequence of its own: filled by `next`, whose memory it is, and borrowed until
 * `ended` has returned. */
struct kvl_job {
    const uint32_t *tokens; /* the prompt */
    uint32_t token_count;
    struct kvl_generate_options options; /* without sequence and session */

    struct kvl_turn_report report; /* complete in `ended`, deinited after it */
    struct kvl_sequence sequence;  /* these two are the scheduler's */
    struct kvl_turn *turn;
};

enum kvl_next {
    KVL_NEXT_JOB,     /* *job is one */
    KVL_NEXT_NOT_YET, /* ask again; only where it may not wait, or was interrupted */
    KVL_NEXT_NONE,    /* there will be no more */
};

struct kvl_scheduler_options {
    /* Of every sequence. `stop` ends all turns, and no more jobs are asked for; no_cache shares
     * nothing and computes prompts again and again: of no use here. */
    struct kvl_sequence_options sequence;
    uint32_t parallel; /* 1 to KVL_TURNS_MAX; the backend takes as many batches */
    /* may_wait: nothing else is under way. */
    enum kvl_next (*next)(void *arg, bool may_wait, struct kvl_job **job);
    /* Once for every job. err as of kvl_generate, or of appending the prompt (LIMIT: longer than
     * the context). */
    void (*ended)(void *arg, struct kvl_job *job, kvl_err err);
    void *arg;
};

/* Returns when all jobs have ended and no more will come. */
void kvl_schedule(const struct kvl_scheduler_options *options);

#endif
