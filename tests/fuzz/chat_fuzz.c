/* chat_fuzz.c - any bytes as a chat template: it is refused with a message, or two turns are
 * wrapped in it. What users say never becomes a control token: there are as many of them, whatever
 * is said.
 *
 *   the template, a byte 0, the user's text */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "chat.h"
#include "tokenizer_vocab.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t data_bytes);

static const char *const specials[] = {"<s>", "</s>", "<|start_header_id|>", "<|end_header_id|>",
    "<|eot_id|>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "<start_of_turn>", "<end_of_turn>",
    "<|user|>", "<|assistant|>", "<|end|>"};

static void append(
    struct kvl_chat *chat, const struct kvl_chat_turn *turn, struct kvl_token_list *list) {
    if (kvl_chat_append(chat, turn, list)) {
        abort(); /* nothing here may fail but for want of memory */
    }
}

static uint64_t controls_of(struct kvl_chat *chat, const struct kvl_tokenizer *tokenizer,
    const char *text, uint64_t text_bytes) {
    struct kvl_token_list list = {0};
    struct kvl_chat_turn turn = {.begins = true, .text = text, .text_bytes = text_bytes};
    uint64_t controls = 0;
    append(chat, &turn, &list);
    turn.begins = false;
    append(chat, &turn, &list);
    for (uint64_t i = 0; i < list.count; i++) {
        controls += kvl_token_is_control(tokenizer, list.ids[i]);
    }
    kvl_token_list_free(&list);
    return controls;
}

static void use(const struct kvl_gguf *gguf, const char *text, uint64_t text_bytes) {
    struct kvl_errmsg msg = {{0}};
    struct kvl_tokenizer *tokenizer = NULL;
    struct kvl_chat *chat = NULL;
    if (kvl_tokenizer_create(gguf, &tokenizer, &msg)) {
        abort();
    }
    if (kvl_chat_create(gguf, tokenizer, NULL, &chat, &msg)) {
        if (msg.text[0] == 0) {
            abort();
        }
    } else if (controls_of(chat, tokenizer, text, text_bytes) !=
               controls_of(chat, tokenizer, "x", 1)) {
        abort();
    }
    kvl_chat_destroy(chat);
    kvl_tokenizer_destroy(tokenizer);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t data_bytes) {
    struct gguf_writer writer;
    struct kvl_gguf *gguf = NULL;
    uint64_t file_bytes;
    char *input = calloc(data_bytes + 2, 1);
    if (!input) {
        return 0;
    }
    memcpy(input, data, data_bytes);
    uint64_t template_bytes = strlen(input);
    const char *text = template_bytes < data_bytes ? input + template_bytes + 1 : "";
    uint64_t text_bytes = template_bytes < data_bytes ? data_bytes - template_bytes - 1 : 0;
    gguf_writer_init(&writer);
    vocab_add_bpe_specials(&writer, specials, sizeof specials / sizeof *specials);
    gguf_add_string(&writer, "tokenizer.chat_template", input);
    const uint8_t *file = gguf_writer_finish(&writer, &file_bytes);
    if (kvl_gguf_open_memory(file, file_bytes, "fuzz", &gguf, NULL)) {
        abort();
    }
    use(gguf, text, text_bytes);
    kvl_gguf_close(gguf);
    gguf_writer_deinit(&writer);
    free(input);
    return 0;
}
