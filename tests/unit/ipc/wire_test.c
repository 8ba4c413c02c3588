/* Every message round trips byte for byte; every truncation and extension of it is refused; no
 * flipped bit makes a decoder read outside of it (the sanitizers watch). */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "samples.h"

typedef bool (*sampler)(uint32_t verb, struct kvl_wire_buffer *buffer);

static kvl_wire_coder coder_of(sampler sample, uint32_t verb) {
    const struct kvl_wire_verb *entry = kvl_wire_verb(verb);
    return sample == sample_request ? entry->request : entry->reply;
}

union any {
    union kvl_wire_request request;
    union kvl_wire_reply reply;
};

/* Decodes a copy of exactly that length, so that reading past it is seen. */
static kvl_err decode_exact(kvl_wire_coder coder, const uint8_t *body, uint64_t bytes) {
    uint8_t *copy = malloc(bytes ? bytes : 1);
    union any any;
    assert_non_null(copy);
    memcpy(copy, body, bytes);
    memset(&any, 0, sizeof any);
    kvl_err err = kvl_wire_decode(coder, copy, bytes, &any);
    if (err == KVL_OK && coder == kvl_wire_seals) {
        uint64_t cursor = 0;
        for (uint32_t i = 0; i < any.request.seals.count; i++) {
            struct kvl_wire_seal seal = {0};
            kvl_wire_seal_next(&any.request.seals, &cursor, &seal);
        }
        assert_int_equal(cursor, any.request.seals.data_bytes);
    }
    free(copy);
    return err;
}

static void round_trip(sampler sample, uint32_t verb) {
    struct kvl_wire_buffer first = {0}, second = {0};
    assert_true(sample(verb, &first));
    struct kvl_wire_header header;
    assert_int_equal(kvl_wire_decode_header(first.data, first.bytes, &header), KVL_OK);
    assert_int_equal(header.verb, verb);
    assert_int_equal(header.body_bytes, first.bytes - KVL_WIRE_HEADER_BYTES);
    union any any;
    memset(&any, 0, sizeof any);
    kvl_wire_coder coder = coder_of(sample, verb);
    assert_int_equal(
        kvl_wire_decode(coder, first.data + KVL_WIRE_HEADER_BYTES, header.body_bytes, &any),
        KVL_OK);
    struct kvl_wire_seal items[8] = {0};
    if (coder == kvl_wire_seals) { /* the one message whose encoder wants structs */
        uint64_t cursor = 0;
        for (uint32_t i = 0; i < any.request.seals.count; i++)
            kvl_wire_seal_next(&any.request.seals, &cursor, &items[i]);
        any.request.seals.items = items;
    }
    assert_int_equal(kvl_wire_encode(&second, &header, coder, &any), KVL_OK);
    assert_int_equal(first.bytes, second.bytes);
    assert_memory_equal(first.data, second.data, first.bytes);
    kvl_wire_buffer_free(&first);
    kvl_wire_buffer_free(&second);
}

static void test_round_trips(void **state) {
    (void)state;
    for (uint32_t verb = 1; verb < KVL_VERB_COUNT; verb++) {
        assert_non_null(kvl_wire_verb(verb));
        round_trip(sample_request, verb);
        round_trip(sample_reply, verb);
    }
    assert_null(kvl_wire_verb(0));
    assert_null(kvl_wire_verb(KVL_VERB_COUNT));
}

static void cut_and_stretch(sampler sample, uint32_t verb) {
    struct kvl_wire_buffer buffer = {0};
    assert_true(sample(verb, &buffer));
    kvl_wire_coder coder = coder_of(sample, verb);
    uint64_t bytes = buffer.bytes - KVL_WIRE_HEADER_BYTES;
    uint8_t *body = calloc(1, bytes + 8);
    assert_non_null(body);
    memcpy(body, buffer.data + KVL_WIRE_HEADER_BYTES, bytes);
    for (uint64_t cut = 0; cut < bytes; cut++)
        assert_int_equal(decode_exact(coder, body, cut), KVL_ERR_INVALID);
    for (uint64_t more = 1; more <= 8; more++)
        assert_int_equal(decode_exact(coder, body, bytes + more), KVL_ERR_INVALID);
    free(body);
    kvl_wire_buffer_free(&buffer);
}

static void test_every_length_but_the_right_one_is_refused(void **state) {
    (void)state;
    for (uint32_t verb = 1; verb < KVL_VERB_COUNT; verb++) {
        cut_and_stretch(sample_request, verb);
        cut_and_stretch(sample_reply, verb);
    }
}

static void flip_all_bits(sampler sample, uint32_t verb) {
    struct kvl_wire_buffer buffer = {0};
    assert_true(sample(verb, &buffer));
    uint8_t *body = buffer.data + KVL_WIRE_HEADER_BYTES;
    uint64_t bytes = buffer.bytes - KVL_WIRE_HEADER_BYTES;
    for (uint64_t bit = 0; bit < bytes * 8; bit++) {
        body[bit / 8] ^= (uint8_t)(1u << bit % 8);
        kvl_err err = decode_exact(coder_of(sample, verb), body, bytes);
        assert_true(err == KVL_OK || err == KVL_ERR_INVALID);
        body[bit / 8] ^= (uint8_t)(1u << bit % 8);
    }
    kvl_wire_buffer_free(&buffer);
}

