/* record.h - how one block lies in a segment: a header page, then its frames.
 *
 *   | header 4096 | frame 0, padded to 4096 | frame 1, padded | ...
 *
 * Header, little-endian:
 *      0  u32 magic "KVLR"      4  u16 version        6  u16 frame count
 *      8  key 32               40  parent 32         72  u64 generation
 *     80  u64 content hash     88  u64 payload bytes 96  u64 frame bytes
 *    104  u64 record bytes    112  u64 segment generation
 *    120  u32 namespace id    124  u32 token count  128  u32 element bytes  132  u32 layers
 *    136  u64 run: of the start of the program that wrote it (journal.h)
 *    144  32 entries of 24: u64 checksum, u32 offset in pages, u32 stored bytes, u32 codec, zero 4
 *    912  u64 wall clock, ns, when it was stored
 *    920  u64 location of the record that this one is a copy of, 0: none
 *    928  u64 segment generation of that one        936  zero to 4088
 *        4088  u64 XXH3-64 of bytes 0..4087
 *
 * A frame's checksum is XXH3-64 over: u64 hash of its raw bytes | key | u64 generation | u32 frame
 * number, so a frame of another block, of an older copy or at another place never passes.
 *
 * Threads: any. Everything parsed is hostile until it was validated here. */
#ifndef KVL_DISK_RECORD_H
#define KVL_DISK_RECORD_H

#include <stdbool.h>
#include <stdint.h>

#include "block.h"
#include "codec.h"

#define KVL_RECORD_MAGIC 0x524c564bu /* "KVLR" */
#define KVL_RECORD_VERSION 1u
/* Larger blocks are TOOBIG: offsets and sizes of a record fit 32 bits of pages and bytes. */
#define KVL_RECORD_PAYLOAD_MAX (1ull << 30)

struct kvl_frame_header {
    uint64_t checksum;
    uint64_t offset_bytes; /* in the record */
    uint32_t stored_bytes;
    enum kvl_frame_codec codec;
};

struct kvl_record_header {
    struct kvl_block_record block;
    uint64_t payload_bytes;
    uint64_t frame_bytes;
    uint64_t record_bytes;
    uint64_t segment_generation;
    uint64_t run;
    uint64_t stored_wall_ns;
    uint64_t copied_from; /* location; 0: it is no copy */
    uint64_t copied_from_generation;
    uint32_t frame_count;
    uint32_t element_bytes;
    uint32_t layers;
    struct kvl_frame_header frames[KVL_FRAMES_MAX];
};

/* Bytes a record of this layout takes at most. */
uint64_t kvl_record_bytes_max(const struct kvl_layout *layout);

uint64_t kvl_frame_checksum(
    uint64_t frame_hash, const struct kvl_key *key, uint64_t generation, uint32_t frame);

/* page: KVL_PAGE_BYTES. */
void kvl_record_header_write(const struct kvl_record_header *header, uint8_t *page);
/* VERSION: written by a newer program. CORRUPT: anything else that is not a whole, sane header. */
KVL_MUST_CHECK kvl_err kvl_record_header_read(
    const uint8_t *page, struct kvl_record_header *header);
/* CORRUPT unless the header is the one of this block in this layout. */
KVL_MUST_CHECK kvl_err kvl_record_header_match(const struct kvl_record_header *header,
    const struct kvl_block_record *block, const struct kvl_layout *layout);

struct kvl_record_source {
    const struct kvl_block_record *block;
    const struct kvl_layout *layout;
    const uint8_t *payload;
    uint64_t segment_generation;
    uint64_t run;
    uint64_t stored_wall_ns;
    bool compress;
    bool apart; /* only the header goes to out; the payload, whole pages, is written as it is */
};
bool kvl_record_may_be_apart(const struct kvl_layout *layout);
/* Hashes the payload again and encodes it to out (kvl_record_bytes_max, or a page if apart).
 * CORRUPT: the payload is not what was sealed. all_raw: every frame is stored as it is. */
KVL_MUST_CHECK kvl_err kvl_record_encode(struct kvl_codec *codec,
    const struct kvl_record_source *source, uint8_t *out, uint64_t *record_bytes, bool *all_raw);

/* Decodes one frame from stored (at its offset in the record) into payload and verifies it.
 * stored may be where the frame belongs in payload: then it is only verified. */
KVL_MUST_CHECK kvl_err kvl_record_decode_frame(struct kvl_codec *codec,
    const struct kvl_record_header *header, uint32_t frame, const uint8_t *stored,
    uint8_t *payload);

#endif
