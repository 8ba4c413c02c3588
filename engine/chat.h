/* chat.h - wraps turns of a conversation as the model's own chat template does.
 *
 * Which form a template has is found by chat_format.h. Its markers become special tokens wherever
 * the vocabulary has them; a user's text that looks like one stays text. A conversation grows at
 * its end and is never written anew: where a template would take a system message along to the
 * newest turn (Mistral), it stays in the first; where one would drop the thinking of earlier
 * answers or trim them, they stay as they were generated.
 *
 * Owns:    the chat borrows tokenizer and GGUF. The texts of a turn are borrowed for the call.
 * Threads: those of kvl_tokenize.
 * Errors:  UNSUPPORTED (no template, or one of a form that is not known; a marker that is no
 *          special token), INVALID (an unknown name: the message lists all; a system message for a
 *          template that takes none), those of kvl_tokenize. */
#ifndef KVL_CHAT_H
#define KVL_CHAT_H

#include "tokenizer.h"

struct kvl_chat;

/* name: of a format, instead of the file's template; NULL: the file's. The markers of the format
 * become control tokens of the tokenizer. */
KVL_MUST_CHECK kvl_err kvl_chat_create(const struct kvl_gguf *gguf, struct kvl_tokenizer *tokenizer,
    const char *name, struct kvl_chat **out, struct kvl_errmsg *msg);
void kvl_chat_destroy(struct kvl_chat *chat); /* NULL is fine */

/* The format's name. Static storage. */
const char *kvl_chat_format_name(const struct kvl_chat *chat);
/* The template's own system message, not NUL terminated; 0 bytes when it has none. */
struct kvl_gguf_string kvl_chat_default_system(const struct kvl_chat *chat);
/* False: a system message cannot be given. */
bool kvl_chat_takes_system(const struct kvl_chat *chat);
/* The marker that ends an answer. */
uint32_t kvl_chat_end_token(const struct kvl_chat *chat);

struct kvl_chat_turn {
    bool begins;        /* nothing is in context yet: BOS and the system message come first */
    const char *system; /* with begins; NULL: the template's default, if it has one */
    bool ended;         /* without begins: the last token in context is the end token; otherwise
                         * the answer was cut (by a limit, interrupted), and it is appended */
    const char *text;   /* the user's */
    uint64_t text_bytes;
};

/* Appends what brings the context to where the assistant answers the turn. On an error the list is
 * as it was. */
KVL_MUST_CHECK kvl_err kvl_chat_append(
    struct kvl_chat *chat, const struct kvl_chat_turn *turn, struct kvl_token_list *list);

#endif