static void test_flipped_bits_stay_inside(void **state) {
    (void)state;
    for (uint32_t verb = 1; verb < KVL_VERB_COUNT; verb++) {
        flip_all_bits(sample_request, verb);
        flip_all_bits(sample_reply, verb);
    }
}

static void test_header_is_checked(void **state) {
    (void)state;
    struct kvl_wire_buffer buffer = {0};
    struct kvl_wire_header header;
    assert_true(sample_request(KVL_VERB_LOOKUP, &buffer));
    for (uint64_t cut = 0; cut < buffer.bytes; cut++)
        assert_int_equal(kvl_wire_decode_header(buffer.data, cut, &header), KVL_ERR_INVALID);
    buffer.data[4]++; /* version: told apart even if the rest means something else there */
    assert_int_equal(kvl_wire_decode_header(buffer.data, buffer.bytes, &header), KVL_ERR_VERSION);
    assert_int_equal(header.version, KVL_WIRE_VERSION + 1);
    buffer.data[4]--;
    buffer.data[0]++;
    assert_int_equal(kvl_wire_decode_header(buffer.data, buffer.bytes, &header), KVL_ERR_INVALID);
    kvl_wire_buffer_free(&buffer);
}

static void test_counts_are_bounded(void **state) {
    (void)state;
    uint8_t body[64] = {0};
    const uint32_t count = KVL_CHAIN_BLOCKS_MAX + 1;
    memcpy(body + 12, &count, sizeof count);
    assert_int_equal(decode_exact(kvl_wire_chain, body, sizeof body), KVL_ERR_INVALID);
    struct kvl_wire_buffer buffer = {0};
    struct kvl_wire_header header = {.version = KVL_WIRE_VERSION};
    struct kvl_wire_blob blob = {.bytes = KVL_WIRE_MESSAGE_BYTES_MAX};
    blob.data = calloc(1, blob.bytes);
    assert_non_null(blob.data);
    assert_int_equal(kvl_wire_encode(&buffer, &header, kvl_wire_blob, &blob), KVL_ERR_TOOBIG);
    free((void *)(uintptr_t)blob.data);
    kvl_wire_buffer_free(&buffer);
}

static void test_sizes_are_those_of_the_document(void **state) {
    (void)state;
    const struct {
        sampler sample;
        uint32_t verb;
        uint64_t body_bytes;
    } sizes[] = {{sample_request, KVL_VERB_LOOKUP, 16 + 3 * 32},
        {sample_reply, KVL_VERB_LOOKUP, 24 + 4}, {sample_reply, KVL_VERB_RESTORE, 24 + 2 * 24},
        {sample_reply, KVL_VERB_SEAL, 24 + 2 * 36}, {sample_reply, KVL_VERB_NAMESPACE_OPEN, 184},
        {sample_reply, KVL_VERB_SESSION_OPEN, 152 + 8}, {sample_reply, KVL_VERB_STATS, 884},
        {sample_request, KVL_VERB_HELLO, 196}, {sample_reply, KVL_VERB_STATS_TENANT, 228},
        {sample_reply, KVL_VERB_LIST_BLOCKS, 16 + 2 * 96},
        {sample_reply, KVL_VERB_EVENTS, 16 + 2 * 48}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        struct kvl_wire_buffer buffer = {0};
        assert_true(sizes[i].sample(sizes[i].verb, &buffer));
        assert_int_equal(buffer.bytes, 56 + sizes[i].body_bytes);
        kvl_wire_buffer_free(&buffer);
    }
}

static void test_texts_end_inside(void **state) {
    (void)state;
    struct kvl_wire_hello hello = {0};
    uint8_t body[4 + 64 + 64 + 64] = {0};
    memset(body + 4, 'x', 64); /* no NUL in the name */
    assert_int_equal(kvl_wire_decode(kvl_wire_hello, body, sizeof body, &hello), KVL_ERR_INVALID);
    memset(body + 4 + 60, 0, 4);
    assert_int_equal(kvl_wire_decode(kvl_wire_hello, body, sizeof body, &hello), KVL_OK);
    struct kvl_wire_session session = {0};
    const uint8_t name[] = {3, 0, 0, 0, 'a', 0, 'b', 0}; /* a NUL in the middle */
    assert_int_equal(
        kvl_wire_decode(kvl_wire_session_name, name, sizeof name, &session), KVL_ERR_INVALID);
}

