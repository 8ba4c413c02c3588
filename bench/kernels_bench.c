/* kernels_bench.c - each kernel of the CPU backend by every table that this CPU runs, one after the
 * other in short turns, on one thread.
 *
 *   kvl_bench_kernels [rounds]
 *
 * Each figure is the best of the rounds, in GFLOPS (a multiply-add is 2), GB/s of packed weights,
 * or million elements a second, from the CPU time of the thread. Shapes are those of a small model
 * (width 576, head 64, tiles of 64 positions): what a kernel reads comes from the caches, as it
 * does in a prefill; bench/engine_speed.c measures with the weights in memory. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "cpu/kernels.h"
#include "gguf.h"

enum { COLUMNS = 768, ROWS = 96, DIM = 64, GROUP = 3, TABLES_MAX = 4, COUNT = 1536 };

/* Aligned as in the engine. */
static struct {
    _Alignas(64) float x[ROWS * COLUMNS];
    _Alignas(64) float y[ROWS * KVL_PANEL_ROWS];
    _Alignas(64) float strip[COLUMNS * KVL_STRIP_ROWS];
    _Alignas(64) uint8_t panel[COLUMNS * KVL_PANEL_ROWS * 4];
    _Alignas(64) uint8_t kv[KVL_TILE_TOKENS][DIM * 4];
    _Alignas(64) float strips[KVL_TILE_TOKENS * DIM];
    _Alignas(64) float scores[ROWS * KVL_TILE_TOKENS];
    _Alignas(64) float out[ROWS * DIM];
    const uint8_t *positions[KVL_TILE_TOKENS];
    struct kvl_softmax softmax;
} data;

struct work {
    const char *name;
    void (*run)(const struct kvl_cpu_kernels *kernels, uint32_t argument);
    uint32_t argument;
    double units; /* of one run */
    const char *unit;
};

static double now_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* ---- the work ---- */

static void run_gemm(const struct kvl_cpu_kernels *kernels, uint32_t rows) {
    kernels->gemm(&(struct kvl_gemm){.x = data.x,
        .x_stride = COLUMNS,
        .strip = data.strip,
        .y = data.y,
        .y_stride = KVL_PANEL_ROWS,
        .rows = rows,
        .k = COLUMNS});
}

/* As attention gathers values: few k, many strips. */
static void run_gather(const struct kvl_cpu_kernels *kernels, uint32_t rows) {
    for (uint32_t c = 0; c < DIM; c += KVL_STRIP_ROWS) {
        kernels->gemm(&(struct kvl_gemm){.x = data.scores,
            .x_stride = KVL_TILE_TOKENS,
            .strip = data.strips + (size_t)c * KVL_TILE_TOKENS,
            .y = data.out + c,
            .y_stride = DIM,
            .rows = rows,
            .k = KVL_TILE_TOKENS,
            .accumulate = true});
    }
}

static void run_unpack(const struct kvl_cpu_kernels *kernels, uint32_t type) {
    kernels->unpack_strip(type, data.panel, 0, COLUMNS, data.strip);
    kernels->unpack_strip(type, data.panel, 1, COLUMNS, data.strip);
}

static void run_matvec(const struct kvl_cpu_kernels *kernels, uint32_t type) {
    kernels->matvec(type, data.panel, COLUMNS, data.x, data.y, false);
}

static struct kvl_kv_tile tile_of(uint32_t dtype) {
    return (struct kvl_kv_tile){.positions = data.positions,
        .count = KVL_TILE_TOKENS,
        .dim = DIM,
        .dtype = (enum kvl_kv_dtype)dtype};
}

static void run_load_keys(const struct kvl_cpu_kernels *kernels, uint32_t dtype) {
    const struct kvl_kv_tile tile = tile_of(dtype);
    kernels->load_keys(&tile, data.strips);
}

static void run_load_values(const struct kvl_cpu_kernels *kernels, uint32_t dtype) {
    const struct kvl_kv_tile tile = tile_of(dtype);
    kernels->load_values(&tile, data.strips);
}

static void run_score_direct(const struct kvl_cpu_kernels *kernels, uint32_t dtype) {
    const struct kvl_kv_tile tile = tile_of(dtype);
    kernels->score_direct(&tile, data.x, GROUP, data.scores);
}

static void run_gather_direct(const struct kvl_cpu_kernels *kernels, uint32_t dtype) {
    const struct kvl_kv_tile tile = tile_of(dtype);
    kernels->gather_direct(&tile, data.scores, GROUP, data.out, DIM);
}

static void run_softmax(const struct kvl_cpu_kernels *kernels, uint32_t rows) {
    for (uint32_t row = 0; row < rows; row++) {
        memcpy(data.scores + row * KVL_TILE_TOKENS, data.x, KVL_TILE_TOKENS * sizeof(float));
        kernels->softmax_tile(
            data.scores + row * KVL_TILE_TOKENS, KVL_TILE_TOKENS, &data.softmax, data.out, DIM);
    }
}

static void run_swiglu(const struct kvl_cpu_kernels *kernels, uint32_t count) {
    kernels->swiglu(data.x, data.x + count, count, data.x + 2 * count);
}

static void run_rms_norm(const struct kvl_cpu_kernels *kernels, uint32_t count) {
    kernels->rms_norm(data.x, data.x + count, count, 1e-5f, data.x + 2 * count);
}

/* ---- measuring ---- */

static const struct kvl_cpu_kernels *tables[TABLES_MAX];
static uint32_t table_count;

