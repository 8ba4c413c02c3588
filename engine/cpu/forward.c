/* forward.c - the forward pass of a llama-like decoder, from token ids to logits, top to bottom.
 *
 * What is big runs on the pool: products in matmul.c, attention in attention.c. Shapes are in
 * cpu.h; t is a token's row in the chunk, position its place in its sequence's context. */
#include <math.h>
#include <string.h>

#include "../sampler.h"
#include "attention.h"
#include "cpu.h"
#include "matmul.h"

/* Consecutive tokens of the call's batches, as many as the scratch memory holds. */
struct chunk {
    struct kvl_cpu *cpu;
    struct kvl_cpu_span *spans; /* cpu->spans */
    uint32_t span_count;
    uint32_t rows;
    const float *norm; /* weights of the norm that runs next */
    uint32_t layer;
    struct kvl_attention attention;
};

static const struct kvl_cpu_span *span_of(const struct chunk *chunk, uint32_t t) {
    const struct kvl_cpu_span *span = chunk->spans;
    while (t - span->row >= span->tokens) {
        span++;
    }
    return span;
}

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
    const struct kvl_cpu_span *span = span_of(chunk, t);
    kvl_unpack_row(&cpu->model->embedding, span->batch->tokens[span->offset + t - span->row],
        cpu->x + (size_t)t * h->width);
    if (h->embedding_scale != 1) {
        float *x = cpu->x + (size_t)t * h->width;
        cpu->kernels->scale(x, h->width, h->embedding_scale, x);
    }
    const uint32_t position = span->position + t - span->row;
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
    kvl_pool_run(chunk->cpu->pool, normalize_token, chunk, chunk->rows);
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
    const struct kvl_cpu_span *span = span_of(chunk, t);
    const enum kvl_kv_dtype dtype = span->batch->kv_dtype;
    const struct kvl_kv_slot slot =
        kvl_kv_slot(h, span->batch, chunk->layer, span->position + t - span->row);
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
    kvl_matmul(cpu, qkv, 3, chunk->rows);
    kvl_pool_run(cpu->pool, place_token, chunk, chunk->rows);
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
    kvl_matmul(cpu, &product, 1, chunk->rows);
    if (norm != NULL) {
        chunk->norm = norm;
        kvl_pool_run(cpu->pool, join_token, chunk, chunk->rows);
    }
}

/* x += output of the attention over all positions up to each token's own */
static void attend(struct chunk *chunk, const struct kvl_cpu_layer *layer) {
    struct kvl_cpu *cpu = chunk->cpu;
    chunk->attention.layer = chunk->layer;
    chunk->attention.window = kvl_layer_window(&cpu->model->hparams, chunk->layer);
    kvl_attend(&chunk->attention);
    join(chunk, &layer->attention_out, cpu->attended, layer->attention_post_norm);
}

/* x += down(activation(gate(x)) * up(x)) */
static void feed_forward(struct chunk *chunk, const struct kvl_cpu_layer *layer) {
    struct kvl_cpu *cpu = chunk->cpu;
    normalize(chunk, layer->ffn_norm);
    kvl_gated_matmul(cpu, &layer->ffn_gate, &layer->ffn_up, cpu->normed, cpu->ffn, chunk->rows);
    join(chunk, &layer->ffn_down, cpu->ffn, layer->ffn_post_norm);
}

/* ---- logits ---- */

/* The span's first row whose logits are wanted, as an index in the span; its end: none is. */
static uint32_t first_logits_row(const struct kvl_cpu_span *span) {
    const uint32_t without = span->batch->count - span->batch->logits_rows;
    if (without <= span->offset) {
        return 0;
    }
    return without - span->offset < span->tokens ? without - span->offset : span->tokens;
}

static bool has_logits(const struct chunk *chunk) {
    bool any = false;
    for (uint32_t i = 0; i < chunk->span_count; i++) {
        any = any || first_logits_row(&chunk->spans[i]) < chunk->spans[i].tokens;
    }
    return any;
}

static void cap_logits(const struct kvl_cpu *cpu, float *logits) {
    if (cpu->model->hparams.logit_softcap != 0) {
        cpu->kernels->softcap(logits, cpu->model->hparams.vocab, cpu->model->hparams.logit_softcap);
    }
}

/* Of a batch that wants several rows' logits: straight to where it wants them. */
static void logits_of_span(const struct chunk *chunk, const struct kvl_cpu_span *span) {
    const struct kvl_cpu *cpu = chunk->cpu;
    const struct kvl_batch *batch = span->batch;
    const uint32_t first = first_logits_row(span), rows = span->tokens - first;
    const size_t vocab = cpu->model->hparams.vocab;
    const uint32_t before = span->offset + first - (batch->count - batch->logits_rows);
    const struct kvl_matmul output = {
        .weight = &cpu->output,
        .x = cpu->normed + (size_t)(span->row + first) * cpu->model->hparams.width,
        .y = batch->logits + before * vocab,
    };
    kvl_matmul(chunk->cpu, &output, 1, rows);
    for (uint32_t row = 0; row < rows; row++) {
        cap_logits(cpu, output.y + row * vocab);
    }
}

/* The last tokens of batches that want that one's logits only: a row of a product each. */
struct last_tokens {
    struct kvl_cpu *cpu;
    const struct kvl_cpu_span *spans; /* those with a last token, and others */
    float *logits;                    /* [last tokens][vocab] */
};

static bool is_last_token(const struct kvl_cpu_span *span) {
    return span->batch->logits_rows == 1 && first_logits_row(span) < span->tokens;
}

