/* attention_launch.h - which kernel serves a call, and with which arguments. Host code. */
#ifndef KVL_CUDA_ATTENTION_LAUNCH_H
#define KVL_CUDA_ATTENTION_LAUNCH_H

#include "attention_kv.h"

struct kvl_few_plan;

/* Whether any kernel does. */
bool kvl_attention_supported(const struct kvl_cuda_attention *attention);
/* Whether the tensor-core kernels do: K and V of 64, 96, 128 or 256 elements, block_tokens a power
 * of two from 16 on, and addresses of 16 bytes' alignment. The other calls take the general kernel.
 */
bool kvl_attention_on_tensor_cores(const struct kvl_cuda_attention *attention);
/* Likewise, of 64, 96 or 128 elements: their kernels go through the same tiles. */
bool kvl_attention_is_fast(const struct kvl_cuda_attention *attention);
/* Whether a CTA of the tensor-core prefill for many rows fits on the GPU. */
bool kvl_attention_many_rows_fit(const struct kvl_cuda_attention *attention);
/* Whether prefill goes by such a plan where nobody says which way. */
bool kvl_attention_takes_few(
    const struct kvl_cuda_attention *attention, const struct kvl_few_plan *plan);
kvl_attention_args kvl_attention_args_of(const struct kvl_cuda_attention *attention);
/* Whether the call has a window or a cap, which kernels of their own know. */
bool kvl_attention_is_limited(const kvl_attention_args &args);
uint64_t kvl_attention_decode_scratch_bytes(const struct kvl_cuda_attention *attention);
/* By a plan of attention_few_plan.h. */
cudaError_t kvl_attention_launch_few(const struct kvl_cuda_attention *attention,
    const struct kvl_few_plan *plan, cudaStream_t stream);
/* Both phases; bits are the same in both. */
cudaError_t kvl_attention_launch_general(const kvl_attention_args &args, cudaStream_t stream);

#endif
