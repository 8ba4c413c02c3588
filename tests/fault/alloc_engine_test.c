/* alloc_engine_test.c - memory runs out once, or for good, somewhere in an engine with the service
 * in its own process: opening vocabulary and model, tokenizing, wrapping a turn, two turns of a
 * session, two that run together, closing.
 *
 * Whatever it was: it ends with an error, or with the very logits of an engine that had memory. */
#include <string.h>

#include "alloc_sweep.h"
#include "chat.h"
#include "scheduler.h"
#include "service.h"
#include "stop_strings.h"
#include "tiny_model.h"
#include "tokenizer_vocab.h"

#define MIB (1ull << 20)
#define BLOCK_TOKENS 64u
#define CONTEXT 512u
#define PROMPT 150u /* two whole blocks and a tail */
#define NEW_TOKENS 6u

static char *model_path;
static uint32_t prompt[PROMPT];
static uint8_t expected_sha256[2][32]; /* of both turns */
static bool memory_comes_back;         /* for the stop */

struct engine {
    char address[128], disk_path[128];
    struct kvl_model *model;
    struct kvl_backend *backend;
    struct kvl_service *service; /* NULL: an engine alone */
    struct kvl_connection connection;
    struct kvl_sequence sequence;
    struct kvl_saved_session session;
};

static kvl_err open_service(struct engine *engine, const char *path) {
    struct kvl_errmsg msg = {{0}};
    snprintf(engine->address, sizeof engine->address, "ipc://%s/socket", path);
    snprintf(engine->disk_path, sizeof engine->disk_path, "%s/disk", path);
    struct kvl_service_options options = {.address = engine->address,
        .device = "cpu",
        .device_bytes = MIB,
        .host_bytes = MIB,
        .disk_path = engine->disk_path,
        .disk_bytes = 24 * MIB,
        .persist_ms = 5};
    struct kvl_connection_options connection = {.address = engine->address,
        .client_name = "test",
        .label = "tiny",
        .model = engine->model,
        .backend = engine->backend,
        .kv_dtype = KVL_KV_F16,
        .block_tokens = BLOCK_TOKENS};
    kvl_err err = kvl_service_start(&options, NULL, &engine->service, &msg);
    return err == KVL_OK ? kvl_connection_open(&engine->connection, &connection, &msg) : err;
}

/* path NULL: without a service. */
static kvl_err open_engine(struct engine *engine, const char *path, const char *session) {
    struct kvl_errmsg msg = {{0}};
    struct kvl_backend_options backend = {.threads = 2, .context_max = CONTEXT, .batches_max = 2};
    kvl_err err = kvl_model_load(model_path, &engine->model, &msg);
    if (err == KVL_OK)
        err = kvl_backend_cpu.create(engine->model, &backend, &engine->backend, &msg);
    if (err == KVL_OK && path != NULL)
        err = open_service(engine, path);
    if (err != KVL_OK)
        return err;
    struct kvl_sequence_options sequence = {.backend = engine->backend,
        .hparams = &engine->model->hparams,
        .connection = path != NULL ? &engine->connection : NULL,
        .kv_dtype = KVL_KV_F16,
        .block_tokens = BLOCK_TOKENS,
        .context_max = CONTEXT};
    err = kvl_sequence_init(&engine->sequence, &sequence);
    if (err == KVL_OK && path != NULL)
        err = kvl_saved_session_open(
            &engine->session, &engine->connection, session, &engine->sequence, &msg);
    return err;
}

static void close_engine(struct engine *engine) {
    kvl_saved_session_close(&engine->session, &engine->sequence);
    kvl_sequence_deinit(&engine->sequence);
    kvl_connection_close(&engine->connection);
    kvl_service_stop(engine->service);
    if (engine->backend != NULL)
        engine->backend->ops->destroy(engine->backend);
    kvl_model_free(engine->model);
}

/* An error, or what comes out without one. */
static kvl_err turn(struct engine *engine, uint32_t number, uint8_t sha256[32]) {
    struct kvl_turn_report report = {0};
    struct kvl_sampler sampler;
    kvl_sampler_init(&sampler, (struct kvl_sampler_options){0});
    kvl_err err = kvl_sequence_append(&engine->sequence, prompt, number == 0 ? PROMPT : PROMPT / 2);
    struct kvl_generate_options options = {.sequence = &engine->sequence,
        .session = engine->session.connection != NULL ? &engine->session : NULL,
        .sampler = &sampler,
        .max_tokens = NEW_TOKENS,
        .hash_logits = true};
    if (err == KVL_OK)
        err = kvl_generate(&options, &report);
    if (err == KVL_OK)
        memcpy(sha256, report.logits_sha256, sizeof(report.logits_sha256));
    kvl_turn_report_deinit(&report);
    kvl_sampler_deinit(&sampler);
    return err;
}

struct together {
    struct kvl_job jobs[2];
    struct kvl_sampler sampler;
    uint32_t begun, ended;
    kvl_err err;
};

static enum kvl_next next_job(void *arg, bool may_wait, struct kvl_job **job) {
    struct together *together = arg;
    (void)may_wait;
    if (together->begun == 2)
        return KVL_NEXT_NONE;
    *job = &together->jobs[together->begun++];
    **job = (struct kvl_job){.tokens = prompt,
        .token_count = PROMPT,
        .options = {.sampler = &together->sampler, .max_tokens = NEW_TOKENS, .hash_logits = true}};
    return KVL_NEXT_JOB;
}

static void job_ended(void *arg, struct kvl_job *job, kvl_err err) {
    struct together *together = arg;
    together->ended++;
    if (err == KVL_OK)
        ALLOC_NEED(memcmp(job->report.logits_sha256, expected_sha256[0], 32) == 0);
    else
        together->err = err;
}

