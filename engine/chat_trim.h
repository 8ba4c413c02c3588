/* chat_trim.h - takes white space off the ends of a text as Python's str.strip (Jinja's trim) does:
 * that of Unicode, and U+001C to U+001F. */
#ifndef KVL_CHAT_TRIM_H
#define KVL_CHAT_TRIM_H

#include "gguf.h"

struct kvl_gguf_string kvl_chat_trim(struct kvl_gguf_string text);
struct kvl_gguf_string kvl_chat_trim_end(struct kvl_gguf_string text);

#endif
