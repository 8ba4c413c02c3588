/* attention_few_plan.h - how a call goes through the kernels of attention_few.h, and when that is
 * faster than those for many rows. Host code. */
#ifndef KVL_CUDA_ATTENTION_FEW_PLAN_H
#define KVL_CUDA_ATTENTION_FEW_PLAN_H

#include "attention_few_gather.h"

struct kvl_few_plan {
    uint32_t halves;        /* a block */
    uint32_t blocks;        /* of rows, in all */
    uint32_t blocks_a_turn; /* that the scratch holds; a turn is a launch of each kernel */
    uint32_t tiles_stride;
};

/* Scratch for every call of at most that many tokens and positions. */
uint64_t kvl_few_scratch_bytes(const struct kvl_cuda_attention *attention);
/* With blocks of 1, 2 or 4 halves; 0: as few as the rows need. False: these kernels do not serve
 * the call (other head sizes or block lengths, f32 keys and values, a window or a cap) or its
 * scratch is too small. */
bool kvl_few_plan_of(
    const struct kvl_cuda_attention *attention, uint32_t halves, struct kvl_few_plan *plan);
bool kvl_few_is_faster(const struct kvl_cuda_attention *attention, const struct kvl_few_plan *plan);
/* Of the turn that begins with that block. */
kvl_few_args kvl_few_args_of(const struct kvl_cuda_attention *attention,
    const struct kvl_few_plan *plan, uint32_t first_block);

#endif
