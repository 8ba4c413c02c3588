/* gpu_engine.c - how fast the CUDA backend prefills and decodes, beside what the same GPU could do
 * at most in the same minute.
 *
 * Prefill: 4,096 tokens in one call. Its limits: the GPU's dense f16 peak (a square product of
 * 8,192 by cuBLASLt's fastest algorithm), and the same products by the fastest of all algorithms
 * that the library ranks, splits of the inputs included: what the fixed, row-invariant ones cost.
 * Decode: the median step at a context of 8,192, against reading the weights and the context's K
 * and V once at the bandwidth of a kernel that only reads. Token ids are arbitrary: speed does not
 * depend on them. The product figures are of one product a line; everything is the best of some
 * runs. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "cuda/cuda_backend.h"
#include "cuda/kernels.h"
#include "gpu_bench.h"
#include "gpu_peak.h"

enum {
    BLOCK_TOKENS = 64,
    CONTEXT = 8320,
    DECODE_FROM = 8192,
    DECODE_STEPS = 64,
    PREFILL = 4096,
    RUNS = 5,
    REPEATS = 20,
    CANDIDATES = 24,
    SQUARE = 8192,
};

struct bench {
    const char *shape;
    struct kvl_model *model;
    struct kvl_cuda *cuda;
    uint8_t *arena, *blocks[CONTEXT / BLOCK_TOKENS];
    uint32_t tokens[CONTEXT];
    cudaEvent_t begin, end;
    struct bench_report *report;
};

static void check(cudaError_t error, const char *what) {
    if (error != cudaSuccess) {
        fprintf(stderr, "kvl_bench_gpu: %s: %s\n", what, cudaGetErrorString(error));
        exit(1);
    }
}
#define CHECK(call) check((call), #call)

static void check_err(kvl_err err, const char *text) {
    if (err != KVL_OK) {
        fprintf(stderr, "kvl_bench_gpu: %s: %s\n", kvl_err_name(err), text);
        exit(1);
    }
}

static double now_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void add(struct bench *b, const char *name, double value, const char *unit, double limit) {
    char full[64];
    snprintf(full, sizeof full, "%.14s random: %.39s", b->shape, name);
    bench_report_add(b->report, full, value, unit, limit);
}

/* ---- products ---- */

static double product_flops(const struct kvl_cuda_product *p) {
    return 2.0 * p->shape.outputs * p->shape.inputs * p->shape.tiles_max * KVL_CUDA_ROW_TILE;
}

/* Seconds of one product with the most rows; below 0: the algorithm failed. */
static double time_product(
    struct bench *b, const struct kvl_cuda_product *p, const __half *w, const __half *x, void *y) {
    const uint32_t rows = p->shape.tiles_max * KVL_CUDA_ROW_TILE;
    float ms = 0;
    for (int i = -2; i < REPEATS; i++) {
        if (i == 0) {
            CHECK(cudaEventRecord(b->begin, b->cuda->stream));
        }
        if (kvl_cuda_multiply(b->cuda->blas, p, w, x, y, rows, b->cuda->stream, NULL) != KVL_OK) {
            return -1;
        }
    }
    CHECK(cudaEventRecord(b->end, b->cuda->stream));
    CHECK(cudaStreamSynchronize(b->cuda->stream));
    CHECK(cudaEventElapsedTime(&ms, b->begin, b->end));
    return ms * 1e-3 / REPEATS;
}

/* The fastest of all that the library offers. */
static double time_freest(struct bench *b, const struct kvl_cuda_product *p, const __half *w,
    const __half *x, void *y, char text[96]) {
    double best = -1;
    struct kvl_cuda_product other = *p; /* shares the descriptions, and frees none */
    for (uint32_t i = 0; i < CANDIDATES; i++) {
        if (!kvl_cuda_product_freest(b->cuda->blas, &other, i)) {
            continue;
        }
        const double seconds = time_product(b, &other, w, x, y);
        if (seconds > 0 && (best < 0 || seconds < best)) {
            best = seconds;
            snprintf(text, 96, "%s", other.algorithm_text);
        }
    }
    return best;
}

/* The dense f16 peak in flop/s, by a product large enough to hide everything else. */
static double measure_peak(struct bench *b) {
    const uint64_t bytes = (uint64_t)SQUARE * SQUARE * 2;
    void *w = NULL, *x = NULL, *y = NULL;
    char text[96] = "";
    struct kvl_cuda_product p;
    struct kvl_errmsg msg = {{0}};
    const struct kvl_cuda_shape shape = {.outputs = SQUARE,
        .inputs = SQUARE,
        .output = KVL_CUDA_OUTPUT_F16,
        .tiles_max = KVL_CUDA_ROW_TILES_MAX}; /* 2,048 rows */
    CHECK(cudaMalloc(&w, bytes));
    CHECK(cudaMalloc(&x, bytes));
    CHECK(cudaMalloc(&y, bytes));
    CHECK(kvl_cuda_pattern_fill(w, SQUARE, SQUARE, SQUARE, b->cuda->stream));
    CHECK(kvl_cuda_pattern_fill(x, SQUARE, SQUARE, SQUARE, b->cuda->stream));
    check_err(kvl_cuda_product_init(b->cuda->blas, &shape, w, b->cuda->stream, &p, &msg), msg.text);
    const double seconds = time_freest(b, &p, w, x, y, text);
    const double flops = product_flops(&p) / seconds;
    fprintf(stderr, "peak: %.1f Tflop/s, %s\n", flops * 1e-12, text);
    kvl_cuda_product_deinit(b->cuda->blas, &p);
    CHECK(cudaFree(w));
    CHECK(cudaFree(x));
    CHECK(cudaFree(y));
    return flops;
}

