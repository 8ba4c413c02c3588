/* decode_job.h - one line of --prompts: a JSON object, read into a turn of its own.
 *
 *   {"id": ANYTHING, "prompt": "TEXT" or [TOKEN IDS], "max_tokens": N, "prompt_tokens": N,
 *    "system": "TEXT", "stop": "TEXT" or ["TEXT", ...], "logit_bias": {"TOKEN ID": NUMBER or
 * "-inf"}, "seed": N, "temperature": T, "top_k": N, ...}
 *
 * Only the prompt has to be there. What is missing or null is as on the command line; what is given
 * takes its place whole. A field of another name is an error: it may be a misspelt one.
 *
 * Threads: the engine's one thread. */
#ifndef KVL_DECODE_JOB_H
#define KVL_DECODE_JOB_H

#include "decode_engine.h"
#include "decode_output.h"
#include "scheduler.h"

struct decode_job {
    struct kvl_job job; /* first */
    uint64_t line;
    struct json_t *object; /* owns the texts that the others borrow; NULL: it is none */
    struct kvl_token_list prompt;
    struct decode_sampling sampling;
    struct kvl_sampler sampler;
    struct kvl_stop_strings stops;
    struct decode_text text;
    struct decode_progress progress; /* never shown */
};

/* A job out of a line; *out is to be destroyed, also after an error: then its id may be known.
 * Errors: INVALID, LIMIT (longer than the context), NOMEM; msg says what is wrong. */
KVL_MUST_CHECK kvl_err decode_job_create(struct decode_engine *engine, const char *text,
    size_t bytes, struct decode_job **out, struct kvl_errmsg *msg);
void decode_job_destroy(struct decode_job *job); /* NULL is fine */
/* The line's id; NULL: it has none. Borrowed. */
struct json_t *decode_job_id(const struct decode_job *job);

#endif
