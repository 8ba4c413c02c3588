/* utf8.c - table 3-7 of Unicode 15 (well-formed UTF-8 byte sequences), and a stream on top. */
#include "utf8.h"

#include <string.h>

static const char replacement[3] = "\xef\xbf\xbd";

/* 0 when no character starts with this byte. */
static uint32_t bytes_by_lead(uint8_t lead) {
    if (lead < 0x80) {
        return 1;
    }
    if (lead < 0xc2) {
        return 0;
    }
    if (lead < 0xe0) {
        return 2;
    }
    if (lead < 0xf0) {
        return 3;
    }
    return lead < 0xf5 ? 4 : 0;
}

/* The second byte is where overlong forms, surrogates and values over U+10FFFF show. */
static bool second_byte_fits(uint8_t lead, uint8_t second) {
    uint8_t low = lead == 0xe0 ? 0xa0 : lead == 0xf0 ? 0x90 : 0x80;
    uint8_t high = lead == 0xed ? 0x9f : lead == 0xf4 ? 0x8f : 0xbf;
    return second >= low && second <= high;
}

/* How many of the first bytes of text agree with one character; *whole says how many it has. */
static uint32_t agreeing_bytes(const char *text, uint64_t text_bytes, uint32_t *whole) {
    *whole = text_bytes > 0 ? bytes_by_lead((uint8_t)text[0]) : 0;
    if (*whole < 2 || text_bytes < 2) {
        return *whole > 0;
    }
    if (!second_byte_fits((uint8_t)text[0], (uint8_t)text[1])) {
        return 1;
    }
    uint32_t agreeing = 2;
    while (agreeing < *whole && agreeing < text_bytes && ((uint8_t)text[agreeing] & 0xc0) == 0x80) {
        agreeing++;
    }
    return agreeing;
}

uint32_t kvl_utf8_char_bytes(const char *text, uint64_t text_bytes) {
    uint32_t whole;
    return agreeing_bytes(text, text_bytes, &whole) == whole ? whole : 0;
}

bool kvl_utf8_is_unfinished(const char *text, uint64_t text_bytes) {
    uint32_t whole;
    uint32_t agreeing = agreeing_bytes(text, text_bytes, &whole);
    return agreeing == text_bytes && agreeing < whole;
}

static uint64_t emit(char *out, const char *bytes, uint64_t count_bytes) {
    memcpy(out, bytes, count_bytes);
    return count_bytes;
}

static uint64_t push_byte(struct kvl_utf8_stream *stream, char byte, char *out) {
    uint64_t written = 0;
    stream->held[stream->held_bytes++] = byte;
    uint32_t whole = kvl_utf8_char_bytes(stream->held, stream->held_bytes);
    if (whole == 0 && kvl_utf8_is_unfinished(stream->held, stream->held_bytes)) {
        return 0;
    }
    if (whole == 0 && stream->held_bytes > 1) { /* the new byte breaks off what was held */
        written = emit(out, replacement, sizeof replacement);
        stream->held_bytes = 0;
        return written + push_byte(stream, byte, out + written);
    }
    written =
        whole > 0 ? emit(out, stream->held, whole) : emit(out, replacement, sizeof replacement);
    stream->held_bytes = 0;
    return written;
}

uint64_t kvl_utf8_push(
    struct kvl_utf8_stream *stream, const char *piece, uint64_t piece_bytes, char *out) {
    uint64_t written = 0;
    for (uint64_t i = 0; i < piece_bytes; i++) {
        written += push_byte(stream, piece[i], out + written);
    }
    return written;
}

uint64_t kvl_utf8_finish(struct kvl_utf8_stream *stream, char *out) {
    if (stream->held_bytes == 0) {
        return 0;
    }
    stream->held_bytes = 0;
    return emit(out, replacement, sizeof replacement);
}
