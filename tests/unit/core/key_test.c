/* key_test.c - keys against vectors that an independent script computed, and what must differ. */
#include "kvl_key.h"

#include <jansson.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "block.h"

struct hex_bytes {
    uint8_t bytes[4096];
    uint32_t count;
};

static struct hex_bytes hex_of(const json_t *object, const char *name) {
    const char *text = json_string_value(json_object_get(object, name));
    struct hex_bytes out = {.count = 0};
    assert_non_null(text);
    for (; text[2 * out.count] != '\0'; out.count++) {
        unsigned value = 0;
        assert_true(out.count < sizeof(out.bytes));
        assert_int_equal(sscanf(text + 2 * out.count, "%2x", &value), 1);
        out.bytes[out.count] = (uint8_t)value;
    }
    return out;
}

static uint32_t number_of(const json_t *object, const char *name) {
    return (uint32_t)json_integer_value(json_object_get(object, name));
}

static struct kvl_geometry geometry_of(const json_t *object) {
    return (struct kvl_geometry){
        .layers = number_of(object, "layers"),
        .kv_heads = number_of(object, "kv_heads"),
        .k_dim = number_of(object, "k_dim"),
        .v_dim = number_of(object, "v_dim"),
        .block_tokens = number_of(object, "block_tokens"),
        .layer_group = number_of(object, "layer_group"),
        .shard = number_of(object, "shard"),
    };
}

static enum kvl_dtype dtype_of(const json_t *object) {
    const char *name = json_string_value(json_object_get(object, "dtype"));
    return strcmp(name, "f32") == 0    ? KVL_DTYPE_F32
           : strcmp(name, "bf16") == 0 ? KVL_DTYPE_BF16
                                       : KVL_DTYPE_F16;
}

static void assert_hex(const struct kvl_key *key, const json_t *object, const char *name) {
    char hex[2 * KVL_KEY_BYTES + 1];
    kvl_key_hex(key, hex);
    assert_string_equal(hex, json_string_value(json_object_get(object, name)));
}

static void check_blocks(const json_t *blocks, const struct kvl_key *ns) {
    struct kvl_key parent = *ns;
    size_t i;
    json_t *block;
    json_array_foreach(blocks, i, block) {
        uint32_t tokens[KVL_BLOCK_TOKENS_MAX];
        const json_t *ids = json_object_get(block, "tokens");
        uint32_t count = (uint32_t)json_array_size(ids);
        assert_true(count <= KVL_BLOCK_TOKENS_MAX);
        for (uint32_t t = 0; t < count; t++)
            tokens[t] = (uint32_t)json_integer_value(json_array_get(ids, t));
        struct hex_bytes extra = hex_of(block, "extra");
        assert_int_equal(kvl_key_of_block(&parent, tokens, count,
                             (struct kvl_bytes){extra.bytes, extra.count}, &parent),
            KVL_OK);
        assert_hex(&parent, block, "key");
    }
}

static void check_vector(const json_t *vector) {
    const json_t *desc = json_object_get(vector, "desc");
    struct hex_bytes fingerprint = hex_of(desc, "fingerprint"), rope = hex_of(desc, "rope");
    struct hex_bytes salt = hex_of(desc, "salt"), adapter = hex_of(desc, "adapter");
    struct kvl_namespace_desc namespace_desc = {
        .geometry = geometry_of(json_object_get(desc, "geometry")),
        .dtype = dtype_of(desc),
        .rope = {rope.bytes, rope.count},
        .arithmetic_id = json_string_value(json_object_get(desc, "arithmetic_id")),
        .fidelity = json_string_value(json_object_get(desc, "fidelity")),
        .salt = {salt.bytes, salt.count},
        .adapter = {adapter.bytes, adapter.count},
    };
    struct kvl_key ns;
    assert_int_equal(fingerprint.count, 32);
    memcpy(namespace_desc.fingerprint, fingerprint.bytes, 32);
    assert_int_equal(kvl_key_of_namespace(&namespace_desc, &ns), KVL_OK);
    assert_hex(&ns, vector, "namespace");
    check_blocks(json_object_get(vector, "blocks"), &ns);
}

static void keys_equal_the_reference(void **state) {
    (void)state;
    json_error_t error;
    json_t *root = json_load_file(KVL_KEYS_JSON, 0, &error);
    if (root == NULL)
        fail_msg("%s: %s", KVL_KEYS_JSON, error.text);
    const json_t *vectors = json_object_get(root, "vectors");
    assert_true(json_array_size(vectors) > 0);
    size_t i;
    json_t *vector;
    json_array_foreach(vectors, i, vector) check_vector(vector);
    json_decref(root);
}

static void layer_groups_equal_the_reference(void **state) {
    (void)state;
    json_t *root = json_load_file(KVL_KEYS_JSON, 0, NULL);
    const json_t *groups = json_object_get(root, "groups");
    assert_true(json_array_size(groups) > 0);
    size_t i;
    json_t *group;
    json_array_foreach(groups, i, group) {
        struct kvl_geometry geometry = geometry_of(json_object_get(group, "geometry"));
        struct kvl_key first, key;
        assert_true(kvl_key_from_hex(json_string_value(json_object_get(group, "first")), &first));
        assert_int_equal(kvl_key_of_layer_group(&first, &geometry, &key), KVL_OK);
        assert_hex(&key, group, "namespace");
        assert_true(kvl_key_is_of_model(&first, &geometry, &first));
        assert_int_equal(kvl_key_is_of_model(&key, &geometry, &first), geometry.layer_group != 0);
        assert_false(kvl_key_is_of_model(&first, &geometry, &key));
        geometry.layers = 0;
        assert_int_equal(kvl_key_of_layer_group(&first, &geometry, &key), KVL_ERR_INVALID);
    }
    json_decref(root);
}

