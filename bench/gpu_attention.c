/* gpu_attention.c - how fast attention runs on the GPU at the shape of Llama-3.1-8B (32 query
 * heads, 8 KV heads of 128 elements, f16, blocks of 64 tokens in random order).
 *
 * Prefill: 1,024 rows that end at 8k and at 32k, counted without what the causal mask hides, beside
 * mma.sync on registers alone; and few rows, as a restore leaves them, beside a plain read of the
 * keys and values, by the way that prefill takes and by both. Decode: one token, beside a plain
 * read of as many bytes in a row. Decoding goes through the layers in turn, as a model does, so
 * that no layer is found in the L2 cache; a graph holds one round. Each figure is the median of
 * some runs.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cuda/attention.h"
#include "gpu_bench.h"
#include "gpu_peak.h"

enum {
    HEADS = 32,
    KV_HEADS = 8,
    DIM = 128,
    BLOCK_TOKENS = 64,
    CONTEXT = 32768,
    BLOCKS = CONTEXT / BLOCK_TOKENS,
    LAYERS = 16,
    ROWS = 1024,
    RUNS = 9,
    ROUNDS = 4, /* of a graph, or of launches, in a run */
};

static const uint64_t layer_bytes = (uint64_t)2 * KV_HEADS * BLOCK_TOKENS * DIM * 2;

struct bench {
    cudaStream_t stream;
    cudaEvent_t begin, end;
    uint32_t multiprocessors;
    uint8_t *arena, **table;
    void *q, *out, *scratch;
    uint32_t *position;
    float *sink;
    uint64_t scratch_bytes;
};

static void check(cudaError_t err, const char *what) {
    if (err != cudaSuccess) {
        fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(err));
        exit(1);
    }
}

static void *take(uint64_t bytes) {
    void *memory = NULL;
    check(cudaMalloc(&memory, bytes), "cudaMalloc");
    return memory;
}

static uint64_t next_random(uint64_t *state) {
    uint64_t x = (*state += 0x9E3779B97F4A7C15u); /* splitmix64 (Vigna) */
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9u;
    x = (x ^ x >> 27) * 0x94D049BB133111EBu;
    return x ^ x >> 31;
}

/* f16 of any sign and mantissa, and magnitudes from 1/8 to 2: speed depends on the bits a little.
 */
static void fill(void *device, uint64_t bytes, uint64_t seed) {
    const uint64_t piece = 1 << 20;
    uint16_t *halves = malloc(piece);
    if (!halves) {
        check(cudaErrorMemoryAllocation, "host memory");
        return;
    }
    for (uint64_t i = 0; i < piece / 2; i++) {
        const uint64_t bits = next_random(&seed);
        halves[i] = (uint16_t)((bits & 0x83ff) | (12 + (bits >> 20) % 4) << 10);
    }
    for (uint64_t at = 0; at < bytes; at += piece) {
        const uint64_t count = bytes - at < piece ? bytes - at : piece;
        check(cudaMemcpy((uint8_t *)device + at, halves, count, cudaMemcpyHostToDevice), "fill");
    }
    free(halves);
}

static void place_blocks(struct bench *bench) {
    uint64_t seed = 1;
    uint8_t *table[BLOCKS];
    for (uint32_t i = 0; i < BLOCKS; i++) {
        const uint32_t j = (uint32_t)(next_random(&seed) % (i + 1));
        table[i] = table[j];
        table[j] = bench->arena + i * LAYERS * layer_bytes;
    }
    bench->table = take(sizeof table);
    check(cudaMemcpy(bench->table, table, sizeof table, cudaMemcpyHostToDevice), "block table");
}

static struct kvl_cuda_attention attention_of(
    const struct bench *bench, uint32_t layer, uint32_t tokens, uint32_t context) {
    return (struct kvl_cuda_attention){
        .q = bench->q,
        .out = bench->out,
        .blocks = bench->table,
        .block_tokens = BLOCK_TOKENS,
        .heads = HEADS,
        .kv_heads = KV_HEADS,
        .k_dim = DIM,
        .v_dim = DIM,
        .layer = layer,
        .kv_dtype = KVL_KV_F16,
        .layer_offset_bytes = layer * layer_bytes,
        .scale = 0.08838834764f, /* 1 / sqrt(128) */
        .tokens = tokens,
        .position = bench->position,
        .position_max = context,
        .scratch = bench->scratch,
        .scratch_bytes = bench->scratch_bytes,
    };
}

