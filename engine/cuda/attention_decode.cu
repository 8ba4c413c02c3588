/* attention_decode.cu - launches the kernels of attention_decode.h. */
#include "attention_decode.h"
#include "attention_launch.h"

template <int DIM, int DTYPE, bool LIMITED>
__global__ void __launch_bounds__(KVL_DECODE_THREADS)
    decode_kernel(const __grid_constant__ kvl_attention_args args) {
    kvl_decode<DIM, DTYPE, LIMITED>(args);
}

template <int DIM, bool LIMITED>
__global__ void __launch_bounds__(kvl_decode_shape<DIM>::COMBINE_THREADS)
    combine_kernel(const __grid_constant__ kvl_attention_args args, uint32_t parts) {
    kvl_decode_combine<DIM, LIMITED>(args, parts);
}

template <int DIM, int DTYPE, bool LIMITED>
static cudaError_t launch(const kvl_attention_args &args, uint32_t parts, cudaStream_t stream) {
    const uint32_t slices = (args.group + KVL_DECODE_HEADS - 1) / KVL_DECODE_HEADS;
    decode_kernel<DIM, DTYPE, LIMITED><<<dim3(parts, args.kv_heads * slices), KVL_DECODE_THREADS,
        kvl_decode_shape<DIM>::SHARED_BYTES, stream>>>(args);
    const cudaError_t err = cudaGetLastError();
    if (err != cudaSuccess) {
        return err;
    }
    const uint32_t threads = kvl_decode_shape<DIM>::COMBINE_THREADS;
    combine_kernel<DIM, LIMITED>
        <<<args.heads, threads, threads * sizeof(float2), stream>>>(args, parts);
    return cudaGetLastError();
}

template <int DIM, bool LIMITED>
static cudaError_t launch_dtype(const kvl_attention_args &args, uint32_t parts, cudaStream_t s) {
    switch (args.kv_dtype) {
    case KVL_KV_F16:
        return launch<DIM, KVL_KV_F16, LIMITED>(args, parts, s);
    case KVL_KV_BF16:
        return launch<DIM, KVL_KV_BF16, LIMITED>(args, parts, s);
    default:
        return launch<DIM, KVL_KV_F32, LIMITED>(args, parts, s);
    }
}

template <bool LIMITED>
static cudaError_t launch_dim(const kvl_attention_args &args, uint32_t parts, cudaStream_t s) {
    switch (args.k_dim) {
    case 64:
        return launch_dtype<64, LIMITED>(args, parts, s);
    case 96:
        return launch_dtype<96, LIMITED>(args, parts, s);
    case 128:
        return launch_dtype<128, LIMITED>(args, parts, s);
    default:
        return launch_dtype<256, LIMITED>(args, parts, s);
    }
}

extern "C" cudaError_t kvl_cuda_attend_decode(
    const struct kvl_cuda_attention *attention, cudaStream_t stream) {
    if (!kvl_attention_supported(attention)) {
        return cudaErrorNotSupported;
    }
    if (attention->tokens != 1 || attention->position_max == 0 ||
        attention->scratch_bytes < kvl_attention_decode_scratch_bytes(attention)) {
        return cudaErrorInvalidValue;
    }
    const kvl_attention_args args = kvl_attention_args_of(attention);
    if (!kvl_attention_on_tensor_cores(attention)) {
        return kvl_attention_launch_general(args, stream);
    }
    const uint32_t parts = (uint32_t)kvl_decode_parts(attention->position_max);
    return kvl_attention_is_limited(args) ? launch_dim<true>(args, parts, stream)
                                          : launch_dim<false>(args, parts, stream);
}
