/* forward.c - the forward pass of a llama-like decoder, from token ids to logits, top to bottom.
 *
 * What is big runs on the pool: products in matmul.c, attention in attention.c. Shapes are in
 * cpu.h; t is a token's index in the chunk, position its place in the context. */
#include <math.h>

#include "../sampler.h"
#include "attention.h"
#include "cpu.h"
#include "matmul.h"

/* Consecutive tokens of a batch, as many as the scratch memory holds. */
struct chunk {
    struct kvl_cpu *cpu;
    const struct kvl_batch *batch;
    uint32_t offset; /* in the batch */
    uint32_t tokens;
    uint32_t position;
    const float *norm; /* weights of the norm that runs next */
    uint32_t layer;
};

/* x = the tokens' embeddings; the angles of their positions. Both serve all layers. */
static void embed_token(void *arg, uint32_t thread, uint32_t t) {
    (void)thread;
    const struct chunk *chunk = arg;
    struct kvl_cpu *cpu = chunk->cpu;
    const struct kvl_hparams *h = &cpu->model->hparams;
    kvl_unpack_row(&cpu->model->embedding, chunk->batch->tokens[chunk->offset + t],
        cpu->x + (size_t)t * h->width);
    for (uint32_t i = 0; i < h->rope_dims; i += 2) {
        const double theta = (chunk->position + t) * h->rope_frequencies[i / 2];
        float *cosines = cpu->cosines + (size_t)t * h->rope_dims + i;
        float *sines = cpu->sines + (size_t)t * h->rope_dims + i;
        cosines[0] = cosines[1] = (float)cos(theta);
        sines[1] = (float)sin(theta);
        sines[0] = -sines[1];
    }
}

static void normalize_token(void *arg, uint32_t thread, uint32_t t) {
    (void)thread;
    const struct chunk *chunk = arg;
    struct kvl_cpu *cpu = chunk->cpu;
    const struct kvl_hparams *h = &cpu->model->hparams;
    const size_t row = (size_t)t * h->width;
    cpu->kernels->rms_norm(cpu->x + row, chunk->norm, h->width, h->rms_epsilon, cpu->normed + row);
}

static void normalize(struct chunk *chunk, const float *weights) {
    chunk->norm = weights;
    kvl_pool_run(chunk->cpu->pool, normalize_token, chunk, chunk->tokens);
}

/* Turns the token's q and k by its position's angles, and writes k and v into its block. */
static void place_token(void *arg, uint32_t thread, uint32_t t) {
    (void)thread;
    const struct chunk *chunk = arg;
    struct kvl_cpu *cpu = chunk->cpu;
    const struct kvl_cpu_kernels *kernels = cpu->kernels;
    const struct kvl_hparams *h = &cpu->model->hparams;
    const float *cosines = cpu->cosines + (size_t)t * h->rope_dims;
    const float *sines = cpu->sines + (size_t)t * h->rope_dims;
    const struct kvl_kv_slot slot = kvl_kv_slot(h, chunk->batch, chunk->layer, chunk->position + t);
    for (uint32_t head = 0; head < h->heads; head++) {
        float *q = cpu->q + ((size_t)t * h->heads + head) * h->k_dim;
        kernels->rope(q, h->rope_dims, cosines, sines);
    }
    for (uint32_t head = 0; head < h->kv_heads; head++) {
        float *k = cpu->k + ((size_t)t * h->kv_heads + head) * h->k_dim;
        const float *v = cpu->v + ((size_t)t * h->kv_heads + head) * h->v_dim;
        kernels->rope(k, h->rope_dims, cosines, sines);
        kernels->store_kv(chunk->batch->kv_dtype, k, h->k_dim, slot.key + head * slot.key_stride);
        kernels->store_kv(
            chunk->batch->kv_dtype, v, h->v_dim, slot.value + head * slot.value_stride);
    }
}

/* q, k and v of the chunk; k and v go into the blocks. */
static void project(struct chunk *chunk, const struct kvl_cpu_layer *layer) {
    struct kvl_cpu *cpu = chunk->cpu;
    normalize(chunk, layer->attention_norm);
    const struct kvl_matmul qkv[] = {
        {.weight = &layer->q, .x = cpu->normed, .y = cpu->q},
        {.weight = &layer->k, .x = cpu->normed, .y = cpu->k},
        {.weight = &layer->v, .x = cpu->normed, .y = cpu->v},
    };
    kvl_matmul(cpu, qkv, 3, chunk->tokens);
    kvl_pool_run(cpu->pool, place_token, chunk, chunk->tokens);
}

/* x += output of the attention over all positions up to each token's own */
static void attend(struct chunk *chunk, const struct kvl_cpu_layer *layer) {
    struct kvl_cpu *cpu = chunk->cpu;
    kvl_attend(&(struct kvl_attention){
        .cpu = cpu,
        .batch = chunk->batch,
        .layer = chunk->layer,
        .first = chunk->position,
        .tokens = chunk->tokens,
    });
    const struct kvl_matmul out = {
        .weight = &layer->attention_out, .x = cpu->attended, .y = cpu->x, .accumulate = true};
    kvl_matmul(cpu, &out, 1, chunk->tokens);
}