/* A GPU is named, a memfd and what is not there have nothing to say. */
static void test_arenas_are_checked(void **state) {
    (void)state;
    static const struct {
        uint32_t count, memory, uuid, beyond;
        kvl_err err;
    } cases[] = {
        {1, KVL_ARENA_MEMFD, 0, 0, KVL_OK},
        {1, KVL_ARENA_MEMFD, 1, 0, KVL_ERR_INVALID},
        {1, KVL_ARENA_CUDA, 1, 0, KVL_OK},
        {1, KVL_ARENA_CUDA, 0, 0, KVL_ERR_INVALID},
        {1, 77, 1, 0, KVL_OK}, /* for the client to say so */
        {1, KVL_ARENA_MEMFD, 0, 1, KVL_ERR_INVALID},
        {0, KVL_ARENA_CUDA, 1, 0, KVL_ERR_INVALID},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        uint8_t data[KVL_ATTACH_BYTES_MAX];
        struct kvl_attach_reply reply = {.magic = KVL_ATTACH_MAGIC,
            .version = KVL_WIRE_VERSION,
            .arena_count = cases[i].count,
            .arenas = {
                {.memory = cases[i].memory, .bytes = 4096}, {.bytes = cases[i].beyond ? 4096 : 0}}};
        reply.arenas[0].device_uuid[15] = (uint8_t)cases[i].uuid;
        uint32_t bytes = kvl_attach_encode_reply(&reply, data);
        assert_int_equal(kvl_attach_decode_reply(data, bytes, &reply), cases[i].err);
    }
}

static void test_attach_messages(void **state) {
    (void)state;
    uint8_t data[KVL_ATTACH_BYTES_MAX + 1] = {0};
    struct kvl_attach_hello hello = {.magic = KVL_ATTACH_MAGIC,
        .version = KVL_WIRE_VERSION,
        .flags = KVL_ATTACH_LOOK_ONLY,
        .pid = 3,
        .name = "engine",
        .tenant = "acme",
        .nonce = {1, 2},
        .proof = {3, 4}};
    struct kvl_attach_hello hello_out;
    uint32_t bytes = kvl_attach_encode_hello(&hello, data);
    assert_int_equal(bytes, 208);
    assert_int_equal(kvl_attach_decode_hello(data, bytes, &hello_out), KVL_OK);
    assert_memory_equal(&hello, &hello_out, sizeof hello);
    for (uint32_t cut = 0; cut < bytes; cut++)
        assert_int_equal(kvl_attach_decode_hello(data, cut, &hello_out), KVL_ERR_INVALID);
    assert_int_equal(kvl_attach_decode_hello(data, bytes + 1, &hello_out), KVL_ERR_INVALID);
    data[4]++;
    assert_int_equal(kvl_attach_decode_hello(data, bytes, &hello_out), KVL_ERR_VERSION);

    struct kvl_attach_reply reply, reply_out;
    memset(&reply, 0, sizeof reply);
    reply.magic = KVL_ATTACH_MAGIC;
    reply.version = KVL_WIRE_VERSION;
    reply.epoch = 77;
    reply.arena_count = 2;
    reply.arenas[1].kind = KVL_TIER_HOST;
    reply.arenas[1].bytes = 1u << 30;
    reply.arenas[0].bytes = 1u << 20;
    reply.arenas[0].memory = KVL_ARENA_CUDA;
    memset(reply.arenas[0].device_uuid, 0x42, sizeof reply.arenas[0].device_uuid);
    bytes = kvl_attach_encode_reply(&reply, data);
    assert_int_equal(bytes, 144);
    assert_int_equal(kvl_attach_decode_reply(data, bytes, &reply_out), KVL_OK);
    assert_int_equal(reply_out.arenas[1].bytes, 1u << 30);
    assert_memory_equal(&reply_out.arenas[0], &reply.arenas[0], sizeof reply.arenas[0]);
    for (uint32_t cut = 0; cut < bytes; cut++)
        assert_int_equal(kvl_attach_decode_reply(data, cut, &reply_out), KVL_ERR_INVALID);
    data[44] = KVL_TIER_COUNT + 1; /* more arenas than there is room for */
    assert_int_equal(kvl_attach_decode_reply(data, bytes, &reply_out), KVL_ERR_INVALID);

    kvl_attach_encode_goodbye(data);
    assert_memory_equal(data, "KVLG\0\0\0\0", KVL_GOODBYE_BYTES);
    for (bytes = 0; bytes < sizeof data; bytes++)
        assert_int_equal(kvl_attach_is_goodbye(data, bytes), bytes == KVL_GOODBYE_BYTES);
    assert_int_equal(kvl_attach_decode_hello(data, KVL_GOODBYE_BYTES, &hello_out), KVL_ERR_INVALID);
    data[KVL_GOODBYE_BYTES - 1] = 1;
    assert_false(kvl_attach_is_goodbye(data, KVL_GOODBYE_BYTES));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trips),
        cmocka_unit_test(test_every_length_but_the_right_one_is_refused),
        cmocka_unit_test(test_flipped_bits_stay_inside),
        cmocka_unit_test(test_header_is_checked),
        cmocka_unit_test(test_counts_are_bounded),
        cmocka_unit_test(test_sizes_are_those_of_the_document),
        cmocka_unit_test(test_texts_end_inside),
        cmocka_unit_test(test_attach_messages),
        cmocka_unit_test(test_arenas_are_checked),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
