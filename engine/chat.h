/* chat.h - wraps turns of a conversation as the model's own chat template does.
 *
 * The template in the file is a Jinja program. It is not run: it is recognised, token by token, as
 * one of the ChatML forms, of which the default system message is taken out:
 *
 *   <|im_start|>system\n ... <|im_end|>\n
 *   <|im_start|>user\n ... <|im_end|>\n
 *   <|im_start|>assistant\n ... <|im_end|>\n
 *
 * Only the markers become special tokens; a user's text that looks like one stays text.
 *
 * Owns:    the chat borrows tokenizer and GGUF. The text of turns is borrowed for the call.
 * Threads: those of kvl_tokenize.
 * Errors:  UNSUPPORTED (no template, or another one), those of kvl_tokenize. Appending calls leave
 *          the list as it was when they fail. */
#ifndef KVL_CHAT_H
#define KVL_CHAT_H

#include "tokenizer.h"

struct kvl_chat;

KVL_MUST_CHECK kvl_err kvl_chat_create(const struct kvl_gguf *gguf, struct kvl_tokenizer *tokenizer,
    struct kvl_chat **out, struct kvl_errmsg *msg);
void kvl_chat_destroy(struct kvl_chat *chat); /* NULL is fine */

/* The template's own system message, not NUL terminated; 0 bytes when it has none. */
struct kvl_gguf_string kvl_chat_default_system(const struct kvl_chat *chat);

/* A conversation's first tokens: BOS where the file asks for it, and the system turn. system: NULL
 * for the template's default, of which there may be none. */
KVL_MUST_CHECK kvl_err kvl_chat_begin(
    struct kvl_chat *chat, const char *system, struct kvl_token_list *list);

/* A user's turn, and the start of the assistant's. */
KVL_MUST_CHECK kvl_err kvl_chat_user_turn(
    struct kvl_chat *chat, const char *text, uint64_t text_bytes, struct kvl_token_list *list);

/* The rest of an assistant's turn after what was generated. ended: the last token in context is
 * the end-of-turn marker; otherwise (cut by a limit, interrupted) it is appended. */
KVL_MUST_CHECK kvl_err kvl_chat_end_turn(
    struct kvl_chat *chat, bool ended, struct kvl_token_list *list);

/* The marker that ends a turn. */
uint32_t kvl_chat_end_token(const struct kvl_chat *chat);

#endif
