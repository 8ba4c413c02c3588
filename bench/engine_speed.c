/* engine_speed.c - how fast the CPU backend prefills and decodes, beside what the cores could do at
 * most in the same minute: the peak of fused multiply-adds on registers, and the bandwidth of
 * reading memory.
 *
 *   kvl_bench_engine [--kernels NAME,NAME...] MODEL [threads [tokens...]]
 *
 * With --kernels these tables of kernels take turns, three times each (default: the best one,
 * once). One thread alone is timed by the CPU time it took, so that it can be measured on a busy
 * machine too. bench/make_random_model.py makes a model of one weight type.
 *
 * Prefill is timed over `tokens` tokens from position 0, decode over the steps that follow; the
 * decode figure is the median step. Token ids are arbitrary: speed does not depend on them. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cpu/cpu.h"
#include "huge_memory.h"
#include "model.h"
#include "private_memory.h"
#include "report.h"
#include "step_clock.h"

enum {
    BLOCK_TOKENS = 64,
    DECODE_STEPS = 48,
    PEAK_UNITS = 64,
    READ_BYTES = 256 << 20,
    TABLES_MAX = 8,
    TURNS = 3
};

/* ---- what the machine can do ---- */

static volatile uint64_t sink;

enum { PEAK_CHAINS = 12, PEAK_STEPS = 200000 };

#ifdef __x86_64__
#define CHAIN(i) "vfmadd231ps %%ymm15, %%ymm15, %%ymm" #i "\n\t"

static void clear_registers(void) {
    __asm__ volatile("vzeroall" ::
                         : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8",
                     "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");
}

static void peak_unit(void *arg, uint32_t thread, uint32_t unit) {
    (void)arg;
    (void)thread;
    (void)unit;
    clear_registers(); /* no denormals */
    for (int step = 0; step < PEAK_STEPS; step++) {
        __asm__ volatile(CHAIN(0) CHAIN(1) CHAIN(2) CHAIN(3) CHAIN(4) CHAIN(5) CHAIN(6) CHAIN(7)
                             CHAIN(8) CHAIN(9) CHAIN(10) CHAIN(11)::
                                 : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7",
                         "xmm8", "xmm9", "xmm10", "xmm11");
    }
}

static double peak_gflops(struct kvl_pool *pool) {
    if (!__builtin_cpu_supports("fma")) {
        return 0;
    }
    double best = 0;
    for (int run = 0; run < 3; run++) {
        const double begin = step_clock_s();
        kvl_pool_run(pool, peak_unit, NULL, PEAK_UNITS);
        const double flops = 16.0 * PEAK_CHAINS * PEAK_STEPS * PEAK_UNITS;
        const double gflops = flops / (step_clock_s() - begin) * 1e-9;
        best = gflops > best ? gflops : best;
    }
    return best;
}
#else
static double peak_gflops(struct kvl_pool *pool) {
    (void)pool;
    return 0;
}
#endif

static void read_unit(void *arg, uint32_t thread, uint32_t unit) {
    (void)thread;
    const uint64_t *words = arg;
    const size_t count = READ_BYTES / PEAK_UNITS / sizeof *words;
    uint64_t sum = 0;
    for (size_t i = 0; i < count; i++) {
        sum += words[unit * count + i];
    }
    sink = sum;
}

static double read_gb_per_s(struct kvl_pool *pool) {
    uint64_t *words = kvl_huge_map(READ_BYTES); /* as weights and blocks lie in memory */
    if (words == NULL) {
        return 0;
    }
    memset(words, 1, READ_BYTES);
    double best = 0;
    for (int run = 0; run < 4; run++) {
        const double begin = step_clock_s();
        kvl_pool_run(pool, read_unit, words, PEAK_UNITS);
        const double rate = READ_BYTES / (step_clock_s() - begin) * 1e-9;
        best = rate > best ? rate : best;
    }
    kvl_huge_unmap(words, READ_BYTES);
    return best;
}

/* ---- the model ---- */