struct product_times {
    double fixed_s, freest_s; /* of a layer's products over one chunk */
};

/* Zeros would take less power, and so run at a higher clock than real activations. */
static void fill_inputs(struct bench *b) {
    const struct kvl_cuda *cuda = b->cuda;
    const struct kvl_cuda_layer *layer = &cuda->layers[0];
    const struct {
        __half *x;
        uint32_t columns;
    } inputs[] = {{cuda->normed, layer->qkv.columns},
        {cuda->attended, layer->attention_out.columns}, {cuda->ffn, layer->down.columns}};
    for (size_t i = 0; i < sizeof inputs / sizeof inputs[0]; i++) {
        CHECK(kvl_cuda_pattern_fill(inputs[i].x, KVL_CUDA_CHUNK_TOKENS, inputs[i].columns,
            KVL_CUDA_CHUNK_TOKENS, cuda->stream));
    }
}

static struct product_times measure_products(struct bench *b) {
    const struct kvl_cuda *cuda = b->cuda;
    const struct kvl_cuda_layer *layer = &cuda->layers[0];
    fill_inputs(b);
    const struct {
        const char *name;
        const struct kvl_cuda_product *product;
        const __half *w, *x;
        void *y;
    } products[] = {
        {"qkv", &cuda->qkv, layer->qkv.data, cuda->normed, cuda->qkv_rows},
        {"attention out", &cuda->attention_out, layer->attention_out.data, cuda->attended, cuda->x},
        {"gate and up", &cuda->gate_up, layer->gate_up.data, cuda->normed, cuda->gate_up_rows},
        {"down", &cuda->down, layer->down.data, cuda->ffn, cuda->x},
    };
    struct product_times times = {0, 0};
    for (size_t i = 0; i < sizeof products / sizeof products[0]; i++) {
        const struct kvl_cuda_product *p = products[i].product;
        char text[96] = "", name[64];
        const double fixed = time_product(b, p, products[i].w, products[i].x, products[i].y);
        const double freest = time_freest(b, p, products[i].w, products[i].x, products[i].y, text);
        fprintf(stderr, "%s: candidate %u (%s); freest: %s\n", products[i].name, p->candidate,
            p->algorithm_text, text);
        snprintf(name, sizeof name, "product %s, limit freest", products[i].name);
        add(b, name, product_flops(p) / fixed * 1e-12, "Tflop/s",
            product_flops(p) / freest * 1e-12);
        times.fixed_s += fixed;
        times.freest_s += freest;
    }
    return times;
}

/* ---- prefill and decode ---- */

static void forward(struct bench *b, uint32_t position, uint32_t count, enum kvl_phase phase) {
    uint32_t token;
    const struct kvl_batch batch = {.tokens = b->tokens + position,
        .count = count,
        .position = position,
        .phase = phase,
        .block_tokens = BLOCK_TOKENS,
        .kv_dtype = KVL_KV_F16,
        .blocks = b->blocks,
        .logits_rows = 1,
        .greedy_token = &token};
    check_err(kvl_cuda_forward(&b->cuda->base, &batch, 1), b->cuda->last.text);
}

static double layer_weights(const struct kvl_cuda *cuda) {
    const struct kvl_cuda_layer *l = &cuda->layers[0];
    const struct kvl_cuda_matrix *const matrices[] = {
        &l->qkv, &l->attention_out, &l->gate_up, &l->down};
    double weights = 0;
    for (size_t i = 0; i < sizeof matrices / sizeof matrices[0]; i++) {
        weights += (double)matrices[i]->rows * matrices[i]->columns;
    }
    return weights;
}

/* Products, and the half of the squares of attention that is below the diagonal. */
static double prefill_flops(const struct bench *b, double tokens) {
    const struct kvl_hparams *h = &b->model->hparams;
    const double attention = tokens * tokens * h->heads * (h->k_dim + h->v_dim);
    return h->layers * (2 * layer_weights(b->cuda) * tokens + attention);
}

