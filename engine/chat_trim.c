/* chat_trim.c - see chat_trim.h. */
#include "chat_trim.h"

#include <string.h>

#include "utf8.h"

static bool is_one_byte_space(uint8_t byte) {
    return (byte >= '\t' && byte <= '\r') || (byte >= 0x1c && byte <= ' ');
}

/* U+0085, U+00A0, U+1680, U+2000 to U+200A, U+2028, U+2029, U+202F, U+205F, U+3000 */
static bool is_long_space(const uint8_t *text, uint32_t bytes) {
    if (bytes == 2) {
        return text[0] == 0xc2 && (text[1] == 0x85 || text[1] == 0xa0);
    }
    if (bytes != 3) {
        return false;
    }
    uint32_t character = (text[0] & 0xfu) << 12 | (text[1] & 0x3fu) << 6 | (text[2] & 0x3fu);
    return character == 0x1680 || (character >= 0x2000 && character <= 0x200a) ||
           character == 0x2028 || character == 0x2029 || character == 0x202f ||
           character == 0x205f || character == 0x3000;
}

/* Bytes of the white space that text begins with. */
static uint32_t space_bytes(const char *text, uint64_t text_bytes) {
    uint32_t bytes = kvl_utf8_char_bytes(text, text_bytes);
    if (bytes == 1) {
        return is_one_byte_space((uint8_t)*text);
    }
    return is_long_space((const uint8_t *)text, bytes) ? bytes : 0;
}

struct kvl_gguf_string kvl_chat_trim_end(struct kvl_gguf_string text) {
    for (uint32_t bytes = 1; bytes <= 3;) {
        if (text.bytes >= bytes && space_bytes(text.data + text.bytes - bytes, bytes) == bytes) {
            text.bytes -= bytes;
            bytes = 1;
        } else {
            bytes++;
        }
    }
    return text;
}

struct kvl_gguf_string kvl_chat_trim(struct kvl_gguf_string text) {
    for (uint32_t bytes; text.bytes > 0 && (bytes = space_bytes(text.data, text.bytes)) > 0;) {
        text.data += bytes;
        text.bytes -= bytes;
    }
    return kvl_chat_trim_end(text);
}
