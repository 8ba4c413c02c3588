/* backend.h - what computes the forward pass: one module per kind of device (cpu, cuda).
 *
 * A backend is row-invariant: a token's K, V and logits depend only on the tokens before it, never
 * on how many tokens one call holds, on alignment, threads, or on where the blocks came from.
 *
 * KV block layout (DESIGN.md, "Block layout"): one block holds block_tokens consecutive tokens of
 * all layers of a group, contiguous: per layer K [kv_head][token][k_dim], then V
 * [kv_head][token][v_dim], layers in order, K after RoPE, elements of kv_dtype. Position p lives in
 * blocks[p / block_tokens] at token p % block_tokens. */
#ifndef KVL_BACKEND_H
#define KVL_BACKEND_H

#include <stdbool.h>
#include <stdint.h>

#include "gguf.h"
#include "kvl_err.h"

/* The CPU backend gives the same bits in both. CUDA has kernels of its own for decoding one token;
 * tokens of a prompt are always prefilled, also when a restore leaves only one of them. */
enum kvl_phase { KVL_PHASE_PREFILL, KVL_PHASE_DECODE };

enum kvl_kv_dtype { KVL_KV_F16 = 1, KVL_KV_BF16 = 2, KVL_KV_F32 = 3 };

/* Which two elements of a head turn together by RoPE; the rotated ones come first. */
enum kvl_rope_pairing {
    KVL_ROPE_ADJACENT = 0, /* 2i and 2i + 1: llama, whose GGUF files store Q and K so */
    KVL_ROPE_HALVES = 1,   /* i and i + rope_dims / 2: "NEOX", the other architectures */
};

/* What lies between the gate and the product with `up` in the feed-forward. */
enum kvl_activation {
    KVL_ACTIVATION_SILU = 0,
    KVL_ACTIVATION_GELU_TANH = 1, /* 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) */
};

/* What the model is; filled from the file by kvl_model_load (model.h), immutable afterwards. A
 * backend refuses at create what it does not compute. */
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
    uint32_t rope_dims;   /* rotated dims of each head, the first ones */
    enum kvl_rope_pairing rope_pairing;
    float rope_base; /* already in the frequencies, as is every kind of scaling */
    /* [rope_dims / 2], radians a position: pair i at position p turns by p * rope_frequencies[i],
     * a product in double; lives as long as the model. Cosines and sines are then multiplied by
     * rope_magnitude (1 but for YaRN). */
    const double *rope_frequencies;
    float rope_magnitude;
    const double *rope_frequencies_windowed; /* of windowed layers; mostly the same pointer */
    bool rope_scaled; /* frequencies or magnitude are others than rope_base alone gives */
    float rms_epsilon;
    float embedding_scale;   /* multiplies the tokens' embeddings; 1: leave them */
    float attention_scale;   /* of q . k; 1 / sqrt(k_dim) unless the architecture says otherwise */
    float attention_softcap; /* scores s become cap * tanh(s / cap); 0: none */
    float logit_softcap;     /* likewise the logits */
    enum kvl_activation activation;
    uint32_t window; /* tokens that a windowed layer sees, its own included; 0: no such layer */
    uint32_t window_pattern; /* the last of every so many layers sees everything */
};

/* Unlike layers form groups, each with blocks of its own. Group 0 are the layers that see
 * everything, group 1 the windowed ones; where all are alike there is group 0 alone. */
#define KVL_LAYER_GROUPS_MAX 2u
struct kvl_layer_group {
    uint32_t layers; /* 0: there is no such group */
    uint32_t window; /* tokens that each sees, its own included; 0: all before it */
};
struct kvl_layer_place {
    uint32_t group;
    uint32_t index; /* among the group's layers */
};

/* `count` consecutive tokens of one sequence that start at `position`, in a forward call. */
struct kvl_batch {
    const uint32_t *tokens;
    uint32_t count; /* DECODE: 1 */
    uint32_t position;
    enum kvl_phase phase;
    uint32_t block_tokens;
    enum kvl_kv_dtype kv_dtype;
    /* Block table: ceil((position + count) / block_tokens) base addresses, in the memory of the
     * backend's device (see the memory operations below). Blocks wholly below
     * `position` are only read; the others are written from `position` on. Borrowed for the call.
     */
    uint8_t *const *blocks; /* of layer group 0 */
    /* The same of layer group 1, in a model that has one. What lies wholly behind the window of
     * `position` counts for nothing, but any finite numbers (zeros) must be there. */
    uint8_t *const *window_blocks;
    /* Logits of the last logits_rows tokens go to logits [logits_rows][vocab] f32; 0 rows: none. */
    uint32_t logits_rows;
    float *logits; /* host memory */
    /* With logits_rows 1, may be set: the index of the largest logit (the lowest of equals) goes
     * here. logits may then be NULL, which spares the copy from a device. */
    uint32_t *greedy_token;
    /* Called on the calling thread, once per layer and batch, before layer `layer` reads the block
     * table; may be NULL. Blocks until that layer of every block is there (a restore that is still
     * running); an error ends the forward pass. */
    kvl_err (*before_layer)(void *arg, uint32_t layer);
    void *before_layer_arg;
    /* A restore is running, so before_layer may block. False: it returns at once, and is called for
     * what else the caller does there; nothing need be arranged to wait for it. */
    bool layers_arrive;
};

