#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
/* cmocka needs the four above first */
#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tokenizer.h"
#include "tokenizer_vocab.h"

struct fixture {
    struct gguf_writer writer;
    struct kvl_gguf *gguf;
    struct kvl_tokenizer *tokenizer;
    struct kvl_errmsg msg;
};

static kvl_err open_fixture(struct fixture *f) {
    uint64_t bytes;
    const uint8_t *file = gguf_writer_finish(&f->writer, &bytes);
    assert_int_equal(kvl_gguf_open_memory(file, bytes, "tiny", &f->gguf, &f->msg), KVL_OK);
    return kvl_tokenizer_create(f->gguf, &f->tokenizer, &f->msg);
}

static void close_fixture(struct fixture *f) {
    kvl_tokenizer_destroy(f->tokenizer);
    kvl_gguf_close(f->gguf);
    gguf_writer_deinit(&f->writer);
}

static void open_bpe(struct fixture *f) {
    memset(f, 0, sizeof *f);
    gguf_writer_init(&f->writer);
    vocab_add_bpe(&f->writer);
    assert_int_equal(open_fixture(f), KVL_OK);
}

static void assert_ids(struct fixture *f, const char *text, uint64_t text_bytes, unsigned flags,
    const uint32_t *expected, uint64_t count) {
    struct kvl_token_list list = {0};
    for (int round = 0; round < 2; round++) { /* the second time words come from the cache */
        list.count = 0;
        assert_int_equal(kvl_tokenize(f->tokenizer, text, text_bytes, flags, &list), KVL_OK);
        assert_int_equal(list.count, count);
        assert_memory_equal(list.ids, expected, count * sizeof *expected);
    }
    kvl_token_list_free(&list);
}

#define IDS(...)                                                                                   \
    (const uint32_t[]){__VA_ARGS__}, sizeof((const uint32_t[]){__VA_ARGS__}) / sizeof(uint32_t)
#define B(byte) vocab_byte(byte)
#define M(merge) vocab_merged(merge)

static void bpe_merges_by_rank(void **state) {
    (void)state;
    struct fixture f;
    open_bpe(&f);
    assert_ids(&f, "hello", 5, 0, IDS(M(3)));
    assert_ids(&f, "hello hello", 11, 0, IDS(M(3), M(4)));
    assert_ids(&f, "hel", 3, 0, IDS(M(0), B('l')));
    assert_ids(&f, "lll", 3, 0, IDS(M(1), B('l'))); /* the leftmost pair */
    close_fixture(&f);
}

static void bpe_cuts_words_as_the_pattern_says(void **state) {
    (void)state;
    struct fixture f;
    open_bpe(&f);
    /* digits stand alone; the white space before one stays whole, before a letter it does not */
    assert_ids(&f, "  12", 4, 0, IDS(M(6), B('1'), B('2')));
    assert_ids(&f, "  hello", 7, 0, IDS(B(' '), M(4)));
    assert_ids(&f, "  ", 2, 0, IDS(M(6)));
    /* 's is a word of its own after a letter, and not after a space */
    assert_ids(&f, "a's", 3, 0, IDS(B('a'), M(5)));
    assert_ids(&f, " 's", 3, 0, IDS(B(' '), B('\''), B('s')));
    close_fixture(&f);
}

static void special_text_is_text_unless_asked_for(void **state) {
    (void)state;
    struct fixture f;
    open_bpe(&f);
    struct kvl_token_list list = {0};
    assert_int_equal(kvl_tokenize(f.tokenizer, "<|im_end|>", 10, 0, &list), KVL_OK);
    for (uint64_t i = 0; i < list.count; i++) {
        assert_false(kvl_token_is_control(f.tokenizer, list.ids[i]));
    }
    assert_ids(&f, "a<|im_end|>hello<|im_", 21, KVL_TOKENIZE_PARSE_SPECIAL,
        IDS(B('a'), VOCAB_IM_END, M(3), B('<'), B('|'), B('i'), B('m'), B('_')));
    assert_ids(&f, "<note>", 6, 0, IDS(VOCAB_NOTE)); /* user defined: always */
    assert_int_equal(kvl_tokenizer_special(f.tokenizer, "<|im_start|>"), VOCAB_IM_START);
    assert_int_equal(kvl_tokenizer_special(f.tokenizer, "hello"), KVL_TOKEN_NONE);
    assert_true(kvl_token_is_control(f.tokenizer, VOCAB_IM_START));
    assert_false(kvl_token_is_control(f.tokenizer, VOCAB_NOTE));
    assert_true(kvl_token_is_end_of_generation(f.tokenizer, VOCAB_IM_END));
    assert_true(kvl_token_is_end_of_generation(f.tokenizer, VOCAB_ENDOFTEXT));
    assert_false(kvl_token_is_end_of_generation(f.tokenizer, VOCAB_IM_START));
    kvl_token_list_free(&list);
    close_fixture(&f);
}

