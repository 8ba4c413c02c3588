/* Records and frames: what is encoded comes back, what is damaged never does. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
/* cmocka needs the four above first */
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "disk/record.h"
#include "disk_fixture.h"

static struct disk_fixture unused_fixture;

struct encoded {
    struct disk_block block;
    uint8_t *record;
    uint64_t record_bytes;
    bool all_raw;
};

static void encode(struct encoded *encoded, struct kvl_codec *codec, bool compress) {
    struct kvl_record_source source = {.block = &encoded->block.io.record,
        .layout = &encoded->block.layout,
        .payload = encoded->block.bytes,
        .segment_generation = 9,
        .compress = compress};
    encoded->record = aligned_alloc(KVL_PAGE_BYTES, kvl_record_bytes_max(&encoded->block.layout));
    assert_non_null(encoded->record);
    assert_int_equal(kvl_record_encode(codec, &source, encoded->record, &encoded->record_bytes,
                         &encoded->all_raw),
        KVL_OK);
}

/* Decodes what lies in the record; out is payload_bytes. */
static kvl_err decode(const struct encoded *encoded, struct kvl_codec *codec, uint8_t *out) {
    struct kvl_record_header header;
    kvl_err err = kvl_record_header_read(encoded->record, &header);
    if (err == KVL_OK)
        err = kvl_record_header_match(&header, &encoded->block.io.record, &encoded->block.layout);
    if (err == KVL_OK && header.record_bytes != encoded->record_bytes)
        err = KVL_ERR_CORRUPT;
    for (uint32_t f = 0; err == KVL_OK && f < header.frame_count; f++)
        err = kvl_record_decode_frame(
            codec, &header, f, encoded->record + header.frames[f].offset_bytes, out);
    return err;
}

static void make(struct encoded *encoded, uint32_t variant) {
    if (variant == 0)
        block_init_kv(&encoded->block, &unused_fixture, 1, 30, 3);
    else if (variant == 1)
        block_init_kv(&encoded->block, &unused_fixture, 2, 1, 1);
    else if (variant == 2)
        block_init_bytes(&encoded->block, &unused_fixture, 3, 1);
    else
        block_init_bytes(&encoded->block, &unused_fixture, 4, 300001);
    encoded->record = NULL;
}

static void release(struct encoded *encoded) {
    block_free(&encoded->block);
    free(encoded->record);
}

static void what_is_encoded_comes_back(void **state) {
    (void)state;
    struct kvl_codec *codec = kvl_codec_create();
    for (uint32_t variant = 0; variant < 8; variant++) {
        struct encoded encoded;
        make(&encoded, variant / 2);
        encode(&encoded, codec, variant % 2 == 1);
        uint8_t *out = malloc(encoded.block.layout.payload_bytes);
        assert_int_equal(decode(&encoded, codec, out), KVL_OK);
        assert_memory_equal(out, encoded.block.bytes, encoded.block.layout.payload_bytes);
        assert_true(encoded.record_bytes <= kvl_record_bytes_max(&encoded.block.layout));
        assert_int_equal(encoded.record_bytes % KVL_PAGE_BYTES, 0);
        if (variant % 2 == 0)
            assert_true(encoded.all_raw);
        free(out);
        release(&encoded);
    }
    kvl_codec_destroy(codec);
}

/* Real KV shrinks 1.15 times by planes; made-up KV of the same kind must shrink about as much. */
static void planes_shrink_kv(void **state) {
    (void)state;
    struct kvl_codec *codec = kvl_codec_create();
    struct encoded encoded;
    make(&encoded, 0);
    encode(&encoded, codec, true);
    assert_false(encoded.all_raw);
    assert_true(encoded.record_bytes * 108 < encoded.block.layout.payload_bytes * 100);
    release(&encoded);
    kvl_codec_destroy(codec);
}

static void other_bytes_than_were_sealed_are_refused(void **state) {
    (void)state;
    struct kvl_codec *codec = kvl_codec_create();
    struct encoded encoded;
    make(&encoded, 0);
    encode(&encoded, codec, true);
    encoded.block.bytes[12345] ^= 1;
    struct kvl_record_source source = {.block = &encoded.block.io.record,
        .layout = &encoded.block.layout,
        .payload = encoded.block.bytes};
    uint64_t bytes;
    bool raw;
    assert_int_equal(
        kvl_record_encode(codec, &source, encoded.record, &bytes, &raw), KVL_ERR_CORRUPT);
    release(&encoded);
    kvl_codec_destroy(codec);
}

