/* record_fuzz.c - a record of a segment, sound or damaged: what decodes is what was stored.
 *
 *   byte 0: 1 frame of any codec, from its bytes | 0 a record
 *   frame:  1 codec | 2 element bytes | 3..4 raw bytes | what is stored
 *   record: 1 flags (FLAG_*) | 2..3 payload bytes | 4 frames | 5 seed, then changes to the encoded
 *           record: u16le offset / 4, u8 count, bytes to put there
 *
 * Records are made here by the encoder, so that the corpus outlives a change of the format. */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "disk/record.h"

#define FLAG_COMPRESS 1u
#define FLAG_WORDS 2u  /* elements of 4 bytes, not 2 */
#define FLAG_OPAQUE 4u /* no elements */
#define FLAG_MEND 8u   /* the changed header gets a right checksum: what it says is to be judged */
#define CHECKSUM_AT (KVL_PAGE_BYTES - 8u)
#define DECODED_BYTES_MAX (1u << 20)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t data_bytes);

struct input {
    const uint8_t *at;
    size_t left;
};

static uint32_t take(struct input *input, unsigned bytes) {
    uint32_t value = 0;
    for (unsigned i = 0; i < bytes && input->left > 0; i++, input->left--)
        value |= (uint32_t)*input->at++ << (8 * i);
    return value;
}

static void *need(void *memory) {
    if (memory == NULL)
        abort();
    return memory;
}

static void decode_frame(struct kvl_codec *codec, struct input *input) {
    enum kvl_frame_codec kind = (enum kvl_frame_codec)(take(input, 1) % (KVL_FRAME_CODECS + 1));
    uint32_t element_bytes = take(input, 1);
    uint64_t raw_bytes = take(input, 2);
    uint8_t *out = need(malloc(raw_bytes + 1));
    struct kvl_frame_view stored = {input->at, input->left};
    kvl_err ignored = kvl_codec_decode(codec, kind, stored, element_bytes, out, raw_bytes);
    (void)ignored;
    free(out);
}

struct sample {
    struct kvl_layout layout;
    struct kvl_block_record block;
    uint8_t *payload, *record;
    uint64_t record_bytes;
    uint32_t flags;
};

/* Words whose upper bytes hardly vary, as exponents do. */
static void fill(struct sample *sample, uint32_t seed) {
    uint32_t state = seed + 1;
    for (uint64_t i = 0; i < sample->layout.payload_bytes; i++) {
        state = state * 1664525u + 1013904223u;
        sample->payload[i] = (uint8_t)(i % 2 == 0 ? state >> 24 : state >> 30);
    }
}

static void make(struct sample *sample, struct kvl_codec *codec, struct input *input) {
    *sample = (struct sample){.flags = take(input, 1)};
    uint32_t element_bytes = (sample->flags & FLAG_OPAQUE) != 0  ? 1
                             : (sample->flags & FLAG_WORDS) != 0 ? 4
                                                                 : 2;
    uint64_t payload_bytes = take(input, 2) % 16384 * element_bytes + element_bytes;
    uint64_t frames = take(input, 1) % KVL_FRAMES_MAX + 1;
    uint64_t frame_bytes = (payload_bytes / element_bytes + frames - 1) / frames * element_bytes;
    sample->layout = (struct kvl_layout){.payload_bytes = payload_bytes,
        .slot_bytes = payload_bytes,
        .frame_bytes = frame_bytes,
        .frame_count = (uint32_t)((payload_bytes + frame_bytes - 1) / frame_bytes),
        .layers = 1,
        .layers_per_frame = 1,
        .element_bytes = element_bytes};
    sample->payload = need(malloc(payload_bytes));
    fill(sample, take(input, 1));
    sample->block = (struct kvl_block_record){.key = {{7}},
        .namespace_id = 3,
        .token_count = 64,
        .generation = 11,
        .content_hash = kvl_content_hash(&sample->layout, sample->payload, NULL)};
    sample->record = need(malloc(kvl_record_bytes_max(&sample->layout)));
    struct kvl_record_source source = {.block = &sample->block,
        .layout = &sample->layout,
        .payload = sample->payload,
        .segment_generation = 5,
        .compress = (sample->flags & FLAG_COMPRESS) != 0};
    bool all_raw;
    if (kvl_record_encode(codec, &source, sample->record, &sample->record_bytes, &all_raw))
        abort();
}

/* As the disk tier reads one: the header, whether it is the block's, then every frame. */
static kvl_err load(const struct sample *sample, struct kvl_codec *codec, uint8_t *out) {
    struct kvl_record_header header;
    kvl_err err = kvl_record_header_read(sample->record, &header);
    if (err == KVL_OK && header.record_bytes != sample->record_bytes)
        err = KVL_ERR_CORRUPT;
    if (err == KVL_OK)
        err = kvl_record_header_match(&header, &sample->block, &sample->layout);
    for (uint32_t f = 0; err == KVL_OK && f < header.frame_count; f++)
        err = kvl_record_decode_frame(
            codec, &header, f, sample->record + header.frames[f].offset_bytes, out);
    return err;
}

/* A sane header of whatever block must lead nowhere outside its record. */
static void decode_as_it_says(const struct sample *sample, struct kvl_codec *codec) {
    struct kvl_record_header header;
    if (kvl_record_header_read(sample->record, &header) != KVL_OK ||
        header.record_bytes > sample->record_bytes || header.payload_bytes > DECODED_BYTES_MAX)
        return;
    uint8_t *out = need(malloc(header.payload_bytes));
    for (uint32_t f = 0; f < header.frame_count; f++) {
        kvl_err ignored = kvl_record_decode_frame(
            codec, &header, f, sample->record + header.frames[f].offset_bytes, out);
        (void)ignored;
    }
    free(out);
}

static void damage(struct sample *sample, struct input *input) {
    while (input->left >= 4) {
        uint64_t offset = take(input, 2) * 4u % sample->record_bytes;
        uint64_t count = take(input, 1) % 64 + 1;
        for (uint64_t i = 0; i < count && offset + i < sample->record_bytes; i++)
            sample->record[offset + i] = (uint8_t)take(input, 1);
    }
    if ((sample->flags & FLAG_MEND) == 0)
        return;
    uint64_t checksum = kvl_bytes_hash(sample->record, CHECKSUM_AT);
    for (unsigned i = 0; i < 8; i++)
        sample->record[CHECKSUM_AT + i] = (uint8_t)(checksum >> (8 * i));
}

static void use_record(struct kvl_codec *codec, struct input *input) {
    struct sample sample;
    make(&sample, codec, input);
    uint8_t *out = need(malloc(sample.layout.payload_bytes));
    bool changed = input->left >= 4;
    damage(&sample, input);
    kvl_err err = load(&sample, codec, out);
    if (err != KVL_OK && !changed)
        abort();
    if (err == KVL_OK && memcmp(out, sample.payload, sample.layout.payload_bytes) != 0)
        abort(); /* damage went unseen */
    decode_as_it_says(&sample, codec);
    free(out);
    free(sample.payload);
    free(sample.record);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t data_bytes) {
    static struct kvl_codec *codec; /* one for all, as in the tier */
    struct input input = {data, data_bytes};
    if (codec == NULL)
        codec = need(kvl_codec_create());
    if (take(&input, 1) % 2 == 1)
        decode_frame(codec, &input);
    else
        use_record(codec, &input);
    return 0;
}
