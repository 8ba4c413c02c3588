/* gguf_fuzz.c - any bytes as a model file: they are refused with a message, or everything that the
 * getters, the fingerprint, the tokenizer and the chat hand out can be read. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include "chat.h"
#include "gguf.h"
#include "quant.h"
#include "tokenizer.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t data_bytes);

static volatile uint8_t sink; /* keeps the reads */

static void read_all(const void *bytes, uint64_t count_bytes) {
    for (uint64_t i = 0; i < count_bytes; i++) {
        sink ^= ((const uint8_t *)bytes)[i];
    }
}

/* The first and the last row as f32. */
static void read_weights(const struct kvl_gguf_tensor *tensor) {
    const uint64_t columns = tensor->dims[0];
    const uint64_t row_bytes = kvl_row_bytes(tensor->type, columns);
    float *row = malloc(columns * sizeof *row);
    if (row == NULL) {
        abort();
    }
    kvl_dequantize_row(tensor->type, tensor->data, columns, row);
    read_all(row, columns * sizeof *row);
    const uint8_t *end = (const uint8_t *)tensor->data + tensor->data_bytes;
    kvl_dequantize_row(tensor->type, end - row_bytes, columns, row);
    read_all(row, columns * sizeof *row);
    free(row);
}

static void read_tensors(const struct kvl_gguf *gguf) {
    for (uint64_t i = 0; i < kvl_gguf_tensor_count(gguf); i++) {
        const struct kvl_gguf_tensor *tensor = kvl_gguf_tensor_at(gguf, i);
        read_all(tensor->name.data, tensor->name.bytes);
        read_all(tensor->data, tensor->data_bytes);
        read_weights(tensor);
    }
}

static void use_chat(struct kvl_chat *chat, struct kvl_token_list *list) {
    const struct kvl_chat_turn first = {.begins = true, .text = "hello", .text_bytes = 5};
    const struct kvl_chat_turn second = {.text = " ", .text_bytes = 1};
    if (kvl_chat_append(chat, &first, list) || kvl_chat_append(chat, &second, list)) {
        abort(); /* nothing here may fail but for want of memory */
    }
}

static void use_tokenizer(const struct kvl_gguf *gguf, struct kvl_tokenizer *tokenizer) {
    static const char text[] = "hello  it's 12 \xe2\x82\xac\xff <|im_end|> \xc3";
    struct kvl_token_list list = {0};
    struct kvl_errmsg msg;
    struct kvl_chat *chat;
    if (kvl_tokenize(tokenizer, text, sizeof text,
            KVL_TOKENIZE_ADD_BOS | KVL_TOKENIZE_PARSE_SPECIAL, &list)) {
        abort();
    }
    if (kvl_chat_create(gguf, tokenizer, NULL, &chat, &msg) == KVL_OK) {
        use_chat(chat, &list);
        kvl_chat_destroy(chat);
    }
    for (uint64_t i = 0; i < list.count; i++) {
        struct kvl_gguf_string piece = kvl_token_piece(tokenizer, list.ids[i]);
        read_all(piece.data, piece.bytes);
    }
    kvl_token_list_free(&list);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t data_bytes) {
    struct kvl_gguf *gguf;
    struct kvl_tokenizer *tokenizer;
    struct kvl_errmsg msg;
    uint8_t fingerprint[32];
    if (kvl_gguf_open_memory(data, data_bytes, "fuzz", &gguf, &msg)) {
        return 0;
    }
    read_tensors(gguf);
    if (kvl_gguf_fingerprint(gguf, fingerprint, &msg) == KVL_OK) {
        read_all(fingerprint, sizeof fingerprint);
    }
    if (kvl_tokenizer_create(gguf, &tokenizer, &msg) == KVL_OK) {
        use_tokenizer(gguf, tokenizer);
        kvl_tokenizer_destroy(tokenizer);
    }
    kvl_gguf_close(gguf);
    return 0;
}
