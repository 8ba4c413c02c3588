/* gpu_bench.h - the parts of kvl_bench_gpu that use the CUDA runtime; gpu_copy.h is the other one.
 *
 * On GPU 0. What fails ends the program: one line on stderr, exit 1. */
#ifndef KVL_BENCH_GPU_BENCH_H
#define KVL_BENCH_GPU_BENCH_H

#include "report.h"

/* Needs 3 GiB of the GPU's memory. */
void bench_gpu_attention(struct bench_report *report);
/* shape: as of kvl_model_random; llama-8b needs 22 GiB of the GPU's memory. Says on stderr which
 * algorithms were chosen. */
void bench_gpu_engine(const char *shape, struct bench_report *report);

#endif
