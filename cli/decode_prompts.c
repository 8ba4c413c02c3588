/* decode_prompts.c - see decode_prompts.h. */
#include "decode_prompts.h"

#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "decode_job.h"

struct totals {
    uint64_t done, failed, interrupted;
    uint64_t prompt_tokens, computed_tokens, restored_tokens[KVL_TIER_COUNT], private_tokens;
    uint64_t output_tokens;
    bool daemon_lost;
};

struct run {
    struct decode_engine *engine;
    const struct decode_engine_hooks *hooks;
    struct decode_lines *lines;
    struct totals totals;
    bool cannot_read, cannot_print;
};

/* ---- results --------------------------------------------------------------------------------- */

/* The result with its line's number and id in front; NULL: no memory. Takes the result. */
static char *text_of_result(uint64_t line, const struct decode_job *job, json_t *result) {
    json_t *object = json_pack("{s:I}", "line", (json_int_t)line);
    json_t *id = decode_job_id(job);
    bool is_whole = object != NULL && result != NULL &&
                    (id == NULL || json_object_set(object, "id", id) == 0) &&
                    json_object_update(object, result) == 0;
    char *text = is_whole ? json_dumps(object, JSON_COMPACT | JSON_REAL_PRECISION(17)) : NULL;
    json_decref(result);
    json_decref(object);
    return text;
}

/* Once nobody takes the results any more, what is under way has no use either. */
static void stop_printing(struct run *run) {
    (void)decode_error("cannot write the output");
    run->cannot_print = true;
    *run->hooks->stop = 1;
}

/* False: there is no memory for it, and its line says so instead. */
static bool print_result(
    struct run *run, uint64_t line, const struct decode_job *job, json_t *result) {
    char *text = text_of_result(line, job, result);
    bool is_whole = text != NULL;
    if (!run->cannot_print) {
        int printed = is_whole
                          ? puts(text)
                          : printf("{\"line\":%" PRIu64 ",\"error\":\"out of memory\"}\n", line);
        if (printed < 0 || fflush(stdout) != 0)
            stop_printing(run);
    }
    free(text);
    return is_whole;
}

static void print_failure(
    struct run *run, uint64_t line, const struct decode_job *job, const char *why) {
    ++run->totals.failed;
    (void)print_result(run, line, job, json_pack("{s:s}", "error", why));
}

static void count(struct totals *totals, const struct kvl_turn_report *report) {
    if (report->stop_reason == KVL_STOP_INTERRUPTED)
        ++totals->interrupted;
    else
        ++totals->done;
    totals->prompt_tokens += report->prompt_tokens;
    totals->computed_tokens += report->computed_tokens;
    totals->private_tokens += report->private_tokens;
    totals->output_tokens += report->output.count;
    totals->daemon_lost = totals->daemon_lost || report->daemon_lost;
    for (uint32_t i = 0; i < KVL_TIER_COUNT; ++i)
        totals->restored_tokens[i] += report->restored_tokens[i];
}

static void job_ended(void *arg, struct kvl_job *job_of_line, kvl_err err) {
    struct run *run = arg;
    struct decode_job *job = (struct decode_job *)(void *)job_of_line; /* it comes first */
    decode_text_finish(&job->text);
    if (err == KVL_OK && job->text.out_of_memory)
        err = KVL_ERR_NOMEM;
    if (err == KVL_OK) {
        json_t *result =
            decode_turn_json(&job->job.report, &job->text, run->engine->options->hash_logits);
        if (print_result(run, job->line, job, result))
            count(&run->totals, &job->job.report);
        else
            ++run->totals.failed;
    } else {
        print_failure(run, job->line, job, kvl_err_text(err));
    }
    decode_job_destroy(job);
}

/* ---- lines ----------------------------------------------------------------------------------- */

static bool is_blank(const char *text, size_t bytes) {
    for (size_t i = 0; i < bytes; ++i)
        if (strchr(" \t\r", text[i]) == NULL || text[i] == 0)
            return false;
    return true;
}

/* True: *job is the line's. Otherwise it was blank, or its error has been printed. */
static bool read_line(struct run *run, const char *text, size_t bytes, struct kvl_job **job) {
    static const char byte_order_mark[] = "\xef\xbb\xbf";
    struct kvl_errmsg msg = {{0}};
    struct decode_job *made = NULL;
    if (run->lines->number == 1 && bytes >= 3 && memcmp(text, byte_order_mark, 3) == 0) {
        text += 3;
        bytes -= 3;
    }
    if (is_blank(text, bytes))
        return false;
    kvl_err err = decode_job_create(run->engine, text, bytes, &made, &msg);
    if (err != KVL_OK) {
        print_failure(run, run->lines->number, made, msg.text);
        decode_job_destroy(made);
        return false;
    }
    made->line = run->lines->number;
    *job = &made->job;
    return true;
}