struct kvl_backend_options {
    uint32_t threads;     /* 0: as many as the process may run on */
    uint32_t context_max; /* tokens the caller will ever hold; 0: the model's trained context */
    uint32_t batches_max; /* of one forward call; 0: one */
    uint32_t device;      /* which one, where there are several: cuda:N */
    /* What the first batches will be like, block_tokens 0: unknown. CUDA loads its kernels for that
     * while it is created, so that no first token waits for it. */
    enum kvl_kv_dtype kv_dtype;
    uint32_t block_tokens;
    /* The daemon's tiers work in this process too: their driver calls may wait until the GPU is
     * idle and keep this thread out of the driver meanwhile, so nothing on the GPU may wait for it.
     */
    bool with_daemon;
};

/* `count` runs of `bytes` bytes, `stride_bytes` apart on both sides. */
struct kvl_runs {
    uint64_t bytes, count, stride_bytes;
};
struct kvl_arena_info;

struct kvl_model;

struct kvl_backend; /* an instance; each module embeds it first */

struct kvl_backend_ops {
    const char *name;
    KVL_MUST_CHECK kvl_err (*create)(const struct kvl_model *model,
        const struct kvl_backend_options *options, struct kvl_backend **out,
        struct kvl_errmsg *msg);
    /* Computes all batches, each of a sequence of its own: they may read the same blocks, but none
     * writes one that another reads or writes. Whether they run together or one after another is
     * the backend's business; the bits are those of each alone. After an error it is unknown which
     * were computed: the same call can be made again.
     * Threads: one caller at a time. Errors: what a before_layer returned; INVALID (a token id
     * outside the vocabulary, positions beyond context_max, an empty batch, none or more of them
     * than batches_max); NOMEM. */
    KVL_MUST_CHECK kvl_err (*forward)(
        struct kvl_backend *backend, const struct kvl_batch *batches, uint32_t count);
    void (*destroy)(struct kvl_backend *backend); /* NULL is fine */

    /* ---- the memory that blocks live in. Addresses are the device's: only these functions and
     * forward reach through them. Same thread as forward. ---- */

    /* Maps a daemon's arena; the descriptor is borrowed. NULL: arenas are the CPU's, and the client
     * library has mapped them. Errors: UNSUPPORTED (memory of another device), IO. */
    KVL_MUST_CHECK kvl_err (*map_arena)(struct kvl_backend *backend,
        const struct kvl_arena_info *arena, int fd, uint8_t **base, struct kvl_errmsg *msg);
    void (*unmap_arena)(struct kvl_backend *backend, uint8_t *base, uint64_t bytes);
    /* A slab for private blocks, 4096-aligned, content undefined. NOMEM. */
    KVL_MUST_CHECK kvl_err (*take_memory)(
        struct kvl_backend *backend, uint64_t bytes, uint8_t **out);
    void (*give_memory_back)(struct kvl_backend *backend, uint8_t *memory, uint64_t bytes);
    /* Done when it returns, or done in the order of these calls, before what the next forward call
     * does, and complete when that returns; ranges do not overlap. Errors: IO (a lost device). */
    KVL_MUST_CHECK kvl_err (*copy)(
        struct kvl_backend *backend, uint8_t *to, const uint8_t *from, struct kvl_runs runs);
    KVL_MUST_CHECK kvl_err (*zero)(struct kvl_backend *backend, uint8_t *to, uint64_t bytes);
    /* Returns when all copies and zeroings have been done: before a seal of what they wrote. */
    KVL_MUST_CHECK kvl_err (*finish)(struct kvl_backend *backend);
};

struct kvl_backend {
    const struct kvl_backend_ops *ops;
    /* The arithmetic id of the block keys: changes whenever the bits change; set by create. */
    char arithmetic_id[96];
    /* copy and finish may also be called from inside before_layer, and are done then before the
     * layer's own reads. False where they would wait for layers that forward still holds back. */
    bool copies_within_forward;
    uint32_t chunk_tokens; /* how many tokens of a prompt it likes in one call; 0: no wish */
};

/* The modules that this build has. kvl_backend_cpu is always there; kvl_backend_cuda is NULL in a
 * build without CUDA. */
extern const struct kvl_backend_ops kvl_backend_cpu;
extern const struct kvl_backend_ops *const kvl_backend_cuda;

/* How many tokens, its own included, a token sees in that layer; 0: all before it. */
static inline uint32_t kvl_layer_window(const struct kvl_hparams *hparams, uint32_t layer) {
    const bool is_full =
        hparams->window == 0 || layer % hparams->window_pattern == hparams->window_pattern - 1;
    return is_full ? 0 : hparams->window;
}

uint32_t kvl_layer_group_count(const struct kvl_hparams *hparams);
struct kvl_layer_group kvl_layer_group(const struct kvl_hparams *hparams, uint32_t group);
struct kvl_layer_place kvl_layer_place(const struct kvl_hparams *hparams, uint32_t layer);

/* Bytes of one block of the group; 0 when it overflows. */
uint64_t kvl_group_block_bytes(const struct kvl_hparams *hparams, uint32_t group,
    uint32_t block_tokens, enum kvl_kv_dtype kv_dtype);
/* Bytes of a block of each group; 0 when it overflows. */
uint64_t kvl_block_bytes(
    const struct kvl_hparams *hparams, uint32_t block_tokens, enum kvl_kv_dtype kv_dtype);
uint32_t kvl_kv_dtype_bytes(enum kvl_kv_dtype kv_dtype);

#endif