/* A payload that is written from where it lies: the header says the same, and is all there is. */
static void a_header_apart_is_the_same(void **state) {
    (void)state;
    struct kvl_codec *codec = kvl_codec_create();
    struct encoded encoded;
    uint8_t page[2 * KVL_PAGE_BYTES], untouched[KVL_PAGE_BYTES];
    uint64_t bytes;
    bool raw = false;
    memset(page, 0xab, sizeof(page));
    memset(untouched, 0xab, sizeof(untouched));
    make(&encoded, 0);
    encode(&encoded, codec, false);
    struct kvl_record_source source = {.block = &encoded.block.io.record,
        .layout = &encoded.block.layout,
        .payload = encoded.block.bytes,
        .segment_generation = 9,
        .apart = true};
    assert_true(kvl_record_may_be_apart(&encoded.block.layout));
    assert_int_equal(kvl_record_encode(codec, &source, page, &bytes, &raw), KVL_OK);
    assert_int_equal(bytes, encoded.record_bytes);
    assert_true(raw);
    assert_memory_equal(page, encoded.record, KVL_PAGE_BYTES);
    assert_memory_equal(page + KVL_PAGE_BYTES, untouched, KVL_PAGE_BYTES);
    encoded.block.bytes[12345] ^= 1;
    assert_int_equal(kvl_record_encode(codec, &source, page, &bytes, &raw), KVL_ERR_CORRUPT);
    release(&encoded);
    kvl_codec_destroy(codec);
}

static void only_whole_pages_are_apart(void **state) {
    (void)state;
    struct kvl_layout layout;
    assert_int_equal(kvl_layout_of_bytes(65536, &layout), KVL_OK);
    assert_true(kvl_record_may_be_apart(&layout));
    assert_int_equal(kvl_layout_of_bytes(65537, &layout), KVL_OK);
    assert_false(kvl_record_may_be_apart(&layout));
    layout = (struct kvl_layout){
        .payload_bytes = 65536, .slot_bytes = 65536, .frame_bytes = 24576 + 512, .frame_count = 3};
    assert_false(kvl_record_may_be_apart(&layout));
}

/* Every bit of the header, and bits all over the frames: an error, or the very same bytes
 * (padding and bits that zstd ignores). */
static void flipped_bits_never_give_other_bytes(void **state) {
    (void)state;
    struct kvl_codec *codec = kvl_codec_create();
    for (uint32_t variant = 0; variant < 4; variant++) {
        struct encoded encoded;
        make(&encoded, 1 + variant % 2 * 2);
        encode(&encoded, codec, variant / 2 == 0);
        uint8_t *out = malloc(encoded.block.layout.payload_bytes);
        uint64_t bits = encoded.record_bytes * 8;
        uint64_t undetected = 0;
        for (uint64_t bit = 0; bit < bits; bit += bit < KVL_PAGE_BYTES * 8 ? 61 : 4999) {
            encoded.record[bit / 8] ^= (uint8_t)(1u << bit % 8);
            kvl_err err = decode(&encoded, codec, out);
            if (err == KVL_OK) {
                undetected++;
                assert_memory_equal(out, encoded.block.bytes, encoded.block.layout.payload_bytes);
                assert_true(bit >= KVL_PAGE_BYTES * 8);
            }
            encoded.record[bit / 8] ^= (uint8_t)(1u << bit % 8);
        }
        assert_true(undetected < 20);
        free(out);
        release(&encoded);
    }
    kvl_codec_destroy(codec);
}

