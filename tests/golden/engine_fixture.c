/* engine_fixture.c - see engine_fixture.h. */
#include "engine_fixture.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "far_backend.h"
#include "store.h"
#include "tiny_model.h"

/* A thread of a test's own cannot fail it. */
static void need(kvl_err err, const char *what, const struct kvl_errmsg *msg) {
    if (err == KVL_OK)
        return;
    fprintf(stderr, "fixture: %s: %s %s\n", what, kvl_err_name(err), msg != NULL ? msg->text : "");
    if (gettid() != getpid())
        abort();
    fail();
}

static void leave(const char *why) {
    printf("skipped: %s\n", why);
    exit(77);
}

static const struct kvl_backend_ops *find_backend(void) {
    const char *name = getenv("KVL_TEST_BACKEND");
    if (name == NULL || strcmp(name, "cpu") == 0)
        return &kvl_backend_cpu;
    if (strcmp(name, "far") == 0)
        return &far_backend;
    if (strcmp(name, "cuda") != 0)
        need(KVL_ERR_INVALID, "KVL_TEST_BACKEND is cpu, far or cuda", NULL);
    if (kvl_backend_cuda == NULL)
        leave("this build has no CUDA backend");
    if (access("/dev/nvidiactl", F_OK) != 0)
        leave("no NVIDIA GPU here");
    return kvl_backend_cuda;
}

/* A block of 64 tokens takes 2 MiB, which is what a GPU's memory is had in. */
static void make_random_model(struct fixture *fixture) {
    static const char shape[] =
        "{\"layers\": 8, \"width\": 256, \"ffn_width\": 512, \"heads\": 16, \"kv_heads\": 16, "
        "\"k_dim\": 64, \"v_dim\": 64, \"vocab\": 512, \"context_max\": 1024}";
    struct kvl_errmsg msg = {{0}};
    char path[] = "/tmp/kvloft-shape-XXXXXX";
    int fd = mkstemp(path);
    if (fd < 0 || write(fd, shape, sizeof shape - 1) != (ssize_t)sizeof shape - 1)
        need(KVL_ERR_IO, "temporary file", NULL);
    close(fd);
    need(kvl_model_random(path, 1, &fixture->model, &msg), "random model", &msg);
    unlink(path);
}

/* A block of 64 tokens takes 2 MiB in all layer groups; where there are two, 1 MiB in each. */
static void widen(struct tiny_shape *shape) {
    shape->layers = 8;
    shape->width = 256;
    shape->ffn_width = 512;
    shape->heads = shape->kv_heads = 16;
    shape->k_dim = shape->v_dim = shape->rope_dims = 64;
    shape->vocab = 512;
    shape->type = shape->embedding_type = KVL_GGML_F16;
}

static void load_tiny_model(struct fixture *fixture, const char *architecture) {
    struct kvl_errmsg msg = {{0}};
    struct tiny_shape shape = tiny_shape_default();
    if (architecture != NULL)
        shape.architecture = architecture;
    if (strncmp(shape.architecture, "gemma", 5) == 0)
        shape.layers = 5; /* two that see everything, three with a window */
    if (fixture->backend == kvl_backend_cuda)
        widen(&shape);
    char *path = tiny_model_file(&shape);
    need(kvl_model_load(path, &fixture->model, &msg), "model", &msg);
    free(path);
}

void fixture_init(struct fixture *fixture) {
    const char *architecture = getenv("KVL_ARCHITECTURE");
    *fixture = (struct fixture){.backend = find_backend()};
    if (fixture->backend == kvl_backend_cuda && architecture == NULL)
        make_random_model(fixture);
    else
        load_tiny_model(fixture, architecture);
    char folder[] = "/tmp/kvloft-identity-XXXXXX";
    if (mkdtemp(folder) == NULL)
        need(KVL_ERR_IO, "temporary folder", NULL);
    fixture->disk_path = strdup(folder);
}

void fixture_deinit(struct fixture *fixture) {
    fixture_stop(fixture);
    kvl_model_free(fixture->model);
    char command[128];
    snprintf(command, sizeof command, "rm -rf '%s'", fixture->disk_path);
    if (system(command) != 0)
        fprintf(stderr, "fixture: %s is left behind\n", fixture->disk_path);
    free(fixture->disk_path);
}

bool fixture_has_one_arithmetic(const struct fixture *fixture) {
    return fixture->backend != kvl_backend_cuda;
}

bool fixture_runs_engines_side_by_side(const struct fixture *fixture) {
    return fixture->backend != kvl_backend_cuda;
}

uint64_t fixture_slot_bytes(const struct fixture *fixture) {
    const struct kvl_hparams *hparams = &fixture->model->hparams;
    uint64_t slots = 0;
    for (uint32_t group = 0; group < kvl_layer_group_count(hparams); ++group) {
        uint64_t bytes = kvl_group_block_bytes(hparams, group, FIXTURE_BLOCK_TOKENS, KVL_KV_F16);
        slots += (bytes + 4095) / 4096 * 4096;
    }
    return slots;
}

void fixture_start(
    struct fixture *fixture, uint32_t device_blocks, uint32_t host_blocks, bool with_disk) {
    fixture_start_bytes(fixture, device_blocks * fixture_slot_bytes(fixture),
        host_blocks * fixture_slot_bytes(fixture), with_disk);
}

