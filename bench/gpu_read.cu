/* gpu_read.cu - see gpu_read.h. */
#include "gpu_read.h"

namespace {

enum { BLOCK = 256, AT_ONCE = 8, GRID = 132 * 16 };

__global__ void __launch_bounds__(BLOCK)
    read_all(const uint4 *from, uint64_t count, uint32_t *sum) {
    const uint64_t stride = (uint64_t)gridDim.x * BLOCK;
    uint64_t i = (uint64_t)blockIdx.x * BLOCK + threadIdx.x;
    uint32_t mine = 0;
    for (; i + (AT_ONCE - 1) * stride < count; i += AT_ONCE * stride) {
        uint4 values[AT_ONCE];
#pragma unroll
        for (int j = 0; j < AT_ONCE; j++) {
            values[j] = __ldcs(from + i + j * stride);
        }
#pragma unroll
        for (int j = 0; j < AT_ONCE; j++) {
            mine ^= values[j].x ^ values[j].y ^ values[j].z ^ values[j].w;
        }
    }
    for (; i < count; i += stride) {
        mine ^= from[i].x;
    }
    if (mine == 0x9E3779B9u) {
        *sum = mine;
    }
}

} // namespace

cudaError_t bench_gpu_read(const void *from, uint64_t bytes, uint32_t *sum, cudaStream_t stream) {
    read_all<<<GRID, BLOCK, 0, stream>>>(
        static_cast<const uint4 *>(from), bytes / sizeof(uint4), sum);
    return cudaGetLastError();
}
