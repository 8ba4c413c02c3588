/* gpu_timeline.c - how a restore and the computing behind it overlap, layer by layer.
 *
 *   kvl_bench_gpu_timeline [--shape SHAPE] [--tokens N] [--chunk N] [--device cuda|cpu]
 *
 * A daemon, and an engine with random weights (llama-8b). N tokens (32,768) are prefilled, stored
 * and demoted to the host; then a prompt of them and one more chunk (1,024) is prefilled, which
 * restores the N from pinned memory and computes the chunk behind them. Of each layer: when its
 * blocks had all arrived, and when its kernels began and ended, in ms since the call. Host times
 * are CLOCK_MONOTONIC, kernels' are events counted from one that the host has waited for, about 10
 * us apart. The last of some rounds is told, and of each its time and when its first layer had
 * arrived; with a chunk of 1 the time is a warm engine's to the first token.
 *
 * stdout: one JSON object, which bench/plot_timeline.py draws. On the CPU (to try the flow out)
 * there is nothing to tell of layers. */
#include <getopt.h>
#include <jansson.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bench_daemon.h"
#include "cuda/cuda_backend.h"
#include "sequence.h"

enum { BLOCK_TOKENS = 64, ROUNDS = 5, LAYERS_MAX = 512, WAIT_MS = 60000 };

struct options {
    const char *shape, *device;
    uint32_t tokens, chunk;
};

struct bench {
    struct options options;
    struct bench_daemon daemon;
    struct kvl_model *model;
    struct kvl_backend *backend;
    struct kvl_connection connection;
    uint32_t *tokens, vocab;
    struct kvl_key *keys; /* of the restored blocks */
    uint32_t blocks;
    /* of the last round */
    struct kvl_cuda_trace trace;
    uint64_t arrived_ns[LAYERS_MAX];
    cudaEvent_t began[LAYERS_MAX], ended[LAYERS_MAX], zero;
    uint64_t zero_ns, call_ns, return_ns;
    struct kvl_cache_stats stats;
    double rounds_ms[ROUNDS], first_layer_ms[ROUNDS]; /* the latter on a GPU only */
};

static struct bench bench;

static uint64_t now_ns(void) {
    return (uint64_t)(bench_now_ms() * 1e6);
}

static void need(const char *what, kvl_err err, const char *text) {
    if (err == KVL_OK)
        return;
    fprintf(stderr, "kvl_bench_gpu_timeline: %s: %s\n", kvl_err_name(err), text);
    bench_daemon_fail(&bench.daemon, what, err);
}

static void need_cuda(const char *what, cudaError_t error) {
    need(what, error == cudaSuccess ? KVL_OK : KVL_ERR_IO, cudaGetErrorString(error));
}

static bool is_on_gpu(void) {
    return strcmp(bench.options.device, "cuda") == 0;
}

/* ---- setting up ------------------------------------------------------------------------------ */

static void open_engine(void) {
    const struct options *options = &bench.options;
    const struct kvl_backend_ops *ops = is_on_gpu() ? kvl_backend_cuda : &kvl_backend_cpu;
    const struct kvl_backend_options backend = {.context_max = options->tokens + options->chunk};
    struct kvl_errmsg msg = {{0}};
    need("random model", kvl_model_random(options->shape, 1, &bench.model, &msg), msg.text);
    need("backend", ops->create(bench.model, &backend, &bench.backend, &msg), msg.text);
    const struct kvl_connection_options connection = {.address = bench.daemon.address,
        .client_name = "kvl_bench_gpu_timeline",
        .label = options->shape,
        .model = bench.model,
        .backend = bench.backend,
        .kv_dtype = KVL_KV_F16,
        .block_tokens = BLOCK_TOKENS};
    need("connection", kvl_connection_open(&bench.connection, &connection, &msg), msg.text);
}

static void open_trace(void) {
    const uint32_t layers = bench.model->hparams.layers;
    if (layers > LAYERS_MAX)
        need("trace", KVL_ERR_LIMIT, "the shape has too many layers");
    if (!is_on_gpu())
        return;
    for (uint32_t i = 0; i < layers; i++) {
        need_cuda("event", cudaEventCreate(&bench.began[i]));
        need_cuda("event", cudaEventCreate(&bench.ended[i]));
    }
    need_cuda("event", cudaEventCreate(&bench.zero));
    bench.trace = (struct kvl_cuda_trace){
        .arrived_ns = bench.arrived_ns, .began = bench.began, .ended = bench.ended};
}

