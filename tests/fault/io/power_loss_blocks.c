/* power_loss_blocks.c - see power_loss_blocks.h. */
#include "power_loss_blocks.h"

#include <stdlib.h>
#include <string.h>

#include "power_loss_disk.h"
#include "power_loss_model.h"

/* Opaque blocks of many sizes, some of whole pages, and a few of a model's geometry. */
struct kvl_layout power_block_layout(uint32_t key) {
    struct kvl_layout layout;
    struct kvl_geometry geometry = {
        .layers = 3, .kv_heads = 1, .k_dim = 64, .v_dim = 64, .block_tokens = 64};
    uint64_t bytes = key % 32 == 1   ? 65536 + key / 32 % 40 * 4096
                     : key % 16 == 1 ? 130000 + key * 977
                     : key % 4 == 0  ? 1 + key * 331 % 4096
                                     : 4096 + key * 1237 % 28000;
    kvl_err err = key % 16 == 5 ? kvl_layout_of_geometry(&geometry, KVL_DTYPE_F16, &layout)
                                : kvl_layout_of_bytes(bytes, &layout);
    if (err != KVL_OK || layout.slot_bytes > POWER_SLOT_BYTES)
        abort();
    return layout;
}

/* Every fourth word is noise: codecs shrink it. */
void power_fill(uint8_t *buffer, uint64_t bytes, uint64_t seed) {
    uint64_t state = seed * 2654435761u + 1, noise = 0;
    for (uint64_t at = 0; at < bytes; at += 8) {
        noise = at % 32 == 0 ? power_random(&state) : noise >> 16;
        memcpy(buffer + at, &noise, bytes - at < 8 ? bytes - at : 8);
    }
}

uint32_t power_value_bytes(uint32_t slot, uint32_t version) {
    if (slot >= POWER_SLOTS / 2)
        return 40000 + version % 7 * 512; /* for pressure */
    return slot % 8 == 0 ? 5000 + version * 61 : 8 + (slot * 131 + version * 17) % 900;
}
