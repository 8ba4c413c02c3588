/* model.h - a model file made ready: hyperparameters, named weights, fingerprint.
 *
 * Adding an architecture is one row in model.c's table (metadata prefix, tensor names, switches),
 * not another forward pass.
 *
 * Owns:    a kvl_model owns the GGUF mapping; weights point into it. Lives until kvl_model_free.
 * Threads: immutable after load. */
#ifndef KVL_MODEL_H
#define KVL_MODEL_H

#include "backend.h"

struct kvl_weight {
    const struct kvl_gguf_tensor *tensor; /* NULL in a random model */
    uint32_t rows;                        /* outputs */
    uint32_t columns;                     /* inputs, contiguous in the file */
    uint32_t random_number;               /* in a random model: see random_weights.h */
    uint64_t random_seed;                 /* the model's */
};

struct kvl_layer {
    struct kvl_weight attention_norm, q, k, v, attention_out;
    struct kvl_weight ffn_norm, ffn_gate, ffn_up, ffn_down;
    /* Only some architectures have these; rows is 0 where a model has none. */
    struct kvl_weight q_bias, k_bias, v_bias; /* as long as the product that they are added to */
    struct kvl_weight q_norm, k_norm;         /* [k_dim]: RMS norm of every head, before RoPE */
    struct kvl_weight attention_post_norm;    /* [width]: RMS norm of what attention_out gives, */
    struct kvl_weight ffn_post_norm;          /* and ffn_down, before it is added to the stream */
};

struct kvl_model {
    struct kvl_gguf *gguf; /* NULL in a random model */
    bool is_random;        /* weights: kvl_random_value of this seed */
    uint64_t seed;
    struct kvl_hparams hparams;
    uint8_t fingerprint[32];
    struct kvl_weight embedding; /* [vocab][width] */
    struct kvl_weight output_norm;
    struct kvl_weight output; /* the embedding again when tied */
    struct kvl_layer *layers;
    double *rope_frequencies; /* owned, both kinds; hparams borrows them */
};

/* Errors: those of kvl_gguf_open; UNSUPPORTED (names the architecture, weight type or feature that
 * is not there: other architectures, kinds of RoPE scaling, biases, experts, ...); CORRUPT (a
 * missing tensor, a shape that contradicts the metadata, an impossible number). */
KVL_MUST_CHECK kvl_err kvl_model_load(
    const char *path, struct kvl_model **out, struct kvl_errmsg *msg);
/* The same from an opened file, which the model owns from then on; on an error it is closed. */
KVL_MUST_CHECK kvl_err kvl_model_of(
    struct kvl_gguf *gguf, struct kvl_model **out, struct kvl_errmsg *msg);
/* A model of a known shape with weights that random_weights.h makes from the seed, for figures and
 * tests where no model file can be had. shape: llama-8b, llama-1b, qwen2-7b, or a file that holds
 * one JSON object of the numbers in struct kvl_hparams (model_random.c says which).
 * Errors: NOTFOUND (no such file), INVALID (says what is wrong with the shape), NOMEM. */
KVL_MUST_CHECK kvl_err kvl_model_random(
    const char *shape, uint64_t seed, struct kvl_model **out, struct kvl_errmsg *msg);
void kvl_model_free(struct kvl_model *model); /* NULL is fine */

#endif
