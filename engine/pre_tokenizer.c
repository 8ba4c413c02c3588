/* pre_tokenizer.c - the table of pre-tokenizers, as patterns for PCRE2.
 *
 * The cuts are those that llama.cpp makes (llama-cpp-python 0.3.36); where its own code and the
 * pattern of a model's tokenizer.json differ, its code counts. Several patterns in a row are
 * applied one after the other, each to every piece that the ones before have left, matched or not:
 * a match becomes a piece of its own, and so does what lies between two. */
#include "pre_tokenizer.h"

#include <string.h>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <stdio.h>
#include <stdlib.h>

/* Inside of brackets. What llama.cpp takes for white space; PCRE2's \s has U+180E on top. */
#define WS                                                                                         \
    "\\t-\\r \\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}"       \
    "\\x{3000}"
#define LETTER "\\p{L}"
#define DIGIT "\\p{N}"
/* Neither white space, letter nor digit. Possessive: nothing that follows could use a part. */
#define SIGNS "[^" WS LETTER DIGIT "]++"
/* White space but for the last one before a word, which may belong to that word. */
#define SPACE "[" WS "]+(?![^" WS "])|[" WS "]+"
/* White space up to its last line break. */
#define LINES "[" WS "]*[\\r\\n]+"

#define GPT2 "'(?:[stmd]|re|ve|ll)| ?" LETTER "++| ?" DIGIT "++| ?" SIGNS "|" SPACE
#define LLAMA3(digits)                                                                             \
    "'(?:[sStTmMdD]|[rR][eE]|[vV][eE]|[lL][lL])|[^\\r\\n" LETTER DIGIT "]?+" LETTER "++|" digits   \
    "| ?" SIGNS "[\\r\\n]*+|" LINES "|" SPACE
/* A letter that is no small (or no capital) Latin one. */
#define NOT_SMALL "[^\\P{L}a-z]"
#define NOT_CAPITAL "[^\\P{L}A-Z]"
#define TEKKEN                                                                                     \
    "[^\\r\\n" LETTER DIGIT "]?+(?:" NOT_SMALL "*" NOT_CAPITAL "++|" NOT_SMALL "++)|" DIGIT        \
    "| ?" SIGNS "[\\r\\n/]*+|" LINES "|" SPACE

/* The letters with case that DeepSeek's pattern lists. */
#define DEEPSEEK_LETTER                                                                            \
    "A-Za-z\\x{b5}\\x{c0}-\\x{d6}\\x{d8}-\\x{f6}\\x{f8}-\\x{1ba}\\x{1bc}-\\x{1bf}"                 \
    "\\x{1c4}-\\x{293}\\x{295}-\\x{2af}\\x{370}-\\x{373}\\x{376}\\x{377}\\x{37b}-\\x{37d}"         \
    "\\x{37f}\\x{386}\\x{388}-\\x{38a}\\x{38c}\\x{38e}-\\x{3a1}\\x{3a3}-\\x{3f5}"                  \
    "\\x{3f7}-\\x{481}\\x{48a}-\\x{52f}\\x{531}-\\x{556}\\x{10a0}-\\x{10c5}"                       \
    "\\x{13a0}-\\x{13f5}\\x{13f8}-\\x{13fd}\\x{1c90}-\\x{1cba}\\x{1cbd}-\\x{1cbf}"                 \
    "\\x{1d00}-\\x{1d2b}\\x{1d6b}-\\x{1d77}\\x{1d79}-\\x{1d9a}\\x{1e00}-\\x{1f15}"                 \
    "\\x{1f18}-\\x{1f1d}\\x{1f20}-\\x{1f45}\\x{1f48}-\\x{1f4d}\\x{1f50}-\\x{1f57}\\x{1f59}"        \
    "\\x{1f5b}\\x{1f5d}\\x{1f5f}-\\x{1f7d}\\x{1f80}-\\x{1fb4}\\x{1fb6}-\\x{1fbc}\\x{1fbe}"         \
    "\\x{1fc2}-\\x{1fc4}\\x{1fc6}-\\x{1fcc}\\x{1fd0}-\\x{1fd3}\\x{1fd6}-\\x{1fdb}"                 \
    "\\x{1fe0}-\\x{1fec}\\x{1ff2}-\\x{1ff4}\\x{1ff6}-\\x{1ffc}\\x{2102}\\x{2107}"                  \
    "\\x{210a}-\\x{2113}\\x{2115}\\x{2119}-\\x{211d}\\x{2124}\\x{2126}\\x{2128}"                   \
    "\\x{212a}-\\x{212d}\\x{212f}-\\x{2134}\\x{2139}\\x{213c}-\\x{213f}\\x{2145}-\\x{2149}"        \
    "\\x{214e}\\x{2183}\\x{2184}\\x{2c00}-\\x{2c7b}\\x{2c7e}-\\x{2ce4}\\x{2ceb}-\\x{2cee}"         \
    "\\x{2cf2}\\x{2cf3}\\x{a640}-\\x{a66d}\\x{a680}-\\x{a69b}\\x{a722}-\\x{a76f}"                  \
    "\\x{a771}-\\x{a787}\\x{a78b}-\\x{a78e}\\x{ab70}-\\x{abbf}\\x{fb00}-\\x{fb06}"                 \
    "\\x{fb13}-\\x{fb17}\\x{ff21}-\\x{ff3a}\\x{ff41}-\\x{ff5a}\\x{10400}-\\x{1044f}"               \
    "\\x{104b0}-\\x{104d3}\\x{104d8}-\\x{104fb}\\x{10c80}-\\x{10cb2}\\x{10cc0}-\\x{10cf2}"         \
    "\\x{118a0}-\\x{118df}\\x{1e900}-\\x{1e943}"
