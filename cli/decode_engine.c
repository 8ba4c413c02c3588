/* decode_engine.c - see decode_engine.h. */
#include "decode_engine.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "random_weights.h"

#define CONTEXT_DEFAULT_MAX 8192u

uint64_t decode_now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* While an answer streams, notices wait: they would land in the middle of its line. */
static void show_notice(void *arg, const char *text) {
    struct decode_engine *engine = arg;
    size_t used = strlen(engine->notices);
    if (engine->streaming)
        snprintf(
            engine->notices + used, sizeof engine->notices - used, "kvloft-decode: %s\n", text);
    else
        fprintf(stderr, "kvloft-decode: %s\n", text);
}

void decode_engine_streaming(struct decode_engine *engine, bool streaming) {
    engine->streaming = streaming;
    if (!streaming) {
        fputs(engine->notices, stderr);
        engine->notices[0] = 0;
    }
}

/* The embedded service's warnings; a daemon writes its own. */
static void log_sink(void *arg, enum kvl_log_level level, const char *line) {
    (void)arg;
    (void)level;
    fprintf(stderr, "kvloft-decode: %s\n", line);
}

/* NULL: cuda, in a build without it. */
static const struct kvl_backend_ops *find_backend(const char *device, struct kvl_errmsg *msg) {
    if (strcmp(device, "cpu") == 0)
        return &kvl_backend_cpu;
    if (kvl_backend_cuda != NULL)
        return kvl_backend_cuda;
    (void)kvl_fail(msg, KVL_ERR_UNSUPPORTED,
        "this build has no CUDA backend for --device %s; use --device cpu", device);
    return NULL;
}

static kvl_err choose_context(struct decode_engine *engine, struct kvl_errmsg *msg) {
    uint32_t trained = engine->model->hparams.context_max;
    uint32_t asked = engine->options->ctx;
    if (asked > trained)
        return kvl_fail(
            msg, KVL_ERR_LIMIT, "--ctx %u is more than the model's context of %u", asked, trained);
    engine->context_max = asked != 0                      ? asked
                          : trained < CONTEXT_DEFAULT_MAX ? trained
                                                          : CONTEXT_DEFAULT_MAX;
    return KVL_OK;
}

static kvl_err open_chat(struct decode_engine *engine, struct kvl_errmsg *msg) {
    const struct decode_options *options = engine->options;
    kvl_err err = kvl_chat_create(
        engine->model->gguf, engine->tokenizer, options->chat_template, &engine->chat, msg);
    if (err == KVL_OK && options->system != NULL && !kvl_chat_takes_system(engine->chat))
        return kvl_fail(msg, KVL_ERR_INVALID,
            "this model's chat template (%s) takes no system message; leave out --system",
            kvl_chat_format_name(engine->chat));
    return err;
}

static kvl_err load_model(struct decode_engine *engine, struct kvl_errmsg *msg) {
    const struct decode_options *options = engine->options;
    if (options->random_model != NULL)
        return kvl_model_random(
            options->random_model, options->sampling.options.seed, &engine->model, msg);
    kvl_err err = kvl_model_load(options->model, &engine->model, msg);
    if (err == KVL_OK)
        err = kvl_tokenizer_create(engine->model->gguf, &engine->tokenizer, msg);
    if (err == KVL_OK && options->chat)
        err = open_chat(engine, msg);
    return err;
}

static kvl_err load(struct decode_engine *engine, struct kvl_errmsg *msg) {
    const struct decode_options *options = engine->options;
    const struct kvl_backend_ops *ops = find_backend(options->device, msg);
    if (ops == NULL)
        return KVL_ERR_UNSUPPORTED;
    uint64_t began_ns = decode_now_ns();
    kvl_err err = load_model(engine, msg);
    if (err == KVL_OK)
        err = choose_context(engine, msg);
    if (err != KVL_OK)
        return err;
    struct kvl_backend_options backend = {
        .threads = options->threads,
        .context_max = engine->context_max,
        .batches_max = options->prompts != NULL ? options->parallel : 1,
        .device = options->device_number,
        .kv_dtype = options->kv_dtype,
        .block_tokens = KVL_BLOCK_TOKENS_DEFAULT,
        .with_daemon = options->mode == DECODE_EMBEDDED ||
                       (options->mode == DECODE_AUTO && options->prompts != NULL),
    };
    err = ops->create(engine->model, &backend, &engine->backend, msg);
    engine->load_ns = decode_now_ns() - began_ns;
    return err;
}

