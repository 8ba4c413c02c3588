/* block.c - how a block's bytes are cut into frames, and the hash that is taken over them.
 *
 *   payload: | layer 0 | layer 1 | ... |    frame: layers_per_frame whole layers
 *
 * Frames of 256 KiB and more keep the cost of a frame (a checksum, a read) small against its
 * bytes, and are still small enough that a restore announces layers early. */
#include "block.h"

#include <xxhash.h>
#ifdef KVL_XXH_DISPATCH
#include <xxh_x86dispatch.h> /* makes XXH3_64bits choose by the CPU it runs on */
#endif

#define KVL_FRAME_BYTES_MIN (256u * 1024u)

static uint64_t divide_up(uint64_t a, uint64_t b) {
    return a / b + (a % b != 0);
}

static kvl_err layout_sizes(uint64_t payload_bytes, struct kvl_layout *out) {
    if (payload_bytes == 0)
        return KVL_ERR_INVALID;
    if (payload_bytes > KVL_PAYLOAD_BYTES_MAX)
        return KVL_ERR_TOOBIG;
    *out = (struct kvl_layout){
        .payload_bytes = payload_bytes,
        .slot_bytes = divide_up(payload_bytes, KVL_PAGE_BYTES) * KVL_PAGE_BYTES,
        .frame_bytes = payload_bytes,
        .frame_count = 1,
        .layers = 1,
        .layers_per_frame = 1,
        .element_bytes = 1,
    };
    return KVL_OK;
}

kvl_err kvl_layout_of_geometry(
    const struct kvl_geometry *geometry, enum kvl_dtype dtype, struct kvl_layout *out) {
    kvl_err err = layout_sizes(kvl_block_payload_bytes(geometry, dtype), out);
    if (err != KVL_OK)
        return err;
    uint64_t layer_bytes = out->payload_bytes / geometry->layers;
    uint64_t per_frame = divide_up(KVL_FRAME_BYTES_MIN, layer_bytes);
    uint64_t per_frame_min = divide_up(geometry->layers, KVL_FRAMES_MAX);
    if (per_frame < per_frame_min)
        per_frame = per_frame_min;
    if (per_frame > geometry->layers)
        per_frame = geometry->layers;
    out->layers = geometry->layers;
    out->layers_per_frame = (uint32_t)per_frame;
    out->frame_bytes = per_frame * layer_bytes;
    out->frame_count = (uint32_t)divide_up(geometry->layers, per_frame);
    out->element_bytes = dtype == KVL_DTYPE_F32 ? 4 : 2;
    return KVL_OK;
}

kvl_err kvl_layout_of_bytes(uint64_t payload_bytes, struct kvl_layout *out) {
    return layout_sizes(payload_bytes, out);
}

uint64_t kvl_layout_frame_bytes(const struct kvl_layout *layout, uint32_t frame) {
    if (frame >= layout->frame_count)
        return 0;
    if (frame + 1 < layout->frame_count)
        return layout->frame_bytes;
    return layout->payload_bytes - (uint64_t)frame * layout->frame_bytes;
}

/* Hashing keeps up with a GPU's link, or does not: with SSE2, which the plain call has, 19 GB/s
 * came from the cache and from memory, with AVX-512 55 and 30 (one core, EPYC). */
uint64_t kvl_bytes_hash(const void *at, uint64_t bytes) {
    return XXH3_64bits(at, bytes);
}

uint64_t kvl_content_hash_of_frames(const struct kvl_layout *layout, const uint64_t *frame_hashes) {
    return XXH3_64bits_withSeed(frame_hashes, layout->frame_count * sizeof(frame_hashes[0]),
        (XXH64_hash_t)layout->payload_bytes);
}

uint64_t kvl_content_hash(
    const struct kvl_layout *layout, const void *payload, uint64_t *frame_hashes) {
    uint64_t own[KVL_FRAMES_MAX];
    uint64_t *hashes = frame_hashes != NULL ? frame_hashes : own;
    const uint8_t *frame = payload;
    for (uint32_t i = 0; i < layout->frame_count; i++) {
        uint64_t bytes = kvl_layout_frame_bytes(layout, i);
        hashes[i] = kvl_bytes_hash(frame, bytes);
        frame += bytes;
    }
    return kvl_content_hash_of_frames(layout, hashes);
}
