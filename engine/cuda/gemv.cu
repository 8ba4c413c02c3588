/* gemv.cu - matrix times vector for decode: the time it takes is the time to read the weights.
 *
 * A block of 128 threads computes ROWS outputs. Thread i reads 16 bytes of each row at
 * columns 8 i, 8 i + 1024, ...: neighbours read neighbouring bytes, ROWS loads are under way at
 * once, and a block needs no shared memory before its last step, so that many blocks fit a
 * multiprocessor and keep enough bytes in flight. x, and the norm's weights, come from the L1 cache
 * after the first block has read them. RMSNorm's factor multiplies the sums at the end: y = sum(w x
 * n) / sqrt(mean(x^2) + epsilon) so that the squares are summed on the way. Sums: each thread's
 * columns in order, then a fixed tree over the warp, then the warps in order; no atomics, no
 * dependence on the grid. */
#include <cuda_fp16.h>

#include "device_math.h"
#include "kernels.h"

namespace {

enum { THREADS = 128, ROWS = 4, GATE_ROWS = 8 };

/* Weights pass through once: not worth a place in L1. */
__device__ inline uint4 load_weights(const __half *from) {
    uint4 bits;
    asm("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];"
        : "=r"(bits.x), "=r"(bits.y), "=r"(bits.z), "=r"(bits.w)
        : "l"(from));
    return bits;
}

/* x is what an earlier kernel wrote, so it must not be read before the wait for that kernel. */
__device__ inline void load_x(const float *x, uint32_t k, float out[HALVES]) {
    const float4 a = *reinterpret_cast<const float4 *>(x + k);
    const float4 b = *reinterpret_cast<const float4 *>(x + k + 4);
    out[0] = a.x, out[1] = a.y, out[2] = a.z, out[3] = a.w;
    out[4] = b.x, out[5] = b.y, out[6] = b.z, out[7] = b.w;
}
__device__ inline void load_x(const __half *x, uint32_t k, float out[HALVES]) {
    unpack(*reinterpret_cast<const uint4 *>(x + k), out);
}

/* Everything before the wait may run while the kernel ahead still does; it reads weights only. */
__device__ inline void wait_for_input() {
#if __CUDA_ARCH__ >= 900
    cudaGridDependencySynchronize();
#endif
}
__device__ inline void let_next_start() {
#if __CUDA_ARCH__ >= 900
    cudaTriggerProgrammaticLaunchCompletion();
#endif
}

template <int COUNT, bool NORM> struct sums {
    float of_row[COUNT] = {};
    float squares = 0;

    template <typename X>
    __device__ inline void add(const uint4 w[COUNT], const X *x, const float *norm, uint32_t k) {
        float values[HALVES];
        load_x(x, k, values);
        if (NORM) {
            float weights[HALVES];
            load_x(norm, k, weights);
#pragma unroll
            for (int j = 0; j < HALVES; j++) {
                squares += values[j] * values[j];
                values[j] *= weights[j];
            }
        }
#pragma unroll
        for (int r = 0; r < COUNT; r++) {
            float row[HALVES];
            unpack(w[r], row);
#pragma unroll
            for (int j = 0; j < HALVES; j++) {
                of_row[r] = fmaf(row[j], values[j], of_row[r]);
            }
        }
    }

    /* Afterwards thread r < COUNT has the sum of row r, and `squares` that of the squares. */
    __device__ inline float reduce() {
        __shared__ float parts[THREADS / WARP][COUNT + 1];
        const uint32_t warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
#pragma unroll
        for (int r = 0; r < COUNT; r++) {
            const float sum = warp_sum(of_row[r]);
            if (lane == 0) {
                parts[warp][r] = sum;
            }
        }
        if (NORM) {
            const float sum = warp_sum(squares);
            if (lane == 0) {
                parts[warp][COUNT] = sum;
            }
        }
        __syncthreads();
        const uint32_t r = threadIdx.x < COUNT ? threadIdx.x : COUNT - 1;
        float total = 0;
        squares = 0;
#pragma unroll
        for (int i = 0; i < THREADS / WARP; i++) {
            total += parts[i][r];
            if (NORM) {
                squares += parts[i][COUNT];
            }
        }
        return total;
    }
};

/* Row r of a block: with a gate, the first half of a block's rows are gates, the others their
 * partners. Rows past the end are read as the last one, and not written. */
template <int COUNT, bool GATE>
__device__ inline uint32_t row_of(const struct kvl_cuda_gemv &args, uint32_t r) {
    const uint32_t outputs = GATE ? args.rows / 2 : args.rows;
    const uint32_t each = GATE ? COUNT / 2 : COUNT;
    const uint32_t output = min(blockIdx.x * each + r % each, outputs - 1);
    return GATE && r >= each ? outputs + output : output;
}

template <int COUNT, bool NORM, bool GATE, typename X>
__device__ inline float multiply(const struct kvl_cuda_gemv &args, const X *x, float *factor) {
    const __half *rows[COUNT];
#pragma unroll
    for (int r = 0; r < COUNT; r++) {
        rows[r] = args.w + (size_t)row_of<COUNT, GATE>(args, (uint32_t)r) * args.columns;
    }
    sums<COUNT, NORM> sum;
    uint32_t k = threadIdx.x * HALVES;
    uint4 w[COUNT] = {};
    if (k < args.columns) {
#pragma unroll
        for (int r = 0; r < COUNT; r++) {
            w[r] = load_weights(rows[r] + k);
        }
    }
    let_next_start();
    wait_for_input();
    while (k < args.columns) { /* the next weights are under way while these are multiplied */
        const uint32_t next = k + THREADS * HALVES;
        uint4 ahead[COUNT] = {};
        if (next < args.columns) {
#pragma unroll
            for (int r = 0; r < COUNT; r++) {
                ahead[r] = load_weights(rows[r] + next);
            }
        }
        sum.add(w, x, args.norm, k);
#pragma unroll
        for (int r = 0; r < COUNT; r++) {
            w[r] = ahead[r];
        }
        k = next;
    }
    const float total = sum.reduce();
    *factor = NORM ? rsqrtf(sum.squares / (float)args.columns + args.epsilon) : 1.0f;
    return total;
}

__global__ void __launch_bounds__(THREADS) gemv_norm_f16(const struct kvl_cuda_gemv args) {
    float factor;
    const float sum = multiply<ROWS, true, false>(args, args.x, &factor);
    const uint32_t row = blockIdx.x * ROWS + threadIdx.x;
    if (threadIdx.x < ROWS && row < args.rows) {
        args.y16[row] = to_half(sum * factor);
    }
}

__global__ void __launch_bounds__(THREADS) gemv_norm_f32(const struct kvl_cuda_gemv args) {
    float factor;
    const float sum = multiply<ROWS, true, false>(args, args.x, &factor);
    const uint32_t row = blockIdx.x * ROWS + threadIdx.x;
    if (threadIdx.x < ROWS && row < args.rows) {
        args.y[row] = sum * factor;
    }
}

__global__ void __launch_bounds__(THREADS) gemv_norm_gate(const struct kvl_cuda_gemv args) {
    float factor;
    const float sum = multiply<GATE_ROWS, true, true>(args, args.x, &factor) * factor;
    const float partner = __shfl_down_sync(0xFFFFFFFF, sum, GATE_ROWS / 2);
    const uint32_t row = blockIdx.x * (GATE_ROWS / 2) + threadIdx.x;
    if (threadIdx.x < GATE_ROWS / 2 && row < args.rows / 2) {
        args.y[row] = activate(sum, args.gelu) * partner;
    }
}

template <bool ADD, typename X>
__device__ inline void store_product(const struct kvl_cuda_gemv &args, const X *x) {
    float factor;
    const float sum = multiply<ROWS, false, false>(args, x, &factor);
    const uint32_t row = blockIdx.x * ROWS + threadIdx.x;
    if (threadIdx.x < ROWS && row < args.rows) {
        args.y[row] = ADD ? args.y[row] + sum : sum;
    }
}

__global__ void __launch_bounds__(THREADS) gemv_add_f16(const struct kvl_cuda_gemv args) {
    store_product<true>(args, args.x16);
}
__global__ void __launch_bounds__(THREADS) gemv_add_f32(const struct kvl_cuda_gemv args) {
    store_product<true>(args, args.x);
}
__global__ void __launch_bounds__(THREADS) gemv_set_f16(const struct kvl_cuda_gemv args) {
    store_product<false>(args, args.x16);
}
__global__ void __launch_bounds__(THREADS) gemv_set_f32(const struct kvl_cuda_gemv args) {
    store_product<false>(args, args.x);
}

} // namespace

