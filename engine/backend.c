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

/* Layers that see everything: the last of every window_pattern. */
static uint32_t full_layers(const struct kvl_hparams *hparams) {
    return hparams->window == 0 ? hparams->layers : hparams->layers / hparams->window_pattern;
}

uint32_t kvl_layer_group_count(const struct kvl_hparams *hparams) {
    const uint32_t full = full_layers(hparams);
    return full == 0 || full == hparams->layers ? 1 : 2;
}

struct kvl_layer_group kvl_layer_group(const struct kvl_hparams *hparams, uint32_t group) {
    const uint32_t full = full_layers(hparams);
    if (group >= kvl_layer_group_count(hparams)) {
        return (struct kvl_layer_group){0};
    }
    if (group == 0 && full > 0) {
        return (struct kvl_layer_group){.layers = full};
    }
    return (struct kvl_layer_group){.layers = hparams->layers - full, .window = hparams->window};
}

struct kvl_layer_place kvl_layer_place(const struct kvl_hparams *hparams, uint32_t layer) {
    if (kvl_layer_group_count(hparams) == 1) {
        return (struct kvl_layer_place){.index = layer};
    }
    const uint32_t full_before = layer / hparams->window_pattern;
    if (kvl_layer_window(hparams, layer) == 0) {
        return (struct kvl_layer_place){.index = full_before};
    }
    return (struct kvl_layer_place){.group = 1, .index = layer - full_before};
}

static uint64_t bytes_of_layers(const struct kvl_hparams *hparams, uint32_t layers,
    uint32_t block_tokens, enum kvl_kv_dtype kv_dtype) {
    const uint64_t factors[] = {(uint64_t)hparams->k_dim + hparams->v_dim, hparams->kv_heads,
        layers, block_tokens, kvl_kv_dtype_bytes(kv_dtype)};
    uint64_t bytes = 1;
    for (unsigned i = 0; i < sizeof factors / sizeof factors[0]; i++) {
        if (__builtin_mul_overflow(bytes, factors[i], &bytes)) {
            return 0;
        }
    }
    return bytes;
}

uint64_t kvl_group_block_bytes(const struct kvl_hparams *hparams, uint32_t group,
    uint32_t block_tokens, enum kvl_kv_dtype kv_dtype) {
    const uint32_t layers = kvl_layer_group(hparams, group).layers;
    return bytes_of_layers(hparams, layers, block_tokens, kv_dtype);
}

uint64_t kvl_block_bytes(
    const struct kvl_hparams *hparams, uint32_t block_tokens, enum kvl_kv_dtype kv_dtype) {
    return bytes_of_layers(hparams, hparams->layers, block_tokens, kv_dtype);
}
