/* backend.h - what computes the forward pass: one module per kind of device (cpu now, cuda later).
 *
 * A backend is row-invariant: a token's K, V and logits depend only on the tokens before it, never
 * on how many tokens one call holds, on alignment, threads, or on where the blocks came from.
 *
 * KV block layout (DESIGN.md, "Block layout"): one block holds block_tokens consecutive tokens of
 * all layers, contiguous: per layer K [kv_head][token][k_dim], then V [kv_head][token][v_dim],
 * layers in order, K after RoPE, elements of kv_dtype. Position p lives in blocks[p / block_tokens]
 * at token p % block_tokens. */
#ifndef KVL_BACKEND_H
#define KVL_BACKEND_H

#include <stdbool.h>
#include <stdint.h>

#include "gguf.h"
#include "kvl_err.h"

enum kvl_kv_dtype { KVL_KV_F16 = 1, KVL_KV_BF16 = 2, KVL_KV_F32 = 3 };

/* What the model is; filled from the file by kvl_model_load (model.h), immutable afterwards. */
struct kvl_hparams {
    char architecture[32];
    uint32_t layers;
    uint32_t width; /* embedding length */
    uint32_t ffn_width;
    uint32_t heads;
    uint32_t kv_heads; /* divides heads */
    uint32_t k_dim;    /* per head */
    uint32_t v_dim;
    uint32_t vocab;
    uint32_t context_max; /* trained context */
    uint32_t
        rope_dims; /* rotated dims of each head, pairs (2i, 2i+1) as llama's GGUF stores them */
    float rope_base;
    float rms_epsilon;
};

/* One forward call over `count` consecutive tokens that start at `position`. */
struct kvl_batch {
    const uint32_t *tokens;
    uint32_t count;
    uint32_t position;
    uint32_t block_tokens;
    enum kvl_kv_dtype kv_dtype;
    /* Block table: ceil((position + count) / block_tokens) base addresses. Blocks wholly below
     * `position` are only read; the others are written from `position` on. Borrowed for the call.
     */
    uint8_t *const *blocks;
    /* Logits of the last logits_rows tokens go to logits [logits_rows][vocab] f32; 0 rows: none. */
    uint32_t logits_rows;
    float *logits;
    /* Called on the calling thread, once per layer and call, before layer `layer` reads the block
     * table; may be NULL. Blocks until that layer of every block is there (a restore that is still
     * running); an error ends the forward pass. */
    kvl_err (*before_layer)(void *arg, uint32_t layer);
    void *before_layer_arg;
};

struct kvl_backend_options {
    uint32_t threads;     /* 0: as many as the process may run on */
    uint32_t context_max; /* tokens the caller will ever hold; 0: the model's trained context */
};

struct kvl_model;

struct kvl_backend; /* an instance; each module embeds it first */

struct kvl_backend_ops {
    const char *name;
    /* The arithmetic id of the block keys: changes whenever the bits change. Static storage. */
    const char *arithmetic_id;
    KVL_MUST_CHECK kvl_err (*create)(const struct kvl_model *model,
        const struct kvl_backend_options *options, struct kvl_backend **out,
        struct kvl_errmsg *msg);
    /* Threads: one caller at a time. Errors: what before_layer returned; INVALID (a token id
     * outside the vocabulary, positions beyond context_max, an empty batch); NOMEM. */
    KVL_MUST_CHECK kvl_err (*forward)(struct kvl_backend *backend, const struct kvl_batch *batch);
    void (*destroy)(struct kvl_backend *backend); /* NULL is fine */
};

struct kvl_backend {
    const struct kvl_backend_ops *ops;
};

/* The modules that this build has. kvl_backend_cpu is always there. */
extern const struct kvl_backend_ops kvl_backend_cpu;

/* Bytes of one block; 0 when it overflows. */
uint64_t kvl_block_bytes(
    const struct kvl_hparams *hparams, uint32_t block_tokens, enum kvl_kv_dtype kv_dtype);
uint32_t kvl_kv_dtype_bytes(enum kvl_kv_dtype kv_dtype);

#endif
