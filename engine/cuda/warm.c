/* warm.c - a prompt of one token and a step behind it, while an instance is made: the driver loads
 * a kernel at its first launch, which takes milliseconds, and may wait until the GPU is idle. */
#include "cuda_backend.h"

kvl_err kvl_cuda_warm(struct kvl_cuda *cuda, uint32_t block_tokens, enum kvl_kv_dtype kv_dtype) {
    const uint64_t bytes = kvl_block_bytes(&cuda->model->hparams, block_tokens, kv_dtype);
    uint8_t *block = NULL;
    uint32_t token = 0, best;
    struct kvl_batch batch = {.tokens = &token,
        .count = 1,
        .block_tokens = block_tokens,
        .kv_dtype = kv_dtype,
        .blocks = &block,
        .logits_rows = 1,
        .greedy_token = &best};
    if (bytes == 0 || block_tokens < 2 || cuda->context_max < 2) {
        return KVL_OK; /* no room for the step */
    }
    kvl_err err = kvl_cuda_take_memory(&cuda->base, bytes, &block);
    if (err != KVL_OK) {
        return err;
    }
    err = kvl_cuda_forward(&cuda->base, &batch, 1);
    batch.phase = KVL_PHASE_DECODE;
    batch.position = 1;
    if (err == KVL_OK) {
        err = kvl_cuda_forward(&cuda->base, &batch, 1);
    }
    kvl_cuda_give_memory_back(&cuda->base, block, bytes);
    return err;
}
