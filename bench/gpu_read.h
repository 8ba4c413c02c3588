/* gpu_read.h - how fast the GPU's memory can be read: the limit of decoding. */
#ifndef KVL_BENCH_GPU_READ_H
#define KVL_BENCH_GPU_READ_H

#include <cuda_runtime_api.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Reads bytes (a multiple of 16) from front to back; *sum keeps the loads from being dropped. */
cudaError_t bench_gpu_read(const void *from, uint64_t bytes, uint32_t *sum, cudaStream_t stream);

#ifdef __cplusplus
}
#endif
#endif
