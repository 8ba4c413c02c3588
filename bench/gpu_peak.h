/* gpu_peak.h - what a GPU can do at most, as its kernels could reach it: the limits beside figures.
 * Each enqueues on the stream; the caller times it. */
#ifndef KVL_BENCH_GPU_PEAK_H
#define KVL_BENCH_GPU_PEAK_H

#include <cuda_runtime_api.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* mma.sync.m16n8k16 (f16, f32 sums) on registers alone. `flops` gets what one launch does.
 * sink: 4 bytes of device memory. */
cudaError_t bench_gpu_tensor_peak(
    uint32_t multiprocessors, float *sink, double *flops, cudaStream_t stream);
/* Reads `bytes` (a multiple of 16) once, 16 bytes a load. */
cudaError_t bench_gpu_read(
    uint32_t multiprocessors, const void *from, uint64_t bytes, float *sink, cudaStream_t stream);

#ifdef __cplusplus
}
#endif
#endif
