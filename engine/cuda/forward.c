/* forward.c - the forward pass on the GPU: a call, and prefill.
 *
 * Everything is enqueued on one stream. While a restore is still bringing blocks, each layer waits
 * on the stream for a word in pinned memory to reach its number; the host advances the word as
 * before_layer returns, so a layer starts without a launch's delay and computes while the next
 * one's bytes are on their way (stream_wait.c says where that cannot be). On an error the word goes
 * to its end, what was enqueued runs off, and its results are nobody's. */
#include <string.h>
#include <time.h>

#include "cuda_backend.h"
#include "kernels.h"

/* Consecutive tokens of a batch, as many as the activations have room for. */
struct chunk {
    struct kvl_cuda *cuda;
    const struct kvl_batch *batch;
    uint32_t index;
    uint32_t offset; /* in the batch */
    uint32_t tokens;
    uint32_t rows;            /* tokens, rounded up to whole tiles */
    const uint32_t *position; /* on the device */
};

#define TRY(call) KVL_CUDA_TRY(&cuda->last, (call))
#define TRY_ERR(call) KVL_CUDA_TRY_ERR(call)

/* ---- a chunk's layers ---- */

static kvl_err embed(const struct chunk *c) {
    struct kvl_cuda *cuda = c->cuda;
    const struct kvl_hparams *h = &cuda->model->hparams;
    const uint32_t *ids = cuda->prompt + cuda->prompt_chunks_max;
    const uint64_t attended_bytes = (uint64_t)h->heads * h->v_dim * sizeof(uint16_t);
    TRY(kvl_cuda_embed(&(struct kvl_cuda_embed){.embedding = cuda->embedding.data,
                           .ids = ids + c->offset,
                           .x = cuda->x,
                           .scale = h->embedding_scale,
                           .width = h->width,
                           .tokens = c->tokens,
                           .rows = c->rows},
        cuda->stream));
    TRY_ERR(kvl_cuda_find_angles(cuda, c->position, c->tokens));
    /* Attention writes the tokens' rows only. */
    TRY(cudaMemsetAsync((uint8_t *)(void *)cuda->attended + c->tokens * attended_bytes, 0,
        (c->rows - c->tokens) * attended_bytes, cuda->stream));
    return KVL_OK;
}

static kvl_err normalize(
    struct kvl_cuda *cuda, const float *x, const float *weights, uint32_t rows) {
    const struct kvl_hparams *h = &cuda->model->hparams;
    TRY(kvl_cuda_norm(&(struct kvl_cuda_norm){.x = x,
                          .weights = weights,
                          .out = cuda->normed,
                          .epsilon = h->rms_epsilon,
                          .width = h->width,
                          .rows = rows},
        cuda->stream));
    return KVL_OK;
}

static kvl_err multiply(const struct chunk *c, const struct kvl_cuda_product *product,
    const struct kvl_cuda_matrix *w, const __half *x, void *y) {
    struct kvl_cuda *cuda = c->cuda;
    return kvl_cuda_multiply(
        cuda->blas, product, w->data, x, y, c->rows, cuda->stream, &cuda->last);
}

/* x += w y, or, with a norm, x += norm(w y) */
static kvl_err join(const struct chunk *c, const struct kvl_cuda_product *product,
    const struct kvl_cuda_matrix *w, const __half *y, const float *norm) {
    struct kvl_cuda *cuda = c->cuda;
    if (norm == NULL) {
        return multiply(c, product, w, y, cuda->x);
    }
    TRY_ERR(multiply(c, product, w, y, cuda->given));
    return kvl_cuda_join_given(cuda, norm, c->rows);
}

/* q of the chunk; k and v go into the blocks. */
static kvl_err project(const struct chunk *c, uint32_t layer) {
    struct kvl_cuda *cuda = c->cuda;
    const struct kvl_cuda_layer *weights = &cuda->layers[layer];
    TRY_ERR(normalize(cuda, cuda->x, weights->attention_norm, c->rows));
    TRY_ERR(multiply(c, &cuda->qkv, &weights->qkv, cuda->normed, cuda->qkv_rows));
    struct kvl_cuda_place place = kvl_cuda_place_of(cuda, c->batch, layer);
    place.position = c->position;
    place.tokens = c->tokens;
    TRY(kvl_cuda_place(&place, cuda->stream));
    return KVL_OK;
}