static enum kvl_next next_job(void *arg, bool may_wait, struct kvl_job **job) {
    struct run *run = arg;
    while (!run->cannot_print && !*run->hooks->stop) {
        const char *text = NULL;
        size_t bytes = 0;
        switch (decode_lines_next(run->lines, may_wait, &text, &bytes)) {
        case DECODE_LINE_WHOLE:
            if (read_line(run, text, bytes, job))
                return KVL_NEXT_JOB;
            break;
        case DECODE_LINE_TOO_LONG:
            print_failure(run, run->lines->number, NULL, "the line is longer than 16 MiB");
            break;
        case DECODE_LINE_NOT_YET:
            return KVL_NEXT_NOT_YET;
        case DECODE_LINE_FAILED:
            run->cannot_read = true;
            (void)decode_error(
                "cannot read the prompts %s: %s", run->engine->options->prompts, strerror(errno));
            return KVL_NEXT_NONE;
        case DECODE_LINE_NONE:
            return KVL_NEXT_NONE;
        }
    }
    return KVL_NEXT_NONE;
}

/* ---- totals ---------------------------------------------------------------------------------- */

/* Who keeps what lines share. */
static const char *store_of(const struct decode_engine *engine) {
    return engine->connection.client == NULL ? "none"
           : engine->service != NULL         ? "embedded"
                                             : "daemon";
}

static int print_totals_json(const struct run *run, double seconds) {
    const struct totals *totals = &run->totals;
    const struct decode_engine *engine = run->engine;
    double rate = seconds > 0 ? 1 / seconds : 0;
    json_t *object =
        json_pack("{s:I,s:I,s:I,s:I,s:I,s:I,s:o,s:I,s:I,s:f,s:f,s:f,s:f,s:s,s:b,s:s,s:s}", "done",
            (json_int_t)totals->done, "failed", (json_int_t)totals->failed, "interrupted",
            (json_int_t)totals->interrupted, "parallel", (json_int_t)engine->options->parallel,
            "prompt_tokens", (json_int_t)totals->prompt_tokens, "computed_tokens",
            (json_int_t)totals->computed_tokens, "restored_tokens",
            decode_restored_json(totals->restored_tokens), "private_tokens",
            (json_int_t)totals->private_tokens, "output_tokens", (json_int_t)totals->output_tokens,
            "load_ms", (double)engine->load_ns * 1e-6, "wall_ms", seconds * 1e3,
            "output_tokens_per_s", (double)totals->output_tokens * rate, "tokens_per_s",
            (double)(totals->prompt_tokens + totals->output_tokens) * rate, "store",
            store_of(engine), "daemon_lost", (int)totals->daemon_lost, "backend",
            engine->backend->ops->name, "arithmetic_id", engine->backend->arithmetic_id);
    return decode_print_json(object == NULL ? NULL : json_pack("{s:o}", "summary", object));
}

static void print_totals(const struct run *run, double seconds) {
    const struct totals *totals = &run->totals;
    uint64_t restored = 0;
    for (uint32_t i = 0; i < KVL_TIER_COUNT; ++i)
        restored += totals->restored_tokens[i];
    fprintf(stderr,
        "kvloft-decode: %" PRIu64 " prompts answered, %" PRIu64 " failed, %" PRIu64
        " interrupted; %" PRIu64 " tokens of prompts (%" PRIu64 " restored, %" PRIu64
        " computed) and %" PRIu64 " of answers in %.1f s: %.1f tokens/s, %.1f/s of answers\n",
        totals->done, totals->failed, totals->interrupted, totals->prompt_tokens, restored,
        totals->computed_tokens, totals->output_tokens, seconds,
        (double)(totals->prompt_tokens + totals->output_tokens) / seconds,
        (double)totals->output_tokens / seconds);
}

int decode_prompts_open(const char *path, struct decode_lines *lines) {
    return decode_lines_open(lines, path)
               ? DECODE_DONE
               : decode_error("cannot open the prompts %s: %s", path, strerror(errno));
}

int decode_prompts_run(struct decode_engine *engine, const struct decode_engine_hooks *hooks,
    struct decode_lines *lines) {
    struct run run = {.engine = engine, .hooks = hooks, .lines = lines};
    struct kvl_scheduler_options options = {
        .sequence = decode_engine_sequence(engine, hooks),
        .parallel = engine->options->parallel,
        .next = next_job,
        .ended = job_ended,
        .arg = &run,
    };
    uint64_t began_ns = decode_now_ns();
    kvl_schedule(&options);
    double seconds = (double)(decode_now_ns() - began_ns) * 1e-9;
    if (run.cannot_print)
        return DECODE_FAILED;
    int status = DECODE_DONE;
    if (engine->options->json)
        status = print_totals_json(&run, seconds);
    else
        print_totals(&run, seconds);
    bool all_done = !run.cannot_read && run.totals.failed == 0 && *hooks->stop == 0;
    return all_done ? status : DECODE_FAILED;
}