/* The span of last token number i. */
static const struct kvl_cpu_span *last_token(const struct last_tokens *last, uint32_t i) {
    const struct kvl_cpu_span *span = last->spans;
    while (!is_last_token(span) || i-- > 0) {
        span++;
    }
    return span;
}

static void deliver_last_token(void *arg, uint32_t thread, uint32_t i) {
    (void)thread;
    const struct last_tokens *last = arg;
    const struct kvl_batch *batch = last_token(last, i)->batch;
    const uint32_t vocab = last->cpu->model->hparams.vocab;
    float *logits = last->logits + (size_t)i * vocab;
    cap_logits(last->cpu, logits);
    if (batch->greedy_token != NULL) {
        *batch->greedy_token = kvl_greedy_pick(logits, vocab);
    }
    if (batch->logits != NULL && batch->logits != logits) {
        memcpy(batch->logits, logits, vocab * sizeof *logits);
    }
}

/* `count` of them, whose rows of `normed` move together: row i never lies before its token's. */
static void logits_of_last_tokens(struct last_tokens *last, uint32_t count) {
    struct kvl_cpu *cpu = last->cpu;
    const size_t width = cpu->model->hparams.width;
    for (uint32_t i = 0; i < count; i++) {
        const struct kvl_cpu_span *span = last_token(last, i);
        const float *from = cpu->normed + (span->row + span->tokens - 1) * width;
        memmove(cpu->normed + i * width, from, width * sizeof *from);
    }
    float *wanted = count == 1 ? last_token(last, 0)->batch->logits : NULL;
    last->logits = wanted != NULL ? wanted : cpu->logits;
    const struct kvl_matmul output = {.weight = &cpu->output, .x = cpu->normed, .y = last->logits};
    kvl_matmul(cpu, &output, 1, count);
    kvl_pool_run(cpu->pool, deliver_last_token, last, count);
}

static void logits_of(struct chunk *chunk) {
    struct last_tokens last = {.cpu = chunk->cpu, .spans = chunk->spans};
    uint32_t last_count = 0;
    normalize(chunk, chunk->cpu->output_norm);
    for (uint32_t i = 0; i < chunk->span_count; i++) {
        const struct kvl_cpu_span *span = &chunk->spans[i];
        if (is_last_token(span)) {
            last_count++;
        } else if (first_logits_row(span) < span->tokens) {
            logits_of_span(chunk, span);
        }
    }
    if (last_count > 0) {
        logits_of_last_tokens(&last, last_count);
    }
}

/* ---- a call ---- */

/* Once a layer is there it stays, so only a batch's first chunk has to wait for it. */
static kvl_err wait_for_layer(const struct chunk *chunk, uint32_t layer) {
    for (uint32_t i = 0; i < chunk->span_count; i++) {
        const struct kvl_batch *batch = chunk->spans[i].batch;
        if (batch->before_layer == NULL || chunk->spans[i].offset != 0) {
            continue;
        }
        const kvl_err err = batch->before_layer(batch->before_layer_arg, layer);
        if (err != KVL_OK) {
            return err;
        }
    }
    return KVL_OK;
}

static kvl_err forward_chunk(struct chunk *chunk) {
    struct kvl_cpu *cpu = chunk->cpu;
    const uint32_t layers = cpu->model->hparams.layers;
    kvl_pool_run(cpu->pool, embed_token, chunk, chunk->rows);
    for (uint32_t i = 0; i < layers; i++) {
        const kvl_err err = wait_for_layer(chunk, i);
        if (err != KVL_OK) {
            return err;
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

static bool are_valid(const struct kvl_cpu *cpu, const struct kvl_batch *batches, uint32_t count) {
    bool valid = count > 0 && count <= cpu->batches_max;
    for (uint32_t i = 0; valid && i < count; i++) {
        valid = is_valid(cpu, &batches[i]);
    }
    return valid;
}

/* Where the next chunk begins. */
struct place {
    const struct kvl_batch *batch;
    uint32_t offset;
};

/* Fills the chunk from there on, up to `end`, and moves the place behind it. */
static void fill_chunk(struct chunk *chunk, struct place *place, const struct kvl_batch *end) {
    const uint32_t rows_max = chunk->cpu->chunk_rows;
    while (place->batch < end && chunk->rows < rows_max) {
        const uint32_t left = place->batch->count - place->offset;
        const uint32_t room = rows_max - chunk->rows;
        const uint32_t tokens = left < room ? left : room;
        chunk->spans[chunk->span_count++] = (struct kvl_cpu_span){
            .batch = place->batch,
            .offset = place->offset,
            .position = place->batch->position + place->offset,
            .tokens = tokens,
            .row = chunk->rows,
        };
        chunk->rows += tokens;
        place->offset += tokens;
        if (place->offset == place->batch->count) {
            *place = (struct place){.batch = place->batch + 1};
        }
    }
    chunk->attention = (struct kvl_attention){
        .cpu = chunk->cpu, .spans = chunk->spans, .span_count = chunk->span_count};
    kvl_plan_attention(&chunk->attention);
}

kvl_err kvl_cpu_forward(
    struct kvl_backend *backend, const struct kvl_batch *batches, uint32_t count) {
    struct kvl_cpu *cpu = (struct kvl_cpu *)(void *)backend; /* base comes first */
    if (!are_valid(cpu, batches, count)) {
        return KVL_ERR_INVALID;
    }
    struct place place = {.batch = batches};
    while (place.batch < batches + count) {
        struct chunk chunk = {.cpu = cpu, .spans = cpu->spans};
        fill_chunk(&chunk, &place, batches + count);
        const kvl_err err = forward_chunk(&chunk);
        if (err != KVL_OK) {
            return err;
        }
    }
    return KVL_OK;
}
