/* tokenizer_fuzz.c - any bytes as a text, for SentencePiece and byte-level BPE with every
 * pre-tokenizer (gguf_fuzz.c has hostile vocabularies): the ids are in the vocabulary, the word
 * cache changes nothing, and byte-level BPE gives back the very bytes.
 *
 *   byte 0: bit 0 SentencePiece, bit 1 parse special, bit 2 add BOS, bits 3 to 5 the pre-tokenizer;
 *   then the text */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "tokenizer.h"
#include "tokenizer_vocab.h"
#include "utf8.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t data_bytes);

/* Both kept until the process ends. */
static struct vocabulary {
    struct kvl_gguf *gguf;
    struct kvl_tokenizer *tokenizer;
} bpe[8], spm;
static const char *const pre_tokenizers[8] = {
    "smollm", "gpt-2", "llama-bpe", "qwen2", "tekken", "deepseek-llm", "default", "smollm"};

static void finish_vocabulary(struct vocabulary *vocabulary, struct gguf_writer *writer) {
    uint64_t bytes;
    const uint8_t *file = gguf_writer_finish(writer, &bytes);
    if (kvl_gguf_open_memory(file, bytes, "fuzz", &vocabulary->gguf, NULL) ||
        kvl_tokenizer_create(vocabulary->gguf, &vocabulary->tokenizer, NULL)) {
        abort();
    }
    gguf_writer_deinit(writer);
}

static void make_bpe(struct vocabulary *vocabulary, const char *pre) {
    struct gguf_writer writer;
    gguf_writer_init(&writer);
    vocab_add_bpe_with(&writer, pre, NULL);
    finish_vocabulary(vocabulary, &writer);
}

static void make_spm(struct vocabulary *vocabulary) {
    static const char *const tokens[] = {"<unk>", "<s>", "</s>", "<0x0A>", "<0xE2>", "\xe2\x96\x81",
        "h", "e", "l", "o", "he", "ll", "\xe2\x96\x81he", "hello", "\xe2\x96\x81hello", "<note>"};
    static const float scores[] = {
        0, 0, 0, 0, 0, -1, -2, -3, -4, -5, -0.5f, -0.4f, -0.3f, -0.2f, -0.1f, 0};
    static const uint32_t kinds[] = {2, 3, 3, 6, 6, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 4};
    const uint64_t count = sizeof tokens / sizeof *tokens;
    struct gguf_writer writer;
    gguf_writer_init(&writer);
    gguf_add_string(&writer, "tokenizer.ggml.model", "llama");
    gguf_add_strings(&writer, "tokenizer.ggml.tokens", tokens, count);
    gguf_add_array(&writer, "tokenizer.ggml.scores", KVL_GGUF_F32, 4, scores, count);
    gguf_add_array(&writer, "tokenizer.ggml.token_type", KVL_GGUF_I32, 4, kinds, count);
    gguf_add_u32(&writer, "tokenizer.ggml.bos_token_id", 1);
    gguf_add_u32(&writer, "tokenizer.ggml.eos_token_id", 2);
    gguf_add_u32(&writer, "tokenizer.ggml.unknown_token_id", 0);
    finish_vocabulary(vocabulary, &writer);
}

/* The vocabulary has every byte but 4 and 255, and 255 is in no valid text. */
static void check_bytes(const struct kvl_tokenizer *tokenizer, const struct kvl_token_list *list,
    const uint8_t *text, uint64_t text_bytes) {
    uint64_t at = 0;
    if (text_bytes > 0 && (memchr(text, 4, text_bytes) || memchr(text, 255, text_bytes))) {
        return;
    }
    for (uint64_t i = 0; i < list->count; i++) {
        struct kvl_gguf_string piece = kvl_token_piece(tokenizer, list->ids[i]);
        if (piece.bytes > text_bytes - at || memcmp(piece.data, text + at, piece.bytes) != 0) {
            abort();
        }
        at += piece.bytes;
    }
    if (at != text_bytes) {
        abort();
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t data_bytes) {
    for (int i = 0; i < 8 && !bpe[i].tokenizer; i++) {
        make_bpe(&bpe[i], pre_tokenizers[i]);
    }
    if (!spm.tokenizer) {
        make_spm(&spm);
    }
    if (data_bytes == 0) {
        return 0;
    }
    const bool is_spm = data[0] & 1, add_bos = data[0] & 4;
    const unsigned flags =
        (data[0] & 2 ? KVL_TOKENIZE_PARSE_SPECIAL : 0u) | (add_bos ? KVL_TOKENIZE_ADD_BOS : 0u);
    struct kvl_tokenizer *tokenizer = is_spm ? spm.tokenizer : bpe[data[0] >> 3 & 7].tokenizer;
    const char *text = (const char *)data + 1;
    struct kvl_token_list list = {0};
    if (kvl_tokenize(tokenizer, text, data_bytes - 1, flags, &list)) {
        abort();
    }
    const uint64_t count = list.count;
    if (kvl_tokenize(tokenizer, text, data_bytes - 1, flags, &list) || list.count != 2 * count ||
        (count > 0 && memcmp(list.ids, list.ids + count, count * sizeof *list.ids) != 0)) {
        abort();
    }
    list.count = count;
    for (uint64_t i = 0; i < count; i++) {
        if (list.ids[i] >= kvl_tokenizer_vocab(tokenizer)) {
            abort();
        }
    }
    if (!is_spm && !add_bos) {
        check_bytes(tokenizer, &list, data + 1, data_bytes - 1);
    }
    kvl_token_list_free(&list);
    return 0;
}