static void bench_init(struct bench *bench) {
    int value = 0;
    memset(bench, 0, sizeof *bench);
    check(cudaDeviceGetAttribute(&value, cudaDevAttrMultiProcessorCount, 0), "attribute");
    bench->multiprocessors = (uint32_t)value;
    check(cudaStreamCreateWithFlags(&bench->stream, cudaStreamNonBlocking), "stream");
    check(cudaEventCreate(&bench->begin), "event");
    check(cudaEventCreate(&bench->end), "event");
    bench->arena = take(BLOCKS * LAYERS * layer_bytes);
    fill(bench->arena, BLOCKS * LAYERS * layer_bytes, 2);
    place_blocks(bench);
    bench->q = take((uint64_t)ROWS * HEADS * DIM * 2);
    fill(bench->q, (uint64_t)ROWS * HEADS * DIM * 2, 3);
    bench->out = take((uint64_t)ROWS * HEADS * DIM * 2);
    bench->position = take(sizeof *bench->position);
    bench->sink = take(sizeof *bench->sink);
    const struct kvl_cuda_attention largest = attention_of(bench, 0, ROWS, CONTEXT);
    bench->scratch_bytes = kvl_cuda_attention_scratch_bytes(&largest);
    bench->scratch = take(bench->scratch_bytes + 256);
}

static void set_position(struct bench *bench, uint32_t position) {
    check(cudaMemcpy(bench->position, &position, sizeof position, cudaMemcpyHostToDevice),
        "position");
}

/* Median seconds of work(bench, arg), after one run that does not count. */
static double median_s(
    struct bench *bench, void (*work)(struct bench *bench, void *arg), void *arg) {
    double seconds[RUNS];
    work(bench, arg);
    for (int run = 0; run < RUNS; run++) {
        float ms = 0;
        check(cudaEventRecord(bench->begin, bench->stream), "event");
        work(bench, arg);
        check(cudaEventRecord(bench->end, bench->stream), "event");
        check(cudaEventSynchronize(bench->end), "kernels");
        check(cudaEventElapsedTime(&ms, bench->begin, bench->end), "event");
        seconds[run] = 1e-3 * (double)ms;
    }
    return bench_percentile(seconds, RUNS, 0.5);
}

static void work_peak(struct bench *bench, void *flops) {
    check(bench_gpu_tensor_peak(bench->multiprocessors, bench->sink, flops, bench->stream), "peak");
}

struct chunk {
    uint32_t rows, context; /* the last of them is the last of that */
    enum kvl_attention_way way;
};

static void work_prefill(struct bench *bench, void *arg) {
    const struct chunk *chunk = arg;
    for (uint32_t i = 0; i < ROUNDS; i++) {
        struct kvl_cuda_attention attention =
            attention_of(bench, i % LAYERS, chunk->rows, chunk->context);
        attention.way = chunk->way;
        check(kvl_cuda_attend_prefill(&attention, bench->stream), "prefill");
    }
}

static double peak_tflops(struct bench *bench) {
    double flops = 0;
    const double s = median_s(bench, work_peak, &flops);
    return flops / s * 1e-12;
}

static void measure_prefill(struct bench *bench, struct bench_report *report, uint32_t context) {
    char name[64];
    struct chunk chunk = {.rows = ROWS, .context = context};
    double positions = 0; /* that rows see, in all */
    for (uint32_t row = 0; row < ROWS; row++) {
        positions += context - ROWS + row + 1;
    }
    set_position(bench, context - ROWS);
    const double s = median_s(bench, work_prefill, &chunk) / ROUNDS;
    snprintf(
        name, sizeof name, "attention prefill, 1024 rows to %uk, limit mma.sync", context / 1024);
    bench_report_add(
        report, name, 4.0 * HEADS * DIM * positions / s * 1e-12, "TFLOPS", peak_tflops(bench));
    snprintf(name, sizeof name, "attention prefill, 1024 rows to %uk, a layer", context / 1024);
    bench_report_add(report, name, s * 1e6, "us", 0);
}

static void work_read(struct bench *bench, void *bytes) {
    check(bench_gpu_read(
              bench->multiprocessors, bench->arena, *(uint64_t *)bytes, bench->sink, bench->stream),
        "read");
}

