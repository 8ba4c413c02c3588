/* attention_prefill.cu - launches the kernels of attention_prefill.h and attention_general.h. */
#include "attention_few_plan.h"
#include "attention_general.h"
#include "attention_launch.h"
#include "attention_prefill.h"

/* Two CTAs an SM: 255 registers a thread, and the shared memory of two fits from sm_80 on for 64
 * and 96, from sm_90 on for 128 and 256. */
template <int DIM, int DTYPE, bool LIMITED>
__global__ void __launch_bounds__(kvl_prefill_shape<DIM>::THREADS, 2)
    prefill_kernel(const __grid_constant__ kvl_attention_args args) {
    kvl_prefill<DIM, DTYPE, LIMITED>(args);
}

template <int DIM, int DTYPE, bool LIMITED>
static cudaError_t launch(const kvl_attention_args &args, cudaStream_t stream) {
    using shape = kvl_prefill_shape<DIM>;
    /* Per device and cheap, so at every call; legal while a graph is captured. */
    const cudaError_t err = cudaFuncSetAttribute(prefill_kernel<DIM, DTYPE, LIMITED>,
        cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shape::SHARED_BYTES);
    if (err != cudaSuccess) {
        return err;
    }
    const uint64_t rows = (uint64_t)args.tokens * args.group;
    const dim3 grid((uint32_t)((rows + shape::ROWS - 1) / shape::ROWS), args.kv_heads);
    prefill_kernel<DIM, DTYPE, LIMITED>
        <<<grid, shape::THREADS, shape::SHARED_BYTES, stream>>>(args);
    return cudaGetLastError();
}

template <int DIM, bool LIMITED>
static cudaError_t launch_dtype(const kvl_attention_args &args, cudaStream_t s) {
    switch (args.kv_dtype) {
    case KVL_KV_F16:
        return launch<DIM, KVL_KV_F16, LIMITED>(args, s);
    case KVL_KV_BF16:
        return launch<DIM, KVL_KV_BF16, LIMITED>(args, s);
    default:
        return launch<DIM, KVL_KV_F32, LIMITED>(args, s);
    }
}

template <bool LIMITED>
static cudaError_t launch_dim(const kvl_attention_args &args, cudaStream_t s) {
    switch (args.k_dim) {
    case 64:
        return launch_dtype<64, LIMITED>(args, s);
    case 96:
        return launch_dtype<96, LIMITED>(args, s);
    case 128:
        return launch_dtype<128, LIMITED>(args, s);
    default:
        return launch_dtype<256, LIMITED>(args, s);
    }
}

template <bool LIMITED>
__global__ void __launch_bounds__(KVL_GENERAL_THREADS)
    general_kernel(const __grid_constant__ kvl_attention_args args) {
    kvl_general<LIMITED>(args);
}

template <bool LIMITED>
static cudaError_t launch_general(const kvl_attention_args &args, cudaStream_t stream) {
    const uint64_t rows = (uint64_t)args.tokens * args.heads;
    general_kernel<LIMITED><<<(uint32_t)((rows + KVL_GENERAL_WARPS - 1) / KVL_GENERAL_WARPS),
        KVL_GENERAL_THREADS, kvl_general_shared_bytes(args), stream>>>(args);
    return cudaGetLastError();
}

cudaError_t kvl_attention_launch_general(const kvl_attention_args &args, cudaStream_t stream) {
    return kvl_attention_is_limited(args) ? launch_general<true>(args, stream)
                                          : launch_general<false>(args, stream);
}

static cudaError_t launch_many(const struct kvl_cuda_attention *attention, cudaStream_t stream) {
    const kvl_attention_args args = kvl_attention_args_of(attention);
    if (!kvl_attention_on_tensor_cores(attention) || !kvl_attention_many_rows_fit(attention)) {
        return kvl_attention_launch_general(args, stream);
    }
    return kvl_attention_is_limited(args) ? launch_dim<true>(args, stream)
                                          : launch_dim<false>(args, stream);
}

static cudaError_t launch_fastest(const struct kvl_cuda_attention *attention, cudaStream_t stream) {
    struct kvl_few_plan plan;
    return kvl_few_plan_of(attention, 0, &plan) && kvl_attention_takes_few(attention, &plan)
               ? kvl_attention_launch_few(attention, &plan, stream)
               : launch_many(attention, stream);
}

/* The kernels for few rows take one turn each, which is as good as all to load them. What counts is
 * the last launch: where those for many rows do not fit, the general one has other bits. */
static cudaError_t launch_every(const struct kvl_cuda_attention *attention, cudaStream_t stream) {
    cudaError_t err = launch_many(attention, stream);
    for (uint32_t halves = 1; err == cudaSuccess && halves <= 4; halves *= 2) {
        struct kvl_few_plan plan;
        if (kvl_few_plan_of(attention, halves, &plan)) {
            plan.blocks = plan.blocks_a_turn;
            err = kvl_attention_launch_few(attention, &plan, stream);
        }
    }
    return err == cudaSuccess ? launch_fastest(attention, stream) : err;
}

extern "C" cudaError_t kvl_cuda_attend_prefill(
    const struct kvl_cuda_attention *attention, cudaStream_t stream) {
    struct kvl_few_plan plan;
    if (!kvl_attention_supported(attention)) {
        return cudaErrorNotSupported;
    }
    if (attention->tokens == 0) {
        return cudaSuccess;
    }
    switch (attention->way) {
    case KVL_ATTENTION_EVERY:
        return launch_every(attention, stream);
    case KVL_ATTENTION_MANY_ROWS:
        return launch_many(attention, stream);
    case KVL_ATTENTION_FEW_ROWS:
        return kvl_few_plan_of(attention, 0, &plan)
                   ? kvl_attention_launch_few(attention, &plan, stream)
                   : cudaErrorNotSupported;
    default:
        return launch_fastest(attention, stream);
    }
}