/* Whether every kernel that such a prefill may take has been loaded: see enqueue_layers. */
static bool is_warm(const struct chunk *c) {
    return c->cuda->warm_block_tokens[c->batch->kv_dtype] == c->batch->block_tokens;
}

static kvl_err attend(const struct chunk *c, uint32_t layer) {
    struct kvl_cuda *cuda = c->cuda;
    const struct kvl_cuda_layer *weights = &cuda->layers[layer];
    struct kvl_cuda_attention attention = kvl_cuda_attention_of(cuda, c->batch, layer);
    attention.tokens = c->tokens;
    attention.position = c->position;
    attention.position_max = c->batch->position + c->offset + c->tokens;
    attention.way = is_warm(c) ? KVL_ATTENTION_FASTEST : KVL_ATTENTION_EVERY;
    TRY(kvl_cuda_attend_prefill(&attention, cuda->stream));
    return join(c, &cuda->attention_out, &weights->attention_out, cuda->attended,
        weights->attention_post_norm);
}

static kvl_err feed_forward(const struct chunk *c, uint32_t layer) {
    struct kvl_cuda *cuda = c->cuda;
    const struct kvl_hparams *h = &cuda->model->hparams;
    const struct kvl_cuda_layer *weights = &cuda->layers[layer];
    TRY_ERR(normalize(cuda, cuda->x, weights->ffn_norm, c->rows));
    TRY_ERR(multiply(c, &cuda->gate_up, &weights->gate_up, cuda->normed, cuda->gate_up_rows));
    TRY(kvl_cuda_gate(&(struct kvl_cuda_gate){.gate_up = cuda->gate_up_rows,
                          .out = cuda->ffn,
                          .width = h->ffn_width,
                          .rows = c->rows,
                          .gelu = h->activation == KVL_ACTIVATION_GELU_TANH},
        cuda->stream));
    return join(c, &cuda->down, &weights->down, cuda->ffn, weights->ffn_post_norm);
}

static bool has_logits(const struct chunk *c) {
    return c->offset + c->tokens > c->batch->count - c->batch->logits_rows;
}

static kvl_err compute_layer(const struct chunk *c, uint32_t layer) {
    TRY_ERR(project(c, layer));
    if (layer + 1 == c->cuda->model->hparams.layers && !has_logits(c)) {
        return KVL_OK; /* nobody reads more of the last layer than its K and V */
    }
    TRY_ERR(attend(c, layer));
    return feed_forward(c, layer);
}

static kvl_err enqueue_layer(const struct chunk *c, uint32_t layer) {
    struct kvl_cuda *cuda = c->cuda;
    const struct kvl_cuda_trace *trace = c->index == 0 ? cuda->trace : NULL;
    if (trace != NULL) {
        TRY(cudaEventRecord(trace->began[layer], cuda->stream));
    }
    TRY_ERR(compute_layer(c, layer));
    if (trace != NULL) {
        TRY(cudaEventRecord(trace->ended[layer], cuda->stream));
    }
    return KVL_OK;
}

/* ---- logits ---- */

/* Of at most KVL_CUDA_LOGITS_ROWS rows of x from `row` on, to cuda->logits. Always as many rows are
 * multiplied, whatever is in those beyond. */
static kvl_err logits_of(struct kvl_cuda *cuda, uint32_t row, uint32_t rows) {
    const struct kvl_hparams *h = &cuda->model->hparams;
    TRY_ERR(normalize(cuda, cuda->x + (size_t)row * h->width, cuda->output_norm, rows));
    TRY_ERR(kvl_cuda_multiply(cuda->blas, &cuda->logits_product, cuda->output.data, cuda->normed,
        cuda->logits, KVL_CUDA_LOGITS_ROWS, cuda->stream, &cuda->last));
    if (h->logit_softcap != 0) {
        TRY(kvl_cuda_softcap(
            cuda->logits, (uint64_t)rows * cuda->output.rows, h->logit_softcap, cuda->stream));
    }
    return KVL_OK;
}

