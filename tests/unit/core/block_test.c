/* block_test.c - how blocks are cut into frames, and that their hash sees every byte. */
#include "block.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

static void frames_cover_the_payload_in_whole_layers(void **state) {
    (void)state;
    const struct kvl_geometry geometries[] = {
        {.layers = 30, .kv_heads = 3, .k_dim = 64, .v_dim = 64, .block_tokens = 64},
        {.layers = 1, .kv_heads = 1, .k_dim = 1, .v_dim = 0, .block_tokens = 1},
        {.layers = 80, .kv_heads = 8, .k_dim = 128, .v_dim = 128, .block_tokens = 128},
        {.layers = 5, .kv_heads = 4, .k_dim = 8, .v_dim = 8, .block_tokens = 16},
        {.layers = 97, .kv_heads = 8, .k_dim = 128, .v_dim = 128, .block_tokens = 64},
    };
    for (unsigned i = 0; i < sizeof(geometries) / sizeof(geometries[0]); i++) {
        struct kvl_layout layout;
        assert_int_equal(kvl_layout_of_geometry(&geometries[i], KVL_DTYPE_F16, &layout), KVL_OK);
        uint64_t layer_bytes = layout.payload_bytes / layout.layers, sum = 0;
        assert_in_range(layout.frame_count, 1, KVL_FRAMES_MAX);
        assert_int_equal(layout.frame_bytes, layer_bytes * layout.layers_per_frame);
        assert_true((layout.frame_count - 1) * layout.layers_per_frame < layout.layers);
        assert_true(layout.frame_count * layout.layers_per_frame >= layout.layers);
        if (layout.frame_count > 1)
            assert_true(layout.frame_bytes >= 256 * 1024);
        for (uint32_t frame = 0; frame < layout.frame_count; frame++)
            sum += kvl_layout_frame_bytes(&layout, frame);
        assert_int_equal(sum, layout.payload_bytes);
        assert_int_equal(layout.slot_bytes % KVL_PAGE_BYTES, 0);
        assert_true(layout.slot_bytes >= layout.payload_bytes);
        assert_true(layout.slot_bytes < layout.payload_bytes + KVL_PAGE_BYTES);
    }
}

static void the_demo_model_has_five_frames_of_six_layers(void **state) {
    (void)state;
    const struct kvl_geometry geometry = {
        .layers = 30, .kv_heads = 3, .k_dim = 64, .v_dim = 64, .block_tokens = 64};
    struct kvl_layout layout;
    assert_int_equal(kvl_layout_of_geometry(&geometry, KVL_DTYPE_F16, &layout), KVL_OK);
    assert_int_equal(layout.payload_bytes, 64 * 22.5 * 1024);
    assert_int_equal(layout.layers_per_frame, 6);
    assert_int_equal(layout.frame_count, 5);
}

static void absurd_sizes_are_refused(void **state) {
    (void)state;
    struct kvl_layout layout;
    const struct kvl_geometry huge = {
        .layers = 4096, .kv_heads = 65536, .k_dim = 65536, .v_dim = 65536, .block_tokens = 512};
    const struct kvl_geometry none = {.layers = 0};
    assert_int_equal(kvl_layout_of_geometry(&huge, KVL_DTYPE_F32, &layout), KVL_ERR_TOOBIG);
    assert_int_equal(kvl_layout_of_geometry(&none, KVL_DTYPE_F32, &layout), KVL_ERR_INVALID);
    assert_int_equal(kvl_layout_of_bytes(0, &layout), KVL_ERR_INVALID);
    assert_int_equal(kvl_layout_of_bytes(UINT64_MAX, &layout), KVL_ERR_TOOBIG);
    assert_int_equal(kvl_layout_of_bytes(5000, &layout), KVL_OK);
    assert_int_equal(layout.slot_bytes, 8192);
}

static void the_hash_sees_every_byte_and_its_place(void **state) {
    (void)state;
    const struct kvl_geometry geometry = {
        .layers = 4, .kv_heads = 16, .k_dim = 128, .v_dim = 128, .block_tokens = 16};
    struct kvl_layout layout;
    assert_int_equal(kvl_layout_of_geometry(&geometry, KVL_DTYPE_F16, &layout), KVL_OK);
    uint8_t *payload = calloc(1, layout.slot_bytes);
    uint64_t frames[KVL_FRAMES_MAX];
    uint64_t plain = kvl_content_hash(&layout, payload, frames);
    assert_int_equal(plain, kvl_content_hash_of_frames(&layout, frames));
    const uint64_t places[] = {
        0, layout.frame_bytes - 1, layout.frame_bytes, layout.payload_bytes - 1};
    uint64_t seen[4];
    for (unsigned i = 0; i < 4; i++) {
        payload[places[i]] = 1;
        seen[i] = kvl_content_hash(&layout, payload, NULL);
        payload[places[i]] = 0;
        assert_true(seen[i] != plain);
        for (unsigned j = 0; j < i; j++)
            assert_true(seen[i] != seen[j]);
    }
    free(payload);
}

/* Hashes stand on disk: whatever vectors the CPU has, they are those of plain XXH3-64. */
static void the_hash_is_the_same_on_every_cpu(void **state) {
    (void)state;
    enum { BYTES = 4200 };
    uint8_t *bytes = malloc(BYTES + 64 + (1u << 20));
    assert_non_null(bytes);
    for (uint32_t i = 0; i < BYTES + 64 + (1u << 20); i++)
        bytes[i] = (uint8_t)(i * 2654435761u >> 23);
    for (uint32_t count = 0; count <= BYTES; count++) {
        const uint8_t *at = bytes + count % 61;
        assert_true(kvl_bytes_hash(at, count) == XXH3_64bits(at, count));
    }
    for (uint32_t i = 0; i < 64; i += 7)
        assert_true(kvl_bytes_hash(bytes + i, 1u << 20) == XXH3_64bits(bytes + i, 1u << 20));
    free(bytes);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(frames_cover_the_payload_in_whole_layers),
        cmocka_unit_test(the_demo_model_has_five_frames_of_six_layers),
        cmocka_unit_test(absurd_sizes_are_refused),
        cmocka_unit_test(the_hash_sees_every_byte_and_its_place),
        cmocka_unit_test(the_hash_is_the_same_on_every_cpu),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
