/* io_watch.h - every call by which this process changes or reads files, shown to a test.
 *
 * io_watch.c defines pwrite, fdatasync, rename and so on themselves. The program's symbols come
 * before those of the shared libraries, so LMDB's calls pass through here as ours do. What libc
 * calls inside itself does not (dprintf: the lock file's text), and neither does io_uring: tests
 * use the posix backend.
 *
 * Threads: set while no other thread does I/O; before and after run on the calling thread. */
#ifndef KVL_IO_WATCH_H
#define KVL_IO_WATCH_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

enum io_kind {
    IO_OPEN,
    IO_READ,
    IO_WRITE,
    IO_SYNC,
    IO_TRUNCATE,
    IO_ALLOCATE,
    IO_RENAME,
    IO_UNLINK,
    IO_MKDIR,
    IO_MAP,
    IO_UNMAP, /* of any memory: no path */
    IO_KINDS
};

struct io_call {
    enum io_kind kind;
    char path[512]; /* absolute */
    char to[512];   /* RENAME */
    int fd;
    int flags;                 /* OPEN, RENAME; ALLOCATE: mode; WRITE: the file's status flags */
    int protection, map_flags; /* MAP */
    uint32_t mode;             /* OPEN, MKDIR */
    struct iovec *parts;       /* READ, WRITE; before() may shorten them */
    int part_count;
    uint64_t offset, bytes; /* TRUNCATE: bytes is the new size */
    bool at_offset;         /* READ, WRITE: pread, pwrite; otherwise offset is the file's */
    long result;            /* after: what the call gave; may be changed */
    int error;              /* after: its errno; may be changed */
    uint64_t note;          /* before()'s, for after() */
};

struct io_watch {
    const char *root;                    /* absolute; only files below are shown */
    bool reads;                          /* READ too */
    int (*before)(struct io_call *call); /* an errno to fail with; 0: go on */
    void (*after)(struct io_call *call);
};

/* NULL: none. The watch must live until the next set. */
void io_watch_set(const struct io_watch *watch);
const char *io_kind_name(enum io_kind kind);

#endif
