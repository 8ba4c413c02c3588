#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
/* cmocka needs the four above first */
#include <cmocka.h>
#include <string.h>

#include "utf8.h"

#define BAD "\xef\xbf\xbd"

/* Pushes text in pieces of piece_bytes; out is NUL terminated. */
static void stream_text(const char *text, uint64_t piece_bytes, char *out) {
    struct kvl_utf8_stream stream = {0};
    uint64_t written = 0, bytes = strlen(text);
    for (uint64_t at = 0; at < bytes; at += piece_bytes) {
        uint64_t left = bytes - at;
        written += kvl_utf8_push(
            &stream, text + at, left < piece_bytes ? left : piece_bytes, out + written);
    }
    written += kvl_utf8_finish(&stream, out + written);
    out[written] = '\0';
}

static void assert_streams(const char *text, const char *expected) {
    char out[KVL_UTF8_OUT_BYTES(64)];
    for (uint64_t piece_bytes = 1; piece_bytes <= 5; piece_bytes++) {
        stream_text(text, piece_bytes, out);
        assert_string_equal(out, expected);
    }
}

static void characters_come_whole(void **state) {
    (void)state;
    struct kvl_utf8_stream stream = {0};
    char out[KVL_UTF8_OUT_BYTES(8)];
    assert_int_equal(kvl_utf8_push(&stream, "a\xf0\x9f", 3, out), 1);
    assert_int_equal(kvl_utf8_push(&stream, "\x98", 1, out), 0);
    assert_int_equal(kvl_utf8_push(&stream,
                         "\x80"
                         "b",
                         2, out),
        5);
    assert_memory_equal(out,
        "\xf0\x9f\x98\x80"
        "b",
        5);
    assert_int_equal(kvl_utf8_finish(&stream, out), 0);
}

static void valid_text_passes(void **state) {
    (void)state;
    assert_streams("plain, \xc3\xa9, \xe2\x82\xac, \xed\x9f\xbf, \xf4\x8f\xbf\xbf",
        "plain, \xc3\xa9, \xe2\x82\xac, \xed\x9f\xbf, \xf4\x8f\xbf\xbf");
}

/* The examples of Unicode 15, tables 3-8 to 3-11. */
static void invalid_parts_become_replacements(void **state) {
    (void)state;
    assert_streams("\xc0\xaf\xe0\x80\xbf\xf0\x81\x82\x41", BAD BAD BAD BAD BAD BAD BAD BAD "A");
    assert_streams("\xed\xa0\x80\xed\xbf\xbf\xed\xaf\x41", BAD BAD BAD BAD BAD BAD BAD BAD "A");
    assert_streams("\xf4\x91\x92\x93\xff\x41\x80\xbf\x42", BAD BAD BAD BAD BAD "A" BAD BAD "B");
    assert_streams("\xe1\x80\xe2\xf0\x91\x92\xf1\xbf\x41", BAD BAD BAD BAD "A");
}

static void an_unfinished_end_becomes_one_replacement(void **state) {
    (void)state;
    assert_streams("a\xf0\x9f\x98", "a" BAD);
    assert_streams("a\xe2\x82", "a" BAD);
    assert_streams("a\xc3", "a" BAD);
}

static void lengths_of_characters(void **state) {
    (void)state;
    assert_int_equal(kvl_utf8_char_bytes("", 0), 0);
    assert_int_equal(kvl_utf8_char_bytes("a", 1), 1);
    assert_int_equal(kvl_utf8_char_bytes("\xe2\x82\xac", 2), 0);
    assert_int_equal(kvl_utf8_char_bytes("\xe2\x82\xac", 3), 3);
    assert_true(kvl_utf8_is_unfinished("\xe2\x82\xac", 2));
    assert_false(kvl_utf8_is_unfinished("\xe2\x82\xac", 3));
    assert_false(kvl_utf8_is_unfinished("\xe2\x41", 2));
    assert_false(kvl_utf8_is_unfinished("\x80", 1));
    assert_false(kvl_utf8_is_unfinished("", 0));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(characters_come_whole),
        cmocka_unit_test(valid_text_passes),
        cmocka_unit_test(invalid_parts_become_replacements),
        cmocka_unit_test(an_unfinished_end_becomes_one_replacement),
        cmocka_unit_test(lengths_of_characters),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
