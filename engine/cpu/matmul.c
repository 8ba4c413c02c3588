/* matmul.c - see matmul.h. A unit of work is one panel of 32 outputs for a block of tokens: the
 * panel is unpacked once per block, some k at a time, into a strip that stays in the nearest cache
 * while the block's rows run over it, and every sum goes on where the piece before left it. A
 * single token skips the strip, as do a few with quantized weights; the bits are the same. */
#include "matmul.h"

#include <string.h>

#include "../quant.h"

/* k of a strip. Measured on SmolLM2: whole rows of it leave the nearest cache, at 576 k already.
 * For a few tokens, unpacking is what takes time, and it reads every other line of the panel: the
 * shorter the piece, the sooner it comes back for the lines between. */
enum { COLUMNS_OF_FEW = 64, FEW_TOKENS = 12 };

struct tile {
    float *y;
    size_t stride;
};

/* A multiple of every type's block. */
static uint32_t strip_columns(const struct kvl_packed *weight, uint32_t tokens) {
    const struct kvl_quant *quant = kvl_quant_of(weight->type);
    const bool small_blocks = quant == NULL || quant->block <= COLUMNS_OF_FEW;
    return tokens <= FEW_TOKENS && small_blocks ? COLUMNS_OF_FEW : KVL_STRIP_COLUMNS;
}

/* 32 outputs for up to KVL_MATMUL_TOKENS rows of x. */
static void multiply_panel(const struct kvl_cpu *cpu, struct kvl_cpu_scratch *scratch,
    const struct kvl_packed *weight, uint32_t panel, const float *x, uint32_t tokens,
    struct tile tile, bool accumulate) {
    const struct kvl_cpu_kernels *kernels = cpu->kernels;
    const uint8_t *packed = kvl_packed_panel(weight, panel);
    if (tokens == 1) {
        kernels->matvec(weight->type, packed, weight->columns, x, tile.y, accumulate);
        return;
    }
    if (tokens <= KVL_FEW_ROWS && kvl_quant_of(weight->type) != NULL) {
        kernels->multiply_few(&(struct kvl_few){
            .type = weight->type,
            .columns = weight->columns,
            .panel = packed,
            .x = x,
            .x_stride = weight->columns,
            .y = tile.y,
            .y_stride = tile.stride,
            .rows = tokens,
            .accumulate = accumulate,
        });
        return;
    }
    const uint32_t step = strip_columns(weight, tokens);
    for (uint32_t k = 0; k < weight->columns; k += step) {
        const uint32_t columns = weight->columns - k < step ? weight->columns - k : step;
        const uint8_t *piece = packed + weight->panel_bytes * k / weight->columns;
        for (uint32_t half = 0; half < 2; half++) {
            kernels->unpack_strip(weight->type, piece, half, columns, scratch->strip);
            kernels->gemm(&(struct kvl_gemm){
                .x = x + k,
                .x_stride = weight->columns,
                .strip = scratch->strip,
                .y = tile.y + half * KVL_STRIP_ROWS,
                .y_stride = tile.stride,
                .rows = tokens,
                .k = columns,
                .accumulate = accumulate || k > 0,
            });
        }
    }
}

static void copy_columns(float *to, size_t to_stride, const float *from, size_t from_stride,
    uint32_t rows, uint32_t columns) {
    for (uint32_t row = 0; row < rows; row++) {
        memcpy(to + row * to_stride, from + row * from_stride, columns * sizeof(float));
    }
}

static uint32_t panel_outputs(const struct kvl_packed *weight, uint32_t panel) {
    const uint32_t left = weight->rows - panel * KVL_PANEL_ROWS;
    return left < KVL_PANEL_ROWS ? left : KVL_PANEL_ROWS;
}

static uint32_t block_count(uint32_t tokens) {
    return (tokens + KVL_MATMUL_TOKENS - 1) / KVL_MATMUL_TOKENS;
}

static uint32_t block_tokens(uint32_t tokens, uint32_t block) {
    const uint32_t left = tokens - block * KVL_MATMUL_TOKENS;
    return left < KVL_MATMUL_TOKENS ? left : KVL_MATMUL_TOKENS;
}

/* ---- plain products ---- */

