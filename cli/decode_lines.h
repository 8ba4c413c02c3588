/* decode_lines.h - the lines of a file, or of a pipe that somebody writes to meanwhile.
 *
 * Reading a regular file never waits. From a pipe a line is taken when it is whole; who has other
 * work to do asks without waiting.
 *
 * Threads: its caller's. Errors: a line over DECODE_LINE_BYTES_MAX is passed over and told. */
#ifndef KVL_DECODE_LINES_H
#define KVL_DECODE_LINES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define DECODE_LINE_BYTES_MAX ((size_t)16 << 20)

enum decode_line {
    DECODE_LINE_WHOLE,
    DECODE_LINE_TOO_LONG, /* passed over */
    DECODE_LINE_NOT_YET,  /* ask again: it may not wait, or has for a moment */
    DECODE_LINE_NONE,     /* the end */
    DECODE_LINE_FAILED,   /* reading did; errno says why */
};

struct decode_lines {
    int fd;          /* -1: not open */
    uint64_t number; /* of the line that came last, from 1 on */
    char *buffer;
    size_t capacity;
    size_t begin, end; /* what was read and not taken yet */
    size_t searched;   /* no line ends before this */
    bool is_over;      /* nothing more to read */
    bool is_skipping;  /* the line is too long, its end has not come */
};

/* path "-": stdin. False: errno says why. */
bool decode_lines_open(struct decode_lines *lines, const char *path);
void decode_lines_close(struct decode_lines *lines);
/* *text without its end of line, until the next call. A last line may lack its end. */
enum decode_line decode_lines_next(
    struct decode_lines *lines, bool may_wait, const char **text, size_t *bytes);

#endif
