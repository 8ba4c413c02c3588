/* record.c - the record header and the binding of frames to their block. */
#include "record.h"

#include <string.h>

#include "planted.h"

#define OFFSET_KEY 8u
#define OFFSET_PARENT 40u
#define FRAME_ENTRY_BYTES 24u
#define OFFSET_RUN 136u
#define OFFSET_FRAMES 144u
#define OFFSET_STORED (OFFSET_FRAMES + KVL_FRAMES_MAX * FRAME_ENTRY_BYTES)
#define OFFSET_COPIED (OFFSET_STORED + 8u)
#define OFFSET_CHECKSUM (KVL_PAGE_BYTES - 8u)

_Static_assert(
    OFFSET_STORED == 912u && OFFSET_COPIED + 16u <= OFFSET_CHECKSUM, "a header is a page");

static void put(uint8_t *page, uint32_t offset, uint64_t value, uint32_t bytes) {
    for (uint32_t i = 0; i < bytes; i++)
        page[offset + i] = (uint8_t)(value >> (8 * i));
}

static uint64_t get(const uint8_t *page, uint32_t offset, uint32_t bytes) {
    uint64_t value = 0;
    for (uint32_t i = 0; i < bytes; i++)
        value |= (uint64_t)page[offset + i] << (8 * i);
    return value;
}

static uint64_t round_to_page(uint64_t bytes) {
    return (bytes + KVL_PAGE_BYTES - 1) / KVL_PAGE_BYTES * KVL_PAGE_BYTES;
}

uint64_t kvl_record_bytes_max(const struct kvl_layout *layout) {
    uint64_t bytes = KVL_PAGE_BYTES;
    for (uint32_t f = 0; f < layout->frame_count; f++)
        bytes += round_to_page(kvl_layout_frame_bytes(layout, f));
    return bytes;
}

uint64_t kvl_frame_checksum(
    uint64_t frame_hash, const struct kvl_key *key, uint64_t generation, uint32_t frame) {
    uint8_t bound[8 + KVL_KEY_BYTES + 8 + 4];
    put(bound, 0, frame_hash, 8);
    memcpy(bound + 8, key->bytes, KVL_KEY_BYTES);
    put(bound, 8 + KVL_KEY_BYTES, generation, 8);
    put(bound, 16 + KVL_KEY_BYTES, frame, 4);
    return kvl_bytes_hash(bound, sizeof(bound));
}

void kvl_record_header_write(const struct kvl_record_header *header, uint8_t *page) {
    memset(page, 0, KVL_PAGE_BYTES);
    put(page, 0, KVL_RECORD_MAGIC, 4);
    put(page, 4, KVL_RECORD_VERSION, 2);
    put(page, 6, header->frame_count, 2);
    memcpy(page + OFFSET_KEY, header->block.key.bytes, KVL_KEY_BYTES);
    memcpy(page + OFFSET_PARENT, header->block.parent.bytes, KVL_KEY_BYTES);
    put(page, 72, header->block.generation, 8);
    put(page, 80, header->block.content_hash, 8);
    put(page, 88, header->payload_bytes, 8);
    put(page, 96, header->frame_bytes, 8);
    put(page, 104, header->record_bytes, 8);
    put(page, 112, header->segment_generation, 8);
    put(page, 120, header->block.namespace_id, 4);
    put(page, 124, header->block.token_count, 4);
    put(page, 128, header->element_bytes, 4);
    put(page, 132, header->layers, 4);
    put(page, OFFSET_RUN, header->run, 8);
    put(page, OFFSET_STORED, header->stored_wall_ns, 8);
    put(page, OFFSET_COPIED, header->copied_from, 8);
    put(page, OFFSET_COPIED + 8, header->copied_from_generation, 8);
    for (uint32_t f = 0; f < header->frame_count; f++) {
        uint32_t at = OFFSET_FRAMES + f * FRAME_ENTRY_BYTES;
        put(page, at, header->frames[f].checksum, 8);
        put(page, at + 8, header->frames[f].offset_bytes / KVL_PAGE_BYTES, 4);
        put(page, at + 12, header->frames[f].stored_bytes, 4);
        put(page, at + 16, header->frames[f].codec, 4);
    }
    put(page, OFFSET_CHECKSUM, kvl_bytes_hash(page, OFFSET_CHECKSUM), 8);
}

