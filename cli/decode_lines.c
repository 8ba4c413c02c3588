/* decode_lines.c - see decode_lines.h. */
#include "decode_lines.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define READ_BYTES ((size_t)64 << 10)
#define WAIT_MS 200 /* then the caller looks whether it was interrupted */

bool decode_lines_open(struct decode_lines *lines, const char *path) {
    bool is_stdin = strcmp(path, "-") == 0;
    *lines =
        (struct decode_lines){.fd = is_stdin ? STDIN_FILENO : open(path, O_RDONLY | O_CLOEXEC)};
    return lines->fd >= 0;
}

void decode_lines_close(struct decode_lines *lines) {
    if (lines->fd > STDERR_FILENO)
        close(lines->fd);
    lines->fd = -1;
    free(lines->buffer);
    lines->buffer = NULL;
}

/* Room for READ_BYTES more behind what is there. */
static bool make_room(struct decode_lines *lines) {
    if (lines->begin > 0) {
        memmove(lines->buffer, lines->buffer + lines->begin, lines->end - lines->begin);
        lines->end -= lines->begin;
        lines->searched -= lines->begin;
        lines->begin = 0;
    }
    if (lines->capacity - lines->end >= READ_BYTES)
        return true;
    size_t capacity = 2 * lines->capacity + READ_BYTES;
    char *larger = realloc(lines->buffer, capacity);
    if (larger == NULL) {
        errno = ENOMEM;
        return false;
    }
    lines->buffer = larger;
    lines->capacity = capacity;
    return true;
}

/* WHOLE: something more was read, or it is over. */
static enum decode_line read_more(struct decode_lines *lines, bool may_wait) {
    struct pollfd readable = {.fd = lines->fd, .events = POLLIN};
    int ready = poll(&readable, 1, may_wait ? WAIT_MS : 0);
    if (ready == 0 || (ready < 0 && errno == EINTR))
        return DECODE_LINE_NOT_YET;
    if (!make_room(lines))
        return DECODE_LINE_FAILED;
    ssize_t got = read(lines->fd, lines->buffer + lines->end, READ_BYTES);
    if (got < 0)
        return errno == EINTR || errno == EAGAIN ? DECODE_LINE_NOT_YET : DECODE_LINE_FAILED;
    lines->is_over = got == 0;
    lines->end += (size_t)got;
    return DECODE_LINE_WHOLE;
}

/* Takes bytes up to `end`, where a line ends. */
static enum decode_line take(
    struct decode_lines *lines, size_t end, size_t next, const char **text, size_t *bytes) {
    bool is_too_long = lines->is_skipping || end - lines->begin > DECODE_LINE_BYTES_MAX;
    *text = lines->buffer + lines->begin;
    *bytes = end - lines->begin;
    lines->begin = lines->searched = next;
    lines->is_skipping = false;
    lines->number++;
    return is_too_long ? DECODE_LINE_TOO_LONG : DECODE_LINE_WHOLE;
}

enum decode_line decode_lines_next(
    struct decode_lines *lines, bool may_wait, const char **text, size_t *bytes) {
    for (;;) {
        size_t left = lines->end - lines->searched;
        const char *newline = left > 0 ? memchr(lines->buffer + lines->searched, '\n', left) : NULL;
        if (newline != NULL) {
            size_t end = (size_t)(newline - lines->buffer);
            return take(lines, end, end + 1, text, bytes);
        }
        lines->searched = lines->end;
        if (lines->is_over && lines->begin == lines->end && !lines->is_skipping)
            return DECODE_LINE_NONE;
        if (lines->is_over)
            return take(lines, lines->end, lines->end, text, bytes);
        if (lines->end - lines->begin > DECODE_LINE_BYTES_MAX) {
            lines->is_skipping = true;
            lines->begin = lines->searched = lines->end;
        }
        enum decode_line more = read_more(lines, may_wait);
        if (more != DECODE_LINE_WHOLE)
            return more;
    }
}