/* U+0800 to U+9FA5 without white space, and Hangul. */
#define DEEPSEEK_EAST                                                                              \
    "\\x{800}-\\x{167f}\\x{1681}-\\x{1fff}\\x{200b}-\\x{2027}\\x{202a}-\\x{202e}"                  \
    "\\x{2030}-\\x{205e}\\x{2060}-\\x{2fff}\\x{3001}-\\x{9fa5}\\x{ac00}-\\x{d7ff}"
#define DEEPSEEK_SIGN                                                                              \
    "!-/:-~\\x{ff01}-\\x{ff0f}\\x{ff1a}-\\x{ff5e}\\x{2018}-\\x{201f}\\x{3001}\\x{3002}"

#define NAMES_MAX 4
#define STAGES_MAX 6

static const struct row {
    const char *names[NAMES_MAX]; /* the first is the one to tell users */
    const char *stages[STAGES_MAX];
    bool ignores_merges;
    bool adds_bos;
} rows[] = {
    /* digits are cut first, so that a run of white space before one ends there */
    {.names = {"smollm"}, .stages = {DIGIT, GPT2}},
    {.names = {"gpt-2", "phi-2"}, .stages = {GPT2}},
    {.names = {"llama-bpe", "llama3", "llama-v3"},
        .stages = {LLAMA3(DIGIT "{1,3}+")},
        .ignores_merges = true,
        .adds_bos = true},
    {.names = {"qwen2", "deepseek-r1-qwen", "megrez"}, .stages = {LLAMA3(DIGIT)}},
    {.names = {"tekken"}, .stages = {TEKKEN}, .ignores_merges = true, .adds_bos = true},
    {.names = {"deepseek-llm"},
        .stages = {"[\\r\\n]", "[" WS "]?[" DEEPSEEK_LETTER "]++", "[" WS "]?[" DEEPSEEK_SIGN "]++",
            "(?<![" WS "])[" WS "]++\\z", "[" DEEPSEEK_EAST "]++", DIGIT "++"}},
    {.names = {"default"}, .stages = {"[\\p{P}$+<=>^~|]++", GPT2, DIGIT "++", "[0-9][0-9][0-9]"}},
};
#define ROW_COUNT (sizeof rows / sizeof *rows)

struct stage {
    pcre2_code *code;
    pcre2_match_data *match; /* each its own: a stage works while those before it hold a match */
    const uint8_t *first;    /* 256 bits, those of the bytes a match can begin with; NULL: any */
    bool has_jit;
};

struct kvl_pre_tokenizer {
    const struct row *row;
    struct stage stages[STAGES_MAX];
    uint32_t stage_count;
};

static const struct row *find_row(struct kvl_gguf_string name) {
    for (size_t i = 0; i < ROW_COUNT; i++) {
        for (size_t j = 0; j < NAMES_MAX && rows[i].names[j]; j++) {
            if (name.bytes == strlen(rows[i].names[j]) &&
                memcmp(name.data, rows[i].names[j], name.bytes) == 0) {
                return &rows[i];
            }
        }
    }
    return NULL;
}

static kvl_err fail_unknown(struct kvl_gguf_string name, const char *file, struct kvl_errmsg *msg) {
    char known[128] = "";
    for (size_t i = 0; i < ROW_COUNT; i++) {
        size_t used = strlen(known);
        snprintf(known + used, sizeof known - used, "%s%s", i > 0 ? ", " : "", rows[i].names[0]);
    }
    return kvl_fail(msg, KVL_ERR_UNSUPPORTED,
        "%s: pre-tokenizer '%.*s' is not supported; these are: %s", file,
        (int)(name.bytes < 64 ? name.bytes : 64), name.data, known);
}

