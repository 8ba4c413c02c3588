/* pre_tokenizer_test.c - where each pre-tokenizer cuts; whole texts are compared with llama.cpp in
 * tests/golden. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
/* cmocka needs the four above first */
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "pre_tokenizer.h"

struct words {
    const char *text;
    char joined[256]; /* words with | between them */
    uint64_t next_bytes;
    uint32_t count, stop_after;
};

static kvl_err add_word(void *arg, uint64_t offset_bytes, uint64_t word_bytes) {
    struct words *words = arg;
    assert_int_equal(offset_bytes, words->next_bytes);
    assert_true(word_bytes > 0);
    words->next_bytes += word_bytes;
    if (strlen(words->joined) + word_bytes + 2 < sizeof words->joined) {
        if (words->count > 0) {
            strcat(words->joined, "|");
        }
        strncat(words->joined, words->text + offset_bytes, word_bytes);
    }
    return ++words->count == words->stop_after ? KVL_ERR_CANCELED : KVL_OK;
}

static struct kvl_pre_tokenizer *open_pre(const char *name) {
    struct kvl_pre_tokenizer *pre;
    struct kvl_errmsg msg;
    assert_int_equal(
        kvl_pre_tokenizer_create((struct kvl_gguf_string){name, strlen(name)}, "test", &pre, &msg),
        KVL_OK);
    return pre;
}

static void assert_words(const char *name, const char *text, const char *expected) {
    struct kvl_pre_tokenizer *pre = open_pre(name);
    struct words words = {.text = text};
    assert_int_equal(kvl_pre_tokenizer_cut(pre, text, strlen(text), add_word, &words), KVL_OK);
    assert_int_equal(words.next_bytes, strlen(text));
    assert_string_equal(words.joined, expected);
    kvl_pre_tokenizer_destroy(pre);
}

#define LONG_S "\xc5\xbf"
#define CJK "\xe4\xb8\xad\xe6\x96\x87" /* U+4E2D U+6587 */
#define ACUTE "\xc3\xa9"

static void words_end_where_the_patterns_say(void **state) {
    (void)state;
    assert_words("gpt-2", "I'm 1234  x\n\n  y!? ", "I|'m| 1234| | x|\n\n | y|!?| ");
    assert_words("gpt-2", "I'M", "I|'|M");
    assert_words("smollm", "a  12 b", "a|  |1|2| b");
    assert_words("llama-bpe", "I'M 12345 ok.\n\n x\n", "I|'M| |123|45| ok|.\n\n| x|\n");
    assert_words("llama-bpe", "\tx \n z (a)", "\tx| \n| z| (|a|)");
    assert_words("llama-bpe", "x'" LONG_S, "x|'" LONG_S); /* folds to s, and is none */
    assert_words("qwen2", "123\n \n  a", "1|2|3|\n \n| | a");
    assert_words("tekken", "HelloWORLD aB 12 ab/\n", "Hello|WORLD| a|B| |1|2| ab|/\n");
    assert_words("tekken", "I'm " CJK "A", "I|'m| " CJK "|A");
    assert_words(
        "deepseek-llm", "x " CJK "12 a" ACUTE "\n b  ", "x| |" CJK "|12| a|" ACUTE "|\n| b|  ");
    assert_words("default", "it's 12345, a  b", "it|'|s| |123|45|,| a| | b");
}

static void names_have_aliases(void **state) {
    (void)state;
    static const char *const names[] = {"phi-2", "llama3", "llama-v3", "deepseek-r1-qwen"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        kvl_pre_tokenizer_destroy(open_pre(names[i]));
    }
}

static void an_unknown_name_lists_the_known_ones(void **state) {
    (void)state;
    static const char *const known[] = {
        "smollm", "gpt-2", "llama-bpe", "qwen2", "tekken", "deepseek-llm", "default"};
    struct kvl_pre_tokenizer *pre;
    struct kvl_errmsg msg;
    assert_int_equal(
        kvl_pre_tokenizer_create((struct kvl_gguf_string){"gpt", 3}, "a.gguf", &pre, &msg),
        KVL_ERR_UNSUPPORTED);
    assert_null(pre);
    assert_non_null(strstr(msg.text, "a.gguf"));
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        assert_non_null(strstr(msg.text, known[i]));
    }
}

static void the_callers_error_ends_the_cutting(void **state) {
    (void)state;
    struct kvl_pre_tokenizer *pre = open_pre("default");
    struct words words = {.text = "a b c d", .stop_after = 2};
    assert_int_equal(kvl_pre_tokenizer_cut(pre, "a b c d", 7, add_word, &words), KVL_ERR_CANCELED);
    assert_int_equal(words.count, 2);
    kvl_pre_tokenizer_destroy(pre);
}

/* A pattern that starts over at every character of a run would not come back. */
static void long_runs_take_little_time(void **state) {
    (void)state;
    enum { BYTES = 300000 };
    static const char *const names[] = {
        "smollm", "gpt-2", "llama-bpe", "qwen2", "tekken", "deepseek-llm", "default"};
    static const char runs[] = " \naA1.\x01";
    char *text = malloc(BYTES);
    assert_non_null(text);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        struct kvl_pre_tokenizer *pre = open_pre(names[i]);
        for (size_t j = 0; j < sizeof runs - 1; j++) {
            memset(text, runs[j], BYTES);
            text[BYTES - 1] = '\x02';
            struct words words = {.text = text};
            assert_int_equal(kvl_pre_tokenizer_cut(pre, text, BYTES, add_word, &words), KVL_OK);
            assert_int_equal(words.next_bytes, BYTES);
        }
        kvl_pre_tokenizer_destroy(pre);
    }
    free(text);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(words_end_where_the_patterns_say),
        cmocka_unit_test(names_have_aliases),
        cmocka_unit_test(an_unknown_name_lists_the_known_ones),
        cmocka_unit_test(the_callers_error_ends_the_cutting),
        cmocka_unit_test(long_runs_take_little_time),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
