/* scheduler.c - see scheduler.h. */
#include "scheduler.h"

struct scheduler {
    const struct kvl_scheduler_options *options;
    struct kvl_job *jobs[KVL_TURNS_MAX];   /* under way, */
    struct kvl_turn *turns[KVL_TURNS_MAX]; /* and their turns, in the order in which they came */
    uint32_t count;
    bool has_more;
};

static bool is_stopped(const struct scheduler *scheduler) {
    const volatile sig_atomic_t *stop = scheduler->options->sequence.stop;
    return stop != NULL && *stop != 0;
}

/* The leases go before the answer: who waits for it may need the room. */
static void end(const struct scheduler *scheduler, struct kvl_job *job, kvl_err err) {
    if (job->turn != NULL)
        err = kvl_turn_end(job->turn);
    job->turn = NULL;
    kvl_sequence_deinit(&job->sequence);
    struct kvl_turn_report report = job->report; /* the job may be gone afterwards */
    scheduler->options->ended(scheduler->options->arg, job, err);
    kvl_turn_report_deinit(&report);
}

static void begin(struct scheduler *scheduler, struct kvl_job *job) {
    job->report = (struct kvl_turn_report){0};
    job->turn = NULL;
    kvl_err err = kvl_sequence_init(&job->sequence, &scheduler->options->sequence);
    if (err == KVL_OK)
        err = kvl_sequence_append(&job->sequence, job->tokens, job->token_count);
    job->options.sequence = &job->sequence;
    job->options.session = NULL;
    if (err == KVL_OK)
        err = kvl_turn_begin(&job->options, &job->report, &job->turn);
    if (err != KVL_OK) {
        end(scheduler, job, err);
        return;
    }
    scheduler->jobs[scheduler->count] = job;
    scheduler->turns[scheduler->count++] = job->turn;
}

static bool may_admit(const struct scheduler *scheduler) {
    if (!scheduler->has_more || scheduler->count >= scheduler->options->parallel ||
        is_stopped(scheduler))
        return false;
    for (uint32_t i = 0; i < scheduler->count; ++i)
        if (kvl_turn_is_prefilling(scheduler->turns[i]))
            return false;
    return true;
}

static void admit(struct scheduler *scheduler) {
    while (may_admit(scheduler)) {
        struct kvl_job *job = NULL;
        enum kvl_next next =
            scheduler->options->next(scheduler->options->arg, scheduler->count == 0, &job);
        if (next == KVL_NEXT_JOB)
            begin(scheduler, job);
        else if (next == KVL_NEXT_NONE)
            scheduler->has_more = false;
        else if (scheduler->count > 0)
            return;
    }
}

static void take_out_ended(struct scheduler *scheduler) {
    uint32_t kept = 0;
    for (uint32_t i = 0; i < scheduler->count; ++i) {
        struct kvl_job *job = scheduler->jobs[i];
        scheduler->jobs[kept] = job;
        scheduler->turns[kept] = job->turn;
        if (kvl_turn_has_ended(job->turn))
            end(scheduler, job, KVL_OK);
        else
            ++kept;
    }
    scheduler->count = kept;
}

void kvl_schedule(const struct kvl_scheduler_options *options) {
    struct scheduler scheduler = {.options = options, .has_more = true};
    for (;;) {
        admit(&scheduler);
        if (scheduler.count == 0)
            return;
        kvl_turns_step(scheduler.turns, scheduler.count);
        take_out_ended(&scheduler);
    }
}
