/* attention_world.h - keys, values and queries for attention tests, on a GPU or simulated, and what
 * they should give.
 *
 * Blocks stand in random order in one arena that is NaN everywhere else: between blocks, in the
 * layer before, and in tokens that were not written yet. Nothing of that may show in a result.
 * Blocks that lie wholly behind the window of a call's first token are NULL in the table.
 *
 * Tolerance: elements of 16 bits are rounded relatively by at most u = 2^-11 (f16; f32 keys and
 * values are rounded to it) or 2^-9 (bf16). What is rounded on the way (queries, keys, values,
 * probabilities) reaches an output as a sum of independent errors, each about u p_i |v_i|, so its
 * size is u N with N = sqrt(sum of p_i^2 v_i^2). Allowed: 16 u N, the result's own rounding to
 * f16, and 1e-5 for probabilities that are subnormal in f16. A wrong column, row or mask moves a
 * result by about N. */
#ifndef ATTENTION_WORLD_H
#define ATTENTION_WORLD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "cuda/attention.h"

/* Where kernels run. Each fails the test on an error. */
struct attention_device {
    void *(*take)(size_t bytes); /* 4096-aligned */
    void (*give)(void *memory);
    void (*put)(void *device, const void *host, size_t bytes);
    void (*get)(void *host, const void *device, size_t bytes);
    /* Runs and waits. */
    void (*attend)(const struct kvl_cuda_attention *attention, enum kvl_phase phase);
    /* The kernels may read only these ranges through their load functions; may be NULL. */
    void (*readable)(const void *base, size_t bytes);
    void (*forget_readable)(void);
};

struct attention_shape {
    uint32_t heads, kv_heads, k_dim, v_dim, block_tokens;
    enum kvl_kv_dtype kv_dtype;
    uint32_t context; /* tokens in all */
};

struct attention_world {
    const struct attention_device *device;
    struct attention_shape shape;
    float *q, *k, *v;          /* [context][heads][k_dim], [kv_head][context][dim]; as stored */
    uint16_t *q_half;          /* q as f16 */
    uint32_t window;           /* of calls and checks to come; 0: none */
    float softcap;             /* likewise */
    uint32_t shared_bytes_max; /* likewise; 0: any */
    uint32_t written;          /* tokens in the arena */
    uint64_t layer_bytes;      /* of a block */
    uint64_t slot_bytes;       /* from block to block in the arena */
    uint32_t blocks;
    uint32_t *slot_of; /* block to slot */
    uint8_t *arena_host, *arena;
    uint8_t **table; /* device; on the host: */
    uint8_t **table_host;
    void *q_device, *out_device, *scratch, *position;
    uint64_t scratch_bytes, out_bytes;
};

void attention_world_init(struct attention_world *world, const struct attention_device *device,
    const struct attention_shape *shape, uint64_t seed);
void attention_world_deinit(struct attention_world *world);

/* One call: tokens [first, first + tokens) attend with nothing behind them written. */
struct attention_call {
    uint32_t first, tokens;
    enum kvl_phase phase;
    uint32_t position_max; /* 0: first + tokens */
    enum kvl_attention_way way;
    uint64_t scratch_bytes; /* 0: as much as kvl_cuda_attention_scratch_bytes asks for */
};
/* Results as f16 [tokens][heads][v_dim] into `out`; also checks that nothing else was written. */
void attention_run(struct attention_world *world, const struct attention_call *call, uint16_t *out);
/* Compares token `token` of the context, all heads. `out` is that token's result. */
void attention_check_token(
    const struct attention_world *world, uint32_t token, const uint16_t *out);
/* Elements of a token's result. */
uint32_t attention_token_elements(const struct attention_world *world);
/* What is compared to the bit, with the first differences in words. */
void attention_check_equal(const struct attention_world *world, uint32_t first_token,
    const uint16_t *got, const uint16_t *expected, uint32_t tokens, const char *what);

#endif