static kvl_err find_best(struct kvl_cuda *cuda) {
    TRY(cudaMemsetAsync(cuda->best, 0, sizeof *cuda->best, cuda->stream));
    TRY(kvl_cuda_argmax(cuda->logits, cuda->model->hparams.vocab, cuda->best, cuda->stream));
    return KVL_OK;
}

/* Those of the batch's last logits_rows tokens that lie in this chunk. */
static kvl_err chunk_logits(const struct chunk *c) {
    struct kvl_cuda *cuda = c->cuda;
    const struct kvl_batch *batch = c->batch;
    const size_t vocab = cuda->model->hparams.vocab;
    const uint32_t first = batch->count - batch->logits_rows, end = c->offset + c->tokens;
    for (uint32_t row = first > c->offset ? first : c->offset; row < end;
         row += KVL_CUDA_LOGITS_ROWS) {
        const uint32_t rows = end - row < KVL_CUDA_LOGITS_ROWS ? end - row : KVL_CUDA_LOGITS_ROWS;
        TRY_ERR(logits_of(cuda, row - c->offset, rows));
        if (batch->logits_rows > 1) {
            TRY(cudaMemcpy2DAsync(batch->logits + (row - first) * vocab, vocab * sizeof(float),
                cuda->logits, (size_t)cuda->output.rows * sizeof(float), vocab * sizeof(float),
                rows, cudaMemcpyDeviceToHost, cuda->stream));
        }
    }
    return batch->logits_rows == 1 ? find_best(cuda) : KVL_OK;
}

/* ---- prefill ---- */

static void advance_word(struct kvl_cuda *cuda, uint32_t value) {
    __atomic_store_n(cuda->word, value, __ATOMIC_RELEASE);
}

static kvl_err wait_for_word(struct kvl_cuda *cuda, uint32_t value) {
    return kvl_cuda_driver_check(&cuda->driver, &cuda->last,
        cuda->driver.stream_wait_value32(
            cuda->stream, (CUdeviceptr)(uintptr_t)cuda->word, value, CU_STREAM_WAIT_VALUE_GEQ),
        "cuStreamWaitValue32");
}