/* x += down(silu(gate(x)) * up(x)) */
static void feed_forward(struct chunk *chunk, const struct kvl_cpu_layer *layer) {
    struct kvl_cpu *cpu = chunk->cpu;
    normalize(chunk, layer->ffn_norm);
    kvl_gated_matmul(cpu, &layer->ffn_gate, &layer->ffn_up, cpu->normed, cpu->ffn, chunk->tokens);
    const struct kvl_matmul down = {
        .weight = &layer->ffn_down, .x = cpu->ffn, .y = cpu->x, .accumulate = true};
    kvl_matmul(cpu, &down, 1, chunk->tokens);
}

static bool has_logits(const struct chunk *chunk) {
    const uint32_t without = chunk->batch->count - chunk->batch->logits_rows;
    return chunk->offset + chunk->tokens > without;
}

static void choose_token(const struct kvl_batch *batch, const float *logits, uint32_t vocab) {
    if (batch->greedy_token != NULL) {
        *batch->greedy_token = kvl_greedy_pick(logits, vocab);
    }
}

/* Logits of those of the batch's last logits_rows tokens that lie in this chunk. */
static void logits_of(struct chunk *chunk) {
    struct kvl_cpu *cpu = chunk->cpu;
    const struct kvl_batch *batch = chunk->batch;
    const uint32_t first_row = batch->count - batch->logits_rows;
    const uint32_t end = chunk->offset + chunk->tokens;
    const uint32_t begin = first_row > chunk->offset ? first_row : chunk->offset;
    const uint32_t vocab = cpu->model->hparams.vocab;
    float *logits = batch->logits != NULL ? batch->logits : cpu->logits;
    normalize(chunk, cpu->output_norm);
    const struct kvl_matmul output = {
        .weight = &cpu->output,
        .x = cpu->normed + (size_t)(begin - chunk->offset) * cpu->model->hparams.width,
        .y = logits + (size_t)(begin - first_row) * vocab,
    };
    kvl_matmul(cpu, &output, 1, end - begin);
    choose_token(batch, logits, vocab);
}

static kvl_err forward_chunk(struct chunk *chunk) {
    struct kvl_cpu *cpu = chunk->cpu;
    const struct kvl_batch *batch = chunk->batch;
    const uint32_t layers = cpu->model->hparams.layers;
    kvl_pool_run(cpu->pool, embed_token, chunk, chunk->tokens);
    for (uint32_t i = 0; i < layers; i++) {
        /* Once a layer is there it stays, so only the first chunk has to wait for it. */
        if (batch->before_layer != NULL && chunk->offset == 0) {
            const kvl_err err = batch->before_layer(batch->before_layer_arg, i);
            if (err != KVL_OK) {
                return err;
            }
        }
        chunk->layer = i;
        project(chunk, &cpu->layers[i]);
        if (i + 1 == layers && !has_logits(chunk)) {
            return KVL_OK; /* nobody reads more of the last layer than its K and V */
        }
        attend(chunk, &cpu->layers[i]);
        feed_forward(chunk, &cpu->layers[i]);
    }
    logits_of(chunk);
    return KVL_OK;
}

static bool is_valid(const struct kvl_cpu *cpu, const struct kvl_batch *batch) {
    if (batch->count == 0 || batch->block_tokens == 0 || batch->logits_rows > batch->count ||
        kvl_kv_dtype_bytes(batch->kv_dtype) == 0 || batch->position > cpu->context_max ||
        batch->count > cpu->context_max - batch->position) {
        return false;
    }
    if (batch->logits_rows > 0 && batch->logits == NULL && batch->greedy_token == NULL) {
        return false;
    }
    if (batch->greedy_token != NULL && batch->logits_rows != 1) {
        return false;
    }
    for (uint32_t i = 0; i < batch->count; i++) {
        if (batch->tokens[i] >= cpu->model->hparams.vocab) {
            return false;
        }
    }
    return true;
}

kvl_err kvl_cpu_forward(struct kvl_backend *backend, const struct kvl_batch *batch) {
    struct kvl_cpu *cpu = (struct kvl_cpu *)(void *)backend; /* base comes first */
    if (!is_valid(cpu, batch)) {
        return KVL_ERR_INVALID;
    }
    for (uint32_t offset = 0; offset < batch->count; offset += KVL_CHUNK_TOKENS) {
        const uint32_t left = batch->count - offset;
        struct chunk chunk = {
            .cpu = cpu,
            .batch = batch,
            .offset = offset,
            .tokens = left < KVL_CHUNK_TOKENS ? left : KVL_CHUNK_TOKENS,
            .position = batch->position + offset,
        };
        const kvl_err err = forward_chunk(&chunk);
        if (err != KVL_OK) {
            return err;
        }
    }
    return KVL_OK;
}