static void model_label(const struct decode_engine *engine, char *label, size_t label_bytes) {
    const struct kvl_model *model = engine->model;
    if (model->is_random) {
        snprintf(label, label_bytes, "random %s", engine->options->random_model);
        return;
    }
    struct kvl_gguf_string name = {"", 0};
    const char *path = kvl_gguf_path(model->gguf);
    const char *slash = strrchr(path, '/');
    if (kvl_gguf_string(model->gguf, "general.name", &name) && name.bytes > 0)
        snprintf(label, label_bytes, "%.*s", (int)(name.bytes < 63 ? name.bytes : 63), name.data);
    else
        snprintf(label, label_bytes, "%s", slash != NULL ? slash + 1 : path);
}

static kvl_err open_connection(
    struct decode_engine *engine, const char *address, struct kvl_errmsg *msg) {
    const bool own = engine->service != NULL; /* which knows no tenants */
    char label[64];
    model_label(engine, label, sizeof label);
    struct kvl_connection_options options = {
        .address = address,
        .tenant = own ? "" : engine->options->tenant,
        .secret_file = own ? "" : engine->options->secret_file,
        .client_name = "kvloft-decode",
        .label = label,
        .model = engine->model,
        .backend = engine->backend,
        .kv_dtype = engine->options->kv_dtype,
        .block_tokens = KVL_BLOCK_TOKENS_DEFAULT,
        .notice = show_notice,
        .notice_arg = engine,
    };
    return kvl_connection_open(&engine->connection, &options, msg);
}

static kvl_err open_embedded(struct decode_engine *engine,
    const struct kvl_service_options *service, struct kvl_errmsg *msg) {
    engine->log = kvl_log_create(KVL_LOG_WARN, log_sink, NULL);
    kvl_err err = kvl_service_start(service, engine->log, &engine->service, msg);
    if (err == KVL_OK)
        err = open_connection(engine, kvl_service_address(engine->service), msg);
    if (err == KVL_OK)
        kvl_service_hide(engine->service);
    return err;
}

/* Bytes of all blocks of the sequences that run at once; at least one block. */
static uint64_t blocks_of_all(const struct decode_engine *engine) {
    const struct decode_options *options = engine->options;
    uint64_t block_tokens = KVL_BLOCK_TOKENS_DEFAULT;
    uint64_t blocks = (engine->context_max + block_tokens - 1) / block_tokens * options->parallel;
    uint64_t bytes =
        kvl_block_bytes(&engine->model->hparams, (uint32_t)block_tokens, options->kv_dtype);
    uint64_t slot_bytes = bytes < UINT64_MAX / 2 ? (bytes + 4095) / 4096 * 4096 : bytes;
    uint64_t all = 0;
    return __builtin_mul_overflow(blocks, slot_bytes, &all) ? UINT64_MAX : all;
}

/* What many prompts share where there is no daemon: a service in this process without a disk, and
 * without a host tier where the CPU computes. */
static kvl_err open_memory(struct decode_engine *engine, struct kvl_errmsg *msg) {
    engine->memory = engine->options->embedded;
    engine->memory.disk_path = NULL;
    if (strcmp(engine->options->device, "cpu") == 0)
        engine->memory.host_bytes = 0;
    uint64_t all = blocks_of_all(engine);
    if (!engine->options->has_device_bytes && all < engine->memory.device_bytes)
        engine->memory.device_bytes = all;
    return open_embedded(engine, &engine->memory, msg);
}

/* Nobody at the default address, or one that does not answer: without a session the engine's own
 * cache does. */
static kvl_err open_default(struct decode_engine *engine, struct kvl_errmsg *msg) {
    kvl_err err = open_connection(engine, NULL, msg);
    if (err != KVL_ERR_NOTFOUND && err != KVL_ERR_TIMEOUT)
        return err;
    if (engine->options->session == NULL) {
        if (err == KVL_ERR_TIMEOUT)
            show_notice(engine, "the kvloft daemon does not answer; going on without it");
        return engine->options->prompts != NULL ? open_memory(engine, msg) : KVL_OK;
    }
    return kvl_fail(msg, err,
        "no daemon answers at the default address, and --session needs one: start kvloftd, or "
        "give --connect ADDR or --embedded DIR");
}

static kvl_err open_store(struct decode_engine *engine, struct kvl_errmsg *msg) {
    const struct decode_options *options = engine->options;
    switch (options->mode) {
    case DECODE_CONNECT:
        return open_connection(engine, options->address, msg);
    case DECODE_EMBEDDED:
        return open_embedded(engine, &options->embedded, msg);
    case DECODE_AUTO:
        return open_default(engine, msg);
    default:
        return KVL_OK;
    }
}