static void any_bytes_come_back(void **state) {
    (void)state;
    struct fixture f;
    open_bpe(&f);
    struct kvl_token_list list = {0};
    uint32_t random = 1;
    for (int round = 0; round < 2000; round++) {
        char text[40];
        char back[sizeof text];
        uint64_t back_bytes = 0;
        for (size_t i = 0; i < sizeof text; i++) {
            random = random * 1664525u + 1013904223u;
            text[i] = (char)(random >> 24);
            if ((uint8_t)text[i] == 0x04 || (uint8_t)text[i] == 0xff) {
                text[i] = 'h';
            }
        }
        list.count = 0;
        assert_int_equal(kvl_tokenize(f.tokenizer, text, sizeof text, 0, &list), KVL_OK);
        for (uint64_t i = 0; i < list.count; i++) {
            struct kvl_gguf_string piece = kvl_token_piece(f.tokenizer, list.ids[i]);
            assert_true(back_bytes + piece.bytes <= sizeof back);
            memcpy(back + back_bytes, piece.data, piece.bytes);
            back_bytes += piece.bytes;
        }
        assert_int_equal(back_bytes, sizeof text);
        assert_memory_equal(back, text, sizeof text);
    }
    kvl_token_list_free(&list);
    close_fixture(&f);
}

static void bytes_without_a_token(void **state) {
    (void)state;
    struct fixture f;
    open_bpe(&f);
    assert_ids(&f,
        "h\x04"
        "e",
        3, 0, IDS(B('h'), B('e'))); /* valid: lost, and nothing joins over it */
    assert_ids(&f,
        "h\xff"
        "e",
        3, 0, IDS(B('h'), M(8), B('e'))); /* invalid: U+FFFD */
    assert_ids(&f, "\xc3", 1, 0, IDS(B(0xc3)));
    close_fixture(&f);
}

static void a_bos_comes_where_the_file_asks(void **state) {
    (void)state;
    struct fixture f = {0};
    open_bpe(&f);
    assert_ids(&f, "hello", 5, KVL_TOKENIZE_ADD_BOS, IDS(M(3)));
    close_fixture(&f);
    memset(&f, 0, sizeof f);
    gguf_writer_init(&f.writer);
    vocab_add_bpe(&f.writer);
    gguf_add_bool(&f.writer, "tokenizer.ggml.add_bos_token", true);
    assert_int_equal(open_fixture(&f), KVL_OK);
    assert_ids(&f, "hello", 5, KVL_TOKENIZE_ADD_BOS, IDS(VOCAB_IM_START, M(3)));
    assert_ids(&f, "hello", 5, 0, IDS(M(3)));
    assert_int_equal(kvl_tokenizer_bos(f.tokenizer), VOCAB_IM_START);
    assert_int_equal(kvl_tokenizer_eos(f.tokenizer), VOCAB_IM_END);
    close_fixture(&f);
}

static void assert_not_created(struct fixture *f, kvl_err expected, const char *says) {
    assert_int_equal(open_fixture(f), expected);
    assert_null(f->tokenizer);
    assert_non_null(strstr(f->msg.text, says));
    close_fixture(f);
    memset(f, 0, sizeof *f);
    gguf_writer_init(&f->writer);
}