/* Multiply-adds, as 2 each, of `tokens` tokens from position 0 on, logits of the last one. */
static double prefill_flops(const struct kvl_hparams *h, double tokens) {
    const double attention = (double)h->width * h->heads * (h->k_dim + h->v_dim) +
                             (double)h->width * h->kv_heads * (h->k_dim + h->v_dim);
    const double ffn = 3.0 * h->width * h->ffn_width;
    const double scores = (double)h->heads * (h->k_dim + h->v_dim) * (tokens + 1) / 2;
    return 2 * (h->layers * (attention + ffn + scores) * tokens + (double)h->width * h->vocab);
}

struct session {
    const struct kvl_cpu_kernels *kernels;
    struct kvl_backend *backend;
    struct kvl_private_memory *memory;
    struct kvl_batch batch;
    uint32_t *tokens;
    uint8_t **blocks;
    uint8_t **window_blocks; /* each behind the other group's */
};

static int forward(struct session *s, uint32_t position, uint32_t count, double *seconds) {
    s->batch.tokens = s->tokens + position;
    s->batch.position = position;
    s->batch.count = count;
    const double begin = step_clock_s();
    const kvl_err err = s->backend->ops->forward(s->backend, &s->batch, 1);
    *seconds = step_clock_s() - begin;
    if (err != KVL_OK) {
        fprintf(stderr, "forward: %s\n", kvl_err_text(err));
    }
    return err == KVL_OK ? 0 : 1;
}

static int measure(struct session *s, const struct kvl_hparams *h, uint32_t tokens, double peak) {
    double prefill_s, steps_s[DECODE_STEPS];
    if (forward(s, 0, tokens, &prefill_s) != 0) {
        return 1;
    }
    for (uint32_t i = 0; i < DECODE_STEPS; i++) {
        if (forward(s, tokens + i, 1, &steps_s[i]) != 0) {
            return 1;
        }
    }
    const double median_s = bench_percentile(steps_s, DECODE_STEPS, 0.5);
    const double gflops = prefill_flops(h, tokens) / prefill_s * 1e-9;
    printf(
        "%-8s %6u tokens: prefill %7.1f tok/s  %6.1f GFLOPS  %3.0f %% of peak   decode %6.1f tok/s "
        "(best %6.1f)\n",
        s->kernels->name, tokens, tokens / prefill_s, gflops, 100 * gflops / peak, 1 / median_s,
        1 / steps_s[0]); /* sorted by now */
    fflush(stdout);
    return 0;
}

static void close_session(struct session *s) {
    free(s->batch.logits);
    free(s->blocks);
    free(s->window_blocks);
    free(s->tokens);
    kvl_private_memory_destroy(s->memory);
    kvl_backend_cpu.destroy(s->backend);
}

/* Blocks and tokens for `most` of a prompt and the steps that follow. */
static int make_room(struct session *s, const struct kvl_hparams *h, uint32_t most) {
    const uint32_t tokens = most + DECODE_STEPS;
    const uint32_t blocks = (tokens + BLOCK_TOKENS - 1) / BLOCK_TOKENS;
    s->tokens = calloc(tokens, sizeof *s->tokens);
    s->blocks = calloc(blocks, sizeof *s->blocks);
    s->window_blocks = calloc(blocks, sizeof *s->window_blocks);
    s->batch = (struct kvl_batch){.block_tokens = BLOCK_TOKENS,
        .kv_dtype = KVL_KV_F16,
        .blocks = s->blocks,
        .window_blocks = s->window_blocks,
        .logits_rows = 1};
    s->batch.logits = calloc(h->vocab, sizeof(float));
    if (kvl_private_memory_create(
            s->backend, kvl_block_bytes(h, BLOCK_TOKENS, KVL_KV_F16), &s->memory) != KVL_OK ||
        s->tokens == NULL || s->blocks == NULL || s->window_blocks == NULL ||
        s->batch.logits == NULL) {
        return 1;
    }
    for (uint32_t i = 0; i < blocks; i++) {
        if (kvl_private_memory_take(s->memory, &s->blocks[i]) != KVL_OK) {
            return 1;
        }
        s->window_blocks[i] = s->blocks[i] + kvl_group_block_bytes(h, 0, BLOCK_TOKENS, KVL_KV_F16);
    }
    for (uint32_t i = 0; i < tokens; i++) {
        s->tokens[i] = i * 2654435761u % h->vocab;
    }
    return 0;
}

