/* decode_output.c - see decode_output.h. */
#include "decode_output.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SHOW_AFTER_NS UINT64_C(1000000000)
#define SHOW_INTERVAL_NS UINT64_C(100000000)
#define BAR_WIDTH 24

/* ---- text ------------------------------------------------------------------------------------ */

static bool make_room(struct decode_text *text, uint64_t bytes) {
    if (bytes <= text->capacity_bytes - text->bytes)
        return true;
    uint64_t capacity_bytes = 2 * (text->bytes + bytes) + 256;
    char *larger = realloc(text->text, capacity_bytes);
    if (larger == NULL) {
        text->out_of_memory = true;
        return false;
    }
    text->text = larger;
    text->capacity_bytes = capacity_bytes;
    return true;
}

static void show_up_to(struct decode_text *text, uint64_t safe_bytes) {
    if (text->shown != NULL && safe_bytes > text->shown_bytes) {
        fwrite(text->text + text->shown_bytes, 1, safe_bytes - text->shown_bytes, text->shown);
        fflush(text->shown);
    }
    if (safe_bytes > text->shown_bytes)
        text->shown_bytes = safe_bytes;
}

/* Takes in what was written behind the text. False when a stop string ends it. */
static bool add_text(struct decode_text *text, uint64_t bytes) {
    uint64_t safe_bytes = text->bytes + bytes;
    if (text->stops != NULL)
        safe_bytes = kvl_stop_strings_push(text->stops, text->text + text->bytes, bytes);
    bool found = text->stops != NULL && text->stops->found;
    text->bytes = found ? safe_bytes : text->bytes + bytes;
    show_up_to(text, safe_bytes);
    return !found;
}

/* A random model's tokens have no text: their ids, each with a space behind it. */
static void add_id(struct decode_text *text, uint32_t token) {
    if (text->shown != NULL) {
        fprintf(text->shown, "%u ", token);
        fflush(text->shown);
    }
}

bool decode_text_token(void *arg, uint32_t token) {
    struct decode_text *text = arg;
    if (text->tokenizer == NULL) {
        decode_progress_end(text->progress);
        text->progress->is_muted = text->shown != NULL;
        add_id(text, token);
        return true;
    }
    struct kvl_gguf_string piece = kvl_token_piece(text->tokenizer, token);
    decode_progress_end(text->progress);
    text->progress->is_muted = text->shown != NULL;
    if (kvl_token_is_control(text->tokenizer, token) ||
        !make_room(text, KVL_UTF8_OUT_BYTES(piece.bytes)))
        return true;
    return add_text(
        text, kvl_utf8_push(&text->utf8, piece.data, piece.bytes, text->text + text->bytes));
}

void decode_text_finish(struct decode_text *text) {
    if (make_room(text, KVL_UTF8_OUT_BYTES(0)))
        (void)add_text(text, kvl_utf8_finish(&text->utf8, text->text + text->bytes));
    show_up_to(text, text->bytes); /* the stop string that it could have been did not come */
}

void decode_text_deinit(struct decode_text *text) {
    free(text->text);
    text->text = NULL;
}

/* ---- progress -------------------------------------------------------------------------------- */

static void draw_bar(uint64_t done, uint64_t total) {
    int filled = total > 0 ? (int)(BAR_WIDTH * done / total) : 0;
    fputs("\r\033[K[", stderr);
    for (int i = 0; i < BAR_WIDTH; ++i)
        fputc(i < filled ? '#' : '.', stderr);
    fputc(']', stderr);
}

void decode_progress_show(void *arg, bool restoring, uint64_t done, uint64_t total) {
    struct decode_progress *progress = arg;
    uint64_t now_ns = decode_now_ns();
    if (progress->began_ns == 0) {
        progress->began_ns = now_ns;
        progress->first_done = done;
    }
    if (progress->is_muted || now_ns - progress->began_ns < SHOW_AFTER_NS ||
        now_ns - progress->shown_ns < SHOW_INTERVAL_NS || !isatty(STDERR_FILENO))
        return;
    progress->shown_ns = now_ns;
    progress->is_shown = true;
    draw_bar(done, total);
    if (restoring) {
        fprintf(stderr, " restoring %" PRIu64 " of %" PRIu64 " blocks", done, total);
    } else {
        double seconds = (double)(now_ns - progress->began_ns) * 1e-9;
        double rate =
            done > progress->first_done ? (double)(done - progress->first_done) / seconds : 0;
        fprintf(stderr, " prompt %" PRIu64 " of %" PRIu64 " tokens", done, total);
        if (rate > 0)
            fprintf(stderr, ", %.0f tokens/s, %.0f s left", rate, (double)(total - done) / rate);
    }
    fflush(stderr);
}

void decode_progress_end(struct decode_progress *progress) {
    if (progress->is_shown)
        fputs("\r\033[K", stderr);
    *progress = (struct decode_progress){0};
}

/* ---- reports --------------------------------------------------------------------------------- */

int decode_print_json(json_t *object) {
    int failed =
        object == NULL || json_dumpf(object, stdout, JSON_COMPACT | JSON_REAL_PRECISION(17));
    json_decref(object);
    if (failed || putchar('\n') == EOF || fflush(stdout) != 0)
        return decode_error("cannot write the output");
    return DECODE_DONE;
}

static json_t *json_of_tokens(const struct kvl_token_list *list) {
    json_t *array = json_array();
    for (uint64_t i = 0; i < list->count; ++i)
        json_array_append_new(array, json_integer(list->ids[i]));
    return array;
}

static double milliseconds(uint64_t nanoseconds) {
    return (double)nanoseconds * 1e-6;
}

