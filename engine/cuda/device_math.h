/* device_math.h - small device functions that kernels share. CUDA only. */
#ifndef KVL_CUDA_DEVICE_MATH_H
#define KVL_CUDA_DEVICE_MATH_H

#include <cuda_fp16.h>

namespace {

enum { WARP = 32, HALVES = 8 /* in 16 bytes */ };

/* 16 bytes as 8 floats */
__device__ inline void unpack(uint4 bits, float out[HALVES]) {
    const __half2 *pairs = reinterpret_cast<const __half2 *>(&bits);
#pragma unroll
    for (int i = 0; i < HALVES / 2; i++) {
        const float2 pair = __half22float2(pairs[i]);
        out[2 * i] = pair.x;
        out[2 * i + 1] = pair.y;
    }
}

/* Beyond f16's range: its largest. NaN stays. */
__device__ inline __half to_half(float value) {
    const float largest = 65504.0f;
    if (value > largest) {
        value = largest;
    } else if (value < -largest) {
        value = -largest;
    }
    return __float2half_rn(value);
}

__device__ inline uint4 pack(const float in[HALVES]) {
    uint4 bits;
    __half2 *pairs = reinterpret_cast<__half2 *>(&bits);
#pragma unroll
    for (int i = 0; i < HALVES / 2; i++) {
        pairs[i] = __halves2half2(to_half(in[2 * i]), to_half(in[2 * i + 1]));
    }
    return bits;
}

__device__ inline float warp_sum(float value) {
#pragma unroll
    for (int offset = WARP / 2; offset > 0; offset /= 2) {
        value += __shfl_xor_sync(0xFFFFFFFF, value, offset);
    }
    return value;
}

__device__ inline float activate(float x, bool gelu) {
    if (gelu) { /* tanh form */
        return 0.5f * x * (1 + tanhf(0.7978845608f * (x + 0.044715f * x * x * x)));
    }
    return x / (1 + expf(-x));
}

} // namespace

#endif
