/* cuda_backend.h - the CUDA backend's instance: weights on the GPU, activations of one chunk, what
 * a call needs beside them. Internal to engine/cuda, its tests and its benchmark.
 *
 * Numbers: the residual stream is f32; inputs of products are f16, their sums f32. All device
 * memory but blocks is taken at create. One stream does everything, in order, and every forward
 * call returns with it idle.
 *
 * Prefill works through chunks of at most KVL_CUDA_CHUNK_TOKENS tokens with cuBLASLt (blas.h);
 * decode has kernels of its own (gemv.cu) in a graph that is captured once a class of context
 * lengths. Several batches of one call run one after another, each as if it were alone, so its bits
 * are those of a call of its own; a shared prefix is still computed and stored only once. */
#ifndef KVL_CUDA_BACKEND_H
#define KVL_CUDA_BACKEND_H

#include "../model.h"
#include "attention.h"
#include "blas.h"
#include "cuda_err.h"
#include "driver.h"

enum {
    KVL_CUDA_CHUNK_TOKENS = 1024,
    KVL_CUDA_LOGITS_ROWS = 128, /* logits are computed for so many rows at once, always */
    KVL_CUDA_LAYERS_AHEAD = 4,  /* enqueued before they may start: a launch queue is finite */
    KVL_CUDA_GRAPHS = 40,       /* classes of context lengths: powers of two, and their halves */
};
_Static_assert(KVL_CUDA_CHUNK_TOKENS % KVL_CUDA_ROW_TILE == 0, "whole tiles");
_Static_assert(
    KVL_CUDA_CHUNK_TOKENS / KVL_CUDA_ROW_TILE <= KVL_CUDA_ROW_TILES_MAX, "a layout each");

struct kvl_cuda_matrix {
    __half *data;     /* [rows][columns] */
    uint32_t rows;    /* rounded up to 8; the added ones are zero */
    uint32_t columns; /* a multiple of 8 */
};

struct kvl_cuda_layer {
    float *attention_norm, *ffn_norm; /* [width] */
    /* [width], of what the halves of the layer give; NULL: that is added as it is. All layers have
     * both, or none has one. */
    float *attention_post_norm, *ffn_post_norm;
    float *qkv_bias;            /* [rows of qkv]; NULL: none */
    float *q_norm, *k_norm;     /* [k_dim]; NULL: none */
    struct kvl_cuda_matrix qkv; /* q, k and v one after another */
    struct kvl_cuda_matrix attention_out;
    struct kvl_cuda_matrix gate_up; /* gates, then ups */
    struct kvl_cuda_matrix down;
};

/* What changes from one decode step to the next: one copy to the device, and another where layers
 * of group 1 have a table of their own. */
struct kvl_cuda_step {
    uint32_t token;
    uint32_t position;
    uint8_t *blocks[]; /* of layer group 0 [context_max + 1], then of layer group 1 */
};

struct kvl_cuda_graph {
    cudaGraphExec_t exec; /* NULL: not captured yet */
    enum kvl_kv_dtype kv_dtype;
    uint32_t block_tokens;
    bool was_run; /* once without a graph, which loads the kernels */
};

struct kvl_cuda_slab {
    uint8_t *memory; /* 4096-aligned, within: */
    void *taken;
    struct kvl_cuda_slab *next;
};

struct kvl_cuda_mapping {
    uint8_t *base;
    uint64_t bytes;
    struct kvl_cuda_mapping *next;
};

/* One piece of device memory, cut into 256-byte aligned arrays. */
struct kvl_cuda_arena {
    uint8_t *base; /* NULL while only counting */
    uint64_t bytes;
};

/* When each layer's blocks had arrived and its kernels ran, in the first chunk of a prefill; for a
 * picture of how restoring and computing overlap. Arrays of one entry a layer, the caller's. */
struct kvl_cuda_trace {
    uint64_t *arrived_ns;       /* CLOCK_MONOTONIC, as before_layer returned */
    cudaEvent_t *began, *ended; /* recorded on the stream */
};