/* A header whose checksum is right but whose numbers are absurd. */
static void hostile_headers_are_refused(void **state) {
    (void)state;
    struct kvl_codec *codec = kvl_codec_create();
    struct encoded encoded;
    struct kvl_record_header good, header;
    uint8_t page[KVL_PAGE_BYTES];
    make(&encoded, 0);
    encode(&encoded, codec, true);
    assert_int_equal(kvl_record_header_read(encoded.record, &good), KVL_OK);
    for (uint32_t attack = 0; attack < 11; attack++) {
        header = good;
        switch (attack) {
        case 0:
            header.frame_count = 0;
            break;
        case 1:
            header.frame_count = 3;
            break;
        case 2:
            header.payload_bytes = UINT64_MAX;
            break;
        case 3:
            header.payload_bytes = 0;
            break;
        case 4:
            header.frame_bytes = 0;
            break;
        case 5:
            header.frame_bytes = UINT64_MAX;
            break;
        case 6:
            header.record_bytes = 1ull << 40;
            break;
        case 7:
            header.frames[1].offset_bytes = 0;
            break;
        case 8:
            header.frames[2].stored_bytes = UINT32_MAX;
            break;
        case 9:
            header.frames[0].codec = (enum kvl_frame_codec)77;
            break;
        default:
            header.frames[0].codec = KVL_FRAME_RAW;
            break;
        }
        kvl_record_header_write(&header, page);
        assert_int_equal(kvl_record_header_read(page, &header), KVL_ERR_CORRUPT);
    }
    release(&encoded);
    kvl_codec_destroy(codec);
}

/* The codec itself, without the checksums in front of it. */
static void truncated_and_random_frames_are_corrupt(void **state) {
    (void)state;
    struct kvl_codec *codec = kvl_codec_create();
    struct disk_block block;
    block_init_kv(&block, &unused_fixture, 5, 2, 1);
    uint64_t raw_bytes = block.layout.payload_bytes;
    uint8_t *stored = malloc(raw_bytes), *out = malloc(raw_bytes), *cut = NULL;
    enum kvl_frame_codec used;
    struct kvl_frame_view raw = {block.bytes, raw_bytes};
    uint64_t bytes = kvl_codec_encode(codec, raw, 2, true, stored, &used);
    assert_int_equal(used, KVL_FRAME_PLANES);
    for (uint64_t left = 0; left < bytes; left += bytes / 97 + 1) {
        cut = malloc(left + 1); /* so that a sanitizer sees reads behind the end */
        memcpy(cut, stored, left);
        struct kvl_frame_view view = {cut, left};
        assert_int_equal(kvl_codec_decode(codec, used, view, 2, out, raw_bytes), KVL_ERR_CORRUPT);
        assert_int_not_equal(
            kvl_codec_decode(codec, KVL_FRAME_ZSTD, view, 2, out, raw_bytes), KVL_OK);
        free(cut);
    }
    srand(7);
    for (uint32_t round = 0; round < 200; round++) {
        uint8_t noise[512];
        for (uint32_t i = 0; i < sizeof(noise); i++)
            noise[i] = (uint8_t)rand();
        struct kvl_frame_view view = {noise, sizeof(noise)};
        for (int kind = KVL_FRAME_RAW; kind <= KVL_FRAME_CODECS; kind++)
            assert_int_not_equal(kvl_codec_decode(codec, (enum kvl_frame_codec)kind, view,
                                     round % 2 == 0 ? 2 : 4, out, raw_bytes),
                KVL_OK);
    }
    free(stored);
    free(out);
    block_free(&block);
    kvl_codec_destroy(codec);
}

/* f32 has four planes. */
static void four_byte_elements_come_back(void **state) {
    (void)state;
    struct kvl_codec *codec = kvl_codec_create();
    float values[4096];
    uint8_t stored[sizeof(values)], out[sizeof(values)];
    for (uint32_t i = 0; i < 4096; i++)
        values[i] = (float)(i * 2654435761u % 1000) / 997.0f;
    enum kvl_frame_codec used;
    struct kvl_frame_view raw = {(const uint8_t *)values, sizeof(values)};
    struct kvl_frame_view view = {stored, kvl_codec_encode(codec, raw, 4, true, stored, &used)};
    assert_int_equal(used, KVL_FRAME_PLANES);
    assert_true(view.bytes < sizeof(values));
    assert_int_equal(kvl_codec_decode(codec, used, view, 4, out, sizeof(values)), KVL_OK);
    assert_memory_equal(out, values, sizeof(values));
    kvl_codec_destroy(codec);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_encoded_comes_back),
        cmocka_unit_test(planes_shrink_kv),
        cmocka_unit_test(other_bytes_than_were_sealed_are_refused),
        cmocka_unit_test(a_header_apart_is_the_same),
        cmocka_unit_test(only_whole_pages_are_apart),
        cmocka_unit_test(flipped_bits_never_give_other_bytes),
        cmocka_unit_test(hostile_headers_are_refused),
        cmocka_unit_test(truncated_and_random_frames_are_corrupt),
        cmocka_unit_test(four_byte_elements_come_back),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
