#include "tokenizer_vocab.h"

#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#define TYPE_I32 5
#define TEXT_BYTES 24
#define VOCAB_COUNT_MAX 320

static const char *const merges[] = {"h e", "l l", "he ll", "hell o", "\xc4\xa0 hello", "' s",
    "\xc4\xa0 \xc4\xa0", "\xc3\xaf \xc2\xbf", "\xc3\xaf\xc2\xbf \xc2\xbd"};
#define MERGE_COUNT (sizeof merges / sizeof *merges)

static bool has_token(unsigned byte) {
    return byte != 0x04 && byte != 0xff;
}

uint32_t vocab_byte(uint8_t byte) {
    return VOCAB_FIRST_BYTE + (uint32_t)byte - (byte > 0x04);
}

uint32_t vocab_merged(uint32_t merge) {
    return VOCAB_FIRST_BYTE + 254 + merge;
}

/* GPT-2: bytes that are no printable Latin-1 character are U+0100 and up, in order. */
static unsigned character_of(unsigned byte) {
    static const char printable[] = "!~\xa1\xac\xae\xff"; /* ranges, low and high */
    unsigned moved = 0;
    for (unsigned b = 0; b <= byte; b++) {
        bool stays = false;
        for (int i = 0; i < 6; i += 2) {
            stays |= b >= (uint8_t)printable[i] && b <= (uint8_t)printable[i + 1];
        }
        if (b == byte && stays) {
            return byte;
        }
        moved += !stays;
    }
    return 0x100 + moved - 1;
}

static void write_character(unsigned character, char *out) {
    if (character < 0x80) {
        snprintf(out, TEXT_BYTES, "%c", character);
    } else {
        snprintf(out, TEXT_BYTES, "%c%c", 0xc0 | character >> 6, 0x80 | (character & 0x3f));
    }
}

static void add_bpe(struct gguf_writer *writer, const char *pre, const char *extra_merge,
    const char *const *specials, uint64_t special_count) {
    static char texts[VOCAB_COUNT_MAX][TEXT_BYTES] = {
        "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<note>"};
    static const char *pointers[VOCAB_COUNT_MAX];
    const char *lines[MERGE_COUNT + 1];
    int32_t kinds[VOCAB_COUNT_MAX] = {3, 3, 3, 4};
    uint64_t count = VOCAB_FIRST_BYTE, line_count = MERGE_COUNT;
    for (unsigned byte = 0; byte < 256; byte++) {
        if (has_token(byte)) {
            write_character(character_of(byte), texts[count++]);
        }
    }
    for (size_t i = 0; i < MERGE_COUNT; i++) {
        const char *gap = strchr(merges[i], ' ');
        lines[i] = merges[i];
        snprintf(texts[count++], TEXT_BYTES, "%.*s%s", (int)(gap - merges[i]), merges[i], gap + 1);
    }
    uint64_t first_special = count;
    for (uint64_t i = 0; i < special_count; i++) {
        snprintf(texts[count++], TEXT_BYTES, "%s", specials[i]);
    }
    for (uint64_t i = 0; i < count; i++) {
        pointers[i] = texts[i];
        kinds[i] = i >= first_special ? 3 : i < VOCAB_FIRST_BYTE ? kinds[i] : 1;
    }
    if (extra_merge) {
        lines[line_count++] = extra_merge;
    }
    gguf_add_string(writer, "tokenizer.ggml.model", "gpt2");
    gguf_add_string(writer, "tokenizer.ggml.pre", pre);
    gguf_add_strings(writer, "tokenizer.ggml.tokens", pointers, count);
    gguf_add_array(writer, "tokenizer.ggml.token_type", TYPE_I32, 4, kinds, count);
    gguf_add_strings(writer, "tokenizer.ggml.merges", lines, line_count);
    gguf_add_u32(writer, "tokenizer.ggml.bos_token_id",
        special_count > 0 ? (uint32_t)first_special : VOCAB_IM_START);
    gguf_add_u32(writer, "tokenizer.ggml.eos_token_id",
        special_count > 0 ? (uint32_t)first_special + 1 : VOCAB_IM_END);
}

void vocab_add_bpe_with(struct gguf_writer *writer, const char *pre, const char *extra_merge) {
    add_bpe(writer, pre, extra_merge, NULL, 0);
}

void vocab_add_bpe_specials(
    struct gguf_writer *writer, const char *const *specials, uint64_t special_count) {
    add_bpe(writer, "llama-bpe", NULL, specials, special_count);
}

void vocab_add_bpe(struct gguf_writer *writer) {
    vocab_add_bpe_with(writer, "smollm", NULL);
}