struct kvl_cuda {
    struct kvl_backend base;
    const struct kvl_model *model;
    struct kvl_cuda_calls driver;
    struct kvl_cuda_blas *blas;
    struct cudaDeviceProp device;
    int device_index;
    cudaStream_t stream;
    uint32_t context_max;
    uint32_t threads;
    struct kvl_errmsg last;             /* what the last failed call said */
    const struct kvl_cuda_trace *trace; /* NULL: nobody wants one */

    /* switches that tests turn */
    bool use_graphs;
    bool use_wait;     /* layers wait on `word`; else before_layer runs ahead of each enqueue */
    bool programmatic; /* launches of decode overlap (kernels compiled for 9.0 or later) */

    struct kvl_cuda_arena weights, scratch;
    struct kvl_cuda_matrix embedding, output;
    float *output_norm;
    struct kvl_cuda_layer *layers;
    double *frequencies, *windowed_frequencies; /* [rope_dims / 2]; mostly the same pointer */
    struct kvl_cuda_product qkv, attention_out, gate_up, down, logits_product;

    /* One chunk's activations, [token][...] */
    float *x;         /* [width] residual stream */
    __half *normed;   /* [width] */
    __half *qkv_rows; /* [qkv.rows] */
    __half *q;        /* [heads][k_dim] */
    __half *attended; /* [heads][v_dim] */
    __half *gate_up_rows;
    __half *ffn;            /* [ffn_width] */
    float *ffn_f32;         /* [ffn_width] of one token: decode */
    float *given;           /* [width] what half a layer adds, where that is normalized; or NULL */
    float *angles;          /* [rope_dims] */
    float *windowed_angles; /* of windowed layers; mostly the same pointer */
    float *logits;          /* [KVL_CUDA_LOGITS_ROWS][output.rows] */
    unsigned long long *best;
    void *attention_scratch;
    uint64_t attention_scratch_bytes;

    struct kvl_cuda_step *step; /* on the device */
    uint32_t *prompt;           /* on the device: positions of chunks, then ids of all tokens */
    uint32_t prompt_chunks_max;
    /* pinned */
    struct kvl_cuda_step *host_step;
    uint32_t *host_prompt;
    float *host_logits; /* [output.rows] */
    unsigned long long *host_best;
    volatile uint32_t *word; /* layers wait until it has reached their number */
    uint32_t word_value;

    uint32_t warm_block_tokens[KVL_KV_F32 + 1]; /* by KV type: see enqueue_layers; 0: none yet */
    struct kvl_cuda_graph graphs[KVL_CUDA_GRAPHS];
    struct kvl_cuda_slab *slabs;
    struct kvl_cuda_mapping *mappings;
};

static inline struct kvl_cuda *kvl_cuda_of(struct kvl_backend *backend) {
    return (struct kvl_cuda *)(void *)backend; /* base comes first */
}

static inline uint64_t kvl_cuda_step_bytes(uint64_t blocks) {
    return sizeof(struct kvl_cuda_step) + blocks * sizeof(uint8_t *);
}
/* Where a layer group's table begins in step->blocks, and how many entries there are in all. */
static inline uint64_t kvl_cuda_table_at(const struct kvl_cuda *cuda, uint32_t group) {
    return group * ((uint64_t)cuda->context_max + 1);
}
static inline uint64_t kvl_cuda_table_entries(const struct kvl_cuda *cuda) {
    return kvl_cuda_table_at(cuda, kvl_layer_group_count(&cuda->model->hparams));
}

/* weights.c: takes device memory for all weights and fills it. Blocks; uses options' threads.
 * Errors: NOMEM (says how much is needed and free), UNSUPPORTED, IO. */