static void make_tokens(void) {
    const uint32_t count = bench.options.tokens + bench.options.chunk;
    bench.vocab = bench.model->hparams.vocab;
    bench.blocks = bench.options.tokens / BLOCK_TOKENS;
    bench.tokens = calloc(count, sizeof *bench.tokens);
    bench.keys = calloc(bench.blocks + 1, sizeof *bench.keys);
    if (bench.tokens == NULL || bench.keys == NULL)
        need("tokens", KVL_ERR_NOMEM, "out of memory");
    for (uint32_t i = 0; i < count; i++)
        bench.tokens[i] = i * 2654435761u % bench.vocab;
    need("keys",
        kvl_key_chain(&bench.connection.request.key, bench.tokens, bench.options.tokens,
            BLOCK_TOKENS, bench.keys),
        "key chain");
}

/* ---- rounds ---------------------------------------------------------------------------------- */

static void open_sequence(struct kvl_sequence *sequence, uint32_t tokens) {
    const struct kvl_sequence_options options = {.backend = bench.backend,
        .hparams = &bench.model->hparams,
        .connection = &bench.connection,
        .kv_dtype = KVL_KV_F16,
        .block_tokens = BLOCK_TOKENS,
        .context_max = bench.options.tokens + bench.options.chunk};
    need("sequence", kvl_sequence_init(sequence, &options), "init");
    need("sequence", kvl_sequence_append(sequence, bench.tokens, tokens), "append");
}

static void advance(struct kvl_sequence *sequence) {
    uint32_t token = 0;
    const struct kvl_wanted wanted = {.rows = 1, .greedy_token = &token};
    need("prefill", kvl_sequence_advance(sequence, &wanted),
        is_on_gpu() ? kvl_cuda_of(bench.backend)->last.text : "");
}

/* Ends the sequence's leases; what it sealed is seen by others a little later. */
static void close_sequence(struct kvl_sequence *sequence) {
    kvl_caches_finish(sequence->cache, sequence->tokens, kvl_sequence_whole_blocks(sequence));
    kvl_sequence_deinit(sequence);
}

static void wait_until_stored(void) {
    uint8_t *found = calloc(bench.blocks + 1, 1);
    uint32_t hits = 0;
    const double end_ms = bench_now_ms() + WAIT_MS;
    while (found != NULL && hits < bench.blocks) {
        need("lookup", kvl_lookup(bench.connection.client, bench.keys, bench.blocks, found, &hits),
            "");
        if (bench_now_ms() > end_ms)
            need("storing", KVL_ERR_TIMEOUT, "blocks do not become visible");
        usleep(1000);
    }
    free(found);
}

static void demote(void) {
    struct kvl_ticket ticket;
    struct kvl_progress progress = {.status = KVL_OK};
    need("demote",
        kvl_demote(bench.connection.client, KVL_TIER_HOST, bench.keys, bench.blocks, &ticket), "");
    if (ticket.generation != 0)
        need("demote",
            kvl_ticket_wait(bench.connection.client, ticket, UINT32_MAX, WAIT_MS, &progress), "");
    need("demote", progress.status, "");
    need("demote", kvl_release(bench.connection.client, NULL, 0, &ticket, 1), "release");
}

static void set_zero(void) {
    cudaStream_t stream = kvl_cuda_of(bench.backend)->stream;
    need_cuda("event", cudaEventRecord(bench.zero, stream));
    need_cuda("event", cudaEventSynchronize(bench.zero)); /* once, so that nothing is set up then */
    const uint64_t before_ns = now_ns();
    need_cuda("event", cudaEventRecord(bench.zero, stream));
    need_cuda("event", cudaEventSynchronize(bench.zero));
    bench.zero_ns = before_ns + (now_ns() - before_ns) / 2;
    kvl_cuda_of(bench.backend)->trace = &bench.trace;
}

/* The prompt ends otherwise in each round, so that its last chunk is computed. */
static void run_round(uint32_t round) {
    struct kvl_sequence sequence;
    bench.tokens[bench.options.tokens] = round % bench.vocab;
    demote();
    open_sequence(&sequence, bench.options.tokens + bench.options.chunk);
    if (is_on_gpu())
        set_zero();
    bench.call_ns = now_ns();
    advance(&sequence);
    bench.return_ns = now_ns();
    bench.rounds_ms[round] = (double)(bench.return_ns - bench.call_ns) * 1e-6;
    if (is_on_gpu()) {
        kvl_cuda_of(bench.backend)->trace = NULL;
        bench.first_layer_ms[round] = ((double)bench.arrived_ns[0] - (double)bench.call_ns) * 1e-6;
    }
    bench.stats = *kvl_caches_stats(sequence.cache);
    close_sequence(&sequence);
    if (bench.stats.restored_tokens[KVL_TIER_HOST] != bench.options.tokens)
        need("restore", KVL_ERR_NOTFOUND, "not everything came from the host");
}

