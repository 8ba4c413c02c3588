/* model_fuzz.c - any bytes as a model: they are refused with a message, or the CPU backend computes
 * with them inside the memory that it is given. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include "model.h"

enum { TOKENS = 75, BLOCK_TOKENS = 16, BLOCKS = 5, SIZE_MAX_FUZZED = 1024 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t data_bytes);

static volatile float sink; /* keeps the reads */

static void *allocate(uint64_t bytes) {
    void *memory = malloc(bytes);
    if (memory == NULL) {
        abort();
    }
    return memory;
}

static void compute(struct kvl_backend *backend, const struct kvl_hparams *h) {
    uint32_t tokens[TOKENS];
    uint8_t *blocks[BLOCKS], *window_blocks[BLOCKS];
    for (uint32_t i = 0; i < TOKENS; i++) {
        tokens[i] = i % h->vocab;
    }
    for (uint32_t i = 0; i < BLOCKS; i++) { /* each alone, so that a sanitizer sees its ends */
        blocks[i] = allocate(kvl_group_block_bytes(h, 0, BLOCK_TOKENS, KVL_KV_F16));
        window_blocks[i] = allocate(kvl_group_block_bytes(h, 1, BLOCK_TOKENS, KVL_KV_F16));
    }
    float *logits = allocate(h->vocab * sizeof *logits);
    struct kvl_batch batch = {.tokens = tokens,
        .count = TOKENS - 1,
        .block_tokens = BLOCK_TOKENS,
        .kv_dtype = KVL_KV_F16,
        .blocks = blocks,
        .window_blocks = window_blocks};
    kvl_err err = backend->ops->forward(backend, &batch, 1);
    batch.tokens = tokens + batch.count;
    batch.position = batch.count;
    batch.count = batch.logits_rows = 1;
    batch.logits = logits;
    if (err != KVL_OK || backend->ops->forward(backend, &batch, 1) != KVL_OK) {
        abort(); /* a model that was loaded can be computed */
    }
    for (uint32_t i = 0; i < h->vocab; i++) {
        sink = logits[i];
    }
    free(logits);
    for (uint32_t i = 0; i < BLOCKS; i++) {
        free(blocks[i]);
        free(window_blocks[i]);
    }
}

/* Larger ones only take time. */
static bool is_small(const struct kvl_hparams *h) {
    return h->layers <= 8 && h->width <= SIZE_MAX_FUZZED && h->ffn_width <= SIZE_MAX_FUZZED &&
           h->vocab <= SIZE_MAX_FUZZED && (uint64_t)h->heads * h->k_dim <= SIZE_MAX_FUZZED &&
           (uint64_t)h->heads * h->v_dim <= SIZE_MAX_FUZZED;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t data_bytes) {
    struct kvl_gguf *gguf;
    struct kvl_model *model;
    struct kvl_backend *backend;
    struct kvl_errmsg msg;
    if (kvl_gguf_open_memory(data, data_bytes, "fuzz", &gguf, &msg) != KVL_OK ||
        kvl_model_of(gguf, &model, &msg) != KVL_OK) {
        return 0;
    }
    const struct kvl_backend_options options = {.threads = 1, .context_max = TOKENS};
    if (is_small(&model->hparams)) {
        if (kvl_backend_cpu.create(model, &options, &backend, &msg) != KVL_OK) {
            abort();
        }
        compute(backend, &model->hparams);
        backend->ops->destroy(backend);
    }
    kvl_model_free(model);
    return 0;
}
