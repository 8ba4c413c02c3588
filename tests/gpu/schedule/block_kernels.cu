/* block_kernels.cu - see block_kernels.h. */
#include "block_kernels.h"

#include "block_pattern.h"

enum { THREADS = 256, BLOCKS_MAX = 64 };

static __global__ void fill(uint64_t *words, uint64_t count, uint64_t seed) {
    const uint64_t stride = (uint64_t)gridDim.x * THREADS;
    for (uint64_t i = (uint64_t)blockIdx.x * THREADS + threadIdx.x; i < count; i += stride) {
        words[i] = block_word(seed, i);
    }
}

static __global__ void check(
    const uint64_t *words, uint64_t count, uint64_t seed, unsigned long long *found) {
    const uint64_t stride = (uint64_t)gridDim.x * THREADS;
    for (uint64_t i = (uint64_t)blockIdx.x * THREADS + threadIdx.x; i < count; i += stride) {
        if (words[i] != block_word(seed, i)) {
            atomicMin(found, (unsigned long long)i);
        }
    }
}

static unsigned grid_of(uint64_t count) {
    const uint64_t blocks = (count + THREADS - 1) / THREADS;
    return (unsigned)(blocks < BLOCKS_MAX ? blocks : BLOCKS_MAX);
}

cudaError_t block_kernel_fill(uint64_t *words, uint64_t count, uint64_t seed, cudaStream_t stream) {
    fill<<<grid_of(count), THREADS, 0, stream>>>(words, count, seed);
    return cudaGetLastError();
}

cudaError_t block_kernel_check(const uint64_t *words, uint64_t count, uint64_t seed,
    unsigned long long *found, cudaStream_t stream) {
    check<<<grid_of(count), THREADS, 0, stream>>>(words, count, seed, found);
    return cudaGetLastError();
}