static int open_session(struct session *s, const struct kvl_model *model,
    const struct kvl_backend_options *options, uint32_t most, struct kvl_errmsg *msg) {
    const double begin = step_clock_s();
    if (kvl_cpu_create(s->kernels, model, options, &s->backend, msg) != KVL_OK) {
        return 1;
    }
    printf("%-8s packed in %.0f ms\n", s->kernels->name, 1e3 * (step_clock_s() - begin));
    if (make_room(s, &model->hparams, most) != 0) {
        fprintf(stderr, "out of memory\n");
        return 1;
    }
    double warm_up_s;
    return forward(s, 0, 16, &warm_up_s);
}

/* ---- what the command line asks for ---- */

struct request {
    const char *model;
    struct kvl_backend_options options;
    uint32_t tokens[16], most;
    int count;
    struct session sessions[TABLES_MAX];
    uint32_t tables;
};

static int parse_kernels(struct request *request, char *names) {
    char *rest = NULL;
    for (char *name = strtok_r(names, ",", &rest); name != NULL && request->tables < TABLES_MAX;
         name = strtok_r(NULL, ",", &rest)) {
        const struct kvl_cpu_kernels *kernels = kvl_cpu_kernels_named(name);
        if (kernels == NULL) {
            fprintf(stderr, "no kernels named %s run here\n", name);
            return 1;
        }
        request->sessions[request->tables++].kernels = kernels;
    }
    return 0;
}

static int parse(struct request *request, int argc, char **argv) {
    *request = (struct request){.tokens = {512, 2048, 7900}, .count = 3};
    if (argc > 2 && strcmp(argv[1], "--kernels") == 0) {
        if (parse_kernels(request, argv[2]) != 0) {
            return 1;
        }
        argc -= 2;
        argv += 2;
    }
    if (argc < 2) {
        fprintf(
            stderr, "usage: kvl_bench_engine [--kernels NAME,...] MODEL [threads [tokens...]]\n");
        return 1;
    }
    if (request->tables == 0) {
        request->sessions[request->tables++].kernels = kvl_cpu_kernels_best();
    }
    request->model = argv[1];
    request->options.threads = argc > 2 ? (uint32_t)strtoul(argv[2], NULL, 10) : 0;
    for (int i = 3; i < argc && i < 16 + 3; i++) {
        request->tokens[i - 3] = (uint32_t)strtoul(argv[i], NULL, 10);
        request->count = i - 2;
    }
    for (int i = 0; i < request->count; i++) {
        request->most = request->tokens[i] > request->most ? request->tokens[i] : request->most;
    }
    return 0;
}

static int measure_all(
    struct request *request, const struct kvl_model *model, double peak, struct kvl_errmsg *msg) {
    int status = 0;
    for (uint32_t t = 0; t < request->tables && status == 0; t++) {
        status = open_session(&request->sessions[t], model, &request->options, request->most, msg);
    }
    const int turns = request->tables > 1 ? TURNS : 1;
    for (int i = 0; i < request->count * turns; i++) {
        for (uint32_t t = 0; t < request->tables && status == 0; t++) {
            status =
                measure(&request->sessions[t], &model->hparams, request->tokens[i / turns], peak);
        }
    }
    return status;
}

int main(int argc, char **argv) {
    struct request request;
    if (parse(&request, argc, argv) != 0) {
        return 2;
    }
    step_clock_init(request.options.threads);
    struct kvl_errmsg msg = {{0}};
    struct kvl_model *model = NULL;
    struct kvl_pool *pool = NULL;
    int status = 1;
    if (kvl_pool_create(request.options.threads, &pool, &msg) != KVL_OK) {
        goto cleanup;
    }
    const double peak = peak_gflops(pool);
    printf("%u threads: peak %.1f GFLOPS of f32 FMA, %.1f GB/s of reading\n",
        kvl_pool_threads(pool), peak, read_gb_per_s(pool));
    if (kvl_model_load(request.model, &model, &msg) != KVL_OK) {
        goto cleanup;
    }
    status = measure_all(&request, model, peak, &msg);

cleanup:
    if (msg.text[0] != '\0') {
        fprintf(stderr, "%s\n", msg.text);
    }
    for (uint32_t t = 0; t < request.tables; t++) {
        close_session(&request.sessions[t]);
    }
    kvl_model_free(model);
    kvl_pool_destroy(pool);
    return status;
}