static double read_gb_per_s(struct bench *bench) {
    uint64_t all = BLOCKS * LAYERS * layer_bytes;
    return (double)all / median_s(bench, work_read, &all) * 1e-9;
}

static double few_us(struct bench *bench, uint32_t rows, enum kvl_attention_way way) {
    struct chunk chunk = {.rows = rows, .context = CONTEXT, .way = way};
    set_position(bench, CONTEXT - rows);
    return median_s(bench, work_prefill, &chunk) / ROUNDS * 1e6;
}

/* What a prompt's end costs behind a context that is there; and by either way, which says whether
 * the right one is taken. */
static void measure_few(struct bench *bench, struct bench_report *report, uint32_t rows) {
    char name[64];
    snprintf(name, sizeof name, "attention prefill, a layer of %u rows at %uk, limit a read", rows,
        CONTEXT / 1024);
    bench_report_add(report, name, few_us(bench, rows, KVL_ATTENTION_FASTEST), "us",
        (double)(layer_bytes * BLOCKS) / read_gb_per_s(bench) * 1e-3);
    snprintf(name, sizeof name, "attention prefill, %u rows at %uk, by few / many, a layer", rows,
        CONTEXT / 1024);
    bench_report_add(report, name, few_us(bench, rows, KVL_ATTENTION_FEW_ROWS), "us",
        few_us(bench, rows, KVL_ATTENTION_MANY_ROWS));
}

static void work_graph(struct bench *bench, void *graph) {
    for (int i = 0; i < ROUNDS; i++) {
        check(cudaGraphLaunch(*(cudaGraphExec_t *)graph, bench->stream), "cudaGraphLaunch");
    }
}

/* One token through all layers. */
static cudaGraphExec_t decode_graph(struct bench *bench, uint32_t context) {
    cudaGraph_t graph;
    cudaGraphExec_t executable;
    check(cudaStreamBeginCapture(bench->stream, cudaStreamCaptureModeThreadLocal), "capture");
    for (uint32_t layer = 0; layer < LAYERS; layer++) {
        const struct kvl_cuda_attention attention = attention_of(bench, layer, 1, context);
        check(kvl_cuda_attend_decode(&attention, bench->stream), "decode");
    }
    check(cudaStreamEndCapture(bench->stream, &graph), "capture");
    check(cudaGraphInstantiate(&executable, graph, 0), "cudaGraphInstantiate");
    check(cudaGraphDestroy(graph), "cudaGraphDestroy");
    return executable;
}

static void measure_decode(struct bench *bench, struct bench_report *report, uint32_t context) {
    char name[64];
    const uint64_t bytes = layer_bytes / BLOCK_TOKENS * context;
    set_position(bench, context - 1);
    cudaGraphExec_t graph = decode_graph(bench, context);
    const double s = median_s(bench, work_graph, &graph) / ROUNDS / LAYERS;
    check(cudaGraphExecDestroy(graph), "cudaGraphExecDestroy");
    snprintf(name, sizeof name, "attention decode at %uk, limit a read of memory", context / 1024);
    bench_report_add(report, name, (double)bytes / s * 1e-9, "GB/s", read_gb_per_s(bench));
    snprintf(name, sizeof name, "attention decode at %uk, a layer", context / 1024);
    bench_report_add(report, name, s * 1e6, "us", 0);
}

static void bench_deinit(struct bench *bench) {
    void *const taken[] = {bench->arena, bench->table, bench->q, bench->out, bench->position,
        bench->sink, bench->scratch};
    for (size_t i = 0; i < sizeof taken / sizeof *taken; i++) {
        check(cudaFree(taken[i]), "cudaFree");
    }
    check(cudaEventDestroy(bench->begin), "event");
    check(cudaEventDestroy(bench->end), "event");
    check(cudaStreamDestroy(bench->stream), "stream");
}

void bench_gpu_attention(struct bench_report *report) {
    struct bench bench;
    bench_init(&bench);
    measure_prefill(&bench, report, 8192);
    measure_prefill(&bench, report, CONTEXT);
    measure_few(&bench, report, 1);
    measure_few(&bench, report, 16);
    measure_few(&bench, report, 64);
    measure_few(&bench, report, 256);
    measure_decode(&bench, report, 8192);
    measure_decode(&bench, report, CONTEXT);
    bench_deinit(&bench);
}
