/* kernels.h - launches of the backend's own kernels but for attention (attention.h).
 *
 * All enqueue on the stream and return what the launch says; pointers are device memory, rows are
 * contiguous unless a stride says otherwise. One thread block or warp computes a row's every sum in
 * one fixed order, so a row's bits depend on nothing around it. */
#ifndef KVL_CUDA_KERNELS_H
#define KVL_CUDA_KERNELS_H

#include "attention.h"

#ifdef __cplusplus
extern "C" {
#endif

/* x[rows][width] = embedding[token] * scale; rows from `tokens` on are zeroed. */
struct kvl_cuda_embed {
    const __half *embedding; /* [vocab][width] */
    const uint32_t *ids;     /* [tokens] */
    float *x;
    float scale;
    uint32_t width, tokens, rows;
};
cudaError_t kvl_cuda_embed(const struct kvl_cuda_embed *args, cudaStream_t stream);

/* angles[tokens][pairs] = (cos, sin) of (position + t) * frequency, times magnitude. */
struct kvl_cuda_angles {
    const double *frequencies; /* [pairs] */
    const uint32_t *position;
    float *angles; /* pairs of floats */
    float magnitude;
    uint32_t pairs, tokens;
};
cudaError_t kvl_cuda_angles(const struct kvl_cuda_angles *args, cudaStream_t stream);

/* out = f16 of x / sqrt(mean of squares + epsilon) * weights; width is a multiple of 8. */
struct kvl_cuda_norm {
    const float *x; /* [rows][width] */
    const float *weights;
    __half *out;
    float epsilon;
    uint32_t width, rows;
};
cudaError_t kvl_cuda_norm(const struct kvl_cuda_norm *args, cudaStream_t stream);

/* x += given / sqrt(mean of squares of given + epsilon) * weights; width is a multiple of 8. */
struct kvl_cuda_join {
    float *x;           /* [rows][width] */
    const float *given; /* [rows][width] */
    const float *weights;
    float epsilon;
    uint32_t width, rows;
};
cudaError_t kvl_cuda_join(const struct kvl_cuda_join *args, cudaStream_t stream);

/* Takes the rows of the QKV product apart: adds biases, normalizes heads where the model does,
 * rotates q and k, and writes k and v into the blocks. */
struct kvl_cuda_place {
    const __half *qkv; /* [tokens][stride]: q heads, k heads, v heads */
    uint32_t stride;
    const float *bias;            /* as a row of qkv; NULL: none */
    const float *q_norm, *k_norm; /* [k_dim]; NULL: none */
    const float *angles;          /* of kvl_cuda_angles */
    __half *q;                    /* [tokens][heads][k_dim] */
    uint8_t *const *blocks;       /* device array */
    const uint32_t *position;     /* of the first token */
    uint64_t layer_offset_bytes;  /* within a block */
    enum kvl_kv_dtype kv_dtype;
    float epsilon;
    uint32_t block_tokens, heads, kv_heads, k_dim, v_dim, rope_dims, tokens;
    bool halves; /* pairs are i and i + rope_dims / 2, not 2i and 2i + 1 */
};
cudaError_t kvl_cuda_place(const struct kvl_cuda_place *args, cudaStream_t stream);

/* out[rows][width] = activation(gate) * up; gate_up: [rows][2 width], gates first; width is a
 * multiple of 8. Values that f16 does not hold become its largest. */
struct kvl_cuda_gate {
    const __half *gate_up;
    __half *out;
    uint32_t width, rows;
    bool gelu;
};
cudaError_t kvl_cuda_gate(const struct kvl_cuda_gate *args, cudaStream_t stream);

/* logits = cap * tanh(logits / cap) */
cudaError_t kvl_cuda_softcap(float *logits, uint64_t count, float cap, cudaStream_t stream);

/* *best (zero before): the largest logit in order-keeping bits above ~index, so that of equals the
 * first wins; NaN loses to all. */
cudaError_t kvl_cuda_argmax(
    const float *logits, uint32_t count, unsigned long long *best, cudaStream_t stream);
static inline uint32_t kvl_cuda_argmax_index(unsigned long long best) {
    return ~(uint32_t)best;
}

/* Matrix times vector for decoding one token: the weights are read once, from front to back. */
enum kvl_cuda_gemv_kind {
    KVL_CUDA_GEMV_NORM_F16,  /* y16 = w (x normalized) */
    KVL_CUDA_GEMV_NORM_F32,  /* y = w (x normalized) */
    KVL_CUDA_GEMV_NORM_GATE, /* y = activation(gate) * up; w: gates first, rows counts both */
    KVL_CUDA_GEMV_ADD_F16,   /* y += w x16 */
    KVL_CUDA_GEMV_ADD_F32,   /* y += w x */
    KVL_CUDA_GEMV_SET_F16,   /* y = w x16 */
    KVL_CUDA_GEMV_SET_F32,   /* y = w x */
};
struct kvl_cuda_gemv {
    enum kvl_cuda_gemv_kind kind;
    const __half *w; /* [rows][columns]; columns is a multiple of 8 */
    uint32_t rows, columns;
    const float *x;
    const __half *x16;
    const float *norm; /* [columns] */
    float epsilon;
    bool gelu;
    float *y;
    __half *y16;
    /* May start before the kernel ahead of it ends. Only where virtual_machine below is 90 or more:
     * other kernels have no wait for that end. */
    bool programmatic;
};
cudaError_t kvl_cuda_gemv(const struct kvl_cuda_gemv *args, cudaStream_t stream);

/* What this device runs of the kernels above, as 10 * major + minor of a compute capability. */
struct kvl_cuda_code {
    uint32_t virtual_machine; /* they were compiled as code for this one (__CUDA_ARCH__ / 10) */
    uint32_t machine;         /* ... and that into machine code for this one, perhaps just now */
};
cudaError_t kvl_cuda_gemv_code(struct kvl_cuda_code *out);
extern const char kvl_cuda_compiler[]; /* "nvcc-13.0.88" */

/* ---- at create ---- */

/* weights[count] of a random model (random_weights.h). */
cudaError_t kvl_cuda_random_fill(
    __half *weights, uint64_t count, uint64_t key, float offset, float step, cudaStream_t stream);
/* x[rows][columns]: arbitrary values in (-1, 1); row r equals row r % period. */
cudaError_t kvl_cuda_pattern_fill(
    __half *x, uint32_t rows, uint32_t columns, uint32_t period, cudaStream_t stream);
/* Adds to *count the 4-byte words of rows that differ from row r % period of `expected`. */
cudaError_t kvl_cuda_count_differences(const uint32_t *rows, uint32_t row_count, uint32_t row_words,
    const uint32_t *expected, uint32_t period, uint32_t *count, cudaStream_t stream);

#ifdef __cplusplus
}
#endif
#endif