static void what_is_not_supported_is_named(void **state) {
    (void)state;
    struct fixture f = {0};
    gguf_writer_init(&f.writer);
    assert_not_created(&f, KVL_ERR_UNSUPPORTED, "no tokenizer");
    gguf_add_string(&f.writer, "tokenizer.ggml.model", "bert");
    assert_not_created(&f, KVL_ERR_UNSUPPORTED, "'bert'");
    vocab_add_bpe_with(&f.writer, "nobodys", NULL);
    assert_not_created(&f, KVL_ERR_UNSUPPORTED, "'nobodys'");
    vocab_add_bpe_with(&f.writer, "smollm", "x y");
    assert_not_created(&f, KVL_ERR_CORRUPT, "merge 9");
    vocab_add_bpe_with(&f.writer, "smollm", "xy");
    assert_not_created(&f, KVL_ERR_CORRUPT, "merge 9");
    vocab_add_bpe_with(&f.writer, "smollm", "hello ");
    assert_not_created(&f, KVL_ERR_CORRUPT, "merge 9"); /* "hello" from "hello": a loop */
    vocab_add_bpe_with(&f.writer, "smollm", " hello");
    assert_not_created(&f, KVL_ERR_CORRUPT, "merge 9");
    gguf_add_string(&f.writer, "tokenizer.ggml.model", "gpt2");
    gguf_add_u32(&f.writer, "tokenizer.ggml.tokens", 3);
    assert_not_created(&f, KVL_ERR_CORRUPT, "tokenizer.ggml.tokens");
    gguf_writer_deinit(&f.writer);
}

/* A merge is as long as its parts together, so none can lead back; a pair may stand twice. */
static void merges_end(void **state) {
    (void)state;
    static const char *const extra[] = {"h e", "hell o"};
    for (size_t i = 0; i < sizeof extra / sizeof *extra; i++) {
        struct fixture f = {0};
        gguf_writer_init(&f.writer);
        vocab_add_bpe_with(&f.writer, "smollm", extra[i]);
        assert_int_equal(open_fixture(&f), KVL_OK);
        assert_ids(&f, "hello", 5, 0, IDS(M(3))); /* the first of two equal pairs counts */
        close_fixture(&f);
    }
}

/* Special tokens that overlap: the longer one counts, wherever they stand; then the left one. */
static void overlapping_specials_are_cut_longest_first(void **state) {
    (void)state;
    static const char *const texts[] = {"a", "b", "c", "d", "abc", "bcdd", "dd", "d", "aa"};
    static const int32_t kinds[] = {1, 1, 1, 1, 4, 4, 4, 4, 3};
    static const char *const merges[] = {"a b"};
    struct fixture f = {0};
    gguf_writer_init(&f.writer);
    gguf_add_string(&f.writer, "tokenizer.ggml.model", "gpt2");
    gguf_add_string(&f.writer, "tokenizer.ggml.pre", "gpt-2");
    gguf_add_strings(&f.writer, "tokenizer.ggml.tokens", texts, 9);
    gguf_add_array(&f.writer, "tokenizer.ggml.token_type", KVL_GGUF_I32, 4, kinds, 9);
    gguf_add_strings(&f.writer, "tokenizer.ggml.merges", merges, 0);
    assert_int_equal(open_fixture(&f), KVL_OK);
    assert_ids(&f, "abcdd", 5, 0, IDS(0, 5));
    assert_ids(&f, "abcd", 4, 0, IDS(4, 7));
    assert_ids(&f, "ddddd", 5, 0, IDS(6, 6, 7));
    assert_ids(&f, "cabcabcddab", 11, 0, IDS(2, 4, 0, 5, 0, 1));
    assert_ids(&f, "aaa", 3, 0, IDS(0, 0, 0));
    assert_ids(&f, "aaa", 3, KVL_TOKENIZE_PARSE_SPECIAL, IDS(8, 0));
    assert_ids(&f, "aabc", 4, KVL_TOKENIZE_PARSE_SPECIAL, IDS(0, 4));
    close_fixture(&f);
}

#define MARK "\xe2\x96\x81"

