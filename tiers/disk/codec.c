/* codec.c - byte planes and zstd.
 *
 * Built with -O3: the split and join loops are written so that the compiler vectorises them; the
 * hot ones are cloned for AVX2. */
#include "codec.h"

#include <stdlib.h>
#include <string.h>

#define ZSTD_STATIC_LINKING_ONLY
#include <zstd.h>

#define KVL_ZSTD_LEVEL 1
#define KVL_PLANES_MAX 4u
#define KVL_PLANE_COMPRESSED 0x80000000u
/* Strided sample for the guess whether a plane is noise. */
#define KVL_SAMPLE_BYTES 4096u

#if defined(__x86_64__) && !defined(__SANITIZE_THREAD__) && !defined(__SANITIZE_ADDRESS__)
#define KVL_CLONES __attribute__((target_clones("avx2", "default")))
#else
#define KVL_CLONES
#endif

struct kvl_codec {
    ZSTD_CCtx *compressor;
    ZSTD_DCtx *decompressor;
    uint8_t *planes; /* scratch: all planes of one frame */
    uint64_t planes_bytes;
};

struct kvl_codec *kvl_codec_create(void) {
    struct kvl_codec *codec = calloc(1, sizeof(*codec));
    if (codec == NULL)
        return NULL;
    codec->compressor = ZSTD_createCCtx();
    codec->decompressor = ZSTD_createDCtx();
    if (codec->compressor == NULL || codec->decompressor == NULL) {
        kvl_codec_destroy(codec);
        return NULL;
    }
    return codec;
}

void kvl_codec_destroy(struct kvl_codec *codec) {
    if (codec == NULL)
        return;
    ZSTD_freeCCtx(codec->compressor);
    ZSTD_freeDCtx(codec->decompressor);
    free(codec->planes);
    free(codec);
}

static bool reserve_planes(struct kvl_codec *codec, uint64_t bytes) {
    if (codec->planes_bytes >= bytes)
        return true;
    uint8_t *grown = malloc(bytes);
    if (grown == NULL)
        return false;
    free(codec->planes);
    codec->planes = grown;
    codec->planes_bytes = bytes;
    return true;
}

KVL_CLONES static void split2(
    const uint8_t *restrict in, uint64_t count, uint8_t *restrict low, uint8_t *restrict high) {
    for (uint64_t i = 0; i < count; i++) {
        low[i] = in[2 * i];
        high[i] = in[2 * i + 1];
    }
}

KVL_CLONES static void join2(const uint8_t *restrict low, const uint8_t *restrict high,
    uint64_t count, uint8_t *restrict out) {
    for (uint64_t i = 0; i < count; i++) {
        out[2 * i] = low[i];
        out[2 * i + 1] = high[i];
    }
}

KVL_CLONES static void split4(
    const uint8_t *restrict in, uint64_t count, uint8_t *restrict planes) {
    for (uint64_t i = 0; i < count; i++) {
        planes[i] = in[4 * i];
        planes[count + i] = in[4 * i + 1];
        planes[2 * count + i] = in[4 * i + 2];
        planes[3 * count + i] = in[4 * i + 3];
    }
}

KVL_CLONES static void join4(
    const uint8_t *const planes[KVL_PLANES_MAX], uint64_t count, uint8_t *restrict out) {
    const uint8_t *p0 = planes[0], *p1 = planes[1], *p2 = planes[2], *p3 = planes[3];
    for (uint64_t i = 0; i < count; i++) {
        out[4 * i] = p0[i];
        out[4 * i + 1] = p1[i];
        out[4 * i + 2] = p2[i];
        out[4 * i + 3] = p3[i];
    }
}

/* Collision entropy of a sample: noise has about 256 equally likely values, so the sum of squared
 * counts is near n*n/256; a plane worth compressing is well above that. */
static bool looks_like_noise(const uint8_t *plane, uint64_t bytes) {
    uint32_t counts[256] = {0};
    uint64_t stride = bytes > KVL_SAMPLE_BYTES ? bytes / KVL_SAMPLE_BYTES | 1u : 1;
    uint64_t samples = 0;
    for (uint64_t i = 0; i < bytes; i += stride, samples++)
        counts[plane[i]]++;
    uint64_t squares = 0;
    for (uint32_t value = 0; value < 256; value++)
        squares += (uint64_t)counts[value] * counts[value];
    uint64_t noise = samples * samples / 256 + samples;
    return samples >= 1024 && squares < noise + noise / 4;
}

/* Compresses into at most out_bytes; 0 when that does not fit. */
static uint64_t compress_into(
    struct kvl_codec *codec, struct kvl_frame_view in, uint8_t *out, uint64_t out_bytes) {
    size_t got =
        ZSTD_compressCCtx(codec->compressor, out, out_bytes, in.data, in.bytes, KVL_ZSTD_LEVEL);
    return ZSTD_isError(got) ? 0 : got;
}

static void put_u32(uint8_t *out, uint32_t value) {
    for (uint32_t i = 0; i < 4; i++)
        out[i] = (uint8_t)(value >> (8 * i));
}

