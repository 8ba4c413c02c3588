/* attention_few.cu - launches the kernels of attention_few.h. */
#include "attention_few_plan.h"
#include "attention_launch.h"

template <int DIM, int DTYPE, int HALVES>
__global__ void __launch_bounds__(KVL_FEW_THREADS, 2)
    score_kernel(const __grid_constant__ kvl_few_args args) {
    kvl_few_score<DIM, DTYPE, HALVES>(args);
}

template <bool BF16>
__global__ void __launch_bounds__(KVL_FEW_THREADS)
    weigh_kernel(const __grid_constant__ kvl_few_args args) {
    kvl_few_weigh<BF16>(args);
}

template <int DIM, int DTYPE, int HALVES>
__global__ void __launch_bounds__(KVL_FEW_GATHER_THREADS)
    gather_kernel(const __grid_constant__ kvl_few_args args) {
    kvl_few_gather<DIM, DTYPE, HALVES>(args);
}

/* Per device and cheap, so at every call; legal while a graph is captured. */
template <typename KERNEL> static cudaError_t allow_shared(KERNEL *kernel, uint32_t bytes) {
    return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes);
}

template <int DIM, int DTYPE, int HALVES>
static cudaError_t launch_turn(const kvl_few_args &args, cudaStream_t stream) {
    using shape = kvl_few_shape<DIM, HALVES>;
    using gather = kvl_few_gather_shape<DIM, HALVES>;
    const uint32_t heads = args.a.kv_heads, quads = args.tiles_stride / KVL_FEW_QUAD;
    score_kernel<DIM, DTYPE, HALVES>
        <<<dim3(args.blocks * quads, heads), KVL_FEW_THREADS, shape::SCORE_SHARED_BYTES, stream>>>(
            args);
    const cudaError_t scored = cudaGetLastError();
    if (scored != cudaSuccess) {
        return scored;
    }
    const uint32_t groups = (quads + KVL_FEW_WARPS - 1) / KVL_FEW_WARPS;
    weigh_kernel<kvl_kv_type<DTYPE>::BF16>
        <<<dim3(args.blocks * HALVES * groups, heads), KVL_FEW_THREADS, 0, stream>>>(args);
    const cudaError_t weighed = cudaGetLastError();
    if (weighed != cudaSuccess) {
        return weighed;
    }
    gather_kernel<DIM, DTYPE, HALVES><<<dim3(args.blocks * gather::SLICES, heads),
        KVL_FEW_GATHER_THREADS, gather::SHARED_BYTES, stream>>>(args);
    return cudaGetLastError();
}

template <int DIM, int DTYPE, int HALVES>
static cudaError_t launch(const struct kvl_cuda_attention *attention,
    const struct kvl_few_plan *plan, cudaStream_t stream) {
    using shape = kvl_few_shape<DIM, HALVES>;
    using gather = kvl_few_gather_shape<DIM, HALVES>;
    cudaError_t err = allow_shared(score_kernel<DIM, DTYPE, HALVES>, shape::SCORE_SHARED_BYTES);
    if (err == cudaSuccess) {
        err = allow_shared(gather_kernel<DIM, DTYPE, HALVES>, gather::SHARED_BYTES);
    }
    for (uint32_t block = 0; err == cudaSuccess && block < plan->blocks;
         block += plan->blocks_a_turn) {
        err = launch_turn<DIM, DTYPE, HALVES>(kvl_few_args_of(attention, plan, block), stream);
    }
    return err;
}

template <int DIM, int DTYPE>
static cudaError_t launch_halves(const struct kvl_cuda_attention *attention,
    const struct kvl_few_plan *plan, cudaStream_t stream) {
    switch (plan->halves) {
    case 1:
        return launch<DIM, DTYPE, 1>(attention, plan, stream);
    case 2:
        return launch<DIM, DTYPE, 2>(attention, plan, stream);
    default:
        return launch<DIM, DTYPE, 4>(attention, plan, stream);
    }
}

template <int DIM>
static cudaError_t launch_dtype(const struct kvl_cuda_attention *attention,
    const struct kvl_few_plan *plan, cudaStream_t stream) {
    return attention->kv_dtype == KVL_KV_BF16
               ? launch_halves<DIM, KVL_KV_BF16>(attention, plan, stream)
               : launch_halves<DIM, KVL_KV_F16>(attention, plan, stream);
}

cudaError_t kvl_attention_launch_few(const struct kvl_cuda_attention *attention,
    const struct kvl_few_plan *plan, cudaStream_t stream) {
    switch (attention->k_dim) {
    case 64:
        return launch_dtype<64>(attention, plan, stream);
    case 96:
        return launch_dtype<96>(attention, plan, stream);
    default:
        return launch_dtype<128>(attention, plan, stream);
    }
}
