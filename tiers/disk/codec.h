/* codec.h - one frame of a block, encoded without loss and back.
 *
 *   RAW     the bytes as they are
 *   ZSTD    one zstd frame
 *   PLANES  u32le per plane: stored bytes, top bit set when the plane is a zstd frame | the planes
 *           plane p holds byte p of every element; element_bytes planes. Planes that look like
 *           noise (an f16 mantissa) are stored, the others (sign and exponent) are compressed.
 *
 * Threads: any; one context per concurrent call. Input to decode is hostile. */
#ifndef KVL_DISK_CODEC_H
#define KVL_DISK_CODEC_H

#include <stdbool.h>
#include <stdint.h>

#include "kvl_err.h"

enum kvl_frame_codec { KVL_FRAME_RAW, KVL_FRAME_ZSTD, KVL_FRAME_PLANES, KVL_FRAME_CODECS };

struct kvl_codec;

struct kvl_codec *kvl_codec_create(void); /* NULL: out of memory */
void kvl_codec_destroy(struct kvl_codec *codec);

struct kvl_frame_view {
    const uint8_t *data;
    uint64_t bytes;
};

/* Writes at most raw.bytes to out: falls back to RAW when that does not shrink. Returns the bytes
 * written and sets used; compress false forces RAW. */
uint64_t kvl_codec_encode(struct kvl_codec *codec, struct kvl_frame_view raw,
    uint32_t element_bytes, bool compress, uint8_t *out, enum kvl_frame_codec *used);

/* Fills exactly raw_bytes of out. CORRUPT when stored is not a whole frame of that size; NOMEM. */
KVL_MUST_CHECK kvl_err kvl_codec_decode(struct kvl_codec *codec, enum kvl_frame_codec kind,
    struct kvl_frame_view stored, uint32_t element_bytes, uint8_t *out, uint64_t raw_bytes);

#endif
