/* utf8.h - valid UTF-8 out of bytes that arrive in pieces.
 *
 * A token is any run of bytes; a character may be spread over several. The stream hands out whole
 * characters only and holds an unfinished one back. Bytes that cannot be UTF-8 become U+FFFD, one
 * for each maximal part of a character (Unicode 15, section 3.9, "U+FFFD Substitution of Maximal
 * Subparts"). U+0000 passes.
 *
 * Threads: each stream is its caller's. Errors: none. Allocates nothing. */
#ifndef KVL_UTF8_H
#define KVL_UTF8_H

#include <stdbool.h>
#include <stdint.h>

/* Bytes (1 to 4) of the valid character that text starts with; 0 when it starts with none, or with
 * an unfinished one. */
uint32_t kvl_utf8_char_bytes(const char *text, uint64_t text_bytes);

/* True when the bytes could still become a character: a proper prefix of a valid one. */
bool kvl_utf8_is_unfinished(const char *text, uint64_t text_bytes);

struct kvl_utf8_stream { /* zeroed to start */
    char held[4];
    uint32_t held_bytes;
};

/* What out needs to hold for a push of piece_bytes, or for a finish (piece_bytes 0). */
#define KVL_UTF8_OUT_BYTES(piece_bytes) (3 * ((uint64_t)(piece_bytes) + 4))

/* Returns the bytes written to out. */
uint64_t kvl_utf8_push(
    struct kvl_utf8_stream *stream, const char *piece, uint64_t piece_bytes, char *out);
/* Ends the text: what is held back becomes U+FFFD. The stream can be used again. */
uint64_t kvl_utf8_finish(struct kvl_utf8_stream *stream, char *out);

#endif
