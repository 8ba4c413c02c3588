/* block.h - what core and tiers both know of a block: its identity and how its bytes are cut.
 *
 * frame_bytes is what one frame (a group of layers) holds; the last one may be shorter. A frame is
 * the unit of checksums, of codecs and of "so many layers are ready". */
#ifndef KVL_BLOCK_H
#define KVL_BLOCK_H

#include <stdint.h>

#include "kvl_err.h"
#include "kvl_key.h"
#include "kvl_types.h"

#define KVL_FRAMES_MAX 32u
#define KVL_PAGE_BYTES 4096u
#define KVL_PAYLOAD_BYTES_MAX (1ull << 30)

/* Errors: INVALID (absurd, or no bytes), TOOBIG (over KVL_PAYLOAD_BYTES_MAX).
 * Frames are the smallest layer groups of at least 256 KiB (at most KVL_FRAMES_MAX of them). */
KVL_MUST_CHECK kvl_err kvl_layout_of_geometry(
    const struct kvl_geometry *geometry, enum kvl_dtype dtype, struct kvl_layout *out);
KVL_MUST_CHECK kvl_err kvl_layout_of_bytes(uint64_t payload_bytes, struct kvl_layout *out);
uint64_t kvl_layout_frame_bytes(const struct kvl_layout *layout, uint32_t frame);

/* XXH3-64 of every frame, mixed into one: the hash that seal takes and that every later copy is
 * checked against. frame_hashes may be NULL, otherwise layout->frame_count entries. Any thread. */
uint64_t kvl_content_hash(
    const struct kvl_layout *layout, const void *payload, uint64_t *frame_hashes);

/* XXH3-64 of one frame, or of other bytes, by the widest vectors that this CPU has. Any thread. */
uint64_t kvl_bytes_hash(const void *at, uint64_t bytes);

/* The second half of it, for whoever hashed the frames one by one. */
uint64_t kvl_content_hash_of_frames(const struct kvl_layout *layout, const uint64_t *frame_hashes);

/* A sealed block, as it is written to and found on a persistent tier. */
struct kvl_block_record {
    struct kvl_key key;
    struct kvl_key parent; /* the namespace's key for a chain's first block; zero for opaque */
    uint32_t namespace_id; /* the daemon's number of the namespace, kept in the catalog */
    uint32_t token_count;
    uint64_t generation; /* unique per sealed block over all time of one store */
    uint64_t content_hash;
};

#endif