/* Bytes of frame f before encoding; the last frame holds what is left. */
static uint64_t raw_frame_bytes(const struct kvl_record_header *header, uint32_t frame) {
    uint64_t before = header->frame_bytes * frame;
    uint64_t left = header->payload_bytes - before;
    return left < header->frame_bytes ? left : header->frame_bytes;
}

static bool sane_sizes(const struct kvl_record_header *header) {
    if (header->frame_count == 0 || header->frame_count > KVL_FRAMES_MAX)
        return false;
    if (header->payload_bytes == 0 || header->payload_bytes > KVL_RECORD_PAYLOAD_MAX)
        return false;
    if (header->frame_bytes == 0 || header->frame_bytes > header->payload_bytes)
        return false;
    uint64_t frames = (header->payload_bytes + header->frame_bytes - 1) / header->frame_bytes;
    return frames == header->frame_count && header->record_bytes % KVL_PAGE_BYTES == 0;
}

/* Frames lie one behind the other and fill the record exactly. */
static bool sane_frames(const struct kvl_record_header *header) {
    uint64_t at = KVL_PAGE_BYTES;
    for (uint32_t f = 0; f < header->frame_count; f++) {
        const struct kvl_frame_header *frame = &header->frames[f];
        uint64_t raw_bytes = raw_frame_bytes(header, f);
        if (frame->codec >= KVL_FRAME_CODECS || frame->offset_bytes != at)
            return false;
        if (frame->stored_bytes == 0 || frame->stored_bytes > raw_bytes)
            return false;
        if (frame->codec == KVL_FRAME_RAW && frame->stored_bytes != raw_bytes)
            return false;
        at += round_to_page(frame->stored_bytes);
    }
    return at == header->record_bytes;
}

kvl_err kvl_record_header_read(const uint8_t *page, struct kvl_record_header *header) {
    if (get(page, 0, 4) != KVL_RECORD_MAGIC)
        return KVL_ERR_CORRUPT;
    if (get(page, OFFSET_CHECKSUM, 8) != kvl_bytes_hash(page, OFFSET_CHECKSUM))
        return KVL_ERR_CORRUPT;
    if (get(page, 4, 2) != KVL_RECORD_VERSION)
        return KVL_ERR_VERSION;
    memset(header, 0, sizeof(*header));
    header->frame_count = (uint32_t)get(page, 6, 2);
    memcpy(header->block.key.bytes, page + OFFSET_KEY, KVL_KEY_BYTES);
    memcpy(header->block.parent.bytes, page + OFFSET_PARENT, KVL_KEY_BYTES);
    header->block.generation = get(page, 72, 8);
    header->block.content_hash = get(page, 80, 8);
    header->payload_bytes = get(page, 88, 8);
    header->frame_bytes = get(page, 96, 8);
    header->record_bytes = get(page, 104, 8);
    header->segment_generation = get(page, 112, 8);
    header->block.namespace_id = (uint32_t)get(page, 120, 4);
    header->block.token_count = (uint32_t)get(page, 124, 4);
    header->element_bytes = (uint32_t)get(page, 128, 4);
    header->layers = (uint32_t)get(page, 132, 4);
    header->run = get(page, OFFSET_RUN, 8);
    header->stored_wall_ns = get(page, OFFSET_STORED, 8);
    header->copied_from = get(page, OFFSET_COPIED, 8);
    header->copied_from_generation = get(page, OFFSET_COPIED + 8, 8);
    if (!sane_sizes(header))
        return KVL_ERR_CORRUPT;
    for (uint32_t f = 0; f < header->frame_count; f++) {
        uint32_t at = OFFSET_FRAMES + f * FRAME_ENTRY_BYTES;
        uint64_t codec = get(page, at + 16, 4);
        header->frames[f].checksum = get(page, at, 8);
        header->frames[f].offset_bytes = get(page, at + 8, 4) * KVL_PAGE_BYTES;
        header->frames[f].stored_bytes = (uint32_t)get(page, at + 12, 4);
        header->frames[f].codec =
            codec < KVL_FRAME_CODECS ? (enum kvl_frame_codec)codec : KVL_FRAME_CODECS;
    }
    return sane_frames(header) ? KVL_OK : KVL_ERR_CORRUPT;
}

