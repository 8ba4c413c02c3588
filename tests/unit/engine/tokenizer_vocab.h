/* tokenizer_vocab.h - adds small vocabularies to a GGUF under test.
 *
 * BPE: ids 0..3 are <|endoftext|>, <|im_start|>, <|im_end|> (control) and <note> (user defined);
 * then every byte but 0x04 and 0xff, in order; then the products of the merges. Merges: "h e",
 * "l l", "he ll", "hell o", "Ġ hello", "' s", "Ġ Ġ" and those that make U+FFFD. */
#ifndef KVL_TESTS_TOKENIZER_VOCAB_H
#define KVL_TESTS_TOKENIZER_VOCAB_H

#include "gguf_writer.h"

enum {
    VOCAB_ENDOFTEXT,
    VOCAB_IM_START,
    VOCAB_IM_END,
    VOCAB_NOTE,
    VOCAB_FIRST_BYTE,
};

/* The id of a byte that has one. */
uint32_t vocab_byte(uint8_t byte);
/* The id of the nth merge's product. */
uint32_t vocab_merged(uint32_t merge);
void vocab_add_bpe(struct gguf_writer *writer);
/* Extra lines at the end of the merges, for broken ones. */
void vocab_add_bpe_with(struct gguf_writer *writer, const char *pre, const char *extra_merge);
/* With more control tokens at the end, the first two of them BOS and EOS; pre-tokenizer llama-bpe.
 */
void vocab_add_bpe_specials(
    struct gguf_writer *writer, const char *const *specials, uint64_t special_count);

#endif