static void open_spm(struct fixture *f) {
    static const char *const texts[] = {"<unk>", "<s>", "</s>", "<0x0A>", "<0xC3>", MARK, "a", "b",
        "ab", (MARK "a"), "ba", (MARK "ab"), "<", "s", ">", "<s"};
    static const int32_t kinds[] = {2, 3, 3, 6, 6, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
    static const float scores[] = {0, 0, 0, 0, 0, -9, -9, -9, -2, -3, -2, -5, -9, -9, -9, -1};
    memset(f, 0, sizeof *f);
    gguf_writer_init(&f->writer);
    gguf_add_string(&f->writer, "tokenizer.ggml.model", "llama");
    gguf_add_strings(&f->writer, "tokenizer.ggml.tokens", texts, 16);
    gguf_add_array(&f->writer, "tokenizer.ggml.token_type", KVL_GGUF_I32, 4, kinds, 16);
    gguf_add_array(&f->writer, "tokenizer.ggml.scores", KVL_GGUF_F32, 4, scores, 16);
    gguf_add_u32(&f->writer, "tokenizer.ggml.bos_token_id", 1);
}

/* A SentencePiece vocabulary of three tokens that lies about its own sizes. */
struct lies {
    uint64_t kinds, scores; /* how many there are */
    uint32_t kind_type, score_type;
    float first_score;
    uint32_t unknown, bos;
};

static void add_lying_spm(struct fixture *f, const struct lies *lies) {
    static const char *const texts[] = {"<unk>", "a", "b"};
    const int32_t kinds[4] = {2, 1, 1, 1};
    const float scores[4] = {lies->first_score, -1, -2, -3};
    gguf_add_string(&f->writer, "tokenizer.ggml.model", "llama");
    gguf_add_strings(&f->writer, "tokenizer.ggml.tokens", texts, 3);
    gguf_add_array(&f->writer, "tokenizer.ggml.token_type", lies->kind_type, 4, kinds, lies->kinds);
    gguf_add_array(&f->writer, "tokenizer.ggml.scores", lies->score_type, 4, scores, lies->scores);
    gguf_add_u32(&f->writer, "tokenizer.ggml.unknown_token_id", lies->unknown);
    gguf_add_u32(&f->writer, "tokenizer.ggml.bos_token_id", lies->bos);
}

static void sizes_that_do_not_match_are_refused(void **state) {
    (void)state;
    const struct lies good = {3, 3, KVL_GGUF_I32, KVL_GGUF_F32, 0, 0, 1};
    struct lies bad[9] = {good, good, good, good, good, good, good, good, good};
    static const char *const says[9] = {"token_type", "token_type", "token_type", "scores",
        "scores", "scores", "not a number", "unknown token", "BOS"};
    bad[0].kinds = 2;
    bad[1].kinds = 4;
    bad[2].kind_type = KVL_GGUF_F32;
    bad[3].scores = 2;
    bad[4].scores = 4;
    bad[5].score_type = KVL_GGUF_I32;
    bad[6].first_score = NAN;
    bad[7].unknown = 3;
    bad[8].bos = UINT32_MAX;
    struct fixture f = {0};
    gguf_writer_init(&f.writer);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        add_lying_spm(&f, &bad[i]);
        assert_not_created(&f, KVL_ERR_CORRUPT, says[i]);
    }
    add_lying_spm(&f, &good);
    assert_int_equal(open_fixture(&f), KVL_OK);
    close_fixture(&f);
}

static void spm_merges_by_score(void **state) {
    (void)state;
    struct fixture f;
    open_spm(&f);
    assert_int_equal(open_fixture(&f), KVL_OK);
    assert_ids(&f, "ab", 2, KVL_TOKENIZE_ADD_BOS, IDS(1, 11)); /* "_ab" by way of "ab" */
    assert_ids(&f, "aab", 3, 0, IDS(9, 8));
    assert_ids(&f, "bab", 3, 0, IDS(5, 10, 7));       /* equal scores: the leftmost */
    assert_ids(&f, "\n\xc3x", 3, 0, IDS(5, 3, 4, 0)); /* bytes, and one that has no token */
    assert_ids(&f, "<s>", 3, 0, IDS(5, 15, 14));      /* never the control token */
    assert_ids(&f, "a<s>a", 5, KVL_TOKENIZE_PARSE_SPECIAL, IDS(9, 1, 9));
    assert_ids(&f, "", 0, KVL_TOKENIZE_ADD_BOS, IDS(1));
    struct kvl_gguf_string piece = kvl_token_piece(f.tokenizer, 11);
    assert_int_equal(piece.bytes, 3);
    assert_memory_equal(piece.data, " ab", 3);
    piece = kvl_token_piece(f.tokenizer, 4);
    assert_int_equal(piece.bytes, 1);
    assert_memory_equal(piece.data, "\xc3", 1);
    assert_int_equal(kvl_token_piece(f.tokenizer, 16).bytes, 0);
    close_fixture(&f);
    open_spm(&f);
    gguf_add_bool(&f.writer, "tokenizer.ggml.add_space_prefix", false);
    assert_int_equal(open_fixture(&f), KVL_OK);
    assert_ids(&f, "ab", 2, 0, IDS(8));
    close_fixture(&f);
}