#define TEXT_OF(x) #x
#define TEXT(x) TEXT_OF(x)
const char kvl_cuda_compiler[] = "nvcc-" TEXT(__CUDACC_VER_MAJOR__) "." TEXT(
    __CUDACC_VER_MINOR__) "." TEXT(__CUDACC_VER_BUILD__);

cudaError_t kvl_cuda_gemv_code(struct kvl_cuda_code *out) {
    cudaFuncAttributes attributes;
    const cudaError_t error = cudaFuncGetAttributes(&attributes, gemv_norm_f16);
    out->virtual_machine = error == cudaSuccess ? (uint32_t)attributes.ptxVersion : 0;
    out->machine = error == cudaSuccess ? (uint32_t)attributes.binaryVersion : 0;
    return error;
}

cudaError_t kvl_cuda_gemv(const struct kvl_cuda_gemv *args, cudaStream_t stream) {
    static void (*const kernels[])(const struct kvl_cuda_gemv) = {gemv_norm_f16, gemv_norm_f32,
        gemv_norm_gate, gemv_add_f16, gemv_add_f32, gemv_set_f16, gemv_set_f32};
    const bool gate = args->kind == KVL_CUDA_GEMV_NORM_GATE;
    const uint32_t outputs = gate ? args->rows / 2 : args->rows;
    const uint32_t each = gate ? GATE_ROWS / 2 : ROWS;
    cudaLaunchAttribute attribute = {};
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3((outputs + each - 1) / each);
    config.blockDim = dim3(THREADS);
    config.stream = stream;
    config.attrs = &attribute;
    config.numAttrs = args->programmatic ? 1 : 0;
    return cudaLaunchKernelEx(&config, kernels[args->kind], *args);
}
