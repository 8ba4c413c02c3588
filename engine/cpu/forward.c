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

static void find_angles(const struct kvl_cpu *cpu, uint32_t t, uint32_t position,
    const double *frequencies, struct kvl_cpu_angles angles) {
    const struct kvl_hparams *h = &cpu->model->hparams;
    float *cosines = angles.cosines + (size_t)t * h->rope_dims;
    float *sines = angles.sines + (size_t)t * h->rope_dims;
    const uint32_t pairs = h->rope_dims / 2;
    const bool in_halves = h->rope_pairing == KVL_ROPE_HALVES;
    for (uint32_t i = 0; i < pairs; i++) {
        const double theta = position * frequencies[i];
        const uint32_t first = in_halves ? i : 2 * i;
        const uint32_t second = in_halves ? i + pairs : 2 * i + 1;
        cosines[first] = cosines[second] = (float)(cos(theta) * h->rope_magnitude);
        sines[second] = (float)(sin(theta) * h->rope_magnitude);
        sines[first] = -sines[second];
    }
}

/* x = the tokens' embeddings; the angles of their positions. Both serve all layers. */
static void embed_token(void *arg, uint32_t thread, uint32_t t) {
    (void)thread;
    const struct chunk *chunk = arg;
    struct kvl_cpu *cpu = chunk->cpu;
    const struct kvl_hparams *h = &cpu->model->hparams;
    kvl_unpack_row(&cpu->model->embedding, chunk->batch->tokens[chunk->offset + t],
        cpu->x + (size_t)t * h->width);
    if (h->embedding_scale != 1) {
        float *x = cpu->x + (size_t)t * h->width;
        cpu->kernels->scale(x, h->width, h->embedding_scale, x);
    }
    const uint32_t position = chunk->position + t;
    find_angles(cpu, t, position, h->rope_frequencies, cpu->angles);
    if (h->rope_frequencies_windowed != h->rope_frequencies) {
        find_angles(cpu, t, position, h->rope_frequencies_windowed, cpu->windowed_angles);
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

/* Heads of a token as the products left them: bias, norm of each head, RoPE. */
static void finish_heads(const struct chunk *chunk, uint32_t t, float *x, uint32_t heads,
    const float *bias, const float *norm) {
    const struct kvl_cpu *cpu = chunk->cpu;
    const struct kvl_cpu_kernels *kernels = cpu->kernels;
    const struct kvl_hparams *h = &cpu->model->hparams;
    const struct kvl_cpu_angles *angles =
        kvl_layer_window(h, chunk->layer) != 0 ? &cpu->windowed_angles : &cpu->angles;
    const float *cosines = angles->cosines + (size_t)t * h->rope_dims;
    const float *sines = angles->sines + (size_t)t * h->rope_dims;
    if (bias != NULL) {
        kernels->add(x, bias, heads * h->k_dim);
    }
    for (uint32_t head = 0; head < heads; head++, x += h->k_dim) {
        if (norm != NULL) {
            kernels->rms_norm(x, norm, h->k_dim, h->rms_epsilon, x);
        }
        if (h->rope_pairing == KVL_ROPE_HALVES) {
            kernels->rope_halves(x, h->rope_dims, cosines, sines);
        } else {
            kernels->rope(x, h->rope_dims, cosines, sines);
        }
    }
}

/* Finishes the token's q, k and v, and writes k and v into its block. */
static void place_token(void *arg, uint32_t thread, uint32_t t) {
    (void)thread;
    const struct chunk *chunk = arg;
    struct kvl_cpu *cpu = chunk->cpu;
    const struct kvl_cpu_kernels *kernels = cpu->kernels;
    const struct kvl_cpu_layer *layer = &cpu->layers[chunk->layer];
    const struct kvl_hparams *h = &cpu->model->hparams;
    const enum kvl_kv_dtype dtype = chunk->batch->kv_dtype;
    const struct kvl_kv_slot slot = kvl_kv_slot(h, chunk->batch, chunk->layer, chunk->position + t);
    float *k = cpu->k + (size_t)t * h->kv_heads * h->k_dim;
    float *v = cpu->v + (size_t)t * h->kv_heads * h->v_dim;
    finish_heads(
        chunk, t, cpu->q + (size_t)t * h->heads * h->k_dim, h->heads, layer->q_bias, layer->q_norm);
    finish_heads(chunk, t, k, h->kv_heads, layer->k_bias, layer->k_norm);
    if (layer->v_bias != NULL) {
        kernels->add(v, layer->v_bias, h->kv_heads * h->v_dim);
    }
    for (uint32_t head = 0; head < h->kv_heads; head++, k += h->k_dim, v += h->v_dim) {
        kernels->store_kv(dtype, k, h->k_dim, slot.key + head * slot.key_stride);
        kernels->store_kv(dtype, v, h->v_dim, slot.value + head * slot.value_stride);
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

/* x += norm of what a half of the layer gave, which lies in `normed`. */
static void join_token(void *arg, uint32_t thread, uint32_t t) {
    (void)thread;
    const struct chunk *chunk = arg;
    struct kvl_cpu *cpu = chunk->cpu;
    const struct kvl_hparams *h = &cpu->model->hparams;
    float *given = cpu->normed + (size_t)t * h->width;
    cpu->kernels->rms_norm(given, chunk->norm, h->width, h->rms_epsilon, given);
    cpu->kernels->add(cpu->x + (size_t)t * h->width, given, h->width);
}

/* x += weight y, or, with a norm, x += norm(weight y) */
static void join(
    struct chunk *chunk, const struct kvl_packed *weight, const float *y, const float *norm) {
    struct kvl_cpu *cpu = chunk->cpu;
    const struct kvl_matmul product = {.weight = weight,
        .x = y,
        .y = norm == NULL ? cpu->x : cpu->normed,
        .accumulate = norm == NULL};
    kvl_matmul(cpu, &product, 1, chunk->tokens);
    if (norm != NULL) {
        chunk->norm = norm;
        kvl_pool_run(cpu->pool, join_token, chunk, chunk->tokens);
    }
}

/* x += output of the attention over all positions up to each token's own */
static void attend(struct chunk *chunk, const struct kvl_cpu_layer *layer) {
    struct kvl_cpu *cpu = chunk->cpu;
    kvl_attend(&(struct kvl_attention){
        .cpu = cpu,
        .batch = chunk->batch,
        .layer = chunk->layer,
        .window = kvl_layer_window(&cpu->model->hparams, chunk->layer),
        .first = chunk->position,
        .tokens = chunk->tokens,
    });
    join(chunk, &layer->attention_out, cpu->attended, layer->attention_post_norm);
}

/* x += down(activation(gate(x)) * up(x)) */
static void feed_forward(struct chunk *chunk, const struct kvl_cpu_layer *layer) {
    struct kvl_cpu *cpu = chunk->cpu;
    normalize(chunk, layer->ffn_norm);
    kvl_gated_matmul(cpu, &layer->ffn_gate, &layer->ffn_up, cpu->normed, cpu->ffn, chunk->tokens);
    join(chunk, &layer->ffn_down, cpu->ffn, layer->ffn_post_norm);
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
    const float cap = cpu->model->hparams.logit_softcap;
    for (uint32_t row = 0; row < end - begin && cap != 0; row++) {
        cpu->kernels->softcap(output.y + (size_t)row * vocab, vocab, cap);
    }
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
    if (batch->window_blocks == NULL && kvl_layer_group_count(&cpu->model->hparams) > 1) {
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