static void measure_prefill(struct bench *b, double peak, struct product_times times) {
    double best = 1e9;
    forward(b, 0, PREFILL, KVL_PHASE_PREFILL);
    for (int i = 0; i < RUNS; i++) {
        const double began = now_s();
        forward(b, 0, PREFILL, KVL_PHASE_PREFILL);
        const double seconds = now_s() - began;
        best = seconds < best ? seconds : best;
    }
    const double chunks = (double)PREFILL / KVL_CUDA_CHUNK_TOKENS * b->model->hparams.layers;
    add(b, "prefill of 4,096, limit products alone", PREFILL / best, "tokens/s",
        PREFILL / (chunks * times.freest_s));
    add(b, "prefill of 4,096, limit f16 peak", prefill_flops(b, PREFILL) / best * 1e-12, "Tflop/s",
        peak * 1e-12);
    add(b, "fixed algorithms' products, limit freest", 1 / times.fixed_s, "layers/s",
        1 / times.freest_s);
}

static double measure_bandwidth(struct bench *b) {
    const uint64_t bytes = (uint64_t)1 << 32;
    void *memory = NULL;
    double best = 0;
    CHECK(cudaMalloc(&memory, bytes));
    CHECK(cudaMemset(memory, 1, bytes));
    for (int i = 0; i < RUNS; i++) {
        float ms = 0;
        CHECK(cudaEventRecord(b->begin, b->cuda->stream));
        CHECK(bench_gpu_read((uint32_t)b->cuda->device.multiProcessorCount, memory, bytes,
            (float *)memory, b->cuda->stream));
        CHECK(cudaEventRecord(b->end, b->cuda->stream));
        CHECK(cudaStreamSynchronize(b->cuda->stream));
        CHECK(cudaEventElapsedTime(&ms, b->begin, b->end));
        const double speed = (double)bytes / (ms * 1e-3);
        best = speed > best ? speed : best;
    }
    CHECK(cudaFree(memory));
    return best;
}

static double median_step(struct bench *b) {
    double steps[DECODE_STEPS];
    for (uint32_t i = 0; i < DECODE_STEPS; i++) {
        const double began = now_s();
        forward(b, DECODE_FROM + i, 1, KVL_PHASE_DECODE);
        steps[i] = now_s() - began;
    }
    return bench_percentile(steps, DECODE_STEPS, 0.5);
}

static void measure_decode(struct bench *b, double bandwidth) {
    const struct kvl_hparams *h = &b->model->hparams;
    const double weights =
        h->layers * layer_weights(b->cuda) + (double)b->cuda->output.rows * b->cuda->output.columns;
    const double kv = (double)kvl_block_bytes(h, 1, KVL_KV_F16) * DECODE_FROM;
    const double limit = bandwidth / (2 * weights + kv);
    forward(b, 0, DECODE_FROM, KVL_PHASE_PREFILL);
    const bool overlaps = b->cuda->programmatic;
    add(b, "decode at 8k, limit memory bandwidth", 1 / median_step(b), "tokens/s", limit);
    if (overlaps) {
        b->cuda->programmatic = false;
        kvl_cuda_forget_graphs(b->cuda);
        add(b, "decode at 8k, launches not overlapped", 1 / median_step(b), "tokens/s", limit);
    }
    b->cuda->use_graphs = false;
    add(b, "decode at 8k, without a graph", 1 / median_step(b), "tokens/s", limit);
    b->cuda->use_graphs = true;
    b->cuda->programmatic = overlaps;
    add(b, "memory read", bandwidth * 1e-9, "GB/s", 0);
}

/* ---- setting up ---- */

static void open_bench(struct bench *b) {
    const struct kvl_backend_options options = {.context_max = CONTEXT};
    struct kvl_backend *backend = NULL;
    struct kvl_errmsg msg = {{0}};
    check_err(kvl_model_random(b->shape, 1, &b->model, &msg), msg.text);
    const double began = now_s();
    check_err(kvl_backend_cuda->create(b->model, &options, &backend, &msg), msg.text);
    fprintf(stderr, "%s, ready after %.2f s\n", backend->arithmetic_id, now_s() - began);
    b->cuda = kvl_cuda_of(backend);
    const uint64_t block_bytes = kvl_block_bytes(&b->model->hparams, BLOCK_TOKENS, KVL_KV_F16);
    const uint64_t block_count = CONTEXT / BLOCK_TOKENS;
    check_err(backend->ops->take_memory(backend, block_bytes * block_count, &b->arena),
        "no memory for blocks");
    for (uint64_t i = 0; i < block_count; i++) {
        b->blocks[i] = b->arena + i * block_bytes;
    }
    for (uint32_t i = 0; i < CONTEXT; i++) {
        b->tokens[i] = i * 2654435761u % b->model->hparams.vocab;
    }
    CHECK(cudaEventCreate(&b->begin));
    CHECK(cudaEventCreate(&b->end));
}

static void close_bench(struct bench *b) {
    CHECK(cudaEventDestroy(b->begin));
    CHECK(cudaEventDestroy(b->end));
    kvl_backend_cuda->destroy(&b->cuda->base);
    kvl_model_free(b->model);
}

void bench_gpu_engine(const char *shape, struct bench_report *report) {
    static struct bench bench;
    bench = (struct bench){.shape = shape, .report = report};
    open_bench(&bench);
    const double peak = measure_peak(&bench);
    measure_prefill(&bench, peak, measure_products(&bench));
    measure_decode(&bench, measure_bandwidth(&bench));
    close_bench(&bench);
}