static void open_spm_words(struct fixture *f, const char *name, const char *last_text) {
    const char *const texts[] = {"<unk>", "<s>", "<|end|>", MARK, "a", "b", (MARK "a"), "ab",
        (MARK "ab"), (MARK MARK), "\n", last_text};
    static const int32_t kinds[] = {2, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1};
    static const float scores[] = {0, 0, 0, -9, -9, -9, -4, -3, -5, -2, -9, -1};
    memset(f, 0, sizeof *f);
    gguf_writer_init(&f->writer);
    gguf_add_string(&f->writer, "general.name", name);
    gguf_add_string(&f->writer, "tokenizer.ggml.model", "llama");
    gguf_add_strings(&f->writer, "tokenizer.ggml.tokens", texts, 12);
    gguf_add_array(&f->writer, "tokenizer.ggml.token_type", KVL_GGUF_I32, 4, kinds, 12);
    gguf_add_array(&f->writer, "tokenizer.ggml.scores", KVL_GGUF_F32, 4, scores, 12);
    gguf_add_u32(&f->writer, "tokenizer.ggml.bos_token_id", 1);
    assert_int_equal(open_fixture(f), KVL_OK);
}

/* Words are encoded one by one where no token reaches over their border, else together. */
static void spm_joins_over_words_where_a_token_does(void **state) {
    (void)state;
    struct fixture f;
    open_spm_words(&f, "x", "zz");
    assert_ids(&f, "ab  ab a", 8, 0, IDS(8, 9, 7, 6));
    close_fixture(&f);
    open_spm_words(&f, "x", "b" MARK);
    assert_ids(&f, "ab ab", 5, 0, IDS(6, 11, 7)); /* "b_" comes before "ab" */
    /* "b\n" and "\na" are in no token: nothing joins there, on either side it goes on as before */
    assert_ids(&f, "ab\nab ab", 8, 0, IDS(8, 10, 4, 11, 7));
    close_fixture(&f);
}

static void phi_3_takes_white_space_behind_special_tokens(void **state) {
    (void)state;
    static const char text[] = "<|end|>\n ab<s>\nab<|end|>  ";
    struct fixture f;
    open_spm_words(&f, "Microsoft Phi-3 Mini", "zz");
    assert_ids(&f, text, sizeof text - 1, KVL_TOKENIZE_PARSE_SPECIAL, IDS(2, 8, 1, 3, 10, 7, 2));
    close_fixture(&f);
    open_spm_words(&f, "Other", "zz");
    assert_ids(&f, "<|end|>\nab", 10, KVL_TOKENIZE_PARSE_SPECIAL, IDS(2, 3, 10, 7));
    close_fixture(&f);
}

static void a_long_word_takes_little_time(void **state) {
    (void)state;
    enum { BYTES = 400000 };
    struct fixture f;
    open_bpe(&f);
    char *text = malloc(BYTES);
    struct kvl_token_list list = {0};
    assert_non_null(text);
    memset(text, 'l', BYTES); /* one word; a quadratic merge would not come back */
    assert_int_equal(kvl_tokenize(f.tokenizer, text, BYTES, 0, &list), KVL_OK);
    assert_int_equal(list.count, BYTES / 2);
    kvl_token_list_free(&list);
    free(text);
    close_fixture(&f);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bpe_merges_by_rank),
        cmocka_unit_test(bpe_cuts_words_as_the_pattern_says),
        cmocka_unit_test(special_text_is_text_unless_asked_for),
        cmocka_unit_test(any_bytes_come_back),
        cmocka_unit_test(bytes_without_a_token),
        cmocka_unit_test(a_bos_comes_where_the_file_asks),
        cmocka_unit_test(what_is_not_supported_is_named),
        cmocka_unit_test(merges_end),
        cmocka_unit_test(overlapping_specials_are_cut_longest_first),
        cmocka_unit_test(sizes_that_do_not_match_are_refused),
        cmocka_unit_test(spm_merges_by_score),
        cmocka_unit_test(spm_joins_over_words_where_a_token_does),
        cmocka_unit_test(phi_3_takes_white_space_behind_special_tokens),
        cmocka_unit_test(a_long_word_takes_little_time),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
