/* block_kernels.h - the pattern of block_pattern.h, written and checked in a GPU's memory. */
#ifndef KVL_TESTS_BLOCK_KERNELS_H
#define KVL_TESTS_BLOCK_KERNELS_H

#include <cuda_runtime_api.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

cudaError_t block_kernel_fill(uint64_t *words, uint64_t count, uint64_t seed, cudaStream_t stream);
/* *found becomes the index of the first wrong word, if that is less than what it is. */
cudaError_t block_kernel_check(const uint64_t *words, uint64_t count, uint64_t seed,
    unsigned long long *found, cudaStream_t stream);

#ifdef __cplusplus
}
#endif
#endif