static uint32_t get_u32(const uint8_t *in) {
    return (uint32_t)in[0] | (uint32_t)in[1] << 8 | (uint32_t)in[2] << 16 | (uint32_t)in[3] << 24;
}

/* 0 when the planes do not shrink below limit. */
static uint64_t encode_planes(struct kvl_codec *codec, struct kvl_frame_view raw,
    uint32_t element_bytes, uint8_t *out, uint64_t limit) {
    uint64_t count = raw.bytes / element_bytes;
    uint64_t at = 4u * element_bytes;
    if (!reserve_planes(codec, raw.bytes))
        return 0;
    if (element_bytes == 2)
        split2(raw.data, count, codec->planes, codec->planes + count);
    else
        split4(raw.data, count, codec->planes);
    for (uint32_t p = 0; p < element_bytes; p++) {
        struct kvl_frame_view plane = {codec->planes + p * count, count};
        uint64_t got = 0;
        if (at >= limit)
            return 0;
        if (!looks_like_noise(plane.data, count))
            got = compress_into(codec, plane, out + at, limit - at);
        if (got != 0 && got < count - count / 64) {
            put_u32(out + 4u * p, (uint32_t)got | KVL_PLANE_COMPRESSED);
            at += got;
            continue;
        }
        if (count > limit - at)
            return 0;
        memcpy(out + at, plane.data, count);
        put_u32(out + 4u * p, (uint32_t)count);
        at += count;
    }
    return at;
}

static bool has_planes(uint32_t element_bytes, uint64_t raw_bytes) {
    return (element_bytes == 2 || element_bytes == 4) && raw_bytes >= 64 &&
           raw_bytes % element_bytes == 0 && raw_bytes < KVL_PLANE_COMPRESSED;
}

uint64_t kvl_codec_encode(struct kvl_codec *codec, struct kvl_frame_view raw,
    uint32_t element_bytes, bool compress, uint8_t *out, enum kvl_frame_codec *used) {
    uint64_t limit = raw.bytes - raw.bytes / 32; /* less than 3 % is not worth a decode */
    uint64_t got = 0;
    if (compress && has_planes(element_bytes, raw.bytes)) {
        *used = KVL_FRAME_PLANES;
        got = encode_planes(codec, raw, element_bytes, out, limit);
    } else if (compress && limit > 0) {
        *used = KVL_FRAME_ZSTD;
        got = compress_into(codec, raw, out, limit);
    }
    if (got != 0)
        return got;
    *used = KVL_FRAME_RAW;
    memcpy(out, raw.data, raw.bytes);
    return raw.bytes;
}

static kvl_err decompress_exactly(
    struct kvl_codec *codec, struct kvl_frame_view in, uint8_t *out, uint64_t out_bytes) {
    size_t got = ZSTD_decompressDCtx(codec->decompressor, out, out_bytes, in.data, in.bytes);
    return ZSTD_isError(got) || got != out_bytes ? KVL_ERR_CORRUPT : KVL_OK;
}

static kvl_err decode_planes(struct kvl_codec *codec, struct kvl_frame_view stored,
    uint32_t element_bytes, uint8_t *out, uint64_t raw_bytes) {
    if (!has_planes(element_bytes, raw_bytes) || stored.bytes < 4u * element_bytes)
        return KVL_ERR_CORRUPT;
    if (!reserve_planes(codec, raw_bytes))
        return KVL_ERR_NOMEM;
    uint64_t count = raw_bytes / element_bytes;
    uint64_t at = 4u * element_bytes;
    const uint8_t *planes[KVL_PLANES_MAX];
    for (uint32_t p = 0; p < element_bytes; p++) {
        uint32_t word = get_u32(stored.data + 4u * p);
        struct kvl_frame_view plane = {stored.data + at, word & ~KVL_PLANE_COMPRESSED};
        if (plane.bytes > stored.bytes - at)
            return KVL_ERR_CORRUPT;
        at += plane.bytes;
        planes[p] = plane.data;
        if ((word & KVL_PLANE_COMPRESSED) != 0) {
            planes[p] = codec->planes + p * count;
            kvl_err err = decompress_exactly(codec, plane, codec->planes + p * count, count);
            if (err != KVL_OK)
                return err;
        } else if (plane.bytes != count) {
            return KVL_ERR_CORRUPT;
        }
    }
    if (element_bytes == 2)
        join2(planes[0], planes[1], count, out);
    else
        join4(planes, count, out);
    return KVL_OK;
}

kvl_err kvl_codec_decode(struct kvl_codec *codec, enum kvl_frame_codec kind,
    struct kvl_frame_view stored, uint32_t element_bytes, uint8_t *out, uint64_t raw_bytes) {
    switch (kind) {
    case KVL_FRAME_RAW:
        if (stored.bytes != raw_bytes)
            return KVL_ERR_CORRUPT;
        if (out != stored.data)
            memcpy(out, stored.data, raw_bytes);
        return KVL_OK;
    case KVL_FRAME_ZSTD:
        return decompress_exactly(codec, stored, out, raw_bytes);
    case KVL_FRAME_PLANES:
        return decode_planes(codec, stored, element_bytes, out, raw_bytes);
    default:
        return KVL_ERR_CORRUPT;
    }
}