struct kvl_sequence_options decode_engine_sequence(
    struct decode_engine *engine, const struct decode_engine_hooks *hooks) {
    const struct decode_options *options = engine->options;
    bool stored = engine->connection.client != NULL;
    return (struct kvl_sequence_options){
        .backend = engine->backend,
        .hparams = &engine->model->hparams,
        .connection = stored ? &engine->connection : NULL,
        .kv_dtype = options->kv_dtype,
        .block_tokens = KVL_BLOCK_TOKENS_DEFAULT,
        .context_max = engine->context_max,
        .no_cache = options->mode == DECODE_NO_CACHE,
        .stop = hooks->stop,
        .progress = hooks->progress,
        .progress_arg = hooks->arg,
    };
}

static kvl_err open_sequence(
    struct decode_engine *engine, const struct decode_engine_hooks *hooks, struct kvl_errmsg *msg) {
    const struct decode_options *options = engine->options;
    if (options->prompts != NULL)
        return KVL_OK; /* each line has its own */
    struct kvl_sequence_options sequence = decode_engine_sequence(engine, hooks);
    kvl_err err = kvl_sequence_init(&engine->sequence, &sequence);
    if (err != KVL_OK)
        return kvl_fail(msg, err, "no memory for a context of %u tokens", engine->context_max);
    if (options->session == NULL)
        return KVL_OK;
    return kvl_saved_session_open(
        &engine->session, &engine->connection, options->session, &engine->sequence, msg);
}

kvl_err decode_engine_sampler(const struct decode_engine *engine,
    const struct decode_sampling *sampling, struct kvl_sampler *sampler, struct kvl_errmsg *msg) {
    uint32_t vocab = engine->model->hparams.vocab;
    struct kvl_sampler_options options = sampling->options;
    options.bias = sampling->bias;
    for (uint32_t i = 0; i < options.bias_count; ++i)
        if (sampling->bias[i].id >= vocab)
            return kvl_fail(msg, KVL_ERR_INVALID,
                "a logit bias for token %u: the model's vocabulary has %u tokens",
                sampling->bias[i].id, vocab);
    kvl_sampler_init(sampler, options);
    return KVL_OK;
}

kvl_err decode_engine_open(struct decode_engine *engine, const struct decode_options *options,
    const struct decode_engine_hooks *hooks, struct kvl_errmsg *msg) {
    *engine = (struct decode_engine){.options = options};
    kvl_err err = kvl_stop_strings_init(
        &engine->stops, options->sampling.stops, options->sampling.stop_count);
    if (err != KVL_OK)
        return kvl_fail(msg, err, "--stop takes a text of 1 to 65535 bytes of UTF-8");
    err = load(engine, msg);
    if (err == KVL_OK)
        err = decode_engine_sampler(engine, &options->sampling, &engine->sampler, msg);
    if (err == KVL_OK && !options->perplexity)
        err = open_store(engine, msg);
    return err == KVL_OK ? open_sequence(engine, hooks, msg) : err;
}

void decode_engine_close(struct decode_engine *engine) {
    kvl_saved_session_close(&engine->session, &engine->sequence);
    kvl_sequence_deinit(&engine->sequence);
    kvl_connection_close(&engine->connection);
    kvl_service_stop(engine->service);
    kvl_log_destroy(engine->log);
    if (engine->backend != NULL)
        engine->backend->ops->destroy(engine->backend);
    kvl_sampler_deinit(&engine->sampler);
    kvl_stop_strings_deinit(&engine->stops);
    kvl_chat_destroy(engine->chat);
    kvl_tokenizer_destroy(engine->tokenizer);
    kvl_model_free(engine->model);
    *engine = (struct decode_engine){0};
}

kvl_err decode_tokenize_only(const struct decode_options *options, const char *text,
    uint64_t text_bytes, struct kvl_token_list *list, struct kvl_errmsg *msg) {
    struct kvl_gguf *gguf = NULL;
    struct kvl_tokenizer *tokenizer = NULL;
    unsigned flags = KVL_TOKENIZE_ADD_BOS | (options->special ? KVL_TOKENIZE_PARSE_SPECIAL : 0u);
    kvl_err err = kvl_gguf_open(options->model, &gguf, msg);
    if (err == KVL_OK)
        err = kvl_tokenizer_create(gguf, &tokenizer, msg);
    if (err == KVL_OK && (err = kvl_tokenize(tokenizer, text, text_bytes, flags, list)) != KVL_OK)
        err = kvl_fail(msg, err, "cannot tokenize: %s", kvl_err_text(err));
    kvl_tokenizer_destroy(tokenizer);
    kvl_gguf_close(gguf);
    return err;
}

