/* kernels.cu - see kernels.h: what prefill and decode do between products and attention. */
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "../random_weights.h"
#include "device_math.h"
#include "kernels.h"

namespace {

enum { BLOCK = 256, PLACE_WARPS = 4 };

/* Sum over the BLOCK threads of a block, in one order; the same in every thread. */
__device__ inline float block_sum(float value) {
    __shared__ float sums[BLOCK / WARP];
    value = warp_sum(value);
    if (threadIdx.x % WARP == 0) {
        sums[threadIdx.x / WARP] = value;
    }
    __syncthreads();
    float total = 0;
#pragma unroll
    for (int i = 0; i < BLOCK / WARP; i++) {
        total += sums[i];
    }
    return total;
}

/* ---- embedding and angles ---- */

__global__ void __launch_bounds__(BLOCK) embed_row(const struct kvl_cuda_embed args) {
    const uint32_t row = blockIdx.x;
    float *x = args.x + (size_t)row * args.width;
    const __half *from =
        row < args.tokens ? args.embedding + (size_t)args.ids[row] * args.width : nullptr;
    for (uint32_t i = threadIdx.x; i < args.width; i += BLOCK) {
        x[i] = from != nullptr ? __half2float(from[i]) * args.scale : 0.0f;
    }
}

__global__ void angles_of_row(const struct kvl_cuda_angles args) {
    const uint32_t t = blockIdx.x;
    const double position = (double)(*args.position + t);
    float2 *out = reinterpret_cast<float2 *>(args.angles) + (size_t)t * args.pairs;
    for (uint32_t i = threadIdx.x; i < args.pairs; i += blockDim.x) {
        double sine, cosine;
        sincos(position * args.frequencies[i], &sine, &cosine);
        out[i] = make_float2((float)cosine * args.magnitude, (float)sine * args.magnitude);
    }
}

/* ---- norm ---- */

__global__ void __launch_bounds__(BLOCK) norm_row(const struct kvl_cuda_norm args) {
    const uint32_t groups = args.width / HALVES;
    const float4 *x = reinterpret_cast<const float4 *>(args.x + (size_t)blockIdx.x * args.width);
    const float4 *weights = reinterpret_cast<const float4 *>(args.weights);
    uint4 *out = reinterpret_cast<uint4 *>(args.out + (size_t)blockIdx.x * args.width);
    float squares = 0;
    for (uint32_t g = threadIdx.x; g < groups; g += BLOCK) {
        const float4 a = x[2 * g], b = x[2 * g + 1];
        squares += a.x * a.x + a.y * a.y + a.z * a.z + a.w * a.w;
        squares += b.x * b.x + b.y * b.y + b.z * b.z + b.w * b.w;
    }
    const float factor = rsqrtf(block_sum(squares) / (float)args.width + args.epsilon);
    for (uint32_t g = threadIdx.x; g < groups; g += BLOCK) {
        const float4 a = x[2 * g], b = x[2 * g + 1];
        const float4 u = weights[2 * g], v = weights[2 * g + 1];
        const float values[HALVES] = {a.x * factor * u.x, a.y * factor * u.y, a.z * factor * u.z,
            a.w * factor * u.w, b.x * factor * v.x, b.y * factor * v.y, b.z * factor * v.z,
            b.w * factor * v.w};
        out[g] = pack(values);
    }
}

/* Spelled out, so that the loop's copies round alike. */
__device__ inline float4 join_four(float4 x, float4 given, float4 weights, float factor) {
    return make_float4(fmaf(given.x * factor, weights.x, x.x),
        fmaf(given.y * factor, weights.y, x.y), fmaf(given.z * factor, weights.z, x.z),
        fmaf(given.w * factor, weights.w, x.w));
}

__global__ void __launch_bounds__(BLOCK) join_row(const struct kvl_cuda_join args) {
    const uint32_t fours = args.width / 4;
    float4 *x = reinterpret_cast<float4 *>(args.x + (size_t)blockIdx.x * args.width);
    const float4 *given =
        reinterpret_cast<const float4 *>(args.given + (size_t)blockIdx.x * args.width);
    const float4 *weights = reinterpret_cast<const float4 *>(args.weights);
    float squares = 0;
    for (uint32_t i = threadIdx.x; i < fours; i += BLOCK) {
        const float4 y = given[i];
        squares = fmaf(y.x, y.x, squares);
        squares = fmaf(y.y, y.y, squares);
        squares = fmaf(y.z, y.z, squares);
        squares = fmaf(y.w, y.w, squares);
    }
    const float factor = rsqrtf(block_sum(squares) / (float)args.width + args.epsilon);
    for (uint32_t i = threadIdx.x; i < fours; i += BLOCK) {
        x[i] = join_four(x[i], given[i], weights[i], factor);
    }
}

/* ---- place ---- */

/* Where a head's vector goes: q as f16, k and v into a block as its element type. */
template <typename T> struct element;
template <> struct element<__half> {
    static __device__ __half of(float value) { return to_half(value); }
};
template <> struct element<__nv_bfloat16> {
    static __device__ __nv_bfloat16 of(float value) { return __float2bfloat16_rn(value); }
};
template <> struct element<float> {
    static __device__ float of(float value) { return value; }
};

/* One head of one token, read with its bias and norm. */
struct head_in {
    const __half *values;
    const float *bias;
    const float *norm;
    float factor; /* of the norm */