static double decode_rate(const struct kvl_turn_report *report) {
    return report->decode_ns > 0
               ? (double)report->decode_tokens / ((double)report->decode_ns * 1e-9)
               : 0;
}

static void add_hash(json_t *object, const uint8_t hash[32]) {
    char hex[65];
    for (int i = 0; i < 32; ++i)
        snprintf(hex + 2 * i, 3, "%02x", hash[i]);
    json_object_set_new(object, "logits_sha256", json_string(hex));
}

/* What stays outside the daemon's tiers is not there for the next run. */
static void say_private(const struct decode_engine *engine, const struct kvl_turn_report *report,
    const char *before, const char *after) {
    if (engine->connection.client != NULL && report->private_tokens > 0)
        fprintf(stderr, "%s%" PRIu64 " tokens are in private memory, not stored%s", before,
            report->private_tokens, after);
}

json_t *decode_restored_json(const uint64_t restored_tokens[KVL_TIER_COUNT]) {
    return json_pack("{s:I,s:I,s:I}", "device", (json_int_t)restored_tokens[KVL_TIER_DEVICE],
        "host", (json_int_t)restored_tokens[KVL_TIER_HOST], "disk",
        (json_int_t)restored_tokens[KVL_TIER_DISK]);
}

json_t *decode_turn_json(
    const struct kvl_turn_report *report, const struct decode_text *text, bool with_hash) {
    json_t *object = json_pack("{s:I,s:I,s:o,s:I,s:f,s:f,s:f,s:I,s:I,s:f,s:f,s:o,s:s%,s:s,s:s,s:b}",
        "prompt_tokens", (json_int_t)report->prompt_tokens, "computed_tokens",
        (json_int_t)report->computed_tokens, "restored_tokens",
        decode_restored_json(report->restored_tokens), "restored_bytes",
        (json_int_t)report->restored_bytes, "ttft_ms", milliseconds(report->ttft_ns), "prefill_ms",
        milliseconds(report->prefill_ns), "restore_ms", milliseconds(report->restore_ns),
        "private_tokens", (json_int_t)report->private_tokens, "decode_tokens",
        (json_int_t)report->decode_tokens, "decode_tokens_per_s", decode_rate(report),
        "decode_step_ms_max", milliseconds(report->decode_step_ns_max), "output_tokens",
        json_of_tokens(&report->output), "text", text->text != NULL ? text->text : "",
        (size_t)text->bytes, "plan", "always", "stop_reason",
        kvl_stop_reason_name(report->stop_reason), "daemon_lost", (int)report->daemon_lost);
    if (object != NULL && with_hash)
        add_hash(object, report->logits_sha256);
    return object;
}

int decode_print_turn(const struct decode_engine *engine, const struct kvl_turn_report *report,
    const struct decode_text *text) {
    if (!engine->options->json) {
        putchar('\n');
        if (fflush(stdout) != 0)
            return decode_error("cannot write the output");
        if (report->stop_reason == KVL_STOP_CONTEXT)
            fputs("kvloft-decode: the context is full; the answer ends there\n", stderr);
        say_private(engine, report, "kvloft-decode: ", "\n");
        return DECODE_DONE;
    }
    json_t *object = decode_turn_json(report, text, engine->options->hash_logits);
    json_t *more = json_pack("{s:f,s:s,s:s,s:b}", "load_ms", milliseconds(engine->load_ns),
        "backend", engine->backend->ops->name, "arithmetic_id", engine->backend->arithmetic_id,
        "random_model", (int)engine->model->is_random);
    bool is_whole = object != NULL && json_object_update(object, more) == 0;
    json_decref(more);
    if (is_whole)
        return decode_print_json(object);
    json_decref(object);
    return decode_print_json(NULL);
}

int decode_print_tokens(const struct kvl_token_list *list, bool json) {
    if (json)
        return decode_print_json(json_pack("{s:o}", "tokens", json_of_tokens(list)));
    for (uint64_t i = 0; i < list->count; ++i)
        printf("%u%c", list->ids[i], i + 1 < list->count ? ' ' : '\n');
    return fflush(stdout) == 0 ? DECODE_DONE : decode_error("cannot write the output");
}

int decode_print_perplexity(const struct kvl_perplexity *perplexity, bool json) {
    if (json)
        return decode_print_json(
            json_pack("{s:I,s:f,s:f}", "tokens", (json_int_t)perplexity->tokens, "nll_mean",
                perplexity->nll_mean, "ppl", perplexity->ppl));
    printf("%" PRIu64 " tokens, mean negative log-likelihood %.6f, perplexity %.4f\n",
        perplexity->tokens, perplexity->nll_mean, perplexity->ppl);
    return fflush(stdout) == 0 ? DECODE_DONE : decode_error("cannot write the output");
}

void decode_print_summary(
    const struct decode_engine *engine, const struct kvl_turn_report *report) {
    uint64_t restored = 0;
    for (uint32_t i = 0; i < KVL_TIER_COUNT; ++i)
        restored += report->restored_tokens[i];
    fprintf(stderr, "%" PRIu64 " tokens in context: %" PRIu64 " restored", report->prompt_tokens,
        restored);
    if (report->restored_bytes > 0)
        fprintf(stderr, " (%.1f MiB from host and disk)",
            (double)report->restored_bytes / (1024.0 * 1024.0));
    fprintf(stderr, ", %" PRIu64 " computed; first token after %.0f ms, then %.1f tokens/s",
        report->computed_tokens, milliseconds(report->ttft_ns), decode_rate(report));
    if (report->stop_reason == KVL_STOP_CONTEXT)
        fputs("; the context is full", stderr);
    say_private(engine, report, "; ", "");
    fputc('\n', stderr);
}