/* Waits on the host for a layer's blocks. */
static kvl_err wait_for_layer(const struct chunk *c, uint32_t layer) {
    const struct kvl_cuda_trace *trace = c->cuda->trace;
    TRY_ERR(c->batch->before_layer(c->batch->before_layer_arg, layer));
    if (trace != NULL) {
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        trace->arrived_ns[layer] = (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
    }
    return KVL_OK;
}

/* The same, then lets the stream's wait for it end. */
static kvl_err release(const struct chunk *c, uint32_t layer) {
    TRY_ERR(wait_for_layer(c, layer));
    advance_word(c->cuda, c->cuda->word_value + layer + 1);
    return KVL_OK;
}

/* Layers are enqueued ahead of their blocks, but not so many that the launch queue could fill up:
 * a launch that blocks there would wait for a layer that only this thread can release. */
static kvl_err layers_behind_waits(const struct chunk *c) {
    struct kvl_cuda *cuda = c->cuda;
    const uint32_t layers = cuda->model->hparams.layers;
    uint32_t released = 0;
    for (uint32_t layer = 0; layer < layers; layer++) {
        if (layer - released == KVL_CUDA_LAYERS_AHEAD) {
            TRY_ERR(release(c, released));
            released++;
        }
        TRY_ERR(wait_for_word(cuda, cuda->word_value + layer + 1));
        TRY_ERR(enqueue_layer(c, layer));
    }
    for (; released < layers; released++) {
        TRY_ERR(release(c, released));
    }
    return KVL_OK;
}

/* Once a layer is there it stays, so only the first chunk has to wait for it.
 * A kernel's first launch loads it, for which the driver may wait until the GPU is idle: never, if
 * the stream waits for a word that this thread would set. So the first prefill of a kind does not.
 */
static kvl_err enqueue_layers(const struct chunk *c) {
    struct kvl_cuda *cuda = c->cuda;
    const struct kvl_batch *batch = c->batch;
    const bool asks = batch->before_layer != NULL && c->index == 0;
    if (asks && batch->layers_arrive && cuda->use_wait && is_warm(c)) {
        return layers_behind_waits(c);
    }
    for (uint32_t layer = 0; layer < cuda->model->hparams.layers; layer++) {
        if (asks) {
            TRY_ERR(wait_for_layer(c, layer));
        }
        TRY_ERR(enqueue_layer(c, layer));
    }
    return KVL_OK;
}

static kvl_err prefill_chunk(const struct chunk *c) {
    TRY_ERR(embed(c));
    TRY_ERR(enqueue_layers(c));
    return has_logits(c) ? chunk_logits(c) : KVL_OK;
}

/* Positions of the chunks, and the ids. */
static kvl_err send_prompt(struct kvl_cuda *cuda, const struct kvl_batch *batch) {
    for (uint32_t i = 0; i * KVL_CUDA_CHUNK_TOKENS < batch->count; i++) {
        cuda->host_prompt[i] = batch->position + i * KVL_CUDA_CHUNK_TOKENS;
    }
    memcpy(cuda->host_prompt + cuda->prompt_chunks_max, batch->tokens,
        batch->count * sizeof *batch->tokens);
    TRY(cudaMemcpyAsync(cuda->prompt, cuda->host_prompt,
        ((uint64_t)cuda->prompt_chunks_max + batch->count) * sizeof *cuda->prompt,
        cudaMemcpyHostToDevice, cuda->stream));
    return KVL_OK;
}

/* Whether every kernel of a layer is in a prefill without logits, whose last layer ends early: both
 * attentions, where there are windowed layers and others. */
static bool runs_all_but_logits(const struct kvl_hparams *h) {
    return h->layers > (kvl_layer_group_count(h) > 1 ? h->window_pattern : 1);
}

static kvl_err prefill(struct kvl_cuda *cuda, const struct kvl_batch *batch) {
    TRY_ERR(send_prompt(cuda, batch));
    struct chunk chunk = {.cuda = cuda, .batch = batch};
    while (chunk.offset < batch->count) {
        const uint32_t left = batch->count - chunk.offset;
        chunk.tokens = left < KVL_CUDA_CHUNK_TOKENS ? left : KVL_CUDA_CHUNK_TOKENS;
        chunk.rows = (chunk.tokens + KVL_CUDA_ROW_TILE - 1) / KVL_CUDA_ROW_TILE * KVL_CUDA_ROW_TILE;
        chunk.position = cuda->prompt + chunk.index;
        TRY_ERR(prefill_chunk(&chunk));
        chunk.offset += chunk.tokens;
        chunk.index++;
    }
    if (batch->logits_rows > 0 || runs_all_but_logits(&cuda->model->hparams)) {
        cuda->warm_block_tokens[batch->kv_dtype] = batch->block_tokens;
    }
    return KVL_OK;
}

/* ---- a call ---- */

static bool has_valid_outputs(const struct kvl_batch *batch) {
    if (batch->greedy_token != NULL && batch->logits_rows != 1) {
        return false;
    }
    return batch->logits_rows == 0 || batch->logits != NULL || batch->greedy_token != NULL;
}

static bool is_valid(const struct kvl_cuda *cuda, const struct kvl_batch *batch) {
    if (batch->count == 0 || batch->block_tokens == 0 || batch->logits_rows > batch->count ||
        kvl_kv_dtype_bytes(batch->kv_dtype) == 0 || batch->position > cuda->context_max ||
        batch->count > cuda->context_max - batch->position || !has_valid_outputs(batch) ||
        (batch->phase == KVL_PHASE_DECODE && batch->count != 1)) {
        return false;
    }
    if (batch->window_blocks == NULL && kvl_layer_group_count(&cuda->model->hparams) > 1) {
        return false;
    }
    for (uint32_t i = 0; i < batch->count; i++) {
        if (batch->tokens[i] >= cuda->model->hparams.vocab) {
            return false;
        }
    }
    return true;
}

static kvl_err send_step(struct kvl_cuda *cuda, const struct kvl_batch *batch) {
    const uint64_t end = (uint64_t)batch->position + batch->count;
    const uint64_t blocks = (end + batch->block_tokens - 1) / batch->block_tokens;
    struct kvl_cuda_step *step = cuda->host_step;
    step->token = batch->tokens[0];
    step->position = batch->position;
    memcpy(step->blocks, batch->blocks, blocks * sizeof *step->blocks);
    TRY(cudaMemcpyAsync(
        cuda->step, step, kvl_cuda_step_bytes(blocks), cudaMemcpyHostToDevice, cuda->stream));
    if (kvl_layer_group_count(&cuda->model->hparams) == 1) {
        return KVL_OK;
    }
    const uint64_t at = kvl_cuda_table_at(cuda, 1);
    memcpy(step->blocks + at, batch->window_blocks, blocks * sizeof *step->blocks);
    TRY(cudaMemcpyAsync(cuda->step->blocks + at, step->blocks + at, blocks * sizeof *step->blocks,
        cudaMemcpyHostToDevice, cuda->stream));
    return KVL_OK;
}

/* The single row of logits and its best token, to pinned memory. */
static kvl_err fetch(struct kvl_cuda *cuda, const struct kvl_batch *batch) {
    if (batch->logits_rows != 1) {
        return KVL_OK;
    }
    TRY(cudaMemcpyAsync(
        cuda->host_best, cuda->best, sizeof *cuda->best, cudaMemcpyDeviceToHost, cuda->stream));
    if (batch->logits != NULL) {
        TRY(cudaMemcpyAsync(cuda->host_logits, cuda->logits,
            cuda->model->hparams.vocab * sizeof(float), cudaMemcpyDeviceToHost, cuda->stream));
    }
    return KVL_OK;
}

static void deliver(const struct kvl_cuda *cuda, const struct kvl_batch *batch) {
    if (batch->logits_rows != 1) {
        return;
    }
    if (batch->greedy_token != NULL) {
        const uint32_t index = kvl_cuda_argmax_index(*cuda->host_best);
        *batch->greedy_token = index < cuda->model->hparams.vocab ? index : 0; /* all NaN */
    }
    if (batch->logits != NULL) {
        memcpy(batch->logits, cuda->host_logits, cuda->model->hparams.vocab * sizeof(float));
    }
}

static kvl_err enqueue(struct kvl_cuda *cuda, const struct kvl_batch *batch) {
    TRY_ERR(send_step(cuda, batch));
    TRY_ERR(batch->phase == KVL_PHASE_DECODE ? kvl_cuda_decode(cuda, batch) : prefill(cuda, batch));
    return fetch(cuda, batch);
}

static kvl_err forward_one(struct kvl_cuda *cuda, const struct kvl_batch *batch) {
    const kvl_err err = enqueue(cuda, batch);
    /* Nothing may be left waiting, whatever has happened. */
    cuda->word_value += cuda->model->hparams.layers;
    advance_word(cuda, cuda->word_value);
    const cudaError_t error = cudaStreamSynchronize(cuda->stream);
    if (err != KVL_OK) {
        return err;
    }
    TRY_ERR(kvl_cuda_check(&cuda->last, error, "a forward pass"));
    deliver(cuda, batch);
    return KVL_OK;
}

kvl_err kvl_cuda_forward(
    struct kvl_backend *backend, const struct kvl_batch *batches, uint32_t count) {
    struct kvl_cuda *cuda = kvl_cuda_of(backend);
    for (uint32_t i = 0; i < count; i++) {
        if (!is_valid(cuda, &batches[i])) {
            return KVL_ERR_INVALID;
        }
    }
    if (count == 0) {
        return KVL_ERR_INVALID;
    }
    TRY(cudaSetDevice(cuda->device_index));
    for (uint32_t i = 0; i < count; i++) {
        TRY_ERR(forward_one(cuda, &batches[i]));
    }
    return KVL_OK;
}