struct matmul_job {
    struct kvl_cpu *cpu;
    const struct kvl_matmul *products;
    uint32_t panels; /* of all products */
    uint32_t tokens;
};

static void matmul_unit(void *arg, uint32_t thread, uint32_t unit) {
    const struct matmul_job *job = arg;
    struct kvl_cpu_scratch *scratch = &job->cpu->scratch[thread];
    const uint32_t block = unit / job->panels;
    uint32_t panel = unit % job->panels;
    const struct kvl_matmul *product = job->products;
    while (panel >= product->weight->panel_count) {
        panel -= product->weight->panel_count;
        product++;
    }
    const struct kvl_packed *weight = product->weight;
    const size_t first = (size_t)block * KVL_MATMUL_TOKENS;
    const float *x = product->x + first * weight->columns;
    float *y = product->y + first * weight->rows + (size_t)panel * KVL_PANEL_ROWS;
    const uint32_t tokens = block_tokens(job->tokens, block);
    const uint32_t outputs = panel_outputs(weight, panel);
    if (outputs == KVL_PANEL_ROWS) {
        multiply_panel(job->cpu, scratch, weight, panel, x, tokens, (struct tile){y, weight->rows},
            product->accumulate);
        return;
    }
    float *tile = scratch->tile_a;
    copy_columns(tile, KVL_PANEL_ROWS, y, weight->rows, tokens, outputs);
    multiply_panel(job->cpu, scratch, weight, panel, x, tokens, (struct tile){tile, KVL_PANEL_ROWS},
        product->accumulate);
    copy_columns(y, weight->rows, tile, KVL_PANEL_ROWS, tokens, outputs);
}

void kvl_matmul(
    struct kvl_cpu *cpu, const struct kvl_matmul *products, uint32_t count, uint32_t tokens) {
    struct matmul_job job = {.cpu = cpu, .products = products, .tokens = tokens};
    for (uint32_t i = 0; i < count; i++) {
        job.panels += products[i].weight->panel_count;
    }
    kvl_pool_run(cpu->pool, matmul_unit, &job, job.panels * block_count(tokens));
}

/* ---- the gated half of a feed-forward ---- */

struct gated_job {
    struct kvl_cpu *cpu;
    const struct kvl_packed *gate, *up;
    const float *x;
    float *out;
    uint32_t tokens;
};

static void gated_unit(void *arg, uint32_t thread, uint32_t unit) {
    const struct gated_job *job = arg;
    struct kvl_cpu_scratch *scratch = &job->cpu->scratch[thread];
    const uint32_t block = unit / job->gate->panel_count;
    const uint32_t panel = unit % job->gate->panel_count;
    const size_t first = (size_t)block * KVL_MATMUL_TOKENS;
    const uint32_t tokens = block_tokens(job->tokens, block);
    const float *x = job->x + first * job->gate->columns;
    multiply_panel(job->cpu, scratch, job->gate, panel, x, tokens,
        (struct tile){scratch->tile_a, KVL_PANEL_ROWS}, false);
    multiply_panel(job->cpu, scratch, job->up, panel, x, tokens,
        (struct tile){scratch->tile_b, KVL_PANEL_ROWS}, false);
    float *out = job->out + first * job->gate->rows + (size_t)panel * KVL_PANEL_ROWS;
    const uint32_t outputs = panel_outputs(job->gate, panel);
    const struct kvl_cpu_kernels *kernels = job->cpu->kernels;
    const bool is_gelu = job->cpu->model->hparams.activation == KVL_ACTIVATION_GELU_TANH;
    for (uint32_t token = 0; token < tokens; token++) {
        (is_gelu ? kernels->geglu : kernels->swiglu)(scratch->tile_a + token * KVL_PANEL_ROWS,
            scratch->tile_b + token * KVL_PANEL_ROWS, outputs,
            out + token * (size_t)job->gate->rows);
    }
}

void kvl_gated_matmul(struct kvl_cpu *cpu, const struct kvl_packed *gate,
    const struct kvl_packed *up, const float *x, float *out, uint32_t tokens) {
    struct gated_job job = {
        .cpu = cpu, .gate = gate, .up = up, .x = x, .out = out, .tokens = tokens};
    kvl_pool_run(cpu->pool, gated_unit, &job, gate->panel_count * block_count(tokens));
}