static void store(void) {
    struct kvl_sequence sequence;
    open_sequence(&sequence, bench.options.tokens);
    advance(&sequence);
    close_sequence(&sequence);
    wait_until_stored();
}

/* ---- what is told ---------------------------------------------------------------------------- */

static double since_call_ms(uint64_t at_ns) {
    return ((double)at_ns - (double)bench.call_ns) * 1e-6;
}

static double event_ms(cudaEvent_t event) {
    float ms = 0;
    need_cuda("event", cudaEventElapsedTime(&ms, bench.zero, event));
    return since_call_ms(bench.zero_ns) + (double)ms;
}

static json_t *layers_json(void) {
    json_t *layers = json_array();
    for (uint32_t i = 0; i < bench.model->hparams.layers && is_on_gpu(); i++)
        json_array_append_new(
            layers, json_pack("{s:i,s:f,s:f,s:f}", "layer", (int)i, "arrived_ms",
                        since_call_ms(bench.arrived_ns[i]), "began_ms", event_ms(bench.began[i]),
                        "ended_ms", event_ms(bench.ended[i])));
    return layers;
}

static json_t *rounds_json(const double *values) {
    json_t *rounds = json_array();
    for (uint32_t i = 0; i < ROUNDS; i++)
        json_array_append_new(rounds, json_real(values[i]));
    return rounds;
}

static int tell(void) {
    json_t *object = json_pack("{s:s,s:s,s:b,s:i,s:i,s:I,s:f,s:f,s:o,s:o,s:o}", "gpu",
        is_on_gpu() ? kvl_cuda_of(bench.backend)->device.name : "none (CPU)", "model",
        bench.options.shape, "random_model", 1, "restored_tokens", (int)bench.options.tokens,
        "computed_tokens", (int)bench.options.chunk, "restored_bytes",
        (json_int_t)bench.stats.restored_bytes, "restore_ms", (double)bench.stats.restore_ns * 1e-6,
        "total_ms", since_call_ms(bench.return_ns), "rounds_ms", rounds_json(bench.rounds_ms),
        "first_layer_ms", rounds_json(bench.first_layer_ms), "layers", layers_json());
    const int failed = object == NULL || json_dumpf(object, stdout, JSON_INDENT(1)) != 0;
    json_decref(object);
    return failed || putchar('\n') == EOF || fflush(stdout) != 0;
}

/* ---- all of it ------------------------------------------------------------------------------- */

static bool parse(int argc, char **argv, struct options *out) {
    static const struct option words[] = {{"shape", required_argument, NULL, 's'},
        {"tokens", required_argument, NULL, 't'}, {"chunk", required_argument, NULL, 'c'},
        {"device", required_argument, NULL, 'd'}, {"json", no_argument, NULL, 'j'},
        {NULL, 0, NULL, 0}};
    *out = (struct options){.shape = "llama-8b", .device = "cuda", .tokens = 32768, .chunk = 1024};
    int option;
    while ((option = getopt_long(argc, argv, "", words, NULL)) != -1) {
        if (option == 's')
            out->shape = optarg;
        else if (option == 'd')
            out->device = optarg;
        else if (option == 't')
            out->tokens = (uint32_t)strtoul(optarg, NULL, 10) / BLOCK_TOKENS * BLOCK_TOKENS;
        else if (option == 'c')
            out->chunk = (uint32_t)strtoul(optarg, NULL, 10);
        else if (option == '?')
            return false;
    }
    return optind == argc && out->tokens > 0 && out->chunk > 0 &&
           (strcmp(out->device, "cpu") == 0 || strcmp(out->device, "cuda") == 0);
}

int main(int argc, char **argv) {
    if (!parse(argc, argv, &bench.options)) {
        fputs("usage: kvl_bench_gpu_timeline [--shape SHAPE] [--tokens N] [--chunk N] "
              "[--device cuda|cpu]\n",
            stderr);
        return 2;
    }
    bench_daemon_init(&bench.daemon, "timeline");
    bench.daemon.device = bench.options.device;
    bench.daemon.device_bytes = bench.daemon.host_bytes = is_on_gpu() ? "6G" : "256M";
    bench_daemon_start(&bench.daemon);
    bench_daemon_connect(&bench.daemon);
    open_engine();
    open_trace();
    make_tokens();
    store();
    for (uint32_t round = 0; round < ROUNDS; round++)
        run_round(round);
    const int failed = tell();
    kvl_connection_close(&bench.connection);
    bench.backend->ops->destroy(bench.backend);
    kvl_model_free(bench.model);
    bench_daemon_deinit(&bench.daemon);
    return failed;
}
