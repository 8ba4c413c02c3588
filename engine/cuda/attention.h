/* attention.h - paged attention on the GPU: the contract between the forward pass and its kernels.
 *
 * Queries are rotated already but not scaled; keys and values of every position below
 * position + tokens stand in the blocks when a call's kernels run. A query at position p attends to
 * positions 0 to p, or to the last `window` of them. Query head h reads KV head
 * h / (heads / kv_heads). Blocks that lie wholly behind the window of the call's first query are
 * never read: their entries in the table may be anything, NULL too.
 *
 * Layout of a layer in a block (backend.h): K [kv_head][token][k_dim], then V
 * [kv_head][token][v_dim], elements of kv_dtype, from layer_offset_bytes on.
 *
 * Bits: a row's result depends only on its query, its position and the keys and values up to it:
 * not on how many rows a call has, nor on where the blocks lie, nor on whether what its window has
 * left behind is still there. Prefill and decode may give other bits than one another. block_tokens
 * decides which kernels run, and so about bits: those for tensor cores take powers of two from 16
 * on, and give the same bits for all of these; the general one (attention_general.h) serves all
 * others, with bits of its own, alike for all of those.
 *
 * Shared memory: prefill of heads of 128 and 256 takes 103 KB a CTA, which GPUs of compute
 * capability 8.6, 8.9 and 12.x lack. There it takes the kernels for few rows, however many there
 * are, or where these do not serve (256, f32, windows, caps) the general one.
 *
 * C and CUDA both include this; CUDA's types stay in engine/cuda. */
#ifndef KVL_CUDA_ATTENTION_H
#define KVL_CUDA_ATTENTION_H

#include <cuda_runtime_api.h>
#include <stdint.h>

#ifdef __cplusplus
#include <cuda_fp16.h>
#else
typedef struct __half __half;
#endif

#ifdef __cplusplus
extern "C" {
#endif

#include "../backend.h"

/* Which kernels prefill a call. Those of attention_few.h have the bits of attention_prefill.h. */
enum kvl_attention_way {
    KVL_ATTENTION_FASTEST,   /* as estimated, of what fits on the GPU */
    KVL_ATTENTION_MANY_ROWS, /* attention_prefill.h, or attention_general.h for what it lacks */
    KVL_ATTENTION_FEW_ROWS,  /* attention_few.h */
    KVL_ATTENTION_EVERY,     /* all, the fastest last: so every kernel that may come is loaded */
};

struct kvl_cuda_attention {
    const __half *q;        /* [tokens][heads][k_dim], rotated, not scaled; 16-byte aligned */
    __half *out;            /* [tokens][heads][v_dim]; 16-byte aligned */
    uint8_t *const *blocks; /* device array of device addresses */
    uint32_t block_tokens;
    uint32_t heads;
    uint32_t kv_heads;
    uint32_t k_dim;
    uint32_t v_dim;
    uint32_t layer;
    enum kvl_kv_dtype kv_dtype;
    uint64_t layer_offset_bytes; /* of this layer within a block */
    float scale;
    uint32_t window;          /* tokens that each sees, its own included; 0: all before it */
    float softcap;            /* scores s (scaled) become softcap * tanh(s / softcap); 0: none */
    uint32_t tokens;          /* decode: 1 */
    const uint32_t *position; /* device memory: of the first token, so that graphs can replay */
    uint32_t position_max;    /* upper bound of position + tokens, to size grids by */
    void *scratch;            /* device memory, 256-byte aligned */
    uint64_t scratch_bytes;
    uint32_t shared_bytes_max;  /* of a CTA on this GPU; 0: as much as any kernel takes */
    enum kvl_attention_way way; /* prefill */
};

/* Device memory that calls need whose fields but pointers are those of the argument, with tokens
 * and position_max the largest there will be, in both phases. UINT64_MAX: the kernels have no
 * version for these head sizes, KV type or sharing of heads. */
uint64_t kvl_cuda_attention_scratch_bytes(const struct kvl_cuda_attention *attention);
/* Enqueue only; nothing is allocated and nothing waits, so both can be captured into a graph.
 * Prefill makes do with any scratch: with less it takes more launches, or the way that needs none.
 * Errors: cudaErrorNotSupported as above, or for FEW_ROWS (what attention_few_plan.h says);
 * cudaErrorInvalidValue (decode: scratch too small); what a launch says. */
cudaError_t kvl_cuda_attend_prefill(
    const struct kvl_cuda_attention *attention, cudaStream_t stream);
cudaError_t kvl_cuda_attend_decode(const struct kvl_cuda_attention *attention, cudaStream_t stream);

#ifdef __cplusplus
}
#endif
#endif
