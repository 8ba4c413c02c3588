/* cpu.h - the CPU backend's instance: packed weights, threads, scratch memory.
 *
 * All memory is taken at create; a forward pass allocates nothing. The tokens of all batches of a
 * call, one after another, are cut into chunks of at most chunk_rows rows, which the kernels' row
 * invariance makes invisible. A chunk has one span for each batch that it holds tokens of:
 *
 *   batches   | 1 token | 1 token | 512 tokens      |
 *   rows        0         1         2 ...              of x, normed, q, ...
 *   spans     | 0       | 1       | 2               |
 *
 * Products run over all rows of a chunk; positions and blocks are the business of each span. */
#ifndef KVL_CPU_H
#define KVL_CPU_H

#include "../model.h"
#include "kernels.h"
#include "pack.h"
#include "pool.h"

enum {
    KVL_CHUNK_TOKENS = 512,         /* of one sequence, in a chunk; each other adds a row */
    KVL_MATMUL_TOKENS = 96,         /* tokens of a matmul unit: their rows stay in L2 */
    KVL_STRIP_COLUMNS = 256,        /* k that are unpacked at once: they stay in L1 */
    KVL_PARTITION_TOKENS = 256,     /* part of the context with a softmax of its own, from 0 on */
    KVL_QUERY_ROWS = 96,            /* query rows that share one converted tile of keys, about */
    KVL_SPLIT_PARTITIONS_MIN = 256, /* (token, partition) pairs attended in parallel, at least */
};

struct kvl_cpu_layer {
    float *attention_norm; /* [width] */
    float *ffn_norm;       /* [width] */
    /* NULL where the model has none (struct kvl_layer) */
    float *q_bias, *k_bias, *v_bias;            /* [heads or kv_heads][k_dim or v_dim] */
    float *q_norm, *k_norm;                     /* [k_dim] */
    float *attention_post_norm, *ffn_post_norm; /* [width] */
    struct kvl_packed q, k, v, attention_out;
    struct kvl_packed ffn_gate, ffn_up, ffn_down;
};

/* Consecutive tokens of one batch in a chunk, and how attention takes them (attention.h). */
struct kvl_cpu_span {
    const struct kvl_batch *batch;
    uint32_t offset;   /* of the first token, in the batch */
    uint32_t position; /* of the first token */
    uint32_t tokens;
    uint32_t row;        /* of the first token, in the chunk */
    uint32_t partitions; /* attended in parallel; 0: a unit goes through all of them */
    uint32_t first_unit; /* in a layer's attention */
    size_t split_row;    /* of its rows in cpu->split, with partitions */
};

/* Cosine and sine of each token's position for every rotated dimension, where the kernels of RoPE
 * want them: [token][rope_dims]. */
struct kvl_cpu_angles {
    float *cosines, *sines;
};

/* What attention keeps for `rows` query rows over a part of the context. */
struct kvl_attention_part {
    struct kvl_softmax *softmax; /* [rows] */
    float *out;                  /* [rows][v_stride] */
};

/* One thread's own. */
struct kvl_cpu_scratch {
    float *strip;  /* [KVL_STRIP_COLUMNS][16] unpacked weights */
    float *tile_a; /* [KVL_MATMUL_TOKENS][32] outputs */
    float *tile_b;
    float *queries; /* [rows][k_dim] scaled queries of one KV head */
    float *keys;    /* [4][k_dim][16] */
    float *values;  /* [v_stride / 16][64][16] */
    float *scores;  /* [rows][64] */
    struct kvl_attention_part part, total;
};

struct kvl_cpu {
    struct kvl_backend base;
    const struct kvl_model *model;
    const struct kvl_cpu_kernels *kernels;
    struct kvl_pool *pool;
    uint32_t context_max;
    uint32_t batches_max; /* of one call */
    uint32_t chunk_rows;

    struct kvl_cpu_layer *layers;
    float *output_norm;
    struct kvl_packed output;
    struct kvl_packed_memory packed; /* of all of these */

    struct kvl_cpu_span *spans; /* [batches_max], of the chunk under way */
    /* [batches_max][kv_heads] partitions that are not attended yet, of spans that have them. */
    _Atomic uint32_t *partitions_left;
    /* One chunk's activations, [row][...] */
    float *x;                                      /* [width] residual stream */
    float *normed;                                 /* [width] */
    float *q;                                      /* [heads][k_dim] */
    float *k;                                      /* [kv_heads][k_dim] */
    float *v;                                      /* [kv_heads][v_dim] */
    float *attended;                               /* [heads][v_dim] */
    float *ffn;                                    /* [ffn_width] */
    struct kvl_cpu_angles angles, windowed_angles; /* of windowed layers; mostly the same */
    float *logits;                                 /* [batches_max][vocab] of one token each */

    uint32_t group;        /* query heads per KV head */
    uint32_t v_stride;     /* v_dim rounded up to 16 */
    uint32_t query_tokens; /* tokens of an attention unit */
    uint32_t split_pairs;  /* room in `split`: (token, partition) pairs of every head */
    struct kvl_attention_part split;
    struct kvl_cpu_scratch *scratch; /* [threads] */
    float *arena;                    /* all of the above, but for the weights */
    uint64_t arena_bytes;
};

/* As kvl_backend_cpu.create, with the kernels chosen by the caller. */
KVL_MUST_CHECK kvl_err kvl_cpu_create(const struct kvl_cpu_kernels *kernels,
    const struct kvl_model *model, const struct kvl_backend_options *options,
    struct kvl_backend **out, struct kvl_errmsg *msg);
KVL_MUST_CHECK kvl_err kvl_cpu_forward(
    struct kvl_backend *backend, const struct kvl_batch *batches, uint32_t count);

/* memory.c: the operations of backend.h on host memory. */
KVL_MUST_CHECK kvl_err kvl_cpu_take_memory(
    struct kvl_backend *backend, uint64_t bytes, uint8_t **out);
void kvl_cpu_give_memory_back(struct kvl_backend *backend, uint8_t *memory, uint64_t bytes);
KVL_MUST_CHECK kvl_err kvl_cpu_copy(
    struct kvl_backend *backend, uint8_t *to, const uint8_t *from, struct kvl_runs runs);
KVL_MUST_CHECK kvl_err kvl_cpu_zero(struct kvl_backend *backend, uint8_t *to, uint64_t bytes);
KVL_MUST_CHECK kvl_err kvl_cpu_finish(struct kvl_backend *backend);

#endif
