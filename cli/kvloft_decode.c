/* kvloft_decode.c - the companion engine's program: tokenize, perplexity, one answer, many, or a
 * chat. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "decode_chat.h"
#include "decode_engine.h"
#include "decode_options.h"
#include "decode_output.h"
#include "decode_prompts.h"
#include "perplexity.h"

#define PROMPT_FILE_BYTES_MAX (UINT64_C(1) << 30)

struct prompt {
    char *owned; /* NULL: from the command line */
    const char *text;
    uint64_t bytes;
};

static bool read_stream(FILE *file, struct prompt *prompt) {
    uint64_t capacity_bytes = 0;
    while (!feof(file) && !ferror(file) && prompt->bytes <= PROMPT_FILE_BYTES_MAX) {
        if (prompt->bytes == capacity_bytes) {
            capacity_bytes = 2 * capacity_bytes + 65536;
            char *larger = realloc(prompt->owned, capacity_bytes);
            if (larger == NULL) {
                errno = ENOMEM;
                return false;
            }
            prompt->owned = larger;
        }
        prompt->bytes +=
            fread(prompt->owned + prompt->bytes, 1, capacity_bytes - prompt->bytes, file);
    }
    prompt->text = prompt->owned;
    if (prompt->bytes > PROMPT_FILE_BYTES_MAX)
        errno = EFBIG;
    return !ferror(file) && prompt->bytes <= PROMPT_FILE_BYTES_MAX;
}

static int read_prompt(const struct decode_options *options, struct prompt *prompt) {
    *prompt = (struct prompt){0};
    if (options->prompt_file == NULL) {
        prompt->text = options->prompt;
        prompt->bytes = strlen(options->prompt);
        return DECODE_DONE;
    }
    FILE *file = fopen(options->prompt_file, "rb");
    if (file == NULL)
        return decode_error(
            "cannot open the prompt file %s: %s", options->prompt_file, strerror(errno));
    bool is_read = read_stream(file, prompt);
    int error_number = errno;
    fclose(file);
    if (!is_read)
        return decode_error(
            "cannot read the prompt file %s: %s", options->prompt_file, strerror(error_number));
    return DECODE_DONE;
}

static void keep_first(const struct decode_options *options, struct kvl_token_list *list) {
    if (options->prompt_tokens != 0 && list->count > options->prompt_tokens)
        list->count = options->prompt_tokens;
}

static int run_tokenize(const struct decode_options *options, const struct prompt *prompt) {
    struct kvl_token_list list = {0};
    struct kvl_errmsg msg = {{0}};
    kvl_err err = decode_tokenize_only(options, prompt->text, prompt->bytes, &list, &msg);
    keep_first(options, &list);
    int status =
        err == KVL_OK ? decode_print_tokens(&list, options->json) : decode_error("%s", msg.text);
    kvl_token_list_free(&list);
    return status;
}

static int run_perplexity(
    struct decode_engine *engine, struct decode_progress *progress, const struct prompt *prompt) {
    struct kvl_token_list list = {0};
    struct kvl_errmsg msg = {{0}};
    struct kvl_perplexity perplexity = {0};
    kvl_err err = decode_engine_tokens_of(engine, prompt->text, prompt->bytes, &list, &msg);
    if (err == KVL_OK && list.count > engine->context_max)
        err = kvl_fail(&msg, KVL_ERR_LIMIT,
            "the text has %llu tokens, the context holds %u; give --prompt-tokens or --ctx",
            (unsigned long long)list.count, engine->context_max);
    else if (err == KVL_OK && list.count < 2)
        err = kvl_fail(&msg, KVL_ERR_INVALID, "perplexity needs a text of at least two tokens");
    if (err == KVL_OK) {
        err = kvl_perplexity_of(&engine->sequence, list.ids, (uint32_t)list.count, &perplexity);
        if (err != KVL_OK)
            (void)kvl_fail(&msg, err, "computing failed: %s", kvl_err_text(err));
    }
    decode_progress_end(progress);
    kvl_token_list_free(&list);
    return err == KVL_OK ? decode_print_perplexity(&perplexity, engine->options->json)
                         : decode_error("%s", msg.text);
}

static int run_once(
    struct decode_engine *engine, struct decode_progress *progress, const struct prompt *prompt) {
    const struct decode_options *options = engine->options;
    struct kvl_token_list list = {0};
    struct kvl_errmsg msg = {{0}};
    uint64_t began_ns = decode_now_ns();
    kvl_err err = options->random_model != NULL
                      ? decode_engine_random_tokens(engine, &list)
                      : decode_engine_tokens_of(engine, prompt->text, prompt->bytes, &list, &msg);
    if (err == KVL_OK)
        err = decode_engine_append(engine, &list, &msg);
    kvl_token_list_free(&list);
    if (err != KVL_OK)
        return decode_error("%s", msg.text[0] != 0 ? msg.text : kvl_err_text(err));
    if (options->random_model != NULL && !options->json)
        fprintf(stderr, "kvloft-decode: random model %s, seed %llu: the ids say nothing\n",
            options->random_model, (unsigned long long)options->sampling.options.seed);
    struct decode_text text;
    struct kvl_turn_report report;
    decode_engine_streaming(engine, true);
    int status =
        decode_answer(engine, progress, began_ns, options->json ? NULL : stdout, &text, &report);
    if (status == DECODE_DONE)
        status = decode_print_turn(engine, &report, &text);
    decode_engine_streaming(engine, false);
    if (status == DECODE_DONE && report.stop_reason == KVL_STOP_INTERRUPTED)
        status = DECODE_FAILED;
    decode_text_deinit(&text);
    kvl_turn_report_deinit(&report);
    return status;
}

static int run_engine(
    const struct decode_options *options, const struct prompt *prompt, struct decode_lines *lines) {
    struct decode_progress progress = {0};
    struct decode_engine_hooks hooks = {
        .stop = &decode_interrupted, .progress = decode_progress_show, .arg = &progress};
    if (options->prompts != NULL)
        hooks.progress = NULL; /* the results show it */
    struct decode_engine engine;
    struct kvl_errmsg msg = {{0}};
    kvl_err err = decode_engine_open(&engine, options, &hooks, &msg);
    int status;
    if (err != KVL_OK)
        status = decode_error("%s", msg.text[0] != 0 ? msg.text : kvl_err_text(err));
    else if (options->prompts != NULL)
        status = decode_prompts_run(&engine, &hooks, lines);
    else if (options->perplexity)
        status = run_perplexity(&engine, &progress, prompt);
    else if (prompt->text != NULL || options->random_model != NULL)
        status = run_once(&engine, &progress, prompt);
    else
        status = decode_chat_run(&engine, &progress);
    decode_engine_close(&engine);
    return status;
}

int main(int argc, char **argv) {
    struct decode_options options;
    struct prompt prompt = {0};
    struct decode_lines lines = {.fd = -1}; /* of --prompts */
    int status = DECODE_DONE;
    argv[0] = "kvloft-decode"; /* what getopt's messages begin with */
    if (!decode_options_parse(argc, argv, &options, &status))
        return status;
    if (options.prompt != NULL || options.prompt_file != NULL)
        status = read_prompt(&options, &prompt);
    else if (options.prompts != NULL)
        status = decode_prompts_open(options.prompts, &lines);
    if (status == DECODE_DONE && options.tokenize) {
        status = run_tokenize(&options, &prompt);
    } else if (status == DECODE_DONE) {
        decode_catch_interrupts();
        status = run_engine(&options, &prompt, &lines);
    }
    decode_lines_close(&lines);
    free(prompt.owned);
    return status;
}
