/* tiny_model.h - random models of a few KiB for the tests, and a plain forward pass in double
 * that shares no code with the engine but kvl_dequantize_row (held to an outside reference by
 * golden_weights_test).
 *
 * Threads: none. Everything aborts when memory or the temporary folder is not there. */
#ifndef KVL_TESTS_TINY_MODEL_H
#define KVL_TESTS_TINY_MODEL_H

#include <stdbool.h>
#include <stdint.h>

#include "gguf_writer.h"

struct tiny_shape {
    const char *architecture; /* llama, qwen2, qwen3, gemma, gemma2 or gemma3 (window: 70 tokens) */
    uint32_t layers, width, ffn_width, heads, kv_heads, k_dim, v_dim, rope_dims, vocab;
    uint32_t type; /* of the matrices, ggml's number */
    uint32_t embedding_type;
    bool tied;
    uint64_t seed;
};

/* llama: 2 layers, 3 query heads to a KV head, width 96, F32. */
struct tiny_shape tiny_shape_default(void);

/* A writer with metadata and all tensors; the test may add to it before it saves. */
void tiny_model_write(struct gguf_writer *writer, const struct tiny_shape *shape);
/* Writes the model and returns its path, to be freed; the file is removed at exit. */
char *tiny_model_file(const struct tiny_shape *shape);
char *tiny_save(struct gguf_writer *writer);

/* logits[count][vocab] of the tokens, in double, from the same random weights. */
void tiny_model_reference(
    const struct tiny_shape *shape, const uint32_t *tokens, uint32_t count, double *logits);

/* Uniform in [-1, 1). */
float tiny_random(uint64_t *state);
/* Random encoded weights of about the given magnitude, a whole number of blocks; to be freed. */
uint8_t *tiny_weights(
    uint32_t type, uint64_t count, double magnitude, uint64_t *seed, uint64_t *bytes);

#endif