/* sequence NULL: nothing is in context yet. */
static kvl_err chat_tokens(struct decode_engine *engine, const struct kvl_sequence *sequence,
    const struct decode_prompt *prompt, struct kvl_token_list *list) {
    uint32_t end = kvl_chat_end_token(engine->chat);
    bool begins = sequence == NULL || sequence->count == 0;
    struct kvl_chat_turn turn = {
        .begins = begins,
        .system = prompt->system,
        .ended = !begins && sequence->tokens[sequence->count - 1] == end,
        .text = prompt->text,
        .text_bytes = prompt->bytes,
    };
    return kvl_chat_append(engine->chat, &turn, list);
}

static kvl_err tokens_of(struct decode_engine *engine, const struct kvl_sequence *sequence,
    const struct decode_prompt *prompt, struct kvl_token_list *list, struct kvl_errmsg *msg) {
    unsigned flags = sequence == NULL || sequence->count == 0 ? KVL_TOKENIZE_ADD_BOS : 0u;
    kvl_err err = engine->chat != NULL
                      ? chat_tokens(engine, sequence, prompt, list)
                      : kvl_tokenize(engine->tokenizer, prompt->text, prompt->bytes, flags, list);
    if (err != KVL_OK)
        return kvl_fail(msg, err, "cannot tokenize the prompt: %s", kvl_err_text(err));
    if (prompt->tokens != 0 && list->count > prompt->tokens)
        list->count = prompt->tokens;
    return KVL_OK;
}

kvl_err decode_engine_tokens_of(struct decode_engine *engine, const char *text, uint64_t text_bytes,
    struct kvl_token_list *list, struct kvl_errmsg *msg) {
    struct decode_prompt prompt = {.text = text,
        .bytes = text_bytes,
        .system = engine->options->system,
        .tokens = engine->options->prompt_tokens};
    return tokens_of(engine, &engine->sequence, &prompt, list, msg);
}

kvl_err decode_engine_prompt(struct decode_engine *engine, const struct decode_prompt *prompt,
    struct kvl_token_list *list, struct kvl_errmsg *msg) {
    if (prompt->system != NULL && engine->chat != NULL && !kvl_chat_takes_system(engine->chat))
        return kvl_fail(msg, KVL_ERR_INVALID,
            "this model's chat template (%s) takes no system message",
            kvl_chat_format_name(engine->chat));
    return tokens_of(engine, NULL, prompt, list, msg);
}

kvl_err decode_engine_random_tokens(
    const struct decode_engine *engine, struct kvl_token_list *list) {
    kvl_err err = KVL_OK;
    uint64_t key = kvl_random_mix(engine->options->sampling.options.seed);
    for (uint64_t i = 0; i < engine->options->prompt_tokens && err == KVL_OK; ++i)
        err = kvl_token_list_push(list,
            (uint32_t)(kvl_random_mix(key + KVL_RANDOM_GOLDEN * i) % engine->model->hparams.vocab));
    return err;
}

kvl_err decode_engine_fits(
    const struct decode_engine *engine, uint64_t tokens, const char *what, struct kvl_errmsg *msg) {
    if (tokens > engine->context_max)
        return kvl_fail(msg, KVL_ERR_LIMIT, "%s has %llu tokens, the context holds %u; %s", what,
            (unsigned long long)tokens, engine->context_max,
            engine->context_max < engine->model->hparams.context_max
                ? "shorten it, or give a larger --ctx"
                : "that is all this model can hold, shorten it");
    if (tokens == 0)
        return kvl_fail(msg, KVL_ERR_INVALID, "the prompt is empty: nothing to go on from");
    return KVL_OK;
}

kvl_err decode_engine_append(
    struct decode_engine *engine, const struct kvl_token_list *list, struct kvl_errmsg *msg) {
    kvl_err err = decode_engine_fits(engine, engine->sequence.count + list->count,
        engine->sequence.count > 0 ? "the conversation with this prompt" : "the prompt", msg);
    if (err != KVL_OK)
        return err;
    err = kvl_sequence_append(&engine->sequence, list->ids, (uint32_t)list->count);
    return err == KVL_OK ? KVL_OK : kvl_fail(msg, err, "%s", kvl_err_text(err));
}