/* Seconds of one run, from a turn of about 2 ms. */
static double turn(const struct work *work, const struct kvl_cpu_kernels *kernels, double guess) {
    const uint32_t runs = guess == 0 ? 1 : (uint32_t)(2e-3 / guess) + 1;
    const double begin = now_s();
    for (uint32_t i = 0; i < runs; i++) {
        work->run(kernels, work->argument);
    }
    return (now_s() - begin) / runs;
}

static void measure(const struct work *work, uint32_t rounds) {
    double best[TABLES_MAX];
    for (uint32_t t = 0; t < table_count; t++) {
        best[t] = turn(work, tables[t], turn(work, tables[t], 0));
    }
    for (uint32_t round = 0; round < rounds; round++) {
        for (uint32_t t = 0; t < table_count; t++) {
            best[t] = fmin(best[t], turn(work, tables[t], best[t]));
        }
    }
    printf("%-16s %-6s", work->name, work->unit);
    for (uint32_t t = 0; t < table_count; t++) {
        printf(" %9.2f", work->units / best[t]);
    }
    if (table_count > 1) {
        printf("   %.2fx", best[1] / best[0]);
    }
    printf("\n");
    fflush(stdout);
}

static void measure_weights(uint32_t rounds) {
    static const uint32_t types[] = {KVL_GGML_F32, KVL_GGML_F16, KVL_GGML_BF16, KVL_GGML_Q8_0,
        KVL_GGML_Q4_0, KVL_GGML_Q4_1, KVL_GGML_Q5_0, KVL_GGML_Q5_1, KVL_GGML_Q2_K, KVL_GGML_Q3_K,
        KVL_GGML_Q4_K, KVL_GGML_Q5_K, KVL_GGML_Q6_K, KVL_GGML_IQ4_NL, KVL_GGML_IQ4_XS};
    const double flops = 2e-9 * COLUMNS * KVL_PANEL_ROWS;
    char name[32];
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++) {
        snprintf(name, sizeof name, "matvec %s", kvl_ggml_layout(types[i])->name);
        measure(&(struct work){name, run_matvec, types[i], flops, "GFLOPS"}, rounds);
    }
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++) {
        snprintf(name, sizeof name, "unpack %s", kvl_ggml_layout(types[i])->name);
        measure(&(struct work){name, run_unpack, types[i], flops / 2e-3, "Mw/s"}, rounds);
    }
}

static void measure_all(uint32_t rounds) {
    const double tile = 2e-9 * KVL_TILE_TOKENS * DIM, loads = 1e-6 * KVL_TILE_TOKENS * DIM;
    static const uint32_t rows[] = {96, 24, 12, 6, 3, 2};
    char name[32];
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        const double flops = 2e-9 * COLUMNS * KVL_STRIP_ROWS * rows[i];
        snprintf(name, sizeof name, "gemm %u", rows[i]);
        measure(&(struct work){name, run_gemm, rows[i], flops, "GFLOPS"}, rounds);
        snprintf(name, sizeof name, "gather %u", rows[i]);
        measure(&(struct work){name, run_gather, rows[i], tile * rows[i], "GFLOPS"}, rounds);
    }
    measure_weights(rounds);
    const struct work attention[] = {
        {"load_keys", run_load_keys, KVL_KV_F16, loads, "M/s"},
        {"load_values", run_load_values, KVL_KV_F16, loads, "M/s"},
        {"score_direct", run_score_direct, KVL_KV_F16, tile * GROUP, "GFLOPS"},
        {"gather_direct", run_gather_direct, KVL_KV_F16, tile * GROUP, "GFLOPS"},
        {"softmax", run_softmax, ROWS, 1e-6 * ROWS * KVL_TILE_TOKENS, "M/s"},
        {"swiglu", run_swiglu, COUNT, 1e-6 * COUNT, "M/s"},
        {"rms_norm", run_rms_norm, COUNT, 1e-6 * COUNT, "M/s"},
    };
    for (size_t i = 0; i < sizeof attention / sizeof attention[0]; i++) {
        measure(&attention[i], rounds);
    }
}

/* Numbers of ordinary size in every reading of the bytes: as f32, f16, codes. */
static void fill(void) {
    for (size_t i = 0; i < sizeof data.x / sizeof data.x[0]; i++) {
        data.x[i] = (float)(i * 2654435761u % 1000) * 1e-3f - 0.5f;
    }
    for (size_t i = 0; i < sizeof data.panel; i++) {
        data.panel[i] = (uint8_t)(i % 2 == 1 ? 0x2C : i * 2654435761u >> 8);
    }
    for (size_t i = 0; i < KVL_TILE_TOKENS; i++) {
        memcpy(data.kv[i], data.panel + i, sizeof data.kv[i]);
        data.positions[i] = data.kv[i];
    }
    memcpy(data.scores, data.x, sizeof data.scores);
    memcpy(data.strips, data.x, sizeof data.strips);
    data.softmax = (struct kvl_softmax){.max = 1, .sum = 1};
}

int main(int argc, char **argv) {
    const uint32_t rounds = argc > 1 ? (uint32_t)strtoul(argv[1], NULL, 10) : 20;
    printf("%-16s %-6s", "kernel", "unit");
    for (const struct kvl_cpu_kernels *const *table = kvl_cpu_kernels_all; *table != NULL;
         table++) {
        if ((*table)->available() && table_count < TABLES_MAX &&
            (table_count == 0 || *table != &kvl_cpu_kernels_portable)) {
            tables[table_count++] = *table;
            printf(" %9s", (*table)->name);
        }
    }
    printf("\n");
    fill();
    measure_all(rounds);
    return 0;
}
