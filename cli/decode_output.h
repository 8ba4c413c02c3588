/* decode_output.h - what kvloft-decode prints: the text as it comes, progress, JSON. */
#ifndef KVL_DECODE_OUTPUT_H
#define KVL_DECODE_OUTPUT_H

#include <stdio.h>

#include "decode_engine.h"
#include "perplexity.h"
#include "stop_strings.h"
#include "utf8.h"

/* Collects a turn's text, whole characters only, and shows it as soon as it can be no part of a
 * stop string. */
struct decode_text {
    const struct kvl_tokenizer *tokenizer;
    FILE *shown;                      /* NULL: not shown */
    struct decode_progress *progress; /* ends with the first token: no bar beside text */
    struct kvl_stop_strings *stops;   /* NULL: none; found ends the text before it */
    struct kvl_utf8_stream utf8;
    char *text;
    uint64_t bytes, capacity_bytes;
    uint64_t shown_bytes; /* the rest may be the beginning of a stop string */
    bool out_of_memory;
};
bool decode_text_token(void *arg, uint32_t token); /* a kvl_generate_options.on_token */
void decode_text_finish(struct decode_text *text);
void decode_text_deinit(struct decode_text *text);

/* A line on stderr, once something takes over a second, if stderr is a terminal. */
struct decode_progress {
    uint64_t began_ns; /* 0: nothing under way */
    uint64_t shown_ns;
    uint64_t first_done;
    bool is_shown;
    bool is_muted; /* text has begun on the terminal */
};
void decode_progress_show(void *arg, bool restoring, uint64_t done, uint64_t total);
void decode_progress_end(struct decode_progress *progress);

struct json_t;
/* What a turn did and what came out of it, as JSON; NULL: no memory. */
struct json_t *decode_turn_json(
    const struct kvl_turn_report *report, const struct decode_text *text, bool with_hash);
/* restored_tokens of a report, by tier. */
struct json_t *decode_restored_json(const uint64_t restored_tokens[KVL_TIER_COUNT]);
/* Prints it on a line of its own and gives it back; NULL is an error too. DECODE_DONE, or
 * DECODE_FAILED after an error message. */
int decode_print_json(struct json_t *object);

/* All print one line and return DECODE_DONE, or DECODE_FAILED after an error message. */
int decode_print_turn(const struct decode_engine *engine, const struct kvl_turn_report *report,
    const struct decode_text *text);
int decode_print_tokens(const struct kvl_token_list *list, bool json);
int decode_print_perplexity(const struct kvl_perplexity *perplexity, bool json);
/* A line for people, on stderr. */
void decode_print_summary(const struct decode_engine *engine, const struct kvl_turn_report *report);

#endif