kvl_err kvl_record_header_match(const struct kvl_record_header *header,
    const struct kvl_block_record *block, const struct kvl_layout *layout) {
    bool same_block = kvl_key_equal(&header->block.key, &block->key) &&
                      header->block.generation == block->generation &&
                      header->block.content_hash == block->content_hash;
    bool same_layout = header->payload_bytes == layout->payload_bytes &&
                       header->frame_bytes == layout->frame_bytes &&
                       header->frame_count == layout->frame_count &&
                       header->element_bytes == layout->element_bytes;
    same_block |= KVL_PLANTED("checksum-unbound");
    return same_block && same_layout ? KVL_OK : KVL_ERR_CORRUPT;
}

bool kvl_record_may_be_apart(const struct kvl_layout *layout) {
    return layout->payload_bytes % KVL_PAGE_BYTES == 0 &&
           (layout->frame_count == 1 || layout->frame_bytes % KVL_PAGE_BYTES == 0);
}

static uint64_t encode_frame(struct kvl_codec *codec, const struct kvl_record_source *source,
    struct kvl_frame_view raw, uint8_t *out, enum kvl_frame_codec *used) {
    if (!source->apart)
        return kvl_codec_encode(
            codec, raw, source->layout->element_bytes, source->compress, out, used);
    *used = KVL_FRAME_RAW;
    return raw.bytes;
}

kvl_err kvl_record_encode(struct kvl_codec *codec, const struct kvl_record_source *source,
    uint8_t *out, uint64_t *record_bytes, bool *all_raw) {
    const struct kvl_layout *layout = source->layout;
    struct kvl_record_header header = {
        .block = *source->block,
        .payload_bytes = layout->payload_bytes,
        .frame_bytes = layout->frame_bytes,
        .segment_generation = source->segment_generation,
        .run = source->run,
        .stored_wall_ns = source->stored_wall_ns,
        .frame_count = layout->frame_count,
        .element_bytes = layout->element_bytes,
        .layers = layout->layers,
    };
    uint64_t hashes[KVL_FRAMES_MAX];
    uint64_t at = KVL_PAGE_BYTES;
    *all_raw = true;
    if (kvl_content_hash(layout, source->payload, hashes) != source->block->content_hash &&
        !KVL_PLANTED("hash-not-rechecked"))
        return KVL_ERR_CORRUPT;
    for (uint32_t f = 0; f < layout->frame_count; f++) {
        struct kvl_frame_view raw = {
            source->payload + layout->frame_bytes * f, kvl_layout_frame_bytes(layout, f)};
        struct kvl_frame_header *frame = &header.frames[f];
        uint64_t stored = encode_frame(codec, source, raw, out + at, &frame->codec);
        frame->checksum =
            kvl_frame_checksum(hashes[f], &source->block->key, source->block->generation, f);
        frame->offset_bytes = at;
        frame->stored_bytes = (uint32_t)stored;
        *all_raw = *all_raw && frame->codec == KVL_FRAME_RAW;
        at += stored;
        if (at % KVL_PAGE_BYTES != 0) /* never of a payload apart: out ends before */
            memset(out + at, 0, round_to_page(at) - at);
        at = round_to_page(at);
    }
    header.record_bytes = at;
    *record_bytes = at;
    kvl_record_header_write(&header, out);
    return KVL_OK;
}

kvl_err kvl_record_decode_frame(struct kvl_codec *codec, const struct kvl_record_header *header,
    uint32_t frame, const uint8_t *stored, uint8_t *payload) {
    const struct kvl_frame_header *entry = &header->frames[frame];
    uint8_t *out = payload + header->frame_bytes * frame;
    uint64_t raw_bytes = raw_frame_bytes(header, frame);
    struct kvl_frame_view view = {stored, entry->stored_bytes};
    kvl_err err =
        kvl_codec_decode(codec, entry->codec, view, header->element_bytes, out, raw_bytes);
    if (err != KVL_OK)
        return err;
    uint64_t checksum = kvl_frame_checksum(
        kvl_bytes_hash(out, raw_bytes), &header->block.key, header->block.generation, frame);
    return checksum == entry->checksum || KVL_PLANTED("frame-not-checked") ? KVL_OK
                                                                           : KVL_ERR_CORRUPT;
}
