#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
/* cmocka needs the four above first */
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "stop_strings.h"

static void open_stops(struct kvl_stop_strings *stops, const char *const *strings, uint32_t count) {
    assert_int_equal(kvl_stop_strings_init(stops, strings, count), KVL_OK);
}

static uint64_t push(struct kvl_stop_strings *stops, const char *bytes) {
    return kvl_stop_strings_push(stops, bytes, strlen(bytes));
}

static void what_may_be_a_beginning_is_held_back(void **state) {
    (void)state;
    static const char *const strings[] = {"###", "\nUser:"};
    struct kvl_stop_strings stops;
    open_stops(&stops, strings, 2);
    assert_int_equal(push(&stops, "one #"), 4);
    assert_int_equal(push(&stops, "# "), 7); /* it was none */
    assert_int_equal(push(&stops, "\nUse"), 7);
    assert_int_equal(push(&stops, ""), 7);
    assert_int_equal(push(&stops, "r"), 7);
    assert_false(stops.found);
    assert_int_equal(push(&stops, ": and more"), 7);
    assert_true(stops.found);
    assert_int_equal(stops.found_at, 7);
    assert_int_equal(push(&stops, "whatever"), 7);
    kvl_stop_strings_restart(&stops);
    assert_int_equal(push(&stops, "ser:"), 4);
    assert_false(stops.found);
    kvl_stop_strings_deinit(&stops);
}

static void a_string_that_never_comes_holds_nothing_for_long(void **state) {
    (void)state;
    static const char *const strings[] = {"aaaaaaab"};
    struct kvl_stop_strings stops;
    uint64_t bytes = 0;
    open_stops(&stops, strings, 1);
    for (int i = 0; i < 10000; i++) {
        uint64_t safe = push(&stops, "aaa");
        bytes += 3;
        assert_true(safe <= bytes && bytes - safe <= 7);
    }
    assert_int_equal(push(&stops, "c"), bytes + 1);
    assert_false(stops.found);
    kvl_stop_strings_deinit(&stops);
}

static void of_strings_that_end_together_the_first_counts(void **state) {
    (void)state;
    static const char *const strings[] = {"c", "bc", "xbc"};
    struct kvl_stop_strings stops;
    open_stops(&stops, strings, 3);
    assert_int_equal(push(&stops, "abxbc"), 2);
    kvl_stop_strings_deinit(&stops);
    open_stops(&stops, (const char *const[]){"abcd", "bc"}, 2);
    assert_int_equal(push(&stops, "zabcd"), 2); /* the one that ends first */
    kvl_stop_strings_deinit(&stops);
}

static void wrong_strings_are_refused(void **state) {
    (void)state;
    struct kvl_stop_strings stops;
    assert_int_equal(
        kvl_stop_strings_init(&stops, (const char *const[]){"a", ""}, 2), KVL_ERR_INVALID);
    assert_int_equal(
        kvl_stop_strings_init(&stops, (const char *const[]){"\xc3"}, 1), KVL_ERR_INVALID);
    assert_int_equal(stops.count, 0);
    open_stops(&stops, NULL, 0);
    assert_int_equal(push(&stops, "abc"), 3);
    kvl_stop_strings_deinit(&stops);
}

/* Where the text can be no beginning of a string, and where a string is, by looking at all of it.
 */
struct plain {
    uint64_t safe_bytes;
    bool found;
};

static struct plain look(const char *const *strings, uint32_t count, const char *text) {
    uint64_t bytes = strlen(text), held = 0;
    for (uint64_t end = 1; end <= bytes; end++) {
        uint64_t longest = 0;
        for (uint32_t i = 0; i < count; i++) {
            uint64_t length = strlen(strings[i]);
            bool ends = length <= end && memcmp(text + end - length, strings[i], length) == 0;
            longest = ends && length > longest ? length : longest;
        }
        if (longest > 0) {
            return (struct plain){end - longest, true};
        }
    }
    for (uint32_t i = 0; i < count; i++) {
        for (uint64_t part = 1; part < strlen(strings[i]) && part <= bytes; part++) {
            if (memcmp(text + bytes - part, strings[i], part) == 0) {
                held = part > held ? part : held;
            }
        }
    }
    return (struct plain){bytes - held, false};
}

static void random_texts_agree_with_plain_search(void **state) {
    (void)state;
    uint32_t random = 7;
    for (int round = 0; round < 3000; round++) {
        char texts[3][8] = {"", "", ""}, text[25] = "";
        const char *strings[3] = {texts[0], texts[1], texts[2]};
        struct kvl_stop_strings stops;
        for (int i = 0; i < 3; i++) {
            int length = 1 + (int)((random = random * 1664525u + 1013904223u) >> 24) % 6;
            for (int j = 0; j < length; j++) {
                texts[i][j] = (random = random * 1664525u + 1013904223u) >> 31 ? 'a' : 'b';
            }
        }
        open_stops(&stops, strings, 3);
        for (int i = 0; i < 24; i++) {
            text[i] = (random = random * 1664525u + 1013904223u) >> 31 ? 'a' : 'b';
            uint64_t safe = kvl_stop_strings_push(&stops, text + i, 1);
            struct plain expected = look(strings, 3, text);
            assert_int_equal(stops.found, expected.found);
            assert_int_equal(safe, expected.safe_bytes);
        }
        kvl_stop_strings_deinit(&stops);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_may_be_a_beginning_is_held_back),
        cmocka_unit_test(a_string_that_never_comes_holds_nothing_for_long),
        cmocka_unit_test(of_strings_that_end_together_the_first_counts),
        cmocka_unit_test(wrong_strings_are_refused),
        cmocka_unit_test(random_texts_agree_with_plain_search),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
