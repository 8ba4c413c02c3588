/* decode_job.c - see decode_job.h. */
#include "decode_job.h"

#include <jansson.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "utf8.h"

/* What reading a line goes through. */
struct reading {
    struct decode_engine *engine;
    struct decode_job *job;
    struct decode_prompt prompt;
    const json_t *prompt_ids; /* instead of its text */
    bool has_prompt;
    struct kvl_errmsg *msg;
};

__attribute__((format(printf, 2, 3))) static bool wrong(
    struct reading *reading, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(reading->msg->text, sizeof reading->msg->text, format, arguments);
    va_end(arguments);
    return false;
}

/* Leaves only whole characters: a width, or the end of the message, may have cut one of the line's
 * in its middle, and then it is no text that JSON could hold. */
static void drop_cut_characters(char *text) {
    size_t left = strlen(text);
    char *kept = text;
    while (left > 0) {
        uint32_t bytes = kvl_utf8_char_bytes(text, left);
        uint32_t passed = bytes > 0 ? bytes : 1;
        memmove(kept, text, bytes);
        kept += bytes;
        text += passed;
        left -= passed;
    }
    *kept = 0;
}

/* ---- one field each; `name` is the field's -------------------------------------------------- */

static bool take_id(struct reading *reading, const char *name, const json_t *value) {
    (void)reading;
    (void)name;
    (void)value; /* anything, given back as it is */
    return true;
}

static bool take_prompt(struct reading *reading, const char *name, const json_t *value) {
    if (json_is_array(value))
        reading->prompt_ids = value;
    else if (!json_is_string(value))
        return wrong(reading, "\"%s\" has to be a text, or an array of token ids", name);
    reading->has_prompt = true;
    reading->prompt.text = json_string_value(value);
    reading->prompt.bytes = json_string_length(value);
    return true;
}

static bool take_count(
    struct reading *reading, const char *name, const json_t *value, json_int_t min, uint32_t *out) {
    json_int_t number = json_integer_value(value);
    if (!json_is_integer(value) || number < min || number > INT32_MAX)
        return wrong(
            reading, "\"%s\" has to be a whole number from %d to %d", name, (int)min, INT32_MAX);
    *out = (uint32_t)number;
    return true;
}

static bool take_max_tokens(struct reading *reading, const char *name, const json_t *value) {
    return take_count(reading, name, value, 0, &reading->job->job.options.max_tokens);
}

static bool take_prompt_tokens(struct reading *reading, const char *name, const json_t *value) {
    uint32_t count = 0;
    if (!take_count(reading, name, value, 1, &count))
        return false;
    reading->prompt.tokens = count;
    return true;
}

static bool take_system(struct reading *reading, const char *name, const json_t *value) {
    if (!json_is_string(value))
        return wrong(reading, "\"%s\" has to be a text", name);
    if (!reading->engine->options->chat)
        return wrong(reading, "\"%s\" goes with --chat", name);
    reading->prompt.system = json_string_value(value);
    return true;
}

static bool give_option(
    struct reading *reading, const char *name, const char *option, const char *value) {
    char error[64];
    const char *what =
        decode_sampling_take(&reading->job->sampling, option, value, error, sizeof error);
    return what == NULL || wrong(reading, "\"%s\" is %.100s: %s", name, value, what);
}

static bool take_stop(struct reading *reading, const char *name, const json_t *value) {
    size_t count = json_is_array(value) ? json_array_size(value) : 1;
    reading->job->sampling.stop_count = 0;
    for (size_t i = 0; i < count; ++i) {
        const json_t *text = json_is_array(value) ? json_array_get(value, i) : value;
        if (!json_is_string(text))
            return wrong(reading, "\"%s\" has to be a text, or an array of them", name);
        if (!give_option(reading, name, "stop", json_string_value(text)))
            return false;
    }
    return true;
}

static bool take_logit_bias(struct reading *reading, const char *name, const json_t *value) {
    const char *id;
    json_t *bias;
    if (!json_is_object(value))
        return wrong(reading, "\"%s\" has to be an object of token ids and numbers", name);
    reading->job->sampling.options.bias_count = 0;
    json_object_foreach((json_t *)value, id, bias) {
        char option[128];
        if (json_is_string(bias) && json_string_length(bias) > 40)
            return wrong(reading, "\"%s\" of token %.40s has to be a number", name, id);
        if (json_is_string(bias))
            snprintf(option, sizeof option, "%.40s=%.40s", id, json_string_value(bias));
        else if (json_is_number(bias))
            snprintf(option, sizeof option, "%.40s=%.17g", id, json_number_value(bias));
        else
            return wrong(reading, "\"%s\" of token %.40s has to be a number", name, id);
        if (!give_option(reading, name, "logit-bias", option))
            return false;
    }
    return true;
}

/* Options that take a number: the field has _ where the option has -. */
static bool take_number(struct reading *reading, const char *name, const json_t *value) {
    char option[32], text[64];
    snprintf(option, sizeof option, "%s", name);
    for (char *at = option; *at != 0; ++at)
        *at = *at == '_' ? '-' : *at;
    if (strlen(name) >= sizeof option || strchr(name, '-') != NULL ||
        !decode_sampling_is_number(option))
        return wrong(reading, "unknown field \"%.100s\"", name);
    if (json_is_null(value))
        return true;
    if (json_is_integer(value))
        snprintf(text, sizeof text, "%" JSON_INTEGER_FORMAT, json_integer_value(value));
    else if (json_is_real(value))
        snprintf(text, sizeof text, "%.17g", json_real_value(value));
    else
        return wrong(reading, "\"%s\" has to be a number", name);
    return give_option(reading, name, option, text);
}