KVL_MUST_CHECK kvl_err kvl_cuda_load_weights(struct kvl_cuda *cuda, struct kvl_errmsg *msg);
bool kvl_cuda_has_weight(const struct kvl_model *model, const struct kvl_weight *weight);
/* The next aligned piece; NULL while the arena only counts. */
void *kvl_cuda_take(struct kvl_cuda_arena *arena, uint64_t bytes);
/* cudaMalloc of what was counted, and starts afresh. what: "weights", for the message. */
KVL_MUST_CHECK kvl_err kvl_cuda_piece_open(
    struct kvl_cuda_arena *arena, const char *what, struct kvl_errmsg *msg);

/* stream_wait.c: sets use_wait. The environment can forbid it: KVL_CUDA_NO_WAIT,
 * CUDA_LAUNCH_BLOCKING (not empty, not 0). Leaves the stream idle. Errors: IO. */
KVL_MUST_CHECK kvl_err kvl_cuda_try_wait(struct kvl_cuda *cuda, struct kvl_errmsg *msg);
/* Whether a launch behind a wait of the stream returns; whatever the environment says. */
KVL_MUST_CHECK kvl_err kvl_cuda_try_launch_behind_wait(
    struct kvl_cuda *cuda, bool *returns, struct kvl_errmsg *msg);

/* forward.c */
KVL_MUST_CHECK kvl_err kvl_cuda_forward(
    struct kvl_backend *backend, const struct kvl_batch *batches, uint32_t count);
/* warm.c: launches, and so loads, the kernels that such batches need. */
KVL_MUST_CHECK kvl_err kvl_cuda_warm(
    struct kvl_cuda *cuda, uint32_t block_tokens, enum kvl_kv_dtype kv_dtype);

/* layer.c: what a call's layer has; the caller fills in tokens, position and position_max. */
struct kvl_cuda_attention kvl_cuda_attention_of(
    const struct kvl_cuda *cuda, const struct kvl_batch *batch, uint32_t layer);
struct kvl_cuda_place kvl_cuda_place_of(
    const struct kvl_cuda *cuda, const struct kvl_batch *batch, uint32_t layer);
/* The angles of tokens from *position (device memory) on, for all kinds of layers. */
KVL_MUST_CHECK kvl_err kvl_cuda_find_angles(
    struct kvl_cuda *cuda, const uint32_t *position, uint32_t tokens);
/* x += norm of what half a layer has given. */
KVL_MUST_CHECK kvl_err kvl_cuda_join_given(struct kvl_cuda *cuda, const float *norm, uint32_t rows);

/* decode.c: a step of one token, its logits in cuda->logits and the best of them in cuda->best. */
KVL_MUST_CHECK kvl_err kvl_cuda_decode(struct kvl_cuda *cuda, const struct kvl_batch *batch);
void kvl_cuda_forget_graphs(struct kvl_cuda *cuda);

/* memory.c: the operations of backend.h on device memory. */
KVL_MUST_CHECK kvl_err kvl_cuda_map_arena(struct kvl_backend *backend,
    const struct kvl_arena_info *arena, int fd, uint8_t **base, struct kvl_errmsg *msg);
void kvl_cuda_unmap_arena(struct kvl_backend *backend, uint8_t *base, uint64_t bytes);
KVL_MUST_CHECK kvl_err kvl_cuda_take_memory(
    struct kvl_backend *backend, uint64_t bytes, uint8_t **out);
void kvl_cuda_give_memory_back(struct kvl_backend *backend, uint8_t *memory, uint64_t bytes);
KVL_MUST_CHECK kvl_err kvl_cuda_copy(
    struct kvl_backend *backend, uint8_t *to, const uint8_t *from, struct kvl_runs runs);
KVL_MUST_CHECK kvl_err kvl_cuda_zero(struct kvl_backend *backend, uint8_t *to, uint64_t bytes);
KVL_MUST_CHECK kvl_err kvl_cuda_finish(struct kvl_backend *backend);
void kvl_cuda_free_memory(struct kvl_cuda *cuda); /* what was not given back */

#endif