/* By looking at every token that one at the position sees. */
static void the_first_block_seen_has_the_first_token_seen(void **state) {
    (void)state;
    for (uint32_t window = 0; window < 12; window++)
        for (uint64_t position = 0; position < 40; position++) {
            struct kvl_geometry geometry = {.block_tokens = 4, .layer_group = window};
            uint64_t token = position;
            while (token > 0 && (window == 0 || position - token + 1 < window))
                token--;
            assert_int_equal(kvl_block_first_seen(&geometry, position), token / 4);
        }
}

static struct kvl_namespace_desc plain_desc(void) {
    return (struct kvl_namespace_desc){
        .geometry = {.layers = 2, .kv_heads = 1, .k_dim = 4, .v_dim = 4, .block_tokens = 4},
        .dtype = KVL_DTYPE_F16,
        .arithmetic_id = "a",
        .fidelity = "lossless",
    };
}

static void every_field_of_a_namespace_counts(void **state) {
    (void)state;
    struct kvl_namespace_desc variants[12];
    struct kvl_key keys[12];
    for (unsigned i = 0; i < 12; i++)
        variants[i] = plain_desc();
    variants[1].fingerprint[31] = 1;
    variants[2].geometry.layers = 3;
    variants[3].geometry.layer_group = 1;
    variants[4].geometry.shard = 1;
    variants[5].dtype = KVL_DTYPE_BF16;
    variants[6].rope = (struct kvl_bytes){"x", 1};
    variants[7].arithmetic_id = "b";
    variants[8].fidelity = "q8";
    variants[9].salt = (struct kvl_bytes){"x", 1};
    variants[10].adapter = (struct kvl_bytes){"x", 1};
    variants[11].geometry.block_tokens = 8;
    for (unsigned i = 0; i < 12; i++) {
        assert_int_equal(kvl_key_of_namespace(&variants[i], &keys[i]), KVL_OK);
        for (unsigned j = 0; j < i; j++)
            assert_false(kvl_key_equal(&keys[i], &keys[j]));
    }
}

static void a_chain_is_its_blocks(void **state) {
    (void)state;
    uint32_t tokens[21];
    struct kvl_key ns = {{1}}, chain[4], parent = ns, tail;
    for (uint32_t i = 0; i < 21; i++)
        tokens[i] = i * i;
    assert_int_equal(kvl_key_chain(&ns, tokens, 21, 5, chain), KVL_OK);
    for (uint32_t i = 0; i < 4; i++) {
        assert_int_equal(
            kvl_key_of_block(&parent, tokens + 5 * i, 5, (struct kvl_bytes){0}, &parent), KVL_OK);
        assert_true(kvl_key_equal(&parent, &chain[i]));
    }
    /* A shorter block is another block, also where its tokens begin the same. */
    assert_int_equal(
        kvl_key_of_block(&chain[2], tokens + 15, 4, (struct kvl_bytes){0}, &tail), KVL_OK);
    assert_false(kvl_key_equal(&tail, &chain[3]));
}

static void absurd_input_is_refused(void **state) {
    (void)state;
    struct kvl_key key;
    struct kvl_namespace_desc desc = plain_desc();
    desc.geometry.layers = UINT32_MAX;
    assert_int_equal(kvl_key_of_namespace(&desc, &key), KVL_ERR_INVALID);
    desc = plain_desc();
    desc.dtype = (enum kvl_dtype)9;
    assert_int_equal(kvl_key_of_namespace(&desc, &key), KVL_ERR_INVALID);
    desc = plain_desc();
    desc.rope.bytes = 3; /* of nothing */
    assert_int_equal(kvl_key_of_namespace(&desc, &key), KVL_ERR_INVALID);
    uint32_t tokens[1] = {0};
    assert_int_equal(
        kvl_key_of_block(&key, tokens, 0, (struct kvl_bytes){0}, &key), KVL_ERR_INVALID);
    assert_int_equal(
        kvl_key_of_block(&key, tokens, KVL_BLOCK_TOKENS_MAX + 1, (struct kvl_bytes){0}, &key),
        KVL_ERR_INVALID);
}

static void hex_goes_both_ways(void **state) {
    (void)state;
    struct kvl_key key = {{0xde, 0xad, 0xbe, 0xef}}, back;
    char hex[2 * KVL_KEY_BYTES + 1];
    kvl_key_hex(&key, hex);
    assert_memory_equal(hex, "deadbeef00", 10);
    assert_true(kvl_key_from_hex(hex, &back));
    assert_true(kvl_key_equal(&key, &back));
    hex[5] = 'g';
    assert_false(kvl_key_from_hex(hex, &back));
    hex[5] = 'a';
    hex[63] = '\0';
    assert_false(kvl_key_from_hex(hex, &back));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(keys_equal_the_reference),
        cmocka_unit_test(layer_groups_equal_the_reference),
        cmocka_unit_test(the_first_block_seen_has_the_first_token_seen),
        cmocka_unit_test(every_field_of_a_namespace_counts),
        cmocka_unit_test(a_chain_is_its_blocks),
        cmocka_unit_test(absurd_input_is_refused),
        cmocka_unit_test(hex_goes_both_ways),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