/* The first turn again, twice at once. */
static kvl_err run_together(struct engine *engine) {
    struct together together = {0};
    struct kvl_scheduler_options options = {.sequence = engine->sequence.options,
        .parallel = 2,
        .next = next_job,
        .ended = job_ended,
        .arg = &together};
    kvl_sampler_init(&together.sampler, (struct kvl_sampler_options){0});
    kvl_schedule(&options);
    kvl_sampler_deinit(&together.sampler);
    ALLOC_NEED(together.ended == 2);
    return together.err;
}

static kvl_err use_engine(const char *path, const char *session) {
    struct engine engine = {0};
    uint8_t sha256[32];
    kvl_err err = open_engine(&engine, path, session);
    for (uint32_t number = 0; number < 2 && err == KVL_OK; number++) {
        err = turn(&engine, number, path != NULL ? sha256 : expected_sha256[number]);
        if (err == KVL_OK && path != NULL)
            ALLOC_NEED(memcmp(sha256, expected_sha256[number], sizeof(sha256)) == 0);
    }
    if (err == KVL_OK)
        err = run_together(&engine);
    if (memory_comes_back) /* nothing can be made durable without it */
        alloc_fail_disarm();
    close_engine(&engine);
    return err;
}

/* What wraps a turn, ends it and chooses its tokens. */
static kvl_err use_turn_parts(const struct kvl_gguf *gguf, struct kvl_tokenizer *tokenizer) {
    static const struct kvl_chat_turn turn = {
        .begins = true, .system = "be brief", .text = "hello", .text_bytes = 5};
    static const char *const strings[] = {"one", "two"};
    struct kvl_errmsg msg = {{0}};
    struct kvl_chat *chat = NULL;
    struct kvl_stop_strings stops = {0};
    struct kvl_token_list list = {0};
    struct kvl_sampler sampler;
    kvl_sampler_init(&sampler, (struct kvl_sampler_options){.temperature = 1, .top_p = 0.5f});
    kvl_err err = kvl_chat_create(gguf, tokenizer, NULL, &chat, &msg);
    ALLOC_NEED(err == KVL_OK || msg.text[0] != 0);
    if (err == KVL_OK)
        err = kvl_chat_append(chat, &turn, &list);
    ALLOC_NEED(err == KVL_OK || list.count == 0);
    if (err == KVL_OK)
        err = kvl_stop_strings_init(&stops, strings, 2);
    if (err == KVL_OK)
        err = kvl_sampler_prepare(&sampler, kvl_tokenizer_vocab(tokenizer));
    kvl_sampler_deinit(&sampler);
    kvl_stop_strings_deinit(&stops);
    kvl_token_list_free(&list);
    kvl_chat_destroy(chat);
    return err;
}

static kvl_err use_tokenizer(const uint8_t *file, uint64_t file_bytes) {
    static const char text[] = "hello  it's 12 \xe2\x82\xac <note>\xff hello <|im_end|>";
    struct kvl_errmsg msg = {{0}};
    struct kvl_gguf *gguf = NULL;
    struct kvl_tokenizer *tokenizer = NULL;
    struct kvl_token_list list = {0};
    kvl_err err = kvl_gguf_open_memory(file, file_bytes, "vocabulary", &gguf, &msg);
    if (err == KVL_OK)
        err = kvl_tokenizer_create(gguf, &tokenizer, &msg);
    ALLOC_NEED(err == KVL_OK || msg.text[0] != 0);
    if (err == KVL_OK)
        err = kvl_tokenize(tokenizer, text, sizeof(text) - 1, KVL_TOKENIZE_PARSE_SPECIAL, &list);
    if (err == KVL_OK)
        err = use_turn_parts(gguf, tokenizer);
    kvl_token_list_free(&list);
    kvl_tokenizer_destroy(tokenizer);
    kvl_gguf_close(gguf);
    return err;
}

static const char chat_template[] =
    "{% for m in messages %}{{'<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{'<|im_start|>assistant\n'}}{% endif %}";

static void run_engine(
    struct alloc_fail_report *report, uint64_t nth, bool lasting, const char *path) {
    struct gguf_writer writer;
    uint64_t bytes;
    gguf_writer_init(&writer);
    vocab_add_bpe(&writer);
    gguf_add_string(&writer, "tokenizer.chat_template", chat_template);
    const uint8_t *file = gguf_writer_finish(&writer, &bytes);
    memory_comes_back = lasting;
    alloc_fail_arm(report, nth, lasting);
    kvl_err err = use_tokenizer(file, bytes);
    if (lasting && report->failed > 0)
        ALLOC_NEED(err != KVL_OK); /* all of it was needed */
    else
        err = use_engine(path, "work");
    alloc_fail_disarm();
    gguf_writer_deinit(&writer);
    ALLOC_NEED(report->failed > 0 || err == KVL_OK);
    ALLOC_NEED(use_engine(path, "again") == KVL_OK); /* over what was kept */
}

int main(int argc, char **argv) {
    static const struct alloc_scenario scenario = {"embedded engine", run_engine};
    struct tiny_shape shape = tiny_shape_default();
    const char *architecture = getenv("KVL_ARCHITECTURE");
    if (architecture != NULL)
        shape.architecture = architecture;
    model_path = tiny_model_file(&shape);
    for (uint32_t i = 0; i < PROMPT; i++)
        prompt[i] = (i * 7 + 3) % shape.vocab;
    if (use_engine(NULL, NULL) != KVL_OK)
        return 1;
    int status = alloc_sweep(&scenario, argc, argv);
    free(model_path);
    return status;
}