void fixture_start_bytes(
    struct fixture *fixture, uint64_t device_bytes, uint64_t host_bytes, bool with_disk) {
    struct kvl_errmsg msg = {{0}};
    const uint64_t least = KVL_FAR_HOST_BLOCKS_MIN * fixture_slot_bytes(fixture);
    if (fixture->backend == kvl_backend_cuda && host_bytes < least)
        host_bytes = least;
    struct kvl_service_options options = {
        .address = fixture->address,
        .device = fixture->backend == kvl_backend_cuda ? "cuda" : "cpu",
        .device_bytes = device_bytes,
        .host_bytes = host_bytes,
        .disk_path = with_disk ? fixture->disk_path : NULL,
        .disk_bytes = UINT64_C(256) << 20,
        .persist_ms = 10,
    };
    need(kvl_service_start(&options, NULL, &fixture->service, &msg), "service", &msg);
}

void fixture_stop(struct fixture *fixture) {
    kvl_service_stop(fixture->service);
    fixture->service = NULL;
}

void fixture_tokens(
    const struct fixture *fixture, uint64_t seed, uint32_t *tokens, uint32_t count) {
    for (uint32_t i = 0; i < count; ++i) {
        double unit = 0.5 * ((double)tiny_random(&seed) + 1);
        uint32_t token = (uint32_t)(unit * fixture->model->hparams.vocab);
        tokens[i] = token < fixture->model->hparams.vocab ? token : 0;
    }
}

static void connect_to_service(struct engine *engine, struct fixture *fixture) {
    struct kvl_errmsg msg = {{0}};
    struct kvl_connection_options options = {
        .address = kvl_service_address(fixture->service),
        .tenant = "",
        .secret_file = "",
        .client_name = "identity_test",
        .label = "tiny",
        .model = fixture->model,
        .backend = engine->backend,
        .kv_dtype = KVL_KV_F16,
        .block_tokens = FIXTURE_BLOCK_TOKENS,
    };
    need(kvl_connection_open(&engine->connection, &options, &msg), "connection", &msg);
}

void engine_open(
    struct engine *engine, struct fixture *fixture, const struct engine_options *options) {
    struct kvl_errmsg msg = {{0}};
    *engine = (struct engine){0};
    struct kvl_backend_options backend = {.threads = options->threads != 0 ? options->threads : 1,
        .context_max = FIXTURE_CONTEXT,
        .batches_max = options->batches_max,
        .with_daemon = true};
    need(fixture->backend->create(fixture->model, &backend, &engine->backend, &msg), "backend",
        &msg);
    if (options->stored)
        connect_to_service(engine, fixture);
    struct kvl_sequence_options sequence = {
        .backend = engine->backend,
        .hparams = &fixture->model->hparams,
        .connection = options->stored ? &engine->connection : NULL,
        .kv_dtype = KVL_KV_F16,
        .block_tokens = FIXTURE_BLOCK_TOKENS,
        .context_max = FIXTURE_CONTEXT,
        .chunk_tokens = options->chunk_tokens,
        .no_cache = options->no_cache,
    };
    need(kvl_sequence_init(&engine->sequence, &sequence), "sequence", NULL);
    kvl_sampler_init(&engine->sampler, (struct kvl_sampler_options){0});
}

void engine_close(struct engine *engine) {
    kvl_sampler_deinit(&engine->sampler);
    kvl_saved_session_close(&engine->session, NULL);
    kvl_sequence_deinit(&engine->sequence);
    kvl_connection_close(&engine->connection);
    engine->backend->ops->destroy(engine->backend);
}

kvl_err engine_turn(struct engine *engine, const uint32_t *tokens, uint32_t count,
    uint32_t max_tokens, struct kvl_turn_report *report) {
    *report = (struct kvl_turn_report){0};
    kvl_err err = kvl_sequence_append(&engine->sequence, tokens, count);
    if (err != KVL_OK)
        return err;
    struct kvl_generate_options options = {
        .sequence = &engine->sequence,
        .session = engine->session.connection != NULL ? &engine->session : NULL,
        .sampler = &engine->sampler,
        .max_tokens = max_tokens,
        .hash_logits = true,
    };
    return kvl_generate(&options, report);
}

kvl_err engine_run(struct fixture *fixture, const struct engine_options *options,
    const uint32_t *tokens, uint32_t count, uint32_t max_tokens, struct kvl_turn_report *report) {
    struct engine engine;
    engine_open(&engine, fixture, options);
    kvl_err err = engine_turn(&engine, tokens, count, max_tokens, report);
    engine_close(&engine);
    return err;
}

uint64_t restored_tokens(const struct kvl_turn_report *report) {
    uint64_t tokens = 0;
    for (uint32_t i = 0; i < KVL_TIER_COUNT; ++i)
        tokens += report->restored_tokens[i];
    return tokens;
}

bool same_logits(const struct kvl_turn_report *a, const struct kvl_turn_report *b) {
    return memcmp(a->logits_sha256, b->logits_sha256, sizeof a->logits_sha256) == 0 &&
           a->output.count == b->output.count;
}
