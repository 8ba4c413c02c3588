/* warm.c - a prompt of one token and a step behind it, while an instance is made: the driver loads
 * a kernel at its first launch, which takes milliseconds, and may wait until the GPU is idle. */
#include "cuda_backend.h"

enum { SLOT_ALIGN = 256 }; /* of a layer group's block within the memory for both */

static kvl_err run(struct kvl_cuda *cuda, struct kvl_batch batch) {
    const kvl_err err = kvl_cuda_forward(&cuda->base, &batch, 1);
    batch.phase = KVL_PHASE_DECODE;
    batch.position = 1;
    return err == KVL_OK ? kvl_cuda_forward(&cuda->base, &batch, 1) : err;
}

kvl_err kvl_cuda_warm(struct kvl_cuda *cuda, uint32_t block_tokens, enum kvl_kv_dtype kv_dtype) {
    const struct kvl_hparams *h = &cuda->model->hparams;
    const uint64_t all = kvl_block_bytes(h, block_tokens, kv_dtype);
    const uint64_t full = kvl_group_block_bytes(h, 0, block_tokens, kv_dtype);
    const uint64_t bytes = all + SLOT_ALIGN;
    if (all == 0 || bytes < all || block_tokens < 2 || cuda->context_max < 2) {
        return KVL_OK; /* no room for the step */
    }
    uint8_t *block = NULL;
    const kvl_err taken = kvl_cuda_take_memory(&cuda->base, bytes, &block);
    if (taken != KVL_OK) {
        return taken;
    }
    uint8_t *window_block = block + (full + SLOT_ALIGN - 1) / SLOT_ALIGN * SLOT_ALIGN;
    uint32_t token = 0, best;
    const kvl_err err = run(cuda, (struct kvl_batch){.tokens = &token,
                                      .count = 1,
                                      .block_tokens = block_tokens,
                                      .kv_dtype = kv_dtype,
                                      .blocks = &block,
                                      .window_blocks = &window_block,
                                      .logits_rows = 1,
                                      .greedy_token = &best});
    kvl_cuda_give_memory_back(&cuda->base, block, bytes);
    return err;
}