static bool take_field(struct reading *reading, const char *name, const json_t *value) {
    static const struct {
        const char *name;
        bool (*take)(struct reading *reading, const char *name, const json_t *value);
    } fields[] = {
        {"id", take_id},
        {"prompt", take_prompt},
        {"max_tokens", take_max_tokens},
        {"prompt_tokens", take_prompt_tokens},
        {"system", take_system},
        {"stop", take_stop},
        {"logit_bias", take_logit_bias},
    };
    for (size_t i = 0; i < sizeof fields / sizeof fields[0]; ++i)
        if (strcmp(name, fields[i].name) == 0)
            return json_is_null(value) || fields[i].take(reading, name, value);
    return take_number(reading, name, value);
}

/* ---- the line ------------------------------------------------------------------------------- */

static bool parse(struct reading *reading, const char *text, size_t bytes) {
    json_error_t error;
    json_t *object = json_loadb(text, bytes, JSON_REJECT_DUPLICATES, &error);
    if (object == NULL)
        return wrong(reading, "not JSON: %.160s, at column %d",
            json_error_code(&error) == json_error_null_character ? "\\u0000 is not allowed"
                                                                 : error.text,
            error.column);
    if (!json_is_object(object)) {
        json_decref(object);
        return wrong(reading, "a JSON object is wanted, such as {\"prompt\": \"The moon\"}");
    }
    reading->job->object = object;
    return true;
}

static bool take_fields(struct reading *reading) {
    const char *name;
    json_t *value;
    json_object_foreach(reading->job->object, name, value) {
        if (!take_field(reading, name, value))
            return false;
    }
    return reading->has_prompt || wrong(reading, "\"prompt\" is missing");
}

static bool take_ids(struct reading *reading) {
    uint32_t vocab = reading->engine->model->hparams.vocab;
    size_t count = json_array_size(reading->prompt_ids);
    if (reading->prompt.tokens != 0 && count > reading->prompt.tokens)
        count = reading->prompt.tokens;
    for (size_t i = 0; i < count; ++i) {
        const json_t *id = json_array_get(reading->prompt_ids, i);
        if (!json_is_integer(id) || json_integer_value(id) < 0 || json_integer_value(id) >= vocab)
            return wrong(reading,
                "\"prompt\": entry %zu is no token id, which is a whole number below %u", i, vocab);
        if (kvl_token_list_push(&reading->job->prompt, (uint32_t)json_integer_value(id)) != KVL_OK)
            return wrong(reading, "out of memory");
    }
    return true;
}

static bool tokenize(struct reading *reading) {
    struct decode_engine *engine = reading->engine;
    struct kvl_token_list *list = &reading->job->prompt;
    if (reading->prompt_ids != NULL)
        return take_ids(reading);
    if (engine->tokenizer == NULL)
        return wrong(reading, "a random model knows no text: \"prompt\" is an array of token ids");
    return decode_engine_prompt(engine, &reading->prompt, list, reading->msg) == KVL_OK;
}

static bool make_choosers(struct reading *reading) {
    struct decode_job *job = reading->job;
    const struct decode_sampling *sampling = &job->sampling;
    if (kvl_stop_strings_init(&job->stops, sampling->stops, sampling->stop_count) != KVL_OK)
        return wrong(reading, "\"stop\" takes texts of 1 to 65535 bytes");
    return decode_engine_sampler(reading->engine, sampling, &job->sampler, reading->msg) == KVL_OK;
}

static void connect_turn(struct decode_engine *engine, struct decode_job *job) {
    job->text = (struct decode_text){.tokenizer = engine->tokenizer,
        .progress = &job->progress,
        .stops = job->stops.count > 0 ? &job->stops : NULL};
    job->job.tokens = job->prompt.ids;
    job->job.token_count = (uint32_t)job->prompt.count;
    struct kvl_generate_options *options = &job->job.options;
    options->tokenizer = engine->tokenizer;
    options->sampler = &job->sampler;
    options->hash_logits = engine->options->hash_logits;
    options->on_token = decode_text_token;
    options->on_token_arg = &job->text;
}

static bool read_job(struct reading *reading, const char *text, size_t bytes) {
    struct decode_engine *engine = reading->engine;
    return parse(reading, text, bytes) && take_fields(reading) && make_choosers(reading) &&
           tokenize(reading) &&
           decode_engine_fits(engine, reading->job->prompt.count, "the prompt", reading->msg) ==
               KVL_OK;
}

kvl_err decode_job_create(struct decode_engine *engine, const char *text, size_t bytes,
    struct decode_job **out, struct kvl_errmsg *msg) {
    struct decode_job *job = calloc(1, sizeof *job);
    *out = job;
    if (job == NULL)
        return kvl_fail(msg, KVL_ERR_NOMEM, "out of memory");
    job->sampling = engine->options->sampling;
    job->job.options.began_ns = decode_now_ns();
    job->job.options.max_tokens = engine->options->max_tokens;
    struct reading reading = {.engine = engine,
        .job = job,
        .prompt = {.system = engine->options->system, .tokens = engine->options->prompt_tokens},
        .msg = msg};
    if (!read_job(&reading, text, bytes)) {
        drop_cut_characters(msg->text);
        return KVL_ERR_INVALID;
    }
    connect_turn(engine, job);
    return KVL_OK;
}

void decode_job_destroy(struct decode_job *job) {
    if (job == NULL)
        return;
    decode_text_deinit(&job->text);
    kvl_sampler_deinit(&job->sampler);
    kvl_stop_strings_deinit(&job->stops);
    kvl_token_list_free(&job->prompt);
    json_decref(job->object);
    free(job);
}

struct json_t *decode_job_id(const struct decode_job *job) {
    return job != NULL ? json_object_get(job->object, "id") : NULL;
}
