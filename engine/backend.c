/* backend.c - what every backend needs to know about the block layout (backend.h). */
#include "backend.h"

uint32_t kvl_kv_dtype_bytes(enum kvl_kv_dtype kv_dtype) {
    switch (kv_dtype) {
    case KVL_KV_F16:
    case KVL_KV_BF16:
        return 2;
    case KVL_KV_F32:
        return 4;
    }
    return 0;
}

uint64_t kvl_block_bytes(
    const struct kvl_hparams *hparams, uint32_t block_tokens, enum kvl_kv_dtype kv_dtype) {
    const uint64_t factors[] = {(uint64_t)hparams->k_dim + hparams->v_dim, hparams->kv_heads,
        hparams->layers, block_tokens, kvl_kv_dtype_bytes(kv_dtype)};
    uint64_t bytes = 1;
    for (unsigned i = 0; i < sizeof factors / sizeof factors[0]; i++) {
        if (__builtin_mul_overflow(bytes, factors[i], &bytes)) {
            return 0;
        }
    }
    return bytes;
}