    __device__ float raw(uint32_t c) const {
        return __half2float(values[c]) + (bias != nullptr ? bias[c] : 0.0f);
    }
    __device__ float at(uint32_t c) const {
        return norm != nullptr ? raw(c) * factor * norm[c] : raw(c);
    }
};

__device__ inline float head_factor(const head_in &in, uint32_t dims, float epsilon) {
    float squares = 0;
    for (uint32_t c = threadIdx.x; c < dims; c += WARP) {
        const float value = in.raw(c);
        squares += value * value;
    }
    return rsqrtf(warp_sum(squares) / (float)dims + epsilon);
}

template <typename T>
__device__ inline void rotate_head(
    const struct kvl_cuda_place &args, const head_in &in, const float2 *angles, T *out) {
    const uint32_t pairs = args.rope_dims / 2;
    for (uint32_t i = threadIdx.x; i < pairs; i += WARP) {
        const uint32_t a = args.halves ? i : 2 * i;
        const uint32_t b = args.halves ? i + pairs : 2 * i + 1;
        const float2 angle = angles[i];
        const float x = in.at(a), y = in.at(b);
        out[a] = element<T>::of(x * angle.x - y * angle.y);
        out[b] = element<T>::of(x * angle.y + y * angle.x);
    }
    for (uint32_t c = args.rope_dims + threadIdx.x; c < args.k_dim; c += WARP) {
        out[c] = element<T>::of(in.at(c));
    }
}

/* A warp a head: q heads, then k heads, then v heads. */
template <typename T>
__global__ void __launch_bounds__(WARP *PLACE_WARPS) place_heads(const struct kvl_cuda_place args) {
    const uint32_t t = blockIdx.x;
    const uint32_t head = blockIdx.y * PLACE_WARPS + threadIdx.y;
    if (head >= args.heads + 2 * args.kv_heads) {
        return;
    }
    const bool is_q = head < args.heads, is_v = head >= args.heads + args.kv_heads;
    const uint32_t kv_head = is_q ? 0 : (head - args.heads) % args.kv_heads;
    const uint32_t column =
        is_v ? (args.heads + args.kv_heads) * args.k_dim + kv_head * args.v_dim : head * args.k_dim;
    head_in in = {args.qkv + (size_t)t * args.stride + column,
        args.bias != nullptr ? args.bias + column : nullptr,
        is_v   ? nullptr
        : is_q ? args.q_norm
               : args.k_norm,
        1.0f};
    if (in.norm != nullptr) {
        in.factor = head_factor(in, args.k_dim, args.epsilon);
    }
    const float2 *angles =
        reinterpret_cast<const float2 *>(args.angles) + (size_t)t * (args.rope_dims / 2);
    if (is_q) {
        rotate_head(args, in, angles, args.q + ((size_t)t * args.heads + head) * args.k_dim);
        return;
    }
    const uint32_t position = *args.position + t;
    T *layer =
        reinterpret_cast<T *>(args.blocks[position / args.block_tokens] + args.layer_offset_bytes);
    const size_t row = (size_t)kv_head * args.block_tokens + position % args.block_tokens;
    if (!is_v) {
        rotate_head(args, in, angles, layer + row * args.k_dim);
        return;
    }
    T *out = layer + (size_t)args.kv_heads * args.block_tokens * args.k_dim + row * args.v_dim;
    for (uint32_t c = threadIdx.x; c < args.v_dim; c += WARP) {
        out[c] = element<T>::of(in.at(c));
    }
}

/* ---- gate ---- */

__global__ void __launch_bounds__(BLOCK) gate_groups(const struct kvl_cuda_gate args) {
    const uint32_t g = blockIdx.x * BLOCK + threadIdx.x;
    const uint32_t groups = args.width / HALVES;
    if (g >= groups) {
        return;
    }
    const uint4 *row =
        reinterpret_cast<const uint4 *>(args.gate_up) + (size_t)blockIdx.y * 2 * groups;
    float gate[HALVES], up[HALVES];
    unpack(row[g], gate);
    unpack(row[groups + g], up);
#pragma unroll
    for (int i = 0; i < HALVES; i++) {
        gate[i] = activate(gate[i], args.gelu) * up[i];
    }
    reinterpret_cast<uint4 *>(args.out)[(size_t)blockIdx.y * groups + g] = pack(gate);
}

/* ---- logits ---- */

__global__ void softcap_values(float *logits, uint64_t count, float cap) {
    const uint64_t i = (uint64_t)blockIdx.x * BLOCK + threadIdx.x;
    if (i < count) {
        logits[i] = cap * tanhf(logits[i] / cap);
    }
}

/* Unsigned order of the keys is the order of the floats; above 0 but for NaN. */
__device__ inline uint32_t order_key(float value) {
    if (isnan(value)) {
        return 0;
    }
    const uint32_t bits = __float_as_uint(value + 0.0f); /* -0 equals 0 */
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

__global__ void __launch_bounds__(BLOCK)
    argmax_logits(const float *logits, uint32_t count, unsigned long long *best) {
    unsigned long long mine = 0;
    for (uint32_t i = blockIdx.x * BLOCK + threadIdx.x; i < count; i += gridDim.x * BLOCK) {
        const unsigned long long key = (unsigned long long)order_key(logits[i]) << 32 | ~i;
        mine = key > mine ? key : mine;
    }
#pragma unroll
    for (int offset = WARP / 2; offset > 0; offset /= 2) {
        const unsigned long long other = __shfl_xor_sync(0xFFFFFFFF, mine, offset);
        mine = other > mine ? other : mine;
    }
    if (threadIdx.x % WARP == 0) {
        atomicMax(best, mine);
    }
}

/* ---- at create ---- */

__global__ void __launch_bounds__(BLOCK)
    pattern_rows(__half *x, uint32_t columns, uint32_t period) {
    const uint64_t row = blockIdx.x;
    for (uint32_t c = threadIdx.x; c < columns; c += BLOCK) {
        const uint64_t bits = kvl_random_mix((row % period) * columns + c + 1);
        x[row * columns + c] = __float2half_rn((float)((int)(bits >> 53) - 1024) / 1024.0f);
    }
}

__global__ void __launch_bounds__(BLOCK) count_rows(const uint32_t *rows, uint32_t row_words,
    const uint32_t *expected, uint32_t period, uint32_t *count) {
    const uint32_t *row = rows + (size_t)blockIdx.x * row_words;
    const uint32_t *other = expected + (size_t)(blockIdx.x % period) * row_words;
    uint32_t differ = 0;
    for (uint32_t i = threadIdx.x; i < row_words; i += BLOCK) {
        differ += row[i] != other[i];
    }
    if (differ != 0) {
        atomicAdd(count, differ);
    }
}

uint32_t blocks_for(uint64_t count, uint32_t each) {
    return (uint32_t)((count + each - 1) / each);
}

} // namespace

cudaError_t kvl_cuda_embed(const struct kvl_cuda_embed *args, cudaStream_t stream) {
    embed_row<<<args->rows, BLOCK, 0, stream>>>(*args);
    return cudaGetLastError();
}

cudaError_t kvl_cuda_angles(const struct kvl_cuda_angles *args, cudaStream_t stream) {
    if (args->pairs == 0) {
        return cudaSuccess;
    }
    angles_of_row<<<args->tokens, 64, 0, stream>>>(*args);
    return cudaGetLastError();
}

cudaError_t kvl_cuda_norm(const struct kvl_cuda_norm *args, cudaStream_t stream) {
    norm_row<<<args->rows, BLOCK, 0, stream>>>(*args);
    return cudaGetLastError();
}

cudaError_t kvl_cuda_join(const struct kvl_cuda_join *args, cudaStream_t stream) {
    join_row<<<args->rows, BLOCK, 0, stream>>>(*args);
    return cudaGetLastError();
}

cudaError_t kvl_cuda_place(const struct kvl_cuda_place *args, cudaStream_t stream) {
    const dim3 grid(args->tokens, blocks_for(args->heads + 2 * args->kv_heads, PLACE_WARPS));
    const dim3 block(WARP, PLACE_WARPS);
    switch (args->kv_dtype) {
    case KVL_KV_F16:
        place_heads<__half><<<grid, block, 0, stream>>>(*args);
        break;
    case KVL_KV_BF16:
        place_heads<__nv_bfloat16><<<grid, block, 0, stream>>>(*args);
        break;
    case KVL_KV_F32:
        place_heads<float><<<grid, block, 0, stream>>>(*args);
        break;
    }
    return cudaGetLastError();
}

cudaError_t kvl_cuda_gate(const struct kvl_cuda_gate *args, cudaStream_t stream) {
    const dim3 grid(blocks_for(args->width / HALVES, BLOCK), args->rows);
    gate_groups<<<grid, BLOCK, 0, stream>>>(*args);
    return cudaGetLastError();
}

cudaError_t kvl_cuda_softcap(float *logits, uint64_t count, float cap, cudaStream_t stream) {
    softcap_values<<<blocks_for(count, BLOCK), BLOCK, 0, stream>>>(logits, count, cap);
    return cudaGetLastError();
}

cudaError_t kvl_cuda_argmax(
    const float *logits, uint32_t count, unsigned long long *best, cudaStream_t stream) {
    uint32_t blocks = blocks_for(count, BLOCK);
    blocks = blocks < 128 ? blocks : 128;
    argmax_logits<<<blocks, BLOCK, 0, stream>>>(logits, count, best);
    return cudaGetLastError();
}

cudaError_t kvl_cuda_pattern_fill(
    __half *x, uint32_t rows, uint32_t columns, uint32_t period, cudaStream_t stream) {
    pattern_rows<<<rows, BLOCK, 0, stream>>>(x, columns, period);
    return cudaGetLastError();
}

cudaError_t kvl_cuda_count_differences(const uint32_t *rows, uint32_t row_count, uint32_t row_words,
    const uint32_t *expected, uint32_t period, uint32_t *count, cudaStream_t stream) {
    count_rows<<<row_count, BLOCK, 0, stream>>>(rows, row_words, expected, period, count);
    return cudaGetLastError();
}
