/* random.cu - the weights of a random model, made where they are needed (random_weights.h). */
#include <cuda_fp16.h>

#include "../random_weights.h"
#include "kernels.h"

namespace {

enum { BLOCK = 256, GRID_MAX = 1 << 16 };

__global__ void __launch_bounds__(BLOCK)
    fill(__half *weights, uint64_t count, const kvl_random_tensor tensor) {
    const uint64_t stride = (uint64_t)gridDim.x * BLOCK;
    for (uint64_t i = (uint64_t)blockIdx.x * BLOCK + threadIdx.x; i < count; i += stride) {
        weights[i] = __float2half_rn(kvl_random_value(tensor, i));
    }
}

} // namespace

cudaError_t kvl_cuda_random_fill(
    __half *weights, uint64_t count, uint64_t key, float offset, float step, cudaStream_t stream) {
    const uint64_t blocks = (count + BLOCK - 1) / BLOCK;
    kvl_random_tensor tensor;
    tensor.key = key;
    tensor.offset = offset;
    tensor.step = step;
    fill<<<(uint32_t)(blocks < GRID_MAX ? blocks : GRID_MAX), BLOCK, 0, stream>>>(
        weights, count, tensor);
    return cudaGetLastError();
}