static kvl_err compile(struct stage *stage, const char *pattern, struct kvl_errmsg *msg) {
    int error;
    size_t error_offset;
    stage->code = pcre2_compile((PCRE2_SPTR)pattern, PCRE2_ZERO_TERMINATED, PCRE2_UTF | PCRE2_UCP,
        &error, &error_offset, NULL);
    if (!stage->code) {
        return kvl_fail(msg, KVL_ERR_UNSUPPORTED,
            "this PCRE2 cannot compile the pre-tokenizer (error %d at %zu); it needs Unicode",
            error, error_offset);
    }
    /* Where the system forbids executable memory the interpreter gives the same words, slower. */
    stage->has_jit = pcre2_jit_compile(stage->code, PCRE2_JIT_COMPLETE) == 0;
    (void)pcre2_pattern_info(stage->code, PCRE2_INFO_FIRSTBITMAP, &stage->first);
    stage->match = pcre2_match_data_create_from_pattern(stage->code, NULL);
    return stage->match ? KVL_OK : kvl_fail(msg, KVL_ERR_NOMEM, "out of memory");
}

kvl_err kvl_pre_tokenizer_create(struct kvl_gguf_string name, const char *file,
    struct kvl_pre_tokenizer **out, struct kvl_errmsg *msg) {
    *out = NULL;
    const struct row *row = find_row(name);
    if (!row) {
        return fail_unknown(name, file, msg);
    }
    struct kvl_pre_tokenizer *pre = calloc(1, sizeof *pre);
    if (!pre) {
        return kvl_fail(msg, KVL_ERR_NOMEM, "%s: out of memory", file);
    }
    pre->row = row;
    kvl_err err = KVL_OK;
    for (size_t i = 0; i < STAGES_MAX && row->stages[i] && !err; i++) {
        err = compile(&pre->stages[pre->stage_count++], row->stages[i], msg);
    }
    if (err) {
        kvl_pre_tokenizer_destroy(pre);
        return err;
    }
    *out = pre;
    return KVL_OK;
}

void kvl_pre_tokenizer_destroy(struct kvl_pre_tokenizer *pre) {
    if (!pre) {
        return;
    }
    for (uint32_t i = 0; i < STAGES_MAX; i++) {
        pcre2_match_data_free(pre->stages[i].match);
        pcre2_code_free(pre->stages[i].code);
    }
    free(pre);
}

bool kvl_pre_tokenizer_ignores_merges(const struct kvl_pre_tokenizer *pre) {
    return pre->row->ignores_merges;
}

bool kvl_pre_tokenizer_adds_bos(const struct kvl_pre_tokenizer *pre) {
    return pre->row->adds_bos;
}

struct cutting {
    struct kvl_pre_tokenizer *pre;
    const char *text;
    kvl_word_fn *word;
    void *arg;
};

/* PCRE2's answer for the first match from `at` on in the piece. */
static int find(const struct stage *stage, struct kvl_gguf_string piece, uint64_t at) {
    if (stage->first) { /* much cheaper than asking PCRE2, and most pieces end here */
        while (at < piece.bytes &&
               !(stage->first[(uint8_t)piece.data[at] / 8] & 1u << ((uint8_t)piece.data[at] % 8))) {
            at++;
        }
        if (at == piece.bytes) {
            return PCRE2_ERROR_NOMATCH;
        }
    }
    return stage->has_jit ? pcre2_jit_match(stage->code, (PCRE2_SPTR)piece.data, piece.bytes, at,
                                PCRE2_NO_UTF_CHECK, stage->match, NULL)
                          : pcre2_match(stage->code, (PCRE2_SPTR)piece.data, piece.bytes, at,
                                PCRE2_NO_UTF_CHECK, stage->match, NULL);
}

/* Hands a piece to the stages from `stage` on. Recursion ends at STAGES_MAX. */
static kvl_err cut_piece(
    const struct cutting *cutting, uint32_t stage, struct kvl_gguf_string piece) {
    const struct kvl_pre_tokenizer *pre = cutting->pre;
    if (piece.bytes == 0) {
        return KVL_OK;
    }
    if (stage == pre->stage_count) {
        return cutting->word(cutting->arg, (uint64_t)(piece.data - cutting->text), piece.bytes);
    }
    const size_t *range = pcre2_get_ovector_pointer(pre->stages[stage].match);
    for (uint64_t at = 0; at < piece.bytes;) {
        int found = find(&pre->stages[stage], piece, at);
        if (found < 0 && found != PCRE2_ERROR_NOMATCH) {
            return found == PCRE2_ERROR_NOMEMORY ? KVL_ERR_NOMEM : KVL_ERR_LIMIT;
        }
        uint64_t begin = found < 0 ? piece.bytes : range[0];
        uint64_t end = found < 0 ? piece.bytes : range[1];
        struct kvl_gguf_string before = {piece.data + at, begin - at};
        struct kvl_gguf_string matched = {piece.data + begin, end - begin};
        kvl_err err = cut_piece(cutting, stage + 1, before);
        err = err ? err : cut_piece(cutting, stage + 1, matched);
        if (err) {
            return err;
        }
        at = end;
    }
    return KVL_OK;
}

kvl_err kvl_pre_tokenizer_cut(struct kvl_pre_tokenizer *pre, const char *text, uint64_t text_bytes,
    kvl_word_fn *word, void *arg) {
    const struct cutting cutting = {pre, text, word, arg};
    return cut_piece(&cutting, 0, (struct kvl_gguf_string){text, text_bytes});
}
