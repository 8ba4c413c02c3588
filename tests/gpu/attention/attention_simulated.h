/* attention_simulated.h - the attention kernels on the CPU, thread by thread (simulated_warp.h). */
#ifndef ATTENTION_SIMULATED_H
#define ATTENTION_SIMULATED_H

#include <stdbool.h>
#include <stddef.h>

#include "cuda/attention.h"

#ifdef __cplusplus
extern "C" {
#endif

/* See struct simulated_manner; until the next call. */
void attention_simulated_manner(bool late_copies, bool last_warp_first);
/* As kvl_cuda_attend_prefill and kvl_cuda_attend_decode, with host addresses. */
void attention_simulated_attend(const struct kvl_cuda_attention *attention, enum kvl_phase phase);
/* Whether KVL_ATTENTION_FASTEST would be the kernels for few rows. */
bool attention_simulated_takes_few(const struct kvl_cuda_attention *attention);
void attention_simulated_readable(const void *base, size_t bytes);
void attention_simulated_forget_readable(void);

#ifdef __cplusplus
}
#endif
#endif
